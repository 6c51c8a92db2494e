"""A configuration holds no credential: every job's settings, and so its log, would repeat it."""

import re
from collections.abc import Iterator
from typing import Any

from perfmis import privacy
from perfmis.engines.api.server import Server
from perfmis.stage import UserError

USER = re.compile(r"://[^/?#\s]*@")
IN_ENVIRONMENT = "keep it in an environment variable, and name that as a server's `key`"


def in_environment(key: str, server: Server) -> None:
    """Refuse a server whose credentials would be written down; none is repeated here.

    Raises:
        ValueError: It is one.
    """
    if not (server.variable.isidentifier() and privacy.CREDENTIAL.search(server.variable)):
        raise ValueError(
            f"{key}.key: name an environment variable that ends in KEY, TOKEN, SECRET or PASSWORD; what such variables "
            "hold is kept out of logs"
        )
    if server.base_url and not server.base_url.startswith(("https://", "http://")):
        raise ValueError(f"{key}.base_url: no address; begin it with https:// or http://")
    for option, value in _strings(server.options, f"{key}.options"):
        if privacy.CREDENTIAL.search(option) or "authorization" in option.lower():
            raise ValueError(f"{option}: looks like a credential ({len(value)} characters); {IN_ENVIRONMENT}")


def refuse(content: Any, name: str) -> None:
    """Refuse a configuration with a credential, which every job's settings would repeat; without repeating it.

    Raises:
        UserError: There is one.
    """
    hidden = privacy.credentials()
    for key, text in _strings(content):
        if any(value in text for value in hidden):
            said = f"{privacy.redacted(key)}: holds a credential that stands in the environment"
        elif USER.search(text):
            said = f"{key}: an address with a user or password"
        else:
            continue
        raise UserError(f"{name}: {said}; {IN_ENVIRONMENT}")


def _strings(content: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield the texts of parsed YAML, names included, each with its key."""
    if isinstance(content, str):
        yield key, content
    elif isinstance(content, dict):
        for name, value in content.items():
            yield from _strings(str(name), key or "a key")
            yield from _strings(value, f"{key}.{name}".removeprefix("."))
    elif isinstance(content, list):
        for value in content:
            yield from _strings(value, key)
