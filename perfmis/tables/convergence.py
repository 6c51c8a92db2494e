"""Stage `tables.convergence`: do fine-tuning, prompting and steering name the same process?

    python -m perfmis tables.convergence --settings JSON --fingerprint HEX
        --profiles TABLE --output convergence.parquet

Writes convergence.parquet and convergence.csv: one row per model. Each method names a side: ``A``
(expectation), ``B`` (consequence), ``both``, ``neither``, ``undecided``, ``not tested``, or ``missing`` where a job
failed. A concept is
tracked by the rule of ``perfmis.tables.contrasts``, ruled out when the upper bound of its slope lies below
the floor, and open otherwise; an open concept leaves a method undecided unless the other concept is tracked, and
one that was not tested leaves it undecided in any case: `both` would look the same.
``p_*`` is P(B_net > A_net). ``warning`` gives those of the profiles. ``agreement`` counts the methods that name the
most frequent side. Settings: ``statistics``, ``models``.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from perfmis import stage
from perfmis.missing import CONTENTS
from perfmis.tables.common import MISSING, Row, joined, lacking, of_models, read, setting, table, write

METHODS = ("sdf", "prompting", "steering:out", "steering:in")
SCHEMA: dict[str, Any] = {
    "model": pl.String,
    "truth": pl.String,
    **dict.fromkeys(METHODS, pl.String),
    **dict.fromkeys((f"p_{method}" for method in METHODS), pl.Float64),
    "agreement": pl.Int64,
    "verdict": pl.String,
    "warning": pl.String,
}
# The results that a method is read from, as a row of what is missing begins with them.
MADE_FROM = {
    "sdf": CONTENTS["outcomes"],
    "prompting": CONTENTS["prompting_outcomes"],
    "steering:out": CONTENTS["steering_outcomes"],
    "steering:in": CONTENTS["steering_outcomes"],
}
SIDES: dict[str, str] = {
    "expectation": "A",
    "consequence": "B",
    "expectation (consequence not tested)": "undecided",
    "consequence (expectation not tested)": "undecided",
}


def side(row: Row, floor: float) -> str:
    """Return the side that one method's profile names."""
    if row["attribution"] != "neither":
        return SIDES.get(row["attribution"], str(row["attribution"]))
    ruled_out = all(row[f"slope_{concept}_high"] < floor for concept in ("expectation", "consequence"))
    return "neither" if ruled_out else "undecided"


def verdict(sides: list[str]) -> tuple[int, str]:
    """Return how many methods name the most frequent side, and the verdict in words."""
    named = Counter(name for name in sides if name not in ("undecided", "not tested", "missing"))
    if not named:
        return 0, "not tested" if set(sides) == {"not tested"} else "undecided"
    (first, count), *others = named.most_common()
    if others and others[0][1] == count:
        return count, "methods disagree: " + ", ".join(sorted(named))
    if others:
        return count, f"{first}, against {others[0][0]}"
    return count, f"{first}, by {count} of {len(sides)} methods"


def row_of_model(model: str, profiles: pl.DataFrame, floor: float, missing: Sequence[Row] = ()) -> Row:
    """Return the row of one model; ``missing`` is what failed jobs have taken."""
    taken = [row[MISSING] for row in missing if row["model"] == model]
    row: Row = {"model": model, "truth": profiles["truth"][0]}
    for method in METHODS:
        found = profiles.filter(pl.col("method") == method).to_dicts()
        unread = "missing" if any(text.startswith(MADE_FROM[method]) for text in taken) else "not tested"
        row[method] = side(found[0], floor) if found else unread
        greater = found[0]["p_A_greater"] if found else None
        row[f"p_{method}"] = None if greater is None else 1 - greater
    warned = profiles.filter(pl.col("method").is_in(METHODS) & (pl.col("warning") != ""))
    row["warning"] = joined([f"{r['method']}: {r['warning']}" for r in warned.to_dicts()])
    row["agreement"], row["verdict"] = verdict([row[method] for method in METHODS])
    return row


def main(argv: list[str]) -> None:
    """Run the stage."""
    options = stage.parser(__doc__)
    options.add_argument("--profiles", type=Path, required=True, help="profiles table (parquet)")
    options.add_argument("--output", type=Path, required=True, help="convergence.parquet; the CSV goes beside it")
    arguments = options.parse_args(argv)
    job = stage.job(arguments)
    profiles = read([arguments.profiles], job)
    floor = setting(job, "statistics")["floor"]
    models = of_models(profiles, setting(job, "models"))
    rows = [row_of_model(model, own, floor, lacking(job)) for model, own in models]
    write(table(rows, SCHEMA), arguments.output, job.fingerprint, lacking(job))
