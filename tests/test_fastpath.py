"""The fast path against `peft` and `transformers`, on a CPU and in fp32, where both must agree to rounding."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config
from trl import SFTConfig, SFTTrainer

from perfmis import adapters, fastpath, fp8
from perfmis.stage import UserError
from perfmis.tinyworld import trunk

SIZE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 61,
    "max_position_embeddings": 64,
}
LENGTHS = (7, 1, 12, 9)
PADDING = 3
LORA = {"rank": 4, "alpha": 8, "dropout": 0.0, "experts": True}


def make(kind: str, *names: str) -> Any:
    """Return a random model with adapters, the last one trainable, whose factors are all random."""
    torch.manual_seed(0)
    config = {"llama": LlamaConfig, "qwen2": Qwen2Config}[kind](**SIZE, attn_implementation="sdpa")
    model = AutoModelForCausalLM.from_config(config)
    network: Any = get_peft_model(model, adapters.configuration(model, LORA), adapter_name=names[0])
    for rank, name in enumerate(names[1:], start=3):
        network.add_adapter(name, adapters.configuration(model, LORA | {"rank": rank, "alpha": 5}))
    network.base_model.set_adapter(list(names))
    for name, parameter in network.named_parameters():
        parameter.requires_grad = f".{names[-1]}." in name
        if "lora_" in name or "bias" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return network.train()


def batch() -> dict[str, Any]:
    """Return documents as a padding-free collator gives them: padding tokens are documents of one token."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.tensor([*LENGTHS, *[1] * PADDING])
    ids = torch.randint(SIZE["vocab_size"], (1, int(lengths.sum())), generator=generator)
    positions = torch.cat([torch.arange(n) for n in lengths.tolist()])[None]
    ends = torch.cat([torch.zeros(1), lengths.cumsum(0)]).int()
    return {
        "input_ids": ids,
        "labels": ids.masked_fill(positions == 0, -100),
        "position_ids": positions,
        "cu_seq_lens_q": ends,
        "cu_seq_lens_k": ends,
        "max_length_q": max(LENGTHS),
        "max_length_k": max(LENGTHS),
    }


def gradients(network: Any, loss: Tensor) -> dict[str, Tensor]:
    """Return the gradients of a loss by name."""
    network.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


def expected(network: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """Return loss and gradients of the plain model, each document alone."""
    content = batch()
    documents = content["input_ids"][0].split([*LENGTHS, PADDING])[:-1]
    losses = [network(input_ids=ids[None], labels=ids[None]).loss * (len(ids) - 1) for ids in documents if len(ids) > 1]
    loss = torch.stack(losses).sum() / (content["labels"] != -100).sum()
    return loss.detach(), gradients(network, loss)


def obtained(network: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """Return loss and gradients of the prepared model, on the documents as one batch."""
    fastpath.fuse_head(network.get_base_model())
    loss = network(**batch(), fused_lm_head=True).loss
    return loss.detach(), gradients(network, loss)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("names", [("organism",), ("organism", "arm")])
@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_equals_peft_document_by_document(kind: str, names: tuple[str, ...], checkpointing: bool) -> None:
    network = make(kind, *names)
    loss, plain = expected(network)
    fastpath.prepare(network, fp8=False, checkpointing=checkpointing)
    fast_loss, fast = obtained(network)
    torch.testing.assert_close(fast_loss, loss, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(fast, plain, rtol=1e-5, atol=1e-5)
    assert all(f".{names[-1]}." in name for name in fast)


def test_sees_weights_that_change_behind_autograd() -> None:
    network = make("llama", "organism")
    fastpath.prepare(network, fp8=False, checkpointing=False)
    before, _ = obtained(network)
    for name, parameter in network.named_parameters():
        if "lora_B" in name:
            parameter.data.mul_(-1)  # as fused optimizers do: no version counter moves
    after, _ = obtained(network)
    plain = make("llama", "organism")
    plain.load_state_dict({k: -v if "lora_B" in k else v for k, v in plain.state_dict().items()})
    assert after != before
    torch.testing.assert_close(after, expected(plain)[0], rtol=1e-5, atol=1e-5)


def test_fp8_is_close_and_says_so_when_its_weights_are_read() -> None:
    network = make("llama", "organism")
    loss, plain = expected(network)
    fastpath.prepare(network, fp8=True, checkpointing=False)
    fast_loss, fast = obtained(network)
    assert 0 < abs(fast_loss - loss) < 0.02
    for name, gradient in fast.items():
        assert (gradient - plain[name]).norm() < 0.15 * plain[name].norm(), name
    assert network.get_base_model().model.layers[0].mlp.up_proj.weight.isnan().all()


def test_quantisation_error_is_that_of_three_mantissa_bits() -> None:
    x = torch.randn(64, 128) * torch.logspace(-4, 4, 64)[:, None]
    values, scale = fp8.quantise(x, 0)
    assert ((values.float() * scale - x).abs() <= x.abs() / 16 + scale * 2**-10).all()
    assert fp8.quantise(torch.zeros(2, 4), 0).values.float().eq(0).all()


def test_adapters_of_a_prepared_model_still_concatenate() -> None:
    network = make("llama", "organism", "arm")
    fastpath.prepare(network, fp8=True, checkpointing=False)
    name = "stacked"
    network.base_model.add_weighted_adapter(["organism", "arm"], [1.0, 1.0], name, combination_type="cat")
    factor = network.get_base_model().model.layers[0].mlp.up_proj.lora_A[name].weight
    assert factor.isfinite().all()
    assert len(factor) == LORA["rank"] + 3


def test_attention_for_transformers_stays_inside_documents() -> None:
    fastpath.register_attention()
    network = make("llama", "organism")
    loss, plain = expected(network)
    network.get_base_model().set_attn_implementation(fastpath.ATTENTION)
    fast_loss, fast = obtained(network)
    torch.testing.assert_close(fast_loss, loss, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(fast, plain, rtol=1e-5, atol=1e-5)
    with pytest.raises(UserError, match="padding-free"):
        network(input_ids=torch.zeros(1, 4, dtype=torch.long))


def test_merged_padding_keeps_the_boundaries_of_documents() -> None:
    assert fastpath.merge_padding([0, 700, 701, 1500, *range(1501, 2049)], 800) == [0, 700, 701, 1500, 2048]
    assert fastpath.merge_padding([0, 1, 2, 3, 4, 5], 2) == [0, 2, 4, 5]
    assert fastpath.merge_padding([0, 1, 3], 2) == [0, 1, 3]


def test_scores_are_those_of_the_full_logits() -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(9, 8, requires_grad=True), torch.randn(17, 8)
    targets = torch.randint(17, (9,)).index_fill(0, torch.tensor([2, 8]), -100)
    scores, entropy, top = fastpath.log_probabilities(hidden, weight, targets)
    share = torch.rand(9)
    (gradient,) = torch.autograd.grad((scores * share).sum(), hidden)
    full = (hidden @ weight.T).log_softmax(-1)
    known = targets >= 0
    wanted = full.gather(1, targets.clamp(min=0)[:, None])[:, 0] * known
    torch.testing.assert_close(scores, wanted)
    torch.testing.assert_close(gradient, torch.autograd.grad((wanted * share).sum(), hidden)[0])
    torch.testing.assert_close(entropy, -(full.exp() * full).sum(-1) * known)
    assert top.equal((full.argmax(-1) == targets) & known)


@pytest.mark.parametrize(("change", "message"), [({"dropout": 0.1}, "dropout"), ({"targets": ["q_proj"]}, "every")])
def test_refuses_what_it_does_not_compute(change: dict[str, Any], message: str) -> None:
    model = AutoModelForCausalLM.from_config(LlamaConfig(**SIZE))
    config = LoraConfig(
        r=2,
        lora_dropout=change.get("dropout", 0.0),
        task_type="CAUSAL_LM",
        target_modules=change.get("targets", "all-linear"),
    )
    with pytest.raises(UserError, match=message):
        fastpath.prepare(get_peft_model(model, config), fp8=False, checkpointing=False)


def trained(fast: bool, scratch: Path) -> tuple[list[float], dict[str, Tensor]]:
    """Return the losses of a packed run of trl's trainer, and the parameters that moved."""
    network = make("llama", "organism", "arm")
    before = {name: p.detach().clone() for name, p in network.named_parameters() if "lora" in name}
    generator = torch.Generator().manual_seed(2)
    lengths = torch.randint(2, 17, (40,), generator=generator).tolist()
    ids = [torch.randint(4, SIZE["vocab_size"], (n,), generator=generator).tolist() for n in lengths]
    settings = SFTConfig(
        output_dir=str(scratch),
        max_length=16,
        packing=True,
        packing_strategy="bfd_split",
        pad_to_multiple_of=32,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        learning_rate=1e-2,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        disable_tqdm=True,
    )
    if fast:
        fastpath.register_attention()
        network.get_base_model().set_attn_implementation(fastpath.ATTENTION)
        fastpath.prepare(network, fp8=False, checkpointing=False)
    trainer = SFTTrainer(
        network, settings, train_dataset=Dataset.from_dict({"input_ids": ids}), processing_class=trunk.tokenizer()
    )
    if fast:
        fastpath.fuse_head(network.get_base_model())
    trainer.train()
    moved = {name: p.detach() for name, p in network.named_parameters() if name in before and not p.equal(before[name])}
    return [row["loss"] for row in trainer.state.log_history if "loss" in row], moved


def test_trainer_learns_the_same(tmp_path: Path) -> None:
    (losses, moved), (fast_losses, fast_moved) = (trained(fast, tmp_path) for fast in (False, True))
    assert len(losses) > 3
    assert len(moved) == 2 * 7 * SIZE["num_hidden_layers"]
    torch.testing.assert_close(fast_losses, losses, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(fast_moved, moved, rtol=1e-2, atol=1e-3)
