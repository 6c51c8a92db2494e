"""Hold the environment and the locks to account (``make audit``).

Every locked package has a version and hashes; what is installed is what the locks say; no locked version has a known
vulnerability. The last is asked of PyPI's advisories: where they cannot be had, that is said, and nothing else fails.
"""

import importlib.metadata
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

LOCKS = sorted(Path().glob("requirements*.lock"))
ENTRY = re.compile(r"([a-z0-9.\-]+)==([^\s+]+)(?:\+cpu)?(?: ; [^\\]*)?((?: \\\n +--hash=sha256:[0-9a-f]{64})+)")
OWN = {"perfmis", "pip"}  # pip comes with the environment, and installs by hash


def locked() -> tuple[dict[str, str], list[str]]:
    """Return the locked versions by name, and what in the locks is no version with hashes."""
    versions, problems = {}, []
    for path in LOCKS:
        text = "".join(line for line in path.read_text().splitlines(keepends=True) if not line.startswith("#"))
        versions |= {name: version for name, version, _ in ENTRY.findall(text)}
        problems += [
            f"{path}: {left}: no version with hashes; make lock" for left in ENTRY.sub("", text).split("\n") if left
        ]
    return versions, problems


def installed(versions: dict[str, str]) -> Iterator[str]:
    """Yield what is installed and is not what the locks say."""
    for distribution in importlib.metadata.distributions():
        name = re.sub(r"[-_.]+", "-", distribution.name).lower()
        version = distribution.version.partition("+")[0]
        if name not in OWN and versions.get(name) != version:
            yield f"{name} {version} is installed, locked is {versions.get(name, 'none')}; make clean setup"


def vulnerable() -> tuple[list[str], int, int]:
    """Return the known vulnerabilities, and of how many of how many packages the advisories were had."""
    # PyPI knows nothing of torch for CPUs; it has the version of the other torch.
    files = [word for path in LOCKS if path.name != "requirements-cpu.lock" for word in ("--requirement", path)]
    words = [sys.executable, "-m", "pip_audit", *files, "--require-hashes", "--disable-pip", "--format", "json"]
    result = subprocess.run(words, check=False, capture_output=True, text=True)
    try:
        found = json.loads(result.stdout)["dependencies"]
    except ValueError:
        print(result.stderr, file=sys.stderr)
        return [], 0, 1
    asked = [each for each in found if "skip_reason" not in each]
    known = [
        f"{each['name']} {each['version']}: {flaw['id']}, mended in {', '.join(flaw['fix_versions']) or 'no version'}"
        for each in asked
        for flaw in each["vulns"]
    ]
    return known, len(asked), len(found)


def main() -> None:
    """Print the problems and fail if there are any."""
    versions, problems = locked()
    problems += installed(versions)
    if not problems:
        print(f"{len(versions)} packages are locked by hash; what is installed is what is locked")
    known, had, number = vulnerable()
    if had < number:
        print(
            f"WARNING: PyPI gave advisories of {had} of {number} packages; the rest was NOT checked for vulnerabilities"
        )
    for problem in (problems := problems + known):
        print(f"error: {problem}")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
