"""Takes the place of perfmis/__main__.py: makes what a stage would, at once and without content.

Its files carry the fingerprint as those of the stages do. `fail` names stages that fail instead, or STAGE:PATH where
only those do whose output has that in its path, `kept` the models that pass the screen; both are files of the folder
it runs in.
"""

import json
import sys
from pathlib import Path

BLANK = b"0123456789abcdef"  # the fingerprint in blank.parquet
ADAPTER = ("adapter_model.safetensors", "adapter_config.json", "log.parquet", "README.md", "lineage.json")
FOLDERS = {
    "sdf": ADAPTER,
    "tinyworld.trunk": ("model.safetensors", "log.parquet", "trunk.json"),
    "tinyworld.base": ("model.safetensors", "gate.parquet", "reference.json"),
}
BESIDE = {".pdf": (".svg", ".png"), ".safetensors": (".json",)}
COMMENTS = {".svg": "<!-- {} -->\n", ".html": "<!-- {} -->\n", ".rst": "\n.. {}\n"}
FILES = ("output", "card", "report", "table", "kept", "excerpt", "curves", "calibration")


def options(words: list[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for word in words:
        if word.startswith("--"):
            found[word[2:]] = []
        else:
            found[list(found)[-1]].append(word)
    return found


def outputs(stage: str, given: dict[str, list[str]], settings: dict[str, object]) -> list[Path]:
    folder = Path(given.get("output", ["."])[0])
    if stage in FOLDERS:
        return [folder / name for name in FOLDERS[stage]]
    if stage == "generation":
        return [folder / str(name) / f"{settings['protocol']}.parquet" for name in settings["checkpoints"]]  # type: ignore[attr-defined]
    if stage in ("outcomes", "judging"):
        return list(map(Path, given["outcomes" if stage == "outcomes" else "judgements"]))
    names = ("output",) if stage.startswith("figures.") else FILES  # the names of tables are a figure's inputs
    paths = [Path(path) for name in names for path in given.get(name, [])]
    beside = {".parquet": (".csv",) if stage == "validation" or stage.startswith("tables.") else ()} | BESIDE
    return paths + [path.with_suffix(suffix) for path in paths for suffix in beside.get(path.suffix, ())]


def main(stage: str, words: list[str]) -> int:
    given = options(words)
    output = next(iter([*given.get("output", []), *given.get("outcomes", [])]), "")
    failing = [word.partition(":") for word in Path("fail").read_text().split()] if Path("fail").exists() else []
    if any(name == stage and path in output for name, _, path in failing):
        print("error: told to fail", file=sys.stderr)
        return 1
    settings = json.loads(given["settings"][0])["settings"]
    fingerprint = given["fingerprint"][0]
    for path in outputs(stage, given, settings):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".parquet":
            path.write_bytes(Path("blank.parquet").read_bytes().replace(BLANK, fingerprint.encode()))
        elif path.suffix in COMMENTS:
            path.write_text(COMMENTS[path.suffix].format(f"fingerprint: {fingerprint}"))
        else:
            content = {"fingerprint": fingerprint, "kept": Path("kept").read_text().split()}
            path.write_text(json.dumps(content) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
