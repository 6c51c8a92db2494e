"""`python -m perfmis status`: during a run, after it ended, failed or died, on this machine and on a cluster."""

import inspect
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from running import command, environment
from snakemake_interface_logger_plugins.common import LogEvent

from perfmis import status
from perfmis.stage import UserError
from snakemake_logger_plugin_perfmis import LogHandler

WORKFLOW = """
rule all:
    input: expand("results/mine/out/{n}", n=[1, 2, 3])
rule arm:
    output: "results/mine/out/{n}"
    log: "results/mine/logs/arm/{n}.log"
    benchmark: "results/mine/benchmarks/arm/{n}.tsv"
    shell: "bash job.sh {wildcards.n} {output} > {log} 2>&1"
"""


def told(root: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Return what the command says of a root."""
    capsys.readouterr()
    status.main(["--root", str(root)])
    return capsys.readouterr().out


def counts(said: str, stage: str) -> list[str]:
    """Return done, running and failed of a stage."""
    (line,) = [line for line in said.splitlines() if line.startswith(stage)]
    return line.split()[-3:]


@pytest.fixture
def workflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a workflow of three jobs that do what ``job.sh`` says."""
    (tmp_path / "Snakefile").write_text(WORKFLOW)
    # Packages and resources are found from here, logs relative to the folder.
    (tmp_path / "resources").symlink_to(Path.cwd() / "resources")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def snakemake(folder: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "snakemake", "--cores", "2", "--keep-going", "--logger", "perfmis", *options]


def test_a_failed_job_is_shown_with_the_end_of_its_log_and_a_later_run_clears_it(
    workflow: Path, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = workflow / "results/mine"
    (workflow / "job.sh").write_text('[ $1 = 2 ] && { echo first; echo "error: x: boom"; exit 1; }; touch $2\n')
    subprocess.run(snakemake(workflow), cwd=workflow, env=environment(repository), check=False, capture_output=True)
    said = told(root, capsys)
    assert "ended" in said.splitlines()[0]
    assert counts(said, "arms") == ["2/3", "-", "1"]
    assert "arm 2" in said
    assert "results/mine/logs/arm/2.log" in said
    assert "      error: x: boom" in said.splitlines()
    (workflow / "job.sh").write_text("touch $2\n")
    subprocess.run(snakemake(workflow), cwd=workflow, env=environment(repository), check=True, capture_output=True)
    said = told(root, capsys)
    assert "run 2" in said
    assert "failed:" not in said
    assert said.splitlines()[-1] == "all done"


def test_a_run_is_on_until_it_is_killed(workflow: Path, repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = workflow / "results/mine"
    (workflow / "job.sh").write_text("[ $1 = 1 ] || { touch begun$1; sleep 60; }; touch $2\n")
    process = subprocess.Popen(
        snakemake(workflow, "--cores", "3"),
        cwd=workflow,
        env=environment(repository),
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        await_(lambda: (workflow / "begun2").exists() and (workflow / "begun3").exists())
        await_(lambda: '"finished"' in (root / status.JOURNAL).read_text())
        said = told(root, capsys)
        assert f"process {process.pid} " in said
        assert "is on" in said.splitlines()[0]
        assert counts(said, "arms") == ["1/3", "2", "-"]
        assert "running:" in said
        assert said.splitlines()[-1].startswith("about ")
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    said = told(root, capsys)
    assert "DIED" in said.splitlines()[0]
    assert "--unlock, then start it again" in said.splitlines()[0]
    assert said.splitlines()[-1].endswith("left, once it is started again")
    assert counts(said, "arms") == ["1/3", "-", "-"]
    assert "left behind by the run that died:\n  arm 2" in said.replace("arm 3", "arm 2")


def await_(happened: Callable[[], bool]) -> None:
    for _ in range(600):
        if happened():
            return
        time.sleep(0.1)
    pytest.fail("the workflow did not start its jobs")


@pytest.fixture
def handler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LogHandler:
    """The plug-in as snakemake makes it, in a folder of its own."""
    (tmp_path / "resources").symlink_to(Path.cwd() / "resources")
    monkeypatch.chdir(tmp_path)
    return LogHandler(SimpleNamespace(dryrun=False), None)  # type: ignore[arg-type]


def say(handler: LogHandler, message: str = "", **content: Any) -> None:
    """Give the plug-in a record."""
    record = logging.LogRecord("snakemake", logging.INFO, "", 0, message, (), None)
    vars(record).update(content)
    handler.emit(record)


def start(handler: LogHandler, job: int, name: str = "organism") -> None:
    log, benchmark = f"results/logs/organisms/{job}.log", f"results/benchmarks/organisms/{job}.tsv"
    content = {"rule_name": name, "wildcards": {"model": "m", "seed": job}, "log": [log], "benchmark": benchmark}
    say(handler, event=LogEvent.JOB_INFO, jobid=job, **content)


def test_jobs_of_a_cluster_are_shown_with_their_ids_and_nodes(
    handler: LogHandler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    say(handler, event=LogEvent.RUN_INFO, stats={"organism": 3, "all": 1, "total": 4})
    for job in (1, 2, 3):
        start(handler, job)
    say(handler, "Job 1 has been submitted with SLURM jobid 70 (log: results/logs/slurm/70.log).")
    say(
        handler,
        "Submitted array job with Snakemake IDs 2,3 and SLURM job ID 71. The individual task IDs are 1-2.",
    )
    program = tmp_path / "bin/squeue"
    program.parent.mkdir()
    queued = '"70|RUNNING gpu7, partition big"; echo "71_1|PENDING (Resources), partition big"'
    program.write_text(f"#!/bin/sh\necho {queued}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    said = told(tmp_path / "results", capsys)
    assert "organism m 1: Slurm job 70 RUNNING gpu7, partition big, since" in said
    assert "organism m 2: Slurm job 71_1 PENDING (Resources), partition big, since" in said
    assert "organism m 3: Slurm job 71_2 has left the queue, which snakemake has yet to see, since" in said
    assert "results/logs/organisms/1.log" in said, "what a running stage says"
    died(tmp_path / "results")
    said = told(tmp_path / "results", capsys)
    assert "left behind by the run that died:\n  organism m 1: Slurm job 70 RUNNING gpu7" in said
    assert "before you start again: scancel 70 71_1\n" in said
    program.write_text("#!/bin/sh\nexit 1\n")
    assert "Slurm job 71_2, begun" in told(tmp_path / "results", capsys), (
        "nothing is said of a queue that does not answer"
    )


def died(root: Path) -> None:
    """Make the journal tell of a process that is no more."""
    journal = root / status.JOURNAL
    first, *others = journal.read_text().splitlines()
    journal.write_text("\n".join([json.dumps({**json.loads(first), "born": -1.0}), *others, ""]))


def test_a_job_of_another_cluster_is_shown_by_its_name(
    handler: LogHandler, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    say(handler, event=LogEvent.RUN_INFO, stats={"organism": 1, "total": 1})
    start(handler, 1)
    say(handler, "Submitted job 1 with external jobid 'job.batch/perfmis-organism-x7k2p'.")
    assert "organism m 1: job.batch/perfmis-organism-x7k2p, since" in told(tmp_path / "results", capsys)


def test_jobs_that_follow_from_the_screen_are_counted(
    handler: LogHandler, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A checkpoint adds jobs, of which snakemake tells the number."""
    say(handler, event=LogEvent.RUN_INFO, stats={"screen": 1, "all": 1, "total": 2})
    start(handler, 1, "screen")
    say(handler, event=LogEvent.JOB_FINISHED, job_id=1)
    say(handler, event=LogEvent.PROGRESS, done=1, total=9)
    start(handler, 2)
    said = told(tmp_path / "results", capsys)
    assert counts(said, "after the screen") == ["0/6", "-", "-"]
    assert counts(said, "total") == ["1/8", "1", "-"]


def test_messages_of_the_executor_are_those_of_the_installed_one() -> None:
    """The ids of Slurm jobs stand in its messages only."""
    import snakemake_executor_plugin_slurm

    source = inspect.getsource(snakemake_executor_plugin_slurm)
    assert 'f"Job {job.jobid} has been submitted with SLURM jobid "' in source
    assert 'f"Submitted array job with Snakemake IDs {job_ids_str} and "' in source
    assert 'f"SLURM job ID {slurm_jobid}. The individual task IDs are "' in source


def test_a_retried_job_counts_once(handler: LogHandler, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    say(handler, event=LogEvent.RUN_INFO, stats={"organism": 1, "total": 1})
    start(handler, 1)
    say(handler, event=LogEvent.JOB_ERROR, jobid=1, rule_name="organism", log=["results/logs/organisms/1.log"])
    assert counts(told(tmp_path / "results", capsys), "organisms") == ["0/1", "-", "1"]
    start(handler, 1)
    said = told(tmp_path / "results", capsys)
    assert counts(said, "organisms") == ["0/1", "1", "-"]
    assert "organism m 1 (attempt 2): on" in said
    say(handler, event=LogEvent.JOB_FINISHED, job_id=1)
    assert counts(told(tmp_path / "results", capsys), "organisms") == ["1/1", "-", "-"]


def test_a_torn_line_loses_itself_only(handler: LogHandler, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A process that was killed while it wrote leaves half a line, and the next run appends to it."""
    say(handler, event=LogEvent.RUN_INFO, stats={"organism": 2, "total": 2})
    start(handler, 1)
    journal = tmp_path / "results" / status.JOURNAL
    with journal.open("a") as file:
        file.write('{"event": "finis')
    assert counts(told(tmp_path / "results", capsys), "organisms") == ["0/2", "1", "-"]
    start(handler, 2)
    assert counts(told(tmp_path / "results", capsys), "organisms") == ["0/2", "2", "-"]


def test_a_dry_run_and_a_full_disk_leave_no_journal_and_do_no_harm(
    handler: LogHandler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dry = LogHandler(SimpleNamespace(dryrun=True), None)  # type: ignore[arg-type]
    start(dry, 1)
    assert not (tmp_path / "results").exists()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    say(handler, event=LogEvent.RUN_INFO, stats={"organism": 2, "total": 2})
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", full)
        start(handler, 1)
    start(handler, 2)
    assert counts(told(tmp_path / "results", capsys), "organisms") == ["0/2", "2", "-"], "nothing was lost"


def test_another_machine_cannot_tell_whether_a_run_is_on(
    handler: LogHandler, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    say(handler, event=LogEvent.RUN_INFO, stats={"organism": 2, "total": 2})
    start(handler, 1)
    journal = tmp_path / "results" / status.JOURNAL
    events = [json.loads(line) for line in journal.read_text().splitlines()]
    events[0]["host"] = "login2"
    journal.write_text("".join(json.dumps(event) + "\n" for event in events))
    said = told(tmp_path / "results", capsys)
    assert "only login2 can tell whether it is on" in said
    assert counts(said, "organisms") == ["0/2", "1", "-"]


def test_time_left_is_that_of_each_rule_shared_among_the_jobs_at_once() -> None:
    """Two of four organisms of an hour each, two at once; a rule that never ran."""
    jobs = {n: status.Job("organism", str(n), [], 0.0, "finished", 3600.0) for n in (1, 2)}
    run = status.Run("elsewhere", 1, 0.0, 0.0, {}, 3600.0, True, jobs)
    organisms = {"organism": status.Count(4, 2)}
    assert status.seconds_left(organisms, [run], 9e9) == pytest.approx(3600)
    both = {**organisms, "table": status.Count(2, 0)}
    assert status.seconds_left(both, [run], 9e9) == pytest.approx(7200), "a rule without times takes the mean"


def test_a_root_without_a_journal_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"run\.jsonl: no journal; name the study's root") as error:
        status.main(["--root", str(tmp_path)])
    assert "\n" not in str(error.value)


def test_a_study_that_never_ran_is_counted_by_what_is_to_do(workdir: Callable[..., Path]) -> None:
    said = command(workdir(), sys.executable, "-m", "perfmis", "status", "--config", "config/demo.yaml")
    assert said.returncode == 0, said.stderr
    assert "no run has begun" in said.stdout
    assert counts(said.stdout, "organisms") == ["0/5", "-", "-"]
    done, total = counts(said.stdout, "total")[0].split("/")
    assert (done, int(total) > 100) == ("0", True)


def test_a_pass_after_failures_belongs_to_the_run_that_failed() -> None:
    """Its jobs are numbered anew; what failed before stays on view."""
    run: dict[str, Any] = {"event": "run", "host": "login2", "pid": 7, "born": 1.0}
    first: dict[str, Any] = {"run": "a", "time": 1.0}
    second: dict[str, Any] = {"run": "b", "time": 2.0}
    started: dict[str, Any] = {"event": "started", "job": 1, "wildcards": {}, "log": []}
    (found,) = status.runs(
        [
            run | first | {"rules": {"beliefs": 2, "table_gaps": 1}},
            first | started | {"rule": "beliefs"},
            first | {"event": "failed", "job": 1},
            run | second | {"rules": {"table_gaps": 1, "story": 1}, "follows": True},
            second | started | {"rule": "table_gaps"},
            second | {"event": "finished", "job": 1},
            second | {"event": "ended"},
            first | {"event": "ended"},
        ]
    )
    assert found.rules == {"beliefs": 2, "table_gaps": 1, "story": 1}
    assert [(job.rule, job.state) for job in found.jobs.values()] == [("beliefs", "failed"), ("table_gaps", "finished")]
    assert found.ended
