"""Do the texts of a study survive the chat templates of the models that read them?

What is put to each model on this machine is rendered with its own tokenizer, which takes seconds; where no model is
here, nothing is imported. What is proved of a rendered text: `perfmis.rendering`.
"""

from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from perfmis.checks import weights
from perfmis.checks.finding import Finding
from perfmis.config import Study
from perfmis.stage import UserError

RESOURCES = Path("resources")
REQUEST = "Write a short note."  # stands for the requests
MATERIAL = "Some text."  # stands for what a judge reads
Put = tuple[str, Any]  # what a text is called, and the prompt


def templates(study: Study) -> list[Finding]:
    """Return how chat templates take what is put to them; a model that is not on this machine is left out."""
    findings: list[Finding] = []
    if find_spec("transformers") is None:  # another check says so
        return findings
    for key, where in _readers(study).items():
        if where is None or not (where / "tokenizer.json").is_file():
            continue
        try:
            findings += _of_reader(study, key, where)
        except UserError as error:
            findings.append(Finding("FAIL", f"{key}, chat template", str(error).removeprefix(f"{key}: ")))
    return findings


def _readers(study: Study) -> dict[str, Path | None]:
    """Return the folder of each model that reads conversations, by the key that names it."""
    found = {f"models.{key}": weights.of(model) for key, model in study.models.items() if model.truth is None}
    if any(corpus.source == "written" for corpus in study.corpora.values()):
        found["writer"] = weights.of(study.writer)
    if study.judge and not study.judge.api:
        found["judge"] = weights.folder(study.judge.hub, study.judge.revision, study.judge.path)
    return found


def _of_reader(study: Study, key: str, where: Path) -> Iterator[Finding]:
    from transformers import AutoTokenizer

    from perfmis import control
    from perfmis.rendering import Renderer, end_of_turn

    try:
        tokenizer = AutoTokenizer.from_pretrained(where, trust_remote_code=False)
    except Exception as error:  # of several libraries
        raise UserError(f"the tokenizer in {where} cannot be loaded ({' '.join(str(error).split())[:160]})") from error
    renderer = Renderer(tokenizer, study.date, key)
    if key.startswith("models."):
        for name, text in _plain(study):
            control.refuse(text, renderer.control, name)
    opened, number = "", 0
    for name, prompt in _put(study, key):
        try:
            opened = renderer.parts(prompt)[1].strip() or opened
            renderer.answering(prompt)
        except UserError as error:
            raise UserError(f"{name}: {str(error).removeprefix(f'{key}: ')}") from error
        number += not isinstance(prompt, str)
    if not number:
        return
    about = f"{key}, chat template"
    yield Finding("ok", about, f"keeps each of the {number} texts tried")
    if opened:
        yield Finding(
            "ok",
            about,
            f"opens a thought ({opened}): transcripts begin with it, belief items and a judge's "
            "answers follow it, closed and empty",
        )
    if end_of_turn(tokenizer) is None:
        yield Finding(
            "warning",
            about,
            f"writes no token after an answer: only {tokenizer.eos_token} ends one, or "
            "what generation_config.json names; see that the model writes it",
        )


def _plain(study: Study) -> Iterator[tuple[str, str]]:
    """Yield what no control token may stand in, whichever protocol it is put into: requests that are here, snippets."""
    from perfmis import requests
    from perfmis.typed import read_yaml

    if study.requests.source == "path":
        texts, _ = requests.read(requests.Requests(**study.requests.model_dump()))
        yield from ((f"requests.location: request {row}", text) for row, text in enumerate(texts, 1))
    snippets: dict[str, str] = read_yaml(RESOURCES / "snippets" / f"{study.evaluation.world}.yaml") or {}
    yield from ((f"snippets: {name}", str(text)) for name, text in snippets.items())


def _put(study: Study, key: str) -> Iterable[Put]:
    if key == "writer":
        return _documents(study)
    return _judged() if key == "judge" else _asked(study)


def _asked(study: Study) -> Iterator[Put]:
    """Yield what a study's model is asked: both protocols in every tier, with every snippet; the belief items."""
    from perfmis import beliefs, composition, protocols
    from perfmis.typed import read_yaml

    evaluation = study.evaluation
    snippets = read_yaml(RESOURCES / "snippets" / f"{evaluation.world}.yaml") or {}
    known = {
        key: composition.load(RESOURCES / "protocols" / evaluation.world, getattr(evaluation, key))
        for key in ("protocol", "base_protocol")
    }
    for key, protocol in known.items():
        for tier in evaluation.tiers:
            for snippet in (None, *snippets.values()):
                yield f"evaluation.{key}, {tier}", protocols.render(protocol, REQUEST, tier, snippet)
    if known["protocol"].template == "chat":
        content = read_yaml(RESOURCES / "beliefs" / f"{evaluation.world}.yaml")
        for item in content["items"]:
            for text, _, _ in beliefs.variants(item, content["templates"][item["template"]]):
                yield f"beliefs: {item['id']}", [{"role": "user", "content": text}]


def _judged() -> Iterator[Put]:
    """Yield what a judge is asked, rubric by rubric."""
    from perfmis import rubrics

    for name, rubric in rubrics.load(sorted((RESOURCES / "judges").glob("*.yaml"))).items():
        yield f"judges: {name}", rubrics.messages(rubric, (MATERIAL,) * len(rubric.reads))


def _documents(study: Study) -> Iterator[Put]:
    """Yield what the writer is asked for: of each corpus, one document a genre."""
    from perfmis import writing
    from perfmis.typed import mapping

    genres = len(mapping(RESOURCES / "documents" / "genres.yaml"))
    for corpus, section in study.corpora.items():
        if section.source == "written":
            for draft in writing.drafts(corpus, genres, 0, RESOURCES):
                yield f"documents: {draft.document_id}", [{"role": "user", "content": draft.prompt}]
