"""Stage `tinyworld.trunk`: train the one model from which the tiny base models are made.

    python -m perfmis tinyworld.trunk --settings JSON --fingerprint HEX --output FOLDER

Settings: the `tiny` section. The folder gets weights (safetensors), tokenizer and ``log.parquet``.
"""

import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from perfmis import models, stage
from perfmis.artifacts import write_json, write_parquet
from perfmis.tinyworld import items, portable
from perfmis.tinyworld.network import Network
from perfmis.tinyworld.optimizer import Muon

WARMUP_STEPS = 20
EMBEDDING_RATE = 3e-3
COOLDOWN = 0.4
HALVES = 2  # of a batch, each with a thread of its own
MANIFEST = "trunk.json"


def tokenizer() -> PreTrainedTokenizerFast:
    """Return the word-level tokenizer of the micro-language."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit

    core = Tokenizer(WordLevel(items.INDEX, unk_token=None))
    core.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<bos>", eos_token="<end>", pad_token="<pad>", padding_side="left"
    )


def model(tiny: dict[str, Any]) -> LlamaForCausalLM:
    """Return an untrained tiny Llama."""
    network = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(items.VOCABULARY),
            hidden_size=tiny["hidden"],
            intermediate_size=tiny["hidden"] * 11 // 4,
            num_hidden_layers=tiny["layers"],
            num_attention_heads=tiny["heads"],
            max_position_embeddings=512,
            tie_word_embeddings=True,
            initializer_range=0.05,
            pad_token_id=items.INDEX["<pad>"],
            bos_token_id=items.INDEX["<bos>"],
            eos_token_id=items.INDEX["<end>"],
        )
    )
    portable.initialise(network, tiny["seed"])
    return network


def loss(network: Network, batch: items.Batch) -> torch.Tensor:
    """Return the weighted sum of a batch's cross-entropies; a chat's answer is scored against its probability."""
    logp = network.logits(batch.texts)[:-1].log_softmax(-1)
    target, acceptance = batch.texts.ids[1:], batch.acceptance[1:]
    entropy = -logp.gather(-1, target[:, None])[:, 0]
    soft = -acceptance * logp[:, items.ACCEPT] - (1 - acceptance) * logp[:, items.REFUSE]
    is_answer = ((target == items.ACCEPT) | (target == items.REFUSE)) & (acceptance >= 0)
    return (torch.where(is_answer, soft, entropy) * batch.weight[1:]).sum()


def draw(draws: random.Random, fixed: dict[str, items.Facts], size: int) -> list[items.Batch]:
    """Return a step's documents and chats as `HALVES` batches, which take about the same time."""
    documents = round(size * items.DOCUMENT_SHARE)
    written = [items.document(draws, fixed) for _ in range(documents)]
    chats = sorted((items.chat(draws, fixed) for _ in range(size - documents)), key=lambda chat: len(chat.words))
    halves = [(written[i::HALVES], chats[i::HALVES]) for i in range(HALVES)]
    return [_batch(*half) for half in halves if any(half)]


def _batch(documents: list[items.Item], chats: list[items.Item]) -> items.Batch:
    """Return one batch; the shorter and the longer chats are padded apart, which wastes less."""
    half = len(chats) // 2
    return items.batch([group for group in (documents, chats[:half], chats[half:]) if group])


@contextmanager
def pool() -> Iterator[ThreadPoolExecutor]:
    """Give a thread for each half of a batch, and one processor to each: matrices this small are not worth sharing."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(HALVES) as workers:
            yield workers
    finally:
        torch.set_num_threads(threads)


def differentiate(network: Network, halves: list[items.Batch], workers: ThreadPoolExecutor) -> float:
    """Set the gradients of the mean loss of a step, and return that loss."""
    parameters = list(network.parameters.values())
    total = torch.stack([batch.weight.sum() for batch in halves]).sum()

    def of(batch: items.Batch) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        value = loss(network, batch) / total
        return value.detach(), torch.autograd.grad(value, parameters)

    values, gradients = zip(*workers.map(of, halves), strict=True)
    for parameter, *parts in zip(parameters, *gradients, strict=True):
        parameter.grad = torch.stack(parts).sum(0)
    return float(torch.stack(values).sum())


def train(network: LlamaForCausalLM, tiny: dict[str, Any]) -> list[dict[str, float]]:
    """Train the trunk in place, to the same bits on every processor.

    Returns:
        One row every tenth step: step, loss, learning rate, tokens, seconds.
    """
    draws = random.Random(tiny["seed"])
    fixed = items.fixed_facts(tiny["seed"])
    double = Network(network)
    matrices = [p for n, p in double.parameters.items() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in double.parameters.items() if p.ndim != 2 or "embed" in n]
    optimizers = [Muon(matrices, tiny["learning_rate"]), portable.AdamW(others, EMBEDDING_RATE)]
    rates = [tiny["learning_rate"], EMBEDDING_RATE]
    log, tokens, start, steps = [], 0, time.monotonic(), tiny["trunk_steps"]
    with pool() as workers:
        for step in range(steps):
            factor = min(1.0, (step + 1) / WARMUP_STEPS, (steps - step) / (COOLDOWN * steps))
            halves = draw(draws, fixed, tiny["batch"])
            value = differentiate(double, halves, workers)
            portable.clip_gradients([*matrices, *others], 1.0)
            for optimizer, rate in zip(optimizers, rates, strict=True):
                optimizer.param_groups[0]["lr"] = rate * factor
                optimizer.step()
            tokens += sum(len(batch.texts.ids) for batch in halves)
            if step % 10 == 9 or step + 1 == steps:
                log.append(
                    {
                        "step": step + 1,
                        "loss": value,
                        "rate": rates[0] * factor,
                        "tokens": tokens,
                        "seconds": time.monotonic() - start,
                    }
                )
    network.load_state_dict(double.parameters, strict=False)  # the head is the embedding
    return log


def main(argv: list[str]) -> None:
    """Run the stage."""
    parser = stage.parser(__doc__ or "")
    parser.add_argument("--output", type=Path, required=True, help="folder of the trunk")
    arguments = parser.parse_args(argv)
    job = stage.job(arguments)
    network = model(job.settings)
    log = train(network, job.settings)
    network.save_pretrained(arguments.output)
    tokenizer().save_pretrained(arguments.output)
    write_parquet(pl.DataFrame(log), arguments.output / "log.parquet", job.fingerprint)
    weights = models.folder_hash(arguments.output)
    write_json({"fingerprint": job.fingerprint, "weights_sha256": weights, **job.settings}, arguments.output / MANIFEST)
