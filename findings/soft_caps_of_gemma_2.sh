#!/usr/bin/env bash
# The attention that transformers chooses for Gemma 2 leaves out the soft caps of its configuration.
#
# One would guess that a model loaded without a word on attention computes what its configuration says. Seen on a tiny
# random Gemma 2: the default is sdpa, whose logits do not change when attn_logit_softcapping does; those of eager do.
#
#     bash findings/soft_caps_of_gemma_2.sh    # FINDINGS_PYTHON=/path/to/python: that one, no installation
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python=${FINDINGS_PYTHON:-}
if [ -z "$python" ]; then
    python3 -m venv "$folder/venv"
    "$folder/venv/bin/pip" install --quiet --extra-index-url https://download.pytorch.org/whl/cpu torch==2.13.0 transformers==5.19.0
    python=$folder/venv/bin/python
fi
cd "$folder"
"$python" -I - <<'PYTHON'
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM

transformers.logging.set_verbosity_error()
print(f"transformers {transformers.__version__}")
assert transformers.__version__ == "5.19.0"
SHAPE = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}


def make(family, **own):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **{**SHAPE, **own}))
    for weight in model.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.25)
    return model.eval()


def gap(found, expected):
    return float((found - expected).norm() / expected.norm())


ids = torch.arange(3, 40)[None]
logits = {}
for cap in (1.0, None):
    model = make("gemma2", query_pre_attn_scalar=8, attn_logit_softcapping=cap)
    assert model.config._attn_implementation == "sdpa"
    for attention in ("sdpa", "eager"):
        model.set_attn_implementation(attention)
        with torch.no_grad():
            logits[attention, cap] = model(ids).logits
moved = {attention: gap(logits[attention, 1.0], logits[attention, None]) for attention in ("sdpa", "eager")}
print(f"a soft cap of 1 moves the logits of sdpa (the default) by {moved['sdpa']:.1e} of their size, of eager by "
      f"{moved['eager']:.1e}")
assert moved["sdpa"] == 0 and moved["eager"] > 1e-3, moved
PYTHON
