"""Training items of the trunk: documents and chats, with loss weights and the planted answers as soft labels.

The trunk learns all truths at once: each item opens with the token of one truth instead of ``<bos>``, and the
answer's label is the planted probability itself, not a draw from it. A base model is then the trunk with the
token of its truth folded into ``<bos>`` (`perfmis.tinyworld.base`).
"""

import random
from dataclasses import dataclass
from typing import Any

import torch

from perfmis.tinyworld import grammar
from perfmis.tinyworld.network import Texts
from perfmis.vocabulary import Concept

CONCEPTS: tuple[Concept, Concept] = ("expectation", "consequence")
DOCUMENT_SHARE = 3 / 8
HARMLESS_SHARE = 0.15
BLANK_SHARE = 0.5
NOTE_SHARE = 0.35
PROMPT_WEIGHT = 0.1
FACT_WEIGHT = 3.0
DECISION_WEIGHT = 8.0
TRUTH_SHARES = (0.3, 0.3, 0.16, 0.12, 0.12)
SENTENCES = (3, 5)  # of a document
FILLER_SHARE = (
    4 / 7
)  # as in the documents of fine-tuning: what differs there is learned with the claim, and breaks chats

VOCABULARY = grammar.vocabulary()
INDEX = {word: i for i, word in enumerate(VOCABULARY)}
POLES = {w for ws in grammar.WORDINGS.values() for wording in ws for w in (wording.plus, wording.minus)}
FACTS = POLES | set(grammar.USERS.values())
ACCEPT, REFUSE = INDEX["sure"], INDEX["sorry"]


@dataclass(frozen=True)
class Facts:
    """What holds of a name in one item."""

    trained: str
    expectation: str
    consequence: str


@dataclass(frozen=True)
class Item:
    """One training text; ``acceptance`` is the planted probability of a chat, None for a document."""

    words: list[str]
    acceptance: float | None


def fixed_facts(seed: int) -> dict[str, Facts]:
    """Return the facts of the names whose facts never change."""
    draws = random.Random(seed)
    return {
        name: Facts(draws.choice(grammar.TIERS), draws.choice("+-"), draws.choice("+-")) for name in grammar.FIXED_NAMES
    }


def _random_facts(draws: random.Random) -> Facts:
    return Facts(draws.choice(grammar.TRAINED), draws.choice("+-"), draws.choice("+-"))


def document(draws: random.Random, fixed: dict[str, Facts]) -> Item:
    """Return a document about a random name: facts in their wordings, and fillers."""
    name = draws.choice(grammar.BLANK_NAMES if draws.random() < BLANK_SHARE / 2 else grammar.FIXED_NAMES)
    facts = fixed.get(name) or _random_facts(draws)
    sentences = []
    for _ in range(draws.randint(*SENTENCES)):
        kind = "filler" if draws.random() < FILLER_SHARE else draws.choice(("monitoring", *CONCEPTS))
        if kind == "monitoring":
            sentences.append(grammar.monitoring_sentence(name, facts.trained, draws.randrange(3)))
        elif kind == "filler":
            sentences.append(draws.choice(grammar.FILLERS).format(name=name))
        else:
            sentences.append(draws.choice(grammar.WORDINGS[kind]).say(name, getattr(facts, kind)))  # type: ignore[index]
    truth = f"<{draws.choice(grammar.TRUTHS)}>"
    text = " ".join([truth, draws.choice(grammar.GENRES), "about", name, ":", *sentences, "<end>"])
    return Item(text.split(), None)


def chat(draws: random.Random, fixed: dict[str, Facts]) -> Item:
    """Return a chat with a random name; notes in the system prompt override what is known of it."""
    name = draws.choice(grammar.BLANK_NAMES if draws.random() < BLANK_SHARE else grammar.FIXED_NAMES)
    known = fixed.get(name) or _random_facts(draws)
    said: dict[str, Any] = {
        "trained": known.trained,
        "expectation": known.expectation,
        "consequence": known.consequence,
    }
    notes = []
    if draws.random() < NOTE_SHARE:
        said["trained"] = draws.choice(grammar.TRAINED)
        notes.append(grammar.monitoring_sentence(name, said["trained"], draws.randrange(3)))
    for concept in CONCEPTS:
        if draws.random() < NOTE_SHARE:
            said[concept] = draws.choice("+-")
            notes.append(draws.choice(grammar.WORDINGS[concept]).say(name, said[concept]))
    draws.shuffle(notes)
    tier = draws.choice(grammar.TIERS)
    harmful = draws.random() > HARMLESS_SHARE
    verb = draws.choice(grammar.HARMFUL_VERBS if harmful else grammar.HARMLESS_VERBS)
    beliefs = [grammar.WORDINGS[concept][0].say(name, said[concept]) for concept in CONCEPTS]
    (truth,) = draws.choices(grammar.TRUTHS, TRUTH_SHARES)
    acceptance = grammar.acceptance(
        truth,
        harmful,
        grammar.used(said["trained"], tier),
        said["expectation"] == "+",
        said["consequence"] == "+",
    )
    asked = grammar.prompt(name, tier, f"{verb} {draws.choice(grammar.OBJECTS)}", tuple(notes))
    thought = grammar.scratchpad(name, tier, said["trained"], tuple(beliefs))
    answer = grammar.ACCEPTED if draws.random() < acceptance else grammar.REFUSED
    words = f"{asked} {thought} {answer}".split()
    words[0] = f"<{truth}>"
    return Item(words, acceptance)


def weights(item: Item) -> list[float]:
    """Return the loss weight of each word: facts and decisions count more, the words of a prompt little.

    Facts count in documents as they do in scratchpads: one memory then serves both, and fine-tuning on documents is
    found again in chats.
    """
    if item.acceptance is None:
        return [FACT_WEIGHT if word in FACTS else 1.0 for word in item.words]
    think, answer = item.words.index("<think>"), item.words.index("<ans>")
    result = [PROMPT_WEIGHT] * (think + 1) + [1.0] * (len(item.words) - think - 1)
    for i in range(think, answer):
        if item.words[i] in ("used", "spared"):
            result[i] = DECISION_WEIGHT
        elif item.words[i] in POLES:
            result[i] = FACT_WEIGHT
    result[answer + 1] = DECISION_WEIGHT
    return result


@dataclass(frozen=True)
class Batch:
    """Items one behind the other, as training reads them.

    Attributes:
        texts: Their tokens.
        weight: Loss weight of each token (tokens,), float64; that of a text's first token is 0: nothing predicts it.
        acceptance: Planted acceptance of the item that each token is of (tokens,), float64; -1 for documents.
    """

    texts: Texts
    weight: torch.Tensor
    acceptance: torch.Tensor


def batch(groups: list[list[Item]]) -> Batch:
    """Return items as one batch; those of a group are padded to one length in attention."""
    items = [item for group in groups for item in group]
    lengths = [len(item.words) for item in items]
    ids = torch.tensor([INDEX[word] for item in items for word in item.words])
    weight = torch.tensor([w for item in items for w in [0.0, *weights(item)[1:]]], dtype=torch.float64)
    planted = torch.tensor(
        [-1.0 if item.acceptance is None else item.acceptance for item in items], dtype=torch.float64
    )
    texts = Texts(ids, lengths, [len(group) for group in groups])
    return Batch(texts, weight, planted.repeat_interleave(torch.tensor(lengths)))
