"""Are jobs of a run that died still on? They write the files that a new run would write, and it does not know them.

A submitter that was killed leaves its stages behind on this machine too.
Slurm keeps the jobs of a submitter that was killed; Snakemake's lock alone does not stop a second run, since a user
has to lift it anyway. Waiting for them gains nothing: what was under way when the submitter died counts as incomplete,
and is made again, from its checkpoint where it was stopped and from the start where it came to its end.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

import psutil

from perfmis.checks.finding import Finding

# Snakemake's plug-in names jobs [PREFIX_]UUID and puts rule and wildcards into the comment.
COMMENT = re.compile(r"(?:rule|group)_")
FORMAT = "%i|%k|%Z"


def live(folder: Path) -> list[Finding]:
    """Return a failure where Slurm has jobs of this account that work in ``folder``; nothing without Slurm."""
    if shutil.which("squeue") is None:
        return []
    words = ("squeue", "--me", "--noheader", "--states", "PENDING,RUNNING,SUSPENDED,COMPLETING", "--format", FORMAT)
    try:
        said = subprocess.run(words, check=True, capture_output=True, text=True, timeout=30).stdout
    except (subprocess.SubprocessError, OSError):
        return []  # a controller that is down is the executor's to report, and no matter of a local run
    found = [line.split("|", 2) for line in said.splitlines()]
    numbers = [number for number, comment, where in found if COMMENT.match(comment) and _same(where, folder)]
    if not numbers:
        return []
    text = "jobs of an earlier run in this folder are still on, and are started anew"
    return [Finding("FAIL", "slurm", f"{text}; first: scancel {' '.join(numbers)}")]


def stages(folder: Path) -> list[Finding]:
    """Return a failure where stages that work in ``folder`` run on this machine; those of Slurm's jobs are its own."""
    numbers = [str(process.pid) for process in psutil.process_iter() if _is_stage(process, folder)]
    if not numbers:
        return []
    text = f"stages of an earlier run in this folder are still on; wait until they end, or: kill {' '.join(numbers)}"
    return [Finding("FAIL", "processes", text)]


def _is_stage(process: psutil.Process, folder: Path) -> bool:
    try:
        words = process.cmdline()
        if words[1:3] != ["-m", "perfmis"] or "--fingerprint" not in words:
            return False
        return _same(process.cwd(), folder) and "SLURM_JOB_ID" not in process.environ()
    except psutil.Error:
        return False  # it has ended meanwhile, or is another account's


def _same(where: str, folder: Path) -> bool:
    return os.path.realpath(where) == os.path.realpath(folder)
