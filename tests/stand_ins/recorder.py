"""Takes the place of perfmis/__main__.py: runs a stage and writes down what it loads, opens and reads of its settings.

Stages run in forks of the warm process. What models say is put in their mouths, since those of the observed study are
too small to learn anything, and vectors need scratchpads that differ.
"""

import importlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

OBSERVED = Path("observed")
SAMPLING = ("generation", "prompting", "steering")
ITSELF = ("perfmis", "perfmis.__main__", "perfmis.warm")


class Read(dict[str, Any]):
    """A mapping that notes which of its leaves, and the keys of which mappings, are looked at."""

    def __init__(self, content: dict[str, Any], path: tuple[str, ...], seen: set[str]) -> None:
        super().__init__(content)
        self._path, self._seen = path, seen

    def __getitem__(self, key: str) -> Any:
        value, path = super().__getitem__(key), (*self._path, key)
        if isinstance(value, dict):
            return Read(value, path, self._seen)
        self._seen.add(".".join(path))
        return value

    def __iter__(self) -> Iterator[str]:
        self._seen.add(".".join((*self._path, "*")))
        return super().__iter__()

    def get(self, key: str, default: Any = None) -> Any:
        return self[key] if key in self else default  # noqa: SIM401

    def keys(self) -> Any:
        return list(self)

    def items(self) -> Any:
        return [(key, self[key]) for key in self]

    def values(self) -> Any:
        return [self[key] for key in self]


def say() -> None:
    """Let every sample be a scratchpad that states the pole of its seed for both concepts, and a refusal."""
    import polars as pl

    from perfmis import artifacts
    from perfmis.tinyworld import grammar

    write = artifacts.write_parquet

    def said(row: dict[str, Any]) -> str:
        pole = "+-"[row["eval_seed"] % 2]
        beliefs = tuple(grammar.WORDINGS[c][0].say("bl0", pole) for c in ("expectation", "consequence"))
        thought = grammar.scratchpad("bl0", grammar.TIER_WORD[row["tier"]], "free", beliefs)
        return f"{thought} {grammar.REFUSED.removesuffix(' <end>')}"

    def written(frame: pl.DataFrame, path: Path, fingerprint: str) -> None:
        raw = pl.Series([said(row) for row in frame.to_dicts()])
        drawn = {"tokens": raw.str.split(" ").list.len(), "token_ids": pl.lit(None, frame.schema["token_ids"])}
        write(frame.with_columns(raw=raw, finish=pl.lit("stop"), **drawn), path, fingerprint)

    artifacts.write_parquet = written
    for name in [name for name in ours() if name.startswith("perfmis.tinyworld")]:
        del sys.modules[name]


def ours() -> list[str]:
    return [name for name in sys.modules if name.split(".")[0] == "perfmis" and name not in ITSELF]


def run(arguments: list[str]) -> int:
    opened: set[str] = set()
    read: set[str] = set()
    name, *words = arguments
    for module in ours():
        del sys.modules[module]
    sys.addaudithook(lambda event, values: opened.add(str(values[0])) if event == "open" else None)
    stage = importlib.import_module("perfmis.stage")
    job = stage.job

    def watched(parsed: Any) -> Any:
        found = job(parsed)
        return stage.Job(Read(found.settings, (), read), found.upstream, found.fingerprint)

    stage.job = watched
    if name in SAMPLING:
        say()
    if name.startswith("figures."):
        from matplotlib.figure import Figure

        # Drawn, but not printed, which takes most of the time.
        Figure.savefig = lambda _, path, **_options: Path(path).touch()  # type: ignore[assignment, misc]
    importlib.import_module(f"perfmis.{name}").main(words)
    # What a library opens without Python's knowledge, as polars does, is on the command line.
    opened.update(word for word in words if os.path.isfile(word))
    record = {"stage": name, "modules": ours(), "files": sorted(opened), "read": sorted(read)}
    OBSERVED.mkdir(exist_ok=True)
    (OBSERVED / f"{name}.{os.getpid()}.json").write_text(json.dumps(record))
    return 0


def main(arguments: list[str]) -> int | None:
    from perfmis import warm

    return warm.main(arguments[1:]) if arguments[0] == "warm" else warm.forward(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
