"""Command `status`: how a run stands, what runs where, what failed and why, and about how much time is left.

    python -m perfmis status [--config FILE ... | --root ROOT]

It reads the journal that the logger plug-in writes (``ROOT/logs/run.jsonl``), while a run is on and after it died.
With ``--config`` Snakemake's dry-run counts the jobs of the whole study by what exists on disk; with ``--root``, which
answers at once, the counts are those of the last run. Hours that a job waits in a cluster's queue count as its own.
"""

import argparse
import json
import shutil
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from perfmis.stage import UserError

JOURNAL = "logs/run.jsonl"
LAST_LINES = 5
LATER = "after the screen"  # stands for a stage: jobs that follow from which models the screen kept
GONE = "has left the queue, which snakemake has yet to see"
State = Literal["running", "finished", "failed", "lost"]


@dataclass
class Job:
    """The latest attempt at a job.

    Attributes:
        rule: Its rule.
        wildcards: Their values, joined by blanks.
        log: Its log files, those of the cluster too where it failed.
        start: When it was started or submitted, seconds since the epoch.
        state: ``lost``: its run died, and nobody knows what became of it.
        end: When it finished or failed.
        cluster: What a cluster calls it, such as the number of its Slurm job; empty on the submitting machine.
        attempt: How often it was started in this run.
        why: Why it failed, where its log does not say.
    """

    rule: str
    wildcards: str
    log: list[str]
    start: float
    state: State = "running"
    end: float = 0.0
    cluster: str = ""
    attempt: int = 1
    why: str = ""


@dataclass
class Run:
    """One start of snakemake.

    Attributes:
        host: Machine of the submitting process.
        pid: Its id.
        born: When the process was made, in seconds since the machine started: it tells the process from a later one
            of the same id, and stays when the clock is set.
        start: When it began, seconds since the epoch.
        rules: Jobs to do by rule, as far as known when it began.
        heard: Time of its last event.
        ended: Whether it came to an end of its own.
        jobs: Its jobs by number.
        total: Jobs in all, those that checkpoints added too; 0 where none did.
    """

    host: str
    pid: int
    born: float
    start: float
    rules: dict[str, int]
    heard: float
    ended: bool = False
    jobs: dict[int, Job] = field(default_factory=dict)
    total: int = 0

    def go_on(self, event: dict[str, Any]) -> None:
        """Count a pass without the results of failed jobs as part of the run; it numbers its jobs anew."""
        self.heard, self.ended = event["time"], False
        self.jobs = {-1 - place: job for place, job in enumerate(self.jobs.values())}
        for rule, number in event["rules"].items():
            self.rules[rule] = max(self.rules.get(rule, 0), number)

    def alive(self) -> bool | None:
        """Return whether the run is on; None where only its own machine could tell."""
        if self.ended:
            return False
        if self.host != socket.gethostname():
            return None
        import psutil

        try:
            return abs(born(self.pid) - self.born) < 2
        except psutil.Error:
            return False


def born(pid: int) -> float:
    """Return when a process was made, in seconds since the machine started."""
    import psutil

    return psutil.Process(pid).create_time() - psutil.boot_time()


def between(start: float, end: float) -> float:
    """Return the seconds between two times; none where the clock was set back meanwhile."""
    return max(0.0, end - start)


def events(journal: Path) -> Iterator[dict[str, Any]]:
    """Yield the events of a journal; a line that a killed process left torn is passed over."""
    for line in journal.read_text(errors="replace").splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict):
            yield event


def runs(told: Iterable[dict[str, Any]]) -> list[Run]:
    """Return the runs that events tell of, the oldest first."""
    found: dict[str, Run] = {}
    for event in told:
        name = event.get("run", "")
        if event.get("event") == "run" and event.get("follows") and found:
            found[name] = list(found.values())[-1]
            found[name].go_on(event)
        elif event.get("event") == "run":
            run = Run(event["host"], event["pid"], event["born"], event["time"], event["rules"], event["time"])
            found[name] = run
        elif name in found:
            found[name].heard = event["time"]
            _apply(found[name], event)
    different = list({id(run): run for run in found.values()}.values())
    for run in different:
        if run.alive() is False:
            for job in run.jobs.values():
                job.state = "lost" if job.state == "running" else job.state
    return different


def _apply(run: Run, event: dict[str, Any]) -> None:
    kind = event["event"]
    if kind == "ended":
        run.ended = True
        return
    if kind == "total":
        run.total = max(run.total, event["jobs"])
        return
    job = run.jobs.get(event.get("job", -1))
    if kind == "started":
        wildcards = " ".join(map(str, event["wildcards"].values()))
        attempt = job.attempt + 1 if job else 1
        run.jobs[event["job"]] = Job(event["rule"], wildcards, event["log"], event["time"], attempt=attempt)
        return
    if job is None:
        return
    if kind == "submitted":
        job.cluster = event["cluster"]
    elif kind in ("finished", "failed"):
        job.state, job.end = kind, event["time"]
        job.log = event.get("log") or job.log
        job.why = event.get("why", "")


@dataclass
class Count:
    """Jobs of one stage."""

    total: int = 0
    done: int = 0
    running: int = 0
    failed: int = 0


def of_last_run(run: Run) -> dict[str, Count]:
    """Return the counts of a run by rule; the rule of a job that a checkpoint added is known once it has started."""
    seen = Counter(job.rule for job in run.jobs.values())
    done = Counter(job.rule for job in run.jobs.values() if job.state == "finished")
    rules = [*run.rules, *(rule for rule in seen if rule not in run.rules and rule != "all")]
    counts = {rule: Count(max(run.rules.get(rule, 0), seen[rule]), done[rule]) for rule in rules}
    later = run.total - sum(count.total for count in counts.values())
    return counts | ({LATER: Count(later)} if later > 0 else {})


def of_study(files: Sequence[str]) -> dict[str, Count]:
    """Return the counts of a study by rule, as Snakemake's dry-run tells them.

    Raises:
        UserError: Snakemake refuses.
    """
    from perfmis import config, plan

    total, left, _ = plan.jobs_of(config.load(files), files)
    still = Counter(job.rule for job in left)
    return {rule: Count(number, number - still[rule]) for rule, number in Counter(job.rule for job in total).items()}


def seconds_left(counts: dict[str, Count], found: Sequence[Run], now: float) -> float | None:
    """Return about how many seconds the jobs that are left take; None before any job has finished.

    Each takes the mean of its rule's finished jobs, or of all of them; as many run at once as did in the last run.
    """
    finished = [job for run in found for job in run.jobs.values() if job.state == "finished"]
    if not finished:
        return None
    spent, number = Counter[str](), Counter(job.rule for job in finished)
    for job in finished:
        spent[job.rule] += between(job.start, job.end)  # type: ignore[assignment]
    overall = sum(spent.values()) / len(finished)
    work = sum(
        (count.total - count.done) * (spent[rule] / number[rule] if number[rule] else overall)
        for rule, count in counts.items()
    )
    last = found[-1]
    until = now if last.alive() else last.heard
    busy = sum(between(job.start, job.end or until) for job in last.jobs.values())
    return work / max(1.0, busy / max(1.0, until - last.start))


def queue(jobs: Iterable[Job]) -> dict[str, str]:
    """Return where Slurm jobs are, by number: state, nodes or reason, partition; empty where no ``squeue`` answers."""
    numbers = sorted({job.cluster for job in jobs if job.cluster[:1].isdigit()})
    if not numbers or shutil.which("squeue") is None:
        return {}
    words = ["squeue", "-h", "--array", "-o", "%i|%T %R, partition %P", "-j", ",".join(numbers)]
    try:
        said = subprocess.run(words, check=False, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return {}
    known = dict(line.split("|", 1) for line in said.stdout.splitlines())
    if said.returncode and "Invalid job id" not in said.stderr:
        return known
    return dict.fromkeys(numbers, GONE) | known


def span(seconds: float) -> str:
    """Return hours, minutes and seconds."""
    return f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02d}:{int(seconds) % 60:02d}"


def moment(seconds: float) -> str:
    """Return a time of the local day for people."""
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M:%S")


def text(counts: dict[str, Count], found: Sequence[Run], now: float, of: str) -> str:
    """Return the whole report for people; ``of`` says whose counts these are."""
    # What an earlier run left is to do again, or was done since.
    jobs = [job for job in found[-1].jobs.values() if job.rule != "all"] if found else []
    for job in jobs:
        count = counts.setdefault(job.rule, Count())
        count.running += job.state == "running"
        count.failed += job.state == "failed"
    lines = [*_heading(found, now), "", *_table(counts, of), ""]
    running, lost, failed = ([job for job in jobs if job.state == state] for state in ("running", "lost", "failed"))
    known = queue([*running, *lost])
    if running:
        waiting = ", or waiting in the queue" if any(job.cluster for job in running) else ""
        lines += [f"running{waiting}:", *(_where(job, found[-1].host, known, now) for job in running), ""]
    if lost:
        how = "stopped when the run ended:" if found[-1].ended else "left behind by the run that died:"
        lines += [how, *(_where(job, found[-1].host, known, None) for job in lost)]
        if on := [job.cluster for job in lost if known.get(job.cluster, GONE) != GONE]:
            lines.append(f"  some are on without it; before you start again: scancel {' '.join(on)}")
        lines.append("")
    if failed:
        lines += ["failed:", *(line for job in failed for line in _failure(job)), ""]
    return "\n".join([*lines, _left(counts, found, now)])


def _heading(found: Sequence[Run], now: float) -> list[str]:
    if not found:
        return ["no run has begun, or it ran without --logger perfmis"]
    last = found[-1]
    who = f"run {len(found)}, process {last.pid} on {last.host}, begun {moment(last.start)}"
    if last.ended:
        return [f"{who}: ended {moment(last.heard)}"]
    alive = last.alive()
    if alive is None:
        silence = span(between(last.heard, now))
        return [f"{who}: last heard of {silence} ago; only {last.host} can tell whether it is on"]
    if alive:
        return [f"{who}: is on"]
    remedy = "to go on, run the same command with --unlock, then start it again without"
    return [f"{who}: DIED, last heard of {moment(last.heard)}; {remedy}"]


def _table(counts: dict[str, Count], of: str) -> list[str]:
    from perfmis.plan import ORDER, stage_of

    stages: dict[str, Count] = {}
    for rule, count in counts.items():
        stage = stages.setdefault(stage_of(rule), Count())
        for key, value in vars(count).items():
            setattr(stage, key, getattr(stage, key) + value)
    names = sorted(stages, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))
    total = Count(*(sum(getattr(count, key) for count in stages.values()) for key in vars(Count())))
    rows = [(name, stages[name]) for name in names] + [("total", total)]
    lines = [f"{f'stage of {of}':24}{'done':>12}{'running':>9}{'failed':>8}"]
    for name, count in rows:
        shown = (str(value) if value else "-" for value in (count.running, count.failed))
        done = f"{count.done}/{count.total}"
        lines.append(f"{name:24}{done:>12}{next(shown):>9}{next(shown):>8}")
    return lines


def _name(job: Job) -> str:
    again = f"(attempt {job.attempt})" if job.attempt > 1 else ""
    return " ".join(filter(None, [job.rule, job.wildcards, again]))


def _where(job: Job, host: str, known: dict[str, str], now: float | None) -> str:
    place = f"on {host}"
    if job.cluster:
        kind = "Slurm job " if job.cluster[0].isdigit() else ""
        place = f"{kind}{job.cluster} {known.get(job.cluster, '')}".rstrip()
    since = f"since {moment(job.start)} ({span(between(job.start, now))})" if now else f"begun {moment(job.start)}"
    return f"  {_name(job)}: {place}, {since}, {' '.join(job.log) or 'no log'}"


def _failure(job: Job) -> Iterator[str]:
    yield f"  {_name(job)}, {moment(job.end)}: {' '.join(job.log) or 'no log'}"
    for path in filter(Path.is_file, map(Path, job.log)):
        for line in path.read_text(errors="replace").splitlines()[-LAST_LINES:]:
            yield f"      {line}"
    if job.why:
        yield f"      {job.why}"


def _left(counts: dict[str, Count], found: Sequence[Run], now: float) -> str:
    if counts and all(count.done == count.total for count in counts.values()):
        return "all done"
    left = seconds_left(counts, found, now) if found else None
    if left is None:
        return "time left: not known before a job has finished"
    return f"about {span(left)} left" + (", once it is started again" if found[-1].alive() is False else "")


def main(argv: list[str]) -> None:
    """Run the command."""
    from perfmis import config

    parser = argparse.ArgumentParser(prog="python -m perfmis status", description=(__doc__ or "").splitlines()[0])
    either = parser.add_mutually_exclusive_group()
    config.add_option(either)
    either.add_argument("--root", type=Path, help="the study's root: counts of its last run only, at once")
    arguments = parser.parse_args(argv)
    notes = []
    if arguments.root:
        found = _journal(arguments.root)
        if not found:
            raise UserError(
                f"{arguments.root / JOURNAL}: no journal; name the study's root, or run with --logger perfmis"
            )
        counts, of = of_last_run(found[-1]), "the last run"
    else:
        found = _journal(Path(config.load(arguments.config).root))
        try:
            counts, of = of_study(arguments.config), "the study"
        except UserError as error:
            if not found:
                raise
            counts, of = of_last_run(found[-1]), "the last run"
            notes = [f"counts are those of the last run, since the study's cannot be told: {error}"]
    print("\n".join([text(counts, found, time.time(), of), *notes]))


def _journal(root: Path) -> list[Run]:
    path = root / JOURNAL
    return runs(events(path)) if path.is_file() else []
