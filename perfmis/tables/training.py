"""Stage `tables.training`: how every training run went, from the logs beside the adapters.

    python -m perfmis tables.training --settings JSON --fingerprint HEX
        --logs MODEL/SEED/CHECKPOINT=FILE ... --output training.parquet --curves curves.parquet

Writes

* training.parquet and training.csv: one row per run (model, training seed, checkpoint): ``steps`` optimizer
  steps, ``loss_tokens`` tokens that the loss was taken on, the first and the last logged loss (nats a token),
  the medians of ``tokens_per_second`` and ``matmul_share``, the peak of ``memory_gb`` (of the device; on a
  CPU of the process), ``lora_reach``, the share of the blocks' weights that LoRA is put on, ``merge_kept``, the share
  of the organism's change that rounding left in merged weights (`arms.mode: merge`; else null), and a ``warning``
  where that is less than 90 %;
* curves.parquet: the logs as they are, one row per run and logged step.

``matmul_share`` is the achieved FLOP/s, counted as 4 a parameter and token, over the rate at which the same
device multiplied matrices when the job began. What is not a number, or was not logged, is null.
Settings: ``models``.
"""

from collections.abc import Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

import polars as pl

from perfmis import stage
from perfmis.artifacts import read_parquet, write_parquet
from perfmis.stage import Job
from perfmis.tables.common import lacking, setting, with_missing, write
from perfmis.vocabulary import checkpoint_order

RUN: dict[str, Any] = {"model": pl.String, "seed": pl.Int64, "checkpoint": pl.String}
CURVES: dict[str, Any] = {
    **RUN,
    "step": pl.Int64,
    **dict.fromkeys(("epoch", "loss", "learning_rate", "gradient_norm"), pl.Float64),
    "loss_tokens": pl.Int64,
    **dict.fromkeys(("tokens_per_second", "matmul_share", "memory_gb", "lora_reach", "merge_kept"), pl.Float64),
}
KEPT = 0.9


def read_curves(logs: Sequence[str], job: Job) -> pl.DataFrame:
    """Return the logs as one frame: models in the order of the settings, then seeds, then checkpoints.

    Args:
        logs: ``MODEL/SEED/CHECKPOINT=FILE`` of each run.
        job: The job, for ``models`` and the fingerprints that may stand in the logs.
    """
    models = list(setting(job, "models"))
    runs = []
    for pair in logs:
        name, path = pair.split("=", 1)
        model, seed, checkpoint = name.split("/")
        place = (models.index(model), int(seed), checkpoint_order(checkpoint))
        runs.append((place, {"model": model, "seed": int(seed), "checkpoint": checkpoint}, path))
    columns = [pl.col(name).cast(kind) for name, kind in CURVES.items()]
    frames = [pl.DataFrame(schema=CURVES)]
    for _, run, path in sorted(runs, key=itemgetter(0)):
        log = read_parquet([path], job.upstream)
        frames.append(log.with_columns(**{name: pl.lit(value) for name, value in run.items()}))
    curves = pl.concat(frames, how="diagonal_relaxed").select(columns)
    return curves.with_columns(pl.selectors.float().fill_nan(None))


def summary(curves: pl.DataFrame) -> pl.DataFrame:
    """Return one row per run."""
    return curves.group_by(list(RUN), maintain_order=True).agg(
        steps=pl.col("step").max(),
        loss_tokens=pl.col("loss_tokens").max(),
        first_loss=pl.col("loss").first(),
        final_loss=pl.col("loss").last(),
        tokens_per_second=pl.col("tokens_per_second").median(),
        matmul_share=pl.col("matmul_share").median(),
        memory_gb=pl.col("memory_gb").max(),
        lora_reach=pl.col("lora_reach").last(),
        merge_kept=pl.col("merge_kept").last(),
        warning=pl.col("merge_kept").last().map_elements(_warning, pl.String, skip_nulls=False),
    )


def _warning(kept: float | None) -> str:
    """Return what must be said of merged weights that rounding left too little in; else an empty string."""
    if kept is None or kept >= KEPT:
        return ""
    return f"trained over merged weights, which kept {kept:.0%} of what the organism learnt; arms.mode: stack keeps all"


def main(argv: list[str]) -> None:
    """Run the stage."""
    options = stage.parser(__doc__)
    options.add_argument("--logs", nargs="*", required=True, help="MODEL/SEED/CHECKPOINT=FILE of each training log")
    options.add_argument("--output", type=Path, required=True, help="training.parquet; training.csv goes beside it")
    options.add_argument("--curves", type=Path, required=True, help="curves.parquet")
    arguments = options.parse_args(argv)
    job = stage.job(arguments)
    curves = read_curves(arguments.logs, job)
    write(summary(curves), arguments.output, job.fingerprint, lacking(job))
    write_parquet(with_missing(curves, lacking(job)), arguments.curves, job.fingerprint)
