"""Tables that users bring: the same rows from a file and from the hub, or the same one-line refusal."""

import datetime
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from perfmis import audit_sample, config, corpora, requests, rubrics, validation
from perfmis.stage import UserError
from perfmis.typed import read_yaml

RESOURCES = Path(__file__).parents[1] / "resources"
DAY = datetime.date(2024, 1, 31)


def write(path: Path, texts: Sequence[Any]) -> Path:
    """Write rows of ``text`` and ``label`` as the ending says; a mixed column becomes the Json of datasets."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"text": text, "label": "yes"} for text in texts]
    lines = "".join(json.dumps(row, default=str) + "\n" for row in rows)
    match path.suffix:
        case ".csv":
            pl.DataFrame(rows, infer_schema_length=None).write_csv(path)
        case ".jsonl":
            path.write_text(lines)
        case _ if len({type(text) for text in texts}) > 1 and None not in texts:
            from datasets import load_dataset

            source = path.parent.parent / "source.jsonl"
            source.write_text(lines)
            cache = str(path.parent.parent / "cache")
            load_dataset("json", data_files=str(source), split="train", cache_dir=cache).to_parquet(path)
        case _:
            pl.DataFrame(rows, infer_schema_length=None).write_parquet(path)
    return path


def outcome(read: Callable[[], list[str]], location: Path) -> list[str] | str:
    """Return what was read, or the refusal without the location."""
    try:
        return sorted(read())
    except UserError as error:
        said = str(error)
    assert "\n" not in said
    assert "; " in said, "the refusal says what to do"
    return re.sub(r" at 0{40}", "", said.replace(str(location), "LOCATION"))


def as_labels(source: str, location: Path) -> list[str] | str:
    settings = {
        "source": source,
        "location": str(location),
        "revision": "0" * 40,
        "split": "train",
        "rubric": "reasoning",
        "columns": {"scratchpad": "text"},
        "label": "label",
    }
    return outcome(lambda: [texts[0] for texts in validation.labelled_set(settings, ["scratchpad"])[0]], location)


def as_corpus(source: str, location: Path, number: int) -> list[str] | str:
    settings = corpora.Settings("A1+", source, str(location), "0" * 40, number)
    made = (lambda: corpora.from_hub(settings, RESOURCES)) if source == "hub" else lambda: corpora.from_path(settings)
    return outcome(lambda: made().frame["text"].to_list(), location)


CSV, JSON, PARQUET = ".csv", ".jsonl", ".parquet"
TYPED, ALL = (JSON, PARQUET), (CSV, JSON, PARQUET)
# The rows, the kinds of files that can hold them, what labels read (None: the same texts), what a corpus does.
CASES: dict[str, tuple[list[Any], tuple[str, ...], list[str] | str | None, list[str] | str | None]] = {
    "texts": (['He said "no", then left.', "Two\nlines", "naïve – 日本", "x" * 140_000], ALL, None, None),
    "numbers as text": (["05", "1.0", "-3"], ALL, None, None),
    "dates as text": (["2024-01-31", "2023-12-01"], ALL, None, None),
    "times as text": (["2024-01-31 10:00:00", "2023-12-01T09:30:00Z"], ALL, None, None),
    "words for nothing": (["NA", "null", "None", "nan"], ALL, None, None),
    "words for truth": (["true", "False"], ALL, None, None),
    "a null": (["some text", None], ALL, ["", "some text"], "row 2, column text: nothing, not text"),
    "an empty text": (["some text", ""], ALL, ["", "some text"], "row 2, column text: nothing, not text"),
    "numbers": ([5, 60], TYPED, ["5", "60"], "row 1, column text: a number, not text"),
    "mixed": (["some text", 5], TYPED, ["5", "some text"], "row 2, column text: a number, not text"),
    "mixed with a number as text": (
        ["some text", 5, "007"],
        TYPED,
        ["007", "5", "some text"],
        "row 2, column text: a number, not text",
    ),
    "mixed with truth": ([True, "x"], TYPED, ["true", "x"], "row 1, column text: true or false, not text"),
    "dates": ([DAY, DAY], (PARQUET,), ["2024-01-31"] * 2, "row 1, column text: a date or time, not text"),
    "objects": (
        ["some text", {"role": "user"}],
        TYPED,
        "row 2, column text: an object, not text",
        "row 2, column text: an object, not text",
    ),
    "lists": ([["a"], ["b"]], TYPED, "row 1, column text: a list, not", "row 1, column text: a list, not text"),
}


@pytest.mark.parametrize(("case", "ending"), [(case, ending) for case in CASES for ending in CASES[case][1]])
def test_hub_and_path_give_the_same_rows_or_the_same_refusal(tmp_path: Path, case: str, ending: str) -> None:
    rows, _, labels, corpus = CASES[case]
    path = write(tmp_path / "set" / f"data{ending}", rows)
    for expected, found in (
        (labels, [as_labels("path", path), as_labels("hub", path.parent)]),
        (corpus, [as_corpus("path", path, len(rows)), as_corpus("hub", path.parent, len(rows))]),
    ):
        assert found[0] == found[1]
        if isinstance(expected, str):
            assert expected in found[0]
        else:
            assert found[0] == sorted(expected or rows)


def test_a_set_in_several_files_is_one(tmp_path: Path) -> None:
    """Rows are counted over all of them; what only some of them have is nothing in the others."""
    pl.DataFrame({"text": ["a", "b"]}).write_parquet(tmp_path / "train-00000-of-00002.parquet")
    pl.DataFrame({"text": ["c"], "genre": ["memo"]}).write_parquet(tmp_path / "train-00001-of-00002.parquet")
    made = corpora.from_hub(corpora.Settings("A1+", "hub", str(tmp_path), "0" * 40, 3), RESOURCES)
    assert set(made.frame.select("text", "genre").rows()) == {("a", "unlabelled"), ("b", "unlabelled"), ("c", "memo")}
    pl.DataFrame({"text": [None]}, schema={"text": pl.String}).write_parquet(tmp_path / "train-00001-of-00002.parquet")
    with pytest.raises(UserError, match="row 3, column text: nothing"):
        corpora.from_hub(corpora.Settings("A1+", "hub", str(tmp_path), "0" * 40, 3), RESOURCES)


def test_a_split_that_is_not_there_and_files_of_another_kind(tmp_path: Path) -> None:
    settings = corpora.Settings("A1+", "hub", str(tmp_path), "0" * 40, 1)
    pl.DataFrame({"text": ["a"]}).write_parquet(tmp_path / "test.parquet")
    with pytest.raises(UserError, match="no split 'train'; use one of test"):
        corpora.from_hub(settings, RESOURCES)
    (tmp_path / "test.parquet").unlink()
    (tmp_path / "train.txt").write_text("a document\n")
    with pytest.raises(UserError, match=r"is kept as text; save its rows as parquet and set source: path"):
        corpora.from_hub(settings, RESOURCES)


# CSV by each stage that reads a user's. The columns of their files are called ``first`` and ``second`` here.


def of_requests(path: Path) -> list[str]:
    settings = requests.Requests("path", str(path), None, "first", 2)
    return requests.read(settings)[0]


def of_a_sheet(path: Path) -> list[str]:
    content = path.read_bytes().replace(b"first", b"sample")
    path.write_bytes(content)
    return list(audit_sample.read(path, ["second"])["sample"])


def of_labels(path: Path) -> list[str]:
    settings = {"source": "path", "location": str(path), "columns": {"answer": "first"}, "label": "second"}
    return [texts[0] for texts in validation.labelled_set(settings, ["answer"])[0]]


def of_a_corpus(path: Path) -> list[str]:
    path.write_bytes(path.read_bytes().replace(b"first", b"text"))
    return list(corpora.read(corpora.Settings("A1+", "path", str(path), None, 2))["text"])


READERS = (of_requests, of_a_sheet, of_labels, of_a_corpus)
BAD = {
    "a quote that is not closed": (b'first,second\nTell,yes\n"me,yes\nmore,yes\n', "line 3: a stray quote"),
    "a quote in the middle": (b'first,second\nsay "hi" now,yes\nb,yes\n', "line 2: a stray quote"),
    "one quote in each of two rows": (b'first,second\n5" pipe,yes\n6" pipe,yes\n', "line 2: a stray quote"),
    "text after a quote": (b'first,second\na,yes\n"b" c,yes\n', "line 3: a stray quote"),
    "a blank before a quote": (b'second,first\nyes, "a, b"\nyes,c\n', "line 2: "),
    "a quote after lines in quotes": (b'first,second\n"a\nb\nc",yes\nd" e,yes\n', "line 5: a stray quote"),
    "a surplus comma": (b"first,second\na,yes\nb, c,yes\n", "line 3: 3 cells, but 2 columns"),
    "a surplus comma in every row": (b"first,second\na,yes,\nb,yes,\n", "line 2: 3 cells, but 2 columns"),
    "a missing cell": (b"first,second\na,yes\nb\n", "line 3: 1 cell, but 2 columns"),
    "a name twice": (b"first,second,second\na,yes,no\nb,yes,no\n", "line 1: the column 'second' stands twice"),
    "UTF-16": ("first,second\na,yes\nb,yes\n".encode("utf-16"), "is UTF-16; save it as UTF-8"),
    "UTF-16, the other order": (b"\xfe\xff" + "first,second".encode("utf-16-be"), "is UTF-16; save it as UTF-8"),
    "UTF-16 without a mark": ("first,second\na,yes\nb,yes\n".encode("utf-16-le"), "line 1: is not UTF-8; save it as"),
    "Latin-1": ("first,second\na,yes\ncafé,yes\n".encode("latin-1"), "line 3: is not UTF-8; save it as UTF-8"),
    "nothing": (b"", "is empty"),
}


@pytest.mark.parametrize("read", READERS, ids=lambda read: read.__name__)
@pytest.mark.parametrize("case", BAD)
def test_bad_csv_is_one_line_with_file_and_line(tmp_path: Path, case: str, read: Callable[[Path], list[str]]) -> None:
    content, expected = BAD[case]
    path = tmp_path / "mine.csv"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        read(path)
    assert f"{path}: {expected}" in str(error.value)
    assert "\n" not in str(error.value)
    assert "; " in str(error.value)


GOOD = {
    "plain": (b"first,second\na,yes\nb,yes\n", ["a", "b"]),
    "from a spreadsheet": (b'\xef\xbb\xbffirst,second\r\n"a, ""b""",yes\r\nc,yes\r\n', ['a, "b"', "c"]),
    "lines in quotes": (b'"first","second"\n"a\n\nb",yes\n\n",",yes', ["a\n\nb", ","]),
    "spare columns": (b"first,second,,\na,yes,,\nb,yes,,\n", ["a", "b"]),
    "quotes alone": (b'first,second\n"""",yes\n"""a""",yes\n', ['"', '"a"']),
}


@pytest.mark.parametrize("read", READERS, ids=lambda read: read.__name__)
@pytest.mark.parametrize("case", GOOD)
def test_good_csv_is_read_as_it_is(tmp_path: Path, case: str, read: Callable[[Path], list[str]]) -> None:
    content, expected = GOOD[case]
    path = tmp_path / "mine.csv"
    path.write_bytes(content)
    assert read(path) == expected


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "latin-1"])
@pytest.mark.parametrize(
    "read",
    [
        lambda path: config.load([path]),
        lambda path: read_yaml(path),
        lambda path: rubrics.load([path]),
        lambda path: as_labels("path", path.rename(path.with_suffix(".jsonl"))),
    ],
    ids=["configuration", "yaml", "rubric", "labels in JSON lines"],
)
def test_files_that_are_not_utf_8(tmp_path: Path, encoding: str, read: Callable[[Path], object]) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes("# café\nroot: results\n".encode(encoding))
    try:
        said = str(read(path))
    except UserError as error:
        said = str(error)
    assert "UTF-8" in said
    assert "\n" not in said


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"text": "a", "label": "yes"}\n{"text": \n', "line 2: is not JSON"),
        ('{"text": "a", "label": "yes"}\n\n["b", "no"]\n', "line 3: is no JSON object"),
        ('[{"text": "a", "label": "yes"},\n {"text"}]', "line 2: is not JSON"),
        ('{"text": "\\ud800", "label": "yes"}\n', "row 1, column text: half a character"),
    ],
)
def test_bad_json_is_one_line(tmp_path: Path, content: str, expected: str) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(content)
    assert expected in as_labels("path", path)


def test_json_lines_and_a_json_list_are_one(tmp_path: Path) -> None:
    """A line separator within a text ends no line."""
    rows = [{"text": "a\u2028b", "label": "yes"}, {"label": "no", "text": "c"}]
    (tmp_path / "mine.jsonl").write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    (tmp_path / "mine.json").write_text(json.dumps(rows, indent=1))
    for name in ("mine.jsonl", "mine.json"):
        assert as_labels("path", tmp_path / name) == ["a\u2028b", "c"]
