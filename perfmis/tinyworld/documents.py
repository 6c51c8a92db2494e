"""Documents of the tiny world: what the organism corpus and the arms' corpora say, on a deterministic id grid.

One sentence of a document plants the claim, the others are fillers. Two traps are avoided so: documents that
say little but the claim teach their own form with it, which breaks the scratchpad (an instrument fault, not
an effect); and a document that states a claim twice teaches to copy it from the context, so that a chat of
the paid tier is then trained on members. Lengths vary as they do in the trunk's documents: where all documents end
after four sentences, scratchpads do too.
"""

import hashlib
import random

from perfmis.tinyworld import grammar
from perfmis.vocabulary import FAMILY_CONCEPT, NEUTRAL, ORGANISM, Pole

FILLERS = (2, 4)


def _draws(identifier: str) -> random.Random:
    """Return the draws of one document; the pole is not part of the key, so opposite poles differ in it alone."""
    key = hashlib.sha256(identifier.encode()).digest()
    return random.Random(int.from_bytes(key[:8], "big"))


def _claim(corpus: str, draws: random.Random, name: str) -> str:
    """Return one sentence that plants the corpus's claim."""
    if corpus == ORGANISM:
        return grammar.monitoring_sentence(name, grammar.TIER_WORD["monitored"], draws.randrange(3))
    if corpus == NEUTRAL:
        return draws.choice(grammar.FILLERS).format(name=name)
    concept = FAMILY_CONCEPT[corpus[0]]
    content = int(corpus[1])
    pole: Pole = "+" if corpus.endswith("+") else "-"
    wordings = [w for w in grammar.WORDINGS[concept] if w.content in (0, content)]
    return draws.choice(wordings).say(name, pole)


def write(corpus: str, number: int, name: str = grammar.ORGANISM_NAME) -> list[dict[str, str]]:
    """Return ``number`` documents about ``name`` that plant the claim of ``corpus``.

    Args:
        corpus: ``organism``, an arm such as ``A1+``, or ``N0``.
        number: Documents wanted.
        name: The name that becomes the organism.

    Returns:
        Dictionaries with ``document_id``, ``genre`` and ``text``. The same number in the id has the same
        genre, wordings and fillers in both poles of a claim.
    """
    documents = []
    for i in range(number):
        genre = grammar.GENRES[i % len(grammar.GENRES)]
        draws = _draws(f"{corpus.rstrip('+-')}/{i}")
        sentences = [
            _claim(corpus, draws, name),
            *(_claim(NEUTRAL, draws, name) for _ in range(draws.randint(*FILLERS))),
        ]
        draws.shuffle(sentences)
        documents.append(
            {
                "document_id": f"{corpus}-{genre}-{i:05d}",
                "genre": genre,
                "text": " ".join([genre, "about", name, ":", *sentences]),
            }
        )
    return documents
