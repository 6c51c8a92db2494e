"""Results that were made elsewhere: reused where their fingerprints are those of this study, made again where not.

Snakemake keeps what it knows of a file in ``.snakemake``, beside the results. Where they are copied or cloned without
it, it goes by the times of files alone, which a copy sets anew: it would make everything again, or take for current
what other settings made. Files of results carry their fingerprints, so before Snakemake decides what to run, it is told
of each job whose files are there and unknown to it: made from what this study is made from, or from something else.
"""

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any


def carries(outputs: list[Path]) -> set[str]:
    """Return the fingerprints that some of the files of a job carry."""
    from perfmis import carried  # not at the top: the Snakefile must not wait for the import of polars

    found: set[str] = set()
    for path in outputs:
        found |= carried.fingerprints(path)
    return found


def _files(paths: Iterable[Any]) -> list[Path]:
    return [Path(str(path)) for path in paths]


async def _unknown(graph: Any, told: set[Path]) -> list[Any]:
    """Return the jobs whose files are all there, finished, and unknown to Snakemake; each after those it needs.

    A job that was found to be made from something else stays unknown until it is made: the finding was that of one
    configuration, and a dry-run of another must not decide over this one.
    Those whose inputs a screen is still to say come when it has been read, and the DAG is looked at once more.
    """
    known = graph.workflow.persistence
    return [
        job
        for level in graph.toposorted()
        for job in level
        if job.output and not any(file.flags.get("checkpoint_target") for file in job.input)
        if not all(known.params(file) for file in job.output) and told.isdisjoint(_files(job.output))
        if all(path.exists() for path in _files(job.output)) and not await known.incomplete(job)
    ]


async def adopt(graph: Any, told: set[Path]) -> Counter[bool]:
    """Tell Snakemake of jobs whose files are there though it knows nothing of them.

    Args:
        graph: The DAG (`snakemake.dag.DAG`).
        told: Files that it has been told of in this run; those of further jobs are added.

    Returns:
        How many jobs were made from what this study is made from (True), and from something else (False).
    """
    counts: Counter[bool] = Counter()
    if not (jobs := await _unknown(graph, told)):
        return counts
    known = graph.workflow.persistence
    graph.update_jobids()  # a record holds the command, and a command may hold the number of its job
    for job in jobs:
        same = carries(_files(job.output)) == {job.params.fingerprint}
        counts[same] += 1
        told.update(_files(job.output))
        await known.finished(job)
        if same:
            put_in_order(graph, job)
        else:
            known._clear_cache()
            for file in job.output:
                known._write_record(str(file), known.metadata(file).model_copy(update={"params": []}))
    known._clear_cache()
    return counts


def put_in_order(graph: Any, job: Any) -> None:
    """See that no output of a job is older than an input: for large files Snakemake has nothing but times to go by."""
    made = [*job.output, *filter(None, [job.benchmark])]  # all of whose times it looks at
    inputs, outputs = _files(job.input), _files(made)
    newest = max((path.stat().st_mtime_ns for path in inputs if path.exists()), default=0)
    for path in outputs:
        if path.exists() and path.stat().st_mtime_ns < newest:
            with suppress(PermissionError):  # another's results, linked to: these are made again
                os.utime(path, ns=(newest, newest))
    for file in made:
        graph.workflow.iocache.mtime.pop(file, None)


def install(graph: type[Any]) -> None:
    """Have Snakemake adopt results before it decides what to run; on a cluster its jobs leave that to the submitter.

    Args:
        graph: `snakemake.dag.DAG`.
    """
    update: Callable[..., Any] = graph.update_needrun
    told: set[Path] = set()

    async def update_needrun(self: Any, *arguments: Any, **options: Any) -> None:
        if self.workflow.is_main_process and (counts := await adopt(self, told)):
            print(
                f"Results that were made elsewhere: {counts[True]} jobs are those of this study and are reused, "
                f"{counts[False]} are not and are made again.",
                file=sys.stderr,
            )
        await update(self, *arguments, **options)

    graph.update_needrun = update_needrun
