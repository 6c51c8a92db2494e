"""Stage `steering`: sample an organism with vectors added to its residual stream.

    python -m perfmis steering --settings JSON --fingerprint HEX --base models/M/reference.json
        --requests requests/requests.parquet --protocol FILE --adapters organism=FOLDER
        --vectors vectors.safetensors --samples FOLDER --output transcripts.parquet

Each vector is added at alpha times the norm of the residual, at every position, after the blocks it was
fitted on. Its controls are random directions of the same norm at the two largest alphas. Whenever an engine
draws samples, it first proves that it steers (`perfmis.mechanism`); what was proved is written to
``mechanism.json`` beside the output. A vector that changes no answer is for the tables to tell.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from perfmis import mechanism, protocols, stage
from perfmis.artifacts import read_parquet, write_json, write_parquet
from perfmis.engines.interface import Steering
from perfmis.generation import Question, ask, sample_seed
from perfmis.samples import seed_of
from perfmis.subject import parser, subject
from perfmis.vectors import load
from perfmis.vocabulary import ORGANISM

if TYPE_CHECKING:
    import torch

MECHANISM = "mechanism.json"


def random_directions(like: "dict[int, torch.Tensor]", name: str, index: int, seed: int) -> "dict[int, torch.Tensor]":
    """Return a random unit direction per block, from a seed of its own."""
    import torch

    generator = torch.Generator().manual_seed(seed_of(f"{name}|{index}|{seed}"))
    result = {}
    for block, vector in like.items():
        direction = torch.randn(vector.shape, generator=generator)
        result[block] = direction / direction.norm()
    return result


def conditions(vectors: "dict[str, dict[int, torch.Tensor]]", steering: dict[str, Any], seed: int) -> list[Any]:
    """Return (labels, steering or None) of all conditions: the alpha grid, then the controls."""
    extremes = (min(steering["alphas"]), max(steering["alphas"]))
    result: list[Any] = []
    for name, directions in vectors.items():
        concept, context = name.split(".")
        labels = {"concept": concept, "context": context}
        for alpha in steering["alphas"]:
            applied = None if alpha == 0 else Steering(directions, alpha)
            result.append(({**labels, "alpha": alpha, "control": None}, applied))
        for index in range(steering["controls"]):
            control = random_directions(directions, name, index, seed)
            for alpha in extremes:
                result.append(({**labels, "alpha": alpha, "control": index}, Steering(control, alpha)))
    return result


def main(argv: list[str]) -> None:
    """Run the stage."""
    options = parser(__doc__ or "")
    options.add_argument("--requests", type=Path, required=True, help="requests.parquet")
    options.add_argument("--protocol", type=Path, required=True, help="protocol file")
    options.add_argument("--vectors", type=Path, required=True, help="vectors.safetensors")
    options.add_argument("--output", type=Path, required=True, help="transcripts.parquet")
    arguments = options.parse_args(argv)
    job = stage.job(arguments)
    settings = job.settings
    steering = settings["steering"]
    requests = read_parquet([arguments.requests], job.upstream).head(steering["requests"]).to_dicts()
    protocol = protocols.load(arguments.protocol)
    applied = conditions(load(arguments.vectors), steering, settings["seed"])
    questions = [
        Question(request, protocol, tier, ORGANISM, seed, None, vector, {"protocol": settings["protocol"], **labels})
        for labels, vector in applied
        for request in requests
        for tier in settings["tiers"]
        for seed in settings["seeds"]
    ]
    asked = subject(arguments, settings)
    first, tier = requests[0], settings["tiers"][0]
    prompt, _ = asked.prompt(
        protocols.render(protocol, first["text"], tier), sample_seed(first["request_id"], 0), ORGANISM
    )

    def report(proved: dict[str, Any]) -> None:
        write_json({"fingerprint": job.fingerprint, **proved}, arguments.output.with_name(MECHANISM))

    guard = mechanism.proof(prompt, mechanism.trials(applied), settings["precision"], report)
    frame = ask(asked, questions, settings, guard)
    write_parquet(frame.with_columns(pl.col("control").cast(pl.Int64)), arguments.output, job.fingerprint)
