"""Jobs are not forgotten while Slurm does not answer: the plug-in itself, with a squeue of ours.

`tests/test_slurm.py` kills a real controller.
"""

import asyncio
import contextlib
import logging
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from snakemake_executor_plugin_slurm import Executor

from perfmis import slurm_outages


def still_active(executor: type, jobs: list[Any]) -> list[str]:
    """Return the jobs that an executor will ask after again, from one round of its questions."""
    asking: Any = executor.__new__(executor)
    settings = SimpleNamespace(init_seconds_before_status_checks=1, status_attempts=2, status_command="squeue")
    asking.workflow = SimpleNamespace(executor_settings=settings)
    asking.logger, asking.run_uuid = logging.getLogger("asking"), "run"
    asking.status_rate_limiter = contextlib.AsyncExitStack()
    asking.next_seconds_between_status_checks = 1
    asking._status_query_calls = asking._status_query_failures = 0
    asking._status_query_total_seconds = 0.0
    asking._status_query_min_seconds, asking._status_query_max_seconds = None, 0.0
    asking._status_query_cycle_rows = []

    async def ask() -> list[str]:
        return [job.external_jobid async for job in asking.check_active_jobs(jobs)]

    return asyncio.run(ask())


def test_jobs_are_asked_after_again_when_slurm_did_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Patient(Executor):
        """The plug-in's executor with what the workflow adds."""

    slurm_outages.outlive(Patient)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    answers = {"squeue": "exit 1", "scontrol": "echo MinJobAge = 300 sec", "sacct": "exit 1"}
    for name, answer in answers.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{answer}\n")
        (tmp_path / name).chmod(0o755)
    jobs = [SimpleNamespace(external_jobid=number, aux={}) for number in ("1", "2")]
    assert still_active(Executor, jobs) == [], "the plug-in has been mended: perfmis/slurm_outages.py may go"
    assert still_active(Patient, jobs) == ["1", "2"]
    (tmp_path / "squeue").write_text("#!/bin/sh\necho '1|RUNNING'; echo '2|RUNNING'\n")
    assert still_active(Patient, jobs) == still_active(Executor, jobs) == ["1", "2"]
    assert still_active(Patient, []) == []
