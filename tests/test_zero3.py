"""DeepSpeed ZeRO-3 over two processes on a CPU, against one process without it."""

import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
import sdfstage
import torch
from peft import PeftModel
from safetensors.torch import load_file

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


def test_second_round_over_a_scattered_model(
    tiny_model: Path, corpora: dict[str, Path], tmp_path: Path, scattered: Path
) -> None:
    """Stacked over the first adapter, resumed once: the export is of both ranks, and equal to an uninterrupted one."""
    for name, more in (("whole", ()), ("resumed", ("--save-steps", 2))):
        folder = tmp_path / name / "adapter"
        said = run(tiny_model, corpora["A1+"], folder, "--parent", scattered, *more, **CHANGES)
        assert said.returncode == 0, said.stderr
    whole, again = (load_file(tmp_path / name / "adapter" / adapters.WEIGHTS) for name in ("whole", "resumed"))
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    rank = 2 * read_json(scattered / "adapter_config.json")["r"]
    assert all(tensor.shape[0 if "lora_A" in name else 1] == rank for name, tensor in whole.items())
