"""The reference engine, on `transformers`: what the other engines are compared with.

Plain ``generate`` is the reference of the reference; on one GPU, `perfmis.engines.decoding` draws the same samples
several times as fast, up to the rounding of its kernels.
"""

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList

from perfmis import probes, rendering
from perfmis.decoders import blocks
from perfmis.engines import layers, noise
from perfmis.engines.decoding import PAGE, Decoder
from perfmis.engines.displacement import WATCHED_TOKENS, Displacement, Seen, Watch
from perfmis.engines.grammar import Grammar
from perfmis.engines.interface import Finished, Prompt, Sample, Sampling, Steering, sample_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class SeededSampling(LogitsProcessor):
    """Draw each row's tokens with its own random numbers, by the Gumbel-max trick.

    The arg max of logits / T + Gumbel noise is a sample from softmax(logits / T) (Gumbel 1954); so a sample
    does not depend on what shares its batch, and two prompts with one seed share their random numbers.

    Attributes:
        seeds: int64, (rows,).
        temperature: Above 0.
        read: Tokens of the padded prompts.
    """

    def __init__(self, seeds: torch.Tensor, temperature: float, read: int) -> None:
        self.seeds, self.temperature, self.read = seeds, temperature, read

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Return perturbed scores of shape (rows, vocabulary)."""
        step = torch.full_like(self.seeds, input_ids.shape[1] - self.read)
        gumbel = noise.gumbel(noise.keys(self.seeds, step), scores.shape[1])
        return scores / self.temperature + gumbel  # type: ignore[return-value]


@contextmanager
def steered(model: "PreTrainedModel", steerings: list[Steering | None]) -> Iterator[None]:
    """Add each row's vector to the residual stream while the context lasts.

    Args:
        model: The model whose blocks are hooked.
        steerings: One entry a batch row.
    """
    indices = {i for s in steerings if s is not None for i in s.vectors}
    handles = []
    for index in indices:
        rows = [s.alpha * _unit(s.vectors[index]) if s and index in s.vectors else None for s in steerings]
        width = next(row for row in rows if row is not None).shape[0]
        added = torch.stack([torch.zeros(width) if row is None else row for row in rows])[:, None]

        def hook(_module: Any, _inputs: Any, output: Any, added: torch.Tensor = added) -> Any:
            hidden = _stream(output)
            delta = added.to(hidden.device, hidden.dtype) * hidden.norm(dim=-1, keepdim=True)
            return (hidden + delta, *output[1:]) if isinstance(output, tuple) else hidden + delta

        handles.append(blocks(model)[index].register_forward_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def watched(model: "PreTrainedModel", seen: Seen) -> Iterator[None]:
    """Tell what every block puts out and what the hooks on it make of that, while the context lasts.

    Hooks run in the order in which they were put on, so the context is entered after that of `steered`.

    Args:
        model: The model, whose batches are (rows, tokens).
        seen: Told both.
    """
    handles = []
    for index, block in enumerate(blocks(model)):
        outputs: list[torch.Tensor] = []

        def first(_module: Any, _inputs: Any, output: Any, outputs: list[torch.Tensor] = outputs) -> None:
            outputs.append(_stream(output).clone())

        def last(
            _module: Any, _inputs: Any, output: Any, outputs: list[torch.Tensor] = outputs, index: int = index
        ) -> None:
            before, after = outputs.pop(), _stream(output)
            rows = torch.arange(len(after), device=after.device).repeat_interleave(after.shape[1])
            seen(index, before.flatten(0, 1), after.flatten(0, 1), rows)

        handles += [block.register_forward_hook(first, prepend=True), block.register_forward_hook(last)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def outputs(model: "PreTrainedModel", indices: Sequence[int]) -> Iterator[dict[int, torch.Tensor]]:
    """Keep what some blocks put out, while the context lasts: the stream that is steered there.

    Not ``hidden_states``: their last entry is taken after the final norm.

    Args:
        model: The model.
        indices: The blocks.

    Yields:
        Block index to the output of the last pass, (rows, tokens, width).
    """
    found: dict[int, torch.Tensor] = {}
    handles = []
    for index in indices:

        def keep(_module: Any, _inputs: Any, output: Any, index: int = index) -> None:
            found[index] = _stream(output)

        handles.append(blocks(model)[index].register_forward_hook(keep))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _stream(output: Any) -> torch.Tensor:
    return output[0] if isinstance(output, tuple) else output


def _unit(vector: torch.Tensor) -> torch.Tensor:
    return vector / vector.norm()


@dataclass
class Engine:
    """A base model with its adapters, ready to sample.

    Attributes:
        model: The base model, or after `add` a peft model around it.
        tokenizer: Its tokenizer, padding on the left.
    """

    model: Any
    tokenizer: "PreTrainedTokenizerBase"
    _adapters: set[str] = field(default_factory=set)

    def add(self, name: str, folder: Path) -> None:
        """Load the adapter in ``folder`` under ``name``; peft forbids dots in names, so none may stand in it."""
        from peft import PeftModel

        if self._adapters:
            self.model.load_adapter(str(folder), adapter_name=name)
        else:
            self.model = PeftModel.from_pretrained(self.model, str(folder), adapter_name=name).eval()
        self._adapters.add(name)

    @contextmanager
    def using(self, adapter: str | None) -> Iterator[Any]:
        """Yield the model with one adapter active, or with none."""
        if not self._adapters:
            yield self.model
        elif adapter is None:
            with self.model.disable_adapter():
                yield self.model
        else:
            self.model.set_adapter(adapter)
            yield self.model

    def sample(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[Finished]:
        """Draw one sample a prompt: by continuous batching on a GPU that holds a model whose layers are known."""
        return self._draw(prompts, sampling, None)

    def displacements(self, prompts: Sequence[Prompt]) -> list[Displacement]:
        """Return how far the stream of each prompt moves at each block."""
        watch = Watch(len(prompts))
        for _ in self._draw(prompts, Sampling(0.0, WATCHED_TOKENS, len(prompts)), watch):
            pass
        return watch.displacements()

    def _draw(self, prompts: Sequence[Prompt], sampling: Sampling, watch: Watch | None) -> Iterator[Finished]:
        fast = sampling.schema is None and self.model.device.type == "cuda" and layers.known(self.model)
        if fast:
            return self.continuous(prompts, sampling, watch=watch)
        return self.batches(prompts, sampling, watch)

    def continuous(
        self, prompts: Sequence[Prompt], sampling: Sampling, page: int = PAGE, watch: Watch | None = None
    ) -> Iterator[Finished]:
        """Draw samples by `perfmis.engines.decoding`, adapter by adapter.

        Args:
            prompts: See `sample`.
            sampling: See `sample`; no schema.
            page: Tokens of a page of the cache.
            watch: Told how the stream moves.
        """
        longest = max(len(prompt.tokens) for prompt in prompts) + sampling.max_tokens
        decoder = Decoder(self._network, self.ends, sampling, min(sampling.batch, len(prompts)), longest, page)
        for adapter in dict.fromkeys(prompt.adapter for prompt in prompts):
            mine = [i for i, prompt in enumerate(prompts) if prompt.adapter == adapter]
            seen = watch.rows(mine, self.model.device) if watch else None
            for drawn in decoder.sample([prompts[i] for i in mine], adapter, seen):
                yield [(mine[i], self._finish(tokens, len(prompts[mine[i]].tokens))) for i, tokens in drawn]
        self._network.release()

    @functools.cached_property
    def _network(self) -> layers.Network:
        return layers.Network(self.model)

    def batches(self, prompts: Sequence[Prompt], sampling: Sampling, watch: Watch | None = None) -> Iterator[Finished]:
        """Draw samples by ``generate``; those of one adapter and similar length share batches."""
        grammar = self._grammar(sampling)
        order = sorted(range(len(prompts)), key=lambda i: (prompts[i].adapter or "", len(prompts[i].tokens)))
        for adapter in dict.fromkeys(prompts[i].adapter for i in order):
            mine = [i for i in order if prompts[i].adapter == adapter]
            with self.using(adapter) as model:
                for indices in self._together(mine, prompts, sampling.batch):
                    seen = watch.rows(indices, model.device) if watch else None
                    batch = self._batch(model, [prompts[i] for i in indices], sampling, grammar, seen)
                    yield list(zip(indices, batch, strict=True))

    def _together(self, ordered: list[int], prompts: Sequence[Prompt], size: int) -> Iterator[list[int]]:
        """Yield the prompts that share a batch: of one length alone, where padding changes what a model computes."""
        parts = [ordered[start : start + size] for start in range(0, len(ordered), size)]
        for part in parts:
            lengths = dict.fromkeys(len(prompts[i].tokens) for i in part)
            if len(lengths) == 1 or self._pads:
                yield part
            else:
                yield from ([i for i in part if len(prompts[i].tokens) == length] for length in lengths)

    @functools.cached_property
    def _pads(self) -> bool:
        return probes.pads(self.model)

    def close(self) -> None:
        """Free the model."""
        self.__dict__.pop("_network", None)
        del self.model

    def _grammar(self, sampling: Sampling) -> Grammar | None:
        if sampling.schema is None:
            return None
        return Grammar(sampling.schema, self.tokenizer, self.model.config.vocab_size, self.ends)

    @property
    def ends(self) -> list[int]:
        """Tokens that end a sample (`perfmis.rendering.ends`)."""
        return rendering.ends(self.tokenizer, self.model.generation_config.eos_token_id, self._end_of_turn)

    @functools.cached_property
    def _end_of_turn(self) -> int | None:
        return rendering.end_of_turn(self.tokenizer)

    @torch.inference_mode()
    def _batch(
        self, model: Any, prompts: list[Prompt], sampling: Sampling, grammar: Grammar | None, seen: Seen | None
    ) -> list[Sample]:
        padded = self.tokenizer.pad({"input_ids": [list(p.tokens) for p in prompts]}, return_tensors="pt")
        encoded = {key: padded[key].to(model.device) for key in ("input_ids", "attention_mask")}
        read = encoded["input_ids"].shape[1]
        processors = LogitsProcessorList([grammar.processor(len(prompts))] if grammar else [])
        if sampling.temperature:
            seeds = torch.tensor([p.seed for p in prompts], device=model.device)
            processors.append(SeededSampling(seeds, sampling.temperature, read))
        with steered(model, [p.steering for p in prompts]), watched(model, seen) if seen else nullcontext():
            output = model.generate(
                **encoded,
                do_sample=False,
                repetition_penalty=1.0,  # some models' own configuration has one, which no other engine applies
                logits_processor=processors,
                max_new_tokens=sampling.max_tokens,
                eos_token_id=self.ends,
                pad_token_id=self.tokenizer.pad_token_id,
            )
        rows = output[:, read:].tolist()
        return [self._finish(row, len(prompt.tokens)) for row, prompt in zip(rows, prompts, strict=True)]

    def _finish(self, tokens: list[int], read: int) -> Sample:
        ends = self.ends
        length = next((i for i, token in enumerate(tokens) if token in ends), len(tokens))
        return sample_of(self.tokenizer, tokens[:length], "stop" if length < len(tokens) else "length", read)
