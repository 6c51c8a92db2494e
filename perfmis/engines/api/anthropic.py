"""Anthropic's messages and message batches."""

import asyncio
import itertools
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal

from perfmis.engines.api.client import Answer, Client, Failure, Shape, join
from perfmis.engines.api.cost import Usage
from perfmis.engines.api.server import Server
from perfmis.engines.interface import Finish, Prompt, Sample, Sampling
from perfmis.stage import Prose

FINISH: dict[str, Finish] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "refusal": "filtered",
}
PATH, BATCHES = "/v1/messages", "/v1/messages/batches"
PAGE = 100


class _Block(Shape):
    type: str
    text: str = ""
    thinking: str = ""


class _Usage(Shape):
    input_tokens: int
    output_tokens: int
    cache_creation_input_tokens: int | None = None
    cache_read_input_tokens: int | None = None


class _Message(Shape):
    content: list[_Block]
    stop_reason: Literal["end_turn", "stop_sequence", "max_tokens", "model_context_window_exceeded", "refusal"]
    usage: _Usage


class _Batch(Shape):
    id: str
    processing_status: str
    created_at: datetime
    request_counts: dict[str, int]


class _Batches(Shape):
    data: list[_Batch]
    has_more: bool = False


class _Result(Shape):
    type: str
    message: Any = None
    error: Any = None


class _Line(Shape):
    custom_id: str
    result: _Result


class Anthropic(Client):
    """Anthropic's API.

    Args:
        server: Settings.
        poll: Seconds between two looks at a batch of which it is not known whose it is.
    """

    def __init__(self, server: Server, poll: float) -> None:
        import anthropic

        secret, self._poll = server.secret(), poll
        api = anthropic.AsyncAnthropic(
            api_key=secret, base_url=server.base_url, timeout=server.timeout, max_retries=server.retries
        )
        super().__init__(server, anthropic, api, secret)

    @property
    def path(self) -> str:
        """Where single requests go."""
        return PATH

    def body(self, prompt: Prompt, sampling: Sampling) -> dict[str, Any]:
        """Return the request that a prompt makes; leading system turns have a field of their own, seeds have none."""
        turns = list(prompt.messages or ())
        system = list(itertools.takewhile(lambda turn: turn["role"] == "system", turns))
        body = {
            "model": self.server.model,
            "messages": turns[len(system) :],
            "max_tokens": sampling.max_tokens,
            **self.server.options,
        }
        if system:
            body["system"] = "\n\n".join(turn["content"] for turn in system)
        if sampling.temperature is not None:
            body["temperature"] = sampling.temperature
        if sampling.schema is not None:
            form = {"type": "json_schema", "schema": sampling.schema}
            body["output_config"] = {**body.get("output_config", {}), "format": form}
        return body

    def answer(self, content: Any) -> Answer:
        """Read a message; blocks of thinking come first."""
        message = _Message.model_validate(content)
        finish, counted = FINISH[message.stop_reason], message.usage
        reasoning = "".join(block.thinking for block in message.content if block.type == "thinking")
        text = "".join(block.text for block in message.content if block.type == "text")
        cached = counted.cache_read_input_tokens or 0
        read = counted.input_tokens + cached + (counted.cache_creation_input_tokens or 0)
        usage = Usage(read, cached, counted.output_tokens)
        return Answer(Sample(join(reasoning, text, finish), usage.output, finish, read), usage)

    async def submit(self, token: str, requests: Mapping[str, dict[str, Any]]) -> str:
        """Submit the requests; a batch has no place for the token."""
        body = {"requests": [{"custom_id": name, "params": body} for name, body in requests.items()]}
        with self.told_apart():
            answer = await self.api.post(BATCHES, body=body, cast_to=object, options={"max_retries": 0})
            return _Batch.model_validate(answer).id

    async def find(self, token: str, ids: set[str], size: int, since: float) -> str | None:
        """Look for the requests' own ids, which only results show: batches of other sizes are passed over."""
        params: dict[str, Any] = {"limit": PAGE}
        while True:
            content = await self.get(BATCHES, **params)
            with self.told_apart():
                page = _Batches.model_validate(content)
            for batch in page.data:
                recent = batch.created_at.timestamp() >= since
                if recent and sum(batch.request_counts.values()) == size and await self._holds(batch.id, ids):
                    return batch.id
            if not page.has_more or page.data[-1].created_at.timestamp() < since:
                return None
            params["after_id"] = page.data[-1].id

    async def _holds(self, batch: str, ids: set[str]) -> bool:
        while not await self.ended(batch):
            await asyncio.sleep(self._poll)
        results, _ = await self.results(batch)
        return any(name in ids for name, _ in results)

    async def ended(self, batch: str) -> bool:
        """Return whether a batch has ended."""
        content = await self.get(f"{BATCHES}/{batch}")
        with self.told_apart():
            return _Batch.model_validate(content).processing_status == "ended"

    async def results(self, batch: str) -> tuple[list[tuple[str, Answer | Failure]], Failure]:
        """Read the results, of which there is one a request."""
        text = await self.text(f"{BATCHES}/{batch}/results")
        with self.told_apart():
            lines = [_Line.model_validate_json(line) for line in text.split("\n") if line.strip()]
        found = [(line.custom_id, self._result(line.result)) for line in lines]
        lacking: Prose = "the batch's results lack it"
        return found, self.failure("no result", lacking)

    def _result(self, result: _Result) -> Answer | Failure:
        try:
            if result.type != "succeeded":
                said = self.refusal(400, result.error)
                return self.failure(f"{result.type} {said.code}" if said.code else result.type, said.message)
            with self.told_apart():
                return self.answer(result.message)
        except Failure as failure:
            return failure
