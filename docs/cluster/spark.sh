#!/bin/sh
# Prepares a data set on a Spark cluster: sh spark.sh yarn|k8s <data set> <raw URI> <prepared URI>
# For k8s, set K8S_MASTER and IMAGE.
set -eu
: "${4:?usage: sh $0 yarn|k8s <data set> <raw URI> <prepared URI>}"
make py-files
case "$1" in
yarn) set -- "$@" --master yarn --deploy-mode cluster ;;
k8s) set -- "$@" --master "k8s://${K8S_MASTER:?}" --deploy-mode cluster --conf "spark.kubernetes.container.image=${IMAGE:?}" ;;
*) echo "yarn or k8s" >&2; exit 2 ;;
esac
dataset=$2 raw=$3 prepared=$4
shift 4
exec spark-submit "$@" --py-files dist/pnfrec_dist.zip dist/prepare.py --dataset "$dataset" --raw "$raw" --data-dir "$prepared"
