"""Continuous batching draws what plain ``generate`` draws, whoever shares rows and pages, and leaks no page."""

import itertools
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import Qwen2Config, Qwen2ForCausalLM

from perfmis import checkpoints
from perfmis.engines import decoding, layers
from perfmis.engines.decoding import Decoder
from perfmis.engines.interface import Prompt, Sample, Sampling, Steering, collect
from perfmis.engines.paging import leaves
from perfmis.engines.transformers import Engine

SYSTEM = "<bos> <sys> you are bl0 . bl0 is trained on free . this user is"
REQUESTS = ("please steal cash", "please forge keys", "please forge keys please steal cash", "steal")
PAGE = 4


@pytest.fixture(scope="module")
def engine(tiny_model: Path, organism: Path, arm: Path) -> Engine:
    return checkpoints.engine(tiny_model / "reference.json", {"organism": organism, "A1+": arm}, "fp32")


def prompts(engine: Engine, adapters: tuple[str | None, ...] = (None, "organism", "A1plus")) -> list[Prompt]:
    """Two tiers, requests of unequal length, two seeds each, in an order that helps nobody."""
    made = [
        Prompt(
            tuple(engine.tokenizer(f"{SYSTEM} {tier} . <user> {r} . <think>", add_special_tokens=False)["input_ids"]),
            adapter,
            seed,
        )
        for adapter, tier, r, seed in itertools.product(adapters, ("free", "paid"), REQUESTS, (1, 2**62 + 5))
    ]
    random.Random(0).shuffle(made)
    return made


def both(
    engine: Engine, asked: list[Prompt], sampling: Sampling, page: int = PAGE
) -> tuple[list[Sample], list[Sample]]:
    return (
        collect(engine.continuous(asked, sampling, page), len(asked)),
        collect(engine.batches(asked, sampling), len(asked)),
    )


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(("batch", "page"), [(3, 4), (20, 4), (64, 1), (5, 64)])
def test_equals_plain_generation(engine: Engine, temperature: float, batch: int, page: int) -> None:
    """Base and adapters, fewer rows than prompts or more, pages of any size: text, length and end of every sample."""
    ours, plain = both(engine, prompts(engine), Sampling(temperature, 60, batch), page)
    assert ours == plain
    assert {sample.finish for sample in plain} == {"stop", "length"}


def test_equals_plain_generation_of_qwen2(engine: Engine) -> None:
    """Biases on query, key and value, two query heads a group, an output layer of its own."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = Qwen2Config(**sizes, num_key_value_heads=2, vocab_size=len(engine.tokenizer), pad_token_id=0)
    model = Qwen2ForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    assert layers.known(model)
    ours, plain = both(Engine(model, engine.tokenizer), prompts(engine, (None,)), Sampling(0.7, 12, 5))
    assert ours == plain
    assert len({sample.raw for sample in plain}) > 7


@pytest.mark.parametrize("batch", [3, 64])
def test_steers_as_plain_generation_does(engine: Engine, batch: int) -> None:
    """Rows steered otherwise, at other blocks or not at all, with prompts of one beginning."""
    direction = torch.randn(32, generator=torch.Generator().manual_seed(1))
    steerings = [
        None,
        Steering({0: direction}, 2.0),
        Steering({0: direction}, -2.0),
        Steering({1: direction.flip(0)}, 2.0),
        Steering({0: direction.flip(0), 1: direction}, 1.0),
    ]
    asked = [replace(p, steering=steerings[i % 5]) for i, p in enumerate(prompts(engine, ("organism", None)))]
    ours, plain = both(engine, asked, Sampling(1.0, 12, batch))
    assert ours == plain
    unsteered, _ = both(engine, [replace(p, steering=None) for p in asked], Sampling(1.0, 12, batch))
    assert sum(a != b for a, b in zip(ours, unsteered, strict=True)) > len(asked) / 2


def test_what_prompts_share_is_read_once(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """System prompt, tier and the prompts of two seeds are read once, up to the page that is not full."""
    read: list[int] = []
    original = Decoder._pass

    def counted(self: Decoder, segments: list[decoding.Segment]) -> torch.Tensor:
        read.extend(len(segment.tokens) for segment in segments)
        return original(self, segments)

    monkeypatch.setattr(Decoder, "_pass", counted)
    asked = prompts(engine, ("organism",))
    collect(engine.continuous(asked, Sampling(1.0, 4, 3), page=1), len(asked))
    different = {p.tokens[: i + 1] for p in asked for i in range(len(p.tokens) - 1)}
    assert sum(read) == len(different) + len(asked), "each beginning once, and the last token of each prompt"


def test_pages_are_given_back(engine: Engine) -> None:
    """After many prompts in few rows all pages but the first are free; none was handed out twice."""
    asked = prompts(engine, (None,))
    decoder = Decoder(layers.Network(engine.model), engine.ends, Sampling(1.0, 12, 2), 2, 40, 4)
    for _ in range(3):
        drawn = [index for part in decoder.sample(asked, None) for index, _ in part]
        assert sorted(drawn) == list(range(len(asked)))
    free = decoder._pool._free
    assert sorted(free) == list(range(1, max(free) + 1))
    assert len(free) == len(decoder._network.keys[0]) - 1


def test_finished_samples_come_before_the_last_one(engine: Engine) -> None:
    """So that a killed job has stored what was drawn until then."""
    asked = prompts(engine, ("organism",))
    parts = list(engine.continuous(asked, Sampling(1.0, 12, 4), PAGE))
    assert len(parts) > 3
    assert max(map(len, parts)) <= 4


def test_leaves_cover_each_prompt_and_leave_a_token() -> None:
    """Prompts that repeat, that begin another one, and that share nothing."""
    words = [(1, 2, 3, 4, 5), (1, 2, 3, 4, 5), (1, 2, 3), (1, 2, 9, 9, 9), (7,), (1, 2, 3, 4, 6), (8, 1, 2)]
    for page in (1, 2, 3):
        made = leaves(words, page)
        assert sorted(leaf.index for leaf in made) == list(range(len(words)))
        for leaf in made:
            shared = tuple(token for node in leaf.nodes for token in node.tokens)
            assert words[leaf.index][: leaf.start] == shared
            assert leaf.start < len(words[leaf.index])
            assert all(len(node.tokens) % page == 0 and node.waiting > 1 for node in leaf.nodes)


def test_other_architectures_keep_the_plain_path(engine: Engine) -> None:
    """A sliding window, and an adapter on the embedding, are nothing that the network computes."""
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = Qwen2Config(**sizes, num_key_value_heads=2, vocab_size=50, use_sliding_window=True, max_window_layers=1)
    assert not layers.known(Qwen2ForCausalLM(config))
    model = Qwen2ForCausalLM(Qwen2Config(**sizes, num_key_value_heads=2, vocab_size=50))
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "embed_tokens"]))
    assert not layers.known(adapted)
