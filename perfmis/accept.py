"""Command `accept`: take over finished results after a change of code that a person declares harmless.

    python -m perfmis accept results/demo/tables/gaps.csv --reason "a helper was renamed" --profile demo

The named results, and all that they are made from, get the fingerprint that the study has now, where it is another than
theirs: nothing of them is computed again. The reason is kept in the files, in ``ROOT/accepted.json``, and on the first
page of the report. Only the repository's code and resources can be declared harmless: a result that other settings,
other files of the user's or other results made is refused, with all that is made from it. Words that follow the reason
are Snakemake's; a dry-run at the end tells what is left to do.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Collection, Iterable
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

from perfmis.adoption import carries, put_in_order
from perfmis.stage import UserError

RECORD = "accepted.json"  # below a study's root
NEVER = ("page",)  # shows the fingerprints of what it is made from


@dataclass(frozen=True)
class Acceptance:
    """That one job's results were taken over.

    Attributes:
        result: The job's first file that can say so.
        made: Fingerprint of what made it.
        taken: Fingerprint that it has now.
        reason: Why the change is harmless, in a person's words.
        day: When that was said, ISO 8601.
    """

    result: str
    made: str
    taken: str
    reason: str
    day: str


@dataclass(frozen=True)
class Command:
    """What a job's command line tells of what decides its results.

    Attributes:
        settings: For people, to name what differs.
        decisive: Hash of the settings and of the user's files that decide what it makes (`perfmis.study`).
        upstream: Fingerprints of the results that it is made from.
    """

    settings: dict[str, Any]
    decisive: str
    upstream: frozenset[str]


def read_command(line: str | None) -> Command | None:
    """Return what a command line tells; None where it is unknown, or from before decisive settings were told."""
    words = shlex.split(line or "")
    if "--settings" not in words[:-1]:
        return None
    told = json.loads(words[words.index("--settings") + 1])
    return Command(told["settings"], told["decisive"], frozenset(told["upstream"])) if "decisive" in told else None


class History:
    """Which fingerprints stand for the same results, since some were taken over as others."""

    def __init__(self, acceptances: Iterable[Acceptance]) -> None:
        self._same: dict[str, set[str]] = {}
        self._taken: set[str] = set()
        for acceptance in acceptances:
            self.add(acceptance)

    def add(self, acceptance: Acceptance) -> None:
        """Remember one more."""
        joined = set[str]().union(*(self._same.get(one, {one}) for one in (acceptance.made, acceptance.taken)))
        self._same |= dict.fromkeys(joined, joined)
        self._taken.add(acceptance.taken)

    def took(self, fingerprint: str) -> bool:
        """Return whether results were taken over as those of a fingerprint."""
        return fingerprint in self._taken

    def stands_for(self, fingerprint: str, some: Collection[str]) -> bool:
        """Return whether a fingerprint stands for the same results as one of some others."""
        return not self._same.get(fingerprint, {fingerprint}).isdisjoint(some)


def find_fault(before: Command | None, now: Command | None, needed: Collection[str], history: History) -> str | None:
    """Return why a result cannot be taken over; None where it can.

    Args:
        before: What made it, where that is known.
        now: What would make it.
        needed: Fingerprints of the jobs that it needs; upstream are also those that no job makes, as long as a screen
            decides.
        history: What has been taken over already, its upstream too.
    """
    if before is None or now is None:
        return "it is not known what made it; run it again"
    if before.decisive != now.decisive:
        keys = before.settings.keys() | now.settings.keys()
        differing = sorted(key for key in keys if before.settings.get(key) != now.settings.get(key))
        return f"other settings made it ({', '.join(differing) or 'or other files'}); run it again"
    if not all(history.stands_for(one, before.upstream) for one in now.upstream.intersection(needed)):
        return "it was made from other results than there are now; run it again"
    return None


@dataclass
class Outcome:
    """What came of a run of the command: what was taken over, and why what could not be, by its first file."""

    accepted: list[Acceptance]
    refused: dict[str, str]


async def accept(graph: Any, reason: str, day: str, targets: frozenset[str], outcome: Outcome) -> None:
    """Take over the finished results of the jobs of a DAG, each after those that it is made from.

    Jobs whose inputs a screen is still to say come when it has been read, and the DAG is looked at once more.

    Args:
        graph: The DAG (`snakemake.dag.DAG`).
        reason: Why what has changed is harmless.
        day: When that was said.
        targets: The files that were named.
        outcome: What comes of it is added here.
    """
    from perfmis import carried

    path = Path(graph.workflow.globals["root"], RECORD)
    everything = read_record(path)
    history = History(everything)
    known = graph.workflow.persistence
    graph.update_jobids()  # a command may hold the number of its job
    waiting = set[Any]()
    for job in [job for level in graph.toposorted() for job in level]:
        files = [Path(str(file)) for file in job.output]
        if waiting & graph.dependencies[job].keys() or any(file.flags.get("checkpoint_target") for file in job.input):
            waiting.add(job)
            continue
        if not files or job.rule.name in NEVER or not all(file.exists() for file in files):
            continue
        made, taken = carries(files), str(job.params.fingerprint)
        name = str(next((file for file in files if file.suffix in carried.NOTED), files[0]))
        origins = made - {taken}
        resumed = made == {taken} and history.took(taken) and bool(known.params_changed(job))
        if await known.incomplete(job) or not (origins or resumed):
            if not made and targets & {str(file) for file in files}:
                outcome.refused[name] = "carries no fingerprint; run it again"
            continue
        if origins:
            fault = "it is not known what made it; run it again" if len(origins) > 1 else None
            command = read_command(known.shellcmd(job.output[0]))
            needed = {str(one.params.fingerprint) for one in graph.dependencies[job]}
            if fault := fault or find_fault(command, read_command(job.shellcmd), needed, history):
                outcome.refused[name] = fault
                continue
            (origin,) = origins
            acceptance = Acceptance(name, origin, taken, reason, day)
            everything.append(acceptance)
            write_record(everything, path)  # before the files: what is interrupted goes on from it
            history.add(acceptance)
            outcome.accepted.append(acceptance)
            for file in files:
                if carried.fingerprints(file) == {origin}:
                    carried.restamp(file, taken, asdict(acceptance))
        await known.finished(job)
        put_in_order(graph, job)
    known._clear_cache()


def install(graph: type[Any], reason: str, targets: frozenset[str]) -> Outcome:
    """Have Snakemake accept results before it decides what to run, and return what will come of it.

    Args:
        graph: `snakemake.dag.DAG`.
        reason: Why what has changed is harmless.
        targets: The files that were named.
    """
    update: Callable[..., Any] = graph.update_needrun
    outcome = Outcome([], {})

    async def update_needrun(self: Any, *arguments: Any, **options: Any) -> None:
        if self.workflow.persistence.locked:
            outcome.refused["accept"] = "another run of the study goes on; wait for its end"
        else:
            await accept(self, reason, date.today().isoformat(), targets, outcome)
        await update(self, *arguments, **options)

    graph.update_needrun = update_needrun
    return outcome


def read_record(path: Path) -> list[Acceptance]:
    """Return what a study has taken over."""
    from perfmis.artifacts import read_json

    return [Acceptance(**one) for one in read_json(path)["accepted"]] if path.exists() else []


def write_record(acceptances: Iterable[Acceptance], path: Path) -> None:
    """Write what a study has taken over."""
    from perfmis.artifacts import write_json

    write_json({"accepted": [asdict(one) for one in acceptances]}, path)


def main(argv: list[str]) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="perfmis accept", description=(__doc__ or "").splitlines()[0].partition(": ")[2], allow_abbrev=False
    )
    parser.add_argument("targets", nargs="+", metavar="TARGET", help="files of results")
    parser.add_argument("--reason", required=True, help="why the change is harmless; kept in the results")
    arguments, words = parser.parse_known_args(argv)
    reason = " ".join(arguments.reason.split())
    if not reason:
        raise UserError("--reason: empty; say why the change is harmless")
    for target in map(Path, arguments.targets):
        if target.is_dir():
            raise UserError(
                f"{target}: is a folder; name files of results first, then --reason, then Snakemake's words"
            )
        if not target.exists():
            raise UserError(f"{target}: is not there, so there is nothing to accept; make it with snakemake")
    from snakemake import cli
    from snakemake.dag import DAG

    outcome = install(DAG, reason, frozenset(arguments.targets))
    sys.argv = ["snakemake", *words]
    options, parsed = cli.parse_args([*words, "--dry-run", "--quiet", "rules"])
    parsed.targets = arguments.targets
    ended = cli.args_to_api(parsed, options)
    print(f"accepted: {len(outcome.accepted)} results, reason: {reason}")
    if outcome.refused:
        (name, why), *more = outcome.refused.items()
        raise UserError(f"{name}: {why}" + (f" ({len(more)} more were refused)" if more else ""))
    if not ended:
        raise UserError("accept: snakemake could not make a plan; see above")
