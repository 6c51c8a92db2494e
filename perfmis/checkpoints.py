"""The checkpoints of a model: their adapters, by the names that engines have for them."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from perfmis import models
from perfmis.adapters import verified
from perfmis.vocabulary import BASE

if TYPE_CHECKING:
    from perfmis.engines.transformers import Engine


def adapter_name(checkpoint: str) -> str | None:
    """Return the engine's name of a checkpoint's adapter; module names hold no signs."""
    return None if checkpoint == BASE else checkpoint.replace("+", "plus").replace("-", "minus")


def adapters(pairs: Sequence[str]) -> dict[str, Path]:
    """Parse ``CHECKPOINT=FOLDER`` arguments."""
    return {name: Path(folder) for name, _, folder in (pair.partition("=") for pair in pairs)}


def named(folders: dict[str, Path], base: Path) -> dict[str, Path]:
    """Return the adapters of checkpoints by the engine's names, after comparing them with their lineage."""
    return {str(adapter_name(checkpoint)): verified(folder, base) for checkpoint, folder in folders.items()}


def engine(base: Path, folders: dict[str, Path], precision: str) -> "Engine":
    """Return the reference engine of a base with the adapters of checkpoints, its model open to be read out."""
    from perfmis import probes
    from perfmis.engines.transformers import Engine

    model, tokenizer = models.load(base, precision)
    probes.settle_attention(model)
    result = Engine(model, tokenizer)
    for name, folder in named(folders, base).items():
        result.add(name, folder)
    return result
