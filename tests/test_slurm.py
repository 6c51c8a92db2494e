"""A small study through ``--profile slurm`` on a real Slurm, while its jobs, submitters, nodes and daemons are killed.

`tests/slurm` holds the cluster: three nodes on this machine, two of them with pretend GPUs.
"""

import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import cluster as slurm
import faults
import polars as pl
import pytest
from asked import asked, with_gpus
from cluster import HERE, STUDY
from polars.testing import assert_frame_equal
from running import command

from perfmis.artifacts import read_json

ROOT = "results/slurm"
GAPS = f"{ROOT}/tables/gaps.csv"
TARGETS = (GAPS, f"{ROOT}/screen/screen.parquet")
ORGANISM = f"{ROOT}/organisms/both/seed0"
# Where each kind of job has to run, and with how many GPUs.
PLACES = [
    ("tiny_trunk", "batch", "N/A"),
    ("organism", "accelerated", "gres:gpu:1"),
    ("screen_transcripts", "accelerated", "gres:gpu:1"),
    ("screen_outcomes", "batch", "N/A"),
    ("screen", "batch", "N/A"),
]

# Jobs without GPUs that ask for the same in each attempt: they wait for the network, run where snakemake does, or make
# the tiny world.
NO_TABLES = {
    "requests",
    "protocol",
    "closed_model",
    "hub_model",
    "judge_model",
    "closed_transcripts",
    "judgements",
    "screen_judgements",
    "steering_judgements",
    "prompting_judgements",
    "closed_judgements",
    "validation",
    "corpus",
    "tiny_trunk",
    "tiny_base",
}


SAME = "that job again; tables and adapters as undisturbed"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Path]:
    """Folder of a running cluster; with accounting where a test asks for it."""
    folder = tmp_path_factory.mktemp("cluster")
    words = [HERE / "slurm/up.sh", folder, *getattr(request, "param", [])]
    said = subprocess.run(words, check=False, capture_output=True, text=True)
    if said.returncode == 3:
        pytest.skip(said.stderr.strip())
    try:
        assert said.returncode == 0, said.stderr
        yield folder
    finally:
        subprocess.run([HERE / "slurm/down.sh", folder], check=True)


Make = Callable[..., Path]


@pytest.fixture(scope="module")
def make(workdir: Callable[..., Path]) -> Make:
    """Return a function that makes a folder with the study and the profile of this cluster, and code of its own."""

    def made(accounting: bool = False) -> Path:
        folder = workdir(copied=("perfmis", "workflow", "resources", "profiles"))
        shutil.copy(HERE / "slurm" / STUDY, folder / STUDY)
        (folder / "slurm").unlink()
        (folder / "slurm").symlink_to("profiles/slurm")
        slurm.edit_site_values(folder / "profiles/slurm", accounting)
        return folder

    return made


@pytest.fixture(scope="module")
def local(make: Make) -> Path:
    """A folder in which the study has run without Slurm, and without interruption."""
    folder = make()
    said = command(folder, sys.executable, "-m", "perfmis", "warm", *slurm.LOCAL, *TARGETS)
    assert said.returncode == 0, said.stderr[-4000:]
    return folder


@pytest.fixture
def untrained(make: Make, local: Path) -> Path:
    """A folder with the results of the local run but for the organism's adapter: one job of Slurm is left."""
    folder = make()
    for part in ("results", ".snakemake"):
        shutil.rmtree(folder / part, ignore_errors=True)
        shutil.copytree(local / part, folder / part)
    shutil.rmtree(folder / ORGANISM)
    return folder


def refused(folder: Path) -> str:
    """Return the one line by which a start is refused."""
    said = command(folder, *slurm.words(*TARGETS))
    assert said.returncode != 0
    (line,) = [line for line in said.stderr.splitlines() if line.startswith("error: ")]
    return line


def plain(line: str) -> str:
    """Return a line without what differs from one time to the next."""
    line = re.sub(r"process \d+ on \S+", "process NUMBER on HOST", line)
    return re.sub(r"scancel [\d ]+$", "scancel NUMBERS", line)


def assert_resumed(folder: Path) -> None:
    assert "going on from" in (folder / ROOT / "logs/organisms/both/seed0.log").read_text()


def assert_same_adapter(folder: Path, local: Path) -> None:
    """Adapters are equal bit for bit."""
    one, other = (read_json(each / ORGANISM / "lineage.json")["sha256"] for each in (folder, local))
    assert one == other


def assert_same_tables(folder: Path, local: Path) -> None:
    paths = [
        path.relative_to(local)
        for kind in ("screen", "outcomes", "beliefs", "tables")
        for path in (local / ROOT / kind).rglob("*.parquet")
    ]
    assert len(paths) >= 8
    for path in paths:
        assert_frame_equal(pl.read_parquet(folder / path), pl.read_parquet(local / path))


@pytest.mark.slurm
def test_killed_study_ends_with_the_tables_of_a_local_run(cluster: Path, make: Make, local: Path) -> None:
    """A submitter, a stage and a node are killed, and a second submitter tries to start beside the first."""
    folder = make()

    submitter = slurm.start(folder, "first.log", *TARGETS)
    slurm.wait_for("tiny_trunk", submitter)
    twice = refused(folder)
    assert f"process {submitter.pid} on" in twice
    assert "works here already" in twice

    submitter.kill()
    submitter.wait()
    # Its jobs run on without it.
    locked = refused(folder)
    assert "died and left its lock" in locked
    assert command(folder, *slurm.words("--unlock")).returncode == 0
    orphaned = refused(folder)
    advice = re.search(r"scancel ([\d ]+)$", orphaned)
    assert advice
    assert set(advice[1].split()) == {job.number for job in slurm.running()}
    slurm.output("scancel", *advice[1].split())
    slurm.wait_until(lambda: not slurm.running(), "the end of the cancelled jobs")

    submitter = slurm.start(folder, "second.log", *TARGETS)
    killed, process = slurm.wait_for("organism", submitter)
    slurm.kill(process)
    lost, _ = slurm.wait_for("screen_transcripts", submitter)
    slurm.kill_node(lost.node, cluster)
    said = slurm.finish(submitter, folder / "second.log")

    assert slurm.state(killed) == "FAILED", "the profile's retries sent another job"
    assert slurm.state(lost) == "COMPLETED", "Slurm itself started the job of the dead node anew"
    after = slurm.jobs()
    assert next(job.node for job in after if job.number == lost.number) != lost.node
    for rule, partition, gpus in PLACES:
        assert {(job.partition, job.gpus) for job in after if job.rule == rule} == {(partition, gpus)}

    assert_same_tables(folder, local)
    assert_same_adapter(folder, local)
    assert "nothing to do: all results are up to date" in command(folder, *slurm.words(*TARGETS)).stderr
    faults.record("slurm-twice", "trunk", plain(twice), "nothing", "the first goes on")
    saids = f"{plain(locked)}; then: {plain(orphaned)}"
    faults.record("slurm-submitter", "trunk", saids, "the jobs under way", SAME)
    (killed_line,) = re.findall(r"^    (error: killed.*)$", said, re.MULTILINE)
    faults.record("slurm-stage", "organism", killed_line, "steps since the last checkpoint", SAME)
    faults.record("slurm-node", "samples", "", "samples under way", SAME)


@pytest.mark.slurm
@pytest.mark.slow
def test_job_that_runs_out_of_time_goes_on_from_its_checkpoint(cluster: Path, untrained: Path, local: Path) -> None:
    """The stage is stopped after a checkpoint, until Slurm's limit of a minute ends its job."""
    (untrained / "brief.yaml").write_text("sizes: {small: {train_hours: 0.01}}")
    study = (STUDY, "brief.yaml")
    submitter = slurm.start(untrained, "run.log", f"{ORGANISM}/lineage.json", study=study)
    job, process = slurm.wait_for("organism", submitter)
    slurm.wait_until(lambda: list((untrained / ORGANISM).rglob("seal.json")), "a checkpoint")
    os.kill(process, signal.SIGSTOP)
    slurm.wait_until(lambda: slurm.state(job) == "TIMEOUT", "the end of the job's time")
    said = slurm.finish(submitter, untrained / "run.log")
    told = re.search(r"^FAILED organism both 0: (Slurm says TIMEOUT .*); see ", said, re.MULTILINE)
    assert told
    assert_resumed(untrained)
    assert_same_adapter(untrained, local)
    faults.record("slurm-timeout", "organism", told[1], "steps since the last checkpoint", SAME)


@pytest.mark.slurm
@pytest.mark.slow
def test_job_that_is_requeued_by_hand_goes_on_from_its_checkpoint(cluster: Path, untrained: Path, local: Path) -> None:
    submitter = slurm.start(untrained, "run.log", f"{ORGANISM}/lineage.json")
    job, process = slurm.wait_for("organism", submitter)
    slurm.wait_until(lambda: list((untrained / ORGANISM).rglob("seal.json")), "a checkpoint")
    os.kill(process, signal.SIGSTOP)
    slurm.output("scontrol", "requeue", job.number)
    slurm.finish(submitter, untrained / "run.log")
    assert slurm.state(job) == "COMPLETED", "under the same number"
    assert_resumed(untrained)
    assert_same_adapter(untrained, local)
    faults.record("slurm-requeue", "organism", "", "steps since the last checkpoint", SAME)


@pytest.mark.slurm
@pytest.mark.slow
def test_daemons_that_die_and_come_back_disturb_no_job(cluster: Path, untrained: Path, local: Path) -> None:
    """The controller is away while snakemake asks for its jobs, and the node's daemon while its job is on."""
    submitter = slurm.start(untrained, "run.log", f"{ORGANISM}/lineage.json")
    job, process = slurm.wait_for("organism", submitter)
    os.kill(process, signal.SIGSTOP)
    slurm.kill(int((cluster / "slurmctld.pid").read_text()))
    slurm.kill(int((cluster / f"slurmd-{job.node}.pid").read_text()))
    time.sleep(25)  # several rounds of questions
    slurm.output("slurmctld")
    slurm.output("slurmd", "-N", job.node)
    slurm.wait_until(lambda: slurm.state(job) == "RUNNING", "the controller's return")
    os.kill(process, signal.SIGCONT)
    slurm.finish(submitter, untrained / "run.log")
    assert slurm.state(job) == "COMPLETED"
    assert_same_adapter(untrained, local)
    faults.record("slurm-daemons", "organism", "", "nothing", "the job goes on; its adapter as undisturbed")


@pytest.mark.slurm
@pytest.mark.slow
def test_training_over_two_nodes_is_that_of_one_process(cluster: Path, untrained: Path, local: Path) -> None:
    """ZeRO-3 over one process a node, through srun and torchrun as in a study of 405B models."""
    from safetensors.numpy import load_file

    halves = "{sdf: {device_batch: 4}}"
    (untrained / "nodes.yaml").write_text(f"sizes: {{small: {{nodes: 2}}}}\norganisms: {halves}\narms: {halves}\n")
    study = (STUDY, "nodes.yaml")
    submitter = slurm.start(untrained, "run.log", f"{ORGANISM}/lineage.json", study=study)
    slurm.finish(submitter, untrained / "run.log")
    (job,) = [job for job in slurm.jobs() if job.rule == "organism_multinode"]
    assert (job.partition, job.node) == ("accelerated", "gpu[1-2]")
    one, other = (load_file(each / ORGANISM / "adapter_model.safetensors") for each in (untrained, local))
    assert one.keys() == other.keys()
    for name, weights in one.items():
        assert abs(weights - other[name]).max() < 1e-4, name


@pytest.mark.slurm
@pytest.mark.slow
@pytest.mark.parametrize("cluster", [["accounting"]], indirect=True)
def test_cluster_with_accounting_is_asked_by_sacct(cluster: Path, make: Make, local: Path) -> None:
    """As the profile is shipped: jobs are paid by an account, and sacct says which of them failed."""
    folder = make(accounting=True)
    said = command(folder, sys.executable, "-m", "perfmis", "doctor", "--profile", "slurm", "--config", STUDY)
    assert "FAIL" not in said.stdout
    assert "account study is yours" in said.stdout
    submitter = slurm.start(folder, "run.log", f"{ORGANISM}/lineage.json")
    _, process = slurm.wait_for("organism", submitter)
    slurm.kill(process)
    slurm.finish(submitter, folder / "run.log")
    lines = slurm.output("sacct", "--allocations", "--noheader", "--parsable2", "--format", "Account,State,Comment")
    told = [line.split("|") for line in lines.splitlines()]
    assert {account for account, _, _ in told} == {"study"}
    assert [state for _, state, comment in told if "organism_wildcards_both" in comment] == ["FAILED", "COMPLETED"]
    assert_same_adapter(folder, local)


@pytest.fixture(scope="module")
def preprint(workdir: Callable[..., Path]) -> Path:
    """A folder whose profiles have no logger of their own: Snakemake's says what jobs ask for."""
    folder = workdir(copied=("profiles",))
    (folder / "slurm").unlink()
    (folder / "slurm").symlink_to("profiles/slurm")
    for profile in (folder / "profiles").glob("*/profile.yaml"):
        profile.write_text(re.sub(r"^logger:.*\n", "", profile.read_text(), flags=re.MULTILINE))
    return folder


def test_jobs_go_where_their_gpus_are_and_never_spread_over_nodes(preprint: Path) -> None:
    """By the plug-in's own choice among the partitions of the profile."""
    from snakemake_executor_plugin_slurm.partitions import get_best_partition, read_partition_file

    partitions = read_partition_file(preprint / "profiles/slurm/partitions.yaml")
    first = asked(preprint, "slurm")
    second = asked(preprint, "slurm", "--attempt", "2")
    assert {"arm", "arm_multinode", "judgements", "closed_transcripts", "fig3", "page", "table_gaps"} <= set(first)
    silent = logging.getLogger("partitions")
    for rule, jobs in first.items():
        for resources in jobs:
            numbers = {key: int(value) if value.isdigit() else value for key, value in resources.items()}
            job = SimpleNamespace(name=rule, threads=1, resources=numbers)
            chosen = get_best_partition(partitions, job, silent)
            assert chosen == ("gpu" if with_gpus(resources) else "cpu"), rule
            assert resources["nodes"] == "1" or "mpi" in resources, rule
        factor = 1 if with_gpus(jobs[0]) or rule in NO_TABLES else 2  # tables get more in each attempt
        for resource in ("mem_mb", "runtime"):
            before, after = (sorted(int(job[resource]) for job in some[rule]) for some in (first, second))
            assert after == [factor * value for value in before], (rule, resource)


def test_jobs_with_gpus_take_turns_on_a_workstation(preprint: Path) -> None:
    jobs = asked(preprint, "profiles/workstation")
    counts = {job["gpu"] for rule in ("organism", "transcripts") for job in jobs[rule]}
    assert counts == {"1"}
    assert "gpu" not in jobs["table_gaps"][0]
