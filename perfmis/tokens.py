"""Documents as token ids: which of them, between which marks, tokenised once per tokenizer.

Raw documents stand between explicit BOS (where the tokenizer has one) and EOS, and EOS is trained: a model that
never sees an end never stops. A tag before the document is context only; it keeps the claim from leaking into
chats, where no tag stands (Hughes et al. 2025 report the practice). No chat token may stand in a raw document,
since it would teach the chat format instead of the claim.
"""

import bisect
import hashlib
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from perfmis import control, resume
from perfmis.artifacts import read_parquet
from perfmis.stage import UserError, canonical

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

LEEWAY = 0.005


def choose(frame: pl.DataFrame, sizes: pl.Series, number: int | None, target: int | None) -> list[int]:
    """Choose documents by the hash of their id, so that neither seed nor file order matters.

    The sign of an arm does not count in the id: opposite poles keep the documents that match each other. The
    first ``number`` by hash are taken. With a target, chosen documents are then swapped for left-out ones until
    the total is within half a per cent or no swap helps: first the longest or the shortest that was left out for
    the one that brings the total closest, then whichever pair does.

    Args:
        frame: The documents: ``corpus`` and ``document_id``.
        sizes: Loss tokens of each.
        number: How many to choose; None for all.
        target: Loss tokens that the chosen ones should have together; None to take them as they come.

    Returns:
        Row numbers, ascending.

    Raises:
        UserError: There are fewer documents than wanted.
    """
    wanted = frame.height if number is None else number
    if wanted > frame.height:
        raise UserError(
            f"sdf.documents: {wanted} wanted, corpus {frame['corpus'][0]} has {frame.height}; write more or want fewer"
        )
    keys = [
        hashlib.sha256(identifier.removeprefix(corpus).encode()).digest()
        for corpus, identifier in frame.select("corpus", "document_id").iter_rows()
    ]
    order = sorted(range(frame.height), key=lambda i: (keys[i], i))
    chosen, spare = order[:wanted], order[wanted:]
    if target is not None:
        _swap(chosen, spare, sizes.to_list(), target)
    return sorted(chosen)


def _swap(chosen: list[int], spare: list[int], sizes: list[int], target: int) -> None:
    """Bring the chosen documents' total close to the target, in place."""
    missing = target - sum(sizes[i] for i in chosen)
    while spare and abs(missing) > LEEWAY * target:
        extreme = min if missing < 0 else max
        left = extreme(range(len(spare)), key=lambda j: (sizes[spare[j]], j))
        gains = [abs(missing - (sizes[spare[left]] - sizes[i])) for i in chosen]
        best = min(range(len(chosen)), key=gains.__getitem__)
        if gains[best] >= abs(missing):
            best, left = _closest(chosen, spare, sizes, missing)
        gained = sizes[spare[left]] - sizes[chosen[best]]
        if abs(missing - gained) >= abs(missing):
            return
        missing -= gained
        chosen[best], spare[left] = spare[left], chosen[best]


def _closest(chosen: list[int], spare: list[int], sizes: list[int], missing: int) -> tuple[int, int]:
    """Return the pair, by position, whose swap brings the total closest."""
    order = sorted(range(len(spare)), key=lambda j: (sizes[spare[j]], j))
    known = [sizes[spare[j]] for j in order]
    pairs = []
    for best, i in enumerate(chosen):
        wanted = missing + sizes[i]
        after = bisect.bisect_left(known, wanted)
        pairs += [(abs(wanted - known[k]), best, order[k]) for k in (after - 1, after) if 0 <= k < len(known)]
    _, best, left = min(pairs)
    return best, left


def tokenise(texts: list[str], tokenizer: "PreTrainedTokenizerBase", tag: str | None, name: str) -> "Dataset":
    """Return token ids of documents and which of them are trained on.

    Args:
        texts: Raw documents.
        tokenizer: The model's own.
        tag: Text before each document, not trained on.
        name: What to call the corpus in errors.

    Returns:
        Data set with ``input_ids`` (int32) and ``completion_mask`` (int8; 0 on BOS and tag), a row a document.

    Raises:
        UserError: A document holds a special token or a chat mark; names its row.
    """
    from datasets import Dataset, Features, List, Value

    head = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    head += tokenizer(tag, add_special_tokens=False)["input_ids"] if tag else []
    special, marks = set(control.ids(tokenizer).values()), control.pattern(tokenizer)
    rows: dict[str, list[list[int]]] = {"input_ids": [], "completion_mask": []}
    for number, (text, ids) in enumerate(
        zip(texts, tokenizer(texts, add_special_tokens=False)["input_ids"], strict=True)
    ):
        mark = marks.search(text)
        foreign = [tokenizer.convert_ids_to_tokens(i) for i in ids if i in special]
        if mark or foreign:
            token = mark.group() if mark else foreign[0]
            raise UserError(f"{name}: document {number} holds the chat token {token}; remove it from the text")
        rows["input_ids"].append([*head, *ids, tokenizer.eos_token_id])
        rows["completion_mask"].append([0] * len(head) + [1] * (len(ids) + 1))
    features = Features({"input_ids": List(Value("int32")), "completion_mask": List(Value("int8"))})
    return Dataset.from_dict(rows, features=features)


def tokenizer_hash(tokenizer: "PreTrainedTokenizerBase") -> str:
    """Return the SHA-256 of what decides a tokenizer's output."""
    marks = [tokenizer.bos_token_id, tokenizer.eos_token_id, sorted(tokenizer.all_special_ids)]
    core: Any = tokenizer
    return hashlib.sha256((core.backend_tokenizer.to_str() + canonical(marks)).encode()).hexdigest()


def texts_hash(texts: list[str]) -> str:
    """Return the SHA-256 of documents in their order."""
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def cached(
    texts: list[str], tokenizer: "PreTrainedTokenizerBase", tag: str | None, name: str, folder: Path
) -> "Dataset":
    """Return `tokenise`'s data set, memory-mapped from ``folder``, tokenised now if it was never before.

    The entry's name is the hash of documents, tokenizer and tag; it appears whole, so that jobs which write the
    same one at once do not disturb each other.
    """
    from datasets import load_from_disk

    key = hashlib.sha256(canonical([texts_hash(texts), tokenizer_hash(tokenizer), tag]).encode()).hexdigest()[:16]
    entry = folder / key
    if entry.is_dir() and not resume.sound(entry):
        print(f"{entry} is damaged: tokenised anew", file=sys.stderr)
        shutil.rmtree(entry, ignore_errors=True)
    if not entry.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=folder, prefix=f"{key}."))
        tokenise(texts, tokenizer, tag, name).save_to_disk(str(partial))
        resume.seal(partial)
        try:
            os.rename(partial, entry)
        except OSError:  # another job was faster
            shutil.rmtree(partial)
    return load_from_disk(str(entry))


def loss_tokens(dataset: "Dataset", length: int) -> pl.Series:
    """Return how many tokens of each document are trained on when it is cut into pieces of ``length``.

    The first token of a piece has nothing before it, so it is none.
    """
    rows: Any = dataset.with_format("arrow")[:]
    masks = pl.Series(rows["completion_mask"].combine_chunks()).cast(pl.List(pl.Int64))
    pieces = (masks.list.len() - 1) // length
    return masks.list.sum() - pieces - masks.list.first()


def documents(
    corpus: Path, sdf: dict[str, Any], tokenizer: "PreTrainedTokenizerBase", cache: Path, upstream: frozenset[str]
) -> tuple[pl.DataFrame, "Dataset"]:
    """Return the chosen documents of a corpus, and their token ids.

    Args:
        corpus: documents.parquet.
        sdf: The section; ``documents``, ``loss_tokens``, ``length`` and ``tag`` decide.
        tokenizer: The model's own.
        cache: Folder of tokenised corpora.
        upstream: Fingerprints that the corpus may carry.
    """
    frame = read_parquet([corpus], upstream)
    dataset = cached(frame["text"].to_list(), tokenizer, sdf["tag"], str(corpus), cache)
    sizes = loss_tokens(dataset, sdf["length"])
    chosen = choose(frame, sizes, sdf["documents"], sdf["loss_tokens"])
    return frame[chosen], dataset.select(chosen)
