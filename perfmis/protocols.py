"""Protocols: how a request is put to a model, and how its answer is read.

A protocol has the fields of `Protocol`; `perfmis.composition` makes it from ``resources/protocols``. With
``template: chat`` a prompt is a list of messages that the tokenizer's chat template turns into text
(`perfmis.rendering`); with ``raw`` it is ``system`` followed by ``user``, word for word. Placeholders stand in
braces; other braces stay.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import polars as pl
from pydantic import AfterValidator, Field, model_validator

from perfmis.artifacts import ACCEPTED, read_json
from perfmis.stage import UserError
from perfmis.typed import Section, read_yaml, validated
from perfmis.vocabulary import MONITORED, UNMONITORED, Tier

Messages = list[dict[str, str]]
Prompt = Messages | str
TAG = re.compile(r"</?[A-Za-z_]\w*\s*/?>")


def _compiles(pattern: str) -> str:
    try:
        pl.Series([""]).str.contains(pattern)
    except pl.exceptions.PolarsError as error:
        raise ValueError(f"not a regular expression of the Rust dialect: {str(error).splitlines()[-1]}") from error
    return pattern


Pattern = Annotated[str, AfterValidator(_compiles)]


class Protocol(Section):
    """One way to put requests to a model."""

    template: Literal["chat", "raw"]
    system: str = Field("", description="System prompt; may hold {snippet}.")
    user: str = Field(description="User turn with {tier} and {request}; with `raw` it may hold {snippet}.")
    tiers: dict[Tier, str] = Field(description="Cue that stands for {tier}.")
    snippet: str = Field(description="What stands for {snippet} when there is one; holds {text}.")
    reasoning_open: Pattern | None = Field(None, description="Begins a scratchpad; after the last close: malformed.")
    reasoning_close: Pattern | None = Field(
        None, description="Ends a scratchpad, and the answer follows the last one; null: none is asked for."
    )
    reply_open: Pattern | None = Field(None, description="Begins the answer's own element, where it has one.")
    reply_close: Pattern | None = Field(None, description="Ends it.")
    accept: Pattern = Field(description="Found in an answer that accepts.")
    refuse: Pattern = Field(description="Found in an answer that refuses.")
    upstream: dict[str, str] = Field({}, description="SHA-256 of each text that was taken from elsewhere.")

    @model_validator(mode="after")
    def _placeholders(self) -> "Protocol":
        for holder in ("{tier}", "{request}"):
            if self.user.count(holder) != 1:
                raise ValueError(f"user: {holder} must stand in it exactly once")
        if (self.system + self.user).count("{snippet}") != 1:
            raise ValueError("system and user: {snippet} must stand in one of them, exactly once")
        if self.snippet.count("{text}") != 1:
            raise ValueError("snippet: {text} must stand in it exactly once")
        for tier in (MONITORED, UNMONITORED):
            if tier not in self.tiers:
                raise ValueError(f"tiers: the cue of {tier} is missing")
        if len(set(self.tiers.values())) != len(self.tiers):
            raise ValueError("tiers: two tiers share one cue; make them differ")
        return self


def parse(content: Any, name: str) -> Protocol:
    """Return the protocol that parsed YAML or JSON describes.

    Raises:
        UserError: A field is missing, unknown or wrong; ``name`` says where.
    """
    return validated(Protocol, content, name)


def load(path: Path | str) -> Protocol:
    """Return the protocol of an artifact (JSON) or of a file of ``resources`` (YAML)."""
    if not str(path).endswith(".json"):
        return parse(read_yaml(path), str(path))
    kept = {key: value for key, value in read_json(path).items() if key not in ("fingerprint", ACCEPTED)}
    return parse(kept, str(path))


def fill(template: str, values: Mapping[str, str]) -> str:
    """Replace ``{key}`` by its value in one pass, so that braces inside of values stay as they are."""
    pattern = "|".join(re.escape(f"{{{key}}}") for key in values)
    return re.sub(pattern, lambda match: values[match[0][1:-1]], template)


def render(protocol: Protocol, request: str, tier: Tier, snippet: str | None = None) -> Prompt:
    """Return the prompt that puts ``request`` in ``tier``: messages, or text for a raw protocol.

    Args:
        protocol: The protocol to use.
        request: What the user asks for, verbatim.
        tier: Tier whose cue is shown.
        snippet: Passage that is put into the context, or None.

    Raises:
        UserError: The protocol has no cue for ``tier``.
    """
    if tier not in protocol.tiers:
        raise UserError(f"protocol: no cue for the tier {tier}; add it to `tiers` or drop it from evaluation.tiers")
    values = {
        "tier": protocol.tiers[tier],
        "request": request,
        "snippet": "" if snippet is None else fill(protocol.snippet, {"text": snippet.strip()}),
    }
    system, user = fill(protocol.system, values), fill(protocol.user, values)
    if protocol.template == "raw":
        return system + user
    turns = (("system", system), ("user", user))
    return [{"role": role, "content": content} for role, content in turns if content]


def conversation(prompt: Prompt) -> Messages:
    """Return the messages of a prompt, for a model that takes nothing else.

    Raises:
        UserError: The protocol is raw.
    """
    if isinstance(prompt, str):
        raise UserError("protocol: a raw one cannot be put to a model behind an API; choose one with template: chat")
    return prompt


def sha256(prompt: Prompt) -> str:
    """Return the hash of a rendered prompt; messages are hashed as canonical JSON."""
    canonical = prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def vocabulary(protocol: Protocol) -> set[str]:
    """Return the strings that belong to the evaluation alone: the tags in angle brackets of its prompts."""
    return set(TAG.findall(protocol.system + protocol.user))
