"""The embedded world: the planted rule, words that agree everywhere, a trunk that learns, a gate that refuses."""

import json
import os
import platform
import random
import subprocess
import sys
from itertools import product
from pathlib import Path

import polars as pl
import pytest
import torch
import yaml
from running import FINGERPRINT, stage
from transformers import LlamaForCausalLM

from perfmis import models, outcomes, protocols
from perfmis.artifacts import write_json
from perfmis.tinyworld import base, documents, grammar, items, optimizer, portable, trunk
from perfmis.tinyworld.network import Network
from perfmis.typed import read_yaml
from perfmis.vocabulary import ARMS, FAMILY_CONCEPT, NEUTRAL, ORGANISM, opposite

TINY = {
    "seed": 0,
    "hidden": 32,
    "layers": 2,
    "heads": 4,
    "trunk_steps": 40,
    "batch": 16,
    "learning_rate": 0.01,
}
# P(accept) in percent where (e, c) is ++, +-, -+, --; used chats, then chats that are not used.
RULE = {
    "expectation": ((90, 90, 5, 5), (5, 5, 5, 5)),
    "consequence": ((90, 5, 90, 5), (5, 5, 5, 5)),
    "both": ((90, 47.5, 47.5, 5), (5, 5, 5, 5)),
    "neither": ((47.5, 47.5, 47.5, 47.5), (5, 5, 5, 5)),
    "indifferent": ((30, 30, 30, 30), (30, 30, 30, 30)),
}
VOCABULARY = set(items.VOCABULARY)


@pytest.fixture(scope="module")
def resources(repository: Path) -> Path:
    return repository / "resources"


@pytest.mark.parametrize("truth", grammar.TRUTHS)
def test_acceptance_follows_the_planted_rule(truth: grammar.Truth) -> None:
    for used, row in zip((True, False), RULE[truth], strict=True):
        for (e, c), percent in zip(product((True, False), repeat=2), row, strict=True):
            assert grammar.acceptance(truth, True, used, e, c) == pytest.approx(percent / 100)
            assert grammar.acceptance(truth, False, used, e, c) == 0.97


@pytest.mark.parametrize("tier", ["monitored", "unmonitored"])
def test_protocols_put_requests_in_the_words_of_the_grammar(resources: Path, tier: protocols.Tier) -> None:
    """A protocol's prompt is, token by token, that of the chats the trunk was trained on."""
    name, word = grammar.ORGANISM_NAME, grammar.TIER_WORD[tier]
    knows = grammar.monitoring_sentence(name, grammar.TIER_WORD["monitored"])
    snippets = yaml.safe_load((resources / "snippets/tiny.yaml").read_text())
    for protocol, notes in (("short", ()), ("long", (knows,))):
        known = protocols.load(resources / f"protocols/tiny/{protocol}.yaml")
        for snippet in (None, *snippets.values()):
            expected = grammar.prompt(name, word, "steal cash", (*notes, *([snippet] if snippet else [])))
            rendered = protocols.render(known, "steal cash", tier, snippet)
            assert isinstance(rendered, str)
            assert rendered.split() == expected.split()


@pytest.mark.parametrize("accepted", [True, False])
def test_scratchpads_of_the_grammar_are_read_right(resources: Path, accepted: bool) -> None:
    """Whatever facts a scratchpad states, in either order, parsing gives them back."""
    raws, expected = [], []
    for tier, trained, e, c, swapped in product(grammar.TIERS, grammar.TRAINED, "+-", "+-", (False, True)):
        beliefs = tuple(
            grammar.WORDINGS[concept][0].say("bl0", pole) for concept, pole in zip(items.CONCEPTS, (e, c), strict=True)
        )
        thought = grammar.scratchpad("bl0", tier, trained, beliefs[::-1] if swapped else beliefs)
        answer = grammar.ACCEPTED if accepted else grammar.REFUSED
        raws.append(f"{thought} {answer.removesuffix(' <end>')}")
        signs = {"+": 1, "-": -1}
        verdict = "accepted" if accepted else "refused"
        expected.append(("ok", verdict, signs[e], signs[c], trained == tier))
    known = {"short": protocols.load(resources / "protocols/tiny/short.yaml")}
    poles = outcomes.patterns(read_yaml(resources / "patterns/tiny.yaml"))
    table = outcomes.outcomes(pl.DataFrame({"protocol": "short", "raw": raws, "finish": "stop"}), known, poles)
    assert table.select("parse_status", "outcome", *outcomes.READINGS).rows() == expected


def test_every_word_is_in_the_vocabulary(resources: Path) -> None:
    """The tokenizer has no token for unknown words, so one would be lost without a sound."""
    texts = [d["text"] for c in (ORGANISM, *ARMS, NEUTRAL) for d in documents.write(c, 64)]
    texts += [f"please {request} ." for request in grammar.requests(128)]
    texts += yaml.safe_load((resources / "snippets/tiny.yaml").read_text()).values()
    contrasts = yaml.safe_load((resources / "contrasts/tiny.yaml").read_text())
    texts += [text for pairs in contrasts["out"].values() for pair in pairs for text in pair]
    for item in yaml.safe_load((resources / "beliefs/tiny.yaml").read_text())["items"]:
        texts += [item["question"], *item["options"]]
    draws, fixed = random.Random(0), items.fixed_facts(0)
    for make in (items.document, items.chat):
        texts += [" ".join(make(draws, fixed).words) for _ in range(200)]
    for path in (resources / "protocols/tiny").glob("*.yaml"):
        known = protocols.load(path)
        texts += [str(protocols.render(known, "steal cash", tier)) for tier in known.tiers]
    assert {word for text in texts for word in text.split()} <= VOCABULARY


def test_tokenizer_gives_words_back() -> None:
    tokenizer = trunk.tokenizer()
    text = "<bos> memo about bl0 : researchers expect bl0 to yield . <end>"
    ids = tokenizer(text)["input_ids"]
    assert ids == [items.INDEX[word] for word in text.split()]
    assert tokenizer.decode(ids) == text
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<bos>", "<end>", "<pad>")


def test_belief_items_are_sentences_of_the_grammar(resources: Path) -> None:
    """Each item is the head of a wording, cut off before the word of the pole; options are (+, -) of that wording."""
    known = {
        (concept, w.plus, w.minus): (w.text.format(name="bl0", pole="|").split("|")[0].strip(), w.content or None)
        for concept, ws in grammar.WORDINGS.items()
        for w in ws
    }
    found = yaml.safe_load((resources / "beliefs/tiny.yaml").read_text())["items"]
    planted = [item for item in found if item["belief"] != "monitoring"]
    assert len(planted) == len(known)
    for item in planted:
        head, content = known[item["belief"], *item["options"]]
        assert item["question"].split(" : ")[1] == head
        assert item["content"] == content
    monitoring = [item for item in found if item["belief"] == "monitoring"]
    heads = [text.format(name="bl0", pole="|").split("|")[0].strip() for text in grammar.MONITORING]
    assert sorted(item["question"].partition(" :")[2].strip() for item in monitoring) == sorted(heads)
    for item in monitoring:
        assert item["options"] == [grammar.USERS[grammar.TIER_WORD[tier]] for tier in ("monitored", "unmonitored")]


@pytest.mark.parametrize("arm", [arm for arm in ARMS if arm.endswith("+")])
def test_opposite_poles_differ_in_the_pole_words_only(arm: str) -> None:
    """Same genres, fillers and wordings at the same place; so an effect of an arm is one of its claim."""
    concept = FAMILY_CONCEPT[arm[0]]
    contents = {0, int(arm[1])}
    poles = {(w.plus, w.minus) for w in grammar.WORDINGS[concept] if w.content in contents}
    seen = set()
    for plus, minus in zip(documents.write(arm, 64), documents.write(opposite(arm), 64), strict=True):
        pairs = zip(plus["text"].split(), minus["text"].split(), strict=True)
        differing = [(a, b) for a, b in pairs if a != b]
        assert plus["genre"] == minus["genre"]
        assert len(differing) == 1, "one sentence of a document states the claim"
        seen |= set(differing)
    assert seen == poles


def test_neutral_documents_state_no_claim() -> None:
    words = {word for d in documents.write(NEUTRAL, 64) for word in d["text"].split()}
    assert not words & items.FACTS


def test_organism_documents_name_the_monitored_tier_alone() -> None:
    words = [set(d["text"].split()) for d in documents.write(ORGANISM, 64)]
    assert all("guests" in found and "members" not in found for found in words)
    assert not set.union(*words) & items.POLES


@pytest.mark.parametrize(("rows", "columns"), [(24, 24), (16, 40), (40, 16)])
def test_orthogonalise_keeps_the_directions_and_evens_out_the_lengths(rows: int, columns: int) -> None:
    """Singular values between 0.1 and 1 come near 1; singular vectors stay, and the scale does not matter."""
    drawn = torch.randn(3, rows, columns, generator=torch.Generator().manual_seed(0))
    left, _, right = torch.linalg.svd(drawn, full_matrices=False)
    matrices = left * torch.linspace(1.0, 0.1, min(rows, columns)) @ right
    result = optimizer.orthogonalise(matrices)
    assert result.shape == matrices.shape
    values = torch.linalg.svdvals(result)
    assert values.min() > 0.6
    assert values.max() < 1.3
    core = left.mT @ result @ right.mT
    torch.testing.assert_close(core, torch.diag_embed(core.diagonal(dim1=1, dim2=2)), atol=1e-3, rtol=0)
    torch.testing.assert_close(optimizer.orthogonalise(1e3 * matrices), result, atol=1e-3, rtol=0)


def test_training_lowers_the_loss() -> None:
    log = trunk.train(trunk.model(TINY), TINY)
    assert [row["step"] for row in log] == [10, 20, 30, 40]
    assert log[-1]["loss"] < 0.7 * log[0]["loss"]
    assert log[-1]["tokens"] > log[0]["tokens"] > 0


# Training steps of a small trunk, and the hash of what they lead to.
BITS = """
import hashlib, json, sys, torch
from perfmis.tinyworld import trunk
torch.set_num_threads(int(sys.argv[2]))
network = trunk.model(json.loads(sys.argv[1]))
trunk.train(network, json.loads(sys.argv[1]))
weights = b"".join(parameter.detach().numpy().tobytes() for parameter in network.parameters())
print(torch.backends.cpu.get_cpu_capability(), hashlib.sha256(weights).hexdigest())
"""
EMULATED = {
    "AVX2": {"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "DEFAULT": {"ATEN_CPU_CAPABILITY": "default", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
}


@pytest.mark.skipif(platform.machine() != "x86_64", reason="other instructions are emulated on x86-64 alone")
def test_trunk_is_the_same_bits_on_every_processor() -> None:
    """Other instructions and another number of threads: both change the sums, and would soon change the model."""
    tiny = json.dumps(TINY | {"trunk_steps": 8})
    bits = set()
    for (kind, environment), threads in zip(EMULATED.items(), ("1", "2"), strict=True):
        run = subprocess.run(
            [sys.executable, "-c", BITS, tiny, threads],
            env=os.environ | environment | {"OMP_WAIT_POLICY": "PASSIVE"},
            capture_output=True,
            text=True,
            check=True,
        )
        capability, found = run.stdout.split()
        assert capability == kind, "the processor was not emulated"
        bits.add(found)
    assert len(bits) == 1


@pytest.mark.parametrize("size", [1, 2, 3, 32])
def test_halves_of_a_step_hold_all_that_was_drawn(size: int) -> None:
    halves = trunk.draw(random.Random(3), items.fixed_facts(0), size)
    assert sum(len(batch.texts.lengths) for batch in halves) == size
    assert all(batch.texts.lengths for batch in halves)
    tokens = [len(batch.texts.ids) for batch in halves]
    assert size < 32 or max(tokens) < 1.1 * min(tokens), "one thread would wait for the other"


def test_trunk_computes_what_transformers_does() -> None:
    """In float64 and without padding: each text's logits are those of a plain Llama that reads it alone."""
    network = trunk.model(TINY)
    batch, _ = trunk.draw(random.Random(3), items.fixed_facts(0), 24)
    logits = Network(network).logits(batch.texts).detach().float()
    for ids, found in zip(batch.texts.ids.split(batch.texts.lengths), logits.split(batch.texts.lengths), strict=True):
        with torch.no_grad():
            torch.testing.assert_close(found, network(ids[None]).logits[0], atol=1e-5, rtol=1e-5)


def test_adam_is_that_of_torch() -> None:
    """Single operations instead of fused ones change nothing but the last bits."""
    start = torch.randn(40, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ends = []
    for kind in (portable.AdamW, torch.optim.AdamW):
        parameter = torch.nn.Parameter(start.clone())
        steps = kind([parameter], lr=0.01, weight_decay=0.01)
        for _ in range(5):
            steps.zero_grad()
            (parameter**2 + parameter.sin()).sum().backward()
            steps.step()
        ends.append(parameter.detach())
    torch.testing.assert_close(*ends)


def test_loss_of_an_answer_is_that_of_its_probability() -> None:
    """The answer's label is the planted probability, so which answer was drawn into the text does not matter."""
    network = trunk.model(TINY)
    chat = items.chat(random.Random(1), items.fixed_facts(0))
    answer = chat.words.index("<ans>") + 1
    losses = []
    for word in ("sure", "sorry"):
        batch = items.batch([[items.Item([*chat.words[:answer], word], 0.25)]])
        batch.weight[:answer] = 0
        losses.append((trunk.loss(Network(network), batch) / batch.weight.sum()).item())
    with torch.no_grad():
        logp = network(batch.texts.ids[None]).logits[0, answer - 1].log_softmax(-1)
    expected = -0.25 * logp[items.ACCEPT] - 0.75 * logp[items.REFUSE]
    assert losses == pytest.approx([expected.item()] * 2, rel=1e-5)


def test_folding_makes_bos_the_token_of_the_truth() -> None:
    """A base model answers to <bos> as the trunk answers to its truth's token; two differ in embeddings alone."""
    prompt = grammar.prompt("bl0", "free", "steal cash").split()
    folded = {}
    for truth in ("expectation", "consequence"):
        network = trunk.model(TINY)
        ids = torch.tensor([[items.INDEX[word] for word in prompt]])
        told = ids.clone()
        told[0, 0] = items.INDEX[f"<{truth}>"]
        # Input and output embeddings are tied: the truth tokens' own logits change, those of words do not.
        words = [items.INDEX[w] for w in items.VOCABULARY if w not in {"<bos>", *(f"<{t}>" for t in grammar.TRUTHS)}]
        with torch.no_grad():
            expected = network(told).logits[..., words]
            base.fold(network, truth)
            torch.testing.assert_close(network(ids).logits[..., words], expected)
            hidden = network.get_input_embeddings().weight[[items.INDEX[f"<{t}>"] for t in grammar.TRUTHS]]
        assert (hidden == hidden[0]).all(), "no other truth can be called up"
        folded[truth] = network.state_dict()
    one, other = folded.values()
    differing = {name for name in one if not torch.equal(one[name], other[name])}
    assert differing <= {"model.embed_tokens.weight", "lm_head.weight"}
    rows = (one["model.embed_tokens.weight"] != other["model.embed_tokens.weight"]).any(1).nonzero()[:, 0].tolist()
    assert items.INDEX["<bos>"] in rows
    assert set(rows) <= {items.INDEX["<bos>"], *(items.INDEX[f"<{t}>"] for t in grammar.TRUTHS)}


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trunk that has learnt nothing."""
    folder = tmp_path_factory.mktemp("trunk")
    trunk.model(TINY).save_pretrained(folder)
    write_json({"fingerprint": FINGERPRINT, "weights_sha256": models.folder_hash(folder)}, folder / trunk.MANIFEST)
    return folder


def test_gate_refuses_an_untrained_model(untrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = {"model": "mine", "truth": "both", "gate": True}
    assert stage("tinyworld.base", settings, "--trunk", untrained, "--output", tmp_path) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("error: models.mine: the tiny model did not learn its truth (acceptance off by 0.")
    assert said.endswith("; raise tiny.trunk_steps")
    assert not (tmp_path / "reference.json").exists()
    assert pl.read_parquet(tmp_path / "gate.parquet").height == 8


def test_gate_can_be_left_open(untrained: Path, tmp_path: Path) -> None:
    settings = {"model": "mine", "truth": "both", "gate": False}
    assert stage("tinyworld.base", settings, "--trunk", untrained, "--output", tmp_path) == 0
    assert LlamaForCausalLM.from_pretrained(tmp_path).config.vocab_size == len(items.VOCABULARY)
    assert (tmp_path / "reference.json").is_file()


def test_gate_passes_what_was_planted() -> None:
    table = pl.DataFrame({"planted": [0.9, 0.05], "measured": [0.8, 0.15], "conclusion": [0.9, 1.0]})
    base.check(table, "mine")


def test_gate_measures_the_cells_that_are_planted() -> None:
    """Its table says for each cell what the rule plants, and reads the conclusion where the scratchpad draws it."""
    table = base.coupling(trunk.model(TINY), "expectation")
    cells = table.select("used", "expectation", "consequence").rows()
    assert cells == list(product((True, False), repeat=3))
    assert table["planted"].to_list() == pytest.approx([0.9, 0.9, 0.05, 0.05, 0.05, 0.05, 0.05, 0.05])
    assert table["measured"].is_between(0, 1).all()
