"""From documents to token ids: which, between which marks, how many; and that arms train equally."""

import math
import random
import re
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import sdfstage
import yaml
from conftest import SDF
from hypothesis import given, settings
from hypothesis import strategies as st
from running import FINGERPRINT, stage

from perfmis import budget, config, models, study, tokens
from perfmis.artifacts import read_json, write_json, write_parquet
from perfmis.stage import UserError
from perfmis.tinyworld import documents
from perfmis.vocabulary import ARMS, NEUTRAL

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


ADVICE = re.compile(r"set arms\.sdf\.documents: (\{.*?\}|\w+) and arms\.sdf\.loss_tokens: (\{.*?\}|\w+)")


def advised(line: str, model: str) -> dict[str, int | None]:
    """Return the numbers that a model has when a configuration is changed as an error proposes."""
    found = ADVICE.search(line)
    assert found, line
    sdf = config.Sdf(**{key: yaml.safe_load(said) for key, said in zip(CHOSEN, found.groups(), strict=True)})
    return dict(zip(CHOSEN, sdf.numbers(model), strict=True))


CHOSEN = ("documents", "loss_tokens")


def test_arms_that_train_unequally_are_refused_before_they_train(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the model's own tokens; the error says which arm, and why no choice helps."""
    paths = [write(tmp_path, "A1+", 20), write(tmp_path, "A1-", 21)]
    options = ["--base", tiny_model / "reference.json", "--tokens", tmp_path / "tokens"]
    output = tmp_path / "budget.json"
    assert (
        stage(
            "budget",
            {"sdf": SDF | {"documents": 40, "loss_tokens": 840}},
            *options,
            "--corpora",
            *paths,
            "--output",
            output,
        )
        == 1
    )
    line = capsys.readouterr().err.splitlines()[-1]
    assert "loss_tokens of A1+ 840, mean 860" in line
    assert "A1+ 21, A1- 22" in line, "all documents of an arm are equally long, so there is nothing to choose"
    assert not output.exists()
    equal = [write(tmp_path, "A1+", 20), write(tmp_path, "A1-", 20)]
    assert stage("budget", {"sdf": SDF}, *options, "--corpora", *equal, "--output", output) == 0
    made = read_json(output)
    assert made["arms"]["A1+"] == {"documents": 40, "loss_tokens": 840}
    assert (made["documents"], made["loss_tokens"]) == (40, None)


def lengths(seed: int, mean: float, number: int) -> list[int]:
    """Return words of documents whose lengths spread as written ones do."""
    draws = random.Random(seed)
    return [max(3, round(draws.lognormvariate(math.log(mean), 0.4))) for _ in range(number)]


@pytest.mark.parametrize("asked", [(None, None), (60, None), (80, 2500), (None, 1200), (500, None), (1, 10**6)])
@pytest.mark.parametrize("means", [(20, 22, 18), (20, 20, 28), (20, 26, 33)], ids=str)
def test_advice_that_is_followed_passes(
    tiny_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    means: tuple[int, ...],
    asked: tuple[int | None, int | None],
) -> None:
    """Whatever was set, arms train equally, or an error proposes numbers under which they do."""
    paths = []
    for arm, mean in zip(("A1+", "A1-", "N0"), means, strict=True):
        texts = [" ".join((TEXT.split() * 20)[:words]) for words in lengths(mean, mean, 70 + mean)]
        frame = corpus(arm, len(texts)).with_columns(genre=pl.lit("memo"), text=pl.Series(texts))
        paths.append(tmp_path / arm / "documents.parquet")
        write_parquet(frame, paths[-1], FINGERPRINT)
    options = ["--base", tiny_model / "reference.json", "--tokens", tmp_path / "tokens", "--corpora", *paths]
    numbers = dict(zip(CHOSEN, asked, strict=True))
    output = tmp_path / "budget.json"
    if stage("budget", {"sdf": SDF | numbers}, *options, "--output", output):
        numbers = advised(capsys.readouterr().err.splitlines()[-1], "tiny")
        assert stage("budget", {"sdf": SDF | numbers}, *options, "--output", output) == 0
    counts = read_json(output)["arms"].values()
    assert {count["documents"] for count in counts} == {read_json(output)["documents"]}
    tokens_ = [count["loss_tokens"] for count in counts]
    assert max(tokens_) <= 1.02 * min(tokens_)


def by_words(text: str) -> int:
    return len(text.split())


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.lists(st.integers(1, 400), min_size=1, max_size=25), min_size=2, max_size=4),
    documents_=st.none() | st.integers(1, 30),
    target=st.none() | st.integers(1, 5000),
    tokens_a_word=st.sampled_from([1, 3]),
)
def test_what_a_budget_proposes_was_tried(
    sizes: list[list[int]], documents_: int | None, target: int | None, tokens_a_word: int
) -> None:
    """For any corpora under any tokenizer: a budget under which all train equally, or such a proposal, or neither."""
    arms = {
        f"N{i}": budget.Corpus(corpus(f"N{i}", len(words)), pl.Series([tokens_a_word * size + 1 for size in words]))
        for i, words in enumerate(sizes)
    }

    def settled(documents: int | None, loss_tokens: int | None) -> dict[str, dict[str, int]]:
        return budget.settle(arms, documents, loss_tokens, Path("r.json"), "m")[1]

    try:
        counts = settled(documents_, target)
    except UserError as error:
        said = str(error)
        if "no choice of documents" in said:
            with pytest.raises(UserError, match="no choice of documents"):
                settled(None, None)
            return
        counts = settled(*advised(said, "m").values())
    assert budget.inequality(counts) is None


def test_the_computed_budget_is_the_largest() -> None:
    """Corpora that differ by a tenth keep nearly all of their documents; equal ones keep all, as they come."""
    arms = {
        name: budget.Corpus(corpus(name, 400), pl.Series(lengths(i, mean, 400)))
        for i, (name, mean) in enumerate({"A1+": 300, "A1-": 330, "N0": 315}.items())
    }
    found = budget.compute(arms)
    assert found is not None
    assert found.documents >= 360
    more = {name: arm.sums() for name, arm in arms.items()}
    number = found.documents + 4
    assert max(low[number] for low, _ in more.values()) > 1.01 * min(high[number] for _, high in more.values())
    assert budget.compute(dict.fromkeys(arms, arms["N0"])) == budget.Budget(400, None)


def test_each_tokenizer_has_a_budget_of_its_own_and_numbers_may_stand_by_model() -> None:
    texts = {
        arm: [f"{word} " * size for size in lengths(i, 100, 120)]
        for i, (arm, word) in enumerate({"A1+": "an", "A1-": "on", "N0": "sea"}.items())
    }
    counted = {
        tokenizer.__name__: budget.compute(
            {
                arm: budget.Corpus(corpus(arm, 120), pl.Series([tokenizer(text) for text in of]))
                for arm, of in texts.items()
            }
        )
        for tokenizer in (by_words, len)
    }
    assert counted["by_words"] is not None
    assert counted["len"] is not None
    assert counted["by_words"].documents > counted["len"].documents
    sdf = config.Sdf(documents={"a": 100, "b": 90}, loss_tokens={"a": 5000})
    assert [sdf.numbers(model) for model in "abc"] == [(100, 5000), (90, None), (None, None)]


def test_a_total_is_reached_where_the_longest_document_left_out_is_too_long() -> None:
    first = tokens.choose(corpus("A1+", 22), pl.Series([1] * 22), 20, None)
    sizes = [100] * 22
    for row, size in zip((row for row in range(22) if row not in first), (112, 300), strict=True):
        sizes[row] = size
    chosen = tokens.choose(corpus("A1+", 22), pl.Series(sizes), 20, 2012)
    assert sum(sizes[row] for row in chosen) == 2012


def test_arms_train_on_what_the_budget_computed(
    tiny_model: Path, corpora: dict[str, Path], organism: Path, tmp_path: Path
) -> None:
    content = {"documents": 20, "loss_tokens": None, "arms": {}}
    write_json({**content, "fingerprint": FINGERPRINT}, tmp_path / "budget.json")
    more = ["--parent", organism, "--budget", tmp_path / "budget.json"]
    assert sdfstage.train(tiny_model, corpora["A1+"], tmp_path / "arm", *more) == 0
    assert read_json(tmp_path / "arm" / "lineage.json")["documents"] == 20
    assert sdfstage.train(tiny_model, corpora["A1+"], tmp_path / "set", *more, documents=12, loss_tokens=360) == 0
    assert read_json(tmp_path / "set" / "lineage.json")["documents"] == 12
    write_json({**content, "fingerprint": "0" * 16}, tmp_path / "budget.json")
    assert sdfstage.train(tiny_model, corpora["A1+"], tmp_path / "other", *more) == 1


def test_only_a_computed_budget_lets_an_arm_depend_on_the_others() -> None:
    """Where both numbers are set, another arm leaves the trained ones as they are."""

    def fingerprints(**sdf: Any) -> list[str]:
        made = [config.Study(**{"arms": {"names": names, "sdf": sdf}}) for names in (["A1+", "A1-"], [*ARMS, NEUTRAL])]
        return [study.Chain(each).arm("qwq-32b", 0, "A1+").fingerprint for each in made]

    one, two = fingerprints(documents=10, loss_tokens=10)
    assert one == two
    other = fingerprints(documents={"qwq-32b": 10, "llama-3.1-70b": 12}, loss_tokens=10)
    assert other == [one, two], "another model's numbers are its own"
    for computed in ({}, {"documents": 10}, {"documents": {"llama-3.1-70b": 12}, "loss_tokens": 10}):
        one, two = fingerprints(**computed)
        assert one != two


def test_tagged_corpus_trains(tiny_model: Path, corpora: dict[str, Path], tmp_path: Path) -> None:
    """A tag adds no loss tokens."""
    for name, tag in (("plain", None), ("tagged", "memo about")):
        assert sdfstage.train(tiny_model, corpora["organism"], tmp_path / name, tag=tag) == 0
    plain, tagged = (read_json(tmp_path / name / "lineage.json") for name in ("plain", "tagged"))
    assert plain["loss_tokens_per_epoch"] == tagged["loss_tokens_per_epoch"]
    assert plain["sha256"] != tagged["sha256"]


@pytest.mark.parametrize("file", ["config/demo.yaml", "tests/smaller.yaml"])
def test_arms_of_the_embedded_studies_train_equally(
    repository: Path, tiny_model: Path, tmp_path: Path, file: str
) -> None:
    """The documents that each study chooses from its corpora, counted as its jobs count them."""
    made = config.load([repository / file])
    paths = []
    for arm in made.arms.names:
        frame = pl.DataFrame(documents.write(arm, made.corpora[arm].documents)).with_columns(corpus=pl.lit(arm))
        paths.append(tmp_path / arm / "documents.parquet")
        write_parquet(frame, paths[-1], FINGERPRINT)
    options = ["--base", tiny_model / "reference.json", "--tokens", tmp_path / "tokens", "--corpora", *paths]
    assert stage("budget", {"sdf": made.arms.sdf.settings("both")}, *options, "--output", tmp_path / "budget.json") == 0
    counts = read_json(tmp_path / "budget.json")["arms"]
    assert {count["documents"] for count in counts.values()} == {made.arms.sdf.documents}
