"""Are jobs of a run that died still on? They write the files that a new run would write, and it does not know them.

Slurm keeps the jobs of a submitter that was killed, and this machine its stages; Snakemake's lock alone does not stop a
second run, since a user has to lift it anyway. Waiting for jobs of Slurm gains nothing: what was under way when the
submitter died counts as incomplete, and is made again, from its checkpoint where it was stopped and from the start
where it came to its end.

Other studies may run in the same folder, each with its own root: their jobs are none of this run's concern.
"""

import os
import re
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path

import psutil

from perfmis import status
from perfmis.checks.finding import Finding

# Snakemake's plug-in names jobs [PREFIX_]UUID and puts rule and wildcards into the comment.
COMMENT = re.compile(r"(?:rule|group)_")
FORMAT = "%i|%k|%Z"
STATES = "PENDING,RUNNING,SUSPENDED,COMPLETING"


def live(folder: Path, root: str) -> list[Finding]:
    """Return a failure where Slurm has jobs that runs of this study sent from ``folder``; nothing without Slurm.

    Slurm does not know the study of a job, the study's journal does.
    """
    sent = _sent(Path(root, status.JOURNAL))
    if not sent or shutil.which("squeue") is None:
        return []
    words = ("squeue", "--me", "--noheader", "--array", "--states", STATES, "--format", FORMAT)
    try:
        said = subprocess.run(words, check=True, capture_output=True, text=True, timeout=30).stdout
    except (subprocess.SubprocessError, OSError):
        return []  # a controller that is down is the executor's to report, and no matter of a local run
    found = [line.split("|", 2) for line in said.splitlines()]
    numbers = [
        number for number, comment, where in found if number in sent and COMMENT.match(comment) and _same(where, folder)
    ]
    if not numbers:
        return []
    text = "jobs of an earlier run in this folder are still on, and are started anew"
    return [Finding("FAIL", "slurm", f"{text}; first: scancel {' '.join(numbers)}")]


def _sent(journal: Path) -> set[str]:
    """Return the numbers of the jobs of Slurm that a journal tells of."""
    told = status.events(journal) if journal.is_file() else ()
    return {str(event["cluster"]) for event in told if event.get("event") == "submitted"}


def stages(folder: Path, root: str) -> list[Finding]:
    """Return a failure where stages of this study run on this machine; those of Slurm's jobs are its own."""
    numbers = [str(process.pid) for process in psutil.process_iter() if _is_stage(process, folder, root)]
    if not numbers:
        return []
    text = f"stages of an earlier run in this folder are still on; wait until they end, or: kill {' '.join(numbers)}"
    return [Finding("FAIL", "processes", text)]


def _is_stage(process: psutil.Process, folder: Path, root: str) -> bool:
    try:
        words = process.cmdline()
        # torchrun puts options of its own in front of `-m`.
        if ("-m", "perfmis") not in pairwise(words) or "--fingerprint" not in words:
            return False
        if not any(word.startswith(f"{root}/") for word in words):
            return False
        return _same(process.cwd(), folder) and "SLURM_JOB_ID" not in process.environ()
    except psutil.Error:
        return False  # it has ended meanwhile, or is another account's


def _same(where: str, folder: Path) -> bool:
    return os.path.realpath(where) == os.path.realpath(folder)
