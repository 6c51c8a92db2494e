"""What the workflow costs beside the work: dry-runs, and one table made anew, each beside plain Snakemake.

    python benchmarks/workflow.py [--repeats 5]

A plain workflow has as many jobs, reads no configuration, imports nothing and touches files: what a command takes there
is Snakemake's own. Every command is repeated, one round after the other; printed are the least of its wall times and of
the CPU times of it and its children, since whatever else a machine does only adds to them. Results are made up in a
folder of their own; the only stage that runs is `tables.convergence`.
"""

import argparse
import csv
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
import study  # noqa: E402
import synthetic  # noqa: E402

from perfmis import config  # noqa: E402
from perfmis.artifacts import write_parquet  # noqa: E402
from perfmis.study import Chain  # noqa: E402

PARTS = ("workflow", "config", "resources", "perfmis")
JUDGED = {
    "judge": {"api": {"provider": "openai", "model": "judge-1"}},
    "prompting": {"closed": {"closed-1": {"provider": "anthropic", "model": "claude-1"}}},
}
MODELS, SEEDS = 20, 9  # ten times the 6 × 3 of config/config.yaml
TABLE = "results/tables/convergence.csv"
PLAIN = """
rule all:
    input: "table"
rule step:
    output: "steps/{{n}}"
    shell: "touch {{output}}"
rule table:
    input: expand("steps/{{n}}", n=range({steps}))
    output: "table"
    shell: "touch {{output}}"
"""


@dataclass
class Command:
    """A call of snakemake, measured again and again."""

    name: str
    folder: Path
    options: Sequence[str]
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def run(self) -> None:
        """Run once and note what it took."""
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        snakemake(self.folder, *self.options)
        self.wall.append(time.monotonic() - start)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        self.cpu.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def snakemake(folder: Path, *options: str) -> str:
    """Run snakemake in a folder and return all it said."""
    said = subprocess.run(
        [sys.executable, "-m", "snakemake", *options],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"},
    )
    if said.returncode:
        raise SystemExit(said.stdout + said.stderr)
    return said.stdout + said.stderr


def jobs(folder: Path, *options: str) -> int:
    """Return the number of jobs to do."""
    found = re.search(r"^total +(\d+)$", snakemake(folder, "-n", "--quiet", "rules", *options), re.MULTILINE)
    assert found
    return int(found[1])


def ten_times() -> dict[str, Any]:
    """Return a study of ten times the models and seeds, of which as large a share is kept and steered."""
    names = [f"model-{number:02}" for number in range(MODELS)]
    models = {name: {"hub": f"nobody/{name}", "revision": "0" * 40, "size": "70b"} for name in names}
    kept = names[: MODELS * 2 // 3]
    return {
        "models": models,
        "seeds": {"training": list(range(SEEDS))},
        "screen": {"keep": kept},
        "steering": {"models": names[: MODELS // 6]},
    }


def workflow(folder: Path) -> Path:
    """Make a folder in which the study runs with results, and a copy of the code, of its own."""
    folder.mkdir()
    shutil.copy(ROOT / "Snakefile", folder)
    for part in PARTS:
        shutil.copytree(ROOT / part, folder / part)
    return folder


def plain(folder: Path, number: int) -> Path:
    """Make a folder with a plain workflow of so many jobs."""
    folder.mkdir()
    (folder / "Snakefile").write_text(PLAIN.format(steps=number - 2))
    return folder


def finish(folder: Path, *options: str) -> None:
    """Make all files of a workflow up, until nothing is left to do; those that exist stay what they are."""
    paths: Iterable[str] = (
        row["output_file"]
        for row in csv.DictReader(snakemake(folder, "--summary", *options).splitlines(), delimiter="\t")
    )
    for path in map(folder.joinpath, paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    snakemake(folder, "--touch", "--forceall", "--cores", "1", *options)
    assert "Nothing to be done" in snakemake(folder, "-n", *options)


def profiles(root: Path, settings: Mapping[str, Any]) -> None:
    """Make up the table that the measured stage reads, as the study's own stage would have signed it."""
    chain = Chain(config.parse(dict(settings), "the benchmark"))
    models = dict.fromkeys(chain.models, "both")
    with tempfile.TemporaryDirectory() as scratch:
        study.write_inputs(Path(scratch), models, synthetic.Design(prompts=8, seeds=(0,)), controls=2, steered=1)
        study.make_tables(Path(scratch), models, resamples=20)
        frame = study.table(Path(scratch), "profiles").drop("fingerprint")
    write_parquet(frame, root / "tables/profiles.parquet", chain.table_profiles().fingerprint)


def as_on_a_cluster(rule: str) -> list[str]:
    """Return the options with which snakemake is started in a job, of which Slurm's executor plug-in starts two."""
    return [
        "--target-jobs",
        f"{rule}:",
        "--allowed-rules",
        rule,
        "--cores",
        "1",
        "--attempt",
        "1",
        "--force",
        "--force-use-threads",
        "--no-hooks",
        "--nolock",
        "--ignore-incomplete",
        "--mode",
        "remote",
    ]


def main() -> None:
    """Prepare, measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    with tempfile.TemporaryDirectory() as scratch:
        here = workflow(Path(scratch, "study"))
        for name, content in (("judged", JUDGED), ("ten", ten_times())):
            (here / f"{name}.yaml").write_text(yaml.safe_dump(content))
        judged = ("--configfile", "config/config.yaml", "judged.yaml")
        ten = ("--configfile", "ten.yaml")
        numbers = {"study": jobs(here), "judged": jobs(here, *judged), "ten": jobs(here, *ten)}
        small = plain(Path(scratch, "plain"), numbers["study"])
        large = plain(Path(scratch, "large"), numbers["ten"])
        done = workflow(Path(scratch, "done"))
        profiles(done / "results", {})
        finish(done)
        plain_done = plain(Path(scratch, "plain-done"), numbers["study"])
        finish(plain_done)
        once = ("--cores", "1", "--force")
        commands = [
            Command(f"dry-run, plain, {numbers['study']} jobs", small, ["-n"]),
            Command(f"dry-run, config/config.yaml, {numbers['study']} jobs", here, ["-n"]),
            Command(f"dry-run, with a judge and a closed model, {numbers['judged']} jobs", here, ["-n", *judged]),
            Command(f"dry-run, plain, {numbers['ten']} jobs", large, ["-n"]),
            Command(f"dry-run, ten times the study, {numbers['ten']} jobs", here, ["-n", *ten]),
            Command("one job made anew, plain", plain_done, ["table", *once]),
            Command("one table made anew, config/config.yaml", done, [TABLE, *once]),
            Command("a start inside a job, plain", plain_done, as_on_a_cluster("table")),
            Command("a start inside a job, config/config.yaml", done, as_on_a_cluster("table_convergence")),
        ]
        for _ in range(repeats):
            for command in commands:
                command.run()
    print(f"{'':62}{'wall, s':>9}{'CPU, s':>9}")
    for command in commands:
        print(f"{command.name:62}{min(command.wall):9.2f}{min(command.cpu):9.2f}")


if __name__ == "__main__":
    main()
