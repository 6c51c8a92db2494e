"""Typed content of YAML files: read, compared with a model, and wrong in one line.

Light enough for the Snakefile, which reads the configuration and looks for protocols.
"""

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from perfmis.encoding import decoded
from perfmis.stage import Prose, UserError

Content = TypeVar("Content", bound=BaseModel)


class Section(BaseModel):
    """A group of settings; unknown keys are errors, and so are numbers that are none or without end."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class _Loader(yaml.SafeLoader):
    """YAML in which no key may stand twice; plain YAML takes the last one and drops the rest."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.composer.ComposerError(None, None, f"the key {key.value} stands twice", key.start_mark)
                seen.add(key.value)
        return node


def read_yaml(path: Path | str) -> Any:
    """Return the content of a YAML file.

    Raises:
        UserError: The file is missing, not YAML, or has a key twice.
    """
    try:
        return _Loader(decoded(Path(path).read_bytes(), str(path))).get_single_data()
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read ({' '.join(str(error).split())}); correct the file") from error


def mapping(path: Path | str) -> dict[str, Any]:
    """Return the content of a YAML file that holds keys; an empty file holds none.

    Raises:
        UserError: The file is missing, not YAML or something else.
    """
    content = read_yaml(path)
    if not isinstance(content, dict | None):
        raise UserError(f"{path}: holds no keys; write `key: value` lines")
    return content or {}


def validated(model: type[Content], content: Any, name: str) -> Content:
    """Return parsed content as a model.

    Raises:
        UserError: A field is missing, unknown or wrong; ``name`` says where.
    """
    try:
        return model.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or model.__name__.lower()
        reason: Prose = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            reason = "unknown field; correct its spelling or remove it"
        raise UserError(f"{name}: {where}: {reason}") from error
