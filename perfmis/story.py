"""Stage `story`: the first page of the report, written from the tables.

    python -m perfmis story --settings JSON --fingerprint HEX --screen screen.parquet --gaps gaps.parquet
        --profiles profiles.parquet [--prompted calibration.parquet] --output story.rst

Says what was planted (where it is known), what was read and how sure that is; every number is taken from the
tables. Settings: those of the tables.
"""

from pathlib import Path
from typing import Any

import polars as pl

from perfmis import carried, stage
from perfmis.artifacts import read_json, read_parquet
from perfmis.tables.common import present
from perfmis.vocabulary import BASE, NEUTRAL, ORGANISM

METHODS = {
    "sdf": "fine-tuning (SDF)",
    "steering:out": "steering, out of context",
    "steering:in": "steering, in context",
    "prompting": "prompting the base",
    "prompting:organism": "prompting the organism",
}


def _rst_table(header: list[str], rows: list[list[str]]) -> str:
    """Return a list-table of reStructuredText."""
    lines = [".. list-table::", "   :header-rows: 1", ""]
    for row in (header, *rows):
        lines += [f"   {'*' if i == 0 else ' '} - {cell}" for i, cell in enumerate(row)]
    return "\n".join(lines)


def _interval(row: dict[str, Any], name: str) -> str:
    if row[f"{name}_net"] is None:
        return "no arms"
    return f"{row[f'{name}_net']:+.0f} [{row[f'{name}_low']:+.0f}, {row[f'{name}_high']:+.0f}]"


def planted(models: dict[str, str | None]) -> str:
    """Return the section on what drives the gap by construction, or that nobody knows."""
    known = {name: truth for name, truth in models.items() if truth}
    if not known:
        return "The models are trained by others: what drives their gap is the question, and no truth is planted."
    listed = ", ".join(f"*{truth}* in ``{name}``" for name, truth in known.items())
    return (
        "The models are tiny and were trained here, so the process behind each gap is known: "
        f"{listed}. An *indifferent* model takes no notice of the tier and has to fail the screen."
    )


def screened(screen: pl.DataFrame) -> str:
    """Return the section on the screen."""
    rows = [
        [
            f"``{r['model']}``",
            f"{r['gap']:+.0f} [{r['low']:+.0f}, {r['high']:+.0f}]",
            str(r["n"]),
            "passed" if r["passed"] else "**failed**",
        ]
        for r in screen.filter(pl.col("seed").is_null()).sort("model").to_dicts()
    ]
    return _rst_table(["candidate", "organism's gap (pp)", "prompts", "screen"], rows)


def read(profiles: pl.DataFrame) -> str:
    """Return the section on what each method reads off each model."""
    if profiles.is_empty():
        return "Nothing: no organism passed the screen."
    rows = []
    for r in profiles.sort("model", "method").to_dicts():
        rows.append(
            [
                f"``{r['model']}``",
                METHODS[r["method"]],
                _interval(r, "A"),
                _interval(r, "B"),
                "" if r["p_A_greater"] is None else f"{r['p_A_greater']:.2f}",
                f"**{r['attribution']}**",
                r["truth"] or "unknown",
            ]
        )
    header = ["model", "method", "A net (pp)", "B net (pp)", "P(A > B)", "read", "planted"]
    return _rst_table(header, rows)


def recovered(profiles: pl.DataFrame) -> str:
    """Return one sentence per method on how many planted truths it recovers."""
    known = profiles.filter(pl.col("truth").is_not_null())
    sentences = []
    for method, label in METHODS.items():
        rows = known.filter(pl.col("method") == method)
        if rows.height:
            right = rows.filter(pl.col("attribution") == pl.col("truth")).height
            untested = rows.filter(pl.col("attribution").str.contains("not tested")).height
            sentence = f"* {label}: {right} of {rows.height} planted truths read right"
            sentence += f", {untested} not or only partly tested" if untested else ""
            wrong = rows.filter(
                (pl.col("attribution") != pl.col("truth")) & ~pl.col("attribution").str.contains("not tested")
            )
            sentence += "".join(
                f", ``{r['model']}`` **read wrongly** as *{r['attribution']}*" for r in wrong.to_dicts()
            )
            sentences.append(sentence)
    return "\n".join(sentences)


def checks(gaps: pl.DataFrame, profiles: pl.DataFrame, calibration: pl.DataFrame | None = None) -> str:
    """Return the section on the instruments: malformed answers, the neutral arm, and what tables warn of."""
    models = profiles["model"].unique(maintain_order=True).to_list()
    pooled = gaps.filter(pl.col("seed").is_null())
    pooled = pooled.filter(pl.col("model").is_in(models)) if models else pooled
    worst = max(pooled["malformed"], default=0.0)
    lines = [f"* largest share of malformed answers in any unsteered checkpoint: {100 * worst:.1f} %"]
    for model in models:
        rows = {r["checkpoint"]: r for r in pooled.filter(pl.col("model") == model).to_dicts()}
        if {ORGANISM, NEUTRAL} <= set(rows):
            lines.append(
                f"* ``{model}``: gap of the organism {rows[ORGANISM]['gap']:+.0f} pp, of the neutral arm "
                f"{rows[NEUTRAL]['gap']:+.0f} pp"
            )
    warned = pooled.filter(pl.col("warning") != "").group_by("model", "warning", maintain_order=True)
    for row in warned.agg(pl.col("checkpoint").unique(maintain_order=True)).to_dicts():
        lines.append(f"* ``{row['model']}`` {', '.join(row['checkpoint'])}: {row['warning']}")
    # Those of fine-tuning say again what its arms are warned of.
    treated = profiles.filter((pl.col("warning") != "") & (pl.col("method") != "sdf"))
    lines += [f"* ``{r['model']}``, {METHODS[r['method']]}: {r['warning']}" for r in treated.to_dicts()]
    if calibration is not None:
        arms = calibration.filter((pl.col("warning") != "") & ~pl.col("checkpoint").is_in([BASE, ORGANISM]))
        lines += [f"* ``{r['model']}`` {r['checkpoint']}, prompted: {r['warning']}" for r in arms.to_dicts()]
    return "\n".join(lines)


def _literal(text: str) -> str:
    """Return text that may hold anything as a literal of reStructuredText, which Snakemake fills in as a template."""
    return "``" + text.replace("`", "'").replace("{", "{{ '{' }}") + "``"


def lacked(missing: list[dict[str, Any]]) -> str:
    """Return the section on results that failed jobs have taken, with what they said; empty where there are none.

    Args:
        missing: ``model`` and ``missing`` (what: why) of each.
    """
    if not missing:
        return ""
    reasons: dict[tuple[str, str], list[str]] = {}
    for row in missing:
        what, why = row["missing"].split(": ", 1)
        reasons.setdefault((row["model"], why), []).append(what)
    lines = [f"* ``{model}``: {'; '.join(what)}. {_literal(why)}" for (model, why), what in reasons.items()]
    return "\n".join(
        [
            "**What is missing.** Jobs failed, so tables and figures do without what they would have made, and nothing "
            "below says anything of it. The same command tries them again.",
            "",
            *lines,
        ]
    )


def taken_over(acceptances: list[dict[str, Any]]) -> str:
    """Return the section on results that a person has taken over after a change (`perfmis.accept`); empty without."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for one in acceptances:
        reasons.setdefault((one["day"], one["reason"]), []).append(one["result"])
    if not reasons:
        return ""
    lines = []
    for (day, reason), results in reasons.items():
        more = f" and {len(results) - 1} more" if len(results) > 1 else ""
        lines.append(f"* {day}, ``{results[0]}``{more}: {_literal(reason)}")
    return "\n".join(
        [
            "**What was taken over.** These results were made by other code than the study has now; a person "
            "declared the change harmless:",
            "",
            *lines,
        ]
    )


def _current(records: list[str]) -> list[dict[str, Any]]:
    """Return the acceptances of results that have not been made again since."""
    listed = [one for path in records for one in read_json(path)["accepted"]]
    return [one for one in listed if (file := Path(one["result"])).exists() and _taken(file, one)]


def _taken(file: Path, acceptance: dict[str, Any]) -> bool:
    if file.suffix in carried.NOTED:
        return acceptance in carried.acceptances(file)
    return carried.fingerprints(file) == {acceptance["taken"]}


def story(
    screen: pl.DataFrame,
    gaps: pl.DataFrame,
    profiles: pl.DataFrame,
    settings: dict[str, Any],
    calibration: pl.DataFrame | None = None,
    acceptances: list[dict[str, Any]] | None = None,
) -> str:
    """Return the whole page."""
    pooled = screen.filter(pl.col("seed").is_null())
    seeds, sizes = max(pooled["seeds"]), sorted({*pooled["n"], *profiles["n"]})
    prompts = f"{sizes[0]} to {sizes[-1]}" if len(sizes) > 1 else str(sizes[0])
    percent = f"{100 * settings['statistics']['confidence']:.0f} %"
    parts = [
        "What drives the alignment-faking gap: consequence-tracking (family B, the scheming reading) or "
        "expectation-tracking (family A, the sycophancy reading)? Each process is amplified and suppressed by "
        "fine-tuning on documents, by steering and by prompts; the profile says which family moves the gap more.",
        lacked(settings.get("missing", [])),
        taken_over(acceptances or []),
        "**What was planted.** " + planted(settings["models"]),
        "**Who has a gap.** Candidates after the first round of fine-tuning:",
        screened(screen),
        "**What was read.** A net and B net are the gap under amplification minus the gap under suppression, in "
        f"percentage points with {percent} intervals:",
        read(profiles),
        recovered(profiles),
        f"**How sure.** Intervals are bootstraps over {seeds} training seed(s) and {prompts} prompts, "
        "crossed. "
        + ("One training seed says nothing about the variation between trainings. " if seeds == 1 else "")
        + "The attribution rule was fixed before any result was read, but for its condition on random vectors and "
        "the reading of steering per context (``perfmis/tables/contrasts.py``). *Not tested* means that at least one "
        f"family did not raise its own belief by {settings['statistics']['moved']:g} from suppression to "
        "amplification; it does not mean that the gap stood still.",
        "**Were the instruments sound?**",
        checks(gaps, profiles, calibration),
        "All samples of base, organism and arms, the tiers side by side: `transcripts.html <transcripts.html>`__ "
        "beside this report.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def main(argv: list[str]) -> None:
    """Run the stage."""
    parser = stage.parser(__doc__ or "")
    for name in ("screen", "gaps", "profiles"):
        parser.add_argument(f"--{name}", type=Path, required=True, help=f"table {name}")
    parser.add_argument("--prompted", type=Path, help="table calibration, for its warnings")
    parser.add_argument("--output", type=Path, required=True, help="story.rst")
    arguments = parser.parse_args(argv)
    job = stage.job(arguments)
    screen, gaps, profiles = (
        present(read_parquet([path], job.upstream)) for path in (arguments.screen, arguments.gaps, arguments.profiles)
    )
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    calibration = present(read_parquet([arguments.prompted], job.upstream)) if arguments.prompted else None
    acceptances = _current(job.settings.get("accepted", []))
    text = story(screen, gaps, profiles, job.settings, calibration, acceptances)
    arguments.output.write_text(text + carried.comment(arguments.output, job.fingerprint))
