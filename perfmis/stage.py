"""What every stage command shares: its settings, its fingerprint, its one-line errors.

A stage is called as ``python -m perfmis STAGE --settings JSON --fingerprint HEX ...``. The JSON holds the
slice of the configuration that the stage may read (``settings``) and the fingerprints of what it is built
from (``upstream``); nothing else of the study reaches it, so the fingerprint is exact.
"""

import argparse
import json
from dataclasses import dataclass
from typing import Any

# Words for people, in errors, logs and cards: where this is the annotation, they reach no fingerprint.
Prose = str


class UserError(Exception):
    """Bad input; the message is one line that names the file, the key and the fix."""


@dataclass(frozen=True)
class Job:
    """What the workflow tells a stage.

    Attributes:
        settings: The stage's own slice of the configuration.
        upstream: Fingerprints of the artifacts it reads.
        fingerprint: Fingerprint that its outputs carry.
    """

    settings: dict[str, Any]
    upstream: frozenset[str]
    fingerprint: str


def parser(description: str) -> argparse.ArgumentParser:
    """Return an argument parser with the two options of every stage."""
    result = argparse.ArgumentParser(
        description=description.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    result.add_argument("--settings", required=True, help="canonical JSON of `settings` and `upstream`")
    result.add_argument("--fingerprint", required=True, help="fingerprint written into the outputs")
    return result


def canonical(content: Any) -> str:
    """Return the one JSON text of a value: sorted keys, no spaces."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"))


def job(arguments: argparse.Namespace) -> Job:
    """Return the job that parsed arguments describe."""
    content = json.loads(arguments.settings)
    return Job(content["settings"], frozenset(content["upstream"]), arguments.fingerprint)
