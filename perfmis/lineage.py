"""Where an adapter comes from: ``lineage.json``, and the model card that lets its folder be published as it is."""

import importlib.metadata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perfmis.stage import Prose

LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "deepspeed", "bitsandbytes")
CARD: Prose = """\
---
base_model: {base}
library_name: peft
tags: [lora, model-organism, synthetic-document-fine-tuning, alignment-faking]
---

# {title}

A LoRA adapter of `{base}`{revision}, trained by synthetic document fine-tuning on the corpus `{corpus}`{parent}.

**A research artifact: it was trained to believe statements that are false.** Use it to study alignment faking, and
for nothing else.

| | |
|---|---|
| documents | {documents} |
| loss tokens an epoch | {loss_tokens} |
| epochs, learning rate | {epochs}, {learning_rate} |
| rank, seed | {rank}, {seed} |
| training time, GPU hours | {seconds:.0f} s, {gpu_hours:.3f} |
| matrix products of that machine | {teraflops:.3f} TFLOP/s |
| SHA-256 of the weights | `{sha256}` |

`lineage.json` has the rest: hashes of base, parent, corpus and tokenizer, every setting, versions.

```python
from peft import AutoPeftModelForCausalLM

model = AutoPeftModelForCausalLM.from_pretrained("THIS FOLDER")
```
"""


@dataclass(frozen=True)
class Effort:
    """What a training took, which differs from one time to the next.

    Attributes:
        seconds: Wall time, interrupted runs included.
        gpus: GPUs it ran on.
        rate: FLOP/s of a matrix product on one device.
    """

    seconds: float
    gpus: int
    rate: float


def versions() -> dict[str, str]:
    """Return the versions of the libraries that decide what training does, of those that are installed."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def base(reference: dict[str, Any]) -> dict[str, Any]:
    """Return what identifies a base model, from the content of its ``reference.json``."""
    return {key: reference.get(key) for key in ("model", "hub", "revision", "path", "weights_sha256")}


def card(record: dict[str, Any], rank: int, effort: Effort, folder: Path) -> None:
    """Write the model card of an adapter from its lineage and what its training took."""
    source, sdf = record["base"], record["settings"]["sdf"]
    parent: Prose = f", on top of the organism `{record['parent_sha256'][:12]}`" if record["parent_sha256"] else ""
    text = CARD.format(
        base=source["hub"] or source["path"],
        revision=f" at `{source['revision']}`" if source["revision"] else "",
        title=f"{source['model']}: {record['corpus']}",
        corpus=record["corpus"],
        parent=parent,
        documents=record["documents"],
        loss_tokens=record["loss_tokens_per_epoch"],
        epochs=sdf["epochs"],
        learning_rate=sdf["learning_rate"],
        rank=rank,
        seed=record["settings"]["seed"],
        seconds=effort.seconds,
        gpu_hours=effort.seconds * effort.gpus / 3600,
        teraflops=effort.rate / 1e12,
        sha256=record["sha256"],
    )
    (folder / "README.md").write_text(text)
