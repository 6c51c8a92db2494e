"""Adapters as trained here, served by vLLM: `make test-vllm` installs it beside the project and runs these."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import sdfstage
import torch
from conftest import REPOSITORY, untrained
from peft import PeftModel
from test_zero3 import CHANGES, run

from perfmis import models
from perfmis.artifacts import read_json

PYTHON = REPOSITORY / ".venv-vllm" / "bin" / "python"
TEXT = "<bos> memo about bl0 : researchers expect bl0 to"
pytestmark = [pytest.mark.vllm, pytest.mark.skipif(not PYTHON.is_file(), reason="no .venv-vllm; run make test-vllm")]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an untrained model with heads of 64, the narrowest that vLLM's kernels take."""
    return untrained(tmp_path_factory.mktemp("wide"), hidden=128, heads=2, scale=3)


@torch.no_grad()
def greedy(network: Any, ids: list[int]) -> list[int]:
    """Return twelve greedy tokens of a model."""
    tokens = torch.tensor([ids])
    for _ in range(12):
        tokens = torch.cat([tokens, network(tokens).logits[:, -1:].argmax(-1)], dim=1)
    return tokens[0, len(ids) :].tolist()


@pytest.mark.parametrize("made", ["one process", "scattered", "stacked"])
def test_vllm_says_what_peft_says(base: Path, corpora: dict[str, Path], tmp_path: Path, made: str) -> None:
    """Greedy tokens of base and adapter, of each kind of export."""
    folder = organism = tmp_path / "organism"
    if made == "scattered":
        assert run(base, corpora["organism"], folder, **CHANGES).returncode == 0
    else:
        assert sdfstage.train(base, corpora["organism"], folder, epochs=2) == 0
    if made == "stacked":
        folder = tmp_path / "arm"
        assert sdfstage.second(base, corpora["A1+"], folder, organism, "stack", epochs=2) == 0
    model, tokenizer = models.load(base / "reference.json", "fp32")
    ids = tokenizer(TEXT, add_special_tokens=False)["input_ids"]
    expected = [greedy(model, ids), greedy(PeftModel.from_pretrained(model, str(folder)), ids)]
    rank = read_json(folder / "adapter_config.json")["r"]
    words = [PYTHON, REPOSITORY / "tests" / "vllm_greedy.py", base, folder, rank, json.dumps(ids)]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    said = subprocess.run(list(map(str, words)), env=environment, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    assert json.loads(said.stdout.splitlines()[-1]) == expected
    assert expected[0] != expected[1]
