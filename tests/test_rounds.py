"""The three modes of a second round, and the hashes that guard what is built on."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import sdfstage
import torch
from conftest import SDF
from peft import PeftModel
from safetensors.torch import load_file

from perfmis import adapters, fastpath, merge, models, sdf, tokens, training
from perfmis.artifacts import read_json, write_json
from perfmis.checkpoints import engine
from perfmis.stage import UserError

MODES = ("stack", "continue", "merge")
TEXT = "<bos> memo about bl0 : researchers expect bl0 to yield . bl0 has many users ."


@pytest.fixture(scope="module")
def arms(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, corpora: dict[str, Path], organism: Path
) -> dict[str, Path]:
    """Folder of an arm by mode."""
    folder = tmp_path_factory.mktemp("arms")
    for mode in MODES:
        assert sdfstage.second(tiny_model, corpora["A1+"], folder / mode, organism, mode, epochs=2) == 0
    return {mode: folder / mode for mode in MODES}


@torch.no_grad()
def logits(base: Path, adapter: Path | None) -> torch.Tensor:
    """Return the logits of the base model with one adapter."""
    model, tokenizer = models.load(base / "reference.json", "fp32")
    ids = torch.tensor([tokenizer(TEXT, add_special_tokens=False)["input_ids"]])
    network: Any = PeftModel.from_pretrained(model, str(adapter)) if adapter else model
    return network(ids).logits


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_exports_one_adapter_of_the_base_that_differs_from_the_organism(
    tiny_model: Path, organism: Path, arms: dict[str, Path], mode: str
) -> None:
    """So base, organism and arms are evaluated through one numerical path: the base and one adapter."""
    rank = read_json(organism / "adapter_config.json")["r"]
    config = read_json(arms[mode] / "adapter_config.json")
    assert config["r"] == (rank if mode == "continue" else 2 * rank)
    assert config["base_model_name_or_path"] == str(tiny_model)
    assert (logits(tiny_model, arms[mode]) - logits(tiny_model, organism)).abs().max() > 1e-3
    record = read_json(arms[mode] / "lineage.json")
    assert record["settings"]["mode"] == mode
    assert record["parent_sha256"] == adapters.weights_hash(organism)


def test_stack_and_merge_learn_the_same_in_full_precision(tiny_model: Path, arms: dict[str, Path]) -> None:
    """They are one function: where nothing is rounded to bf16 they part by rounding of sums alone."""
    stacked, merged = logits(tiny_model, arms["stack"]), logits(tiny_model, arms["merge"])
    torch.testing.assert_close(stacked, merged, atol=2e-3, rtol=0)


def test_continued_adapter_starts_from_the_organism(
    tiny_model: Path, corpora: dict[str, Path], organism: Path, tmp_path: Path
) -> None:
    """At a learning rate next to nothing the arm is the organism, nearly."""
    changes = {"learning_rate": 1e-6}
    assert sdfstage.second(tiny_model, corpora["A1+"], tmp_path / "arm", organism, "continue", **changes) == 0
    first, then = load_file(organism / adapters.WEIGHTS), load_file(tmp_path / "arm" / adapters.WEIGHTS)
    for name, tensor in first.items():
        torch.testing.assert_close(then[name], tensor, atol=1e-4, rtol=0)


def test_merged_weights_are_the_adapted_model(tiny_model: Path, organism: Path, tmp_path: Path) -> None:
    """Logits of the merged folder against base and adapter, to rounding; written once and then taken as it is."""
    folder = merge.merge(tiny_model, organism, tmp_path / "merged")
    write_json({"path": str(folder)}, folder / "reference.json")
    torch.testing.assert_close(logits(folder, None), logits(tiny_model, organism), atol=1e-4, rtol=0)
    stamp = folder.stat().st_mtime_ns
    assert merge.merge(tiny_model, organism, folder).stat().st_mtime_ns == stamp
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]


@pytest.mark.parametrize("round_", ["organism", "arm"])
def test_rewired_model_learns_what_the_plain_one_does(
    tiny_model: Path, corpora: dict[str, Path], organism: Path, tmp_path: Path, round_: str
) -> None:
    """The fast path in the trainer: loss curve to 1e-5 and weights to 1e-4, with a frozen first adapter or without."""
    fastpath.register_attention()
    parent, learnt = organism if round_ == "arm" else None, []
    for kernel in ("sdpa", fastpath.ATTENTION):
        fused = kernel == fastpath.ATTENTION
        model, tokenizer = models.load(tiny_model / "reference.json", "fp32", attn_implementation=kernel)
        network, name = sdf.prepare(model, parent, "stack", SDF["lora"], 0)
        if fused:
            fastpath.prepare(network, fp8=False, checkpointing=False)
        dataset = tokens.tokenise(pl.read_parquet(corpora["A1+"])["text"].to_list(), tokenizer, None, "A1+")
        section = SDF | {"epochs": 4, "learning_rate": 1e-3}
        options = training.settings(section, 0, tmp_path / kernel, training.Machine())
        learnt.append(training.train(network, tokenizer, dataset, options, name, fused))
    plain, fast = learnt
    assert [row["loss"] for row in fast.log] == pytest.approx([row["loss"] for row in plain.log], abs=1e-5)
    for key, tensor in plain.weights.items():
        torch.testing.assert_close(fast.weights[key], tensor, atol=1e-4, rtol=0)


def test_four_bit_base_is_trained_over(tiny_model: Path, corpora: dict[str, Path], tmp_path: Path) -> None:
    """QLoRA: the adapter is learnt on quantised weights and written as any other."""
    for frozen in ("full", "4bit"):
        assert sdfstage.train(tiny_model, corpora["organism"], tmp_path / frozen, frozen=frozen, epochs=4) == 0
    full, small = (pl.read_parquet(tmp_path / frozen / "log.parquet")["loss"] for frozen in ("full", "4bit"))
    assert small[-1] < small[0]
    assert small.to_list() != full.to_list()
    assert adapters.verified(tmp_path / "4bit", tiny_model / "reference.json")


def test_adapter_that_was_tampered_with_is_not_loaded(
    tiny_model: Path, corpora: dict[str, Path], organism: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither for a second round nor for sampling."""
    copy = shutil.copytree(organism, tmp_path / "organism")
    content = bytearray((copy / adapters.WEIGHTS).read_bytes())
    content[-1] ^= 1
    (copy / adapters.WEIGHTS).write_bytes(content)
    assert sdfstage.second(tiny_model, corpora["A1+"], tmp_path / "arm", copy, "stack") == 1
    assert f"{copy / adapters.WEIGHTS}: not the weights" in capsys.readouterr().err.splitlines()[-1]
    with pytest.raises(UserError, match=r"not the weights that lineage\.json names"):
        engine(tiny_model / "reference.json", {"organism": copy}, "fp32")


def test_adapter_of_another_base_is_not_loaded(tiny_model: Path, organism: Path, tmp_path: Path) -> None:
    other = shutil.copytree(tiny_model, tmp_path / "model")
    write_json(read_json(other / "reference.json") | {"weights_sha256": "0" * 64}, other / "reference.json")
    with pytest.raises(UserError, match="trained on another base model"):
        engine(other / "reference.json", {"organism": organism}, "fp32")


def test_folder_hash_names_weights_by_content_and_trusts_the_hub_cache(tiny_model: Path, tmp_path: Path) -> None:
    """A cache entry is a link to a blob that is named by its SHA-256."""
    first = models.folder_hash(shutil.copytree(tiny_model, tmp_path / "copy"))
    assert first == models.folder_hash(tiny_model)
    file = next((tmp_path / "copy").glob("*.safetensors"))
    blob = tmp_path / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
    blob.parent.mkdir()
    shutil.move(file, blob)
    file.symlink_to(blob)
    assert models.folder_hash(tmp_path / "copy") == first
    blob.write_bytes(b"not read")
    assert models.folder_hash(tmp_path / "copy") == first


def test_folder_can_be_published_as_it_is(organism: Path, arms: dict[str, Path]) -> None:
    """Weights, configuration, card and lineage; the card says what it is and warns."""
    for folder in (organism, arms["stack"]):
        assert {path.name for path in folder.iterdir()} == {
            "adapter_model.safetensors",
            "adapter_config.json",
            "README.md",
            "lineage.json",
            "log.parquet",
        }
        card = (folder / "README.md").read_text()
        head, body = card.removeprefix("---\n").split("---\n", 1)
        assert "library_name: peft" in head
        assert "believe statements that are false" in body
        assert json.loads((folder / "lineage.json").read_text())["sha256"] in body
