"""Greedy tokens of base and adapter by vLLM, as JSON: run by tests/test_vllm.py under the interpreter that has vLLM.

python tests/vllm_greedy.py BASE ADAPTER RANK PROMPT_IDS_JSON
"""

import json
import os
import sys

os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}


def main(base: str, adapter: str, rank: str, prompt: str) -> None:
    """Print the tokens of both."""
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    engine = LLM(
        base, dtype="float32", enable_lora=True, max_lora_rank=max(8, int(rank)), max_loras=2, max_model_len=128,
        skip_tokenizer_init=True, enforce_eager=True,
    )  # fmt: skip
    sampling = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, detokenize=False)
    said = [
        list(
            engine.generate([{"prompt_token_ids": json.loads(prompt)}], sampling, lora_request=request)[0]
            .outputs[0]
            .token_ids
        )
        for request in (None, LoRARequest("adapter", 1, adapter))
    ]
    print(json.dumps(said))


main(*sys.argv[1:])
