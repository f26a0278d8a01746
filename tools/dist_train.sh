#!/usr/bin/env bash
# Train on several GPUs of this machine, or of several machines; on a machine without a GPU, in several processes.
#
#   tools/dist_train.sh CONFIG GPUS [options of tools/train.py]
#
# On several machines, run it on each, with the same NNODES, MASTER_ADDR and PORT, and NODE_RANK from 0 up.
set -euo pipefail
if [ $# -lt 2 ]; then
    echo "usage: [NNODES=1 NODE_RANK=0 MASTER_ADDR=127.0.0.1 PORT=29500] $0 CONFIG GPUS [options of tools/train.py]" >&2
    exit 2
fi
config=$1 gpus=$2
shift 2
place=(--standalone)  # on one machine, any free port
if [ "${NNODES:-1}" != 1 ] || [ -n "${PORT:-}" ]; then
    place=(--nnodes "${NNODES:-1}" --node-rank "${NODE_RANK:-0}" --master-addr "${MASTER_ADDR:-127.0.0.1}"
           --master-port "${PORT:-29500}")
fi
exec "${PYTHON:-python}" -m torch.distributed.run "${place[@]}" --nproc-per-node "$gpus" \
    "$(dirname "$0")/train.py" "$config" --launcher pytorch "$@"
