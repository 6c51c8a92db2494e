"""Stage `audit`: are opposite poles alike in all but their claim, and is the evaluation absent from them?

    python -m perfmis audit --settings JSON --fingerprint HEX --documents FILES --requests FILE
        --protocols FILES --report audit.json --table audit.parquet

Settings: ``arms``, the corpora that must be of one size. Per corpus: documents, words, lengths, genres,
distinct words, duplicates and leaks. Per pair of poles: differences and a verdict. Arms that differ in size
are refused, since every contrast between them assumes equal training; near-duplicates and leaks are
reported and left to judgement (the tiny world's documents resemble each other by design).
"""

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from scipy.sparse import csr_array

from perfmis import protocols, stage
from perfmis.artifacts import read_parquet, write_json, write_parquet
from perfmis.stage import Prose, UserError
from perfmis.vocabulary import checkpoint_order, opposite

THRESHOLDS = {
    "documents": 0.01,
    "words": 0.05,
    "median_words": 0.1,
    "type_token": 0.1,
    "genres": 0.05,
    "leaks": 0.0,
}
SHINGLE = 8
SAMPLE = 500
OVERLAP = 0.5
TYPE_TOKEN_WORDS = 200_000


def near_duplicates(texts: pl.Series, sample: int = SAMPLE) -> float:
    """Return the share of documents that share half of their 8-word sequences with another one of the sample.

    The measure is ``|a & b| / min(|a|, |b|)`` of two sets of sequences; the sample is spread evenly over the
    corpus.
    """
    chosen = texts.gather(np.unique(np.linspace(0, len(texts) - 1, min(sample, len(texts))).astype(int)))
    shingles = []
    for text in chosen:
        words = text.lower().split()
        shingles.append({" ".join(words[i : i + SHINGLE]) for i in range(max(len(words) - SHINGLE + 1, 1))})
    index = {shingle: i for i, shingle in enumerate(frozenset().union(*shingles))}
    rows = np.repeat(np.arange(len(shingles)), [len(s) for s in shingles])
    columns = [index[shingle] for s in shingles for shingle in s]
    incidence = csr_array((np.ones(len(columns)), (rows, columns)), shape=(len(shingles), len(index)))
    shared = (incidence @ incidence.T).tocoo()
    sizes = incidence.sum(axis=1)
    left, right = shared.coords
    close = (left != right) & (shared.data >= OVERLAP * np.minimum(sizes[left], sizes[right]))
    return float(len(np.unique(left[close])) / len(shingles))


def measure(frame: pl.DataFrame, vocabulary: list[str], requests: list[str]) -> dict[str, float]:
    """Measure one corpus.

    Args:
        frame: Its documents: ``text``.
        vocabulary: Strings that belong to the evaluation.
        requests: The evaluation's requests.

    Returns:
        documents, words, mean_words, median_words, type_token (distinct words among the first 200,000
        words, as a share), duplicates (share of exact copies up to case and white space), near_duplicates,
        leaks_vocabulary and leaks_requests (documents that hold such a string).
    """
    text = frame["text"]
    words = text.str.count_matches(r"\S+")
    tokens = text.filter((words.cum_sum() - words) < TYPE_TOKEN_WORDS).str.to_lowercase().str.extract_all(r"\w+")
    spread = tokens.explode().drop_nulls()
    normal = text.str.to_lowercase().str.replace_all(r"\s+", " ").str.strip_chars()
    return {
        "documents": frame.height,
        "words": int(words.sum()),
        "mean_words": float(words.sum() / frame.height),
        "median_words": float(np.median(words)),
        "type_token": spread.n_unique() / max(len(spread), 1),
        "duplicates": 1 - normal.n_unique() / frame.height,
        "near_duplicates": near_duplicates(text),
        "leaks_vocabulary": _holders(text, vocabulary),
        "leaks_requests": _holders(normal, [request.lower() for request in requests]),
    }


def _holders(text: pl.Series, strings: list[str]) -> int:
    """Return how many texts hold any of the strings."""
    if not strings:
        return 0
    frame = text.to_frame("text").select(pl.col("text").str.contains_any(strings).sum())
    return int(frame.item())


def genres(frame: pl.DataFrame) -> dict[str, int]:
    """Return the number of documents of each genre."""
    return dict(frame.group_by("genre").len().sort("genre").iter_rows())


def relative(a: float, b: float) -> float:
    """Return the difference of two sizes as a share of the larger one."""
    return abs(a - b) / max(a, b, 1e-12)


def compare(one: dict[str, Any], two: dict[str, Any]) -> dict[str, Any]:
    """Return the differences of two corpora and their verdict.

    Args:
        one: Measures of a corpus, with its ``genres``.
        two: Those of its opposite pole.

    Returns:
        Relative differences of documents, words, median_words and type_token; ``genres``, the total variation
        distance of the two genre histograms; ``leaks``, documents of either that leak; ``verdict``:
        ``balanced``, or the names of what exceeds its threshold.
    """
    result: dict[str, Any] = {
        key: relative(one[key], two[key]) for key in ("documents", "words", "median_words", "type_token")
    }
    shares = [{g: n / side["documents"] for g, n in side["genres"].items()} for side in (one, two)]
    result["genres"] = sum(abs(shares[0].get(g, 0) - shares[1].get(g, 0)) for g in shares[0] | shares[1]) / 2
    result["leaks"] = sum(side[key] for side in (one, two) for key in ("leaks_vocabulary", "leaks_requests"))
    exceeded = [key for key, threshold in THRESHOLDS.items() if result[key] > threshold]
    result["verdict"] = "; ".join(exceeded) or "balanced"
    return result


def spread(measures: dict[str, dict[str, Any]], arms: list[str]) -> dict[str, Any]:
    """Return the largest relative difference of documents and of words between any two arms."""
    result: dict[str, Any] = {}
    for key in ("documents", "words"):
        pairs = combinations(arms, 2)
        sizes = [(relative(measures[a][key], measures[b][key]), a, b) for a, b in pairs]
        worst, a, b = max(sizes, default=(0.0, "", ""))
        result[key] = {"difference": worst, "between": [a, b]}
    return result


def refuse_unequal(report: dict[str, Any]) -> None:
    """Refuse arms of unequal size: documents between any two arms, words between opposite poles.

    Raises:
        UserError: Names the two corpora.
    """
    worst = report["arms"]["documents"]
    if worst["difference"] > THRESHOLDS["documents"]:
        a, b = worst["between"]
        raise UserError(_unequal(report["corpora"], a, b, "documents"))
    for pair, differences in report["pairs"].items():
        if differences["words"] > THRESHOLDS["words"]:
            a, b = pair.split("|")
            raise UserError(_unequal(report["corpora"], a, b, "words"))


def _unequal(measures: dict[str, dict[str, Any]], a: str, b: str, key: str) -> Prose:
    return (
        f"corpora {a} and {b} differ in {key} ({measures[a][key]} and {measures[b][key]}, "
        f"{THRESHOLDS[key]:.0%} allowed); make them alike in corpora.{a} and corpora.{b}"
    )


def audit(documents: pl.DataFrame, arms: list[str], vocabulary: list[str], requests: list[str]) -> dict[str, Any]:
    """Audit all corpora of a study.

    Args:
        documents: Columns ``corpus``, ``genre``, ``text``.
        arms: Corpora that must be of one size.
        vocabulary: Strings that belong to the evaluation.
        requests: The evaluation's requests.

    Returns:
        ``corpora`` (measures and genres by corpus), ``pairs`` (by ``X+|X-``), ``arms`` (largest differences),
        ``thresholds``.
    """
    measures: dict[str, dict[str, Any]] = {}
    names = sorted(documents["corpus"].unique(), key=checkpoint_order)
    for name in names:
        frame = documents.filter(pl.col("corpus") == name)
        measures[name] = {**measure(frame, vocabulary, requests), "genres": genres(frame)}
    pairs = [(a, opposite(a)) for a in arms if a.endswith("+")]
    return {
        "corpora": measures,
        "pairs": {f"{a}|{b}": compare(measures[a], measures[b]) for a, b in pairs},
        "arms": spread(measures, arms),
        "thresholds": THRESHOLDS,
    }


def tidy(report: dict[str, Any]) -> pl.DataFrame:
    """Return the report as a table: corpus, against (null: the corpus itself), quantity, value, verdict."""
    rows: list[tuple[str, str | None, str, float, str | None]] = []
    for corpus, measures in report["corpora"].items():
        counts = {f"genre:{genre}": n for genre, n in measures["genres"].items()}
        numbers = {key: value for key, value in measures.items() if key != "genres"}
        rows += [(corpus, None, key, float(value), None) for key, value in {**numbers, **counts}.items()]
    for pair, differences in report["pairs"].items():
        a, b = pair.split("|")
        rows += [(a, b, key, float(differences[key]), differences["verdict"]) for key in THRESHOLDS]
    schema = {
        "corpus": pl.String,
        "against": pl.String,
        "quantity": pl.String,
        "value": pl.Float64,
        "verdict": pl.String,
    }
    return pl.DataFrame(rows, schema=schema, orient="row")


def main(argv: list[str]) -> None:
    """Audit the corpora of the study."""
    parser = stage.parser("Audit the corpora: symmetry of poles, duplicates, leaks of the evaluation.")
    parser.add_argument("--documents", required=True, nargs="+", type=Path, help="documents.parquet of every corpus")
    parser.add_argument("--requests", required=True, type=Path, help="requests.parquet")
    parser.add_argument("--protocols", required=True, nargs="+", help="protocols whose tags must not leak")
    parser.add_argument("--report", required=True, help="JSON with everything")
    parser.add_argument("--table", required=True, help="the same as tidy parquet")
    arguments = parser.parse_args(argv)
    job = stage.job(arguments)
    tags = (protocols.vocabulary(protocols.load(path)) for path in arguments.protocols)
    vocabulary = sorted(frozenset().union(*tags))
    requests = read_parquet([arguments.requests], job.upstream)["text"].to_list()
    documents = read_parquet(arguments.documents, job.upstream)
    report = audit(documents, job.settings["arms"], vocabulary, requests)
    refuse_unequal(report)
    write_json({**report, "fingerprint": job.fingerprint}, arguments.report)
    write_parquet(tidy(report), arguments.table, job.fingerprint)
