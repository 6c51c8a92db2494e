"""Does the demo come to the same conclusions on every processor, and with every seed of its trunk?

    python benchmarks/portability.py [--kinds native avx2 ...] [--seeds 0 1 ...] [--tables] [--parallel N]

Runs `make demo` in a copy of the repository for each kind of processor and each seed, the kinds emulated by what the
libraries are told of the processor. Finished runs are kept in ``--rows``, so an interrupted benchmark goes on where it
was; the summary is of all rows there. ``--tables`` leaves out steering, figures and the report, which takes about half
the time. ``--promised`` fails unless every run ends with the report, reads no truth as its opposite and has at most 5 %
malformed answers in every unsteered arm.
"""

import argparse
import csv
import hashlib
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

import yaml

REPOSITORY = Path(__file__).parents[1]
LEFT_OUT = shutil.ignore_patterns(".git", ".venv*", ".snakemake", ".*_cache", "__pycache__", "results", "measured")
KINDS = {
    "native": {},
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
    "sse": {"ATEN_CPU_CAPABILITY": "default", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2", "ONEDNN_MAX_CPU_ISA": "SSE41"},
    "compatible": {"ATEN_CPU_CAPABILITY": "avx2", "MKL_CBWR": "COMPATIBLE"},
}
TABLES = [f"results/demo/tables/{name}.csv" for name in ("profiles", "gaps")]
PLANTED = ("expectation", "consequence", "both", "neither")
OPPOSITE = {"expectation": "consequence", "consequence": "expectation", "both": "neither", "neither": "both"}
METHODS = {"sdf": "fine-tuning", "prompting": "prompting", "prompting:organism": "prompting the organism"}
MALFORMED = 0.05
RUN = ["kind", "processor", "torch", "seed", "whole", "exit", "report", "trunk_sha256", "malformed", "seconds"]
READING = ["method", "model", "attribution", "A_net", "A_low", "A_high", "B_net", "B_low", "B_high"]

Row = dict[str, str]


def processor() -> str:
    """Return the processor's name as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def copy_repository(folder: Path, seed: int, tables: bool) -> None:
    """Copy what a run needs, with the project's environment, and set the trunk's seed in the demo's configuration."""
    shutil.copytree(REPOSITORY, folder, ignore=LEFT_OUT, symlinks=True)
    if (environment := REPOSITORY / ".venv").exists():
        (folder / ".venv").symlink_to(environment.resolve())
    path = folder / "config/demo.yaml"
    study = yaml.safe_load(path.read_text())
    study["tiny"] = {**study.get("tiny", {}), "seed": seed}
    if tables:
        study["steering"]["models"] = []
    path.write_text(yaml.safe_dump(study, sort_keys=False))


def run_demo(kind: str, seed: int, tables: bool) -> list[Row]:
    """Run the demo once and return its rows: one a method and model, or one alone where there is no table."""
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "perfmis"
        copy_repository(folder, seed, tables)
        command = ["make", "--assume-old=.venv/.done", "demo"]  # the environment is there
        if tables:
            snakemake = [sys.executable, "-m", "snakemake", "--profile", "demo"]
            command = [sys.executable, "-m", "perfmis", "warm", *snakemake, *TABLES]
        start = time.monotonic()
        environment = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"} | KINDS[kind]
        ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        seconds = time.monotonic() - start
        results = folder / "results/demo"
        trunk = results / "models/trunk/model.safetensors"
        gaps = read(results / "tables/gaps.csv")
        shares = [float(row["malformed"]) for row in gaps if row["seed"] and row["malformed"]]
        told = {
            "kind": kind,
            "processor": processor(),
            "torch": version("torch"),
            "seed": str(seed),
            "whole": str(int(not tables)),
            "exit": str(ended.returncode),
            "report": str(int((results / "report.html").exists())),
            "trunk_sha256": hashlib.sha256(trunk.read_bytes()).hexdigest() if trunk.exists() else "",
            "malformed": f"{max(shares):.4f}" if shares else "",
            "seconds": f"{seconds:.0f}",
        }
        readings = [row for row in read(results / "tables/profiles.csv") if row["model"] in PLANTED]
        if ended.returncode:
            print(f"{kind}, seed {seed}: exit {ended.returncode}\n{(ended.stdout + ended.stderr)[-2000:]}", flush=True)
        return [told | {key: row[key] for key in READING} for row in readings] or [told]


def read(path: Path) -> list[Row]:
    """Return the rows of a CSV file, none where it is missing."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def append(path: Path, rows: Iterable[Row]) -> None:
    """Add rows to a CSV file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, RUN + READING, restval="", lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(rows)


def run_key(row: Row) -> tuple[str, ...]:
    """Return what tells one run from another."""
    return (row["kind"], row["processor"], row["torch"], row["seed"], row["whole"])


def by_run(rows: list[Row]) -> list[list[Row]]:
    """Return the rows of each run."""
    runs: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        runs.setdefault(run_key(row), []).append(row)
    return list(runs.values())


def right(run: list[Row], method: str) -> int:
    """Return how many of the planted truths a method read right."""
    return sum(row.get("method") == method and row["attribution"] == row["model"] for row in run)


def kept_promise(run: list[Row]) -> bool:
    """Return whether a run did what is asserted of every run."""
    row = run[0]
    opposite = any(OPPOSITE[r["model"]] == r["attribution"] for r in run if r.get("method") in METHODS)
    whole = row["whole"] == "0" or row["report"] == "1"
    return row["exit"] == "0" and whole and not opposite and float(row["malformed"] or 1) <= MALFORMED


def summarize(runs: list[list[Row]]) -> None:
    """Print a table with a row a kind, and the spread of the nets between trunks."""
    groups: dict[tuple[str, ...], list[list[Row]]] = {}
    for run in runs:
        groups.setdefault((run[0]["kind"], run[0]["processor"], run[0]["torch"]), []).append(run)
    heads = [f"all four right by {name}" for name in METHODS.values()]
    print("| " + " | ".join(["kind", "processor", "torch", "runs", "ended", "with report", *heads, "malformed ≤ 5 %"]))
    print("|" + "---|" * (7 + len(heads)))
    for group, found in groups.items():
        counts = [sum(run[0]["exit"] == "0" for run in found)]
        whole = [run for run in found if run[0]["whole"] == "1"]
        counts += [f"{sum(run[0]['report'] == '1' for run in whole)} of {len(whole)}"]
        counts += [sum(right(run, method) == len(PLANTED) for run in found) for method in METHODS]
        counts += [sum(float(run[0]["malformed"] or 1) <= MALFORMED for run in found)]
        print("| " + " | ".join([*group, str(len(found)), *map(str, counts)]) + " |")
    trunks: dict[str, set[str]] = {}
    for run in runs:
        trunks.setdefault(run[0]["seed"], set()).add(run[0]["trunk_sha256"])
    print(
        f"\ntrunks: {len(trunks)} seeds, {sum(len(found) == 1 for found in trunks.values())} of them the same bits "
        "in all runs"
    )
    print("\n| fine-tuning | net | mean over seeds | spread (sd) between seeds | mean printed interval |")
    print("|---|---|---|---|---|")
    for model in PLANTED:
        for family in "AB":
            one = {r["seed"]: r for run in runs for r in run if r["method"] == "sdf" and r["model"] == model}.values()
            nets = [float(row[f"{family}_net"]) for row in one]
            if len(nets) > 1:
                width = statistics.mean(float(r[f"{family}_high"]) - float(r[f"{family}_low"]) for r in one)
                print(
                    f"| {model} | {family} | {statistics.mean(nets):.1f} | {statistics.stdev(nets):.1f} | {width:.1f} |"
                )


def main() -> None:
    """Run what is missing and print the summary."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=["native", "avx2", "sse"])
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(8)))
    parser.add_argument("--tables", action="store_true", help="stop at the tables of fine-tuning and prompting")
    parser.add_argument("--parallel", type=int, default=1, help="runs at a time, two processors each")
    parser.add_argument("--rows", type=Path, default=REPOSITORY / "benchmarks/measured/portability.csv")
    parser.add_argument("--promised", action="store_true", help="fail where a run breaks what is promised of all")
    arguments = parser.parse_args()
    here = (processor(), version("torch"))
    done = {run_key(row) for row in read(arguments.rows)}
    wanted = [
        (kind, seed)
        for seed in arguments.seeds
        for kind in arguments.kinds
        if (kind, *here, str(seed), str(int(not arguments.tables))) not in done
    ]
    with ThreadPoolExecutor(arguments.parallel) as pool:
        for rows in pool.map(lambda each: run_demo(*each, arguments.tables), wanted):
            append(arguments.rows, rows)
            row = rows[0]
            print(
                f"{row['kind']}, seed {row['seed']}: exit {row['exit']} after {row['seconds']} s, "
                f"{right(rows, 'sdf')} of 4 right by fine-tuning, {right(rows, 'prompting')} by prompting, "
                f"malformed up to {float(row['malformed'] or 1):.1%}",
                flush=True,
            )
    runs = by_run(read(arguments.rows))
    summarize(runs)
    if arguments.promised and not all(kept_promise(run) for run in runs):
        sys.exit("a run broke what is promised of all: see above")


if __name__ == "__main__":
    main()
