"""Command `plan`: the jobs of a study, done and to run, and what they take by the cost model, before you pay.

    python -m perfmis plan [--config FILE ...] [--assume KEY=VALUE ...] [--json]

Snakemake's dry-run says which jobs there are and which are left; `perfmis.cost` says what each takes. Nothing is
run and nothing of a GPU or of the network is needed. With ``screen.keep: auto`` and no finished screen, nobody
knows yet which organisms go on: the plan then counts all of them, an upper bound, and says so.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from perfmis import config
from perfmis.artifacts import read_json
from perfmis.config import Study
from perfmis.cost import SEVERAL_NODES, Assumptions, Cost, Costs, known
from perfmis.stage import UserError

STAGES = {
    "requests": "requests",
    "protocol": "protocols",
    "corpus": "corpora",
    "audit": "audit",
    "tiny_trunk": "base models",
    "tiny_base": "base models",
    "hub_model": "base models",
    "budget": "budget",
    "organism": "organisms",
    "screen_transcripts": "screen transcripts",
    "screen": "screen",
    "arm": "arms",
    "beliefs": "beliefs",
    "transcripts": "arm transcripts",
    "vectors": "vectors",
    "steering_transcripts": "steered transcripts",
    "prompting_transcripts": "prompted transcripts",
    "judgements": "judgements",
    "judge_model": "judgements",
    "audit_sheet": "judgements",
    "validation": "judgements",
    "closed_model": "prompted transcripts",
    "outcomes": "outcomes",
    "story": "tables",
    "page": "tables",
}
ORDER = list(dict.fromkeys([*STAGES.values(), "figures"]))
BLOCK = re.compile(r"^(?:local)?(?:rule|checkpoint) (?P<rule>\S+):\n(?P<body>(?:[ ]{4}.*\n)*)", re.MULTILINE)
WILDCARDS = re.compile(r"^ {4}wildcards: (.*)$", re.MULTILINE)
TABLE = re.compile(r"^job +count\n[- ]+\n(.*?)^total ", re.MULTILINE | re.DOTALL)
BUILDING = "Building DAG of jobs..."
CHATTER = ("Assuming ", "Config file", "Full Traceback", "Traceback", "Using ", "host:")


@dataclass(frozen=True)
class Job:
    """One job of the DAG: its rule and its wildcards."""

    rule: str
    wildcards: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Row:
    """What the jobs of one stage and model size take.

    Attributes:
        stage: Name of the stage.
        size: Key of `sizes`; empty where no model is held.
        jobs: Jobs in all.
        left: Jobs that are still to run.
        nodes: Nodes a job.
        gpus: GPUs on each of them.
        hours: Wall-clock hours of the longest job.
        limit: Hours that such a job asks the cluster for; None where the plan does not compare.
        gpu_hours: GPU-hours of all jobs.
        gpu_hours_left: Of those still to run.
        cpu_hours_left: Hours of jobs without GPU that are still to run, one after the other.
        disk_gb: What all jobs leave behind.
        disk_gb_left: Of those still to run.
        scratch_gb: What the greediest job needs besides while it runs.
        memory_gib: Peak of the fullest GPU; None without GPU.
        start_gpu_hours: GPU-hours of all jobs in which an engine starts.
    """

    stage: str
    size: str
    jobs: int
    left: int
    nodes: int
    gpus: int
    hours: float
    limit: float | None
    gpu_hours: float
    gpu_hours_left: float
    cpu_hours_left: float
    disk_gb: float
    disk_gb_left: float
    scratch_gb: float
    memory_gib: float | None
    start_gpu_hours: float


@dataclass(frozen=True)
class Plan:
    """The rows of a plan, and what a reader must know besides."""

    rows: list[Row]
    notes: list[str]


def stage_of(rule: str) -> str:
    """Return the stage under which a rule's jobs are listed."""
    rule = rule.removesuffix(SEVERAL_NODES)
    if rule in STAGES:
        return STAGES[rule]
    if rule.startswith("fig"):
        return "figures"
    if rule.startswith("table_"):
        return "tables"
    kind = rule.rpartition("_")[2]
    return kind if kind in ("outcomes", "judgements") else STAGES.get(f"prompting_{kind}", rule)


def read_jobs(said: str) -> list[Job]:
    """Return the jobs that a dry-run lists, without the rule `all`, which only collects.

    Raises:
        UserError: The list and the table of counts beside it disagree, so that the output was not understood.
    """
    found = []
    for block in BLOCK.finditer(said):
        wildcards = WILDCARDS.search(block["body"])
        pairs = (pair.partition("=") for pair in wildcards[1].split(", ")) if wildcards else ()
        found.append(Job(block["rule"], tuple((name, value) for name, _, value in pairs)))
    table = TABLE.search(said)
    counts = {rule: int(number) for rule, number in map(str.split, table[1].splitlines())} if table else {}
    if counts != Counter(job.rule for job in found):
        raise UserError(
            "snakemake: the dry-run's list of jobs was not understood; install the version in pyproject.toml"
        )
    return [job for job in found if job.rule != "all"]


def dry_run(files: Sequence[str], *options: str) -> list[Job]:
    """Return the jobs of the default target by ``snakemake -n``, without any profile.

    Args:
        files: Configuration files.
        options: Further options.

    Raises:
        UserError: Snakemake refuses.
    """
    bare = ["--profile", "none", "--workflow-profile", "none"]
    words = [sys.executable, "-m", "snakemake", "-n", "--rerun-incomplete", *bare, *options]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("SNAKEMAKE_")}
    result = subprocess.run(
        [*words, "--configfile", *files], check=False, capture_output=True, text=True, env=environment
    )
    said = result.stdout + result.stderr
    if result.returncode:
        raise UserError(f"snakemake: {_reason(said)} (all of it: snakemake -n --configfile {' '.join(files)})")
    return read_jobs(said)


def _reason(said: str) -> str:
    """Return an error as one line; it stands after a banner that ends with the building of the DAG."""
    lines = [line.strip() for line in said.rpartition(BUILDING)[2].splitlines()]
    told = " ".join(line for line in lines if not line.startswith(CHATTER)).strip()
    return textwrap.shorten(told, 300, placeholder=" ...") or "no reason given"


def count(study: Study, files: Sequence[str]) -> tuple[list[Job], list[Job]]:
    """Return all jobs of the default target, and those still to run."""
    root = Path(study.root)
    if not root.is_dir() or not any(path.is_dir() for path in root.iterdir()):
        total = dry_run(files)
        return total, total
    with ThreadPoolExecutor() as pool:
        total, left = pool.map(lambda options: dry_run(files, *options), (["--forceall"], []))
    return total, left


def jobs_of(study: Study, files: Sequence[str]) -> tuple[list[Job], list[Job], list[str]]:
    """Return all jobs of a study, those still to run, and what is to be said about the screen."""
    if study.screen.keep != "auto":
        return *count(study, files), []
    screened = Path(study.root) / "screen" / "kept.json"
    left = dry_run(files) if screened.is_file() else None
    kept = None if left is None or any(job.rule == "screen" for job in left) else _kept(screened)
    with tempfile.TemporaryDirectory() as folder:
        # A list in the place of `auto` shows what lies behind the screen.
        override = Path(folder) / "keep.yaml"
        override.write_text(json.dumps({"screen": {"keep": list(study.models) if kept is None else kept}}))
        if left is not None and kept is not None:
            total = dry_run([*files, str(override)], "--forceall")
            return total, left, [f"the screen kept: {', '.join(kept) or 'no model'}"]
        number = len(study.models)
        note = f"screen.keep is auto, the screen is to run: upper bound, as if all {number} models were kept"
        return *count(study, [*files, str(override)]), [note]


def _kept(path: Path) -> list[str]:
    try:
        return list(read_json(path)["kept"])
    except (UserError, KeyError, TypeError) as error:
        raise UserError(f"{path}: cannot be read; delete it and run the screen again") from error


def make(study: Study, total: Iterable[Job], left: Iterable[Job], assumed: Assumptions) -> Plan:
    """Return the plan of a study's jobs.

    Args:
        study: The study.
        total: All jobs.
        left: Those still to run.
        assumed: The assumptions of the cost model.
    """
    costs, to_run = Costs(study, assumed), set(left)
    groups: dict[tuple[str, str], list[tuple[bool, Cost]]] = {}
    total = list(total)
    for job in total:
        cost = costs.job(job.rule, dict(job.wildcards))
        groups.setdefault((stage_of(job.rule), cost.size), []).append((job in to_run, cost))
    sizes = list(study.sizes)

    def position(key: tuple[str, str]) -> tuple[int, int]:
        stage, size = key
        return (
            ORDER.index(stage) if stage in ORDER else len(ORDER),
            sizes.index(size) if size in sizes else -1,
        )

    rows = [_row(*key, groups[key]) for key in sorted(groups, key=position)]
    unknown = sorted({job.rule for job in total if not known(job.rule)})
    return Plan(rows, [f"no cost model for {rule}: counted as jobs without GPU" for rule in unknown])


def _row(stage: str, size: str, jobs: list[tuple[bool, Cost]]) -> Row:
    costs = [cost for _, cost in jobs]
    left = [cost for to_run, cost in jobs if to_run]
    largest = max(costs, key=lambda cost: cost.hours)
    memories = [cost.memory_gib for cost in costs if cost.memory_gib is not None]
    return Row(
        stage,
        size,
        len(jobs),
        len(left),
        largest.nodes,
        largest.gpus,
        largest.hours,
        largest.limit,
        gpu_hours=sum(cost.gpu_hours for cost in costs),
        gpu_hours_left=sum(cost.gpu_hours for cost in left),
        cpu_hours_left=sum(cost.hours for cost in left if not cost.gpus),
        disk_gb=sum(cost.disk_gb for cost in costs),
        disk_gb_left=sum(cost.disk_gb for cost in left),
        scratch_gb=max(cost.scratch_gb for cost in costs),
        memory_gib=max(memories, default=None),
        start_gpu_hours=sum(cost.start * cost.nodes * cost.gpus for cost in costs),
    )


def totals(rows: Sequence[Row]) -> dict[str, Any]:
    """Return the sums over all rows, and the greatest peak of a GPU."""
    keys = ("jobs", "left", "gpu_hours", "gpu_hours_left", "cpu_hours_left", "disk_gb", "disk_gb_left")
    memories = [row.memory_gib for row in rows if row.memory_gib is not None]
    return {key: sum(getattr(row, key) for row in rows) for key in keys} | {"memory_gib": max(memories, default=None)}


def starts(rows: Sequence[Row]) -> dict[str, float]:
    """Return the share of engine starts in the GPU-hours in which samples are drawn, by model size."""
    sampled = [row for row in rows if row.stage.endswith("transcripts") and row.gpu_hours]
    return {
        size: sum(row.start_gpu_hours for row in sampled if row.size == size)
        / sum(row.gpu_hours for row in sampled if row.size == size)
        for size in dict.fromkeys(row.size for row in sampled)
    }


def _number(value: float | None) -> str:
    """Return a number that is readable from thousandths to millions; nothing for none."""
    if not value:
        return "-"
    if value < 0.01:
        return "<0.01"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"


HEADER = (
    "stage",
    "size",
    "jobs",
    "done",
    "to run",
    "GPUs a job",
    "h a job",
    "GPU-h",
    "GPU-h left",
    "disk GB",
    "scratch GB",
    "GiB a GPU",
)


def _cells(row: Row, assumed: Assumptions) -> tuple[str, ...]:
    hours = _number(row.hours) + ("!" if row.limit is not None and row.hours > row.limit else "")
    memory = _number(row.memory_gib) + ("!" if (row.memory_gib or 0) > assumed.gpu_memory_gib else "")
    gpus = f"{row.nodes} x {row.gpus}" if row.gpus else "-"
    done = row.jobs - row.left
    return (
        row.stage,
        row.size or "-",
        str(row.jobs),
        str(done),
        str(row.left),
        gpus,
        hours,
        _number(row.gpu_hours),
        _number(row.gpu_hours_left),
        _number(row.disk_gb),
        _number(row.scratch_gb),
        memory,
    )


def text(plan: Plan, assumed: Assumptions) -> str:
    """Return the plan for people: the table, what its marks mean, and the assumptions."""
    sums = totals(plan.rows)
    total = (
        "total",
        "",
        str(sums["jobs"]),
        str(sums["jobs"] - sums["left"]),
        str(sums["left"]),
        "",
        "",
        _number(sums["gpu_hours"]),
        _number(sums["gpu_hours_left"]),
        _number(sums["disk_gb"]),
        "",
        _number(sums["memory_gib"]),
    )
    body = [_cells(row, assumed) for row in plan.rows]
    widths = [max(map(len, column)) for column in zip(HEADER, *body, total, strict=True)]

    def line(cells: Sequence[str]) -> str:
        named = [cell.ljust(width) for cell, width in zip(cells[:2], widths[:2], strict=True)]
        return " ".join([*named, *map(str.rjust, cells[2:], widths[2:])]).rstrip()

    rule = "-" * len(line(HEADER))
    lines = [line(HEADER), rule, *map(line, body), rule, line(total), "", *_remarks(plan, sums, assumed), ""]
    lines += ["Assumed, none of it measured; replace with --assume KEY=VALUE:"]
    for each, value in assumed:
        stated = (
            f"{value:,.0f}"
            if isinstance(value, float) and value >= 1000
            else f"{value:g}"
            if isinstance(value, float)
            else value
        )
        lines.append(f"  {each.name:18}{stated:>8} {each.metadata['unit']:15} {each.metadata['meaning']}")
    return "\n".join(lines)


def _remarks(plan: Plan, sums: dict[str, Any], assumed: Assumptions) -> list[str]:
    lines = [f"Note: {note}." for note in plan.notes]
    if any((row.memory_gib or 0) > assumed.gpu_memory_gib for row in plan.rows):
        lines.append(f"! GiB a GPU: more than the {assumed.gpu_memory_gib:g} GiB that a GPU is assumed to have.")
    if any(row.limit is not None and row.hours > row.limit for row in plan.rows):
        lines.append("! h a job: longer than the job asks for (sizes.SIZE.train_hours, generate_hours).")
    lines += [
        f"Engine starts, {size}: {100 * share:.1f} % of the GPU-h in which samples are drawn."
        for size, share in starts(plan.rows).items()
    ]
    lines += [
        f"Jobs without GPU still to run: {_number(sums['cpu_hours_left'])} h one after the other, downloads included.",
        "h, scratch, GiB: of a row's greediest job; scratch is free again after it. A job counts whole until done.",
    ]
    return lines


def document(plan: Plan, assumed: Assumptions) -> dict[str, Any]:
    """Return the plan for machines."""
    return {
        "rows": [asdict(row) for row in plan.rows],
        "totals": totals(plan.rows),
        "notes": plan.notes,
        "assumed": {
            each.name: {"value": value, "unit": each.metadata["unit"], "meaning": each.metadata["meaning"]}
            for each, value in assumed
        },
    }


def assumptions(replaced: Iterable[str]) -> Assumptions:
    """Return the assumptions with some replaced, each given as ``KEY=VALUE``."""
    result = Assumptions()
    for word in replaced:
        key, _, value = word.partition("=")
        try:
            result = result.replaced(key, value)
        except ValueError as error:
            raise UserError(f"--assume {word}: {error}") from error
    return result


def main(argv: list[str]) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m perfmis plan", description=(__doc__ or "").splitlines()[0])
    config.add_option(parser)
    parser.add_argument(
        "--assume",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="replace assumptions of the cost model",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args(argv)
    assumed = assumptions(arguments.assume)
    study = config.load(arguments.config)
    total, left, said = jobs_of(study, arguments.config)
    plan = make(study, total, left, assumed)
    plan.notes[:0] = said
    print(json.dumps(document(plan, assumed), indent=2) if arguments.json else text(plan, assumed))
