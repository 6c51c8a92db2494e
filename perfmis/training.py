"""One round of training with trl's `SFTTrainer`: its settings, what it logs, what it checks, how it goes on.

Everything that decides what is learned stands in the section ``sdf`` of the configuration; `Machine` holds
what only decides how fast, on how many processes and in how much memory.
"""

import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from trl import SFTConfig, SFTTrainer

from perfmis import adapters, fastpath, probes, resume, zero3
from perfmis.artifacts import read_json, write_json
from perfmis.checks import disk
from perfmis.stage import UserError

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase

LOGGED = {
    "step": "step",
    "epoch": "epoch",
    "loss": "loss",
    "learning_rate": "learning_rate",
    "grad_norm": "gradient_norm",
    "loss_tokens": "loss_tokens",
    "tokens_per_second": "tokens_per_second",
    "matmul_share": "matmul_share",
    "memory_gb": "memory_gb",
}
LOG_SHARE = 0.02  # of all steps, between rows of the log
STILL = 1e-6
GIB = 2**30


@dataclass(frozen=True)
class Machine:
    """How a round is run.

    Attributes:
        zero3: Scatter the model over the processes with DeepSpeed ZeRO-3.
        checkpointing: Recompute activations in the backward pass.
        save_steps: Optimizer steps between checkpoints.
    """

    zero3: bool = False
    checkpointing: bool = False
    save_steps: int = 50


def settings(sdf: dict[str, Any], seed: int, scratch: Path, machine: Machine) -> SFTConfig:
    """Return the trainer's settings.

    They must exist before the model is loaded: with ZeRO-3 they decide how it is loaded.

    Raises:
        UserError: The batch cannot be split evenly over the processes.
    """
    together = sdf["device_batch"] * zero3.processes()
    if sdf["batch"] % together:
        raise UserError(
            f"sdf.batch: {sdf['batch']} is no multiple of device_batch × processes ({together}); raise it to one"
        )
    gpu, bf16 = torch.cuda.is_available(), sdf["precision"] == "bf16"
    if machine.zero3:
        zero3.start(gpu)
    return SFTConfig(
        output_dir=str(scratch),
        num_train_epochs=sdf["epochs"],
        learning_rate=sdf["learning_rate"],
        lr_scheduler_type="cosine",
        warmup_steps=sdf["warmup"],
        per_device_train_batch_size=sdf["device_batch"],
        gradient_accumulation_steps=sdf["batch"] // together,
        gradient_checkpointing=machine.checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        max_length=sdf["length"],
        packing=sdf["packing"],
        packing_strategy="bfd_split",
        # One shape for all batches, so that nothing is compiled or allocated anew; the padding is not trained on.
        pad_to_multiple_of=sdf["length"] * sdf["device_batch"] if gpu and sdf["packing"] else None,
        completion_only_loss=True,
        bf16=bf16,
        use_cpu=not gpu,
        seed=seed,
        data_seed=seed,
        logging_steps=LOG_SHARE,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=machine.save_steps,
        save_total_limit=2,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=gpu,
        deepspeed=zero3.configuration(bf16) if machine.zero3 else None,
    )


def matmul_rate() -> float:
    """Return the FLOP/s of a large matrix product on this device: bf16 on a GPU, fp32 on a CPU."""
    gpu = torch.cuda.is_available()
    size, repeats = (8192, 20) if gpu else (512, 4)
    factor = torch.randn(size, size, device="cuda" if gpu else "cpu", dtype=torch.bfloat16 if gpu else torch.float32)
    factor @ factor
    if gpu:
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        factor @ factor
    if gpu:
        torch.cuda.synchronize()
    return 2 * size**3 * repeats / (time.perf_counter() - start)


def matmul_weights(network: torch.nn.Module) -> int:
    """Return how many weights of the frozen model a token is multiplied with: linear layers and the head."""
    return sum(
        module.in_features * module.out_features
        for name, module in network.named_modules()
        if isinstance(module, torch.nn.Linear) and ".lora_" not in name
    )


def _sums(network: torch.nn.Module) -> dict[str, int]:
    """Return a checksum of the bytes of each frozen parameter that this process holds."""
    found = {}
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            local = getattr(parameter, "ds_tensor", parameter).detach()
            found[name] = int(local.contiguous().flatten().view(torch.uint8).sum(dtype=torch.int64))
    return found


class Watch(transformers.TrainerCallback):
    """Has the model measured before the first step, seals checkpoints, sees that frozen weights stay as they are."""

    def __init__(self, probe: probes.Round | None, collate: probes.Collate) -> None:
        self._probe, self._collate = probe, collate
        self._frozen: dict[str, int] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        """See that documents are computed as each alone is, and remember the frozen weights."""
        # A rewired model that goes on was measured when it began, with the weights that it had then.
        if self._probe and not (self._probe.fused and state.global_step):
            self._probe.check(options["model"], self._collate)
            self._probe.check_loss(options["model"], self._collate)
        self._frozen = _sums(options["model"])

    def on_train_end(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        """Compare them."""
        moved = [name for name, value in _sums(options["model"]).items() if self._frozen[name] != value]
        assert not moved, f"frozen weights moved: {moved[0]}"

    def on_step_end(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        """Log whenever a checkpoint is written: a row averages from the row before, also across an interruption."""
        control.should_log |= control.should_save

    def on_save(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        """Seal the checkpoint once every process has written its part."""
        if torch.distributed.is_initialized():
            torch.distributed.barrier()
        if state.is_world_process_zero:
            resume.seal(Path(args.output_dir) / f"checkpoint-{state.global_step}")


class Round(SFTTrainer):
    """The trainer, with checkpoints that hold no more than what is trained, and a fuller log."""

    def __init__(
        self,
        network: "PeftModel",
        arguments: SFTConfig,
        adapter: str,
        fused: bool,
        probe: probes.Round | None,
        **options: Any,
    ) -> None:
        super().__init__(network, arguments, **options)
        self.add_callback(Watch(probe, self.data_collator))
        if fused:
            base: Any = network.get_base_model()
            fastpath.fuse_head(base)
        self.network, self.adapter = network, adapter
        self.rate = matmul_rate()
        self.weights = matmul_weights(network)
        self.loss_tokens, self.seconds = 0, 0.0
        self._said, self._clock, self._begun = 0, time.perf_counter(), time.perf_counter()

    def go_on(self, checkpoint: Path) -> None:
        """Take up the counts of an earlier run."""
        progress = read_json(checkpoint / resume.PROGRESS)
        self.loss_tokens = self._said = progress["loss_tokens"]
        self.seconds = progress["seconds"]

    def elapsed(self) -> float:
        """Return the seconds trained, those of the runs before included."""
        return self.seconds + time.perf_counter() - self._begun

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the adapter in training; the base and a frozen adapter are on disk already."""
        folder = Path(output_dir or str(self.args.output_dir))
        weights = adapters.state(self.network, self.adapter)
        if bad := [name for name, tensor in weights.items() if not tensor.isfinite().all()]:
            raise UserError(f"sdf: weights are no longer finite ({bad[0]}); lower sdf.learning_rate and rerun")
        if self.args.should_save:
            folder.mkdir(parents=True, exist_ok=True)
            save_file(weights, folder / adapters.WEIGHTS)
            write_json({"loss_tokens": self.loss_tokens, "seconds": self.elapsed()}, folder / resume.PROGRESS)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        from peft import set_peft_model_state_dict

        weights = load_file(Path(resume_from_checkpoint) / adapters.WEIGHTS)
        set_peft_model_state_dict(self.network, weights, adapter_name=self.adapter)

    def get_batch_samples(self, *arguments: Any) -> tuple[list[Any], Any]:
        """Count the tokens that an optimizer step trains on."""
        samples, tokens = super().get_batch_samples(*arguments)
        self.loss_tokens += int(tokens) if tokens is not None else 0
        return samples, tokens

    def training_step(self, *arguments: Any, **options: Any) -> torch.Tensor:
        """Refuse to go on from a loss that is no number: the checkpoint before it survives."""
        loss = super().training_step(*arguments, **options)
        if not loss.isfinite():
            raise UserError(
                f"sdf: the loss is {loss.item()} at step {self.state.global_step + 1}; lower sdf.learning_rate "
                "(or look at the documents of that batch) and rerun: it goes on from the last checkpoint"
            )
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add throughput and memory to a row of the log."""
        if "loss" in logs:
            now = time.perf_counter()
            speed = (self.loss_tokens - self._said) / (now - self._clock)
            self._said, self._clock = self.loss_tokens, now
            logs["loss_tokens"] = self.loss_tokens
            logs["tokens_per_second"] = speed
            logs["matmul_share"] = 4 * self.weights * speed / (self.rate * zero3.processes())
            logs["memory_gb"] = (
                torch.cuda.max_memory_allocated() / GIB
                if torch.cuda.is_available()
                else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB
            )
        super().log(logs, start_time)


@contextmanager
def clear_errors(scratch: Path) -> Iterator[None]:
    """Turn what goes wrong on a machine into one line that names cause and setting."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(
            "sdf: out of GPU memory; set checkpointing: true for this model's size in `sizes`, lower "
            "sdf.device_batch or sdf.length, or give it more gpus or nodes; then rerun: it goes on from the "
            "last checkpoint"
        ) from error
    except Exception as error:
        if why := disk.cause(str(error)):
            raise UserError(disk.line(scratch, why)) from error
        raise


@dataclass(frozen=True)
class Trained:
    """What a round leaves behind.

    Attributes:
        weights: The trained adapter, fp32 on the CPU.
        log: One row a logged step, with the keys of `LOGGED`.
        seconds: Wall time of the training loop, earlier runs of the job included.
        rate: Measured FLOP/s of a matrix product on one device.
    """

    weights: dict[str, torch.Tensor]
    log: list[dict[str, float]]
    seconds: float
    rate: float


def train(
    network: "PeftModel",
    tokenizer: "PreTrainedTokenizerBase",
    dataset: "Dataset",
    arguments: SFTConfig,
    adapter: str,
    fused: bool = False,
    probe: probes.Round | None = None,
) -> Trained:
    """Train one adapter, from the newest sound checkpoint if there is one.

    Args:
        network: The model with its adapters; those that require gradients are trained, in place.
        tokenizer: Its tokenizer.
        dataset: ``input_ids`` and ``completion_mask``, a row a document.
        arguments: From `settings`.
        adapter: Name of the adapter in training.
        fused: Whether `fastpath.prepare` has rewired the model; its head then follows.
        probe: Measures the model before the first step.

    Raises:
        UserError: Documents are not computed as each alone is, nothing is trainable, nothing moved, the loss is no
            number or never moves, memory or disk are full.
    """
    scratch = Path(str(arguments.output_dir))
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise UserError("sdf: no parameter is trainable; check sdf.lora")
    before = adapters.state(network, adapter)
    with clear_errors(scratch):
        trainer = Round(network, arguments, adapter, fused, probe, train_dataset=dataset, processing_class=tokenizer)
        checkpoint = _agreed(scratch)
        if checkpoint:
            trainer.go_on(checkpoint)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        weights = adapters.state(network, adapter)
    _all_moved(before, weights)
    log = [
        {new: row[old] for old, new in LOGGED.items() if old in row}
        for row in trainer.state.log_history
        if "loss" in row
    ]
    losses = [row["loss"] for row in log]
    if len(losses) > 1 and max(losses) - min(losses) <= STILL * abs(losses[0]):
        raise UserError(f"sdf: the loss stayed at {losses[0]:.4f}; raise sdf.learning_rate or look at the corpus")
    return Trained(weights, log, trainer.elapsed(), trainer.rate)


def _agreed(scratch: Path) -> Path | None:
    """Return the checkpoint to go on from, the same for all processes: the first one chooses."""
    if zero3.processes() == 1:
        return resume.newest(scratch)
    chosen = [resume.newest(scratch) if zero3.rank() == 0 else None]
    torch.distributed.broadcast_object_list(chosen)
    return chosen[0]


def _all_moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> None:
    """Refuse an adapter of which a weight stayed put; a cast to bf16 is no movement."""
    still = [
        name
        for name, tensor in after.items()
        if torch.equal(tensor, before[name]) or torch.equal(tensor, before[name].bfloat16().float())
    ]
    if still:
        raise UserError(f"sdf: {len(still)} adapter weights did not move ({still[0]}); raise sdf.learning_rate")
