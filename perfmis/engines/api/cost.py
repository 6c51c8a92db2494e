"""What requests cost: an upper bound before they are sent, the servers' own counts afterwards."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from perfmis.engines.api.server import Prices
from perfmis.engines.interface import Prompt, Sampling

# A rule of thumb for English; what was really read is known only afterwards.
CHARACTERS = 4


@dataclass(frozen=True)
class Usage:
    """Tokens that a server counted.

    Attributes:
        input: Tokens read, those from a cache included.
        cached: How many of them came from a cache.
        output: Tokens generated, reasoning included.
    """

    input: int = 0
    cached: int = 0
    output: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(self.input + other.input, self.cached + other.cached, self.output + other.output)

    def usd(self, prices: Prices, batch: bool) -> float:
        """Return the price in USD."""
        cached = prices.input if prices.cached is None else prices.cached
        full = (self.input - self.cached) * prices.input + self.cached * cached + self.output * prices.output
        return full * (prices.batch if batch else 1) / 1e6


def estimate(
    prompts: Sequence[Prompt], sampling: Sampling, prices: Prices | None, batch: bool = False
) -> dict[str, Any]:
    """Return what prompts may cost.

    Args:
        prompts: What is asked.
        sampling: Its limit is what each sample is taken to need.
        prices: USD per million tokens.
        batch: Whether a batch endpoint charges.

    Returns:
        ``requests``, ``prompt_tokens`` (characters / 4, rounded up for each request), ``output_tokens`` (at most)
        and ``usd`` (at most, as far as that rule holds; None without prices).
    """
    read = sum(-(-sum(len(m["content"]) for m in p.messages or ()) // CHARACTERS) for p in prompts)
    usage = Usage(read, 0, len(prompts) * sampling.max_tokens)
    return {
        "requests": len(prompts),
        "prompt_tokens": usage.input,
        "output_tokens": usage.output,
        "usd": usage.usd(prices, batch) if prices else None,
    }
