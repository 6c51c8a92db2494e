"""The engine for clusters, on vLLM: one per base model and job, every checkpoint an adapter in the same batches.

Stops and decoding are those of `perfmis.engines.transformers`, so greedy samples of both engines are equal up to
the rounding of the precision. vLLM itself is imported when an engine starts.
"""

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, get_args

import torch

from perfmis import rendering
from perfmis.artifacts import read_json
from perfmis.engines import vllm_steering
from perfmis.engines.displacement import WATCHED_TOKENS, Displacement
from perfmis.engines.interface import Finished, Prompt, Sample, Sampling, Steering, sample_of

# Adapters held at once; each takes the GPU's memory whether in use or not. More than these are served in rounds.
ADAPTERS = 12
MEMORY_SHARE = 0.9
CPU_CACHE_BYTES = 1 << 30
ENVIRONMENT = {
    # The second runner turns a seed into other random numbers than the first, and steering reads the first's batch.
    "VLLM_USE_V2_MODEL_RUNNER": "0",
    "VLLM_NO_USAGE_STATS": "1",
}


class VllmEngine:
    """A base model with its adapters, ready to sample."""

    def __init__(
        self,
        model: Path,
        adapters: dict[str, Path],
        *,
        precision: str,
        quantization: str | None,
        tensor: int,
        pipeline: int,
        length: int,
        steered: bool,
    ) -> None:
        """Start vLLM, which reads the base's weights; an adapter's are read when it is first asked for.

        Args:
            model: Folder of the base model.
            adapters: Name to folder of each checkpoint's adapter.
            precision: ``bf16`` or ``fp32``.
            quantization: vLLM's name of a format for the frozen base weights, or None.
            tensor: GPUs that share each layer.
            pipeline: Groups of layers, each on GPUs of its own.
            length: Tokens of the longest prompt with its answer.
            steered: Whether some prompt will be steered; CUDA graphs and compilation, which skip hooks, are then off.
        """
        os.environ.update(ENVIRONMENT)
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
        from transformers import AutoTokenizer
        from vllm import EngineArgs, LLMEngine
        from vllm.lora.request import LoRARequest
        from vllm.platforms import current_platform

        cpu = current_platform.is_cpu()
        if cpu:
            # Starting the other process takes longer than all that a small model has to do.
            os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        arguments = EngineArgs(
            model=str(model),
            load_format="safetensors",
            trust_remote_code=False,
            dtype={"bf16": "bfloat16", "fp32": "float32"}[precision],
            quantization=quantization,
            tensor_parallel_size=tensor,
            pipeline_parallel_size=pipeline,
            max_model_len=length,
            enable_prefix_caching=True,
            gpu_memory_utilization=MEMORY_SHARE,
            kv_cache_memory_bytes=CPU_CACHE_BYTES if cpu else None,
            enforce_eager=steered or cpu,
            worker_extension_cls=f"{vllm_steering.__name__}.Extension" if steered else "",
            # Free to write white space, a model may fill its whole answer with it.
            structured_outputs_config={"backend": "xgrammar", "disable_any_whitespace": True},
            **_lora(list(adapters.values())),
        )
        self._engine = LLMEngine.from_engine_args(arguments)
        self._adapters = {
            name: LoRARequest(name, i, str(path), is_3d_lora_weight=_fused(path))
            for i, (name, path) in enumerate(adapters.items(), 1)
        }
        self._tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
        self._ends = self._stops()

    def sample(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[Finished]:
        """Draw one sample a prompt; at least a quarter of what is in flight is yielded together."""
        return self._draw(prompts, sampling, watched=False)

    def displacements(self, prompts: Sequence[Prompt]) -> list[Displacement]:
        """Return how far the stream of each prompt moves at each block; the engine was started to steer."""
        for _ in self._draw(prompts, Sampling(0.0, WATCHED_TOKENS, len(prompts)), watched=True):
            pass
        workers = self._engine.collective_rpc("displacements")
        return [_displacement(*found) for found in chain.from_iterable(workers)]

    def _draw(self, prompts: Sequence[Prompt], sampling: Sampling, *, watched: bool) -> Iterator[Finished]:
        steerings = {id(prompt.steering): prompt.steering for prompt in prompts if prompt.steering}
        names = {key: json.dumps(steering.identity()) for key, steering in steerings.items()}
        if steerings:
            self._steer({names[key]: _directions(steering) for key, steering in steerings.items()})
        if watched:  # after that, since hooks run in the order in which they were put on
            self._engine.collective_rpc("watch", args=(len(prompts),))

        # Neighbours share adapter, steering and the beginning of their prompts, and so the prefix cache.
        def place(index: int) -> tuple[str, str, tuple[int, ...]]:
            prompt = prompts[index]
            return prompt.adapter or "", names.get(id(prompt.steering), ""), prompt.tokens

        order = sorted(range(len(prompts)), key=place)
        rounds = _rounds(prompt.adapter for prompt in prompts)
        try:
            for together in rounds:
                yield from self._round([i for i in order if prompts[i].adapter in together], prompts, sampling, names)
                if len(rounds) > 1:
                    self._unload(together)
        finally:
            if steerings:
                self._steer({})

    def close(self) -> None:
        """Free the model, so that another engine can start in this process."""
        from vllm.distributed import cleanup_dist_env_and_memory

        self._engine.engine_core.shutdown()
        del self._engine
        cleanup_dist_env_and_memory()

    def _round(
        self, indices: list[int], prompts: Sequence[Prompt], sampling: Sampling, names: dict[int, str]
    ) -> Iterator[Finished]:
        waiting = iter(indices)
        flying: set[str] = set()
        finished: Finished = []
        try:
            while True:
                for index in islice(waiting, sampling.batch - len(flying)):
                    self._add(str(index), prompts[index], sampling, names.get(id(prompts[index].steering)))
                    flying.add(str(index))
                if not flying:
                    break
                for output in self._engine.step():
                    flying.remove(output.request_id)
                    finished.append((int(output.request_id), self._sample(output)))
                if len(finished) * 4 >= sampling.batch:
                    yield finished
                    finished = []
            if finished:
                yield finished
        finally:
            self._engine.abort_request(list(flying))

    def _add(self, name: str, prompt: Prompt, sampling: Sampling, steering: str | None) -> None:
        from vllm import SamplingParams
        from vllm.inputs import TokensPrompt
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        content = TokensPrompt(prompt_token_ids=list(prompt.tokens))
        if steering:
            # Without a salt the prefix cache hands steered keys and values to other requests.
            content["cache_salt"] = steering
        arguments = {vllm_steering.INDEX: int(name)} | ({vllm_steering.ARGUMENT: steering} if steering else {})
        parameters = SamplingParams(
            temperature=sampling.temperature,
            max_tokens=sampling.max_tokens,
            seed=prompt.seed,
            stop_token_ids=self._ends,
            structured_outputs=StructuredOutputsParams(json=sampling.schema) if sampling.schema else None,
            extra_args=arguments,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        adapter = self._adapters[prompt.adapter] if prompt.adapter else None
        self._engine.add_request(name, content, parameters, lora_request=adapter)

    def _sample(self, output: Any) -> Sample:
        [completion] = output.outputs
        stopped = completion.finish_reason == "stop"
        tokens = list(completion.token_ids)[: -1 if stopped else None]
        return sample_of(self._tokenizer, tokens, "stop" if stopped else "length", len(output.prompt_token_ids))

    def _stops(self) -> list[int]:
        named = self._engine.model_config.try_get_generation_config().get("eos_token_id")
        return rendering.ends(self._tokenizer, named, rendering.end_of_turn(self._tokenizer))

    def _steer(self, directions: vllm_steering.Directions) -> None:
        self._engine.collective_rpc("steer", args=(directions,))

    def _unload(self, adapters: Iterable[str | None]) -> None:
        for name in adapters:
            if name:
                self._engine.remove_lora(self._adapters[name].lora_int_id)


def _rounds(adapters: Iterable[str | None]) -> list[set[str | None]]:
    """Return which adapters are served together; the base model, None, is in the first round."""
    names = sorted({name for name in adapters if name})
    result: list[set[str | None]] = [set(names[i : i + ADAPTERS]) for i in range(0, len(names) or 1, ADAPTERS)]
    result[0].add(None)
    return result


def _fused(folder: Path) -> bool:
    """Return whether an adapter holds weights of experts in `peft`'s format, all experts of a block in one tensor."""
    reached = read_json(folder / "adapter_config.json").get("target_parameters") or ()
    return any(".experts." in name for name in reached)


def _lora(folders: list[Path]) -> dict[str, Any]:
    """Return the engine's arguments about adapters.

    One slot more than adapters in use stays empty: where all are full, vLLM 0.32 on CPU gives the base model's rows
    the weights in the last one.
    """
    from vllm.config.lora import MaxLoRARanks

    if not folders:
        return {}
    highest = max(read_json(folder / "adapter_config.json")["r"] for folder in folders)
    rank = min(allowed for allowed in get_args(MaxLoRARanks) if allowed >= highest)
    experts = {"enable_mixed_moe_lora_format": True} if any(map(_fused, folders)) else {}
    return {"enable_lora": True, "max_lora_rank": rank, "max_loras": min(len(folders), ADAPTERS) + 1, **experts}


def _directions(steering: Steering) -> dict[int, bytes]:
    """Return what is added after each block, per unit of the residual's norm, as fp32 bytes."""
    vectors = {block: vector.float() for block, vector in steering.vectors.items()}
    return {block: (steering.alpha * v / v.norm()).contiguous().numpy().tobytes() for block, v in vectors.items()}


def _displacement(prompt: int, block: int, mean: bytes, largest: float) -> Displacement:
    """Return what a worker noted; a mean is empty where nothing moved."""
    moved = torch.frombuffer(bytearray(mean), dtype=torch.float32) if mean else torch.zeros(1)
    return Displacement(prompt, block, moved, largest)
