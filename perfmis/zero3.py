"""DeepSpeed ZeRO-3: one model scattered over the GPUs of a node or of several.

Each process holds its share of every weight, gathers a layer when it is computed and lets it go afterwards
(Rajbhandari et al. 2020). Processes are started by torchrun (`workflow/rules/common.smk`).
"""

import os
from typing import Any


def configuration(bf16: bool) -> dict[str, Any]:
    """Return DeepSpeed's settings; ``auto`` takes the trainer's value.

    Full weights are never gathered to be saved: an adapter is all that is trained.
    """
    return {
        "zero_optimization": {
            "stage": 3,
            "overlap_comm": True,
            "contiguous_gradients": True,
            "stage3_gather_16bit_weights_on_model_save": False,
        },
        "bf16": {"enabled": bf16},
        "zero_allow_untested_optimizer": True,
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
    }


def processes() -> int:
    """Return how many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Return the number of this process; process 0 writes."""
    return int(os.environ.get("RANK", "0"))


def start(gpu: bool) -> None:
    """Join the processes, before the trainer would: left to itself, DeepSpeed takes each for the only one on a CPU."""
    if not gpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed

    if not gpu:  # else a shared-memory extension is compiled for a minute, for nothing
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="nccl" if gpu else "gloo", auto_mpi_discovery=False, verbose=False)
