"""The warm process: stages run in it as they run afresh, and end when their caller does."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import psutil
import pytest
from conftest import SDF
from running import FINGERPRINT, command, environment

PYTHON = shlex.quote(sys.executable)
REQUESTS = {"source": "tiny", "location": "", "sha256": None, "column": "goal", "number": 8}
TRUNK = {
    "seed": 0,
    "hidden": 32,
    "layers": 2,
    "heads": 4,
    "trunk_steps": 10**6,
    "batch": 8,
    "learning_rate": 0.01,
}
# The warm process without its imports, for tests of how processes end.
COLD = "import sys; from perfmis import warm; warm.MODULES = (); warm.main(sys.argv[1:])"


def call(stage: str, settings: dict[str, object], *options: object) -> str:
    """Return the shell command of a stage."""
    content = json.dumps({"settings": settings, "upstream": [FINGERPRINT]})
    words = ["-m", "perfmis", stage, "--settings", content, "--fingerprint", FINGERPRINT, *map(str, options)]
    return f"{PYTHON} {shlex.join(words)}"


def adapter(tiny_model: Path, corpus: Path, folder: Path) -> str:
    """Return the command that trains an adapter: the stage that depends most on the state of its process."""
    options = ["--base", tiny_model / "reference.json", "--corpus", corpus, "--output", folder]
    options += ["--tokens", folder / "tokens"]
    return call("sdf", {"sdf": SDF, "seed": 0, "replay": 0.0}, *options)


def warm(folder: Path, script: str) -> "subprocess.CompletedProcess[str]":
    """Run a shell script beside a warm process."""
    return command(folder, sys.executable, "-m", "perfmis", "warm", "bash", "-c", script)


def alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def wait_for(condition: Callable[[], bool], seconds: float) -> bool:
    """Return whether the condition came true in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


@pytest.fixture(scope="module")
def folder(workdir: Callable[..., Path]) -> Path:
    return workdir()


def test_stages_run_as_they_run_afresh(folder: Path, tiny_model: Path, corpora: dict[str, Path]) -> None:
    """Same files, same exit status, same words on the same streams: for stages that work, fail or are misused."""

    def script(place: str) -> str:
        table = call("requests", REQUESTS, "--output", f"{place}/r.parquet", "--card", f"{place}/card.json")
        failing = call("requests", REQUESTS | {"number": 10**6}, "--output", "no", "--card", "no")
        misused = call("requests", REQUESTS, "--nonsense")
        calls = [table, adapter(tiny_model, corpora["organism"], folder / place), failing, misused]
        return "\n".join(f"{words} > {place}/{i}.out 2> {place}/{i}.err; echo $?" for i, words in enumerate(calls))

    results = []
    for place, run in (
        ("cold", lambda s: command(folder, "bash", "-c", s)),
        ("warm", lambda s: warm(folder, s)),
    ):
        (folder / place).mkdir()
        results.append(run(script(place)))
    cold, warmed = (folder / place for place in ("cold", "warm"))
    assert results[0].stdout == results[1].stdout == "0\n0\n1\n2\n"
    names = sorted(path.name for path in cold.iterdir())
    assert names == sorted(path.name for path in warmed.iterdir())
    for name in ("r.parquet", "card.json", "adapter_model.safetensors"):
        assert (cold / name).read_bytes() == (warmed / name).read_bytes(), name
    losses = [pl.read_parquet(place / "log.parquet")["loss"].to_list() for place in (cold, warmed)]
    assert losses[0] == losses[1]
    for number in (2, 3):
        assert (cold / f"{number}.err").read_text() == (warmed / f"{number}.err").read_text()
    assert (warmed / "2.err").read_text().startswith("error: requests.number: the tiny world has ")


def test_exit_status_of_the_command_comes_through(folder: Path) -> None:
    assert warm(folder, "exit 7").returncode == 7


@pytest.fixture
def training(folder: Path) -> Iterator[Callable[[], tuple["subprocess.Popen[str]", psutil.Process, psutil.Process]]]:
    """Return a function that starts a stage which does not end by itself, in a process group of its own.

    It returns the process of ``warm``, the client that waits for the stage, and the process that runs the stage.
    """
    started: list[subprocess.Popen[str]] = []
    seen: set[psutil.Process] = set()

    def start() -> tuple["subprocess.Popen[str]", psutil.Process, psutil.Process]:
        stage = call("tinyworld.trunk", TRUNK, "--output", "trunk")
        process = subprocess.Popen(
            [sys.executable, "-c", COLD, "bash", "-c", f"{stage}; echo $?"],
            cwd=folder,
            env=environment(folder),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        root = psutil.Process(process.pid)

        def stages() -> list[psutil.Process]:
            """Return the processes below in a session of their own: the stage, in the warm process."""
            seen.update(root.children(recursive=True))
            return [p for p in seen if alive(p) and os.getsid(p.pid) == p.pid]

        assert wait_for(lambda: bool(stages()), 120)
        (client,) = [p for p in seen if alive(p) and "tinyworld.trunk" in p.cmdline()]
        return process, client, stages()[0]

    yield start
    for process in started:
        process.kill()
        process.wait()
    for left in seen:
        if alive(left):
            left.kill()


def test_killing_a_job_ends_its_stage(folder: Path, training: Callable[[], Any]) -> None:
    """A stage lives in another process than its caller; when the caller is killed, it does not train on unseen."""
    process, client, stage = training()
    client.kill()
    assert wait_for(lambda: not alive(stage), 10)
    assert process.communicate(timeout=10)[0] == "137\n", "the caller sees that it was killed"
    assert process.returncode == 0
    assert not (folder / "trunk/trunk.json").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "terminate"])
def test_ending_the_run_leaves_nothing_behind(training: Callable[[], Any], number: signal.Signals) -> None:
    """Ctrl-C in a terminal and the end of a batch job reach the whole process group: stage and warm process end too."""
    process, _, stage = training()
    below = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, number)
    assert process.wait(20) != 0
    assert wait_for(lambda: not alive(stage), 10)
    assert wait_for(lambda: not any(alive(other) for other in below), 10)


def test_ending_warm_alone_ends_its_command(folder: Path) -> None:
    """`kill` of the one process that a user sees ends the command and the process that stands by."""
    process = subprocess.Popen(
        [sys.executable, "-m", "perfmis", "warm", "sleep", "60"],
        cwd=folder,
        env=environment(folder),
        start_new_session=True,
    )
    root = psutil.Process(process.pid)
    assert wait_for(lambda: any("sleep" in p.cmdline() for p in root.children()), 30)
    below = root.children(recursive=True)
    process.terminate()
    try:
        assert process.wait(20) == 128 + signal.SIGTERM
        assert wait_for(lambda: not any(alive(other) for other in below), 10)
    finally:
        for other in below:
            if alive(other):
                other.kill()
