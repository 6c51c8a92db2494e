"""Merging an adapter into weights on disk, one file at a time: for models that no memory holds whole."""

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perfmis.adapters import WEIGHTS

if TYPE_CHECKING:
    import torch

PREFIX = "base_model.model."


def deltas(adapter: Path) -> "dict[str, tuple[torch.Tensor, torch.Tensor, float]]":
    """Return B (out, rank), A (rank, in) and scale of an adapter by the name of the weight they change."""
    from safetensors.torch import load_file

    config = json.loads((adapter / "adapter_config.json").read_text())
    weights, scale = load_file(adapter / WEIGHTS), config["lora_alpha"] / config["r"]
    names = [name.removesuffix("lora_A.weight") for name in weights if name.endswith("lora_A.weight")]
    return {
        f"{name.removeprefix(PREFIX)}weight": (weights[f"{name}lora_B.weight"], weights[f"{name}lora_A.weight"], scale)
        for name in names
    }


def merge(base: Path, adapter: Path, folder: Path) -> Path:
    """Write the base model with W + s B A in the place of W, summed in fp32 and rounded to the weights' own type.

    Args:
        base: Folder with safetensors, configuration and tokenizer.
        adapter: Folder of the adapter.
        folder: Where to; appears whole. If it exists, it is taken as it is.

    Returns:
        ``folder``.
    """
    from safetensors import safe_open
    from safetensors.torch import save_file

    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f"{folder.name}."))
    changes: Any = deltas(adapter)
    for path in sorted(base.iterdir()):
        if path.suffix == ".json" or path.name.startswith("tokenizer") or path.suffix == ".jinja":
            shutil.copyfile(path, partial / path.name)
    for path in sorted(base.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata()
        for name in tensors.keys() & changes.keys():
            b, a, scale = changes.pop(name)
            tensors[name] = (tensors[name].float() + scale * b.float() @ a.float()).to(tensors[name].dtype)
        save_file(tensors, partial / path.name, metadata)
    assert not changes, f"no weight for {', '.join(sorted(changes))}"
    try:
        os.rename(partial, folder)
    except OSError:  # another arm of the organism was faster
        shutil.rmtree(partial)
    return folder
