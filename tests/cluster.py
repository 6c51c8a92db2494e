"""The cluster of tests/slurm as tests see it: its jobs, their processes, and how they are killed."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from running import environment

HERE = Path(__file__).resolve().parent
STUDY = "study.yaml"
PATIENCE = 300  # seconds in which a job must have started; a bound for hung tests, not a claim
# What a user would choose too, were jobs as short as these: ask early, wait little, and leave a small machine alone.
BRIEF = ("--jobs", "2", "--slurm-init-seconds-before-status-checks", "1", "--latency-wait", "5")
LOCAL = (sys.executable, "-m", "snakemake", "--profile", "demo", "--configfile", STUDY, "--cores", "2", "--")
# config/README.md's five values, for the cluster of tests/slurm: without accounting, and with it.
PARTITIONS = {"  cpu": "  batch:", "  gpu": "  accelerated:", "    max_gpu: 8": "    max_gpu: 8"}
NO_ACCOUNTS = {"slurm-status-command": "slurm-status-command: squeue", "  slurm_account": "  # no accounts here"}
ACCOUNTING = {"slurm-status-command": "slurm-status-command: sacct", "  slurm_account": "  slurm_account: study"}


def edit_site_values(profile: Path, accounting: bool = False) -> None:
    """Edit the lines that are marked ``site:``, as a site does, and find no other such line."""
    of_profile = ACCOUNTING if accounting else NO_ACCOUNTS
    for name, values in {"profile.yaml": of_profile, "partitions.yaml": PARTITIONS}.items():
        lines = (profile / name).read_text().splitlines()
        marked = [number for number, line in enumerate(lines) if "site:" in line and not line.startswith("#")]
        assert len(marked) == len(values)
        for number in marked:
            (new,) = [value for key, value in values.items() if lines[number].startswith(key)]
            lines[number] = new
        (profile / name).write_text("\n".join(lines) + "\n")


def output(*words: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


class Job(NamedTuple):
    """What Slurm remembers of a job."""

    number: str
    rule: str
    state: str
    partition: str
    gpus: str
    node: str


def jobs() -> list[Job]:
    columns = ",".join(f"{name}:|" for name in ("JobID", "Comment", "State", "Partition", "tres-per-job", "NodeList"))
    found = []
    for line in output("squeue", "--states", "all", "--noheader", "--Format", columns).splitlines():
        number, comment, *rest = line.split("|")[:6]
        found.append(Job(number, re.sub(r"^rule_|_wildcards_.*", "", comment), *rest))
    return found


def processes(job: Job) -> dict[int, list[bytes]]:
    """Return the command line of each process that a job has on this machine, beside Slurm's own."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            variables = (folder / "environ").read_bytes().split(b"\0")
        except OSError:  # it has ended meanwhile
            continue
        if f"SLURM_JOB_ID={job.number}".encode() in variables:
            found[int(folder.name)] = words
    return found


def stage_of(job: Job) -> int | None:
    """Return the process of a job's stage, once it runs."""
    stages = (process for process, words in processes(job).items() if words[1:3] == [b"-m", b"perfmis"])
    return next(stages, None)


def wait_for(rule: str, submitter: "subprocess.Popen[bytes]") -> tuple[Job, int]:
    """Wait until a stage of a rule runs, and return its job and process."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until and submitter.poll() is None:
        for job in jobs():
            if job.rule == rule and job.state == "RUNNING" and (process := stage_of(job)):
                return job, process
        time.sleep(0.1)
    raise AssertionError(f"no job of {rule} ran: {jobs()}")


def kill(process: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)


def kill_node(node: str, cluster: Path) -> None:
    """Kill a node's daemon and all that it started, as a power cut does."""
    kill(int((cluster / f"slurmd-{node}.pid").read_text()))
    for job in [job for job in jobs() if job.state == "RUNNING" and job.node == node]:
        for line in output("ps", "-eo", "pid=,args=").splitlines():
            number, arguments = line.split(maxsplit=1)
            if arguments.startswith(f"slurmstepd: [{job.number}."):
                kill(int(number))
        for process in processes(job):
            kill(process)


def words(*options: str, study: tuple[str, ...] = (STUDY,)) -> tuple[str, ...]:
    """Return the command line that runs a study on Slurm."""
    return (sys.executable, "-m", "snakemake", *options, "--profile", "slurm", "--configfile", *study, *BRIEF)


def start(folder: Path, name: str, *options: str, study: tuple[str, ...] = (STUDY,)) -> "subprocess.Popen[bytes]":
    """Start a study on Slurm; what it says goes to a file."""
    with (folder / name).open("wb") as log:
        return subprocess.Popen(
            words(*options, study=study), cwd=folder, env=environment(folder), stdout=log, stderr=subprocess.STDOUT
        )


def finish(submitter: "subprocess.Popen[bytes]", log: Path) -> str:
    """Wait for the end of a run that must succeed, and return what it said."""
    code = submitter.wait(timeout=900)
    said = log.read_text()
    assert code == 0, said[-4000:]
    return said


def wait_until(true: Callable[[], object], what: str, seconds: float = PATIENCE) -> None:
    """Wait until something holds."""
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, f"never saw: {what}"
        time.sleep(0.1)


def running() -> list[Job]:
    """Return the jobs that are not yet over."""
    return [job for job in jobs() if job.state in ("RUNNING", "PENDING", "COMPLETING")]


def state(job: Job) -> str:
    """Return what has become of a job."""
    return next(each.state for each in jobs() if each.number == job.number)
