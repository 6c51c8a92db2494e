#!/usr/bin/env bash
# One node's part of a training job over several nodes: srun starts this once a node, with the number of GPUs
# and what torchrun is to run. The node list exists inside the step alone; its names need not be known to DNS.
set -euo pipefail
gpus=$1
shift
first=$(scontrol show hostnames "$SLURM_STEP_NODELIST" | head -n 1)
master=$(scontrol show node "$first" --oneliner | sed 's/.*NodeAddr=\([^ ]*\).*/\1/')
exec torchrun --nnodes="$SLURM_NNODES" --node-rank="$SLURM_NODEID" --nproc-per-node="$gpus" \
    --rdzv-backend=c10d --rdzv-endpoint="$master:29500" --rdzv-id="$SLURM_JOB_ID" "$@"
