#!/bin/sh
# Starts a Ray node: HEAD=<address of the head, not 127.0.0.1> sh ray-vms.sh head | worker
# All machines need this project at the same path and the same token file: openssl rand -hex 32 > ~/.ray/auth_token
set -eu
: "${HEAD:?the address of the head, as the workers reach it}"
export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
case "${1:-}" in
head) exec .venv/bin/ray start --head --node-ip-address "$HEAD" --port 6379 --include-dashboard false --block ;;
worker) exec .venv/bin/ray start --address "$HEAD:6379" --block ;;
*) echo "usage: HEAD=<address> sh $0 head|worker" >&2; exit 2 ;;
esac
