"""After a run in which jobs failed: tables, figures and the report from what there is.

Snakemake never starts a job that lacks an input, so one failed job of one model would take all tables with it. When a
run that was to keep going has ended so, the submitting process (``onerror`` of the Snakefile) writes down which results
are missing (`perfmis.missing`) and starts Snakemake again with the same options, in a pass in which tables do without
them. What failed is not tried again there: that is for the next run, which knows of nothing missing. A pass may meet
failures of its own, since with ``screen.keep: auto`` the arms are known only after the screen; then another follows.
The run as a whole ends as failed, whatever the passes made.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from perfmis import missing, privacy
from perfmis.missing import Missing, Result
from perfmis.stage import UserError

# Jobs that take what exists of their inputs, beside all tables and figures.
TAKERS = ("all", "screen", "validation", "story", "page")
FOLLOWS = "PERFMIS_FOLLOWS"  # tells the journal that a run is a pass of the one before


def takes_what_exists(rule: str) -> bool:
    """Return whether a rule's job can do without some of its inputs."""
    return rule in TAKERS or rule.startswith(("table_", "fig"))


def error_line(logs: Iterable[str]) -> str:
    """Return the line that says why a job failed: its own, else the last that it wrote."""
    from snakemake_logger_plugin_perfmis import trouble

    paths = list(logs)
    lines = [
        line.strip()
        for path in map(Path, paths)
        if path.is_file()
        for line in path.read_text(errors="replace").splitlines()
        if line.strip()
    ]
    said = [line for line in lines if line.startswith("error: ")] or lines[-1:]
    return privacy.redacted(trouble.silent_end(paths) or said[-1])


def results(dag: Any, failed: Iterable[Any]) -> list[Result]:
    """Return what is missing after a run: what failed jobs make, and the jobs that need it.

    Args:
        dag: The DAG (`snakemake.dag.DAG`).
        failed: Its jobs that failed for good.
    """
    found: dict[Any, Result] = {}
    for job in sorted((job for job in failed if not takes_what_exists(job.rule.name)), key=str):
        name = " ".join([job.rule.name, *job.wildcards_dict.values()])
        error = f"job {name} failed: {error_line(map(str, job.log))}"
        queue = [job]
        while queue:
            needing = queue.pop()
            if needing in found or takes_what_exists(needing.rule.name):
                continue
            rule = needing.rule.name.removesuffix("_multinode")
            files = tuple(map(str, needing.output))
            found[needing] = Result(rule, dict(needing.wildcards_dict), files, error)
            # A seed that waits for the first one to draw what both need can do without.
            queue += [
                user
                for user, files in dag.depending[needing].items()
                if user.rule != needing.rule or not all(file.is_ancient for file in files)
            ]
    return list(found.values())


def called_as_a_command() -> bool:
    """Return whether this process is Snakemake's command, so that it can be called again with the same words."""
    called = Path(sys.argv[0])
    return "snakemake" in (called.name, called.parent.name)


def ended_by_itself(workflow: Any) -> bool:
    """Return whether a run kept going until nothing was left to do, and was not stopped."""
    scheduler = workflow.scheduler
    stopped = scheduler._user_kill or scheduler._executor_error or scheduler.running or scheduler.open_jobs
    return workflow.is_main_process and workflow.execution_settings.keep_going and not stopped


def go_on(workflow: Any, root: str, models: Iterable[str], seeds: Iterable[int], known: Missing) -> None:
    """Make what can be made without the results that failed jobs have taken.

    Args:
        workflow: The workflow (`snakemake.workflow.Workflow`), whose run has failed.
        root: The study's root.
        models: Its models.
        seeds: Its training seeds.
        known: What was missing from this run: something, where it is a pass after another run.
    """
    if not (called_as_a_command() and ended_by_itself(workflow)) or not (
        new := results(workflow.dag, workflow.scheduler.failed)
    ):
        return
    record = Path(root, missing.RECORD)
    missing.write([*known.results, *new], record)
    if known.results:
        return  # the run that started this pass goes on
    runs = [(model, seed) for model in models for seed in seeds]
    while True:
        lost = Missing(missing.read(record))
        errors = list(dict.fromkeys(result.error for result in lost.results))
        if all(lost.has("screen_outcomes", model=model, seed=seed) for model, seed in runs):
            _say("no tables and no report: no organism of any model could be made and sampled", errors)
            return
        _say("tables, figures and report are now made from the rest", errors)
        ended = _pass(record)
        now = missing.read(record)
        if ended == 0 or len(now) == len(lost.results):
            break
    made = "name" if ended == 0 else "that could be made name"
    _say(
        f"tables, figures and report {made} what is missing; the same command tries again what failed",
        list(dict.fromkeys(result.error for result in now)),
    )


def _say(what: str, errors: list[str]) -> None:
    jobs = "1 job" if len(errors) == 1 else f"{len(errors)} jobs"
    print("\n".join([f"{jobs} failed: {what}", *(f"    {error}" for error in errors)]), file=sys.stderr, flush=True)


def _pass(record: Path) -> int:
    """Run Snakemake once more, as a user would stop it, and return its exit status."""
    words = [sys.executable, "-m", "perfmis.after_failure", str(record), *sys.argv[1:]]
    with subprocess.Popen(words, env={**os.environ, FOLLOWS: "1"}) as process:
        # A terminal sends an interrupt to both; who runs this sends a termination to this one alone.
        before = {
            signal.SIGINT: signal.signal(signal.SIGINT, signal.SIG_IGN),
            signal.SIGTERM: signal.signal(signal.SIGTERM, lambda number, _: process.send_signal(number)),
        }
        try:
            return process.wait()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def main(argv: list[str]) -> None:
    """Run Snakemake on what can be made without what a record says is missing.

    Args:
        argv: The record, then the words that Snakemake was called with.
    """
    from snakemake import cli

    record = Path(argv[0])
    sys.argv = ["snakemake", *argv[1:]]
    lost = missing.read(record)
    gone = {os.path.normpath(file) for result in lost for file in result.files}
    gone |= {result.rule for result in lost if not result.wildcards}
    parser, arguments = cli.parse_args(argv[1:])
    wanted = [target for target in arguments.targets if os.path.normpath(target) not in gone]
    if arguments.targets and not wanted:
        return
    arguments.targets = wanted
    arguments.config = [*(arguments.config or []), f"missing={record}"]
    arguments.nolock = True  # held by the run that failed, which waits
    # What it was told to make again has been.
    arguments.forceall, arguments.force, arguments.forcerun = False, False, set()
    sys.exit(0 if cli.args_to_api(arguments, parser) else 1)


if __name__ == "__main__":
    privacy.narrow()
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(f"error: {error}")
