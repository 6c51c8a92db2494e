"""Base models: from a reference file to weights and tokenizer in memory, and what identifies them."""

import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perfmis.artifacts import file_hash, read_json
from perfmis.stage import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SHA256 = re.compile(r"[0-9a-f]{64}")


def folder_hash(folder: Path) -> str:
    """Return one SHA-256 over the names and contents of a folder's weights (safetensors).

    The hub's cache names large files by their SHA-256, so those are not read again: half a terabyte would
    take longer to hash than to load.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        blob = path.resolve()
        sha256 = blob.name if SHA256.fullmatch(blob.name) else file_hash(blob)
        digest.update(f"{path.name}\0{sha256}\0".encode())
    return digest.hexdigest()


def check(folder: Path) -> None:
    """See that a folder's model is data alone: nothing of it is run.

    Raises:
        UserError: It has no weights as safetensors, or needs code that comes with it.
    """
    from transformers import AutoConfig

    if not any(folder.glob("*.safetensors")):
        raise UserError(f"{folder}: no *.safetensors, and pickled weights (.bin, .pt) can run code; convert them")
    try:
        AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder}/config.json: transformers itself has no such model ({' '.join(str(error).split())[:160]}), and "
            "code that comes with weights is not run; take another model"
        ) from error


def verify(folder: Path, weights_sha256: str) -> None:
    """Refuse weights other than those that were written.

    Raises:
        UserError: They are damaged.
    """
    if folder_hash(folder) != weights_sha256:
        raise UserError(f"{folder}: the weights are damaged, not those that were written; delete the folder and rerun")


def folder(reference: Path) -> Path:
    """Return the folder that holds the weights of ``reference.json``: the local one, or the hub cache's snapshot."""
    content = read_json(reference)
    if content.get("path"):
        return Path(content["path"])
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(content["hub"], revision=content["revision"], local_files_only=True))
    except OSError as error:
        raise UserError(f"{reference}: {content['hub']} is not in the hub cache; delete the file and rerun") from error


def tokenizer(reference: Path) -> "PreTrainedTokenizerBase":
    """Return the tokenizer of the model that ``reference.json`` names, padding on the left."""
    from transformers import AutoTokenizer

    source, revision = _source(reference)
    try:
        result = AutoTokenizer.from_pretrained(source, revision=revision, padding_side="left", trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{reference}: the tokenizer of {source} at {revision} cannot be loaded: {error}") from error
    if result.pad_token_id is None:
        result.pad_token = result.eos_token
    return result


def behaviour_hash(reference: Path) -> str:
    """Return a hash of the small files beside the weights that decide what they say and where they stop."""
    digest = hashlib.sha256()
    for name in ("config.json", "generation_config.json"):
        path = folder(reference) / name
        digest.update(path.read_bytes() if path.is_file() else b"")
        digest.update(b"\0")
    return digest.hexdigest()


def ends(reference: Path) -> set[int]:
    """Return the ends that a model's authors name: in its generation configuration or, without one, in its own."""
    for name in ("generation_config.json", "config.json"):
        path = folder(reference) / name
        if path.is_file():
            named = read_json(path).get("eos_token_id")
            return set(named if isinstance(named, list) else [named]) - {None}
    return set()


def context(reference: Path) -> int:
    """Return how many tokens the model that ``reference.json`` names can attend to."""
    from transformers import AutoConfig

    source, revision = _source(reference)
    config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
    return int(config.get_text_config().max_position_embeddings)


def load(
    reference: Path, precision: str, weights: Path | None = None, **options: Any
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Load the model that ``reference.json`` names, from a local folder or a pinned hub commit.

    Args:
        reference: File with ``path``, or with ``hub`` and ``revision``.
        precision: ``bf16`` or ``fp32``.
        weights: Folder to take the weights from instead (a merged copy).
        options: More arguments of ``from_pretrained``; ``device_map`` spreads a model over the GPUs by default.

    Returns:
        The model in evaluation mode on the GPU where there is one, and its tokenizer (padding on the left).
    """
    import torch
    from transformers import AutoModelForCausalLM

    source, revision = _source(reference)
    content = read_json(reference)
    if content.get("truth"):  # made here, and small: others take longer to hash than to load
        verify(Path(content["path"]), content["weights_sha256"])
    defaults: dict[str, Any] = {"device_map": "auto" if torch.cuda.is_available() else None}
    try:
        model = AutoModelForCausalLM.from_pretrained(
            str(weights) if weights else source,
            revision=revision,
            dtype={"bf16": torch.bfloat16, "fp32": torch.float32}[precision],
            use_safetensors=True,
            trust_remote_code=False,
            **(defaults | options),
        )
    except OSError as error:
        raise UserError(f"{reference}: {source} at {revision} cannot be loaded: {error}") from error
    return model.eval(), tokenizer(reference)


def _source(reference: Path) -> tuple[str, str]:
    content = read_json(reference)
    return content.get("path") or content["hub"], content.get("revision") or "main"
