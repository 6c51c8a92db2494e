"""What a generation engine is: addressed prompts in, samples out, in batches as they are finished.

An engine holds one base model and serves every checkpoint as an adapter of it. There are three, and none knows
where samples are kept: `perfmis.samples` stores them, `perfmis.generation` asks for those that are missing.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch

    from perfmis.engines.displacement import Displacement

Finish = Literal["stop", "length", "filtered"]
Finished = list[tuple[int, "Sample"]]


@dataclass(frozen=True)
class Steering:
    """A vector added to the residual stream after some blocks.

    Attributes:
        vectors: Block index to direction, shape (hidden,); the direction is used at unit norm.
        alpha: Share of the residual's own norm that is added, at every position.
    """

    vectors: "dict[int, torch.Tensor]"
    alpha: float

    def identity(self) -> list[Any]:
        """Return what tells this steering from others: the hash of its directions, and alpha."""
        digest = hashlib.sha256()
        for block, vector in sorted(self.vectors.items()):
            digest.update(f"{block}\0".encode() + vector.float().contiguous().numpy().tobytes())
        return [digest.hexdigest(), self.alpha]


@dataclass(frozen=True)
class Prompt:
    """One sample to draw.

    Attributes:
        tokens: The rendered prompt's tokens; empty for an engine that takes messages.
        messages: The conversation, for an engine behind an API; None for one that takes tokens.
        opened: How the prompt opens a thought at its end, in which the sample goes on; "" where it does not.
        adapter: Name of the checkpoint's adapter; None for the base model.
        seed: Seed of the sample's random numbers.
        steering: Vector added to the residual stream, or None.
    """

    tokens: tuple[int, ...]
    adapter: str | None
    seed: int
    steering: Steering | None = None
    messages: tuple[dict[str, str], ...] | None = None
    opened: str = ""


@dataclass(frozen=True)
class Sample:
    """What came back.

    Attributes:
        raw: The text, without special tokens.
        tokens: Tokens generated.
        finish: ``stop``, ``length`` (cut at the limit), or ``filtered`` (a provider withheld it).
        prompt_tokens: Tokens read, as the engine counts them.
        ids: The tokens generated, where they are not those that the tokenizer makes of the text; else None.
    """

    raw: str
    tokens: int
    finish: Finish
    prompt_tokens: int = 0
    ids: list[int] | None = None


def sample_of(tokenizer: Any, drawn: list[int], finish: Finish, read: int) -> Sample:
    """Return the sample of the tokens that were drawn, without one that ends it.

    Few texts need their tokens beside them: models seldom cut words otherwise than their tokenizers do.

    Args:
        tokenizer: The model's.
        drawn: The tokens.
        finish: How the sample ended.
        read: Tokens of the prompt.
    """
    raw = str(tokenizer.decode(drawn, skip_special_tokens=True))
    known = tokenizer(raw, add_special_tokens=False)["input_ids"] == drawn
    return Sample(raw, len(drawn), finish, read, None if known else drawn)


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Attributes:
        temperature: 0 is greedy; None leaves it to an API, since some models refuse the parameter.
        max_tokens: Limit of a sample.
        batch: Samples in flight at once; it does not change what is drawn.
        schema: JSON schema that the text must follow; None for free text.
    """

    temperature: float | None
    max_tokens: int
    batch: int
    schema: dict[str, Any] | None = None


class Engine(Protocol):
    """A base model with its adapters, ready to sample."""

    def sample(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[Finished]:
        """Draw one sample a prompt.

        Args:
            prompts: Any mixture of adapters and steerings, in any order.
            sampling: How tokens are drawn.

        Yields:
            What is finished, as (index of the prompt, sample), batch by batch in any order; each index once.
            A prompt that failed for good (an API's error after all retries) is left out.
        """

    def close(self) -> None:
        """Free what the engine holds."""


@runtime_checkable
class SteeringEngine(Engine, Protocol):
    """An engine that can add vectors to the residual stream, and shows that it does."""

    def displacements(self, prompts: Sequence[Prompt]) -> "list[Displacement]":
        """Return how far the stream of each prompt moves at each block, by the way on which samples are drawn.

        Args:
            prompts: Any mixture of adapters and steerings; they are read and a few tokens drawn.

        Returns:
            One entry a prompt and block; several where several processes hold the block, none where it did not run.
        """


def collect(finished: Iterable[Finished], number: int) -> list[Sample]:
    """Return the samples of an engine that leaves none out, in the order of the prompts."""
    found = {index: sample for batch in finished for index, sample in batch}
    return [found[index] for index in range(number)]
