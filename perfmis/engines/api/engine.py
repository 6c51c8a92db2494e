"""The engine behind an API: prompts are conversations, samples are paid for."""

import asyncio
import secrets
import sys
from collections import Counter
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

from perfmis.artifacts import write_json
from perfmis.engines.api.batches import Batches, Notes
from perfmis.engines.api.client import Client
from perfmis.engines.api.cost import Usage, estimate
from perfmis.engines.api.direct import direct
from perfmis.engines.api.server import Server
from perfmis.engines.api.tally import Tally
from perfmis.engines.interface import Finished, Prompt, Sampling
from perfmis.stage import Prose, UserError


class UnansweredError(UserError):
    """Requests without an answer, which a later run may get."""


class ApiEngine:
    """A model behind an API.

    What was yielded is never asked again by a caller that keeps it. What an interrupted job had in flight is lost
    with single requests, and found again with batches. A provider may charge for an answer that never arrived (a
    timeout, a broken connection): the request is sent again, and no client can tell.

    Args:
        server: The server's settings.
        folder: Where submitted batches are remembered, and below it, in ``costs``, what each engine was charged; jobs
            may share it.
        poll: Seconds between two looks at a batch.
    """

    def __init__(self, server: Server, folder: Path, poll: float = 60) -> None:
        self.server = server
        self._notes, self._poll = Notes(folder), poll
        self._costs = folder / "costs" / f"{secrets.token_hex(8)}.json"
        self._tallies: list[Tally] = []
        self._estimates: list[dict[str, Any]] = []

    def sample(self, prompts: Sequence[Prompt], sampling: Sampling) -> Iterator[Finished]:
        """Draw one sample a prompt.

        A request that fails after all retries is left out; how many did, and why, is one line on standard error.

        Raises:
            UserError: There is no key, the server refuses it or the model, or the estimate is above the limit.
            UnansweredError: After all others: some requests failed in a way that may pass.
        """
        with asyncio.Runner() as runner:
            finished = self._finished(list(prompts), sampling)
            try:
                while (batch := runner.run(_following(finished))) is not None:
                    yield batch
            finally:
                runner.run(_closed(finished))
                write_json(self.record(), self._costs)
        if left := self._tallies[-1].passing + self._tallies[-1].unasked:
            raise UnansweredError(
                f"{self.server.model}: {left} requests were not answered; rerun to ask for them again, the answers "
                "that came are kept"
            )

    async def _finished(self, prompts: list[Prompt], sampling: Sampling) -> AsyncGenerator[Finished, None]:
        client, tally = self._client(), Tally()
        self._tallies.append(tally)

        def refuse(indices: list[int]) -> None:
            self._refuse([prompts[index] for index in indices], sampling)

        try:
            if self.server.batch_endpoint:
                source = Batches(client, self._notes, self._poll, tally, refuse).sample(prompts, sampling)
            else:
                refuse(list(range(len(prompts))))
                source = direct(client, prompts, sampling, tally)
            async with aclosing(source):
                async for batch in source:
                    yield batch
        finally:
            tally.report(self.server.model)
            await client.close()

    def _client(self) -> Client:
        if self.server.provider == "openai":
            from perfmis.engines.api.openai import OpenAI

            return OpenAI(self.server)
        from perfmis.engines.api.anthropic import Anthropic

        return Anthropic(self.server, self._poll)

    def _refuse(self, prompts: list[Prompt], sampling: Sampling) -> None:
        expected = estimate(prompts, sampling, self.server.prices, self.server.batch_endpoint)
        spent = self.record()["usd"] or 0.0
        if self.server.limit is not None and spent + expected["usd"] > self.server.limit:
            raise UserError(
                f"{self.server.model}: {len(prompts)} requests may bring this job to "
                f"{spent + expected['usd']:.2f} USD, more than server.limit ({self.server.limit:g}); raise it, lower "
                "max_tokens or ask for fewer samples"
            )
        self._estimates.append(expected)
        price: Prose = (
            "unknown, since `prices` are not set" if expected["usd"] is None else f"{expected['usd']:.2f} USD"
        )
        print(f"{self.server.model}: {len(prompts)} requests, at most about {price}", file=sys.stderr)

    def record(self) -> dict[str, Any]:
        """Return what was asked and what it cost so far.

        Returns:
            ``provider``, ``model``, ``batch_endpoint``, ``answered``, ``failed`` (by kind), ``unasked``,
            ``prompt_tokens``, ``cached_tokens``, ``output_tokens`` (the server's counts), ``usd`` (None without
            prices) and ``estimates``, made before (see `cost.estimate`). A batch of an earlier job is counted where
            its results are read.
        """
        prices = self.server.prices
        usage = sum((tally.usage for tally in self._tallies), Usage())
        failed = sum((tally.failed for tally in self._tallies), Counter[str]())
        return {
            "provider": self.server.provider,
            "model": self.server.model,
            "batch_endpoint": self.server.batch_endpoint,
            "answered": sum(tally.answered for tally in self._tallies),
            "failed": dict(failed),
            "unasked": sum(tally.unasked for tally in self._tallies),
            "prompt_tokens": usage.input,
            "cached_tokens": usage.cached,
            "output_tokens": usage.output,
            "usd": usage.usd(prices, self.server.batch_endpoint) if prices else None,
            "estimates": self._estimates,
        }

    def close(self) -> None:
        """Free nothing: connections last no longer than `sample`."""


async def _following(finished: AsyncGenerator[Finished, None]) -> Finished | None:
    return await anext(finished, None)


async def _closed(finished: AsyncGenerator[Finished, None]) -> None:
    await finished.aclose()
