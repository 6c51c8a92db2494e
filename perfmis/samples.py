"""The store of samples: each is addressed by all that decides it, and none is drawn twice.

An address hashes the weights, how tokens are drawn, the steering, the prompt's tokens and the seed, so a
sample is found again whichever job, rule or table asks for it. A job appends to files of its own
(``FOLDER/PARTITION/WRITER.samples``), batch by batch, and never touches those of others: two jobs at once
cannot damage each other, on network file systems either, and a killed one loses the batch in flight.
A line is a checksum and a JSON record; torn or damaged lines are left out, so their samples are drawn again.
Jobs that run at once may draw one sample twice; which of the two counts is the same for all that read it after both
have ended.
"""

import array
import hashlib
import json
import os
import secrets
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from io import FileIO
from pathlib import Path
from typing import Any

from perfmis.engines.interface import Prompt, Sample, Sampling
from perfmis.stage import UserError

# To be raised when an engine draws other samples than before from the same prompts, weights and seeds.
SCHEME = 2
PARTITION, DIGITS = 12, 40


def addresses(
    prompts: Sequence[Prompt], weights: Mapping[str | None, str], engine: Mapping[str, Any], sampling: Sampling
) -> list[str]:
    """Return the address of each prompt's sample, 40 hexadecimal digits.

    The first 12 name the weights, and with them the partition of the store.

    Args:
        prompts: What is asked.
        weights: What identifies the weights behind each adapter name, and behind None, the base model.
        engine: What else decides the numbers: engine, precision, quantisation.
        sampling: How tokens are drawn; its batch decides nothing.
    """
    drawn = [SCHEME, dict(engine), sampling.temperature, sampling.max_tokens, sampling.schema]
    roots: dict[tuple[str | None, int], Any] = {}
    result = []
    for prompt in prompts:
        # Steerings are shared by many prompts, and hashing their vectors for each would take longer than the rest.
        root = (prompt.adapter, id(prompt.steering))
        if root not in roots:
            steering = prompt.steering.identity() if prompt.steering else None
            text = json.dumps([weights[prompt.adapter], drawn, steering], sort_keys=True)
            roots[root] = hashlib.sha256(text.encode())
        digest = roots[root].copy()
        content = json.dumps(prompt.messages).encode() if prompt.messages else array.array("I", prompt.tokens).tobytes()
        digest.update(b"%d\0%d\0" % (prompt.seed, len(content)) + content)
        partition = hashlib.sha256(weights[prompt.adapter].encode()).hexdigest()[:PARTITION]
        result.append(partition + digest.hexdigest()[: DIGITS - PARTITION])
    return result


def seed_of(text: str) -> int:
    """Return a seed of 56 bits that follows from a text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")


def _line(address: str, sample: Sample) -> bytes:
    record = json.dumps({"address": address, **asdict(sample)}, ensure_ascii=False).encode()
    return b"%08x %s\n" % (zlib.crc32(record), record)


def _records(path: Path) -> Iterator[dict[str, Any] | None]:
    """Yield the records of a file, None for a damaged line; what follows the last line break is still being written."""
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                return
            check, _, record = line[:-1].partition(b" ")
            yield json.loads(record) if check == b"%08x" % zlib.crc32(record) else None


def _write(file: FileIO, content: bytes) -> None:
    """Write all of it: without a buffer a write may take a part, and with one closing a full disk's file fails anew."""
    view = memoryview(content)
    while view:
        view = view[file.write(view) or 0 :]


class Writer:
    """Appends samples to files that no other process writes to."""

    def __init__(self, folder: Path, files: ExitStack) -> None:
        self._folder, self._files = folder, files
        self._open: dict[str, FileIO] = {}
        self._name = f"{secrets.token_hex(8)}.samples"

    def _file(self, partition: str) -> FileIO:
        if partition not in self._open:
            path = self._folder / partition / self._name
            path.parent.mkdir(parents=True, exist_ok=True)
            self._open[partition] = self._files.enter_context(path.open("ab", buffering=0))
        return self._open[partition]

    def discard(self) -> None:
        """Remove everything that was written."""
        for partition in self._open:
            (self._folder / partition / self._name).unlink()

    def append(self, samples: Iterable[tuple[str, Sample]]) -> None:
        """Put samples on disk; they are there when this returns.

        Raises:
            UserError: They cannot be written; those of earlier calls are kept.
        """
        try:
            lines: dict[str, list[bytes]] = {}
            for address, sample in samples:
                lines.setdefault(address[:PARTITION], []).append(_line(address, sample))
            for partition, own in lines.items():
                file = self._file(partition)
                _write(file, b"".join(own))
                os.fsync(file.fileno())
        except OSError as error:
            raise UserError(
                f"{self._folder}: samples cannot be written ({error.strerror}); free space or permit writing, then "
                "rerun: what was drawn before is kept"
            ) from error


class Store:
    """A folder of samples.

    Attributes:
        folder: Where; made when the first sample is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._told = False  # of damaged records, which every reading meets again

    def read(self, wanted: Iterable[str]) -> dict[str, Sample]:
        """Return those of the wanted samples that are stored; where two jobs drew one, the first by file name."""
        missing, found, damaged = set(wanted), {}, 0
        for partition in sorted({address[:PARTITION] for address in missing}):
            for path in sorted((self.folder / partition).glob("*.samples")):
                for record in _records(path):
                    if record is None:
                        damaged += 1
                    elif (address := record.pop("address")) in missing:
                        found[address] = Sample(**record)
                        missing.discard(address)
        if damaged and not self._told:
            self._told = True
            print(
                f"{self.folder}: {damaged} damaged records are left out; what is missing is drawn again",
                file=sys.stderr,
            )
        return found

    @contextmanager
    def writer(self) -> Iterator[Writer]:
        """Yield a writer; its files are closed at the end."""
        with ExitStack() as files:
            yield Writer(self.folder, files)
