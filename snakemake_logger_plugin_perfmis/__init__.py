"""One line a finished job: ``snakemake --logger perfmis``.

Shows done/total, the rule and its wildcards, the job's seconds, how many jobs run and about how much time is
left. Errors come in full: the job, its log file and the log's last lines. The same events are kept in the journal
(`snakemake_logger_plugin_perfmis.journal`) that ``python -m perfmis status`` reads.
"""

import logging
import os
import re
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent

from perfmis import privacy
from perfmis.checks import disk
from snakemake_logger_plugin_perfmis import trouble
from snakemake_logger_plugin_perfmis.journal import Journal

LAST_LINES = 20
# The executor plug-in tells the ids of Slurm jobs in its messages only.
SUBMITTED = re.compile(r"Job (\d+) has been submitted with SLURM jobid (\d+)")
OTHERWISE = re.compile(r"Submitted (?:group )?job (\d+) with external jobid '(.+)'")  # of the plug-in cluster-generic
ARRAY = re.compile(r"Submitted array job with Snakemake IDs ([\d,]+) and SLURM job ID (\d+)\. .* are (\d+)-")


STATUS = re.compile(r"SLURM status is: '(\w+)")
REMEDIES = {
    "TIMEOUT": " (its hours were over: it goes on from its checkpoint; raise the hours of its size)",
    "OUT_OF_MEMORY": " (raise memory_gb of its size)",
    "NODE_FAIL": " (its node died)",
    "CANCELLED": " (scancel, or the cluster)",
}


@dataclass
class Times:
    """Durations of finished jobs, by rule."""

    seconds: Counter[str] = field(default_factory=Counter)
    number: Counter[str] = field(default_factory=Counter)

    def add(self, rule: str, seconds: float) -> None:
        """Count one finished job."""
        self.seconds[rule] += seconds  # type: ignore[assignment]
        self.number[rule] += 1

    def mean(self) -> float:
        """Return the mean seconds of a job."""
        return sum(self.seconds.values()) / max(1, sum(self.number.values()))

    def longest(self) -> str:
        """Return the rules by their total seconds, the longest first."""
        return ", ".join(f"{rule} {seconds:.0f} s" for rule, seconds in self.seconds.most_common(6))


def clock(seconds: float) -> str:
    """Return minutes and seconds."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def why(message: str | None) -> str:
    """Return why Slurm ended a job and what to do, from what the executor says of it; empty where a stage failed."""
    match = STATUS.search(message or "")
    return f"Slurm says {match[1]}{REMEDIES.get(match[1], '')}; " if match and match[1] != "FAILED" else ""


def last_lines(logs: list[str]) -> list[str]:
    """Return what a failed job said last: its own one-line error, else the end of the first of its logs with text.

    Slurm's log comes after the stage's own, and matters only where no stage began.
    """
    texts = [path.read_text(errors="replace").splitlines() for path in map(Path, logs) if path.is_file()]
    lines: list[str] = next(filter(None, texts), [])
    return lines[-1:] if lines and lines[-1].startswith("error: ") else lines[-LAST_LINES:]


class LogHandler(LogHandlerBase):
    """Prints progress to standard error."""

    def __post_init__(self) -> None:
        """Begin to count."""
        self.start = time.monotonic()
        self.running: dict[int, tuple[str, str, float]] = {}
        self.jobs: dict[int, tuple[str, str, list[str]]] = {}
        self.times = Times()
        self.finished = self.refused = ""
        self.cause: str | None = None  # of the last failed job, where it was that its files could not be written
        self.targets = 0
        # A dry-run is for reading: snakemake itself then tells the jobs and their reasons.
        self.dry = bool(getattr(self.common_settings, "dryrun", False))
        self.journal = None if self.dry else Journal()

    def emit(self, record: logging.LogRecord) -> None:
        """Show a record, or remember what it says."""
        if self.dry:
            return
        event = getattr(record, "event", None)
        if self.journal is not None:
            self._note(self.journal, event, record)
        if event == LogEvent.JOB_INFO:
            self._job(record)
        elif event == LogEvent.JOB_STARTED:
            for job in record.jobs:  # type: ignore[attr-defined]
                self._started(job)
        elif event == LogEvent.JOB_FINISHED:
            self._finish(record.job_id)  # type: ignore[attr-defined]
        elif event == LogEvent.PROGRESS:
            self._progress(record.done, record.total)  # type: ignore[attr-defined]
        elif event in (LogEvent.JOB_ERROR, LogEvent.GROUP_ERROR):
            self._failed(record)
        elif event == LogEvent.ERROR or record.levelno >= logging.ERROR:
            told = trouble.refusal(getattr(record, "exception", ""), record.getMessage())
            if told is not None and told != self.refused and (disk.cause(told) or told) != self.cause:
                self._say(told)
                self.refused = told
        elif "Nothing to be done" in str(record.msg):
            self._say("nothing to do: all results are up to date")

    def close(self) -> None:
        """Note that the run came to its end, whatever that was."""
        if self.journal is not None and self.jobs:
            self.journal.note("ended")
        self.journal = None
        super().close()

    def _note(self, journal: Journal, event: str | None, record: logging.LogRecord) -> None:
        told: Any = record
        if event == LogEvent.RUN_INFO:
            self.targets = told.stats.get("all", 0)
            journal.begin({rule: count for rule, count in told.stats.items() if rule not in ("total", "all")})
        elif event == LogEvent.JOB_INFO:
            log = list(map(str, getattr(record, "log", None) or []))
            journal.found(log, getattr(record, "benchmark", None))
            wildcards = dict(getattr(record, "wildcards", None) or {})
            journal.note("started", job=told.jobid, rule=told.rule_name, wildcards=wildcards, log=log)
        elif event == LogEvent.JOB_FINISHED:
            journal.note("finished", job=told.job_id)
        elif event == LogEvent.PROGRESS:
            journal.grow(told.total - self.targets)
        elif event == LogEvent.JOB_ERROR:
            log = list(map(str, getattr(record, "log", None) or []))
            reason = why(getattr(record, "rule_msg", None)) or trouble.silent_end(log) or ""
            journal.note("failed", job=told.jobid, log=log, why=reason)
        elif event is None:
            self._submitted(journal, str(record.msg))

    def _submitted(self, journal: Journal, message: str) -> None:
        if match := SUBMITTED.match(message) or OTHERWISE.match(message):
            journal.note("submitted", job=int(match[1]), cluster=match[2])
        elif match := ARRAY.match(message):
            for task, job in enumerate(match[1].split(","), int(match[3])):
                journal.note("submitted", job=int(job), cluster=f"{match[2]}_{task}")

    def _job(self, record: logging.LogRecord) -> None:
        name = record.rule_name  # type: ignore[attr-defined]
        wildcards = " ".join(str(value) for value in (getattr(record, "wildcards", None) or {}).values())
        job = record.jobid  # type: ignore[attr-defined]
        self.jobs[job] = (name, wildcards, [str(path) for path in getattr(record, "log", None) or []])
        self._started(job)

    def _started(self, job: int) -> None:
        name, wildcards, _ = self.jobs.get(job, ("", "", []))
        self.running.setdefault(job, (name, wildcards, time.monotonic()))
        self.running[job] = (name, wildcards, self.running[job][2])

    def _finish(self, job: int) -> None:
        name, wildcards, start = self.running.pop(job, ("", "", time.monotonic()))
        seconds = time.monotonic() - start
        self.times.add(name, seconds)
        self.finished = f"{name} {wildcards}".ljust(48) + f"{seconds:7.1f} s"

    def _progress(self, done: int, total: int) -> None:
        elapsed = time.monotonic() - self.start
        busy = max(1.0, sum(self.times.seconds.values()) / elapsed)
        left = (total - done) * self.times.mean() / busy
        width = len(str(total))
        self._say(
            f"[{done:{width}}/{total}] {self.finished}  running {len(self.running)}"
            f"  {clock(elapsed)} gone, about {clock(left)} left"
        )
        if done == total:
            self._say(f"{total} jobs in {clock(elapsed)}; most time: {self.times.longest()}")

    def _failed(self, record: logging.LogRecord) -> None:
        told: Any = record
        _, wildcards, _ = self.jobs.get(getattr(told, "jobid", -1), ("", "", []))
        logs = list(map(str, getattr(record, "log", None) or []))
        name = " ".join(filter(None, [getattr(record, "rule_name", ""), wildcards]))
        reason = why(getattr(record, "rule_msg", None))
        self._say(f"FAILED {name}: {reason}see {' '.join(map(os.path.relpath, logs))}")
        silent = None if reason else trouble.silent_end(logs)
        lines = [*last_lines(logs), *([silent] if silent else [])]
        self.cause = disk.cause("\n".join(lines))
        for line in lines:
            self._say(f"    {line}")

    def _say(self, text: str) -> None:
        print(privacy.redacted(text), file=sys.stderr, flush=True)

    @property
    def writes_to_stream(self) -> bool:
        """It does, but for a dry-run."""
        return not self.dry

    @property
    def writes_to_file(self) -> bool:
        """It does not."""
        return False

    @property
    def has_filter(self) -> bool:
        """It chooses its records itself."""
        return True

    @property
    def has_formatter(self) -> bool:
        """It formats its lines itself."""
        return True

    @property
    def needs_rulegraph(self) -> bool:
        """It does not."""
        return False
