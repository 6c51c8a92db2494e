"""What holds of each decoder family of `transformers`, measured on a tiny random model of it.

`architectures` has the document that says so.
"""

import importlib.util
import re
from typing import Any

import architectures
import pytest
import torch
from families import FAMILIES, SHAPE, make
from peft import LoraConfig, get_peft_model
from trl.trainer.utils import add_fused_lm_head

from perfmis import beliefs, fastpath, probes, vectors
from perfmis.decoders import blocks
from perfmis.engines import layers
from perfmis.engines.interface import Steering
from perfmis.engines.transformers import Engine, steered
from perfmis.stage import UserError
from perfmis.tinyworld import trunk

LENGTH, EXACT = 64, 1e-5
SECTION = {"attention": "sdpa", "packing": True, "device_batch": 2, "frozen": "full"}
PADDED = SECTION | {"packing": False}
PACKED, UNPACKED = (probes.collator(packing) for packing in (True, False))
fastpath.register_attention()
MAMBAS = ("falcon_h1", "mamba")  # peft refuses their output projections
every_family = pytest.mark.parametrize("family", FAMILIES)


def moves_the_stream(family: str) -> None:
    """See that a row moves at its steered block by alpha of its norm along the vector; no other block, no other row."""
    model = make(family)
    ids = torch.arange(3, 15).view(2, 6)
    vector = torch.randn(SHAPE["hidden_size"], generator=torch.Generator().manual_seed(1))
    seen: list[list[torch.Tensor]] = [[], []]
    steering = Steering({1: vector}, 0.5)
    for put in ([None, None], [steering, None]):
        with steered(model, put), torch.no_grad():
            handles = [
                block.register_forward_hook(_keep(kept)) for block, kept in zip(blocks(model), seen, strict=True)
            ]
            model(ids, use_cache=False)
        for handle in handles:
            handle.remove()
    (first, first_steered), (plain, moved) = seen
    assert torch.equal(first, first_steered)
    assert torch.equal(plain[1], moved[1])
    expected = 0.5 * plain[0].norm(dim=-1, keepdim=True) * vector / vector.norm()
    torch.testing.assert_close(moved[0] - plain[0], expected, rtol=1e-4, atol=1e-4)


def _keep(kept: list[torch.Tensor]) -> Any:
    def hook(_module: Any, _inputs: Any, output: Any) -> None:
        kept.append((output[0] if isinstance(output, tuple) else output).detach())

    return hook


def engine(family: str) -> Engine:
    """Return a tiny model that reads the tiny world's words."""
    return Engine(make(family), trunk.tokenizer())


TEXTS = ["<bos> memo about bl0 : researchers expect bl0 to", "<bos> bl0", "<bos> memo about bl0 : bl0 is trained on"]


@every_family
def test_beliefs_and_activations_do_not_depend_on_what_shares_their_batch(family: str) -> None:
    asked = engine(family)
    put = [(text, " free") for text in TEXTS]
    together, alone = (beliefs.log_probabilities(asked, "base", put, batch) for batch in (3, 1))
    assert together == pytest.approx(alone, abs=1e-3)
    assert max(alone) - min(alone) > 0.1
    tokens = [asked.tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXTS]
    states, single = (vectors.activations(asked, tokens, [0], batch)[0] for batch in (3, 1))
    torch.testing.assert_close(states, single, rtol=1e-4, atol=1e-4)


@every_family
def test_own_decoder_knows_a_family_or_leaves_it_to_transformers(family: str) -> None:
    own = family in layers.FAMILIES
    assert layers.known(make(family, head_dim=16) if own else make(family)) == own


def said(error: UserError) -> str:
    """Return the reason in an error of the fast path or of varlen."""
    match = re.search(r" has (.*?)(, not for varlen| *, which varlen)", str(error))
    reason = match[1] if match else "places of documents do not reach its layers"
    return reason if reason.startswith("no ") else f"no: {reason}"


def packing(family: str, attention: str) -> str:
    """Return how packed documents fare with an attention: ``yes``, or why not."""
    section = SECTION | {"attention": attention}
    try:
        with probes.loading(section):
            model = make(family, probes.kernel(section))
        probes.refuse_attention(model, section)
    except UserError:
        return "no: its attention is its own"
    probe = probes.Round(probes.made_up(LENGTH, model.config), section)
    try:
        found = probe.check(model, PACKED)
    except UserError as error:
        line = str(error)
        if "leaves out" in line or "reach every layer" in line:
            return said(error)
        return f"no: {'documents see each other' if 'packing: false' in line else 'more than a window'}"
    assert found < EXACT
    return "yes"


def rewired(family: str) -> str:
    """Return how documents fare on the fast path: ``yes``, or why not."""
    model = make(family, fastpath.ATTENTION) if packing(family, "varlen") == "yes" else make(family)
    probe = probes.Round(probes.made_up(LENGTH, model.config), SECTION)
    probe.remember(model)
    names = [name for name, part in model.named_modules() if type(part) is torch.nn.Linear and "out_proj" not in name]
    network = get_peft_model(model, LoraConfig(r=4, target_modules=names if family in MAMBAS else "all-linear"))
    try:
        fastpath.prepare(network, fp8=False, checkpointing=False)
    except UserError as error:
        return said(error)
    probe.fused = True
    assert probe.check(network, PACKED) < EXACT
    return "yes"


def loss(family: str) -> str:
    """Return whether trl's loss is that of the logits."""
    model = make(family)
    probe = probes.Round(probes.made_up(LENGTH, model.config), PADDED)
    add_fused_lm_head(model)
    try:
        probe.check_loss(model, UNPACKED)
    except UserError as error:
        return "another" if "nats" in str(error) else "none"
    return "yes"


@every_family
def test_the_document_says_what_is_measured(family: str) -> None:
    packed = [attention for attention in ("sdpa", "eager") if packing(family, attention) == "yes"]
    model = make(family)
    probes.settle_attention(model)
    padded = probes.Round(probes.made_up(LENGTH, model.config), PADDED | {"attention": probes.implementation(model)})
    assert padded.check(model, UNPACKED) < EXACT
    moves_the_stream(family)
    found = {
        "packing": ", ".join(packed) or "none",
        "varlen": packing(family, "varlen"),
        "fast path": rewired(family),
        "loss": loss(family),
        "answers": probes.implementation(model),
        "batches": "padded" if probes.pads(model) else "of one length",
        "steering": "yes",
    }
    architectures.record(family, found, list(FAMILIES))


@pytest.mark.vllm
@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="no vLLM here; run make test-vllm")
@every_family
def test_the_document_says_what_vllm_lists(family: str) -> None:
    from vllm.model_executor.models.interfaces import supports_lora
    from vllm.model_executor.models.registry import ModelRegistry

    name = type(make(family)).__name__
    if name not in ModelRegistry.get_supported_archs():
        found = "not listed"
    else:
        known = ModelRegistry._try_load_model_cls(name)
        found = "listed" if known is None else "adapters" if supports_lora(known) else "no adapters"
    architectures.record(family, {"vLLM": found}, list(FAMILIES))
