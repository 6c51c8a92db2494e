"""Stage `generation`: put every request to some checkpoints of one model, in every tier.

    python -m perfmis generation --settings JSON --fingerprint HEX --base models/M/reference.json
        --requests requests/requests.parquet --protocol PROTOCOL.json --adapters CHECKPOINT=FOLDER ...
        --samples FOLDER --output FOLDER

Settings: ``model``, ``seed`` (training), ``seeds`` (evaluation), ``checkpoints``, ``protocol``, ``tiers``,
``engine`` and the sampling keys. Writes ``FOLDER/CHECKPOINT/PROTOCOL.parquet``, one row a sample. A sample's
random numbers depend on request and evaluation seed alone, so tiers, checkpoints and interventions are
compared under common random numbers. Only samples that the store (`perfmis.samples`) lacks are drawn.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from perfmis import protocols, stage
from perfmis.artifacts import read_parquet, write_parquet
from perfmis.engines.interface import Sampling, Steering
from perfmis.samples import seed_of
from perfmis.stage import UserError
from perfmis.subject import Guard, Subject, parser, subject, unguarded


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
    steering: Steering | None
    labels: dict[str, Any]


def sample_seed(request_id: str, seed: int) -> int:
    """Return the seed of a sample's random numbers."""
    return seed_of(f"{request_id}|{seed}")


def ask(
    asked: Subject, questions: Sequence[Question], settings: dict[str, Any], guard: Guard = unguarded
) -> pl.DataFrame:
    """Return a sample for each question.

    Args:
        asked: The model with the checkpoints in question.
        questions: What to ask.
        settings: ``model``, ``seed`` and the sampling keys of a stage.
        guard: Watches an engine while it samples.

    Returns:
        One row a question: its keys and labels, sample (address), prompt_sha256, raw (after what opens a thought in
        the prompt, where its template does), raw_sha256, tokens, token_ids (null where they are those that the
        tokenizer makes of the sample), finish.

    Raises:
        UserError: Some samples could not be had.
    """
    prompts, hashes = [], []
    for request in {q.request["request_id"]: q.request for q in questions}.values():
        asked.refuse_control(request["text"], f"requests: {request['request_id']}")
    for snippet in {q.snippet for q in questions if q.snippet}:
        asked.refuse_control(snippet, f"snippets: {snippet[:40]!r}")
    for q in questions:
        rendered = protocols.render(q.protocol, q.request["text"], q.tier, q.snippet)
        seed = sample_seed(q.request["request_id"], q.seed)
        prompt, sha256 = asked.prompt(rendered, seed, q.checkpoint, q.steering)
        prompts.append(prompt)
        hashes.append(sha256)
    sampling = Sampling(settings["temperature"], settings["max_tokens"], settings["batch"])
    names, samples = asked.sample(prompts, sampling, guard)
    failed = samples.count(None)
    if failed:
        raise UserError(
            f"{settings['model']}: {failed} of {len(samples)} samples could not be had; rerun to ask for "
            "them again, those that came are kept"
        )
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
                "sample": name,
                "prompt_sha256": sha256,
                "raw": (raw := prompt.opened + sample.raw),
                "raw_sha256": hashlib.sha256(raw.encode()).hexdigest(),
                "tokens": sample.tokens,
                "token_ids": sample.ids,
                "finish": sample.finish,
            }
            for q, prompt, name, sha256, sample in zip(questions, prompts, names, hashes, samples, strict=True)
            if sample
        ],
        schema_overrides={"token_ids": pl.List(pl.Int64)},
        infer_schema_length=None,
    )


def main(argv: list[str]) -> None:
    """Run the stage."""
    options = parser(__doc__ or "")
    options.add_argument("--requests", type=Path, required=True, help="requests.parquet")
    options.add_argument("--protocol", type=Path, required=True, help="protocol file")
    options.add_argument("--output", type=Path, required=True, help="folder of the model and seed")
    arguments = options.parse_args(argv)
    job = stage.job(arguments)
    settings = job.settings
    requests = read_parquet([arguments.requests], job.upstream).to_dicts()
    protocol = protocols.load(arguments.protocol)
    questions = [
        Question(request, protocol, tier, checkpoint, seed, None, None, {"protocol": settings["protocol"]})
        for checkpoint in settings["checkpoints"]
        for request in requests
        for tier in settings["tiers"]
        for seed in settings["seeds"]
    ]
    frame = ask(subject(arguments, settings), questions, settings)
    for (checkpoint,), samples in frame.group_by("checkpoint", maintain_order=True):
        write_parquet(samples, arguments.output / str(checkpoint) / f"{settings['protocol']}.parquet", job.fingerprint)
