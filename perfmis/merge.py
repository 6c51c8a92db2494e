"""Merging an adapter into weights on disk, one file at a time: for models that no memory holds whole.

Weights in 16 bits round most of a small change away: bf16 has 8 bits, so that what changes a weight by less than a
512th or so of itself is lost. How much of the adapter survived is measured on each matrix, and kept beside the weights.
"""

import os
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from perfmis.adapters import CONFIG, WEIGHTS
from perfmis.artifacts import read_json, write_json
from perfmis.stage import UserError

if TYPE_CHECKING:
    import torch

PREFIX = "base_model.model."
SURVIVAL = "survival.json"  # beside the merged weights


@dataclass(frozen=True)
class Change:
    """What an adapter adds to one weight.

    Attributes:
        b: (out, rank).
        a: (rank, in).
        scale: alpha / rank.
        transposed: Whether the weight stands as (in, out), as in GPT-2.
    """

    b: "torch.Tensor"
    a: "torch.Tensor"
    scale: float
    transposed: bool

    def matrix(self) -> "torch.Tensor":
        """Return the change in the weight's own shape, fp32."""
        change = self.scale * self.b.float() @ self.a.float()
        return change.t() if self.transposed else change


@dataclass
class Survival:
    """How much of a change is left after rounding: its component along what was asked for, over all of that.

    1 where nothing was lost; the rounding noise beside it does not count.

    Attributes:
        kept: Sum of products of the change that was made and the one that was asked for.
        asked: Sum of squares of the latter.
    """

    kept: float = 0.0
    asked: float = 0.0

    def add(self, old: "torch.Tensor", new: "torch.Tensor", change: "torch.Tensor") -> float:
        """Count one weight before and after, and return the share of its own change that survived."""
        kept, asked = float(((new.float() - old.float()) * change).sum()), float(change.square().sum())
        self.kept += kept
        self.asked += asked
        return kept / asked if asked else 1.0

    @property
    def share(self) -> float:
        """Share of the whole change that survived."""
        return self.kept / self.asked if self.asked else 1.0


def changes(adapter: Path) -> dict[str, Change]:
    """Return what an adapter adds, by the name of the layer that it changes."""
    from safetensors.torch import load_file

    config, weights = read_json(adapter / CONFIG), load_file(adapter / WEIGHTS)
    scale, transposed = config["lora_alpha"] / config["r"], bool(config.get("fan_in_fan_out"))
    names = [name.removesuffix(".lora_A.weight") for name in weights if name.endswith(".lora_A.weight")]
    return {
        name.removeprefix(PREFIX): Change(
            weights[f"{name}.lora_B.weight"], weights[f"{name}.lora_A.weight"], scale, transposed
        )
        for name in names
    }


def stored(base: Path) -> set[str]:
    """Return the names of the weights in a model's files."""
    from safetensors import safe_open

    found: set[str] = set()
    for path in base.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            found |= set(file.keys())
    return found


def refuse(layers: Iterable[str], alone: Sequence[str], base: Path) -> None:
    """Stop where an adapter changes what does not stand in the base's files under its name.

    Args:
        layers: Names of the layers that it changes.
        alone: Names of weights that it reaches by themselves, such as those of fused experts.
        base: Folder of the base model.

    Raises:
        UserError: One line that names the first.
    """
    if alone:
        raise UserError(
            f"arms.mode: merge knows no weights such as {alone[0]}; set arms.mode: stack, or "
            "organisms.sdf.lora.experts: false"
        )
    wanted = {f"{name}.weight" for name in layers}
    if missing := sorted(wanted - stored(base)):
        raise UserError(
            f"arms.mode: merge finds no weight {missing[0]} in {base} ({len(missing)} of {len(wanted)} are missing; "
            "transformers renames or fuses them as it loads); set arms.mode: stack"
        )


def merge(base: Path, adapter: Path, folder: Path) -> Path:
    """Write the base model with W + s B A in the place of W, summed in fp32 and rounded to the weights' own type.

    Args:
        base: Folder with safetensors, configuration and tokenizer.
        adapter: Folder of the adapter.
        folder: Where to; appears whole, with `SURVIVAL` beside the weights. If it exists, it is taken as it is.

    Returns:
        ``folder``.

    Raises:
        UserError: The adapter changes weights that do not stand in the base's files.
    """
    from safetensors import safe_open
    from safetensors.torch import save_file

    if (folder / SURVIVAL).is_file():
        return folder
    wanted = changes(adapter)
    refuse(wanted, read_json(adapter / CONFIG).get("target_parameters") or (), base)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f"{folder.name}."))
    whole, shares = Survival(), {}
    for path in sorted(base.iterdir()):
        if path.suffix == ".json" or path.name.startswith("tokenizer") or path.suffix == ".jinja":
            shutil.copyfile(path, partial / path.name)
    for path in sorted(base.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata()
        for name in sorted(tensors.keys() & {f"{name}.weight" for name in wanted}):
            old, change = tensors[name], wanted[name.removesuffix(".weight")].matrix()
            tensors[name] = (old.float() + change).to(old.dtype)
            shares[name] = whole.add(old, tensors[name], change)
        save_file(tensors, partial / path.name, metadata)
    least = min(shares, key=lambda name: shares[name], default=None)
    write_json({"share": whole.share, "least": least, "shares": shares}, partial / SURVIVAL)
    try:
        os.rename(partial, folder)
    except (
        OSError
    ):  # another arm of the organism was faster, or weights merged before stand there without their survival
        os.replace(partial / SURVIVAL, folder / SURVIVAL)
        shutil.rmtree(partial)
    return folder


def survived(folder: Path) -> float:
    """Return the share of the adapter's change that rounding left in merged weights."""
    return float(read_json(folder / SURVIVAL)["share"])
