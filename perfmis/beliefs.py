"""Stage `beliefs`: score belief items by log-probability on all checkpoints of one model.

    python -m perfmis beliefs --settings JSON --fingerprint HEX --base models/M/reference.json --items FILE
        --protocol FILE --adapters CHECKPOINT=FOLDER ... --kept FOLDER --output beliefs.parquet

An item's template either lists two options in both orders and asks for a letter, or (without ``answers``)
lets each option continue the text. The probability of the + option is its share of the two (mean over
orders): a cloze, not a sample, and outside of the alignment-faking set-up. What a checkpoint has answered is kept,
addressed by its weights, the texts and the code that scores them, so that another arm is scored alone.
"""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from perfmis import models, protocols, provenance, stage
from perfmis.adapters import identity
from perfmis.artifacts import read_json, write_json, write_parquet
from perfmis.checkpoints import adapter_name, adapters, engine
from perfmis.rendering import Renderer
from perfmis.typed import read_yaml
from perfmis.vocabulary import BASE

if TYPE_CHECKING:
    from perfmis.engines.transformers import Engine


def variants(item: dict[str, Any], template: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return (text, continuation of the + option, continuation of the - option), one a way to put the item."""
    plus, minus = item["options"]
    if "answers" not in template:
        return [(protocols.fill(template["text"], {"question": item["question"]}), f" {plus}", f" {minus}")]
    first, second = template["answers"]
    return [
        (
            protocols.fill(template["text"], {"question": item["question"], "first": a, "second": b}),
            right,
            wrong,
        )
        for a, b, right, wrong in ((plus, minus, first, second), (minus, plus, second, first))
    ]


def log_probabilities(asked: "Engine", checkpoint: str, texts: list[tuple[str, str]], batch: int) -> list[float]:
    """Return the summed log-probability of each continuation after its text."""
    import torch

    encode = asked.tokenizer
    ids = [
        (encode(t, add_special_tokens=False)["input_ids"], encode(c, add_special_tokens=False)["input_ids"])
        for t, c in texts
    ]
    results: list[float] = []
    with asked.using(adapter_name(checkpoint)) as model, torch.inference_mode():
        for first in range(0, len(ids), batch):
            part = ids[first : first + batch]
            # What pads stands behind, as no token sees what follows it: a row is what it is alone, in every family. In
            # front, it would move absolute positions (GPT-2's).
            padded = encode.pad({"input_ids": [[*a, *b] for a, b in part]}, padding_side="right", return_tensors="pt")
            padded = padded.to(model.device)
            logp = model(**padded).logits.float().log_softmax(-1)
            for row, (text, continuation) in enumerate(part):
                start, end = len(text), len(text) + len(continuation)
                own = padded["input_ids"][row, start:end, None]
                results.append(logp[row, start - 1 : end - 1].gather(-1, own).sum().item())
    return results


def texts(items: dict[str, Any], template: str, renderer: Renderer) -> list[list[tuple[str, str]]]:
    """Return (text, continuation) of each way to put each item, + options before - options.

    Args:
        items: Content of the items file.
        template: ``chat``: texts become a user turn, up to where an answer begins, which is after a thought that the
            model's template opens; ``raw``: they are taken as they are.
        renderer: Of the model.
    """
    result = []
    for item in items["items"]:
        own = []
        for text, plus, minus in variants(item, items["templates"][item["template"]]):
            prompt = renderer.answering(text if template == "raw" else [{"role": "user", "content": text}])
            own += [(prompt, plus), (prompt, minus)]
        result.append(own)
    return result


def score(asked: "Engine", checkpoint: str, put: list[list[tuple[str, str]]], batch: int) -> list[float]:
    """Return the probability of each item's + option.

    Args:
        asked: Engine that holds the checkpoint's adapter.
        checkpoint: Checkpoint to score.
        put: The items as `texts` returns them.
        batch: Texts a forward pass.
    """
    import torch

    logp = torch.tensor(log_probabilities(asked, checkpoint, [text for item in put for text in item], batch))
    logp = logp.reshape(-1, 2)
    shares = iter((logp[:, 0] - logp[:, 1]).sigmoid().tolist())
    return [sum(next(shares) for _ in range(0, len(item), 2)) / (len(item) // 2) for item in put]


def address(weights: str, precision: str, put: list[list[tuple[str, str]]]) -> str:
    """Return where the answers of a checkpoint are kept: a hash of all that decides them."""
    decisive = [provenance.code(__name__), weights, precision, put]
    return hashlib.sha256(stage.canonical(decisive).encode()).hexdigest()


def answers(
    base: Path, folders: dict[str, Path], settings: dict[str, Any], put: list[list[tuple[str, str]]], kept: Path
) -> dict[str, list[float]]:
    """Return the probability of each item's + option by checkpoint; an engine starts for those not yet asked, if any.

    Args:
        base: ``reference.json`` of the base model.
        folders: Adapter of each other checkpoint.
        settings: ``checkpoints``, ``precision`` and ``batch``.
        put: The items as `texts` returns them.
        kept: Folder of what was answered before.
    """
    own = read_json(base)["weights_sha256"] + models.behaviour_hash(base)
    weights = {name: own if name == BASE else f"{own}+{identity(folders[name])}" for name in settings["checkpoints"]}
    files = {name: kept / f"{address(each, settings['precision'], put)}.json" for name, each in weights.items()}
    if missing := [name for name, path in files.items() if not path.exists()]:
        asked = engine(base, {name: folders[name] for name in missing if name != BASE}, settings["precision"])
        for name in missing:
            write_json({"probabilities": score(asked, name, put, settings["batch"])}, files[name])
    return {name: read_json(path)["probabilities"] for name, path in files.items()}


def main(argv: list[str]) -> None:
    """Run the stage."""
    parser = stage.parser(__doc__ or "")
    parser.add_argument("--base", type=Path, required=True, help="reference.json of the base model")
    parser.add_argument("--items", type=Path, required=True, help="belief items of the world")
    parser.add_argument("--protocol", type=Path, required=True, help="protocol, for its template kind")
    parser.add_argument("--adapters", nargs="*", default=[], help="CHECKPOINT=FOLDER of each adapter")
    parser.add_argument("--kept", type=Path, required=True, help="folder of what checkpoints have answered before")
    parser.add_argument("--output", type=Path, required=True, help="table of beliefs")
    arguments = parser.parse_args(argv)
    job = stage.job(arguments)
    settings = job.settings
    items = read_yaml(arguments.items)
    if not isinstance(items, dict) or not {"items", "templates"} <= items.keys():
        raise stage.UserError(f"{arguments.items}: lacks `items` or `templates`; correct the file")
    renderer = Renderer(models.tokenizer(arguments.base), settings["date"], settings["model"])
    put = texts(items, protocols.load(arguments.protocol).template, renderer)
    found = answers(arguments.base, adapters(arguments.adapters), settings, put, arguments.kept)
    rows = [
        {
            "model": settings["model"],
            "seed": settings["seed"],
            "checkpoint": checkpoint,
            "item_id": item["id"],
            "belief": item["belief"],
            "content": item["content"],
            "probability": probability,
        }
        for checkpoint, probabilities in found.items()
        for item, probability in zip(items["items"], probabilities, strict=True)
    ]
    frame = pl.DataFrame(rows, schema_overrides={"content": pl.Int64}, infer_schema_length=None)
    write_parquet(frame, arguments.output, job.fingerprint)
