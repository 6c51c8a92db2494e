"""How tests call the stage `sdf`."""

import json
import os
import sys
from pathlib import Path
from typing import Any

from conftest import SDF
from running import FINGERPRINT, stage


def options(base: Path, corpus: Path, folder: Path, *more: object) -> list[object]:
    """Return the options of the stage."""
    tokens = folder.parent / "tokens"
    return ["--base", base / "reference.json", "--corpus", corpus, "--tokens", tokens, "--output", folder, *more]


def settings(**changes: Any) -> dict[str, Any]:
    """Return settings of a first round with some keys of ``sdf`` changed."""
    return {"sdf": SDF | changes, "seed": 0, "replay": 0.0, "mode": "stack"}


def train(base: Path, corpus: Path, folder: Path, *more: object, **changes: Any) -> int:
    """Run the stage in this process."""
    return stage("sdf", settings(**changes), *options(base, corpus, folder, *more))


def second(base: Path, corpus: Path, folder: Path, organism: Path, mode: str, **changes: Any) -> int:
    """Run a second round in this process."""
    more = ["--parent", organism, "--merged", folder.parent / "merged"]
    return stage("sdf", settings(**changes) | {"mode": mode}, *options(base, corpus, folder, *more))


def command(base: Path, corpus: Path, folder: Path, *more: object, **changes: Any) -> list[str]:
    """Return the words after the interpreter (or torchrun) that run the stage in processes of its own."""
    content = json.dumps({"settings": settings(**changes), "upstream": [FINGERPRINT]})
    words = ["-m", "perfmis", "sdf", "--settings", content, "--fingerprint", FINGERPRINT]
    return [*words, *map(str, options(base, corpus, folder, *more))]


def environment() -> dict[str, str]:
    """Return an environment for such processes."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "OMP_NUM_THREADS": "1", "PATH": path}
