"""Stage `tinyworld.base`: make the base model of one planted truth from the trunk, and test that it follows it.

    python -m perfmis tinyworld.base --settings JSON --fingerprint HEX --trunk FOLDER --output FOLDER

The trunk knows every truth by a token of its own. A base model is the trunk with the embedding of its truth's
token put in the place of ``<bos>`` (and all truth tokens then set to the mean embedding), so base models
differ in nothing else. Settings: ``model``, ``truth`` and ``gate``. The gate is teacher-forced: a scratchpad
is given, and the probability of acceptance must follow the planted rule.
"""

import itertools
import random
from pathlib import Path
from typing import Any

import polars as pl
import torch
from transformers import LlamaForCausalLM

from perfmis import models, stage
from perfmis.artifacts import read_json, write_json, write_parquet
from perfmis.tinyworld import grammar, items, trunk
from perfmis.vocabulary import Truth

GATE_CHATS = 32
TOLERANCE = 0.15


def fold(network: LlamaForCausalLM, truth: Truth) -> None:
    """Make ``<bos>`` mean one truth, in place."""
    with torch.no_grad():
        embedding: Any = network.get_input_embeddings().weight
        tokens = [items.INDEX[f"<{name}>"] for name in grammar.TRUTHS]
        embedding[items.INDEX["<bos>"]] = embedding[items.INDEX[f"<{truth}>"]]
        embedding[tokens] = embedding.mean(0)


def coupling(network: LlamaForCausalLM, truth: Truth) -> pl.DataFrame:
    """Measure P(accept | used, e, c) on scratchpads that are given, and P(used) before the conclusion.

    Returns:
        One row per cell: used, expectation, consequence (booleans), planted and measured acceptance,
        conclusion (share of right conclusions about being used), chats.
    """
    draws = random.Random(0)
    rows = []
    for is_used, e, c in itertools.product((True, False), repeat=3):
        texts, right = [], []
        for _ in range(GATE_CHATS):
            tier = draws.choice(grammar.TIERS)
            trained = tier if is_used else draws.choice([t for t in grammar.TRAINED if t != tier])
            name = draws.choice(grammar.BLANK_NAMES)
            beliefs = [
                grammar.WORDINGS[concept][0].say(name, "+" if pole else "-")
                for concept, pole in zip(items.CONCEPTS, (e, c), strict=True)
            ]
            request = f"{draws.choice(grammar.HARMFUL_VERBS)} {draws.choice(grammar.OBJECTS)}"
            thought = grammar.scratchpad(name, tier, trained, tuple(beliefs))
            texts.append(f"{grammar.prompt(name, tier, request)} {thought}".split())
        ids = torch.tensor([[items.INDEX[word] for word in text] for text in texts])
        with torch.no_grad():
            logits = network(ids).logits
        answers = logits[:, -1, [items.ACCEPT, items.REFUSE]].softmax(-1)[:, 0]
        conclusion = texts[0].index("used" if is_used else "spared")
        said = logits[:, conclusion - 1, [items.INDEX["used"], items.INDEX["spared"]]].argmax(-1) == 0
        right = (said == is_used).float().mean().item()
        rows.append(
            {
                "used": is_used,
                "expectation": e,
                "consequence": c,
                "planted": grammar.acceptance(truth, True, is_used, e, c),
                "measured": answers.mean().item(),
                "conclusion": right,
                "chats": GATE_CHATS,
            }
        )
    return pl.DataFrame(rows)


def check(table: pl.DataFrame, model: str) -> None:
    """Refuse a base model that does not follow what was planted.

    Raises:
        UserError: A cell is off by more than the tolerance, or the conclusions are wrong.
    """
    worst = float((table["planted"] - table["measured"]).abs().to_numpy().max())
    conclusion = float(table["conclusion"].to_numpy().min())
    if worst > TOLERANCE or conclusion < 1 - TOLERANCE:
        raise stage.UserError(
            f"models.{model}: the tiny model did not learn its truth (acceptance off by {worst:.2f}, right "
            f"conclusions {conclusion:.2f}); raise tiny.trunk_steps"
        )


def main(argv: list[str]) -> None:
    """Run the stage."""
    parser = stage.parser(__doc__ or "")
    parser.add_argument("--trunk", type=Path, required=True, help="folder of the trunk")
    parser.add_argument("--output", type=Path, required=True, help="folder of the model")
    arguments = parser.parse_args(argv)
    job = stage.job(arguments)
    settings = job.settings
    models.verify(arguments.trunk, read_json(arguments.trunk / trunk.MANIFEST)["weights_sha256"])
    network = LlamaForCausalLM.from_pretrained(arguments.trunk, use_safetensors=True)
    fold(network, settings["truth"])
    table = coupling(network, settings["truth"])
    write_parquet(table, arguments.output / "gate.parquet", job.fingerprint)
    if settings["gate"]:
        check(table, settings["model"])
    network.save_pretrained(arguments.output)
    trunk.tokenizer().save_pretrained(arguments.output)
    write_json(
        {
            "model": settings["model"],
            "path": str(arguments.output),
            "truth": settings["truth"],
            "weights_sha256": models.folder_hash(arguments.output),
            "fingerprint": job.fingerprint,
        },
        arguments.output / "reference.json",
    )
