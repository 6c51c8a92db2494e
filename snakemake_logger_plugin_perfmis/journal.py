"""The journal of a study's runs: ``ROOT/logs/run.jsonl``, one line an event, only ever appended to.

``python -m perfmis status`` reads it while a run is on and after it died. The submitting process writes it, whatever
executes the jobs. Events: ``run`` (who runs, the jobs to do by rule, and whether it is a pass of the run before, which
waits for it), ``started``, ``submitted`` (with what the
cluster calls the job), ``finished``, ``failed``, ``total`` (jobs in all, once a checkpoint has added some) and
``ended``; each has the run's id and the time, those of a job its number in the run.
"""

import json
import os
import secrets
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from perfmis import privacy, status
from perfmis.after_failure import FOLLOWS

NAME = "logs/run.jsonl"


def path(root: Path) -> Path:
    """Return the journal of a study's root."""
    return root / NAME


class Journal:
    """Writes the events of one run.

    The root of the study is not told to a logger: it is what a job's log and benchmark files have in common. Events
    before the first such job wait for it.
    """

    def __init__(self) -> None:
        self._run = secrets.token_hex(4)
        self._waiting: list[str] = []
        self._path: Path | None = None
        self._total = 0

    def begin(self, rules: dict[str, int]) -> None:
        """Note who runs, so that a reader can tell whether the run is alive, and the jobs by rule."""
        self._total = sum(rules.values())
        pid = os.getpid()
        passes = {"follows": True} if FOLLOWS in os.environ else {}
        self.note("run", host=socket.gethostname(), pid=pid, born=status.born(pid), rules=rules, **passes)

    def grow(self, total: int) -> None:
        """Note how many jobs there are in all, where a checkpoint has added some."""
        if total != self._total:
            self._total = total
            self.note("total", jobs=total)

    def note(self, event: str, **content: Any) -> None:
        """Append an event; what cannot be written waits for the next one, and never stops a run."""
        line = json.dumps({"event": event, "run": self._run, "time": time.time(), **content}, default=str)
        self._waiting.append(privacy.redacted(line) + "\n")
        if self._path is not None:
            self._flush(self._path)

    def found(self, log: list[str], benchmark: str | None) -> None:
        """Learn where the journal is from the files of a job."""
        if self._path is None and log and benchmark:
            self._path = path(Path(os.path.commonpath([log[0], benchmark])))

    def _flush(self, where: Path) -> None:
        with suppress(OSError):
            where.parent.mkdir(parents=True, exist_ok=True)
            with where.open("a+b") as file:
                # A run that was killed while it wrote leaves a line without end.
                torn = file.tell() and file.seek(-1, os.SEEK_END) and file.read(1) != b"\n"
                file.write((("\n" if torn else "") + "".join(self._waiting)).encode())
            self._waiting.clear()
