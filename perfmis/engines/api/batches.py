"""Requests through a batch endpoint, so that a killed job finds its batches again and nothing is paid twice.

A note of each batch (``FOLDER/TOKEN.json``: the requests' ids, the batch's id) is on disk before its first look,
and before it is submitted, still without the id: where an answer to a submission was lost, or the job was killed
before it noted the id, the server's list of batches tells whether it was accepted. A request's id hashes server,
body and seed, so a later job finds its requests in the notes of an earlier one, whatever else it asks.
"""

import asyncio
import hashlib
import json
import secrets
import sys
import time
from collections.abc import AsyncGenerator, Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from perfmis.artifacts import read_json, write_json
from perfmis.engines.api.client import Answer, Client, Failure
from perfmis.engines.api.tally import Tally
from perfmis.engines.interface import Finished, Prompt, Sampling
from perfmis.stage import Prose, UserError

# Below the limits of both providers (50,000 and 100,000 requests, 200 and 256 MB); results are held in memory.
REQUESTS, BYTES = 10_000, 100_000_000
# The server's clock may be behind ours.
SKEW = 3600
# Anthropic keeps results for 29 days after a batch was created; a note is of no use afterwards.
KEPT = 30 * 86400


@dataclass
class Note:
    """What is remembered of a batch.

    Attributes:
        token: Name of the note, and of the batch where the server takes a name.
        home: Address of the server.
        ids: Requests that wait for a result.
        size: Requests submitted.
        created: Unix time before the submission.
        batch: The server's id; None as long as it is not known.
    """

    token: str
    home: str
    ids: list[str]
    size: int
    created: float
    batch: str | None = None


class Notes:
    """The notes in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write(self, note: Note) -> None:
        """Write a note, or drop it when none of its requests waits."""
        if note.ids:
            write_json(asdict(note), self._path(note))
        else:
            self._path(note).unlink(missing_ok=True)

    def _path(self, note: Note) -> Path:
        return self._folder / f"{note.token}.json"

    def read(self, home: str) -> list[Note]:
        """Return the notes on a server's batches, oldest first; those too old are removed."""
        # Another job may remove a note between the listing and the reading.
        paths = [path for path in sorted(self._folder.glob("*.json")) if path.is_file()]
        notes = [Note(**read_json(path)) for path in paths]
        for note in notes:
            if note.created < time.time() - KEPT:
                self._path(note).unlink(missing_ok=True)
        fresh = [note for note in notes if note.home == home and note.created >= time.time() - KEPT]
        return sorted(fresh, key=lambda note: note.created)


def request_id(home: str, seed: int, body: dict[str, Any]) -> str:
    """Return a request's id, 40 hexadecimal digits."""
    return hashlib.sha256(json.dumps([home, seed, body], sort_keys=True).encode()).hexdigest()[:40]


def _portions(bodies: dict[str, dict[str, Any]]) -> Iterator[dict[str, dict[str, Any]]]:
    portion: dict[str, dict[str, Any]] = {}
    size = 0
    for name, body in bodies.items():
        length = len(json.dumps(body)) + 200
        if portion and (len(portion) == REQUESTS or size + length > BYTES):
            yield portion
            portion, size = {}, 0
        portion[name] = body
        size += length
    if portion:
        yield portion


@dataclass
class Batches:
    """The batch endpoint of a server.

    Attributes:
        client: The server.
        notes: Where batches are remembered.
        poll: Seconds between two looks at a batch, and between two attempts to submit one.
        tally: Counts what came.
        refuse: Called with the indices of the prompts that are about to be paid for; it may raise.
    """

    client: Client
    notes: Notes
    poll: float
    tally: Tally
    refuse: Callable[[list[int]], None]

    async def sample(self, prompts: list[Prompt], sampling: Sampling) -> AsyncGenerator[Finished, None]:
        """Ask for samples; equal prompts of one seed share one.

        Yields:
            The samples of each batch when it has ended.

        Raises:
            UserError: The server refuses key or model, or cannot be reached; batches that it holds are found again.
        """
        asked: dict[str, list[int]] = {}
        bodies: dict[str, dict[str, Any]] = {}
        for index, prompt in enumerate(prompts):
            body = self.client.body(prompt, sampling)
            name = request_id(self.client.home, prompt.seed, body)
            bodies[name] = body
            asked.setdefault(name, []).append(index)
        with self._explained():
            waiting = await self._earlier(bodies)
            for _, mine in waiting:
                for name in mine:
                    del bodies[name]
            self.refuse([index for name in bodies for index in asked[name]])
            for portion in _portions(bodies):
                waiting += await self._submit(portion)
        while waiting:
            for note, mine in list(waiting):
                with self._explained():
                    found = await self._results(note, mine)
                if found is not None:
                    finished = self._finished(found, asked)
                    if finished:
                        yield finished
                    # The caller has kept them now; what failed may be submitted again by a later job.
                    note.ids = [name for name in note.ids if name not in mine]
                    self.notes.write(note)
                    waiting.remove((note, mine))
            if waiting:
                await asyncio.sleep(self.poll)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except Failure as failure:
            raise self.client.fatal(failure) or UserError(
                f"{self.client.server.model}: {self.client.home} failed ({failure.kind}: {failure.message}); rerun "
                "when it answers: batches that it holds are found again, and nothing is paid twice"
            ) from None

    async def _earlier(self, wanted: Collection[str]) -> list[tuple[Note, set[str]]]:
        """Return the notes of earlier jobs that hold wanted requests, each request with one note."""
        result, seen = [], set[str]()
        for note in self.notes.read(self.client.home):
            mine = set(note.ids).intersection(wanted) - seen
            if mine and await self._known(note):
                print(f"{self.client.server.model}: batch {note.batch} of an earlier job is picked up", file=sys.stderr)
                result.append((note, mine))
                seen |= mine
        return result

    async def _known(self, note: Note) -> bool:
        """Return whether the server holds a batch, after looking for it if its id was not noted."""
        note.batch = note.batch or await self._find(note)
        if note.batch is None:
            note.ids = []
        self.notes.write(note)
        return note.batch is not None

    async def _find(self, note: Note) -> str | None:
        return await self.client.find(note.token, set(note.ids), note.size, note.created - SKEW)

    async def _submit(self, requests: dict[str, dict[str, Any]]) -> list[tuple[Note, set[str]]]:
        """Submit requests and return the note of their batch; none if the server refuses them, which is counted."""
        note = Note(secrets.token_hex(8), self.client.home, list(requests), len(requests), time.time())
        self.notes.write(note)
        try:
            note.batch = await self._accepted(note, requests)
        except Failure as failure:
            if failure.passing and failure.status != 429:
                raise
            self.notes.write(replace(note, ids=[]))
            if self.client.fatal(failure):
                raise
            for _ in requests:
                self.tally.fail(failure)
            return []
        self.notes.write(note)
        print(f"{self.client.server.model}: batch {note.batch}, {len(requests)} requests", file=sys.stderr)
        return [(note, set(requests))]

    async def _accepted(self, note: Note, requests: dict[str, dict[str, Any]]) -> str:
        """Submit until the server accepts; before another attempt its list tells whether the last one arrived."""
        for _ in range(self.client.server.retries):
            try:
                return await self.client.submit(note.token, requests)
            except Failure as failure:
                if not failure.passing:
                    raise
            await asyncio.sleep(self.poll)
            found = await self._find(note)
            if found:
                return found
        return await self.client.submit(note.token, requests)

    async def _results(self, note: Note, mine: set[str]) -> dict[str, Answer | Failure] | None:
        """Return what came of requests; None as long as their batch has not ended."""
        batch = str(note.batch)
        try:
            if not await self.client.ended(batch):
                return None
            found, rest = await self.client.results(batch)
        except Failure as failure:
            if failure.status != 404:
                raise
            gone: Prose = "the server does not hold it any more"
            found, rest = [], Failure("batch gone", message=gone)
        results = dict(found)
        return {name: results.get(name, rest) for name in mine}

    def _finished(self, found: dict[str, Answer | Failure], asked: dict[str, list[int]]) -> Finished:
        finished: Finished = []
        for name, result in found.items():
            if isinstance(result, Failure):
                self.tally.fail(result)
            else:
                self.tally.answer(result.usage)
                finished += [(index, result.sample) for index in asked[name]]
        return finished
