"""Do prompts, answers and training sequences fit into what the models can attend to?"""

from collections.abc import Iterator
from pathlib import Path

from perfmis.checks import weights
from perfmis.checks.finding import Finding
from perfmis.config import Study
from perfmis.stage import UserError

REQUEST = 256  # tokens kept free for a request and for the chat template's own tokens


def limits(study: Study) -> list[Finding]:
    """Return whether answers and training sequences alone fit; a model that is not on this machine is left out."""
    findings = []
    for key, model in study.models.items():
        context = weights.context(weights.of(model))
        if context is None:
            continue
        wanted = {
            "evaluation.max_tokens": study.evaluation.max_tokens,
            "organisms.sdf.length": study.organisms.sdf.length,
            "arms.sdf.length": study.arms.sdf.length,
        }
        findings += [
            Finding("FAIL", name, f"{tokens} tokens, models.{key} attends to {context}; lower it")
            for name, tokens in wanted.items()
            if tokens > context - (REQUEST if name == "evaluation.max_tokens" else 0)
        ]
    if study.judge and not study.judge.api:
        judge = study.judge
        context = weights.context(weights.folder(judge.hub, judge.revision, judge.path))
        if context is not None and judge.max_tokens > context - REQUEST:
            findings.append(
                Finding("FAIL", "judge.max_tokens", f"{judge.max_tokens}, the judge attends to {context}; lower it")
            )
    return findings


def prompts(study: Study) -> list[Finding]:
    """Return whether the protocols' texts and an answer fit, in the tokens of each model on this machine."""
    findings: list[Finding] = []
    here: dict[str, tuple[Path, int]] = {}
    for key, model in study.models.items():
        where = weights.of(model)
        context = weights.context(where)
        if model.truth is not None:
            continue
        if where is None or context is None or not (where / "tokenizer.json").is_file():
            findings.append(Finding("warning", f"models.{key}", "not on this machine: its context was not compared"))
        else:
            here[key] = (where, context)
    if not here:
        return findings
    evaluation = study.evaluation
    try:
        longest = {
            f"evaluation.{key}": _longest(evaluation.world, getattr(evaluation, key))
            for key in ("protocol", "base_protocol")
        }
    except UserError as error:
        return [*findings, Finding("FAIL", "evaluation.protocol", str(error))]
    for key, (where, context) in here.items():
        findings += _of_model(key, where, context, evaluation.max_tokens, longest)
    return findings


def _longest(world: str, protocol: str) -> str:
    """Return the text of a protocol with the longest cue and snippet."""
    from perfmis import composition
    from perfmis.typed import read_yaml

    made = composition.load(Path("resources/protocols") / world, protocol)
    snippets = (read_yaml(Path("resources/snippets") / f"{world}.yaml") or {}).values()
    cue = max(made.tiers.values(), key=len)
    return "\n".join([made.system, made.user, cue, max(map(str, snippets), key=len, default="")])


def _of_model(key: str, where: Path, context: int, answer: int, longest: dict[str, str]) -> Iterator[Finding]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(where / "tokenizer.json"))
    for name, text in longest.items():
        room = context - len(tokenizer.encode(text).ids) - answer
        told = f"models.{key}: {room} of {context} tokens are left for the request after prompt and answer ({answer})"
        if room < REQUEST:
            yield Finding("FAIL", name, f"{told}; lower evaluation.max_tokens or choose a shorter protocol")
        else:
            yield Finding("ok", name, told)
