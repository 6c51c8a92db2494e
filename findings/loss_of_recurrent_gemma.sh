#!/usr/bin/env bash
# The loss that trl's SFTTrainer trains a RecurrentGemma on is not that of the model's logits.
#
# One would guess that the fused head computes what the model's own forward does, as it does for the soft caps of Gemma 2.
# Seen on a tiny random model: the cap of RecurrentGemma (logits_soft_cap) is left out.
#
#     bash findings/loss_of_recurrent_gemma.sh    # FINDINGS_PYTHON=/path/to/python: that one, no installation
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python=${FINDINGS_PYTHON:-}
if [ -z "$python" ]; then
    python3 -m venv "$folder/venv"
    "$folder/venv/bin/pip" install --quiet --extra-index-url https://download.pytorch.org/whl/cpu torch==2.13.0 transformers==5.19.0 trl==1.16.0
    python=$folder/venv/bin/python
fi
cd "$folder"
"$python" -I - <<'PYTHON'
import torch
import transformers
import trl
from transformers import AutoConfig, AutoModelForCausalLM
from trl.trainer.utils import add_fused_lm_head

transformers.logging.set_verbosity_error()
print(f"trl {trl.__version__}, transformers {transformers.__version__}")
assert trl.__version__ == "1.16.0"
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


ids = torch.arange(3, 40)[None]
seen = {}
families = {
    "gemma2": {"query_pre_attn_scalar": 8, "final_logit_softcapping": 1.0},
    "recurrent_gemma": {"lru_width": 32, "block_types": ["recurrent", "attention"], "logits_soft_cap": 1.0},
}
for family, own in families.items():
    model = make(family, **own)
    with torch.no_grad():
        right = model(ids, use_cache=False).logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
        add_fused_lm_head(model)
        trained = model(input_ids=ids, labels=ids, fused_lm_head=True).log_probs
    seen[family] = float((trained - right).abs().mean())
    print(f"{family}: the fused head is {seen[family]:.1e} nats a token from the logits")
assert seen["gemma2"] < 1e-4 and seen["recurrent_gemma"] > 0.1, seen
PYTHON
