"""Stage `tables.profiles`: the motivation profile of every model, per method.

    python -m perfmis tables.profiles --settings JSON --fingerprint HEX
        --outcomes FILE... [--prompting FILE...] [--steering FILE...] --gaps TABLE --output profiles.parquet

Writes profiles.parquet and profiles.csv: one row per model and method: ``sdf`` (arms), ``prompting`` (the
base model under snippets), ``prompting:organism`` (the organism under snippets), ``steering:out`` and
``steering:in`` (A: the expectation vector, B: the consequence vector, out of and in context, each at the
largest coefficient against its negative; ``largest_random`` is the largest such net of a random vector).
Units and the attribution rule: see ``perfmis.tables.contrasts``. Warnings of the sdf rows are the arms' own.
Settings: ``statistics``, ``models`` (name to planted truth or null).
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import polars as pl

from perfmis import stage
from perfmis.stage import UserError
from perfmis.tables.cells import Cells, Key, Replicates, build
from perfmis.tables.common import Row, joined, lacking, read, setting, table, write
from perfmis.tables.contrasts import SCHEMA as PROFILE
from perfmis.tables.contrasts import Pairs, arm_pairs, profile
from perfmis.tables.warnings import as_without, listed, most_malformed, still
from perfmis.vocabulary import BASE, FAMILY_CONCEPT, NO_SNIPPET, ORGANISM

SCHEMA: dict[str, Any] = {
    "model": pl.String,
    "method": pl.String,
    "truth": pl.String,
    "seeds": pl.Int64,
    "n": pl.Int64,
    **PROFILE,
    "largest_random": pl.Float64,
    "warning": pl.String,
}
REAL = "real"
STEERING = ("checkpoint", "concept", "control", "alpha")


def _resampled(cells: Cells, statistics: Row) -> Replicates:
    return Replicates(cells, statistics["resamples"], statistics["seed"])


def _row(
    cells: Cells,
    a_pairs: Pairs,
    b_pairs: Pairs,
    statistics: Row,
    random: Pairs = (),
    unmoved: Mapping[Key, str] = MappingProxyType({}),
) -> Row:
    """Return the profile of one model from its cells, with the warnings that the cells themselves give.

    Args:
        cells: Cells of the model.
        a_pairs: (+, -) cells of family A.
        b_pairs: The same of family B.
        statistics: The ``statistics`` settings.
        random: (+, -) cells of random vectors.
        unmoved: Warnings of cells that answer as without treatment.
    """
    replicates = _resampled(cells, statistics)
    used = [key for pair in (*a_pairs, *b_pairs) for key in pair]
    random_nets = [abs(float(replicates.gap(*plus)[0] - replicates.gap(*minus)[0])) for plus, minus in random]
    row = {
        "seeds": max(cells.seeds),
        "n": cells.prompts,
        **profile(replicates, a_pairs, b_pairs, statistics, max(random_nets, default=0.0)),
        "largest_random": max(random_nets, default=None),
    }
    warnings = [most_malformed(replicates, used, statistics)] if used else []
    warnings += listed(unmoved, used)
    for family, label in (("A", "expectation"), ("B", "consequence")):
        if not row[f"moved_{family}"] >= statistics["moved"]:
            warnings.append(f"{family}: {label} not moved as intended")
    own_moved = min(row["moved_A"], row["moved_B"]) >= statistics["moved"]
    if own_moved and row["attribution"] == "not tested":
        warnings.append("A and B move both beliefs alike")
    return row | {"warning": joined(warnings)}


def by_arms(outcomes: pl.DataFrame, gaps: pl.DataFrame, statistics: Row) -> Row | None:
    """Return the sdf profile of one model, or None where it has no arms."""
    arms = outcomes.filter(~pl.col("checkpoint").is_in([BASE, ORGANISM]))
    if arms.is_empty():
        return None
    if arms["protocol"].n_unique() > 1:
        raise UserError(f"{arms['model'][0]}: arms under several protocols; pass the outcomes of one")
    cells = build(arms, ["checkpoint"])
    present = [key[0] for key in cells.keys]
    a_pairs, b_pairs = (
        [((plus,), (minus,)) for plus, minus in arm_pairs(family, present)] for family in FAMILY_CONCEPT
    )
    row = _row(cells, a_pairs, b_pairs, statistics)
    warned = gaps.filter(
        (pl.col("model") == arms["model"][0])
        & pl.col("seed").is_null()
        & pl.col("checkpoint").is_in(present)
        & (pl.col("warning") != "")
    )
    texts = {(arm,): text for arm, text in warned.select("checkpoint", "warning").iter_rows()}
    own = listed(texts, texts)
    return row | {"method": "sdf", "warning": joined([*own, row["warning"]])}


def by_snippets(outcomes: pl.DataFrame, checkpoint: str, statistics: Row) -> Row | None:
    """Return the profile of one checkpoint of one model under snippets, or None where it has none."""
    chosen = outcomes.filter((pl.col("checkpoint") == checkpoint) & (pl.col("snippet") != NO_SNIPPET))
    if chosen.is_empty():
        return None
    cells = build(chosen, ["checkpoint", "snippet"])
    present = [key[1] for key in cells.keys]
    a_pairs, b_pairs = (
        [((checkpoint, plus), (checkpoint, minus)) for plus, minus in arm_pairs(family, present)]
        for family in FAMILY_CONCEPT
    )
    method = "prompting" if checkpoint == BASE else f"prompting:{checkpoint}"
    asked = outcomes.filter(pl.col("checkpoint") == checkpoint)
    keys = ["checkpoint", "snippet"]
    unmoved = as_without(asked, keys, pl.col("snippet") != NO_SNIPPET, ["protocol"], "those without the snippet")
    return _row(cells, a_pairs, b_pairs, statistics, unmoved=unmoved) | {"method": method}


def by_vectors(outcomes: pl.DataFrame, context: str, statistics: Row) -> Row | None:
    """Return the profile of one model under the vectors of one context, or None where it was not steered."""
    steered = outcomes.filter(pl.col("context") == context)
    if steered.is_empty():
        return None
    alphas = steered["alpha"].unique().to_list()
    largest = max((alpha for alpha in alphas if -alpha in alphas), default=0.0)
    if largest == 0.0:
        raise UserError(f"{steered['model'][0]}: no coefficient stands with both signs; mend steering.alphas")
    steered = steered.with_columns(control=pl.col("control").cast(pl.String).fill_null(REAL))
    ends = steered.filter(pl.col("alpha").abs() == largest)
    cells = build(ends, STEERING)
    opposite = {key: (*key[:3], -largest) for key in cells.keys if key[3] == largest}
    pairs = {(key[1], key[2]): (key, other) for key, other in opposite.items() if other in cells.keys}
    treated = pl.col("alpha") != 0
    unmoved = still(steered.filter(pl.col("control") == REAL), STEERING, treated, ["concept"])
    same = as_without(steered, STEERING, treated, ["concept"], "the unsteered organism's")
    row = _row(
        cells,
        [pairs["expectation", REAL]],
        [pairs["consequence", REAL]],
        statistics,
        [pair for (_, control), pair in pairs.items() if control != REAL],
        {key: joined([unmoved.get(key, ""), same.get(key, "")]) for key in unmoved | same},
    )
    return row | {"method": f"steering:{context}"}


def main(argv: list[str]) -> None:
    """Run the stage."""
    options = stage.parser(__doc__)
    options.add_argument("--outcomes", type=Path, nargs="*", required=True, help="outcomes of all checkpoints")
    options.add_argument("--prompting", type=Path, nargs="*", default=[], help="outcomes under snippets")
    options.add_argument("--steering", type=Path, nargs="*", default=[], help="outcomes under steering")
    options.add_argument("--gaps", type=Path, required=True, help="gaps table, for the warnings of the arms")
    options.add_argument("--output", type=Path, required=True, help="profiles.parquet; profiles.csv goes beside it")
    arguments = options.parse_args(argv)
    job = stage.job(arguments)
    statistics = setting(job, "statistics")
    gaps = read([arguments.gaps], job)
    sources = {
        name: read(paths, job)
        for name, paths in (
            ("sdf", arguments.outcomes),
            ("prompting", arguments.prompting),
            ("steering", arguments.steering),
        )
    }
    rows = []
    for model, truth in setting(job, "models").items():
        own = {name: frame.filter(pl.col("model") == model) for name, frame in sources.items()}
        profiles = [by_arms(own["sdf"], gaps, statistics)] if own["sdf"].height else []
        if own["prompting"].height:
            profiles += [by_snippets(own["prompting"], point, statistics) for point in (BASE, ORGANISM)]
        if own["steering"].height:
            profiles += [by_vectors(own["steering"], context, statistics) for context in ("out", "in")]
        rows += [row | {"model": model, "truth": truth} for row in profiles if row is not None]
    write(table(rows, SCHEMA), arguments.output, job.fingerprint, lacking(job))
