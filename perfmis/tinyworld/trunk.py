"""Stage `tinyworld.trunk`: train the one model from which the tiny base models are made.

    python -m perfmis tinyworld.trunk --settings JSON --fingerprint HEX --output FOLDER

Settings: the `tiny` section. The folder gets weights (safetensors), tokenizer and ``log.parquet``.
"""

import random
import time
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
    """Return the mean weighted cross-entropy of a batch; a chat's answer is scored against its probability."""
    logp = network.logits(batch.texts)[:-1].log_softmax(-1)
    target, acceptance = batch.texts.ids[1:], batch.acceptance[1:]
    entropy = -logp.gather(-1, target[:, None])[:, 0]
    soft = -acceptance * logp[:, items.ACCEPT] - (1 - acceptance) * logp[:, items.REFUSE]
    is_answer = ((target == items.ACCEPT) | (target == items.REFUSE)) & (acceptance >= 0)
    return (torch.where(is_answer, soft, entropy) * batch.weight[1:]).sum() / batch.weight.sum()


def draw(draws: random.Random, fixed: dict[str, items.Facts], size: int) -> items.Batch:
    """Return a batch of documents and chats; the shorter and the longer chats are padded apart, which wastes less."""
    documents = round(size * items.DOCUMENT_SHARE)
    written = [items.document(draws, fixed) for _ in range(documents)]
    chats = sorted((items.chat(draws, fixed) for _ in range(size - documents)), key=lambda chat: len(chat.words))
    half = len(chats) // 2
    return items.batch([group for group in (written, chats[:half], chats[half:]) if group])


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
    log, tokens, start = [], 0, time.monotonic()
    for step in range(tiny["trunk_steps"]):
        factor = min(1.0, (step + 1) / WARMUP_STEPS, (tiny["trunk_steps"] - step) / (COOLDOWN * tiny["trunk_steps"]))
        batch = draw(draws, fixed, tiny["batch"])
        value = loss(double, batch)
        value.backward()
        portable.clip_gradients([*matrices, *others], 1.0)
        for optimizer, rate in zip(optimizers, rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * factor
            optimizer.step()
            optimizer.zero_grad()
        tokens += len(batch.texts.ids)
        if step % 10 == 9 or step + 1 == tiny["trunk_steps"]:
            log.append({"step": step + 1, "loss": value.item(), "rate": rates[0] * factor, "tokens": tokens,
                        "seconds": time.monotonic() - start})  # fmt: skip
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
