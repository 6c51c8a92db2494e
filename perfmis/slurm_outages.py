"""A run outlives an outage of Slurm's controller or of its accounting.

Once a round, snakemake-executor-plugin-slurm asks what has become of its jobs. Where every question of a round fails,
version 2.8.0 goes on without those jobs, and the run waits for ever for jobs that it no longer asks after. Here jobs of
which nothing was learnt are asked after again, in the next round.
"""

from collections.abc import AsyncIterator
from typing import Any


def outlive(executor: type) -> None:
    """Replace the plug-in's round of questions by one that forgets no job.

    Args:
        executor: The plug-in's class ``Executor``; ``_status_query_calls`` counts its questions that were answered.
    """
    asked: Any = executor.check_active_jobs  # type: ignore[attr-defined]

    async def check_active_jobs(self: Any, active_jobs: list[Any]) -> AsyncIterator[Any]:
        answered = self._status_query_calls
        async for job in asked(self, active_jobs):
            yield job
        if self._status_query_calls == answered:
            for job in active_jobs:
                yield job

    executor.check_active_jobs = check_active_jobs  # type: ignore[attr-defined]
