#!/bin/sh
# One night: new files -> data sets -> evaluated model -> final model -> champion, if it is not worse.
#
#   sh docs/operate/nightly.sh mylogs logs [flags for the evaluated training]
#
# Run it in the directory with conf/, data/ and runs/. If it fails or is killed, run it again: what is done is not done
# again. It ends with 0 if nothing is new or the new model is the champion, with 1 if the champion stays.
set -eu
[ $# -ge 2 ] || { echo "usage: sh nightly.sh DATASET LOGS [flags of pnfrec train]" >&2; exit 2; }
dataset=$1 logs=$2
shift 2
pnfrec=${PNFREC:-pnfrec}

# The evaluated data set holds out the newest interactions, the whole one nothing.
prepare() {
  if [ -f "$1/.$dataset.kept/kept.json" ]; then
    $pnfrec prep --dataset "$dataset" --append "$logs" --data-dir "$@"
  else
    $pnfrec prep --dataset "$dataset" --raw "$logs" --keep-rows --data-dir "$@"
  fi
}
prepare data/prepared
prepare data/whole --split.holdout none

# A state of the data has a directory of its own, with a mark for each step that is done.
night=runs/nights/$(cksum < "data/prepared/$dataset/manifest.json" | tr ' ' -)
mkdir -p "$night"
step() {
  mark=$night/$1.done
  shift
  [ -f "$mark" ] || { "$@" && : > "$mark"; }
}
if [ -f "$night/night.done" ]; then
  echo "no new interactions"
  exit 0
fi

# Begin with the evaluated model of the night before: the final one knows the newest interactions.
before=runs/nights/newest
[ -f "$before" ] && set -- "$@" --init-from "$(cat "$before")"
step evaluated $pnfrec train --dataset "$dataset" --output-dir "$night/evaluated" "$@"
evaluated=$(echo "$night"/evaluated/*/)
step final $pnfrec train --final "$evaluated" --data-dir data/whole --output-dir "$night/final"
code=0
$pnfrec promote --run "$(echo "$night"/final/*/)" || code=$?
[ "$code" -le 1 ] || exit "$code"
echo "$evaluated" > "$before.new" && mv "$before.new" "$before"
: > "$night/night.done"
exit "$code"
