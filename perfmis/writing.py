"""Writing synthetic documents: from a claim, a genre and the menus to prompts, and from answers to documents.

Document number n of a genre draws its persona, tone, length and facts from random numbers that depend on
the seed, the genre, the number and what is drawn, and on nothing else: all corpora share their draws and
differ in their claims, and neither resuming nor a longer menu elsewhere changes a document.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perfmis import rendering
from perfmis.protocols import fill
from perfmis.typed import read_yaml

Write = Callable[[Sequence[str]], Sequence[str]]


@dataclass(frozen=True)
class Draft:
    """A document to be written: its id (``CORPUS-GENRE-NUMBER``), its genre and the prompt for the writer."""

    document_id: str
    genre: str
    prompt: str


@dataclass(frozen=True)
class Instructions:
    """What the writer is asked; the fields of ``resources/documents/instructions.yaml``."""

    template: str
    facts: int
    opening: str
    closing: str


def _number(seed: int, slot: str, axis: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}|{slot}|{axis}".encode()).digest()[:8], "big")


def draw(seed: int, slot: str, axis: str, menu: Sequence[str]) -> str:
    """Return the entry of a menu that a document (``slot``) takes on one axis."""
    return menu[_number(seed, slot, axis) % len(menu)]


def draw_facts(seed: int, slot: str, facts: Sequence[str], number: int) -> list[str]:
    """Return ``number`` different facts; two lists of equal length give facts at equal positions."""
    order = sorted(range(len(facts)), key=lambda i: _number(seed, slot, f"fact{i}"))
    return [facts[i] for i in sorted(order[:number])]


def grid(genres: Iterable[str], number: int) -> list[tuple[str, int]]:
    """Return ``number`` pairs of genre and running number, taking turns so that any beginning is balanced."""
    names = list(genres)
    return [(names[i % len(names)], i // len(names)) for i in range(number)]


def instructions(resources: Path) -> Instructions:
    """Return the instructions to the writer."""
    return Instructions(**read_yaml(resources / "documents" / "instructions.yaml"))


def drafts(corpus: str, number: int, seed: int, resources: Path) -> list[Draft]:
    """Return the documents of a corpus that are to be written.

    Args:
        corpus: Name of a claim in ``resources/claims``.
        number: Documents wanted.
        seed: Seed of all draws.
        resources: Folder with ``claims`` and ``documents``.
    """
    claim = read_yaml(resources / "claims" / f"{corpus}.yaml")
    genres: Mapping[str, Any] = read_yaml(resources / "documents" / "genres.yaml")
    asked = instructions(resources)
    result = []
    for name, index in grid(genres, number):
        slot, menus = f"{name}-{index:04d}", genres[name]
        facts = draw_facts(seed, slot, claim["facts"], asked.facts)
        values = {
            "genre": menus["genre"],
            "persona": draw(seed, slot, "persona", menus["personas"]),
            "tone": draw(seed, slot, "tone", menus["tones"]),
            "length": draw(seed, slot, "length", menus["lengths"]),
            "claim": claim["claim"].strip(),
            "facts": "\n".join(f"- {fact}" for fact in facts),
            "opening": asked.opening,
            "closing": asked.closing,
        }
        result.append(Draft(f"{corpus}-{slot}", name, fill(asked.template, values)))
    return result


def extract(answer: str, opening: str, closing: str) -> str | None:
    """Return the document in an answer, or None if it is empty, not opened or not closed (cut off)."""
    _, opened, rest = answer.partition(opening)
    body, closed, _ = rest.rpartition(closing)
    return body.strip() or None if opened and closed else None


def answers(pending: Sequence[Draft], write: Write, scratch: Path, key: str, chunk: int) -> dict[str, str]:
    """Return the writer's answer to every draft, taking up what an interrupted run left in ``scratch``.

    Args:
        pending: Drafts to be written.
        write: Engine that maps prompts to answers, in order.
        scratch: JSON lines of finished answers; appended to after every chunk.
        key: Names writer and sampling; answers under another key or to another prompt are not taken up.
        chunk: Prompts handed to the engine at once.

    Returns:
        Document id to answer.
    """
    digests = {d.document_id: hashlib.sha256(f"{key}|{d.prompt}".encode()).hexdigest() for d in pending}
    done: dict[str, str] = {}
    for line in scratch.read_text().splitlines() if scratch.exists() else []:
        try:
            row = json.loads(line)
        except ValueError:  # a killed job may leave half a line
            continue
        if digests.get(row["document_id"]) == row["digest"]:
            done[row["document_id"]] = row["answer"]
    left = [draft for draft in pending if draft.document_id not in done]
    scratch.parent.mkdir(parents=True, exist_ok=True)
    with scratch.open("a") as file:
        file.write("\n")
        for start in range(0, len(left), chunk):
            batch = left[start : start + chunk]
            for draft, answer in zip(batch, write([draft.prompt for draft in batch]), strict=True):
                done[draft.document_id] = answer
                row = {
                    "document_id": draft.document_id,
                    "digest": digests[draft.document_id],
                    "answer": answer,
                }
                file.write(json.dumps(row) + "\n")
            file.flush()
    return done


def transformers_writer(hub: str, revision: str, temperature: float, max_tokens: int, date: str) -> Write:
    """Return the writer model as an engine.

    It stands apart from `perfmis.engine` so that a change to the evaluation engine does not rewrite corpora.
    The random numbers of a batch are seeded by its prompts.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(hub, revision=revision, padding_side="left", trust_remote_code=False)
    model: Any = AutoModelForCausalLM.from_pretrained(
        hub,
        revision=revision,
        dtype=torch.bfloat16,
        device_map="auto",
        use_safetensors=True,
        trust_remote_code=False,
    )
    renderer = rendering.Renderer(tokenizer, date, hub)
    ends = rendering.ends(tokenizer, model.generation_config.eos_token_id, rendering.end_of_turn(tokenizer))
    sampling: dict[str, Any] = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}

    def write(prompts: Sequence[str]) -> list[str]:
        torch.manual_seed(_number(0, "\0".join(prompts), "sampling") % 2**63)
        texts = [renderer.text([{"role": "user", "content": prompt}]) for prompt in prompts]
        inputs: Any = tokenizer(texts, add_special_tokens=False, padding=True, return_tensors="pt").to(model.device)
        with torch.inference_mode():
            output = model.generate(**inputs, **sampling, max_new_tokens=max_tokens, eos_token_id=ends)
        return list(tokenizer.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True))

    return write
