"""What failed jobs have taken from a study, so that tables and pages are made from the rest and name it.

A table takes what all models have been through: one job of one model that failed would keep it from being made at all.
After such a run `perfmis.after_failure` writes down which results are missing and why, and has the tables made in a
pass of their own, which the workflow is told of by ``--config missing=FILE``. A table's fingerprint holds what it
lacks, so that the next run, in which nothing counts as missing, makes the failed jobs and then the table anew.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perfmis.stage import UserError, canonical

RECORD = "logs/missing.json"  # below a study's root
# What tables and pages are made from, by the rule that makes it, in the order of the study.
CONTENTS = {
    "organism": "organism",
    "screen_outcomes": "samples of base and organism",
    "arm": "arm {arm}",
    "outcomes": "samples of the arms",
    "beliefs": "beliefs",
    "steering_outcomes": "steering",
    "prompting_outcomes": "prompting",
    "closed_outcomes": "prompting",
}


@dataclass(frozen=True)
class Result:
    """What one job would have made.

    Attributes:
        rule: Its rule.
        wildcards: Their values by name, as Snakemake has them.
        files: Its files.
        error: Which job failed, and its error line.
    """

    rule: str
    wildcards: Mapping[str, str]
    files: tuple[str, ...]
    error: str


class Missing:
    """The results that are missing from a study; none in an ordinary run."""

    def __init__(self, results: Iterable[Result] = ()) -> None:
        self.results = tuple(results)
        self._errors = {(result.rule, canonical(dict(result.wildcards))): result.error for result in self.results}

    def has(self, rule: str, **wildcards: Any) -> bool:
        """Return whether what a job would have made is missing."""
        return (rule, canonical({name: str(value) for name, value in wildcards.items()})) in self._errors

    def rows(self, *rules: str) -> list[dict[str, Any]]:
        """Return ``model``, ``seed`` (null for a closed model) and ``missing`` (what, and why) of what rules lack."""
        found = [result for result in self.results if result.rule in rules]
        order = list(CONTENTS)
        rows = []
        for result in sorted(found, key=lambda one: (order.index(one.rule), canonical(dict(one.wildcards)))):
            of = result.wildcards
            what = CONTENTS[result.rule].format_map(of)
            seed = int(of["seed"]) if "seed" in of else None
            seeded = what if seed is None else f"{what}, training seed {seed}"
            model = of.get("model", of.get("closed"))
            rows.append({"model": model, "seed": seed, "missing": f"{seeded}: {result.error}"})
        return sorted(rows, key=lambda row: (row["model"], -1 if row["seed"] is None else row["seed"]))


def write(results: Iterable[Result], path: Path) -> None:
    """Write a record of missing results."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = [{**vars(result), "wildcards": dict(result.wildcards)} for result in results]
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(json.dumps(content, indent=1) + "\n")
    partial.replace(path)


def read(path: Path) -> list[Result]:
    """Return the missing results of a record.

    Raises:
        UserError: It is missing or damaged.
    """
    try:
        return [
            Result(one["rule"], one["wildcards"], tuple(one["files"]), one["error"])
            for one in json.loads(path.read_text())
        ]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path}: cannot be read ({error}); start again without --config missing=") from error
