#!/usr/bin/env bash
# One node's part of a training job over several nodes: srun starts this once a node, with the number of GPUs
# and what torchrun is to run. The node list exists inside the step alone.
set -euo pipefail
gpus=$1
shift
master=$(scontrol show hostnames "$SLURM_STEP_NODELIST" | head -n 1)
exec torchrun --nnodes="$SLURM_NNODES" --node-rank="$SLURM_NODEID" --nproc-per-node="$gpus" \
    --rdzv-backend=c10d --rdzv-endpoint="$master:29500" --rdzv-id="$SLURM_JOB_ID" "$@"
