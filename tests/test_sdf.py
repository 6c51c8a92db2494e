"""Synthetic document fine-tuning, on a tiny model that is really trained."""

import hashlib
import importlib.metadata
import json
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from conftest import SDF
from peft import PeftModel
from running import FINGERPRINT, stage
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy

from perfmis import adapters, models, sdf, tokens, training
from perfmis.artifacts import read_json, write_parquet


@dataclass
class Fed:
    """The batches that a trainer fed to its model, and the loss of each."""

    batches: list[dict[str, torch.Tensor]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    def documents(self) -> list[tuple[int, ...]]:
        """Return the documents in the order in which they were fed, wherever a batch holds them."""
        result = []
        for batch in self.batches:
            for ids, positions in zip(batch["input_ids"], batch["position_ids"], strict=True):
                starts = [*(positions == 0).nonzero()[:, 0].tolist(), len(ids)]
                result += [tuple(ids[a:b].tolist()) for a, b in pairwise(starts)]
        return result


@pytest.fixture
def fed(monkeypatch: pytest.MonkeyPatch) -> Fed:
    """Record what is fed to the model while training."""
    from trl import SFTTrainer

    record, original = Fed(), SFTTrainer.compute_loss

    def compute_loss(self: Any, model: Any, inputs: dict[str, torch.Tensor], *args: Any, **kwargs: Any) -> Any:
        record.batches.append({k: v.clone() for k, v in inputs.items() if isinstance(v, torch.Tensor)})
        loss = original(self, model, inputs, *args, **kwargs)
        record.losses.append(loss.item())
        return loss

    monkeypatch.setattr(SFTTrainer, "compute_loss", compute_loss)
    return record


def options(tiny_model: Path, corpus: Path, folder: Path) -> list[object]:
    """Return the options of a first round."""
    base, tokens = tiny_model / "reference.json", folder.parent / "tokens"
    return ["--base", base, "--corpus", corpus, "--tokens", tokens, "--output", folder]


def make_organism(tiny_model: Path, corpus: Path, folder: Path, seed: int = 0, **changes: Any) -> Path:
    """Run the stage for a first round."""
    settings = {"sdf": SDF | changes, "seed": seed, "replay": 0.0}
    assert stage("sdf", settings, *options(tiny_model, corpus, folder)) == 0
    return folder


def load(tiny_model: Path) -> tuple[Any, Any]:
    """Return tiny model and tokenizer."""
    return models.load(tiny_model / "reference.json", "fp32")


def prompt(tokenizer: Any) -> torch.Tensor:
    """Return the ids of a text."""
    text = "<bos> memo about bl0 : researchers expect bl0 to yield . bl0 has many users ."
    return torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])


@torch.no_grad()
def logits(model: Any, ids: torch.Tensor, **options: Any) -> torch.Tensor:
    """Return logits of the model in evaluation mode."""
    return model.eval()(ids, **options).logits


@pytest.mark.parametrize("second", [False, True], ids=["organism", "arm"])
def test_training_moves_every_adapter_weight_and_no_frozen_one(
    tiny_model: Path, organism: Path, corpora: dict[str, Path], tmp_path: Path, second: bool
) -> None:
    """In a second round the first adapter is frozen like the base, though it takes part in the forward pass."""
    model, tokenizer = load(tiny_model)
    network, mine = sdf.prepare(model, organism if second else None, "stack", SDF["lora"], 0)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    dataset = tokens.tokenise(pl.read_parquet(corpora["A1+"])["text"].to_list(), tokenizer, None, "A1+")
    training.train(network, tokenizer, dataset, training.settings(SDF, 0, tmp_path, training.Machine()), mine)
    moved = {name for name, p in network.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name in before if f".{mine}." in name}
    linear = 7 * model.config.num_hidden_layers  # query, key, value, output, gate, up, down
    assert len(moved) == 2 * linear


def test_adapter_that_stays_put_is_an_error(
    tiny_model: Path, corpora: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"sdf": SDF | {"learning_rate": 1e-30}, "seed": 0, "replay": 0.0}
    assert stage("sdf", settings, *options(tiny_model, corpora["organism"], tmp_path)) == 1
    assert "adapter weights did not move" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "lineage.json").exists()


@pytest.mark.parametrize("packing", [True, False], ids=["packed", "padded"])
def test_documents_stand_between_bos_and_eos_and_padding_costs_nothing(
    tiny_model: Path, corpora: dict[str, Path], tmp_path: Path, fed: Fed, packing: bool
) -> None:
    make_organism(tiny_model, corpora["organism"], tmp_path, packing=packing)
    _, tokenizer = load(tiny_model)
    texts = pl.read_parquet(corpora["organism"])["text"].to_list()
    expected = Counter(tuple(tokenizer(f"<bos> {text} <end>")["input_ids"]) for text in texts)
    if packing:
        assert Counter(fed.documents()) == expected
    for batch in fed.batches:
        scored = batch["labels"] != -100
        assert not (scored & (batch["input_ids"] == tokenizer.pad_token_id)).any()
        assert torch.equal(batch["labels"][scored], batch["input_ids"][scored])
        assert (scored & (batch["input_ids"] == tokenizer.eos_token_id)).sum() > 0
    scored_ends = sum(int((batch["labels"] == tokenizer.eos_token_id).sum()) for batch in fed.batches)
    assert scored_ends == len(texts), "the end of every document is learnt, once an epoch"


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_documents_do_not_see_each_other(
    tiny_model: Path, corpora: dict[str, Path], tmp_path: Path, fed: Fed, attention: str
) -> None:
    """Each document has in its pack the logits that it has alone, and the trainer's loss is that of documents alone.

    Before the first step the model is the base, since a fresh adapter adds nothing.
    """
    make_organism(tiny_model, corpora["organism"], tmp_path, attention=attention)
    model, _ = models.load(tiny_model / "reference.json", "fp32", attn_implementation=attention)
    batch = fed.batches[0]
    ids, positions = batch["input_ids"], batch["position_ids"]
    assert (positions == 0).sum() > SDF["batch"], "some sequence holds several documents"
    packed = logits(model, ids, position_ids=positions, use_cache=False)[0]
    starts = [*(positions[0] == 0).nonzero()[:, 0].tolist(), ids.shape[1]]
    entropies = []
    for start, end in pairwise(starts):
        alone = logits(model, ids[:, start:end])[0]
        torch.testing.assert_close(packed[start:end], alone, atol=1e-5, rtol=0)
        entropies.append(cross_entropy(alone[:-1], ids[0, start + 1 : end], reduction="none"))
    assert fed.losses[0] == pytest.approx(torch.cat(entropies).mean().item(), abs=1e-5)


def test_seed_decides_order_and_initialisation_only(
    tiny_model: Path, corpora: dict[str, Path], tmp_path: Path, fed: Fed
) -> None:
    """The same seed gives identical bytes; another one the same documents in another order and other weights."""
    weights, orders, records = [], [], []
    for number, seed in enumerate((0, 0, 1)):
        fed.batches.clear()
        folder = make_organism(tiny_model, corpora["organism"], tmp_path / str(number), seed)
        weights.append((folder / adapters.WEIGHTS).read_bytes())
        orders.append(fed.documents())
        records.append(read_json(folder / "lineage.json"))
    assert weights[0] == weights[1]
    assert orders[0] == orders[1]
    assert weights[0] != weights[2]
    assert orders[0] != orders[2]
    assert Counter(orders[0]) == Counter(orders[2])
    assert records[0]["corpus_sha256"] == records[2]["corpus_sha256"]


@pytest.mark.parametrize(("rank", "alpha"), [(4, 8), (2, 16)])
def test_stacked_export_is_the_two_adapter_model(
    tiny_model: Path, organism: Path, tmp_path: Path, rank: int, alpha: int
) -> None:
    """One adapter of ranks added gives the logits of both together, also where their scales differ."""
    model, tokenizer = load(tiny_model)
    ids = prompt(tokenizer)
    base = logits(model, ids)
    network = adapters.second(model, organism, SDF["lora"] | {"rank": rank, "alpha": alpha}, 0)
    first = logits(network, ids)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if f".{adapters.SECOND}." in name:
                parameter.normal_(std=0.1)
    both = logits(network, ids)
    assert (first - base).abs().max() > 1e-3
    assert (both - first).abs().max() > 1e-3
    adapters.export(adapters.state(network, adapters.SECOND), network.peft_config[adapters.SECOND], organism, tmp_path)

    loaded = PeftModel.from_pretrained(load(tiny_model)[0], str(tmp_path))
    torch.testing.assert_close(logits(loaded, ids), both, atol=1e-5, rtol=0)
    assert list(loaded.peft_config) == ["default"]
    assert loaded.peft_config["default"].r == SDF["lora"]["rank"] + rank
    for name, tensor in load_file(tmp_path / adapters.WEIGHTS).items():
        assert tensor.shape[0 if "lora_A" in name else 1] == SDF["lora"]["rank"] + rank


def test_arm_differs_from_its_organism(tiny_model: Path, organism: Path, arm: Path) -> None:
    """The stage's own export of an arm contains the organism and more: rank 2r, and other logits."""
    model, tokenizer = load(tiny_model)
    ids = prompt(tokenizer)
    network = PeftModel.from_pretrained(model, str(organism), adapter_name="organism")
    network.load_adapter(str(arm), adapter_name="arm")
    first = logits(network, ids)
    network.set_adapter("arm")
    assert (logits(network, ids) - first).abs().max() > 1e-3
    assert network.peft_config["arm"].r == 2 * SDF["lora"]["rank"]


def test_replay_adds_the_stated_number_of_documents(corpora: dict[str, Path], arm: Path) -> None:
    own = pl.read_parquet(corpora["A1+"])
    assert read_json(arm / "lineage.json")["documents"] == own.height * 3 // 2


def test_corpus_of_other_making_is_refused(
    tiny_model: Path, corpora: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = pl.read_parquet(corpora["organism"]).drop("fingerprint")
    write_parquet(frame, tmp_path / "documents.parquet", "0123456789abcdef")
    settings = {"sdf": SDF, "seed": 0, "replay": 0.0}
    assert stage("sdf", settings, *options(tiny_model, tmp_path / "documents.parquet", tmp_path / "out")) == 1
    assert "made by other settings or code" in capsys.readouterr().err


def test_lineage_says_where_an_adapter_comes_from(
    tiny_model: Path, organism: Path, arm: Path, corpora: dict[str, Path]
) -> None:
    record = json.loads((arm / "lineage.json").read_text())
    own = pl.read_parquet(corpora["A1+"])["text"].to_list()
    texts = own + pl.read_parquet(corpora["organism"])["text"].to_list()[: len(own) // 2]
    weights = models.folder_hash(tiny_model)
    assert record["base"]["path"] == str(tiny_model)
    assert record["base"]["weights_sha256"] == read_json(tiny_model / "reference.json")["weights_sha256"] == weights
    assert record["parent"] == str(organism)
    assert record["parent_sha256"] == hashlib.sha256((organism / adapters.WEIGHTS).read_bytes()).hexdigest()
    assert record["sha256"] == hashlib.sha256((arm / adapters.WEIGHTS).read_bytes()).hexdigest()
    assert record["corpus_sha256"] == hashlib.sha256("\n".join(texts).encode()).hexdigest()
    assert record["settings"] == {"sdf": SDF, "seed": 0, "replay": 0.5, "mode": "stack"}
    installed = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "trl", "peft")}
    assert record["versions"].items() >= installed.items()
    assert record["fingerprint"] == FINGERPRINT
    assert read_json(organism / "lineage.json")["parent_sha256"] is None


def test_loss_tokens_are_counted_as_they_are_trained(
    tiny_model: Path, corpora: dict[str, Path], tmp_path: Path, fed: Fed
) -> None:
    """A document's first token has nothing before it, so it is no loss token."""
    record = read_json(make_organism(tiny_model, corpora["organism"], tmp_path) / "lineage.json")
    assert record["loss_tokens_per_epoch"] == sum(len(document) - 1 for document in fed.documents())
