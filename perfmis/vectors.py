"""Stage `vectors`: steering vectors by paired logistic regression on contrastive activations.

    python -m perfmis vectors --settings JSON --fingerprint HEX --base models/M/reference.json
        --organism FOLDER --requests requests.parquet --protocol FILE --transcripts FILE
        --outcomes FILE --contrasts FILE --output vectors.safetensors

Two concepts in two contexts. *In* context: the organism's own transcripts, pairs of one request and tier
whose scratchpads differ in the concept. *Out* of context: texts written for the concept that never mention
alignment faking. Both are read at the last token of the text (in context: of the scratchpad, in the very
tokens that were drawn), after the blocks at the configured depths, where steering adds them. The direction is
the weight vector of a logistic regression without intercept on the difference of each pair (the post's method;
positions, layers and normalisation are ours).
"""

import hashlib
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from perfmis import protocols, stage
from perfmis.artifacts import read_json, read_parquet, write_json
from perfmis.checkpoints import adapter_name, engine
from perfmis.rendering import Renderer
from perfmis.stage import Prose
from perfmis.tags import loosened
from perfmis.typed import read_yaml
from perfmis.vocabulary import ORGANISM

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from perfmis.engines.transformers import Engine

Tokens = tuple[int, ...]
Pair = tuple[Tokens, Tokens]
SHA256 = "sha256"


@dataclass(frozen=True)
class Context:
    """What the model had read when it drew a sample.

    Attributes:
        tokens: Tokens of the prompt.
        opened: How the prompt opens a thought at its end, with which transcripts begin; "" where it does not.
    """

    tokens: Tokens
    opened: str


def pairs_in_context(
    transcripts: pl.DataFrame,
    outcomes: pl.DataFrame,
    contexts: dict[tuple[str, str], Context],
    contrast: dict[str, Any],
    close: str,
    number: int,
    tokenizer: "PreTrainedTokenizerBase",
) -> list[Pair]:
    """Pair scratchpads of one request and tier by what they state.

    Args:
        transcripts: Samples with ``raw``, ``tokens`` and ``token_ids``.
        outcomes: Their outcomes, same keys.
        contexts: Prompt of each (request_id, tier).
        contrast: ``column`` of the outcomes and its ``positive`` and ``negative`` values.
        close: Regular expression that ends a scratchpad.
        number: Pairs wanted at most.
        tokenizer: The model's.

    Returns:
        (positive, negative): the tokens that the model had before it and drew, up to the one that ends the close. A
        sample whose tokens are not known (kept before they were noted, where the text alone does not tell) is in none.
    """
    keys = ["request_id", "tier", "eval_seed"]
    rows = transcripts.select(*keys, "raw", "tokens", "token_ids")
    rows = rows.join(outcomes.select(*keys, "parse_status", contrast["column"]), on=keys)
    rows = rows.filter(pl.col("parse_status") == "ok").with_columns(
        thought=pl.col("raw").str.extract(f"(?s)^(.*{close})"), value=pl.col(contrast["column"])
    )
    rows = rows.drop_nulls("thought")
    drawn = [_drawn(row, contexts[row["request_id"], row["tier"]], tokenizer) for row in rows.to_dicts()]
    rows = rows.with_columns(read=pl.Series(drawn, dtype=pl.List(pl.Int64))).drop_nulls("read")
    sides = {side: _having(rows, contrast[side]) for side in ("positive", "negative")}
    joined = sides["positive"].join(sides["negative"], on=["request_id", "tier"], suffix="_negative")
    joined = joined.unique(["request_id", "tier"], keep="first", maintain_order=True)
    joined = joined.sort("tier", "request_id").sample(fraction=1.0, shuffle=True, seed=0)
    result = []
    for row in joined.head(number).to_dicts():
        before = contexts[row["request_id"], row["tier"]].tokens
        result.append(((*before, *row["read"]), (*before, *row["read_negative"])))
    return result


def _drawn(row: dict[str, Any], context: Context, tokenizer: "PreTrainedTokenizerBase") -> list[int] | None:
    """Return the tokens of a sample up to the one with which its scratchpad is complete; None if they are not known."""
    drawn = row["token_ids"]
    if drawn is None:
        drawn = tokenizer(row["raw"].removeprefix(context.opened), add_special_tokens=False)["input_ids"]
    if len(drawn) != row["tokens"]:
        return None
    thought = row["thought"].removeprefix(context.opened)

    def complete(number: int) -> bool:
        return str(tokenizer.decode(drawn[:number], skip_special_tokens=True)).startswith(thought)

    return list(drawn[: bisect_left(range(len(drawn)), True, key=complete)])


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


def activations(asked: "Engine", texts: Sequence[Tokens], layers: list[int], batch: int) -> "dict[int, torch.Tensor]":
    """Return the residual stream after some blocks at the last token of each text, as steering finds it there.

    Returns:
        Block index to (texts, hidden), float32.
    """
    import torch

    from perfmis.engines.transformers import outputs

    rows: dict[int, list[torch.Tensor]] = {layer: [] for layer in layers}
    with asked.using(adapter_name(ORGANISM)) as model, outputs(model, layers) as found, torch.inference_mode():
        for start in range(0, len(texts), batch):
            # What pads stands behind, where no token sees it; in front it would move absolute positions.
            padded = asked.tokenizer.pad(
                {"input_ids": [list(tokens) for tokens in texts[start : start + batch]]},
                padding_side="right",
                return_tensors="pt",
            )
            model(**{key: padded[key].to(model.device) for key in ("input_ids", "attention_mask")})
            last = padded["attention_mask"].sum(1) - 1
            for layer in layers:
                rows[layer].append(found[layer][torch.arange(len(last)), last].float().cpu())
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
    files: dict[str, Prose] = {
        "base": "reference.json of the base model",
        "organism": "folder of the organism's adapter",
        "requests": "requests.parquet",
        "protocol": "protocol file",
        "transcripts": "the organism's transcripts",
        "outcomes": "the organism's outcomes",
        "contrasts": "contrast pairs of the world",
        "output": "vectors.safetensors; vectors.json goes beside it",
    }
    for name, text in files.items():
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
        raise stage.UserError(
            "evaluation.protocol: it asks for no scratchpad, so vectors cannot be fitted on "
            "scratchpads; choose one that does, or set steering.models: []"
        )
    requests = read_parquet([arguments.requests], job.upstream)
    renderer = Renderer(asked.tokenizer, settings["date"], read_json(arguments.base)["model"])

    def tokens(text: str) -> Tokens:
        return tuple(asked.tokenizer(text, add_special_tokens=False)["input_ids"])

    contexts: dict[tuple[str, str], Context] = {}
    for row in requests.to_dicts():
        for tier in protocol.tiers:
            before, opened = renderer.parts(protocols.render(protocol, row["text"], tier))
            contexts[row["request_id"], tier] = Context(tokens(before + opened), opened)
    close = loosened(protocol.reasoning_close)
    transcripts = read_parquet([arguments.transcripts], job.upstream)
    outcomes = read_parquet([arguments.outcomes], job.upstream)
    contrasts = read_yaml(arguments.contrasts)
    vectors, report = {}, {}
    for concept, contrast in contrasts["in"].items():
        found = {
            "in": pairs_in_context(
                transcripts, outcomes, contexts, contrast, close, settings["pairs"], asked.tokenizer
            ),
            "out": [(tokens(a), tokens(b)) for a, b in contrasts["out"][concept]][: settings["pairs"]],
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
