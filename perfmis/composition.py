"""Stage `composition`: put a protocol together from its files, and fetch the texts that it takes from elsewhere.

    python -m perfmis composition --settings JSON --fingerprint HEX --files FILE ... --output PROTOCOL.json

A protocol's name is a file of ``resources/protocols/WORLD`` and options, which are files of its folder
``options``: ``long+wrapped+suffix``. A file may name another that it ``extends``. Later files override earlier
ones key by key. ``system`` and ``user`` are texts, or lists of names in ``parts`` that are joined by blank lines
(empty parts are left out).

Any text may be an upstream file instead, which is fetched here and never kept in the repository::

    system: {url: https://raw.githubusercontent.com/OWNER/NAME/COMMIT/PATH, sha256: HEX}
    user: {path: FILE, sha256: HEX, jinja: {user_input: "{request}"}}

Where such texts leave no place for ``{snippet}``, it ends the system prompt. With ``jinja`` the file is a Jinja
template and the mapping gives its variables; ``includes`` maps names that it includes to further such files.
"""

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from perfmis import fetching, protocols, stage
from perfmis.artifacts import write_json
from perfmis.encoding import decoded
from perfmis.protocol_files import files
from perfmis.stage import UserError
from perfmis.typed import Section, read_yaml, validated

COMMIT = re.compile(r"[0-9a-f]{40}")


class Upstream(Section):
    """A text that stands elsewhere."""

    url: str | None = Field(None, description="Address that names a commit.")
    path: str | None = Field(None, description="File, instead of an address.")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="Hash of its bytes.")
    jinja: dict[str, str] | None = Field(None, description="Variables; null takes the text as it is.")
    includes: dict[str, "Upstream"] = Field({}, description="Files that a template includes, by the name it uses.")

    @model_validator(mode="after")
    def _one_source(self) -> "Upstream":
        if (self.url is None) == (self.path is None):
            raise ValueError("give url or path")
        if self.url is not None and not COMMIT.search(self.url):
            raise ValueError("url: names no commit (40 digits), so its text may change; use a permanent link")
        return self

    def text(self) -> str:
        """Return the text, fetched, compared with its hash and rendered.

        Raises:
            UserError: It cannot be had, or is another text.
        """
        where = self.url or str(self.path)
        if self.url:
            content = fetching.fetch(self.url, "protocol:")
        else:
            try:
                content = Path(where).read_bytes()
            except OSError as error:
                raise UserError(f"protocol: {where}: {error.strerror}; correct `path`") from error
        found = hashlib.sha256(content).hexdigest()
        if found != self.sha256:
            raise UserError(f"protocol: {where}: its sha256 is {found}, not the one stated; check the file, then it")
        text = decoded(content, f"protocol: {where}")
        return text if self.jinja is None else self._rendered(text, where)

    def _rendered(self, text: str, where: str) -> str:
        from jinja2 import DictLoader, StrictUndefined, TemplateError
        from jinja2.sandbox import SandboxedEnvironment

        included = {name: part.model_copy(update={"jinja": None}).text() for name, part in self.includes.items()}
        environment = SandboxedEnvironment(
            loader=DictLoader(included), undefined=StrictUndefined, keep_trailing_newline=True
        )
        try:
            return environment.from_string(text).render(self.jinja or {})
        except TemplateError as error:
            raise UserError(f"protocol: {where}: {error}; add it to `jinja` or `includes`") from error


def merged(old: Any, new: Any) -> Any:
    """Return a mapping overridden by another, key by key; what is no mapping is replaced."""
    if not (isinstance(old, dict) and isinstance(new, dict)) or {"url", "path"} & (old.keys() | new.keys()):
        return new
    return {**old, **{key: merged(old[key], value) if key in old else value for key, value in new.items()}}


def _text(value: Any, parts: dict[str, Any], where: str, hashes: dict[str, str]) -> str:
    if isinstance(value, list):
        unknown = [name for name in value if name not in parts]
        if unknown:
            raise UserError(f"{where}: {', '.join(unknown)} not in `parts`; add the text or correct the name")
        texts = (_text(parts[name], parts, f"parts.{name}", hashes) for name in value)
        return "\n\n".join(text for text in texts if text)
    if isinstance(value, dict):
        upstream = validated(Upstream, value, f"protocol: {where}")
        hashes[where] = upstream.sha256
        return upstream.text()
    return str(value)


def compose(contents: Iterable[Any], name: str) -> protocols.Protocol:
    """Return the protocol that the contents of its files make together.

    Raises:
        UserError: A text cannot be had, or what comes out is no protocol.
    """
    content: dict[str, Any] = {}
    for part in contents:
        if not isinstance(part, dict):
            raise UserError(f"{name}: holds no fields; write `field: value` lines (see resources/protocols)")
        content = merged(content, part)
    content.pop("extends", None)
    parts, hashes = content.pop("parts", {}), dict[str, str]()
    for key in {"system", "user"} & content.keys():
        content[key] = _text(content[key], parts, key, hashes)
    if hashes and "{snippet}" not in str(content.get("system", "")) + str(content.get("user", "")):
        content["system"] = content.get("system", "") + "{snippet}"
    return protocols.parse({**content, "upstream": hashes}, name)


def load(folder: Path, name: str) -> protocols.Protocol:
    """Return a protocol by its name."""
    return compose(map(read_yaml, files(folder, name)), name)


def main(argv: list[str]) -> None:
    """Run the stage."""
    parser = stage.parser(__doc__ or "")
    parser.add_argument("--files", type=Path, nargs="+", required=True, help="the protocol's file, then its options")
    parser.add_argument("--output", type=Path, required=True, help="PROTOCOL.json")
    arguments = parser.parse_args(argv)
    job = stage.job(arguments)
    protocol = compose(map(read_yaml, arguments.files), " + ".join(map(str, arguments.files)))
    write_json({**protocol.model_dump(), "fingerprint": job.fingerprint}, arguments.output)
