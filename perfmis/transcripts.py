"""Stage `transcripts`: put every request to some checkpoints of one model, in every tier.

    python -m perfmis transcripts --settings JSON --fingerprint HEX --base models/M/reference.json
        --requests requests/requests.parquet --protocol PROTOCOL.yaml --adapters CHECKPOINT=FOLDER ...
        --output FOLDER

Settings: ``model``, ``seed`` (training), ``seeds`` (evaluation), ``checkpoints``, ``protocol``, ``tiers``,
and the sampling keys. Writes ``FOLDER/CHECKPOINT/PROTOCOL.parquet``, one row a sample. A sample's random
numbers depend on request and evaluation seed alone, so tiers, checkpoints and interventions are compared
under common random numbers.
"""

import hashlib
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from perfmis import models, protocols, stage
from perfmis.adapters import verified
from perfmis.artifacts import read_parquet, write_parquet
from perfmis.vocabulary import BASE

if TYPE_CHECKING:
    from perfmis.engine import Engine, Steering


@dataclass(frozen=True)
class Question:
    """One sample to be drawn, and the columns that identify it.

    Attributes:
        request: Row of the requests table.
        protocol: How it is put.
        tier: In which tier.
        checkpoint: To which checkpoint.
        seed: Evaluation seed.
        snippet: Text put into the context, or None.
        steering: Vector added to the residual stream, or None.
        labels: Further key columns.
    """

    request: dict[str, Any]
    protocol: protocols.Protocol
    tier: Any
    checkpoint: str
    seed: int
    snippet: str | None
    steering: "Steering | None"
    labels: dict[str, Any]


def sample_seed(request_id: str, seed: int) -> int:
    """Return the seed of a sample's random numbers."""
    return int.from_bytes(hashlib.sha256(f"{request_id}|{seed}".encode()).digest()[:7], "big")


def adapter_name(checkpoint: str) -> str | None:
    """Return the engine's name of a checkpoint's adapter; module names hold no signs."""
    return None if checkpoint == BASE else checkpoint.replace("+", "plus").replace("-", "minus")


def adapters(pairs: Sequence[str]) -> dict[str, Path]:
    """Parse ``CHECKPOINT=FOLDER`` arguments."""
    return {name: Path(folder) for name, _, folder in (pair.partition("=") for pair in pairs)}


def engine(base: Path, folders: dict[str, Path], precision: str) -> "Engine":
    """Return an engine of the base with the adapters of the given checkpoints."""
    from perfmis.engine import Engine

    model, tokenizer = models.load(base, precision)
    result = Engine(model, tokenizer)
    for checkpoint, folder in folders.items():
        name = adapter_name(checkpoint)
        assert name is not None
        result.add(name, verified(folder, base))
    return result


class Progress:
    """Says on standard error how far the sampling is, at most once in ten seconds."""

    def __init__(self, total: int) -> None:
        self.done, self.total = 0, total
        self.start = self.said = time.monotonic()

    def __call__(self, samples: int) -> None:
        """Count samples."""
        self.done += samples
        now = time.monotonic()
        if now - self.said > 10:
            left = (now - self.start) / self.done * (self.total - self.done)
            print(f"{self.done}/{self.total} samples, {left:.0f} s left", file=sys.stderr)
            self.said = now


def ask(asked: "Engine", questions: list[Question], settings: dict[str, Any]) -> pl.DataFrame:
    """Draw a sample for each question.

    Args:
        asked: Engine that holds the adapters of all checkpoints in question.
        questions: What to ask.
        settings: ``model``, ``seed`` and the sampling keys of a stage.

    Returns:
        One row a question: its keys and labels, prompt_sha256, raw, tokens, finish.
    """
    from perfmis.engine import Prompt, Sampling

    prompts, hashes = [], []
    for q in questions:
        rendered = protocols.render(q.protocol, q.request["text"], q.tier, q.snippet)
        text = protocols.text(rendered, asked.tokenizer)
        hashes.append(protocols.sha256(text))
        seed = sample_seed(q.request["request_id"], q.seed)
        prompts.append(Prompt(text, adapter_name(q.checkpoint), seed, q.steering))
    sampling = Sampling(settings["temperature"], settings["max_tokens"], settings["batch"])
    samples = asked.sample(prompts, sampling, Progress(len(prompts)))
    return pl.DataFrame(
        [
            {
                "model": settings["model"],
                "seed": settings["seed"],
                "checkpoint": q.checkpoint,
                **q.labels,
                "request_id": q.request["request_id"],
                "cluster": q.request["cluster"],
                "tier": q.tier,
                "eval_seed": q.seed,
                "prompt_sha256": sha256,
                "raw": sample.raw,
                "tokens": sample.tokens,
                "finish": sample.finish,
            }
            for q, sha256, sample in zip(questions, hashes, samples, strict=True)
        ],
        infer_schema_length=None,
    )


def main(argv: list[str]) -> None:
    """Run the stage."""
    parser = stage.parser(__doc__ or "")
    parser.add_argument("--base", type=Path, required=True, help="reference.json of the base model")
    parser.add_argument("--requests", type=Path, required=True, help="requests.parquet")
    parser.add_argument("--protocol", type=Path, required=True, help="protocol file")
    parser.add_argument("--adapters", nargs="*", default=[], help="CHECKPOINT=FOLDER of each adapter")
    parser.add_argument("--output", type=Path, required=True, help="folder of the model and seed")
    arguments = parser.parse_args(argv)
    job = stage.job(arguments)
    settings = job.settings
    requests = read_parquet([arguments.requests], job.upstream).to_dicts()
    protocol = protocols.load(arguments.protocol)
    asked = engine(arguments.base, adapters(arguments.adapters), settings["precision"])
    for checkpoint in settings["checkpoints"]:
        questions = [
            Question(request, protocol, tier, checkpoint, seed, None, None, {"protocol": settings["protocol"]})
            for request in requests
            for tier in settings["tiers"]
            for seed in settings["seeds"]
        ]
        frame = ask(asked, questions, settings)
        write_parquet(frame, arguments.output / checkpoint / f"{settings['protocol']}.parquet", job.fingerprint)
