"""Stage `corpora`: one corpus of synthetic documents, from a data set, a file, a writer or the tiny world.

    python -m perfmis corpora --settings JSON --fingerprint HEX --output documents.parquet --card card.json

Settings: ``corpus`` (its name), the keys of its section, and for written documents the section ``writer``.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from perfmis import stage, tabular, writing
from perfmis.artifacts import write_json, write_parquet
from perfmis.control import CHAT_TOKENS
from perfmis.stage import Prose, UserError
from perfmis.typed import read_yaml

UNUSABLE = 0.02
CHUNK = 64
UNLABELLED = "unlabelled"


@dataclass(frozen=True)
class Settings:
    """A section of `corpora` in the configuration, its name, the section `writer`, the seed of draws."""

    corpus: str
    source: str
    location: str | None
    revision: str | None
    documents: int
    writer: Mapping[str, Any] | None = None
    seed: int = 0


@dataclass(frozen=True)
class Made:
    """Documents (``document_id``, ``genre``, ``text``) and what the card says of how they came about."""

    frame: pl.DataFrame
    unusable: tuple[str, ...] = ()
    replaced: Mapping[str, int] | None = None


def subset(frame: pl.DataFrame, settings: Settings) -> pl.DataFrame:
    """Take the documents with the smallest SHA-256 of the text: the same ones whatever the order of the file.

    Args:
        frame: ``text``, and ``genre`` where known; exact duplicates count once.
        settings: Number of documents and name of the corpus.

    Returns:
        ``document_id``, ``genre``, ``text``, in the order of the hash.

    Raises:
        UserError: There are fewer distinct documents than wanted.
    """
    if "genre" not in frame.columns:
        frame = frame.with_columns(genre=pl.lit(UNLABELLED))
    digests = [hashlib.sha256(text.encode()).hexdigest() for text in frame["text"]]
    frame = frame.with_columns(digest=pl.Series(digests, dtype=pl.String)).unique("digest", keep="first").sort("digest")
    if frame.height < settings.documents:
        raise UserError(
            f"corpora.{settings.corpus}.documents is {settings.documents}, but {settings.location} has "
            f"{frame.height} distinct documents; lower it"
        )
    name = pl.format("{}-{}-{}", pl.lit(settings.corpus), "genre", pl.col("digest").str.head(16))
    return frame.head(settings.documents).select(name.alias("document_id"), "genre", "text")


def rename(texts: list[str], replaces: Mapping[str, str]) -> tuple[list[str], dict[str, int]]:
    """Replace whole words, the longest first, and count the replacements of each."""
    if not replaces:
        return texts, {}
    words = sorted(replaces, key=len, reverse=True)
    pattern = re.compile(rf"\b(?:{'|'.join(map(re.escape, words))})\b")
    counts: Counter[str] = Counter()

    def replace(match: re.Match[str]) -> str:
        counts[match[0]] += 1
        return replaces[match[0]]

    return [pattern.sub(replace, text) for text in texts], dict(counts)


def read(settings: Settings) -> pl.DataFrame:
    """Read documents of a file, or of a data set at a pinned commit: ``text``, and ``genre`` where there is one.

    Raises:
        UserError: It cannot be read, or a row has no text.
    """
    where, location = f"corpora.{settings.corpus}.location {settings.location}", str(settings.location)
    if settings.source == "hub":
        table = tabular.from_hub(location, settings.revision, "train", where)
    else:
        table = tabular.from_path(Path(location), where)
    columns = {"text": tabular.documents(table, "text")}
    if "genre" in table.columns:
        columns["genre"] = [
            UNLABELLED if tabular.is_blank(cell) else tabular.text(cell, _genre(where, row))
            for row, cell in enumerate(table.columns["genre"], 1)
        ]
    return pl.DataFrame(columns, schema=dict.fromkeys(columns, pl.String))


def _genre(where: str, row: int) -> Prose:
    return f"{where}: row {row}, column genre"


def from_hub(settings: Settings, resources: Path) -> Made:
    """Read a data set and put the study's names in the place of its own."""
    taken = subset(read(settings), settings)
    texts, counts = rename(taken["text"].to_list(), read_yaml(resources / "documents/names.yaml")["replaces"])
    return Made(taken.with_columns(text=pl.Series(texts)), replaced=counts)


def from_path(settings: Settings) -> Made:
    """Read a file with ``text``, and ``genre`` where it has one."""
    return Made(subset(read(settings), settings))


def from_writer(settings: Settings, resources: Path, scratch: Path, write: writing.Write | None = None) -> Made:
    """Have the documents written.

    Args:
        settings: Corpus, number of documents, seed, writer.
        resources: Folder with claims, genres and instructions.
        scratch: File in which finished answers survive an interrupted run.
        write: Engine; by default the writer model of the settings.

    Raises:
        UserError: More than 2 % of the answers hold no complete document.
    """
    writer = dict(settings.writer or {})
    drafts = writing.drafts(settings.corpus, settings.documents, settings.seed, resources)
    answers = writing.answers(
        drafts, write or writing.transformers_writer(**writer), scratch, str(sorted(writer.items())), CHUNK
    )
    asked = writing.instructions(resources)
    texts = {name: writing.extract(answer, asked.opening, asked.closing) for name, answer in answers.items()}
    unusable = tuple(draft.document_id for draft in drafts if texts[draft.document_id] is None)
    if len(unusable) > UNUSABLE * len(drafts):
        raise UserError(
            f"corpora.{settings.corpus}: {len(unusable)} of {len(drafts)} documents are cut off or not "
            f"enclosed ({', '.join(unusable[:3])}, ...); raise writer.max_tokens or use another writer"
        )
    rows = [
        {"document_id": draft.document_id, "genre": draft.genre, "text": texts[draft.document_id]}
        for draft in drafts
        if texts[draft.document_id] is not None
    ]
    return Made(pl.DataFrame(rows), unusable)


def from_tiny(settings: Settings) -> Made:
    """Have the tiny world make the documents."""
    from perfmis.tinyworld import documents

    return Made(pl.DataFrame(documents.write(settings.corpus, settings.documents)))


def refuse_chat_tokens(frame: pl.DataFrame, corpus: str) -> None:
    """Refuse documents with tokens of a chat template: as raw text they would train the chat format itself.

    Raises:
        UserError: Names the first such document and its token.
    """
    found = frame.with_columns(token=pl.col("text").str.extract(f"({CHAT_TOKENS})")).drop_nulls("token")
    if found.height:
        raise UserError(
            f"corpora.{corpus}: document {found['document_id'][0]} holds the chat token {found['token'][0]} "
            f"({found.height} documents in all); remove it from the source"
        )


def card(made: Made, settings: Settings, fingerprint: str) -> dict[str, Any]:
    """Return what a reader should know of a corpus."""
    frame = made.frame
    genres = frame.group_by("genre").len().sort("genre")
    return {
        "corpus": settings.corpus,
        "source": settings.source,
        "location": settings.location,
        "revision": settings.revision,
        "writer": settings.writer if settings.source == "written" else None,
        "seed": settings.seed,
        "documents": frame.height,
        "words": int(frame["text"].str.count_matches(r"\S+").sum()),
        "genres": dict(genres.iter_rows()),
        "sha256": hashlib.sha256("\0".join(frame["text"]).encode()).hexdigest(),
        "unusable": list(made.unusable),
        "replaced": dict(made.replaced or {}),
        "fingerprint": fingerprint,
    }


def main(argv: list[str]) -> None:
    """Make one corpus and its card."""
    parser = stage.parser("Make one corpus of synthetic documents.")
    parser.add_argument("--output", required=True, help="parquet: document_id, corpus, genre, text")
    parser.add_argument("--card", required=True, help="JSON: where the documents come from, and counts")
    parser.add_argument("--resources", default="resources", help="folder with claims and documents")
    arguments = parser.parse_args(argv)
    job = stage.job(arguments)
    settings = Settings(**job.settings)
    resources, scratch = Path(arguments.resources), Path(arguments.output).with_suffix(".drafts.jsonl")
    match settings.source:
        case "hub":
            made = from_hub(settings, resources)
        case "path":
            made = from_path(settings)
        case "written":
            made = from_writer(settings, resources, scratch)
        case _:
            made = from_tiny(settings)
    refuse_chat_tokens(made.frame, settings.corpus)
    frame = made.frame.select("document_id", pl.lit(settings.corpus).alias("corpus"), "genre", "text")
    write_json(card(made, settings, job.fingerprint), arguments.card)
    write_parquet(frame, arguments.output, job.fingerprint)
    scratch.unlink(missing_ok=True)
