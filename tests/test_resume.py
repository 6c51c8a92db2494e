"""Training jobs that are killed, damaged or run out of something, and run again."""

import errno
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import sdfstage
import torch
from running import FINGERPRINT

from perfmis import adapters, resume
from perfmis.training import Round

LONG = {"epochs": 4}
EVERY = ("--save-steps", "3")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, corpora: dict[str, Path]) -> Path:
    """Folder of an adapter whose training was never interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "adapter"
    assert sdfstage.train(tiny_model, corpora["organism"], folder, *EVERY, **LONG) == 0
    return folder


def interrupt(monkeypatch: pytest.MonkeyPatch, step: int, failure: Callable[[], BaseException]) -> None:
    """Make training fail in the optimizer step after ``step``."""
    original = Round.training_step

    def training_step(self: Round, *arguments: Any, **options: Any) -> torch.Tensor:
        if self.state.global_step == step:
            raise failure()
        return original(self, *arguments, **options)

    monkeypatch.setattr(Round, "training_step", training_step)


def curve(folder: Path) -> pl.DataFrame:
    """Return what must be the same however often a job was interrupted."""
    return pl.read_parquet(folder / "log.parquet").select("step", "epoch", "loss", "learning_rate", "loss_tokens")


def same(one: Path, two: Path) -> bool:
    """Say whether two adapters and their logs are the same to the bit."""
    equal = (one / adapters.WEIGHTS).read_bytes() == (two / adapters.WEIGHTS).read_bytes()
    return equal and curve(one).equals(curve(two))


@pytest.mark.parametrize("step", [1, 4, 6, 11])
def test_interrupted_training_ends_as_if_it_had_not_been(
    tiny_model: Path, corpora: dict[str, Path], tmp_path: Path, whole: Path, step: int
) -> None:
    """The weights are equal to the bit and each logged loss too, so no document was skipped or seen twice."""
    folder = tmp_path / "adapter"
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, step, lambda: RuntimeError("gone"))
        with pytest.raises(RuntimeError, match="gone"):
            sdfstage.train(tiny_model, corpora["organism"], folder, *EVERY, **LONG)
    assert not (folder / "lineage.json").exists()
    assert sdfstage.train(tiny_model, corpora["organism"], folder, *EVERY, **LONG) == 0
    assert same(folder, whole)
    assert not (folder / "scratch").exists()


def test_killed_process_goes_on_from_its_last_checkpoint(
    tiny_model: Path, corpora: dict[str, Path], tmp_path: Path
) -> None:
    """SIGKILL, at whatever step it falls."""
    changes = {"epochs": 30}
    assert sdfstage.train(tiny_model, corpora["organism"], tmp_path / "whole" / "adapter", *EVERY, **changes) == 0
    folder = tmp_path / "killed" / "adapter"
    words = sdfstage.command(tiny_model, corpora["organism"], folder, *EVERY, **changes)
    process = subprocess.Popen([sys.executable, *words], env=sdfstage.environment())
    try:
        while not list(folder.glob("scratch/*/checkpoint-*/seal.json")):
            assert process.poll() is None, "ended before it could be killed"
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    assert not (folder / "lineage.json").exists()
    said = subprocess.run([sys.executable, *words], env=sdfstage.environment(), capture_output=True, text=True)
    assert said.returncode == 0
    assert "going on from" in said.stderr
    assert same(folder, tmp_path / "whole" / "adapter")


@pytest.mark.parametrize("damage", ["cut", "flipped", "unsealed"])
def test_damaged_newest_checkpoint_falls_back_to_the_one_before(
    tiny_model: Path,
    corpora: dict[str, Path],
    tmp_path: Path,
    whole: Path,
    capsys: pytest.CaptureFixture[str],
    damage: str,
) -> None:
    folder = tmp_path / "adapter"
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, 8, lambda: RuntimeError("gone"))
        with pytest.raises(RuntimeError, match="gone"):
            sdfstage.train(tiny_model, corpora["organism"], folder, *EVERY, **LONG)
    scratch = folder / "scratch" / FINGERPRINT
    assert sorted(path.name for path in scratch.glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-6"]
    file = scratch / "checkpoint-6" / "optimizer.pt"
    content = file.read_bytes()
    if damage == "unsealed":
        (scratch / "checkpoint-6" / resume.SEAL).unlink()
    else:
        middle = len(content) // 2
        file.write_bytes(
            content[:middle]
            if damage == "cut"
            else content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        )
    assert sdfstage.train(tiny_model, corpora["organism"], folder, *EVERY, **LONG) == 0
    said = capsys.readouterr().err
    assert "checkpoint-6 is half written or damaged" in said
    assert f"going on from {scratch / 'checkpoint-3'}" in said
    assert same(folder, whole)


def test_checkpoints_of_other_settings_are_not_used(
    tiny_model: Path, corpora: dict[str, Path], tmp_path: Path, whole: Path
) -> None:
    stale = tmp_path / "adapter" / "scratch" / "0123456789abcdef" / "checkpoint-3"
    stale.mkdir(parents=True)
    (stale / "file").write_text("")
    resume.seal(stale)
    assert sdfstage.train(tiny_model, corpora["organism"], tmp_path / "adapter", *EVERY, **LONG) == 0
    assert same(tmp_path / "adapter", whole)


FAULTS = {
    "memory": (lambda: torch.OutOfMemoryError("CUDA out of memory"), ("out of GPU memory", "checkpointing: true")),
    "disk": (
        lambda: OSError(errno.ENOSPC, "No space left on device"),
        ("cannot be written (No space left on device)", "another root"),
    ),
    "writer": (
        lambda: RuntimeError("I/O error: No space left on device (os error 28)"),
        ("cannot be written (No space left on device)", "another root"),
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_one_line_and_the_last_checkpoint_survives(
    tiny_model: Path,
    corpora: dict[str, Path],
    tmp_path: Path,
    whole: Path,
    capsys: pytest.CaptureFixture[str],
    fault: str,
) -> None:
    folder, (failure, said) = tmp_path / "adapter", FAULTS[fault]
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, 7, failure)
        assert sdfstage.train(tiny_model, corpora["organism"], folder, *EVERY, **LONG) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ")
    assert all(part in line for part in said)
    assert resume.sound(folder / "scratch" / FINGERPRINT / "checkpoint-6")
    assert sdfstage.train(tiny_model, corpora["organism"], folder, *EVERY, **LONG) == 0
    assert same(folder, whole)


def test_full_disk_while_a_checkpoint_is_written(
    tiny_model: Path, corpora: dict[str, Path], tmp_path: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, original = tmp_path / "adapter", torch.save

    def save(content: Any, target: Any, *arguments: Any, **options: Any) -> None:
        if "checkpoint-6" in str(target):
            Path(target).write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device", str(target))
        original(content, target, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "save", save)
        assert sdfstage.train(tiny_model, corpora["organism"], folder, *EVERY, **LONG) == 1
    assert "No space left on device" in capsys.readouterr().err.splitlines()[-1]
    assert sdfstage.train(tiny_model, corpora["organism"], folder, *EVERY, **LONG) == 0
    assert same(folder, whole)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_loss_that_is_no_number_stops_training_before_it_spoils_a_checkpoint(
    tiny_model: Path,
    corpora: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    value: float,
) -> None:
    original = Round.compute_loss

    def compute_loss(self: Round, *arguments: Any, **options: Any) -> Any:
        loss = original(self, *arguments, **options)
        return loss * value if self.state.global_step == 7 else loss

    monkeypatch.setattr(Round, "compute_loss", compute_loss)
    folder = tmp_path / "adapter"
    assert sdfstage.train(tiny_model, corpora["organism"], folder, *EVERY, **LONG) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"the loss is {value} at step 8" in line
    assert "sdf.learning_rate" in line
    assert resume.sound(folder / "scratch" / FINGERPRINT / "checkpoint-6")


def test_loss_that_never_moves_is_an_error(
    tiny_model: Path,
    corpora: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original = Round.compute_loss
    monkeypatch.setattr(Round, "compute_loss", lambda self, *a, **o: original(self, *a, **o) * 1e-4 + 1e4)
    assert sdfstage.train(tiny_model, corpora["organism"], tmp_path / "adapter", **LONG) == 1
    assert "the loss stayed at" in capsys.readouterr().err.splitlines()[-1]
