"""Base models: from a reference file to weights and tokenizer in memory."""

from pathlib import Path
from typing import TYPE_CHECKING

from perfmis.artifacts import read_json
from perfmis.stage import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load(reference: Path, precision: str) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Load the model that ``reference.json`` names, from a local folder or a pinned hub commit.

    Args:
        reference: File with ``path``, or with ``hub`` and ``revision``.
        precision: ``bf16`` or ``fp32``.

    Returns:
        The model in evaluation mode on the GPU where there is one, and its tokenizer (padding on the left).
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    content = read_json(reference)
    source = content.get("path") or content["hub"]
    revision = content.get("revision", "main")
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, padding_side="left")
        model = AutoModelForCausalLM.from_pretrained(
            source,
            revision=revision,
            dtype={"bf16": torch.bfloat16, "fp32": torch.float32}[precision],
            device_map="auto" if torch.cuda.is_available() else None,
            use_safetensors=True,
            trust_remote_code=False,
        )
    except OSError as error:
        raise UserError(f"{reference}: {source} at {revision} cannot be loaded: {error}") from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model.eval(), tokenizer
