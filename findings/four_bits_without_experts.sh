#!/usr/bin/env bash
# A Mixtral that is loaded in 4 bits keeps its experts, nearly all of its weights, as they were.
#
# One would guess that load_in_4bit makes 4 bits of all weights in a model's blocks, or says which it leaves. Seen: since
# transformers holds experts fused in tensors of three dimensions, bitsandbytes, which replaces linear layers, passes
# them by; nothing is said, and is_loaded_in_4bit is true. Of a Llama nothing in the blocks is left.
#
#     bash findings/four_bits_without_experts.sh    # FINDINGS_PYTHON=/path/to/python: that one, no installation
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python=${FINDINGS_PYTHON:-}
if [ -z "$python" ]; then
    python3 -m venv "$folder/venv"
    "$folder/venv/bin/pip" install --quiet transformers==5.19.0 bitsandbytes==0.50.2 torch==2.13.0 accelerate==1.15.0
    python=$folder/venv/bin/python
fi
cd "$folder"
"$python" -I -W ignore - <<'PYTHON'
from importlib.metadata import version

import torch
from transformers import (
    AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM
)

for package, wanted in (("transformers", "5.19.0"), ("bitsandbytes", "0.50.2"), ("torch", "2.13.0")):
    print(f"{package} {version(package)}")
    assert version(package).split("+")[0] == wanted, package

SHAPE = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 4, "vocab_size": 64}


def left(model, name):
    """Return the share of the blocks' matrices that are no 4-bit ones after loading, and the names of their kinds."""
    whole = {key: weight.numel() for key, weight in model.named_parameters() if ".layers." in key and weight.ndim > 1}
    model.save_pretrained(name)
    options = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    small = AutoModelForCausalLM.from_pretrained(name, quantization_config=options, dtype=torch.float32)
    assert small.is_loaded_in_4bit
    kept = {key for key, weight in small.named_parameters() if key in whole and weight.dtype != torch.uint8}
    return sum(whole[key] for key in kept) / sum(whole.values()), sorted({key.split(".", 3)[3] for key in kept})


share, kinds = left(LlamaForCausalLM(LlamaConfig(**SHAPE)), "llama")
print(f"Llama: {share:.1%} of the blocks are not in 4 bits")
assert share == 0
share, kinds = left(MixtralForCausalLM(MixtralConfig(**SHAPE)), "mixtral")
print(f"Mixtral: {share:.1%} of the blocks are not in 4 bits: {', '.join(kinds)}")
assert share > 0.9 and "mlp.experts.down_proj" in kinds, "experts are in 4 bits now"
PYTHON
