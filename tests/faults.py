"""docs/reliability.md: what each fault did at each stage, as the tests saw it.

A test tells what it saw by `record`: the document must say the same, or, with ``UPDATE_DOCS=1`` in the environment, is
made to. So the document cannot say what no test has seen.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

DOCUMENT = Path(__file__).resolve().parent.parent / "docs/reliability.md"
SAME = "as above"
HEADER = "| stage | what is said | lost | the rerun |\n|---|---|---|---|\n"
ROW = re.compile(r"^\| (?P<stage>.*?) \| (?P<said>.*) \| (?P<lost>.*?) \| (?P<rerun>.*?) \|$")


@dataclass(frozen=True)
class Fault:
    """One way in which a study is disturbed.

    Attributes:
        title: Heading of its section.
        text: What is done to the study, and what a user then does.
        stages: The stages at which it is tried; each is a row of the section.
    """

    title: str
    text: str
    stages: tuple[str, ...]


INTRODUCTION = """\
# What a study survives

A study of weeks meets killed jobs, full disks and damaged files. What holds after each of them, at every stage:

* one line says what happened, which file it concerns and what to do. It stands on the terminal and, unless the stage
  was killed or its log cannot be written, at the end of the log; `python -m perfmis status` tells it too, also after
  the submitting process has died;
* what was finished stays as it is. Training goes on from its newest sound checkpoint, sampling draws what the store of
  samples lacks, and of the other stages the one job is done again;
* the same command, started again, ends with the tables of a study that was never disturbed, value by value, and with
  the same adapters, bit by bit;
* a job that fails for good takes no other model's results with it. The run makes all that does not need the job, then
  tables, figures and report from what there is, and ends with an error. What is missing is listed with the failed job
  and its error line: in each table that lacks it (column `missing`), by name in the figures, on the first page, and in
  `logs/missing.json`. It counts as failed, not as done: the next run tries it again, and makes anew what rests on it.
  A table, figure or page that fails itself is not made, nor is what is drawn from it; where no organism of any model
  can be sampled there is nothing to make a report from, and one line says so. All this is of runs that keep going
  (`keep-going` in the profiles) and were not stopped.

Damage is noticed by hashes: tables, JSON and steering vectors carry the SHA-256 of their own content, an adapter's
lineage names those of its weights and its configuration, stored samples have checksums, checkpoints and tokenised
corpora are sealed. Not noticed is damage to the weights of models of the hub or of your own, which take longer to hash
than to load, to CSV, figures and pages, which no stage reads, and to merged weights (`arms.mode: merge`).

The tables below are written by the tests, which disturb a small study and start it again:

```
python -m pytest tests/test_reliability.py                          # each fault once; part of `make test`
UPDATE_DOCS=1 python -m pytest tests/test_reliability.py -m ''      # all of them; writes this page
UPDATE_DOCS=1 python -m pytest tests/test_slurm.py -m slurm         # those of a cluster
```
"""

ALL = (
    "corpus",
    "trunk",
    "base model",
    "organism",
    "arm",
    "samples",
    "outcomes",
    "beliefs",
    "table",
    "figure",
)
FAULTS: dict[str, Fault] = {
    "killed": Fault(
        "A stage is killed",
        "SIGKILL while it writes its result, as the kernel does when memory runs out. Start again.",
        ALL,
    ),
    "submitter": Fault(
        "The submitting process is killed",
        "SIGKILL to snakemake while a stage runs. Its lock stays, and so does the stage; the next starts tell of both. "
        "Lift the lock with `--unlock`, let the stage end or kill it, and start again.",
        ALL,
    ),
    "twice": Fault(
        "Two submitters at once",
        "The same command is started a second time while the first one runs. It is refused, and the first goes on.",
        ALL,
    ),
    "full": Fault(
        "The disk fills up",
        "Something else takes all space, also that of logs and of Snakemake's records, while a stage is about to "
        "write. A start on a full disk is refused. Free space and start again.",
        ALL,
    ),
    "read-only": Fault(
        "Results become read-only",
        "The file system of the results is remounted while a stage is about to write. A start on it is refused before "
        "the first job. Mount it for writing and start again.",
        ALL,
    ),
    "damaged": Fault(
        "A file is damaged",
        "A file is emptied, cut in half, or has one bit flipped in its middle. The stage that reads it says which file "
        "or folder to delete; delete it and start again. Tokenised corpora and stored samples are put right by "
        "themselves.",
        (
            "corpus",
            "trunk",
            "base model",
            "tokenised corpus",
            "organism",
            "arm",
            "stored samples",
            "samples",
            "outcomes",
            "beliefs",
            "table",
        ),
    ),
    "clock": Fault(
        "The clock jumps",
        "All files get times in the future or in 1970, and the submitter's clock is set back by an hour while the "
        "stage runs. A start with files of the future is refused, since Snakemake would throw away what is made from "
        "them; touch them as it says and start again. What is done is not done again.",
        ALL,
    ),
    "slurm-stage": Fault(
        "On Slurm: a stage is killed",
        "SIGKILL while it trains. Nothing is to be done: the profile's `retries` send the job again, twice at most.",
        ("organism",),
    ),
    "slurm-submitter": Fault(
        "On Slurm: the submitting process is killed",
        "SIGKILL to snakemake while a job runs. Its lock stays, and so do its jobs; both are told of at the next "
        "start. Lift the lock with `--unlock`, cancel the jobs that the next start names, and start again.",
        ("trunk",),
    ),
    "slurm-twice": Fault(
        "On Slurm: two submitters at once",
        "The same command is started a second time while the first one runs. It is refused; the first goes on.",
        ("trunk",),
    ),
    "slurm-node": Fault(
        "On Slurm: a node dies",
        "Its daemon and all that it started are killed. Nothing is to be done: Slurm starts its jobs anew on another.",
        ("samples",),
    ),
    "slurm-timeout": Fault(
        "On Slurm: a job's time is over",
        "Slurm ends it at its limit. Nothing is to be done, unless it happens in each of three attempts.",
        ("organism",),
    ),
    "slurm-requeue": Fault(
        "On Slurm: a job is requeued",
        "By `scontrol requeue`, as for maintenance or a job of higher rank. Nothing is to be done.",
        ("organism",),
    ),
    "slurm-daemons": Fault(
        "On Slurm: daemons die and come back",
        "SIGKILL to the controller and to the daemon of the job's node, which come back after 25 s, before Slurm "
        "counts the node as dead. Nothing is to be done, but a job that is to be sent meanwhile may fail in all its "
        "attempts: start again.",
        ("organism",),
    ),
}


@dataclass(frozen=True)
class Row:
    """What was seen of one fault at one stage.

    Attributes:
        said: The line that a user reads.
        lost: What has to be computed anew.
        rerun: What the next start did.
    """

    said: str
    lost: str
    rerun: str


Rows = dict[tuple[str, str], Row]


def read() -> Rows:
    """Return the rows of the document by fault and stage."""
    rows: Rows = {}
    fault = ""
    keys = {known.title: key for key, known in FAULTS.items()}
    for line in DOCUMENT.read_text().splitlines() if DOCUMENT.exists() else []:
        if line.startswith("## "):
            fault = keys.get(line.removeprefix("## "), "")
        elif fault and (match := ROW.match(line)) and match["stage"] != "stage":
            said = rows[next(reversed(rows))].said if match["said"] == SAME else match["said"]
            rows[fault, match["stage"]] = Row(said, match["lost"], match["rerun"])
    return rows


def text(rows: Rows) -> str:
    """Return the document; rows that no fault declares are left out."""
    parts = [INTRODUCTION, _overview(rows)]
    for key, fault in FAULTS.items():
        own = [(stage, rows[key, stage]) for stage in fault.stages if (key, stage) in rows]
        before, table = "", ""
        for stage, row in own:
            table += f"| {stage} | {SAME if row.said == before else row.said} | {row.lost} | {row.rerun} |\n"
            before = row.said
        parts += [f"## {fault.title}\n\n{fault.text}\n\n{HEADER}{table}"] if own else []
    return "\n".join(parts)


def _overview(rows: Rows) -> str:
    """Return the table of what is lost by stage and fault, without those of a cluster."""
    faults = [key for key in FAULTS if not key.startswith("slurm")]
    stages = dict.fromkeys(stage for key in faults for stage in FAULTS[key].stages)
    lines = ["| lost | " + " | ".join(faults) + " |", "|---" * (len(faults) + 1) + "|"]
    for stage in stages:
        cells = [rows[key, stage].lost if (key, stage) in rows else "" for key in faults]
        lines.append(f"| {stage} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def cells() -> set[tuple[str, str]]:
    """Return all pairs of fault and stage that the document has to have."""
    return {(key, stage) for key, fault in FAULTS.items() for stage in fault.stages}


def record(fault: str, stage: str, said: str, lost: str, rerun: str) -> None:
    """Compare what was seen with the document, or write it there (``UPDATE_DOCS=1``).

    Args:
        fault: Key of `FAULTS`.
        stage: One of its stages.
        said: The line that a user reads, without what differs from one time to the next; empty where there is none.
        lost: What has to be computed anew.
        rerun: What the next start did.
    """
    assert stage in FAULTS[fault].stages, (fault, stage)
    rows, row = read(), Row(f"`{said}`".replace("|", "\\|") if said else "nothing", lost, rerun)
    if os.environ.get("UPDATE_DOCS"):
        DOCUMENT.write_text(text({**rows, (fault, stage): row}))
    else:
        assert rows.get((fault, stage)) == row, f"docs/reliability.md: {fault}, {stage}; UPDATE_DOCS=1 writes it"
