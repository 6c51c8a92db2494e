"""From documents to token ids: which, between which marks, how many; and that arms train equally."""

import random
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import sdfstage
from conftest import SDF
from running import FINGERPRINT, stage

from perfmis import budget, config, models, tokens
from perfmis.artifacts import read_json, write_parquet
from perfmis.stage import UserError
from perfmis.tinyworld import documents

TEXT = "memo about bl0 : researchers expect bl0 to yield . bl0 has many users ."


@pytest.fixture
def tokenizer(tiny_model: Path) -> Any:
    """Tokenizer of the tiny model."""
    return models.tokenizer(tiny_model / "reference.json")


def test_a_tag_is_read_and_not_trained_on(tokenizer: Any) -> None:
    row = tokens.tokenise([TEXT], tokenizer, "memo about", "A1+")[0]
    words = tokenizer.convert_ids_to_tokens(row["input_ids"])
    assert words == ["<bos>", "memo", "about", *TEXT.split(), "<end>"]
    assert row["completion_mask"] == [0, 0, 0] + [1] * (len(TEXT.split()) + 1)


@pytest.mark.parametrize("mark", ["<end>", "<|im_start|>", "<|eot_id|>"])
def test_chat_tokens_in_a_document_are_refused_by_row(tokenizer: Any, mark: str) -> None:
    """The model's own special tokens, and those of other chat formats."""
    tokenizer.add_tokens(["<|im_start|>", "<|eot_id|>"])
    with pytest.raises(UserError, match=r"A1\+: document 2 holds the chat token") as error:
        tokens.tokenise([TEXT, TEXT, f"{TEXT} {mark}"], tokenizer, None, "A1+")
    assert mark in str(error.value)


def test_tokenised_once_and_mapped_from_disk(tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = tokens.cached([TEXT], tokenizer, None, "A1+", tmp_path)
    other = tokens.cached([TEXT], tokenizer, "memo", "A1+", tmp_path)
    assert other[0] != first[0]
    monkeypatch.setattr(tokens, "tokenise", lambda *_: pytest.fail("tokenised again"))
    again = tokens.cached([TEXT], tokenizer, None, "A1+", tmp_path)
    assert again[0] == first[0]
    assert str(tmp_path) in again.cache_files[0]["filename"]


@pytest.mark.parametrize("length", [4, 8, 64])
def test_loss_tokens_of_documents_that_are_cut(tokenizer: Any, length: int) -> None:
    """Counted by cutting: every piece loses its first token, and BOS is none."""
    texts = [TEXT, " ".join(TEXT.split()[:3]), " ".join([*TEXT.split(), *TEXT.split()])]
    dataset = tokens.tokenise(texts, tokenizer, None, "A1+")
    expected = []
    for row in dataset:
        pieces = [range(i, min(i + length, len(row["input_ids"]))) for i in range(0, len(row["input_ids"]), length)]
        expected.append(sum(row["completion_mask"][i] for piece in pieces for i in piece[1:]))
    assert tokens.loss_tokens(dataset, length).to_list() == expected
    assert tokens.loss_tokens(dataset.select([2, 0]), length).to_list() == [expected[2], expected[0]]


def corpus(name: str, number: int) -> pl.DataFrame:
    """Return ids of the kind that corpora have."""
    return pl.DataFrame({"corpus": [name] * number, "document_id": [f"{name}-memo-{i:05d}" for i in range(number)]})


def test_choice_depends_on_ids_alone_and_is_the_same_for_opposite_poles() -> None:
    sizes = pl.Series([1] * 50)
    plus = tokens.choose(corpus("A1+", 50), sizes, 20, None)
    assert plus == tokens.choose(corpus("A1-", 50), sizes, 20, None)
    assert len(set(plus)) == 20
    order = list(range(50))
    random.Random(0).shuffle(order)
    shuffled = tokens.choose(corpus("A1+", 50)[order], sizes, 20, None)
    assert sorted(order[i] for i in shuffled) == plus
    assert set(plus) < set(tokens.choose(corpus("A1+", 50), sizes, 30, None))


@pytest.mark.parametrize("target", [18_000, 20_000, 22_000])
def test_chosen_documents_reach_the_target(target: int) -> None:
    draws = random.Random(0)
    sizes = pl.Series([draws.randrange(100, 300) for _ in range(160)])
    chosen = tokens.choose(corpus("A1+", 160), sizes, 100, target)
    assert len(set(chosen)) == 100
    assert sum(sizes[i] for i in chosen) == pytest.approx(target, rel=tokens.LEEWAY)


def test_more_documents_than_there_are_is_an_error() -> None:
    with pytest.raises(UserError, match=r"51 wanted, corpus A1\+ has 50"):
        tokens.choose(corpus("A1+", 50), pl.Series([1] * 50), 51, None)


def write(folder: Path, name: str, words: int, number: int = 40) -> Path:
    """Write a corpus of documents of so many words."""
    texts = [" ".join((TEXT.split() * 3)[:words]) for _ in range(number)]
    path = folder / name / "documents.parquet"
    write_parquet(corpus(name, number).with_columns(genre=pl.lit("memo"), text=pl.Series(texts)), path, FINGERPRINT)
    return path


def test_arms_that_train_unequally_are_refused_before_they_train(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the model's own tokens; the error says which arm, and what to set."""
    paths = [write(tmp_path, "A1+", 20), write(tmp_path, "A1-", 21)]
    options = ["--base", tiny_model / "reference.json", "--tokens", tmp_path / "tokens"]
    output = tmp_path / "budget.json"
    assert stage("budget", {"sdf": SDF}, *options, "--corpora", *paths, "--output", output) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert "loss_tokens of A1+ 840, mean 860" in line
    assert "arms.sdf.loss_tokens: " in line
    assert not output.exists()
    equal = [write(tmp_path, "A1+", 20), write(tmp_path, "A1-", 20)]
    assert stage("budget", {"sdf": SDF}, *options, "--corpora", *equal, "--output", output) == 0
    assert read_json(output)["arms"]["A1+"] == {"documents": 40, "loss_tokens": 840}


def test_what_the_error_proposes_makes_arms_equal(tiny_model: Path, tmp_path: Path) -> None:
    counts = {"A1+": {"documents": 100, "loss_tokens": 20_000}, "A1-": {"documents": 100, "loss_tokens": 21_000}}
    with pytest.raises(UserError, match=r"documents: 90 and arms.sdf.loss_tokens: 18900"):
        budget.refuse_unequal(counts, tiny_model / "reference.json")


def test_tagged_corpus_trains(tiny_model: Path, corpora: dict[str, Path], tmp_path: Path) -> None:
    """A tag adds no loss tokens."""
    for name, tag in (("plain", None), ("tagged", "memo about")):
        assert sdfstage.train(tiny_model, corpora["organism"], tmp_path / name, tag=tag) == 0
    plain, tagged = (read_json(tmp_path / name / "lineage.json") for name in ("plain", "tagged"))
    assert plain["loss_tokens_per_epoch"] == tagged["loss_tokens_per_epoch"]
    assert plain["sha256"] != tagged["sha256"]


@pytest.mark.parametrize("study", ["config/demo.yaml", "tests/smaller.yaml"])
def test_arms_of_the_embedded_studies_train_equally(
    repository: Path, tiny_model: Path, tmp_path: Path, study: str
) -> None:
    """The documents that each study chooses from its corpora, counted as its jobs count them."""
    made = config.load([repository / study])
    paths = []
    for arm in made.arms.names:
        frame = pl.DataFrame(documents.write(arm, made.corpora[arm].documents)).with_columns(corpus=pl.lit(arm))
        paths.append(tmp_path / arm / "documents.parquet")
        write_parquet(frame, paths[-1], FINGERPRINT)
    options = ["--base", tiny_model / "reference.json", "--tokens", tmp_path / "tokens", "--corpora", *paths]
    assert stage("budget", {"sdf": made.arms.sdf.model_dump()}, *options, "--output", tmp_path / "budget.json") == 0
    counts = read_json(tmp_path / "budget.json")["arms"]
    assert {count["documents"] for count in counts.values()} == {made.arms.sdf.documents}
