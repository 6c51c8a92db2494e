"""Command `accept`: take over finished results after a change of code that a person declares harmless.

    python -m perfmis accept results/demo/tables/gaps.csv --reason "a helper was renamed" --profile demo

The named results, and all that they are made from, get the fingerprint that the study has now, where it is another than
theirs: nothing of them is computed again. The reason is kept in each file, in ``ROOT/accepted.json``, and on the first
page of the report. Only code and resources can be declared harmless: a result that other *settings* made is refused, as
is one of which it is not known what made it. Words that follow are Snakemake's; what is left to do is listed by a
dry-run at the end.
"""

import argparse
import json
import shlex
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

from perfmis.adoption import carries, put_in_order
from perfmis.stage import UserError

RECORD = "accepted.json"  # below a study's root


@dataclass(frozen=True)
class Acceptance:
    """That one job's results were taken over.

    Attributes:
        result: The job's first file.
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


def settings(command: str | None) -> dict[str, Any] | None:
    """Return the settings in a job's command line, without its upstream; None where there are none."""
    words = shlex.split(command or "")
    if "--settings" not in words[:-1]:
        return None
    return dict(json.loads(words[words.index("--settings") + 1])["settings"])


async def accept(graph: Any, reason: str, day: str) -> tuple[list[Acceptance], list[str]]:
    """Take over the finished results of all jobs of a DAG, or none of them where one cannot be.

    Args:
        graph: The DAG (`snakemake.dag.DAG`).
        reason: Why what has changed is harmless.
        day: When that was said.

    Returns:
        What was taken over, and why what cannot be.
    """
    from perfmis import carried

    known = graph.workflow.persistence
    graph.update_jobids()  # a command may hold the number of its job
    found: list[tuple[Any, Acceptance]] = []
    refused: list[str] = []
    for job in [job for level in graph.toposorted() for job in level]:
        files = [Path(str(file)) for file in job.output]
        if not files or not all(file.exists() for file in files) or await known.incomplete(job):
            continue
        made, taken = carries(files), str(job.params.fingerprint)
        if made in ({taken}, set()):
            continue
        if fault := find_fault(made, known.shellcmd(job.output[0]), job.shellcmd):
            refused.append(f"{files[0]}: {fault}")
            continue
        (origin,) = made
        found.append((job, Acceptance(str(files[0]), origin, taken, reason, day)))
    if refused:
        return [], refused
    for job, acceptance in found:
        for file in job.output:
            carried.restamp(Path(str(file)), acceptance.taken, asdict(acceptance))
        await known.finished(job)
        put_in_order(graph, job)
    known._clear_cache()
    return [acceptance for _, acceptance in found], []


def find_fault(made: set[str], before: str | None, now: str) -> str | None:
    """Return why a result cannot be taken over; None where it can.

    Args:
        made: The fingerprints that its files carry.
        before: The command that made it, where that is known.
        now: The command that would make it.
    """
    then = settings(before)
    if then is None or len(made) > 1:
        return "it is not known what made it; delete it and run it again"
    if differing := _differing(then, settings(now) or {}):
        return f"other settings made it ({differing}); run it again"
    return None


def _decisive(told: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a job without those that decide nothing of what it makes (``run`` in `perfmis.study`)."""
    result = {key: value for key, value in told.items() if key not in ("batch", "accepted")}
    if "lora" in result.get("sdf", {}):
        lora = {key: value for key, value in result["sdf"]["lora"].items() if key != "reach"}
        result["sdf"] = {**result["sdf"], "lora": lora}
    return result


def _differing(before: dict[str, Any], now: dict[str, Any]) -> str:
    """Return the names of the settings that differ."""
    before, now = _decisive(before), _decisive(now)
    return ", ".join(sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key)))


@dataclass
class Outcome:
    """What came of a run of the command: what was taken over, and why what could not be."""

    accepted: list[Acceptance]
    refused: list[str]


def install(graph: type[Any], reason: str) -> Outcome:
    """Have Snakemake accept results before it decides what to run, and return what will come of it.

    Args:
        graph: `snakemake.dag.DAG`.
        reason: Why what has changed is harmless.
    """
    update: Callable[..., Any] = graph.update_needrun
    outcome = Outcome([], [])

    async def update_needrun(self: Any, *arguments: Any, **options: Any) -> None:
        if not outcome.refused:
            found, outcome.refused = await accept(self, reason, date.today().isoformat())
            outcome.accepted += found
            record(found, Path(self.workflow.globals["root"], RECORD))
        await update(self, *arguments, **options)

    graph.update_needrun = update_needrun
    return outcome


def record(found: list[Acceptance], path: Path) -> None:
    """Add acceptances to a study's record of them."""
    from perfmis.artifacts import read_json, write_json

    if not found:
        return
    before = read_json(path)["accepted"] if path.exists() else []
    write_json({"accepted": [*before, *map(asdict, found)]}, path)


def main(argv: list[str]) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        prog="python -m perfmis accept", description=(__doc__ or "").splitlines()[0].partition(": ")[2]
    )
    parser.add_argument("targets", nargs="+", metavar="TARGET", help="files of results")
    parser.add_argument("--reason", required=True, help="why the change is harmless; kept in the results")
    arguments, words = parser.parse_known_args(argv)
    reason = " ".join(arguments.reason.split())
    if not reason:
        raise UserError("--reason: empty; say why the change is harmless")
    for target in arguments.targets:
        if not Path(target).exists():
            raise UserError(f"{target}: is not there, so there is nothing to accept; make it with snakemake")
    from snakemake import cli
    from snakemake.dag import DAG

    outcome = install(DAG, reason)
    sys.argv = ["snakemake", *words]
    options, parsed = cli.parse_args([*words, "--dry-run", "--quiet", "rules"])
    parsed.targets = arguments.targets
    ended = cli.args_to_api(parsed, options)
    if outcome.refused:
        more = f"; so are {len(outcome.refused) - 1} more" if len(outcome.refused) > 1 else ""
        raise UserError(f"{outcome.refused[0]}{more}")
    if not ended:
        raise UserError("accept: snakemake could not make a plan; see above")
    print(f"accepted: {len(outcome.accepted)} results, reason: {reason}")
