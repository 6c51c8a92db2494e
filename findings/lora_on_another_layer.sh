#!/usr/bin/env bash
# LoRA on a dense layer that is named in full goes to the experts of another block, in models of DeepSeek-V3's kind.
#
# One would guess that target_modules=["model.layers.0.mlp.down_proj"], the name of one linear layer, adapts that layer or
# is refused. Seen: peft takes each name that ends in gate_proj, up_proj or down_proj for a name of the time when experts
# were layers of their own, adapts the fused experts of all other blocks in its place, and leaves the layer as it is.
# "all-linear" too leaves dense layers and shared experts out, without a word. Of a Llama it adapts the named layer.
#
#     bash findings/lora_on_another_layer.sh    # FINDINGS_PYTHON=/path/to/python: that one, no installation
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python=${FINDINGS_PYTHON:-}
if [ -z "$python" ]; then
    python3 -m venv "$folder/venv"
    "$folder/venv/bin/pip" install --quiet peft==0.21.2 transformers==5.19.0 torch==2.13.0
    python=$folder/venv/bin/python
fi
cd "$folder"
"$python" -I -W ignore - <<'PYTHON'
from importlib.metadata import version

from peft import LoraConfig, get_peft_model
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM, LlamaConfig, LlamaForCausalLM

for package, wanted in (("peft", "0.21.2"), ("transformers", "5.19.0"), ("torch", "2.13.0")):
    print(f"{package} {version(package)}")
    assert version(package).split("+")[0] == wanted, package

SHAPE = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 4, "vocab_size": 64}
# The first block is dense, the second one a mixture of four experts and one that all tokens share.
MIXTURE = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "moe_intermediate_size": 16,
           "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1, "q_lora_rank": 8, "kv_lora_rank": 8,
           "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8}
NAMED = ["model.layers.0.mlp.down_proj"]


def adapted(model, targets):
    """Return the names of what has an adapter."""
    network = get_peft_model(model, LoraConfig(r=4, target_modules=targets))
    return [name.removeprefix("base_model.model.") for name, module in network.named_modules()
            if getattr(module, "lora_A", None)]


def deepseek():
    """Return a random model with one dense block and one of experts."""
    return DeepseekV3ForCausalLM(DeepseekV3Config(**SHAPE, **MIXTURE))


plain = adapted(LlamaForCausalLM(LlamaConfig(**SHAPE)), NAMED)
print(f"Llama, target_modules={NAMED}: {plain}")
assert plain == NAMED
found = adapted(deepseek(), NAMED)
print(f"DeepSeek-V3, target_modules={NAMED}: {found}")
assert found == ["model.layers.1.mlp.experts"], "the layer that was named is adapted now, or nothing is"
everything = adapted(deepseek(), "all-linear")
left = [name for name in ("model.layers.0.mlp.down_proj", "model.layers.1.mlp.shared_experts.down_proj")
        if name not in everything]
print(f"DeepSeek-V3, all-linear leaves out: {left}")
assert len(left) == 2, "all-linear reaches dense layers and shared experts now"
PYTHON
