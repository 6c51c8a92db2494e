"""Command `default_config`: write ``config/config.yaml`` and ``config/schema.json`` from the typed configuration.

    python -m perfmis default_config [--check]

``--check`` writes nothing and fails when the files differ from what would be written.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from perfmis.config import Study
from perfmis.stage import UserError

FOLDER = Path("config")
HEADER = """\
# The preprint's study (arXiv 2606.08243), and the default of every key.
# Generated from perfmis/config.py by `python -m perfmis default_config`; change a copy, or that module.
"""


def _scalar(value: Any) -> str:
    return (
        yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("\n...\n").strip().removesuffix("\n...")
    )


def _lines(section: BaseModel, indent: int) -> list[str]:
    """Return the YAML lines of a section, each key under its description."""
    result = []
    pad = "  " * indent
    for key, field in type(section).model_fields.items():
        value = getattr(section, key)
        nested = isinstance(value, BaseModel)
        text = field.description or (type(value).__doc__ or "").splitlines()[0] if nested else field.description
        if indent == 0:
            result.append("")
        if text:
            result.append(f"{pad}# {text}")
        if nested:
            result += [f"{pad}{key}:", *_lines(value, indent + 1)]
        elif isinstance(value, dict) and value:
            result.append(f"{pad}{key}:")
            for name, entry in value.items():
                result.append(f"{pad}  {_scalar(name)}: {_scalar(entry.model_dump(exclude_none=True))}")
        else:
            result.append(f"{pad}{key}: {_scalar(value)}")
    return result


def render() -> dict[Path, str]:
    """Return the text of each generated file."""
    return {
        FOLDER / "config.yaml": HEADER + "\n".join(_lines(Study(), 0)) + "\n",
        FOLDER / "schema.json": json.dumps(Study.model_json_schema(), indent=2) + "\n",
    }


def main(argv: list[str]) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description="write config/config.yaml and config/schema.json")
    parser.add_argument("--check", action="store_true", help="fail when they are out of date")
    check = parser.parse_args(argv).check
    for path, text in render().items():
        if check and (not path.is_file() or path.read_text() != text):
            raise UserError(f"{path} differs from perfmis/config.py; run python -m perfmis default_config")
        if not check:
            path.write_text(text)
