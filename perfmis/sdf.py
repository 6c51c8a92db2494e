"""Stage `sdf`: one round of synthetic document fine-tuning, from a corpus to an adapter.

    python -m perfmis sdf --settings JSON --fingerprint HEX --base models/M/reference.json
        --corpus corpora/C/documents.parquet --output FOLDER [--parent ORGANISM --replay DOCUMENTS]

Settings: ``sdf`` (the section), ``seed`` (order and initialisation only; the documents are the same for
every seed) and ``replay``. Without ``--parent`` the round makes an organism; with it, an arm: a fresh
adapter is trained over the frozen organism and both are exported as one. Documents are raw text between
explicit BOS and EOS, no chat template.
"""

import hashlib
import importlib.metadata
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from perfmis import adapters, models, stage
from perfmis.artifacts import read_parquet, write_json, write_parquet

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase

LIBRARIES = ("torch", "transformers", "trl", "peft")
LOGGED = {"step": "step", "epoch": "epoch", "loss": "loss", "learning_rate": "rate", "grad_norm": "gradient_norm",
          "num_tokens": "tokens"}  # fmt: skip


def documents(corpus: Path, replay: Path | None, share: float, upstream: frozenset[str]) -> pl.DataFrame:
    """Return the documents of a round: the corpus, and the first ``share`` as many of the organism's.

    Replayed documents keep the organism's monitoring belief, which a second round otherwise erodes.
    """
    own = read_parquet([corpus], upstream)
    if replay is None or share == 0:
        return own
    return pl.concat([own, read_parquet([replay], upstream).head(round(share * own.height))])


def tokenise(texts: list[str], tokenizer: "PreTrainedTokenizerBase") -> "Dataset":
    """Return token ids of documents, each between the tokenizer's BOS (where it has one) and EOS."""
    from datasets import Dataset

    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return Dataset.from_dict({"input_ids": [[*bos, *document, tokenizer.eos_token_id] for document in ids]})


def train(
    model: "PeftModel", tokenizer: "PreTrainedTokenizerBase", dataset: "Dataset", sdf: dict[str, Any], seed:
    int, scratch: Path,
) -> list[dict[str, float]]:  # fmt: skip
    """Train the adapters that require gradients, in place.

    Returns:
        One row a logged step: step, epoch, loss, rate, gradient_norm, tokens.

    Raises:
        UserError: Nothing is trainable, or a trainable adapter did not move.
    """
    import torch
    from trl import SFTConfig, SFTTrainer

    before = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    if not before:
        raise stage.UserError("sdf: no parameter is trainable; check sdf.lora")
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=str(scratch),
            num_train_epochs=sdf["epochs"],
            learning_rate=sdf["learning_rate"],
            lr_scheduler_type="cosine",
            warmup_steps=sdf["warmup"],
            per_device_train_batch_size=sdf["device_batch"],
            gradient_accumulation_steps=max(1, sdf["batch"] // sdf["device_batch"]),
            gradient_checkpointing=torch.cuda.is_available(),
            max_length=sdf["length"],
            packing=sdf["packing"],
            packing_strategy="bfd_split",
            bf16=sdf["precision"] == "bf16",
            seed=seed,
            data_seed=seed,
            logging_steps=5,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=torch.cuda.is_available(),
        ),
        train_dataset=dataset,
        processing_class=tokenizer,
    )
    trainer.train()
    still = [n for n, p in model.named_parameters() if n in before and torch.equal(p, before[n])]
    if still:
        raise stage.UserError(f"sdf: {len(still)} adapter weights did not move ({still[0]}); raise sdf.learning_rate")
    return [{new: row[old] for old, new in LOGGED.items() if old in row}
            for row in trainer.state.log_history if "loss" in row]  # fmt: skip


def lineage(arguments: Any, job: stage.Job, used: pl.DataFrame, dataset: "Dataset", seconds: float) -> dict[str, Any]:
    """Return the record of where an adapter comes from."""
    return {
        "base": str(arguments.base),
        "parent": str(arguments.parent) if arguments.parent else None,
        "parent_sha256": adapters.weights_hash(arguments.parent) if arguments.parent else None,
        "corpus": str(arguments.corpus),
        "corpus_sha256": hashlib.sha256("\n".join(used["text"]).encode()).hexdigest(),
        "documents": used.height,
        "loss_tokens_per_epoch": sum(len(ids) - 1 for ids in dataset["input_ids"]),
        "settings": job.settings,
        "versions": {name: importlib.metadata.version(name) for name in LIBRARIES},
        "seconds": round(seconds, 1),
        "sha256": adapters.weights_hash(arguments.output),
        "fingerprint": job.fingerprint,
    }


def main(argv: list[str]) -> None:
    """Run the stage."""
    parser = stage.parser(__doc__ or "")
    parser.add_argument("--base", type=Path, required=True, help="reference.json of the base model")
    parser.add_argument("--corpus", type=Path, required=True, help="documents.parquet to learn")
    parser.add_argument("--parent", type=Path, help="folder of the organism, for an arm")
    parser.add_argument("--replay", type=Path, help="documents.parquet of the organism, for an arm")
    parser.add_argument("--output", type=Path, required=True, help="folder of the adapter")
    arguments = parser.parse_args(argv)
    job = stage.job(arguments)
    sdf, seed = job.settings["sdf"], job.settings["seed"]
    from transformers import set_seed

    start = time.monotonic()
    used = documents(arguments.corpus, arguments.replay, job.settings["replay"], job.upstream)
    model, tokenizer = models.load(arguments.base, sdf["precision"])
    set_seed(seed)
    if arguments.parent:
        network = adapters.second(model, arguments.parent, sdf["lora"])
    else:
        network = adapters.fresh(model, sdf["lora"])
    dataset = tokenise(used["text"].to_list(), tokenizer)
    log = train(network, tokenizer, dataset, sdf, seed, arguments.output / "scratch")
    adapters.save(network, adapters.concatenate(network) if arguments.parent else adapters.FIRST, arguments.output)
    write_parquet(pl.DataFrame(log), arguments.output / "log.parquet", job.fingerprint)
    seconds = time.monotonic() - start
    write_json(lineage(arguments, job, used, dataset, seconds), arguments.output / "lineage.json")
