"""Stage `vectors`: steering vectors by paired logistic regression on contrastive activations.

    python -m perfmis vectors --settings JSON --fingerprint HEX --base models/M/reference.json
        --organism FOLDER --requests requests.parquet --protocol FILE --transcripts FILE
        --outcomes FILE --contrasts FILE --output vectors.safetensors

Two concepts in two contexts. *In* context: the organism's own transcripts, pairs of one request and tier
whose scratchpads differ in the concept. *Out* of context: texts written for the concept that never mention
alignment faking. Both are read at the last token of the text (in context: of the scratchpad), after the
blocks at the configured depths. The direction is the weight vector of a logistic regression without
intercept on the difference of each pair (the post's method; positions, layers and normalisation are ours).
"""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from perfmis import protocols, stage
from perfmis.artifacts import read_json, read_parquet, write_json
from perfmis.checkpoints import adapter_name, engine
from perfmis.rendering import Renderer
from perfmis.tags import loosened
from perfmis.typed import read_yaml
from perfmis.vocabulary import ORGANISM

if TYPE_CHECKING:
    import torch

    from perfmis.engines.transformers import Engine

Pair = tuple[str, str]
SHA256 = "sha256"


def pairs_in_context(
    transcripts: pl.DataFrame, outcomes: pl.DataFrame, texts: dict[tuple[str, str], str], contrast: dict[str,
    Any], close: str, number: int,
) -> list[Pair]:  # fmt: skip
    """Pair scratchpads of one request and tier by what they state.

    Args:
        transcripts: Samples with ``raw``.
        outcomes: Their outcomes, same keys.
        texts: Rendered prompt of each (request_id, tier).
        contrast: ``column`` of the outcomes and its ``positive`` and ``negative`` values.
        close: Regular expression that ends a scratchpad.
        number: Pairs wanted at most.

    Returns:
        (positive, negative) texts: prompt and scratchpad, the close included.
    """
    keys = ["request_id", "tier", "eval_seed"]
    rows = transcripts.select(*keys, "raw").join(outcomes.select(*keys, "parse_status", contrast["column"]), on=keys)
    rows = rows.filter(pl.col("parse_status") == "ok").with_columns(
        thought=pl.col("raw").str.extract(f"(?s)^(.*{close})"), value=pl.col(contrast["column"])
    )
    sides = {side: _having(rows, contrast[side]) for side in ("positive", "negative")}
    joined = sides["positive"].join(sides["negative"], on=["request_id", "tier"], suffix="_negative")
    joined = joined.unique(["request_id", "tier"], keep="first", maintain_order=True)
    joined = joined.sort("tier", "request_id").sample(fraction=1.0, shuffle=True, seed=0)
    return [
        (texts[row["request_id"], row["tier"]] + " " + row["thought"],
         texts[row["request_id"], row["tier"]] + " " + row["thought_negative"])
        for row in joined.head(number).to_dicts()
    ]  # fmt: skip


def _having(rows: pl.DataFrame, values: list[int | None]) -> pl.DataFrame:
    stated = [value for value in values if value is not None]
    mask = pl.col("value").is_in(stated)
    return rows.filter(mask | pl.col("value").is_null() if None in values else mask)


def fit(differences: "torch.Tensor", ridge: float) -> "torch.Tensor":
    """Return the logistic-regression direction of paired differences.

    Minimises mean log(1 + exp(-w . d)) + ridge / (2 n) |w|^2 with d scaled to unit mean norm; no intercept,
    because a pair and its mirror image carry the same information.

    Args:
        differences: (pairs, hidden) positive minus negative, float32.
        ridge: L2 penalty.

    Returns:
        Unit vector (hidden,).
    """
    import torch

    scaled = differences / differences.norm(dim=1).mean()
    weight = torch.zeros(scaled.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS([weight], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> "torch.Tensor":
        optimizer.zero_grad()
        margin = scaled @ weight
        value = torch.nn.functional.softplus(-margin).mean() + ridge / (2 * len(scaled)) * weight.square().sum()
        value.backward()
        return value

    optimizer.step(closure)
    return (weight / weight.norm()).detach()


def activations(asked: "Engine", texts: list[str], layers: list[int], batch: int) -> "dict[int, torch.Tensor]":
    """Return the residual stream after some blocks at the last token of each text.

    Returns:
        Block index to (texts, hidden), float32; ``hidden_states[i + 1]`` is the output of block i.
    """
    import torch

    rows: dict[int, list[torch.Tensor]] = {layer: [] for layer in layers}
    with asked.using(adapter_name(ORGANISM)) as model, torch.inference_mode():
        for start in range(0, len(texts), batch):
            # What pads stands behind, where no token sees it; in front it would move absolute positions.
            encoded = asked.tokenizer(
                texts[start : start + batch], add_special_tokens=False, padding=True, padding_side="right",
                return_tensors="pt",
            )  # fmt: skip
            inputs = {key: encoded[key].to(model.device) for key in ("input_ids", "attention_mask")}
            states = model(**inputs, output_hidden_states=True).hidden_states
            last = encoded["attention_mask"].sum(1) - 1
            for layer in layers:
                rows[layer].append(states[layer + 1][torch.arange(len(last)), last].float().cpu())
    return {layer: torch.cat(parts) for layer, parts in rows.items()}


def extract(
    asked: "Engine", pairs: list[Pair], layers: list[int], ridge: float, batch: int
) -> "tuple[dict[int, torch.Tensor], dict[str, Any]]":
    """Fit a vector on half of the pairs and test it on the other half, then refit on all.

    Returns:
        Block index to unit direction, and what is known of the vector: accuracy on held-out pairs (share
        with a positive margin, which for mirrored pairs is also the AUROC of the margin), mean norms of
        difference and residual.
    """
    texts = [text for pair in pairs for text in pair]
    states = activations(asked, texts, layers, batch)
    directions, accuracy = {}, {}
    for layer, values in states.items():
        differences = values[0::2] - values[1::2]
        half = len(differences) // 2
        trial = fit(differences[:half], ridge)
        accuracy[layer] = (differences[half:] @ trial > 0).float().mean().item()
        directions[layer] = fit(differences, ridge)
    middle = layers[len(layers) // 2]
    differences = states[middle][0::2] - states[middle][1::2]
    return directions, {
        "layers": layers,
        "pairs": len(pairs),
        "accuracy": {str(layer): value for layer, value in accuracy.items()},
        "difference_norm": differences.norm(dim=1).mean().item(),
        "residual_norm": states[middle].norm(dim=1).mean().item(),
    }


def _digest(tensors: "dict[str, torch.Tensor]") -> str:
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def save(vectors: "dict[str, dict[int, torch.Tensor]]", path: Path) -> None:
    """Write vectors as ``NAME.BLOCK`` tensors, with their SHA-256 in the header."""
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {f"{name}.{block}": v for name, directions in vectors.items() for block, v in directions.items()}
    save_file(tensors, path, {SHA256: _digest(tensors)})


def load(path: Path) -> "dict[str, dict[int, torch.Tensor]]":
    """Read vectors: name (``expectation.in``) to block index to direction.

    Raises:
        UserError: They are missing or damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            stated = (file.metadata() or {}).get(SHA256)
    except (OSError, SafetensorError) as error:
        raise stage.UserError(f"{path}: cannot be read ({error}); delete it and rerun") from error
    if _digest(tensors) != stated:
        raise stage.UserError(f"{path}: damaged, its content is not that which was written; delete it and rerun")
    result: dict[str, dict[int, torch.Tensor]] = {}
    for key, vector in sorted(tensors.items()):
        name, block = key.rsplit(".", 1)
        result.setdefault(name, {})[int(block)] = vector
    return result


def main(argv: list[str]) -> None:
    """Run the stage."""
    parser = stage.parser(__doc__ or "")
    for name, text in (
        ("base", "reference.json of the base model"), ("organism", "folder of the organism's adapter"),
        ("requests", "requests.parquet"), ("protocol", "protocol file"), ("transcripts", "the organism's transcripts"),
        ("outcomes", "the organism's outcomes"), ("contrasts", "contrast pairs of the world"),
        ("output", "vectors.safetensors; vectors.json goes beside it"),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=Path, required=True, help=text)
    arguments = parser.parse_args(argv)
    job = stage.job(arguments)
    settings = job.settings
    from perfmis.decoders import blocks

    asked = engine(arguments.base, {ORGANISM: arguments.organism}, settings["precision"])
    depth = len(blocks(asked.model))
    layers = sorted({min(depth - 1, int(share * depth)) for share in settings["layers"]})
    protocol = protocols.load(arguments.protocol)
    if protocol.reasoning_close is None:
        raise stage.UserError("evaluation.protocol: it asks for no scratchpad, so vectors cannot be fitted on "
                              "scratchpads; choose one that does, or set steering.models: []")  # fmt: skip
    requests = read_parquet([arguments.requests], job.upstream)
    renderer = Renderer(asked.tokenizer, settings["date"], read_json(arguments.base)["model"])
    # Transcripts begin with the thought that a template opens.
    texts: dict[tuple[str, str], str] = {
        (row["request_id"], tier): renderer.parts(protocols.render(protocol, row["text"], tier))[0]
        for row in requests.to_dicts()
        for tier in protocol.tiers
    }
    close = loosened(protocol.reasoning_close)
    transcripts = read_parquet([arguments.transcripts], job.upstream)
    outcomes = read_parquet([arguments.outcomes], job.upstream)
    contrasts = read_yaml(arguments.contrasts)
    vectors, report = {}, {}
    for concept, contrast in contrasts["in"].items():
        found = {
            "in": pairs_in_context(transcripts, outcomes, texts, contrast, close, settings["pairs"]),
            "out": [(a, b) for a, b in contrasts["out"][concept]][: settings["pairs"]],
        }
        for context, pairs in found.items():
            if len(pairs) < 4:
                raise stage.UserError(
                    f"{arguments.outcomes}: {len(pairs)} pairs of scratchpads differ in {concept}; "
                    "add evaluation seeds (seeds.evaluation) or requests"
                )
            name = f"{concept}.{context}"
            vectors[name], report[name] = extract(asked, pairs, layers, settings["ridge"], settings["batch"])
    save(vectors, arguments.output)
    report["cosines"] = {
        f"{a}|{b}": float(vectors[a][layers[0]] @ vectors[b][layers[0]]) for a in vectors for b in vectors if a < b
    }
    write_json({"fingerprint": job.fingerprint, **report}, arguments.output.with_suffix(".json"))
