"""Where a model's files lie on this machine, without the hub's library and without a download."""

import json
import os
from pathlib import Path
from typing import Any

from perfmis.config import Model, Study, Writer

# Names that configurations have for the number of positions: most models', GPT-2's and GPT-J's, MPT's and DBRX's.
CONTEXT = ("max_position_embeddings", "n_positions", "max_seq_len")


def cache() -> Path:
    """Return the folder of the hub cache, by the same environment variables as the hub's library."""
    home = os.environ.get("HF_HOME", os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "huggingface"))
    return Path(os.environ.get("HF_HUB_CACHE", os.path.join(home, "hub"))).expanduser()


def folder(hub: str | None, revision: str | None, path: str | None) -> Path | None:
    """Return the folder of a model; None where it is not on this machine."""
    if path is not None:
        return Path(path)
    if hub is None:
        return None
    found = cache() / f"models--{hub.replace('/', '--')}" / "snapshots" / str(revision)
    return found if found.is_dir() else None


def of(model: Model | Writer) -> Path | None:
    """Return the folder of a section's model."""
    return folder(model.hub, model.revision, getattr(model, "path", None))


def context(where: Path | None) -> int | None:
    """Return how many tokens a model can attend to, by its ``config.json``; None where that cannot be told."""
    try:
        content: dict[str, Any] = json.loads((where / "config.json").read_text()) if where else {}
    except (OSError, ValueError):
        return None
    # Models that read pictures too keep the text part in a section of its own.
    text = content.get("text_config", content)
    return next((text[name] for name in CONTEXT if isinstance(text.get(name), int)), None)


def hub_models(study: Study) -> dict[str, tuple[str, str]]:
    """Return hub id and commit of everything that a study fetches, by the key that names it."""
    found = {f"models.{name}": (model.hub, model.revision) for name, model in study.models.items() if model.hub}
    if any(corpus.source == "written" for corpus in study.corpora.values()):
        found["writer"] = (study.writer.hub, study.writer.revision)
    if study.judge and study.judge.hub:
        found["judge"] = (study.judge.hub, study.judge.revision)
    return {key: (hub, str(revision)) for key, (hub, revision) in found.items()}
