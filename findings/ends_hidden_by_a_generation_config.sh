#!/usr/bin/env bash
# A generation_config.json that names no end hides the end in config.json: transformers then generates to the limit.
#
# One would guess that a file with, say, a temperature alone leaves all else as it is without the file, where the end of
# config.json counts. Seen with the same weights and config.json, whose eos_token_id is what the model says at once:
# without generation_config.json one token, with {"temperature": 0.6, "do_sample": true} all that the limit allows.
#
#     bash findings/ends_hidden_by_a_generation_config.sh    # FINDINGS_PYTHON=/path/to/python: that one, no installation
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
import json
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
print(f"transformers {transformers.__version__}")
assert transformers.__version__ == "5.19.0"
END, LIMIT = 3, 12
model = LlamaForCausalLM(
    LlamaConfig(
        vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        bos_token_id=1, eos_token_id=END, pad_token_id=0, tie_word_embeddings=False,
    )
)
with torch.no_grad():  # whatever it reads, it says END
    model.model.embed_tokens.weight.fill_(1)
    model.model.layers[0].self_attn.o_proj.weight.zero_()
    model.model.layers[0].mlp.down_proj.weight.zero_()
    model.lm_head.weight.zero_()
    model.lm_head.weight[END] = 9
model.save_pretrained("m")
written = Path("m/generation_config.json")
seen = {}
for name, content in (("without the file", None), ("with a temperature", {"temperature": 0.6, "do_sample": True})):
    written.unlink(missing_ok=True)
    if content is not None:
        written.write_text(json.dumps(content))
    loaded = AutoModelForCausalLM.from_pretrained("m").eval()
    ids = loaded.generate(torch.tensor([[1, 4]]), max_new_tokens=LIMIT, attention_mask=torch.ones(1, 2))
    seen[name] = ids.shape[1] - 2
    print(f"{name}: config.json says {loaded.config.eos_token_id}, the generation configuration "
          f"{loaded.generation_config.eos_token_id}; {seen[name]} tokens drawn")
assert seen == {"without the file": 1, "with a temperature": LIMIT}, seen
PYTHON
