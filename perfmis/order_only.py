"""Order without consequence: an input that is `ancient` is made first, and nothing of it makes another job run again.

Snakemake 9.27.1 takes all jobs below one that reruns for jobs that rerun too, and does not look at them. Those that lie
below it by `ancient` inputs alone it then leaves out: neither they nor what is below them is looked at, whatever else
of them has changed, and the run ends as if all were up to date (https://github.com/snakemake/snakemake/issues/4166).

It also runs a job again whose `ancient` inputs are others than before, or none: those of a training seed whose
predecessor failed, and which need not wait for it any more, are.
"""

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any


def _reached(dag: Any, *jobs: Any) -> Iterator[Any]:
    """Yield jobs and those below them by other inputs than `ancient` ones."""
    queue, visited = deque(jobs), set(jobs)
    while queue:
        job = queue.popleft()
        yield job
        for user, files in dag.depending[job].items():
            if user not in visited and not all(file.is_ancient for file in files):
                visited.add(user)
                queue.append(user)


def forget(records: type[Any]) -> None:
    """Have Snakemake compare the inputs of a job with those of its last time without `ancient` ones.

    Args:
        records: `snakemake.persistence.Persistence`, or what keeps records in its place.
    """

    def inputs(self: Any, job: Any) -> list[str]:
        ancient = {str(file) for file in job.input if file.is_ancient}
        return [file for file in every(self, job) if str(file) not in ancient]

    def input_changed(self: Any, job: Any, file: Any = None) -> bool:
        ancient = {str(path) for path in job.input if path.is_ancient}
        recorded = self.input(file)
        known = recorded is not None and (self.record_format_version(file) or 0) >= 4
        return known and [path for path in recorded if path not in ancient] != self._input(job)

    every = records._input
    if every.__name__ != inputs.__name__:  # a Snakefile that is read twice does so once
        records._input, records._input_changed = inputs, input_changed


def repair(graph: type[Any]) -> None:
    """Have Snakemake look at all jobs that need not rerun for another's sake.

    Args:
        graph: `snakemake.dag.DAG`.
    """
    update: Callable[..., Any] = graph.update_needrun

    async def update_needrun(self: Any, *arguments: Any, **options: Any) -> None:
        # There it serves to leave jobs out and for nothing else.
        self.bfs = lambda _direction, *jobs: _reached(self, *jobs)
        try:
            await update(self, *arguments, **options)
        finally:
            self.__dict__.pop("bfs", None)  # a Snakefile that is read twice repairs twice

    graph.update_needrun = update_needrun
