"""What holds of each decoder family of `transformers`, measured on a tiny random model of it."""

from typing import Any

import pytest
import torch
from families import FAMILIES, SHAPE, make
from peft import LoraConfig, get_peft_model

from perfmis import beliefs, fastpath, vectors
from perfmis.decoders import blocks
from perfmis.engines import layers
from perfmis.engines.interface import Steering
from perfmis.engines.transformers import Engine, steered
from perfmis.stage import UserError
from perfmis.tinyworld import trunk

MAMBAS = ("falcon_h1", "mamba")  # peft refuses their output projections
every_family = pytest.mark.parametrize("family", FAMILIES)


@every_family
def test_steering_moves_the_stream_of_its_own_row(family: str) -> None:
    """At the steered block by alpha of its norm along the vector; at none before it, and not in the other row."""
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
    states, single = (vectors.activations(asked, TEXTS, [0], batch)[0] for batch in (3, 1))
    torch.testing.assert_close(states, single, rtol=1e-4, atol=1e-4)


@every_family
def test_own_decoder_and_fast_path_know_a_family_or_say_so(family: str) -> None:
    """What is not known is refused by name; nothing ends in an AttributeError."""
    own = family in layers.FAMILIES
    assert layers.known(make(family, head_dim=16) if own else make(family)) == own
    assert not own or not refusal(family)


def refusal(family: str) -> str:
    """Return why the fast path does not take a family; nothing where it does."""
    model = make(family)
    names = [name for name, part in model.named_modules() if type(part) is torch.nn.Linear and "out_proj" not in name]
    network = get_peft_model(model, LoraConfig(r=4, target_modules=names if family in MAMBAS else "all-linear"))
    try:
        fastpath.prepare(network, fp8=False, checkpointing=False)
    except UserError as error:
        return str(error)
    return ""
