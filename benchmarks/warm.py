"""What the warm process saves: the same ten small jobs with and without it, in one run.

python benchmarks/warm.py
"""

import json
import os
import subprocess
import sys
import tempfile
import time

JOBS = 10


def command(folder: str, number: int) -> list[str]:
    """Return a stage that does next to nothing but imports: a table from a small file."""
    settings = json.dumps({"settings": {"model": "x", "hub": None}, "upstream": []})
    output = f"{folder}/{number}.json"
    return [sys.executable, "-m", "perfmis", "hub", "--settings", settings, "--fingerprint", "0", "--output", output]


def seconds(jobs: list[list[str]], prefix: list[str]) -> float:
    """Run jobs one after the other in one shell and return the wall time."""
    script = "import subprocess, sys, json; [subprocess.run(j, check=True) for j in json.loads(sys.argv[1])]"
    start = time.monotonic()
    subprocess.run([*prefix, sys.executable, "-c", script, json.dumps(jobs)], check=True, env=os.environ)
    return time.monotonic() - start


def main() -> None:
    """Print both times and their ratio."""
    heavy = "import trl.trainer.sft_trainer, perfmis.__main__ as m, sys; sys.exit(m.run(sys.argv[1:]))"
    with tempfile.TemporaryDirectory() as folder:
        cold = [[sys.executable, "-c", heavy, *command(folder, i)[3:]] for i in range(JOBS)]
        warm = [command(folder, i) for i in range(JOBS)]
        without = seconds(cold, [])
        with_warm = seconds(warm, [sys.executable, "-m", "perfmis", "warm"])
    print(f"{JOBS} jobs that need the training stack: {without:.1f} s without, {with_warm:.1f} s with the warm process")
    print(f"ratio {without / with_warm:.1f}")


if __name__ == "__main__":
    main()
