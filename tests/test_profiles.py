"""The profile for Kubernetes: what pods ask for, and a run through it on a pretended cluster.

A ``kubectl`` of our own stands in for the cluster: it starts what a job's container would run, and tells what became of
it. Tests of whole runs need the executor plug-in, ``pip install 'perfmis[kubernetes]'``.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from asked import asked, with_gpus
from running import environment

PLUGIN = "snakemake_executor_plugin_cluster_generic"
PROFILE = "profiles/kubernetes"
KUBECTL = """#!{python}
import json, os, signal, subprocess, sys
from pathlib import Path

state, (verb, *words) = Path({state!r}), sys.argv[1:]
names = [word.removeprefix("job.batch/") for word in words if not word.startswith("-")]
if verb == "create":
    job = json.load(sys.stdin)
    name = job["metadata"]["generateName"] + str(len(list(state.glob("*.json"))))
    (state / (name + ".json")).write_text(json.dumps(job))
    command = job["spec"]["template"]["spec"]["containers"][0]["command"]
    run = 'if "$@"; then echo Complete; else echo Failed; fi > $0'
    words = ["sh", "-c", run, state / (name + ".ended"), *command]
    silent = dict.fromkeys(("stdout", "stderr"), subprocess.DEVNULL)
    process = subprocess.Popen(words, start_new_session=True, **silent)
    (state / (name + ".pid")).write_text(str(process.pid))
    print("job.batch/" + name)
elif verb == "get":
    (state / (names[0] + ".asked")).touch()
    ended = state / (names[0] + ".ended")
    print(names[0], ended.read_text().strip() if ended.exists() else "")
elif verb == "delete":
    for name in names:
        os.killpg(int((state / (name + ".pid")).read_text()), signal.SIGKILL)
"""
WORKFLOW = """
rule all:
    input: "second"
rule first:
    output: "first"
    resources: gpu=2, mem_mb=1000
    shell: "if [ -e tried ]; then touch {output}; else touch tried; exit 1; fi"
rule second:
    input: "first"
    output: "second"
    shell: "sleep 60; touch {output}"
"""


@pytest.fixture
def folder(tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the profile, and the pretended cluster's ``kubectl`` on the path."""
    shutil.copytree(repository / PROFILE, tmp_path / PROFILE)
    (tmp_path / "workflow").symlink_to(repository / "workflow")  # the profile's stylesheet
    (tmp_path / "state").mkdir()
    program = tmp_path / "bin/kubectl"
    program.parent.mkdir()
    program.write_text(KUBECTL.format(python=sys.executable, state=str(tmp_path / "state")))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return tmp_path


def submit(folder: Path, **options: object) -> "subprocess.CompletedProcess[str]":
    """Call the profile's submit command for a script that does nothing."""
    (folder / "script.sh").write_text("true\n")
    given = {"rule": "organism_x", "nodes": 1, "gpus": 0, "cpus": 4, "memory_mb": 8000, "disk_mb": 100, "minutes": 90}
    words = [str(word) for key, value in (given | options).items() for word in (f"--{key.replace('_', '-')}", value)]
    command = [sys.executable, f"{PROFILE}/submit.py", *words, "script.sh"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def pods(folder: Path) -> dict[str, Any]:
    """Return the pods that the cluster was asked for, by the name of their jobs."""
    made = {path.stem: json.loads(path.read_text()) for path in (folder / "state").glob("*.json")}
    return {name: job["spec"]["template"]["spec"] for name, job in made.items()}


def test_a_pod_gets_what_the_job_asks_for(folder: Path) -> None:
    said = submit(folder, gpus=8)
    assert said.stdout.strip() == "job.batch/perfmis-organism-x-0", said.stderr
    pod = pods(folder)["perfmis-organism-x-0"]
    (container,) = pod["containers"]
    whole = {"memory": "8000M", "ephemeral-storage": "100M", "nvidia.com/gpu": "8"}
    assert container["resources"] == {"limits": whole, "requests": {**whole, "cpu": "4"}}
    assert container["command"] == ["/bin/sh", "script.sh"]
    assert pod["activeDeadlineSeconds"] == 90 * 60
    mounts = {mount["name"] for mount in container["volumeMounts"]}
    assert {volume["name"] for volume in pod["volumes"]} == mounts
    assert submit(folder).returncode == 0
    assert "nvidia.com/gpu" not in str(pods(folder)["perfmis-organism-x-1"]["containers"]), (
        "no pod of a table waits for one"
    )


def test_training_over_several_nodes_is_refused(folder: Path) -> None:
    said = submit(folder, nodes=2)
    assert said.returncode != 0
    assert "needs Slurm" in said.stderr
    assert pods(folder) == {}


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        ("echo name", "running"),
        ("echo name SuccessCriteriaMet", "running"),
        ("echo name SuccessCriteriaMet Complete", "success"),
        ("echo name FailureTarget Failed", "failed"),
        ("true", "failed"),  # somebody deleted it
        ("exit 1", "running"),  # the controller is away
        ("echo 'Error from server (Forbidden): jobs.batch is forbidden' >&2; exit 1", "failed"),
    ],
)
def test_what_became_of_a_job(folder: Path, answer: str, status: str) -> None:
    (folder / "bin/kubectl").write_text(f"#!/bin/sh\n{answer}\n")
    said = subprocess.run(
        [folder / PROFILE / "status.sh", "job.batch/name"], capture_output=True, text=True, check=True
    )
    assert said.stdout.strip() == status


def test_at_most_five_values_are_a_sites(repository: Path) -> None:
    lines = [line for path in (repository / PROFILE).iterdir() for line in path.read_text().splitlines()]
    marked = [line for line in lines if "site:" in line and not line.startswith("#")]
    assert len(marked) == 5


def test_jobs_ask_for_gpus_memory_and_disk(workdir: Callable[..., Path]) -> None:
    pytest.importorskip(PLUGIN)
    folder = workdir(copied=("profiles",))
    profile = folder / PROFILE / "profile.yaml"
    profile.write_text(re.sub(r"^logger:.*\n", "", profile.read_text(), flags=re.MULTILINE))
    jobs = asked(folder, PROFILE, "--attempt", "2")
    several = {"arm_multinode", "organism_multinode"}
    assert several < set(jobs)
    for rule, made in jobs.items():
        for resources in made:
            assert (int(resources["nodes"]) > 1) == (rule in several), rule
            assert {"gpu", "mem_mb", "disk_mb", "runtime"} <= set(resources), rule
    assert {job["gpu"] for rule in ("organism", "transcripts") for job in jobs[rule]} == {"4", "8"}
    assert not with_gpus(jobs["table_gaps"][0])
    assert jobs["table_gaps"][0]["mem_mb"] == "32000", "tables get more in each attempt"


@pytest.mark.slow
def test_a_failed_job_is_sent_again_and_a_stopped_run_deletes_its_jobs(folder: Path, repository: Path) -> None:
    pytest.importorskip(PLUGIN)
    (folder / "Snakefile").write_text(WORKFLOW)
    for package in ("perfmis", "snakemake_logger_plugin_perfmis"):
        (folder / package).symlink_to(repository / package)
    words = [sys.executable, "-m", "snakemake", "--profile", PROFILE, "--seconds-between-status-checks", "1"]
    run = subprocess.Popen(words, cwd=folder, env=environment(folder), stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 120
    while not (folder / "state/perfmis-second-2.asked").exists() and run.poll() is None and time.monotonic() < until:
        time.sleep(0.1)
    run.send_signal(signal.SIGINT)
    _, said = run.communicate(timeout=60)
    gpus = {
        name: pod["containers"][0]["resources"]["limits"].get("nvidia.com/gpu") for name, pod in pods(folder).items()
    }
    assert gpus == {"perfmis-first-0": "2", "perfmis-first-1": "2", "perfmis-second-2": None}, said
    last = int((folder / "state/perfmis-second-2.pid").read_text())
    until = time.monotonic() + 30  # snakemake asks for the deletion, and does not wait for it
    while psutil.pid_exists(last) and psutil.Process(last).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < until
        time.sleep(0.1)
