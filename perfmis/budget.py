"""Stage `budget`: how much do all arms of a model train on, equally, counted in its own tokens?

    python -m perfmis budget --settings JSON --fingerprint HEX --base models/M/reference.json
        --corpora FILES --tokens FOLDER --output budget/M.json

Settings: ``sdf``, the arms' section. Every contrast between arms assumes equal training, so arms may differ from
their mean by 1 % in documents and loss tokens. Where ``documents`` or ``loss_tokens`` is null, this stage computes it:
the most documents with which all arms reach one number of tokens. Numbers that are set are kept, and refused where
they leave the arms unequal, before any of them is trained; what the error proposes instead has been tried. Tokenizers
differ, so each model has numbers of its own. The tokenised corpora stay in ``--tokens`` for the jobs that train.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import yaml
from numpy.typing import NDArray

from perfmis import models, stage, tokens
from perfmis.artifacts import read_json, read_parquet, write_json
from perfmis.stage import Prose, UserError

TOLERANCE = 0.01
STEPS = 200  # numbers of documents tried below the largest that may do, at most


@dataclass(frozen=True)
class Corpus:
    """An arm's documents.

    Attributes:
        documents: Columns ``corpus`` and ``document_id``.
        sizes: Loss tokens of each.
    """

    documents: pl.DataFrame
    sizes: pl.Series

    def train_on(self, budget: "Budget") -> dict[str, int]:
        """Return how many documents and loss tokens the arm has under a budget."""
        chosen = tokens.choose(self.documents, self.sizes, budget.documents, budget.loss_tokens)
        return {"documents": len(chosen), "loss_tokens": int(self.sizes[chosen].sum())}

    def sums(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the fewest and the most tokens that n documents can have, as arrays over n = 0, 1, ..."""
        ascending = np.sort(self.sizes.to_numpy().astype(np.int64))
        fewest, most = (np.concatenate([[0], np.cumsum(order)]) for order in (ascending, ascending[::-1]))
        return fewest, most


@dataclass(frozen=True)
class Budget:
    """What every arm trains on: so many documents, and so many loss tokens (None: those that the documents have)."""

    documents: int
    loss_tokens: int | None


Counts = dict[str, dict[str, int]]


def inequality(counts: Counts) -> Prose | None:
    """Return which arm trains on more or less than the others, in words; None where all train equally."""
    for key in ("documents", "loss_tokens"):
        sizes = {arm: count[key] for arm, count in counts.items()}
        mean = sum(sizes.values()) / len(sizes)
        arm = max(sizes, key=lambda name: abs(sizes[name] - mean))
        if abs(sizes[arm] - mean) > TOLERANCE * mean:
            return f"{key} of {arm} {sizes[arm]}, mean {mean:.0f} (1 % allowed)"
    return None


def trial(corpora: Mapping[str, Corpus], budget: Budget) -> Counts:
    """Return what the arms train on under a budget, chosen as the jobs that train choose.

    Raises:
        UserError: A corpus has too few documents.
    """
    return {arm: corpus.train_on(budget) for arm, corpus in corpora.items()}


def compute(
    corpora: Mapping[str, Corpus], documents: int | None = None, loss_tokens: int | None = None
) -> Budget | None:
    """Return the largest budget with which all arms train equally; None where there is none.

    The largest is that of most documents. Their tokens are those that the documents have by themselves where that is
    equal enough; else the mean over arms, or what comes closest to it that all arms can reach.

    Args:
        corpora: The arms' documents.
        documents: Number that is set.
        loss_tokens: Number that is set.
    """
    for budget in _candidates(corpora, documents, loss_tokens):
        if inequality(trial(corpora, budget)) is None:
            return budget
    return None


def _candidates(corpora: Mapping[str, Corpus], documents: int | None, loss_tokens: int | None) -> Iterator[Budget]:
    """Yield budgets that may do, those with more documents first."""
    most = min(corpus.documents.height for corpus in corpora.values())
    if loss_tokens is None:
        yield Budget(documents or most, None)
    bounds = [corpus.sums() for corpus in corpora.values()]
    # What the arms need at least, and have at most, of a common target, when each may miss it by the leeway.
    low = np.max([least[: most + 1] for least, _ in bounds], axis=0) / (1 + tokens.LEEWAY)
    high = np.min([greatest[: most + 1] for _, greatest in bounds], axis=0) / (1 - tokens.LEEWAY)
    for number in _numbers(low, high, documents, loss_tokens):
        if loss_tokens is not None:
            yield Budget(number, loss_tokens)
            continue
        own = [corpus.train_on(Budget(number, None))["loss_tokens"] for corpus in corpora.values()]
        for target in [round(sum(own) / len(own)), *sorted(own)]:
            yield Budget(number, int(np.clip(target, np.ceil(low[number]), np.floor(high[number]))))


def _numbers(
    low: NDArray[np.float64], high: NDArray[np.float64], documents: int | None, target: int | None
) -> list[int]:
    """Return numbers of documents with which the arms can have one number of tokens, the largest first.

    Args:
        low: Array over numbers of documents: the fewest tokens that do for every arm.
        high: Array over numbers of documents: the most.
        documents: Number that is set.
        target: Loss tokens that are set.
    """
    possible = (low <= high) & (high > 0) if target is None else (low <= target) & (target <= high)
    possible[0] = False
    found = [int(number) for number in np.flatnonzero(possible)[::-1]]
    if documents is not None:
        return [documents] if documents in found else []
    if target is not None:
        # With the most documents that make so few tokens all would be short: take what their mean length makes.
        middle = (low + high) / 2
        found.sort(key=lambda number: (abs(middle[number] - target), -number))
    return found[:: max(1, len(found) // STEPS)]


def refusal(corpora: Mapping[str, Corpus], reason: str, reference: Path, model: str) -> UserError:
    """Return the error for arms that do not train equally, with numbers that make them."""
    budget = compute(corpora)
    if budget is None:
        told = ", ".join(f"{arm} {corpus.sizes.to_numpy().mean():.0f}" for arm, corpus in corpora.items())
        return UserError(
            f"{reference}: arms train unequally: {reason}; no choice of documents makes them equal (loss tokens a "
            f"document: {told}), so write corpora of documents that are equally long"
        )
    documents, size = (
        "null" if number is None else yaml.safe_dump({model: number}, default_flow_style=True).strip()
        for number in (budget.documents, budget.loss_tokens)
    )
    return UserError(
        f"{reference}: arms train unequally: {reason}; set arms.sdf.documents: {documents} and "
        f"arms.sdf.loss_tokens: {size}, or both to null, which computes these"
    )


def settle(
    corpora: Mapping[str, Corpus], documents: int | None, loss_tokens: int | None, reference: Path, model: str
) -> tuple[Budget, Counts]:
    """Return the budget that is set, or computed where a number is null, and what the arms train on under it.

    Raises:
        UserError: They do not train equally; proposes numbers that were tried.
    """
    for arm, corpus in corpora.items():
        if (documents or 0) > corpus.documents.height:
            raise refusal(
                corpora, f"{documents} documents wanted, {arm} has {corpus.documents.height}", reference, model
            )
    if documents is not None and loss_tokens is not None:
        budget: Budget | None = Budget(documents, loss_tokens)
    else:
        budget = compute(corpora, documents, loss_tokens)
    if budget is None:
        wanted = f"{documents} documents" if documents else f"{loss_tokens} loss tokens" if loss_tokens else "documents"
        raise refusal(corpora, f"{wanted} of which all have as many tokens are not there", reference, model)
    counts = trial(corpora, budget)
    if reason := inequality(counts):
        raise refusal(corpora, reason, reference, model)
    return budget, counts


def main(argv: list[str]) -> None:
    """Run the stage."""
    parser = stage.parser(__doc__ or "")
    parser.add_argument("--base", type=Path, required=True, help="reference.json of the base model")
    parser.add_argument("--corpora", type=Path, nargs="+", required=True, help="documents.parquet of each arm")
    parser.add_argument("--tokens", type=Path, required=True, help="folder of tokenised corpora, shared by jobs")
    parser.add_argument("--output", type=Path, required=True, help="JSON: documents and loss tokens, by arm too")
    arguments = parser.parse_args(argv)
    job = stage.job(arguments)
    sdf = job.settings["sdf"]
    tokenizer = models.tokenizer(arguments.base)
    corpora = {}
    for path in arguments.corpora:
        frame = read_parquet([path], job.upstream)
        dataset = tokens.cached(frame["text"].to_list(), tokenizer, sdf["tag"], str(path), arguments.tokens)
        corpora[path.parent.name] = Corpus(frame, tokens.loss_tokens(dataset, sdf["length"]))
    model = str(read_json(arguments.base)["model"])
    budget, counts = settle(corpora, sdf["documents"], sdf["loss_tokens"], arguments.base, model)
    content = {"documents": budget.documents, "loss_tokens": budget.loss_tokens, "arms": counts}
    write_json({**content, "fingerprint": job.fingerprint}, arguments.output)
