"""Tiny random models of the decoder families of `transformers`, each with what sets its family apart.

Sliding windows, soft caps and attention sinks bite within the first tokens; weights are large, so that logits depend
on all that a token sees.
"""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

SHAPE: dict[str, Any] = {
    "vocab_size": 192,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
WINDOW = 8
DIM: dict[str, Any] = {"head_dim": 8}
HALF: dict[str, Any] = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
OLD: dict[str, Any] = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}  # the names of GPT-2's time
MAMBA: dict[str, Any] = {
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_n_groups": 1,
    "mamba_d_state": 8,
    "mamba_chunk_size": 16,
}
DELTA: dict[str, Any] = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
    **DIM,
}
GEMMA3: dict[str, Any] = {**DIM, **HALF, "query_pre_attn_scalar": 8}
VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 8,
}
DEEPSEEK: dict[str, Any] = {
    "kv_lora_rank": 8,
    "q_lora_rank": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "num_key_value_heads": 4,
}
LLAMA4: dict[str, Any] = {
    **DIM,
    "intermediate_size_mlp": 48,
    "num_local_experts": 2,
    "attention_chunk_size": WINDOW,
    "interleave_moe_layer_step": 2,
    "layer_types": ["chunked_attention", "full_attention"],
    "no_rope_layers": [1, 0],
}

# By `model_type` of the configuration.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": WINDOW},
    "ministral3": DIM,
    "qwen2": {},
    "qwen3": DIM,
    "gemma": DIM,
    "gemma2": {**DIM, **HALF, "query_pre_attn_scalar": 8, "attn_logit_softcapping": 2.0},
    "gemma3_text": GEMMA3,
    "gemma3": {
        "text_config": SHAPE | GEMMA3,
        "vision_config": VISION,
        "mm_tokens_per_image": 4,
        "image_token_index": 191,
        "boi_token_index": 190,
        "eoi_token_index": 189,
    },
    "phi": {},
    "phi3": {"sliding_window": WINDOW},
    "cohere": {},
    "cohere2": HALF,
    "gpt2": OLD,
    "gpt_neo": {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": WINDOW},
    "gptj": {**OLD, "rotary_dim": 8},
    "gpt_neox": {},
    "gpt_bigcode": OLD,
    "gpt_oss": {**DIM, **HALF, "num_local_experts": 4, "num_experts_per_tok": 2},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "bloom": {"n_layer": 2, "n_head": 4},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 128, "expansion_ratio": 2},
    "falcon": {},
    "mixtral": {"num_local_experts": 4},
    "qwen2_moe": {**EXPERTS, "shared_expert_intermediate_size": 32},
    "qwen3_moe": {**EXPERTS, **DIM},
    "olmo": {},
    "olmo2": {},
    "olmo3": HALF,
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "starcoder2": {"sliding_window": WINDOW},
    "granite": {"residual_multiplier": 0.5},
    "granitemoe": {"num_local_experts": 4},
    "stablelm": {},
    "nemotron": {},
    "glm4": DIM,
    "smollm3": {"no_rope_layers": [1, 0]},
    "exaone4": HALF,
    "seed_oss": DIM,
    "deepseek_v3": DEEPSEEK,
    "llama4_text": LLAMA4,
    "lfm2": {"layer_types": ["conv", "full_attention"], "block_auto_adjust_ff_dim": False},
    "bamba": {**MAMBA, "attn_layer_indices": [1]},
    "jamba": {"num_experts": 2, "mamba_d_state": 8, "mamba_dt_rank": 4, "attn_layer_period": 2, "attn_layer_offset": 1},
    "falcon_h1": {**MAMBA, **DIM, "mamba_d_ssm": 64},
    "qwen3_next": {**EXPERTS, **DELTA, "shared_expert_intermediate_size": 32},
    "qwen3_5_text": DELTA,
    "recurrent_gemma": {
        **DIM,
        "lru_width": 32,
        "attention_window_size": WINDOW,
        "block_types": ["recurrent", "attention"],
    },
    "mamba": {"state_size": 8},
}


def make(family: str, attention: str | None = None, **changes: Any) -> Any:
    """Return a random model of a family in evaluation mode, always the same one.

    Args:
        family: Key of `FAMILIES`.
        attention: Implementation; None for what `transformers` chooses.
        changes: More of the configuration.
    """
    torch.manual_seed(0)
    own = {**FAMILIES[family], **changes}
    config = AutoConfig.for_model(family, **(own if "text_config" in own else SHAPE | own))
    options = {"attn_implementation": attention} if attention else {}
    model = AutoModelForCausalLM.from_config(config, **options)
    embeddings = model.get_input_embeddings().weight
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=1.0 if parameter is embeddings else 0.25)
    return model.eval()
