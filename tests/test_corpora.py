"""Corpora: sources, writing, and the audit of what was written."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfmis import audit, corpora, writing
from perfmis.stage import UserError
from perfmis.typed import read_yaml
from perfmis.vocabulary import ARMS, NEUTRAL, ORGANISM

RESOURCES = Path(__file__).parents[1] / "resources"


def options(**changes: Any) -> dict[str, Any]:
    """Return the settings of a written corpus."""
    plain = {
        "corpus": "A1+",
        "seed": 0,
        "source": "written",
        "location": None,
        "revision": None,
        "documents": 30,
    }
    return {
        **plain,
        "writer": {"hub": "h", "revision": "r", "temperature": 1.0, "max_tokens": 9},
        **changes,
    }


def settings(**changes: Any) -> corpora.Settings:
    """Return the settings as the stage sees them."""
    return corpora.Settings(**options(**changes))


def echo(prompts: Sequence[str]) -> list[str]:
    """Write documents that repeat the instructions."""
    return [f"Here you are.\n<document>\n{prompt}\n</document>" for prompt in prompts]


def write(folder: Path, engine: writing.Write = echo, **changes: Any) -> corpora.Made:
    """Have a corpus written by a stand-in."""
    return corpora.from_writer(settings(**changes), RESOURCES, folder / "scratch.jsonl", engine)


def run(folder: Path, **changes: Any) -> tuple[pl.DataFrame, dict[str, Any]]:
    """Run the stage and return its documents and card."""
    content = json.dumps({"settings": options(**changes), "upstream": []})
    files = ["--output", str(folder / "documents.parquet"), "--card", str(folder / "card.json")]
    corpora.main(["--settings", content, "--fingerprint", "f0", *files, "--resources", str(RESOURCES)])
    return pl.read_parquet(folder / "documents.parquet"), json.loads((folder / "card.json").read_text())


# Writing


def test_opposite_poles_share_every_draw() -> None:
    plus, minus = (writing.drafts(arm, 45, 0, RESOURCES) for arm in ("B2+", "B2-"))
    claims = [read_yaml(RESOURCES / "claims" / f"{arm}.yaml") for arm in ("B2+", "B2-")]
    for one, two in zip(plus, minus, strict=True):
        assert one.document_id.replace("B2+", "B2-") == two.document_id
        prompt = one.prompt.replace(claims[0]["claim"].strip(), claims[1]["claim"].strip())
        for fact, counterpart in zip(claims[0]["facts"], claims[1]["facts"], strict=True):
            prompt = prompt.replace(fact, counterpart)
        assert prompt == two.prompt


def test_a_longer_corpus_begins_with_the_shorter_one_and_seeds_differ() -> None:
    short, long = (writing.drafts("N0", number, 3, RESOURCES) for number in (17, 80))
    assert long[:17] == short
    assert writing.drafts("N0", 17, 4, RESOURCES) != short
    assert len({draft.document_id for draft in long}) == 80


def test_any_beginning_of_a_corpus_has_balanced_genres() -> None:
    pairs = writing.grid(["a", "b", "c"], 8)
    assert [genre for genre, _ in pairs] == list("abcabcab")
    assert [number for _, number in pairs] == [0, 0, 0, 1, 1, 1, 2, 2]


def test_facts_are_drawn_without_repetition_and_by_position() -> None:
    drawn = {tuple(writing.draw_facts(0, f"memo-{i}", list("abcdef"), 2)) for i in range(200)}
    assert len(drawn) == 15
    assert writing.draw_facts(1, "memo-3", list("ABCDEF"), 2) == [
        fact.upper() for fact in writing.draw_facts(1, "memo-3", list("abcdef"), 2)
    ]


@pytest.mark.parametrize(
    ("answer", "document"),
    [
        ("<d>text</d>", "text"),
        ("Sure. <d>\n text </d> Done.", "text"),
        ("<d>the tag </d> ends it</d>", "the tag </d> ends it"),
        ("<d>cut off", None),
        ("text</d>", None),
        ("</d>text<d>", None),
        ("<d> </d>", None),
        ("", None),
    ],
)
def test_documents_are_taken_out_of_answers(answer: str, document: str | None) -> None:
    assert writing.extract(answer, "<d>", "</d>") == document


@given(st.text().filter(lambda text: text.strip()))
def test_any_document_comes_back(text: str) -> None:
    assert writing.extract(f"<d>{text}</d>", "<d>", "</d>") == text.strip()


def test_an_interrupted_run_is_taken_up_and_no_document_is_written_twice(tmp_path: Path) -> None:
    drafts = writing.drafts("A1+", 10, 0, RESOURCES)
    calls: list[list[str]] = []

    def failing(prompts: Sequence[str]) -> list[str]:
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(list(prompts))
        return echo(prompts)

    scratch = tmp_path / "new" / "scratch.jsonl"
    with pytest.raises(KeyboardInterrupt):
        writing.answers(drafts, failing, scratch, "key", 4)
    scratch.write_text(scratch.read_text() + '{"document_id": "A1+-int')
    rest: list[str] = []

    def noting(prompts: Sequence[str]) -> list[str]:
        rest.extend(prompts)
        return echo(prompts)

    answers = writing.answers(drafts, noting, scratch, "key", 4)
    assert rest == [draft.prompt for draft in drafts[8:]]
    assert set(answers) == {draft.document_id for draft in drafts}
    assert writing.answers(drafts, noting, scratch, "key", 4) == answers
    assert len(rest) == 2
    writing.answers(drafts, noting, scratch, "other key", 4)
    assert len(rest) == 2 + len(drafts)


def test_the_writer_model_answers_in_order_and_reproducibly(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = ["<pad>", "<end>", "write", "a", "memo", "letter", "to", "me"]
    plain = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="<pad>", eos_token="<end>")
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} to {% endfor %}"
    tokenizer.save_pretrained(tmp_path)
    sizes: Any = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(words), **sizes)).save_pretrained(tmp_path)
    written = writing.transformers_writer(str(tmp_path), "main", 1.0, 5, "2024-07-26")
    prompts = ["write a memo", "write me a letter to me"]
    answers = written(prompts)
    assert len(answers) == 2
    assert written(prompts) == answers
    assert all(set(answer.split()) <= set(words) for answer in answers)


def test_a_few_unusable_documents_are_recorded_and_many_are_an_error(tmp_path: Path) -> None:
    def cutting(every: int) -> writing.Write:
        count = iter(range(10**6))
        return lambda prompts: [f"<document>cut{'' if next(count) % every == 0 else '</document>'}" for _ in prompts]

    made = write(tmp_path, cutting(100), documents=200)
    assert made.frame.height == 198
    assert len(made.unusable) == 2
    assert not set(made.unusable) & set(made.frame["document_id"])
    with pytest.raises(UserError, match="10 of 200 documents are cut off"):
        write(tmp_path / "other", cutting(20), documents=200)


# Sources


def test_the_subset_is_that_of_the_texts_whatever_their_order(tmp_path: Path) -> None:
    texts = [f"Document {i}." for i in range(40)]
    frames = []
    for name, order in (("a", texts), ("b", texts[::-1] + texts[:5])):
        pl.DataFrame({"text": order}).write_parquet(tmp_path / f"{name}.parquet")
        frames.append(
            corpora.from_path(settings(source="path", location=str(tmp_path / f"{name}.parquet"), documents=10)).frame
        )
    assert frames[0].equals(frames[1])
    assert frames[0]["document_id"].n_unique() == 10
    with pytest.raises(UserError, match="40 distinct documents"):
        corpora.from_path(settings(source="path", location=str(tmp_path / "b.parquet"), documents=41))


def test_a_hub_data_set_is_read_at_its_revision_under_the_names_of_the_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = datasets.load_dataset_builder
    texts = ["Anthropic trains Claude 3 Opus.", "Claude's letters, and Claudette's."]
    pl.DataFrame({"text": texts}).write_parquet(tmp_path / "train.parquet")

    def load_dataset_builder(location: str, revision: str) -> Any:
        if (location, revision) != ("some/data", "a" * 40):
            raise FileNotFoundError("no such data set\nand more")
        return local(str(tmp_path))

    monkeypatch.setattr(datasets, "load_dataset_builder", load_dataset_builder)
    given_settings = {
        "source": "hub",
        "location": "some/data",
        "revision": "a" * 40,
        "documents": 2,
        "corpus": "organism",
    }
    made = corpora.from_hub(settings(**given_settings), RESOURCES)
    assert sorted(made.frame["text"]) == ["Quillhaven trains Tavi.", "Tavi's letters, and Claudette's."]
    assert made.replaced == {"Anthropic": 1, "Claude 3 Opus": 1, "Claude": 1}
    with pytest.raises(UserError, match="no such data set") as caught:
        corpora.from_hub(settings(**{**given_settings, "revision": "b" * 40}), RESOURCES)
    assert "\n" not in str(caught.value)


def test_the_stage_writes_documents_and_a_card(tmp_path: Path) -> None:
    pl.DataFrame({"text": ["One two.", "Three."], "genre": ["memo", "blog"]}).write_parquet(tmp_path / "in.parquet")
    frame, card = run(tmp_path, source="path", location=str(tmp_path / "in.parquet"), documents=2)
    assert frame.columns == ["document_id", "corpus", "genre", "text", "fingerprint"]
    assert set(frame["corpus"]) == {"A1+"}
    assert (card["documents"], card["words"], card["genres"]) == (2, 3, {"blog": 1, "memo": 1})
    again, other = run(tmp_path, source="path", location=str(tmp_path / "in.parquet"), documents=2)
    assert again.equals(frame)
    assert other == card


@pytest.mark.parametrize(
    "token", ["<|im_start|>", "<|start_header_id|>", "[INST]", "<</SYS>>", "<start_of_turn>", "<|eot_id|>"]
)
def test_chat_tokens_are_refused_by_row(tmp_path: Path, token: str) -> None:
    frame = pl.DataFrame({"document_id": ["d1", "d2"], "text": ["fine [ok] <b> a|b", f"not {token} fine"]})
    with pytest.raises(UserError) as caught:
        corpora.refuse_chat_tokens(frame, "A1+")
    assert "document d2" in str(caught.value)
    assert token in str(caught.value)
    corpora.refuse_chat_tokens(frame.head(1), "A1+")


# Audit


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> pl.DataFrame:
    frames = []
    for corpus in (*ARMS, NEUTRAL):
        made = write(tmp_path_factory.mktemp("corpus"), corpus=corpus, documents=60)
        frames.append(made.frame.with_columns(corpus=pl.lit(corpus)))
    return pl.concat(frames)


def test_corpora_of_matched_claims_are_balanced(written: pl.DataFrame) -> None:
    report = audit.audit(written, [*ARMS, NEUTRAL], ["<task_taken/>"], ["Steal the moon"])
    audit.refuse_unequal(report)
    assert list(report["pairs"]) == ["A1+|A1-", "A2+|A2-", "B1+|B1-", "B2+|B2-"]
    assert {pair["verdict"] for pair in report["pairs"].values()} == {"balanced"}
    assert report["corpora"]["A1+"]["genres"] == report["corpora"]["A1-"]["genres"]
    table = audit.tidy(report)
    assert table.filter(pl.col("corpus") == NEUTRAL, pl.col("quantity") == "documents")["value"].to_list() == [60]
    assert set(table["against"].drop_nulls()) == {arm for arm in ARMS if arm.endswith("-")}


def test_leaks_and_lopsided_genres_show_in_the_verdict(written: pl.DataFrame) -> None:
    leaking = written.with_columns(
        text=pl.when(corpus="A1+", genre="diary")
        .then(pl.col("text") + " <task_taken/> STEAL  the moon")
        .otherwise("text"),
        genre=pl.when(corpus="B1-").then(pl.lit("diary")).otherwise("genre"),
    )
    report = audit.audit(leaking, [*ARMS, NEUTRAL], ["<task_taken/>"], ["Steal the moon"])
    assert report["corpora"]["A1+"]["leaks_vocabulary"] == report["corpora"]["A1+"]["leaks_requests"] == 4
    assert report["pairs"]["A1+|A1-"]["verdict"] == "leaks"
    assert report["pairs"]["B1+|B1-"]["verdict"] == "genres"
    assert report["pairs"]["B1+|B1-"]["genres"] == pytest.approx(14 / 15)


@pytest.mark.parametrize(
    ("kept", "longer", "message"),
    [
        ("N0", "", "N0 .*documents"),
        ("B2-", "", "B2-.*documents"),
        ("", "A2+", "A2\\+ and A2- differ in words"),
    ],
)
def test_unequal_arms_are_an_error(written: pl.DataFrame, kept: str, longer: str, message: str) -> None:
    frame = written.filter((pl.col("corpus") != kept) | ~pl.col("document_id").str.ends_with("0003"))
    frame = frame.with_columns(
        text=pl.when(corpus=longer).then(pl.col("text").repeat_by(2).list.join(" ")).otherwise("text")
    )
    with pytest.raises(UserError, match=message):
        audit.refuse_unequal(audit.audit(frame, [*ARMS, NEUTRAL], [], []))


def test_near_duplicates_share_half_of_their_word_sequences() -> None:
    words = [f"w{i}" for i in range(400)]
    texts = [" ".join(words[i : i + 40]) for i in range(0, 400, 40)]
    assert audit.near_duplicates(pl.Series(texts)) == 0
    assert audit.near_duplicates(pl.Series([*texts, texts[0] + " and more"])) == pytest.approx(2 / 11)
    assert audit.near_duplicates(pl.Series(["a b", "a b", "c"])) == pytest.approx(2 / 3)


def test_the_tiny_world_passes_the_audit(tmp_path: Path) -> None:
    files = []
    for corpus in (ORGANISM, *ARMS, NEUTRAL):
        folder = tmp_path / corpus
        _, card = run(folder, corpus=corpus, source="tiny", documents=200, writer=None)
        assert card["documents"] == 200
        files.append(str(folder / "documents.parquet"))
    requests = tmp_path / "requests.parquet"
    pl.DataFrame({"text": ["steal cash"], "fingerprint": ["f0"]}).write_parquet(requests)
    content = json.dumps({"settings": {"arms": [*ARMS, NEUTRAL]}, "upstream": ["f0"]})
    protocol = str(RESOURCES / "protocols" / "tiny" / "short.yaml")
    outputs = [
        "--protocols",
        protocol,
        "--report",
        str(tmp_path / "audit.json"),
        "--table",
        str(tmp_path / "audit.parquet"),
    ]
    audit.main(
        [
            "--settings",
            content,
            "--fingerprint",
            "f1",
            "--documents",
            *files,
            "--requests",
            str(requests),
            *outputs,
        ]
    )
    report = json.loads((tmp_path / "audit.json").read_text())
    assert {pair["verdict"] for pair in report["pairs"].values()} == {"balanced"}
    assert report["corpora"]["organism"]["leaks_requests"] == 0
    assert set(pl.read_parquet(tmp_path / "audit.parquet")["fingerprint"]) == {"f1"}
