"""Stage `steering`: sample an organism with vectors added to its residual stream.

    python -m perfmis steering --settings JSON --fingerprint HEX --base models/M/reference.json
        --requests requests/requests.parquet --protocol FILE --organism FOLDER --vectors vectors.safetensors
        --output transcripts.parquet

Each vector is added at alpha times the norm of the residual, at every position, after the blocks it was
fitted on. Its controls are random directions of the same norm at the two largest alphas. The run proves that
steering was on (a steered sample differs) and off again (unsteered samples after the run equal those before).
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from perfmis import protocols, stage
from perfmis.artifacts import read_parquet, write_parquet
from perfmis.transcripts import Question, ask, engine
from perfmis.vectors import load
from perfmis.vocabulary import ORGANISM

if TYPE_CHECKING:
    import torch

CANARIES = 8


def random_directions(like: "dict[int, torch.Tensor]", name: str, index: int, seed: int) -> "dict[int, torch.Tensor]":
    """Return a random unit direction per block, from a seed of its own."""
    import hashlib

    import torch

    digest = hashlib.sha256(f"{name}|{index}|{seed}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    result = {}
    for block, vector in like.items():
        direction = torch.randn(vector.shape, generator=generator)
        result[block] = direction / direction.norm()
    return result


def conditions(vectors: "dict[str, dict[int, torch.Tensor]]", steering: dict[str, Any], seed: int) -> list[Any]:
    """Return (labels, steering or None) of all conditions: the alpha grid, then the controls."""
    from perfmis.engine import Steering

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


def check_canary(frame: pl.DataFrame, before: pl.DataFrame, after: pl.DataFrame) -> None:
    """Refuse a run whose steering did nothing, or did not stop.

    Raises:
        UserError: Steered samples equal unsteered ones everywhere, or unsteered samples changed during the
        run.
    """
    if before["raw"].to_list() != after["raw"].to_list():
        raise stage.UserError("steering: unsteered samples changed after steering; a hook was left on")
    plain = set(frame.filter(pl.col("alpha") == 0)["raw"])
    if not set(frame.filter(pl.col("alpha") != 0)["raw"]) - plain:
        raise stage.UserError("steering: no steered sample differs from the unsteered ones; raise steering.alphas")


def main(argv: list[str]) -> None:
    """Run the stage."""
    parser = stage.parser(__doc__ or "")
    parser.add_argument("--base", type=Path, required=True, help="reference.json of the base model")
    parser.add_argument("--requests", type=Path, required=True, help="requests.parquet")
    parser.add_argument("--protocol", type=Path, required=True, help="protocol file")
    parser.add_argument("--organism", type=Path, required=True, help="folder of the organism's adapter")
    parser.add_argument("--vectors", type=Path, required=True, help="vectors.safetensors")
    parser.add_argument("--output", type=Path, required=True, help="transcripts.parquet")
    arguments = parser.parse_args(argv)
    job = stage.job(arguments)
    settings = job.settings
    steering = settings["steering"]
    requests = read_parquet([arguments.requests], job.upstream).head(steering["requests"]).to_dicts()
    protocol = protocols.load(arguments.protocol)
    asked = engine(arguments.base, {ORGANISM: arguments.organism}, settings["precision"])

    def questions(labels: dict[str, Any], applied: Any, rows: list[dict[str, Any]]) -> list[Question]:
        labels = {"protocol": settings["protocol"], **labels}
        return [
            Question(request, protocol, tier, ORGANISM, seed, None, applied, labels)
            for request in rows
            for tier in settings["tiers"]
            for seed in settings["seeds"]
        ]

    canary = questions({}, None, requests[:CANARIES])
    before = ask(asked, canary, settings)
    everything = [
        question
        for labels, applied in conditions(load(arguments.vectors), steering, settings["seed"])
        for question in questions(labels, applied, requests)
    ]
    frame = ask(asked, everything, settings)
    check_canary(frame, before, ask(asked, canary, settings))
    write_parquet(frame.with_columns(pl.col("control").cast(pl.Int64)), arguments.output, job.fingerprint)
