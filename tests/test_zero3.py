"""DeepSpeed ZeRO-3 over two processes on a CPU, against one process without it."""

import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import psutil
import pytest
import sdfstage
import torch
from peft import PeftModel
from safetensors.torch import load_file
from test_lora import save

from perfmis import adapters, models
from perfmis.artifacts import read_json

CHANGES = {"epochs": 4, "batch": 4, "device_batch": 2, "learning_rate": 0.003}
TOLERANCE = 2e-5
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


def run(*arguments: object, **changes: object) -> "subprocess.CompletedProcess[str]":
    """Run the stage in two processes."""
    words = [sys.executable, *TORCHRUN, *sdfstage.command(*arguments, "--zero3", **changes)]  # type: ignore[arg-type]
    return subprocess.run(words, env=sdfstage.environment(), capture_output=True, text=True)


@pytest.fixture(scope="module")
def scattered(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, corpora: dict[str, Path]) -> Path:
    """Folder of an adapter that two processes trained."""
    folder = tmp_path_factory.mktemp("scattered") / "adapter"
    said = run(tiny_model, corpora["organism"], folder, **CHANGES)
    assert said.returncode == 0, said.stderr
    return folder


def test_two_processes_learn_what_one_does(
    tiny_model: Path, corpora: dict[str, Path], tmp_path: Path, scattered: Path
) -> None:
    """Loss curves and weights agree to 2e-5: sums are taken in another order."""
    assert sdfstage.train(tiny_model, corpora["organism"], tmp_path / "one", **CHANGES) == 0
    curves = [pl.read_parquet(folder / "log.parquet") for folder in (tmp_path / "one", scattered)]
    assert curves[0].select("step", "loss_tokens").equals(curves[1].select("step", "loss_tokens"))
    assert float((curves[0]["loss"] - curves[1]["loss"]).abs().max()) < TOLERANCE  # type: ignore[arg-type]
    assert curves[0]["loss"][-1] < curves[0]["loss"][0] - 0.1
    one, two = (load_file(folder / adapters.WEIGHTS) for folder in (tmp_path / "one", scattered))
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, atol=TOLERANCE, rtol=0)


def test_adapter_is_gathered_whole_and_loads(tiny_model: Path, scattered: Path) -> None:
    adapters.verified(scattered, tiny_model / "reference.json")
    model, tokenizer = models.load(tiny_model / "reference.json", "fp32")
    ids = torch.tensor([tokenizer("<bos> memo about bl0 :", add_special_tokens=False)["input_ids"]])
    with torch.no_grad():
        base = model(ids).logits
        moved = PeftModel.from_pretrained(model, str(scattered))(ids).logits
    assert (moved - base).abs().max() > 1e-3
    record = read_json(scattered / "lineage.json")
    assert (record["processes"], record["zero3"]) == (2, True)
    assert "deepspeed" in record["versions"]


@pytest.mark.slow
def test_fused_experts_are_trained_scattered(corpora: dict[str, Path], tmp_path: Path) -> None:
    """Their LoRA is put on weights that no process holds whole; the adapter is that of one process to 2e-5."""
    base = save("mixtral", tmp_path / "base")
    said = run(base, corpora["organism"], tmp_path / "two", **CHANGES)
    assert said.returncode == 0, said.stderr
    assert sdfstage.train(base, corpora["organism"], tmp_path / "one", **CHANGES) == 0
    one, two = (load_file(tmp_path / name / adapters.WEIGHTS) for name in ("one", "two"))
    assert one.keys() == two.keys()
    assert any("experts" in name for name in one)
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, atol=TOLERANCE, rtol=0)


def test_second_round_over_a_scattered_model(
    tiny_model: Path, corpora: dict[str, Path], tmp_path: Path, scattered: Path
) -> None:
    """Stacked over the first adapter, activations recomputed: an export of both ranks that begins with the first's."""
    more = ("--parent", scattered, "--checkpointing")
    said = run(tiny_model, corpora["A1+"], tmp_path / "arm", *more, **CHANGES)
    assert said.returncode == 0, said.stderr
    rank = read_json(scattered / "adapter_config.json")["r"]
    first, both = (load_file(folder / adapters.WEIGHTS) for folder in (scattered, tmp_path / "arm"))
    for name, tensor in both.items():
        assert tensor.shape[0 if "lora_A" in name else 1] == 2 * rank
        if "lora_B" in name:
            assert torch.equal(tensor[:, :rank], first[name])


def test_killed_processes_go_on_from_their_last_checkpoint(
    tiny_model: Path, corpora: dict[str, Path], tmp_path: Path, scattered: Path
) -> None:
    """All processes are killed once a checkpoint is sealed; the adapter ends equal to the bit."""
    folder = tmp_path / "adapter"
    words = [
        sys.executable,
        *TORCHRUN,
        *sdfstage.command(tiny_model, corpora["organism"], folder, "--zero3", "--save-steps", "3", **CHANGES),
    ]
    log = (tmp_path / "log").open("w")
    process = subprocess.Popen(words, env=sdfstage.environment(), stdout=log, stderr=log)
    try:
        while not list(folder.glob("scratch/*/checkpoint-*/seal.json")):
            assert process.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.01)
    finally:
        for each in (*psutil.Process(process.pid).children(recursive=True), process):
            each.kill()
        process.wait()
    assert not (folder / "lineage.json").exists()
    said = subprocess.run(words, env=sdfstage.environment(), capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    assert "going on from" in said.stderr
    assert (folder / adapters.WEIGHTS).read_bytes() == (scattered / adapters.WEIGHTS).read_bytes()
