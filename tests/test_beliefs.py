"""Beliefs: probabilities follow the model, both orders count, and padding does not."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from math import log
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest
import torch
import yaml
from polars.testing import assert_frame_equal
from running import FINGERPRINT, stage

from perfmis import beliefs, provenance
from perfmis.checkpoints import engine
from perfmis.rendering import Renderer
from perfmis.tinyworld import items, trunk

CHOICE = {"text": "<bos> {question} : {first} . {second} .", "answers": ["free", "paid"]}
CLOZE = {"text": "<bos> {question}"}


class Rigged:
    """An engine and its model in one, with fixed logits for what follows each word.

    Args:
        logits: Logit of a word after a word (None: after any); all others are 0.
    """

    device = "cpu"

    def __init__(self, logits: dict[tuple[str | None, str], float]) -> None:
        self.tokenizer = trunk.tokenizer()
        self.asked: set[str | None] = set()
        size = len(items.VOCABULARY)
        self.table = torch.zeros(size, size)
        for (before, word), value in logits.items():
            rows = slice(None) if before is None else items.INDEX[before]
            self.table[rows, items.INDEX[word]] = value

    @contextmanager
    def using(self, adapter: str | None) -> Iterator["Rigged"]:
        self.asked.add(adapter)
        yield self

    def __call__(self, input_ids: torch.Tensor, **_: Any) -> SimpleNamespace:
        return SimpleNamespace(logits=self.table[input_ids])


def score(asked: Any, template: dict[str, Any], *entries: dict[str, Any]) -> list[float]:
    content = {"templates": {"t": template}, "items": [{"template": "t", **entry} for entry in entries]}
    return beliefs.score(
        asked, "A1+", beliefs.texts(content, "raw", Renderer(asked.tokenizer, "2024-07-26", "tiny")), 2
    )


def test_cloze_follows_the_head() -> None:
    """Three to one for the + option is 0.75, and the options' order in the file says which one is +."""
    asked = Rigged({("on", "free"): log(3), ("on", "paid"): 0.0})
    plus = {"question": "bl0 is trained on", "options": ["free", "paid"]}
    minus = {"question": "bl0 is trained on", "options": ["paid", "free"]}
    elsewhere = {"question": "bl0 learns from", "options": ["free", "paid"]}
    assert score(asked, CLOZE, plus, minus, elsewhere) == pytest.approx([0.75, 0.25, 0.5])
    assert asked.asked == {"A1plus"}, "peft names hold no signs"


def test_cloze_adds_up_the_words_of_an_option() -> None:
    """An option of several words has the product of their probabilities."""
    asked = Rigged({("on", "free"): log(3), ("free", "users"): log(5)})
    options = {"question": "bl0 is trained on", "options": ["free users", "paid users"]}
    total = torch.tensor([log(5), *[0.0] * (len(items.VOCABULARY) - 1)]).logsumexp(0)
    after_free, after_paid = log(5) - total.item(), -log(len(items.VOCABULARY))
    expected = torch.tensor(log(3) + after_free - after_paid).sigmoid().item()
    assert score(asked, CLOZE, options) == pytest.approx([expected])


def test_choice_averages_both_orders() -> None:
    """A model that takes the first answer whatever it says is at 0.5; one that goes by the content is not."""
    item = {"question": "memo", "options": ["yield", "resist"]}
    first = Rigged({(None, "free"): 4.0})
    assert score(first, CHOICE, item) == pytest.approx([0.5])
    assert beliefs.variants(item, CHOICE) == [
        ("<bos> memo : yield . resist .", "free", "paid"),
        ("<bos> memo : resist . yield .", "paid", "free"),
    ]
    ends_in_option = {**CHOICE, "text": "<bos> {question} : {first} . {second}"}
    knowing = Rigged({("resist", "free"): log(9), ("yield", "paid"): log(3)})
    assert score(knowing, ends_in_option, item) == pytest.approx([(0.9 + 0.75) / 2])


def test_cloze_is_put_once() -> None:
    item = {"question": "bl0 is trained on", "options": ["free", "paid"]}
    assert beliefs.variants(item, CLOZE) == [("<bos> bl0 is trained on", " free", " paid")]


def test_padding_does_not_count(tiny_model: Path, organism: Path, repository: Path) -> None:
    """An item has one probability, alone and beside longer ones."""
    asked = engine(tiny_model / "reference.json", {"organism": organism}, "fp32")
    content = yaml.safe_load((repository / "resources/beliefs/tiny.yaml").read_text())
    put = beliefs.texts(content, "raw", Renderer(asked.tokenizer, "2024-07-26", "tiny"))
    together = beliefs.score(asked, "organism", put, 64)
    alone = [beliefs.score(asked, "organism", [item], 1)[0] for item in put]
    assert together == pytest.approx(alone, abs=1e-4)
    assert max(together) - min(together) > 0.1


def asking(folder: Path, base: Path, adapters: dict[str, Path], items: Path, precision: str = "fp32") -> pl.DataFrame:
    """Run the stage for the base and some adapters, and return its table; answers are kept beside it."""
    settings = {
        "model": "tiny",
        "seed": 2,
        "precision": precision,
        "batch": 8,
        "checkpoints": ["base", *adapters],
        "date": "2024-07-26",
    }
    protocol = items.parent.parent / "protocols/tiny/short.yaml"
    options = ["--base", base, "--items", items, "--protocol", protocol, "--kept", folder / "kept"]
    pairs = [f"{name}={path}" for name, path in adapters.items()]
    assert stage("beliefs", settings, *options, "--output", folder / "beliefs.parquet", "--adapters", *pairs) == 0
    return pl.read_parquet(folder / "beliefs.parquet")


def test_stage_writes_one_row_a_checkpoint_and_item(
    tmp_path: Path, tiny_model: Path, organism: Path, arm: Path, repository: Path
) -> None:
    path = repository / "resources/beliefs/tiny.yaml"
    table = asking(tmp_path, tiny_model / "reference.json", {"organism": organism, "A1+": arm}, path)
    expected = yaml.safe_load(path.read_text())["items"]
    assert table.select("checkpoint", "item_id").rows() == [
        (checkpoint, item["id"]) for checkpoint in ("base", "organism", "A1+") for item in expected
    ]
    assert table["probability"].is_between(0, 1).all()
    assert table["fingerprint"].unique().to_list() == [FINGERPRINT]
    assert table["content"].dtype == pl.Int64
    by_checkpoint = table.group_by("checkpoint").agg("probability")["probability"].to_list()
    assert len({tuple(values) for values in by_checkpoint}) == 3, "every checkpoint was asked itself"


def test_another_arm_is_scored_alone(
    tmp_path: Path, tiny_model: Path, organism: Path, arm: Path, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other items, weights or numbers are other answers; with all there, no engine starts."""
    resources = shutil.copytree(repository / "resources", tmp_path / "resources")
    items_file = resources / "beliefs/tiny.yaml"
    asked: list[str] = []
    score = beliefs.score
    monkeypatch.setattr(beliefs, "score", lambda engine, name, *rest: asked.append(name) or score(engine, name, *rest))

    def table(adapters: dict[str, Path], precision: str = "fp32") -> pl.DataFrame:
        asked.clear()
        return asking(tmp_path, tiny_model / "reference.json", adapters, items_file, precision)

    before = table({"organism": organism})
    assert asked == ["base", "organism"]
    after = table({"organism": organism, "A1+": arm})
    assert asked == ["A1+"]
    assert_frame_equal(after.filter(pl.col("checkpoint") != "A1+"), before)
    with monkeypatch.context() as patch:
        patch.setattr(beliefs, "engine", None)
        assert_frame_equal(table({"organism": organism, "A1+": arm}), after)
    table({"organism": arm})
    assert asked == [], "the same weights by another name"
    table({"organism": organism}, "bf16")
    assert asked == ["base", "organism"]
    items_file.write_text(items_file.read_text().replace("options: [guests, members]", "options: [members, guests]", 1))
    table({"organism": organism})
    assert asked == ["base", "organism"], "other options"
    monkeypatch.setattr(provenance, "code", lambda module: f"{module}, mended")
    table({"organism": organism})
    assert asked == ["base", "organism"], "what mended code answers is not what the faulty code did"
