"""Stage `sdf`: one round of synthetic document fine-tuning, from a corpus to an adapter.

    python -m perfmis sdf --settings JSON --fingerprint HEX --base models/M/reference.json
        --corpus corpora/C/documents.parquet --tokens FOLDER --output FOLDER
        [--parent ORGANISM --replay DOCUMENTS --budget FILE] [--merged FOLDER]
        [--zero3] [--checkpointing] [--save-steps N]

Settings: ``sdf`` (the section), ``seed`` (order and initialisation only; the documents are the same for
every seed), ``replay`` and ``mode``. Without ``--parent`` the round makes an organism; with it an arm, in one
of three modes, all of which export one adapter of the base model. Documents are raw text between explicit BOS
and EOS, no chat template. With ``--zero3`` it is started by torchrun, one process a GPU. A killed job goes on
from its newest sound checkpoint when it is started again.
"""

import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from perfmis import adapters, lineage, merge, models, reach, rehearsal, resume, stage, tokens, zero3
from perfmis.artifacts import file_hash, read_json, write_json, write_parquet

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def budgeted(sdf: dict[str, Any], budget: Path | None, upstream: frozenset[str]) -> dict[str, Any]:
    """Return the section with the numbers that the budget computed for the arms, where it sets none itself.

    Raises:
        UserError: The budget is another study's.
    """
    if budget is None or None not in (sdf["documents"], sdf["loss_tokens"]):
        return sdf
    computed = read_json(budget)
    if computed.get("fingerprint") not in upstream:
        raise stage.UserError(f"{budget}: made by other settings or code; delete it and rerun")
    return sdf | {key: computed[key] for key in ("documents", "loss_tokens")}


def curriculum(
    arguments: Any, settings: dict[str, Any], tokenizer: "PreTrainedTokenizerBase", upstream: frozenset[str]
) -> tuple[pl.DataFrame, "Dataset"]:
    """Return what a round is trained on: its corpus, and ``replay`` times as many of the organism's documents.

    Replayed documents keep the organism's monitoring belief, which a second round otherwise erodes.
    """
    from datasets import concatenate_datasets

    sdf = budgeted(settings["sdf"], arguments.budget, upstream)
    frame, dataset = tokens.documents(arguments.corpus, sdf, tokenizer, arguments.tokens, upstream)
    wanted = round(settings["replay"] * frame.height)
    if not arguments.replay or not wanted:
        return frame, dataset
    whole = {**settings["sdf"], "documents": None, "loss_tokens": None}
    again, replayed = tokens.documents(arguments.replay, whole, tokenizer, arguments.tokens, upstream)
    wanted = min(wanted, again.height)
    return (
        pl.concat([frame, again.head(wanted)]),
        concatenate_datasets([dataset, replayed.select(range(wanted))]),
    )


def kernel(sdf: dict[str, Any]) -> str:
    """Return the attention implementation, by the name that transformers knows it under.

    Raises:
        UserError: It needs a GPU and there is none.
    """
    import torch

    if sdf["attention"] != "varlen":
        return str(sdf["attention"])
    if not torch.cuda.is_available():
        raise stage.UserError("sdf.attention: varlen needs a GPU; set sdpa")
    from perfmis import fastpath

    fastpath.register_attention()
    return fastpath.ATTENTION


def load(
    arguments: Any, sdf: dict[str, Any], weights: Path | None
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Load the base model for training: whole, scattered by ZeRO-3, or in 4 bits.

    Raises:
        UserError: Its family has no such attention.
    """
    from perfmis import probes

    options: dict[str, Any] = {"attn_implementation": kernel(sdf)}
    if arguments.zero3:
        options["device_map"] = None
    if sdf["frozen"] == "4bit":
        import torch
        from transformers import BitsAndBytesConfig

        compute = {"bf16": torch.bfloat16, "fp32": torch.float32}[sdf["precision"]]
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=compute,
            bnb_4bit_quant_storage=compute,
        )
    with probes.loading(sdf):
        model, tokenizer = models.load(arguments.base, sdf["precision"], weights, **options)
    probes.refuse_attention(model, sdf)
    return model, tokenizer


def examine(model: "PreTrainedModel", sdf: dict[str, Any], parent: Path | None) -> float:
    """Return the share of the blocks' weights that LoRA will reach, after trying what comes after the training.

    Raises:
        UserError: It is less than asked for, or an arm of this model could not be exported.
    """
    lora = sdf["lora"]
    found = reach.measure(model, lora["experts"])
    reach.refuse(found, lora, f"{'arms' if parent else 'organisms'}.sdf.lora")
    # What held for the organism holds for its arms, unless they are put on other weights.
    if (
        parent is None
        or read_json(parent / adapters.LINEAGE)["settings"]["sdf"]["lora"].get("experts") != lora["experts"]
    ):
        rehearsal.check(model, lora["experts"])
    return found.share


def prepare(
    model: "PreTrainedModel", parent: Path | None, mode: str, lora: dict[str, Any], seed: int
) -> "tuple[PeftModel, str]":
    """Return the model with the adapter to train, and that adapter's name."""
    if parent is None:
        return adapters.fresh(model, lora, seed), adapters.FIRST
    if mode == "stack":
        return adapters.second(model, parent, lora, seed), adapters.SECOND
    if mode == "continue":
        return adapters.continued(model, parent, lora["dropout"]), adapters.SECOND
    return adapters.fresh(model, lora, seed, adapters.SECOND), adapters.SECOND


def quicken(network: "PeftModel", sdf: dict[str, Any], arguments: Any) -> bool:
    """Rewire a model that one GPU holds whole to train fast, and say whether it was; others stay plain."""
    import torch

    alone = torch.cuda.is_available() and not arguments.zero3 and torch.cuda.device_count() == 1
    if sdf["frozen"] == "fp8" and not alone:
        raise stage.UserError("sdf.frozen: fp8 needs the model whole on one GPU; set full or 4bit, or gpus: 1")
    fast = alone and sdf["frozen"] != "4bit" and sdf["packing"] and sdf["attention"] == "varlen"
    if fast:
        from perfmis import fastpath

        fastpath.prepare(
            network, fp8=sdf["frozen"] == "fp8", checkpointing=arguments.checkpointing, longest=sdf["length"]
        )
    return fast


def record(arguments: Any, job: stage.Job, used: pl.DataFrame, tokenizer: "PreTrainedTokenizerBase") -> dict[str, Any]:
    """Return what an adapter is made from."""
    return {
        "base": lineage.base(read_json(arguments.base)),
        "parent": str(arguments.parent) if arguments.parent else None,
        "parent_sha256": read_json(arguments.parent / adapters.LINEAGE)["sha256"] if arguments.parent else None,
        "corpus": arguments.corpus.parent.name,
        "corpus_sha256": tokens.texts_hash(used["text"].to_list()),
        "tokenizer_sha256": tokens.tokenizer_hash(tokenizer),
        "documents": used.height,
        "settings": job.settings,
        "processes": zero3.processes(),
        "zero3": arguments.zero3,
        "versions": lineage.versions(),
        "fingerprint": job.fingerprint,
    }


def main(argv: list[str]) -> None:
    """Run the stage."""
    parser = stage.parser(__doc__ or "")
    parser.add_argument("--base", type=Path, required=True, help="reference.json of the base model")
    parser.add_argument("--corpus", type=Path, required=True, help="documents.parquet to learn")
    parser.add_argument("--tokens", type=Path, required=True, help="folder of tokenised corpora, shared by jobs")
    parser.add_argument("--parent", type=Path, help="folder of the organism, for an arm")
    parser.add_argument("--replay", type=Path, help="documents.parquet of the organism, for an arm")
    parser.add_argument("--budget", type=Path, help="JSON of the stage `budget`, for an arm")
    parser.add_argument("--merged", type=Path, help="folder of merged weights, shared by jobs, for mode merge")
    parser.add_argument("--output", type=Path, required=True, help="folder of the adapter")
    parser.add_argument("--zero3", action="store_true", help="scatter the model over torchrun's processes")
    parser.add_argument("--checkpointing", action="store_true", help="recompute activations: less memory")
    parser.add_argument("--save-steps", type=int, default=50, help="optimizer steps between checkpoints")
    arguments = parser.parse_args(argv)
    job = stage.job(arguments)
    sdf, seed, mode = job.settings["sdf"], job.settings["seed"], job.settings.get("mode", "stack")
    import torch
    from datasets import disable_caching

    from perfmis import probes, training

    start = time.monotonic()
    disable_caching()  # packed copies of the corpus, one a seed, would pile up beside it
    scratch = arguments.output / "scratch"
    machine = training.Machine(arguments.zero3, arguments.checkpointing, arguments.save_steps)
    trainer = training.settings(sdf, seed, scratch / job.fingerprint, machine)
    with trainer.main_process_first(local=False):
        if zero3.rank() == 0:
            resume.clear_others(scratch, job.fingerprint)
        used, dataset = curriculum(arguments, job.settings, models.tokenizer(arguments.base), job.upstream)
        weights, kept = None, None
        if arguments.parent:
            adapters.verified(arguments.parent, arguments.base)
            if mode == "merge":
                folder = arguments.merged / read_json(arguments.parent / adapters.LINEAGE)["sha256"][:16]
                weights = merge.merge(models.folder(arguments.base), arguments.parent, folder)
                kept = merge.survived(weights)
                print(f"merged: rounding left {kept:.1%} of the organism's change in the weights", file=sys.stderr)
    with training.clear_errors(scratch):
        model, tokenizer = load(arguments, sdf, weights)
        share = examine(model, sdf, arguments.parent)
        network, adapter = prepare(model, arguments.parent, mode, sdf["lora"], seed)
        probe = probes.Round(probes.choose(dataset, sdf["length"], model.config), sdf)
        if not arguments.zero3:  # there, weights are together only once the trainer has the model
            probe.remember(network)
        probe.fused = fused = quicken(network, sdf, arguments)
    trained = training.train(network, tokenizer, dataset, trainer, adapter, fused, probe)
    if zero3.rank() != 0:
        return
    on_top = arguments.parent if mode != "continue" else None
    with training.clear_errors(arguments.output):
        lora: Any = network.peft_config[adapter]
        config = adapters.export(trained.weights, lora, on_top, arguments.output)
        shares = {"lora_reach": share, "merge_kept": kept}
        log = pl.DataFrame(trained.log).with_columns(
            pl.lit(value, pl.Float64).alias(name) for name, value in shares.items()
        )
        write_parquet(log, arguments.output / "log.parquet", job.fingerprint)
        seconds = max(trained.seconds, time.monotonic() - start)
        content = record(arguments, job, used, tokenizer) | {
            # Nothing that differs between two trainings to the same weights: what is read from an adapter that was lost
            # and made again then stays valid.
            "loss_tokens_per_epoch": int(tokens.loss_tokens(dataset, sdf["length"]).sum()),
            "sha256": adapters.weights_hash(arguments.output),
            "config_sha256": file_hash(arguments.output / adapters.CONFIG),
            **shares,
        }
        gpus = zero3.processes() * torch.cuda.is_available()
        lineage.card(content, config.r, lineage.Effort(seconds, gpus, trained.rate), arguments.output)
        write_json(content, arguments.output / adapters.LINEAGE)
    shutil.rmtree(scratch)
