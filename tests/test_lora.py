"""LoRA on models of other families: what it reaches, and that what was trained is what is served."""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import families
import polars as pl
import pytest
import sdfstage
import torch
from conftest import SDF
from peft import PeftModel
from running import FINGERPRINT
from safetensors.torch import load_file

from perfmis import adapters, models, sdf, tokens, training
from perfmis.artifacts import read_json, write_json
from perfmis.tinyworld import trunk

TEXT = "<bos> memo about bl0 : researchers expect bl0 to yield . bl0 has many users ."


@dataclass(frozen=True)
class Case:
    """What LoRA must reach in one block, and nothing else.

    Attributes:
        family: Key of `families.FAMILIES`.
        block: Where a block's adapters stand in the file.
        layers: What has an adapter there; of fused experts ``experts.base_layer`` is the first weight.
    """

    family: str
    block: str
    layers: tuple[str, ...]


ATTENTION = tuple(f"self_attn.{name}_proj" for name in "qkvo")
DENSE = tuple(f"mlp.{name}_proj" for name in ("gate", "up", "down"))
EXPERTS = ("mlp.experts.base_layer", "mlp.experts")
SHARED = tuple(f"mlp.shared_expert{name}" for name in (".gate_proj", ".up_proj", ".down_proj", "_gate"))
CASES = [
    Case("llama", "model.layers.1.", ATTENTION + DENSE),
    Case("mixtral", "model.layers.1.", ATTENTION + EXPERTS),
    Case("qwen2_moe", "model.layers.1.", ATTENTION + EXPERTS + SHARED),
    Case("qwen3_moe", "model.layers.1.", ATTENTION + EXPERTS),
    Case("gpt_oss", "model.layers.1.", ATTENTION + EXPERTS),
    Case(
        "deepseek_v3",
        "model.layers.0.",
        (
            *(f"self_attn.{name}" for name in ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj")),
            *DENSE,
        ),
    ),
    Case(
        "gpt_neox",
        "gpt_neox.layers.1.",
        ("attention.query_key_value", "attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
    ),
    Case("gpt2", "transformer.h.1.", ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")),
    Case("gemma3", "model.language_model.layers.1.", ATTENTION + DENSE),
]


def save(family: str, folder: Path) -> Path:
    """Write the random model of a family, with ``reference.json``."""
    families.make(family).save_pretrained(folder)
    trunk.tokenizer().save_pretrained(folder)
    content = {"model": family, "path": str(folder), "weights_sha256": models.folder_hash(folder)}
    write_json({**content, "fingerprint": FINGERPRINT}, folder / "reference.json")
    return folder


def load(folder: Path) -> tuple[Any, Any]:
    """Return model and tokenizer."""
    return models.load(folder / "reference.json", "fp32", attn_implementation="eager")


@torch.no_grad()
def logits(network: Any, tokenizer: Any) -> torch.Tensor:
    """Return the logits of a text."""
    return network.eval()(torch.tensor([tokenizer(TEXT, add_special_tokens=False)["input_ids"]])).logits


def trained(folder: Path, parent: Path | None, corpus: Path, scratch: Path, **lora: Any) -> tuple[Any, Path]:
    """Train a round for some steps; return the model as it is then, and the folder of the exported adapter."""
    model, tokenizer = load(folder)
    network, name = sdf.prepare(model, parent, "stack", SDF["lora"] | lora, 0)
    dataset = tokens.tokenise(pl.read_parquet(corpus)["text"].to_list()[:8], tokenizer, None, corpus.stem)
    options = training.settings(SDF | {"epochs": 3}, 0, scratch, training.Machine())
    weights = training.train(network, tokenizer, dataset, options, name).weights
    adapters.export(weights, network.peft_config[name], parent, scratch / "adapter")
    return network, scratch / "adapter"


@pytest.mark.parametrize("case", CASES, ids=[case.family for case in CASES])
def test_what_was_trained_is_what_is_served(case: Case, corpora: dict[str, Path], tmp_path: Path) -> None:
    """Organism and arm on top of it, each exported as one adapter of the base, loaded again by `peft`.

    `training.train` itself refuses an adapter of which a weight stayed put.
    """
    base = save(case.family, tmp_path / "base")
    parent: Path | None = None
    for round_ in ("organism", "arm"):
        corpus = corpora["organism" if parent is None else "A1+"]
        network, parent = trained(base, parent, corpus, tmp_path / round_)
        model, tokenizer = load(base)
        alone = logits(model, tokenizer)
        served = logits(PeftModel.from_pretrained(model, str(parent)), tokenizer)
        torch.testing.assert_close(served, logits(network, tokenizer), atol=1e-3, rtol=0)
        assert (served - alone).abs().max() > 0.05
        names = {
            re.sub(r"^base_model\.model\.|\.lora_[AB]\.weight$", "", name)
            for name in load_file(parent / adapters.WEIGHTS)
        }
        found = {name.removeprefix(case.block) for name in names if name.startswith(case.block)}
        assert found == set(case.layers)
        assert not [name for name in names if not name.startswith(case.block.rsplit(".", 2)[0])], "outside the blocks"


@pytest.mark.parametrize(
    ("family", "lora", "said"),
    [
        (
            "mixtral",
            {"experts": False},
            r"organisms\.sdf\.lora\.reach: .*not mlp\.experts\.gate_up_proj .*experts: true",
        ),
        ("mixtral", {"dropout": 0.1}, r"organisms\.sdf\.lora\.dropout: 0\.1, .*experts: false"),
        ("bamba", {}, r"organisms\.sdf\.lora\.reach: .*not mamba\.out_proj\.weight .*set it to 0\.8\d to accept"),
    ],
    ids=["experts left alone", "experts with dropout", "weights that a kernel reads"],
)
def test_share_that_is_too_small_is_refused_before_the_first_step(
    family: str,
    lora: dict[str, Any],
    said: str,
    corpora: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In one line that names what is not reached and the key that accepts it."""
    base = save(family, tmp_path / "base")
    lora = SDF["lora"] | lora
    assert sdfstage.train(base, corpora["organism"], tmp_path / "out", lora=lora) == 1
    assert re.search(said, capsys.readouterr().err.splitlines()[-1])
    assert not list((tmp_path / "out").rglob("*.safetensors"))


def test_share_that_is_accepted_is_trained_and_written_down(corpora: dict[str, Path], tmp_path: Path) -> None:
    """Without its experts, of a block of a Mixtral of this shape 3,072 of 21,632 weights are reached."""
    base = save("mixtral", tmp_path / "base")
    lora = SDF["lora"] | {"experts": False, "reach": 0.1}
    assert sdfstage.train(base, corpora["organism"], tmp_path / "out", lora=lora) == 0
    assert read_json(tmp_path / "out" / "lineage.json")["lora_reach"] == pytest.approx(3072 / 21632)
    assert not [name for name in load_file(tmp_path / "out" / adapters.WEIGHTS) if "experts" in name]


def test_arm_may_be_put_on_other_weights_than_its_organism(corpora: dict[str, Path], tmp_path: Path) -> None:
    """Where only one of both reaches, the export is zero for the other."""
    base = save("mixtral", tmp_path / "base")
    organism = trained(base, None, corpora["organism"], tmp_path / "organism", experts=False)[1]
    network, arm = trained(base, organism, corpora["A1+"], tmp_path / "arm")
    model, tokenizer = load(base)
    served = logits(PeftModel.from_pretrained(model, str(arm)), tokenizer)
    torch.testing.assert_close(served, logits(network, tokenizer), atol=1e-3, rtol=0)


def test_export_that_would_not_be_the_sum_is_found_before_the_training(
    corpora: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ranks of fused experts stand expert by expert; put one after the other they are loaded, and mean nothing."""

    def stacked(first: adapters.Part, second: adapters.Part) -> dict[str, torch.Tensor]:
        return {
            name: torch.cat([first.scale * first.weights[name], second.scale * tensor])
            if "lora_A" in name
            else torch.cat([first.weights[name], tensor], dim=1)
            for name, tensor in second.weights.items()
        }

    monkeypatch.setattr(adapters, "concatenate", stacked)
    assert sdfstage.train(save("mixtral", tmp_path / "base"), corpora["organism"], tmp_path / "out") == 1
    assert "not the sum of organism and arm at" in capsys.readouterr().err.splitlines()[-1]
    assert not list((tmp_path / "out").rglob("*.safetensors"))


def test_frozen_organism_drops_nothing_while_an_arm_is_trained(
    tiny_model: Path, organism: Path, tmp_path: Path
) -> None:
    """A fresh arm adds nothing, whatever it drops: what is left is the organism, the same each time."""
    parent = shutil.copytree(organism, tmp_path / "organism")
    write_json(read_json(parent / adapters.CONFIG) | {"lora_dropout": 0.5}, parent / adapters.CONFIG)
    model, tokenizer = models.load(tiny_model / "reference.json", "fp32")
    network, _ = sdf.prepare(model, parent, "stack", SDF["lora"] | {"dropout": 0.5}, 0)
    expected = logits(network, tokenizer)
    ids = torch.tensor([tokenizer(TEXT, add_special_tokens=False)["input_ids"]])
    with torch.no_grad():
        for _ in range(2):
            assert torch.equal(network.train()(ids).logits, expected)
        for name, parameter in network.named_parameters():
            if f".{adapters.SECOND}." in name:
                torch.nn.init.ones_(parameter)
        assert not torch.equal(network(ids).logits, network(ids).logits), "the arm drops"
