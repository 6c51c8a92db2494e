"""How tests run the workflow and its stages."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from perfmis.__main__ import run

FINGERPRINT = "5eed5eed5eed5eed"


def stage(name: str, settings: Mapping[str, Any], *options: object) -> int:
    """Run ``python -m perfmis NAME`` in this process, as `FINGERPRINT`, and return the exit status."""
    content = json.dumps({"settings": settings, "upstream": [FINGERPRINT]})
    return run([name, "--settings", content, "--fingerprint", FINGERPRINT, *map(str, options)])


def environment(folder: Path) -> dict[str, str]:
    """Return an environment in which ``folder`` supplies the package, whatever is installed."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PERFMIS_")}
    return {**kept, "PATH": path, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}


def command(folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    """Run a command in a folder and return what it said."""
    return subprocess.run(words, cwd=folder, env=environment(folder), check=False, capture_output=True, text=True)


def snakemake(folder: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    """Run snakemake in a folder."""
    return command(folder, sys.executable, "-m", "snakemake", *options)


def jobs(said: str) -> Counter[str]:
    """Return the number of jobs by rule from the first job table that snakemake printed; none without one."""
    table = re.search(r"^job +count\n[- ]+\n(.*?)^total ", said, re.MULTILINE | re.DOTALL)
    return Counter({rule: int(number) for rule, number in map(str.split, table[1].splitlines())} if table else {})
