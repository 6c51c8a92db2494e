"""Are jobs of a run that died still on? They write the files that a new run would write, and it does not know them.

Slurm keeps the jobs of a submitter that was killed; Snakemake's lock alone does not stop a second run, since a user
has to lift it anyway.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

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
    text = f"jobs of an earlier run in this folder are still on; wait until they end, or: scancel {' '.join(numbers)}"
    return [Finding("FAIL", "slurm", text)]


def _same(where: str, folder: Path) -> bool:
    return os.path.realpath(where) == os.path.realpath(folder)
