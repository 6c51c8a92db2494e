"""Stage `validation`: does the judge agree with people, on labelled texts and on each arm's own transcripts?

    python -m perfmis validation --settings JSON --fingerprint HEX --rubrics FILES --outcomes FILES
        --judgements FILES [--sheet FILE] [--base FILE] --samples FOLDER --output validation.parquet

Settings: ``judge``, ``statistics``. One row for the labelled set of ``judge.labels`` (scope ``labels``), which the
judge reads here; and one row a checkpoint and measure for the audit sheet that a person filled (scope ``arm``, see
`perfmis.audit_sample`), since documents that were trained on change the words of scratchpads, and a judge that is
right about one arm may be wrong about another.

Columns: ``n`` labelled samples that the judge scored and ``missing`` ones that it did not (these do not enter);
Cohen's kappa of label and verdict, the area under the ROC curve of label and score, sensitivity and specificity of
the verdict, each with a bootstrap interval over samples. A sheet is drawn in turn from accepted, refused and
malformed answers: kappa and AUROC are those of this balanced mixture, while sensitivity and specificity weigh each
row by the answers it stands for, and so hold for the arm. ``status`` is ``met`` where kappa and AUROC reach
``judge.floor``, ``below floor``, ``undefined`` where all labels are alike (then neither can be told), and ``not
audited`` without labels.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from perfmis import rubrics, stage, subject, tabular
from perfmis.artifacts import read_parquet
from perfmis.audit_sample import label, measures, read
from perfmis.judging import scores
from perfmis.rubrics import Rubric
from perfmis.stage import UserError
from perfmis.statistics import Array, resampling_weights
from perfmis.subject import Ask
from perfmis.tables.common import Row, bounded, lacking, table, write

AGREEMENT = ("kappa", "auroc", "sensitivity", "specificity")
SCHEMA: dict[str, Any] = {
    **dict.fromkeys(("scope", "model", "checkpoint", "rubric"), pl.String),
    **dict.fromkeys(("n", "missing"), pl.Int64),
    **{f"{name}{bound}": pl.Float64 for name in AGREEMENT for bound in ("", "_low", "_high")},
    "status": pl.String,
    "floor_met": pl.Boolean,
}


@dataclass(frozen=True)
class Labelled:
    """Samples that a person labelled and the judge scored.

    Attributes:
        labels: Array (n,) of what the person says.
        scores: Array (n,) of the judge's scores, 0..1.
        stands_for: Array (n,) of how many answers each sample stands for.
    """

    labels: NDArray[np.bool_]
    scores: Array
    stands_for: Array


def _ratio(above: Array, below: Array) -> Array:
    """Return the ratio of replicates, NaN where the denominator is zero up to rounding."""
    defined = ~np.isclose(below, 0)
    return np.divide(above, below, out=np.full(below.shape, np.nan), where=defined)


def kappa(weights: Array, labels: NDArray[np.bool_], verdicts: NDArray[np.bool_]) -> Array:
    """Return Cohen's kappa (Cohen, 1960, Educational and Psychological Measurement 20, 37-46).

    Args:
        weights: Array (replicates, n), rows summing to one.
        labels: Array (n,).
        verdicts: Array (n,).

    Returns:
        Array (replicates,), NaN where chance alone gives full agreement.
    """
    observed = weights @ (labels == verdicts)
    labelled, said = weights @ labels, weights @ verdicts
    chance = labelled * said + (1 - labelled) * (1 - said)
    return _ratio(observed - chance, 1 - chance)


def auroc(weights: Array, labels: NDArray[np.bool_], values: Array) -> Array:
    """Return the probability that a positive sample scores above a negative one, ties counting half.

    Args:
        weights: Array (replicates, n).
        labels: Array (n,).
        values: Array (n,) of scores.

    Returns:
        Array (replicates,), NaN without samples of both labels.
    """
    positive, negative = weights[:, labels], weights[:, ~labels]
    above = np.sign(values[labels][:, None] - values[~labels][None, :]) / 2 + 0.5
    pairs = positive.sum(axis=1) * negative.sum(axis=1)
    return _ratio(np.sum((positive @ above) * negative, axis=1), pairs)


def agreement(labelled: Labelled, threshold: float, statistics: Row) -> Row:
    """Return the columns of ``AGREEMENT`` with their intervals.

    Args:
        labelled: At least one sample.
        threshold: The judge says yes above it.
        statistics: The ``statistics`` settings.
    """
    labels, verdicts = labelled.labels, labelled.scores > threshold
    random = np.random.default_rng(statistics["seed"])
    equal = resampling_weights(len(labels), statistics["resamples"], random)
    arm = equal * labelled.stands_for
    replicates = {
        "kappa": kappa(equal, labels, verdicts),
        "auroc": auroc(equal, labels, labelled.scores),
        "sensitivity": _ratio(arm @ (labels & verdicts), arm @ labels),
        "specificity": _ratio(arm @ ~(labels | verdicts), arm @ ~labels),
    }
    row: Row = {}
    for name, values in replicates.items():
        row |= bounded(name, values, statistics["confidence"])
    return row


def measured(labelled: Labelled, missing: int, threshold: float, floor: Row, statistics: Row) -> Row:
    """Return the columns of the table from ``n`` on."""
    row: Row = {"n": len(labelled.labels), "missing": missing, "status": "not audited"}
    if row["n"]:
        row |= agreement(labelled, threshold, statistics)
        if np.isnan([row["kappa"], row["auroc"]]).any():
            row["status"] = "undefined"
        else:
            row["status"] = "met" if all(row[name] >= least for name, least in floor.items()) else "below floor"
    return row | {"floor_met": row["status"] == "met"}


def labelled_set(settings: Row, reads: list[str]) -> tuple[list[rubrics.Material], NDArray[np.bool_]]:
    """Return the texts of the labelled set, in the order in which the rubric reads their parts, and the labels.

    Args:
        settings: The section ``judge.labels``.
        reads: The parts that the rubric reads.

    Raises:
        UserError: The set, a column or a label is missing or wrong; rows are counted from 1.
    """
    where, location = f"judge.labels {settings['location']}", settings["location"]
    if settings["source"] == "hub":  # fetched, and never kept here
        table = tabular.from_hub(location, settings["revision"], settings["split"], where)
    else:
        table = tabular.from_path(Path(location), where)
    columns = []
    for part in reads:
        if part not in settings["columns"]:
            raise UserError(f"judge.labels.columns: the rubric reads the {part}; say which column holds it")
        columns.append(settings["columns"][part])
    cells = [table.column(column, "correct judge.labels") for column in columns]
    materials, labels = [], []
    for row, said in enumerate(table.column(settings["label"], "correct judge.labels"), 1):
        known = label(said, f"{where}: row {row}, column {settings['label']}")
        texts = [
            tabular.text(of[row - 1], f"{where}: row {row}, column {column}")
            for column, of in zip(columns, cells, strict=True)
        ]
        if known is not None:
            materials.append(tuple(texts))
            labels.append(known)
    return materials, np.array(labels, dtype=np.bool_)


def on_labels(chosen: Mapping[str, Rubric], judge: Row, statistics: Row, ask: Ask) -> Row:
    """Return the row of the labelled set, after putting it to the judge.

    Raises:
        UserError: The set cannot be used.
    """
    settings = judge["labels"]
    name = settings["rubric"]
    rubric = chosen[name]
    materials, labels = labelled_set(settings, list(rubric.reads))
    column = scores(name, rubric, materials, judge, ask)[f"{name}_score"]
    scored = column.is_not_null().to_numpy()
    labelled = Labelled(labels[scored], column.drop_nulls().to_numpy(), np.ones(int(scored.sum())))
    threshold = judge["rubrics"][name]["threshold"]
    row = measured(labelled, int((~scored).sum()), threshold, judge["floor"], statistics)
    return {"scope": "labels", "model": None, "checkpoint": None, "rubric": name, **row}


def on_arms(
    samples: pl.DataFrame, sheet: pl.DataFrame, chosen: Mapping[str, Rubric], judge: Row, statistics: Row
) -> list[Row]:
    """Return one row a checkpoint and measure.

    Args:
        samples: ``sample``, ``model``, ``checkpoint``, ``tag`` and scores of all judged samples, one row a sample.
        sheet: Labels (see `perfmis.audit_sample.read`); without rows where nobody gave any.
        chosen: Rubrics by name.
        judge: The section ``judge``.
        statistics: The ``statistics`` settings.
    """
    rows = []
    labels = sheet.rename({measure: f"label_{measure}" for measure in measures(chosen)})
    both = samples.join(labels, on="sample", how="left", maintain_order="left")
    for (model, checkpoint), own in both.group_by("model", "checkpoint", maintain_order=True):
        for name, rubric in chosen.items():
            for measure in rubric.measures(name):
                said, score = f"label_{measure}", f"{measure}_score"
                asked = own.filter(pl.col(f"{name}_votes").is_not_null())
                size = pl.len() / pl.col(said).is_not_null().sum()
                known = asked.with_columns(_stands_for=size.over("tag")).drop_nulls(said)
                scored = known.drop_nulls(score)
                labelled = Labelled(*(scored[column].to_numpy() for column in (said, score, "_stands_for")))
                threshold = judge["rubrics"][name]["threshold"]
                row = measured(labelled, known.height - scored.height, threshold, judge["floor"], statistics)
                rows.append({"scope": "arm", "model": model, "checkpoint": checkpoint, "rubric": measure, **row})
    return rows


def main(argv: list[str]) -> None:
    """Run the stage."""
    options = subject.parser(__doc__ or "")
    options.add_argument("--rubrics", required=True, nargs="+", type=Path, help="YAML files, named NAME.yaml")
    options.add_argument("--outcomes", required=True, nargs="+", type=Path, help="outcomes that were judged")
    options.add_argument("--judgements", required=True, nargs="+", type=Path, help="their judgements")
    options.add_argument("--sheet", type=Path, help="filled audit sheet (CSV)")
    options.add_argument("--output", required=True, type=Path, help="validation.parquet; a CSV goes beside it")
    arguments = options.parse_args(argv)
    job = stage.job(arguments)
    judge, statistics = job.settings["judge"], job.settings["statistics"]
    chosen = rubrics.load(arguments.rubrics)
    names = measures(chosen)
    identity = ["sample", "model", "checkpoint", "tag"]
    known = read_parquet(arguments.outcomes, job.upstream).select(identity).unique(identity, maintain_order=True)
    judged = read_parquet(arguments.judgements, job.upstream).unique("sample", maintain_order=True)
    samples = known.join(judged, on="sample", maintain_order="left")
    nobody = pl.DataFrame(schema={"sample": pl.String, **dict.fromkeys(names, pl.Boolean)})
    sheet = read(arguments.sheet, names) if arguments.sheet else nobody
    rows = []
    if judge["labels"]:
        rows.append(on_labels(chosen, judge, statistics, subject.messages_ask(arguments, judge)))
    rows += on_arms(samples, sheet, chosen, judge, statistics)
    write(table(rows, SCHEMA), arguments.output, job.fingerprint, lacking(job))
