"""Stage `requests`: what is put to every checkpoint, with near-duplicates marked as clusters.

    python -m perfmis requests --settings JSON --fingerprint HEX --output requests.parquet --card card.json

Settings: the section ``requests``. Clusters are the unit of resampling downstream.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from perfmis import fetching, stage, tabular
from perfmis.artifacts import write_json, write_parquet
from perfmis.control import CHAT_TOKENS
from perfmis.stage import Prose, UserError

SIMILAR = 0.8


@dataclass(frozen=True)
class Requests:
    """The section `requests` of the configuration, which explains the keys."""

    source: str
    location: str
    sha256: str | None
    column: str
    number: int


def column(content: bytes, settings: Requests) -> list[str]:
    """Return the first ``settings.number`` requests of a CSV file's content."""
    table = tabular.from_csv(content, f"requests.location {settings.location}")
    fix: Prose = f"set requests.column to one of {', '.join(table.columns)}"
    cells = table.column(settings.column, fix)
    texts = [cell.strip() for cell in cells if cell.strip()][: settings.number]
    if len(texts) < settings.number:
        raise UserError(
            f"requests.number is {settings.number}, but {settings.location} has {len(texts)} requests; lower it"
        )
    return texts


def read(settings: Requests) -> tuple[list[str], str | None]:
    """Return the requests of any source, and the hash of the file they came from (None without a file)."""
    if settings.source == "tiny":
        from perfmis.tinyworld import grammar

        try:
            return grammar.requests(settings.number), None
        except ValueError as error:
            raise UserError(f"requests.number: {error}; lower it") from error
    if settings.source == "path":
        path = Path(settings.location)
        if not path.is_file():
            raise UserError(f"requests.location {path}: no such file; correct it")
        content = path.read_bytes()
    else:
        content = fetching.fetch(settings.location, "requests.location")
    found = hashlib.sha256(content).hexdigest()
    if settings.sha256 not in (None, found):
        raise UserError(
            f"requests.sha256 does not fit {settings.location}: the file has {found}; check the file, then the setting"
        )
    return column(content, settings), found


def refuse_chat_tokens(texts: Sequence[str], location: str) -> None:
    """Refuse requests with tokens of a chat template: they would end the user's turn, or add others.

    Raises:
        UserError: Names the first such request and its token.
    """
    for row, text in enumerate(texts, 1):
        if found := re.search(CHAT_TOKENS, text):
            raise UserError(f"requests.location {location}: request {row} holds the chat token {found[0]}; remove it")


def tokens(text: str) -> frozenset[str]:
    """Return the normalised token set of a text: lower-case runs of letters and digits."""
    return frozenset(re.findall(r"[^\W_]+", text.lower()))


def clusters(texts: Sequence[str]) -> np.ndarray:
    """Label near-duplicates: texts joined by chains of token-set Jaccard similarity of at least 0.8.

    Args:
        texts: The n texts to compare, each with each.

    Returns:
        Int array of shape (n,): index of the first text of each text's cluster.
    """
    sets = [tokens(text) for text in texts]
    index = {token: i for i, token in enumerate(sorted(frozenset().union(*sets)))}
    rows = np.repeat(np.arange(len(sets)), [len(s) for s in sets])
    columns = [index[token] for s in sets for token in s]
    incidence = csr_array((np.ones(len(columns)), (rows, columns)), shape=(len(sets), max(len(index), 1)))
    shared = (incidence @ incidence.T).tocoo()
    sizes = incidence.sum(axis=1)
    left, right = shared.coords
    similar = shared.data >= SIMILAR * (sizes[left] + sizes[right] - shared.data)
    links = csr_array((similar[similar], (left[similar], right[similar])), shape=(len(sets), len(sets)))
    labels = connected_components(links, directed=False)[1]
    first = np.unique(labels, return_index=True)[1]
    return np.asarray(first[labels])


def table(texts: Sequence[str]) -> pl.DataFrame:
    """Return ``request_id``, ``text`` and ``cluster``; a cluster is named after its first request."""
    names = pl.Series([f"r{i:04d}" for i in range(len(texts))], dtype=pl.String)
    return pl.DataFrame({"request_id": names, "text": list(texts), "cluster": names.gather(clusters(texts))})


def main(argv: list[str]) -> None:
    """Write the requests of the study, and a card that says where they come from."""
    parser = stage.parser("Write the requests of the study with their near-duplicate clusters.")
    parser.add_argument("--output", required=True, help="parquet: request_id, text, cluster")
    parser.add_argument("--card", required=True, help="JSON: source, hash and counts")
    arguments = parser.parse_args(argv)
    job = stage.job(arguments)
    settings = Requests(**job.settings)
    texts, found = read(settings)
    refuse_chat_tokens(texts, settings.location)
    frame = table(texts)
    card = {
        "source": settings.source,
        "location": None if settings.source == "tiny" else settings.location,
        "sha256": found,
        "sha256_given": found is not None and settings.sha256 is not None,
        "requests": frame.height,
        "clusters": frame["cluster"].n_unique(),
        "fingerprint": job.fingerprint,
    }
    write_json(card, arguments.card)
    write_parquet(frame, arguments.output, job.fingerprint)
