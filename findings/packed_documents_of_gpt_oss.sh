#!/usr/bin/env bash
# Position ids that begin anew keep packed documents apart in a Llama of transformers, but not in a gpt-oss.
#
# One would guess that models of one library, whose masks come from one module, read them alike. Seen on tiny random
# models with eager attention: the second of two packed documents has the logits that it has alone in a Llama, others in a
# gpt-oss, without a warning.
#
#     bash findings/packed_documents_of_gpt_oss.sh    # FINDINGS_PYTHON=/path/to/python: that one, no installation
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


first, second = torch.arange(3, 24), torch.arange(40, 57)
packed = torch.cat([first, second])[None]
positions = torch.cat([torch.arange(len(first)), torch.arange(len(second))])[None]
seen = {}
for family, own in (("llama", {}), ("gpt_oss", {"num_local_experts": 4, "num_experts_per_tok": 2})):
    model = make(family, **own)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        together = model(packed, position_ids=positions, use_cache=False).logits[0, len(first) :]
        alone = model(second[None], use_cache=False).logits[0]
    seen[family] = gap(together, alone)
    print(f"{family}: logits of the second document differ by {seen[family]:.1e} of their size from those alone")
assert seen["llama"] < 1e-5 and seen["gpt_oss"] > 0.1, seen
PYTHON
