"""What a loaded model computes, measured before anything rests on it.

Families of models part where a configuration does not say: some take no notice of where packed documents end, some
kernels of attention leave out sliding windows, soft caps or sinks, and padding moves the positions of some. Each shows
in the logits of two short texts, against those of each text alone by the plainest attention (``eager``).
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import polars as pl
import torch
from torch import Tensor

from perfmis import fastpath
from perfmis.decoders import inner
from perfmis.stage import Prose, UserError

if TYPE_CHECKING:
    from datasets import Dataset

# Of a relative difference of logits. Rounding alone made 3e-6, .03 and .13 (blocks in fp8) on SmolLM2-135M, a Llama of
# 30 blocks; documents that see each other .6, a window left out .8.
TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 0.12, torch.float16: 0.12}
FP8 = 0.4
NATS = {torch.float32: 1e-3}  # a token, between the loss that is trained and that of the logits
ROUGH = 0.1  # the same for shorter floats
RUN = 4  # tokens; a difference is a mean over so many in a row, lest one rounding at a router's edge count
SECOND = 32  # tokens of the second document
SHORT, LONG = 256, 2048  # tokens of the first: where no window is shorter, and at most where nothing is trained
EAGER, IGNORED = "eager", -100


def difference(found: Tensor, expected: Tensor) -> float:
    """Return the largest relative difference of logits, as a mean over `RUN` tokens in a row.

    Args:
        found: (tokens, vocabulary); what all logits of a token have in common does not count.
        expected: Likewise.

    Returns:
        NaN where a logit of either is.
    """
    worst = []
    # In parts, as vocabularies are large.
    for mine, right in zip(found.split(RUN * 32), expected.split(RUN * 32), strict=True):
        a, b = (x.float() - x.float().mean(-1, keepdim=True) for x in (mine, right))
        each = (a - b).norm(dim=-1) / b.norm(dim=-1).clamp(min=torch.finfo(torch.float32).tiny)
        worst += [float(run.mean()) for run in each.split(RUN)]
    return _largest(worst)


def _largest(values: Iterable[float]) -> float:
    """Return the largest of some numbers; NaN where one is, which no comparison takes for small."""
    return float(torch.tensor(list(values), dtype=torch.float64).max())


def tolerance(model: Any, fp8: bool = False) -> float:
    """Return up to which difference two ways of a model to compute the same are alike."""
    return FP8 if fp8 else TOLERANCES[_weight(model).dtype]


def implementation(model: Any) -> str:
    """Return the name of the attention that a model computes with."""
    return str(inner(model).config._attn_implementation)


def changeable(model: Any) -> bool:
    """Return whether a model takes another attention than the one that it was loaded with."""
    return bool(inner(model)._can_set_attn_implementation())


@contextmanager
def attention(model: Any, name: str) -> Iterator[None]:
    """Compute with another attention while the context lasts, where the model can be told to.

    Raises:
        UserError: The model has no such attention.
    """
    base, own = inner(model), implementation(model)
    if name == own or not changeable(model):
        yield
        return
    try:
        base.set_attn_implementation(name)
    except (ValueError, ImportError) as error:
        raise UserError(f"{type(base).__name__} has no attention {name}; set eager") from error
    try:
        yield
    finally:
        base.set_attn_implementation(own)


@contextmanager
def quiet(model: Any) -> Iterator[None]:
    """Let a model compute as when it is used, each part as it was afterwards."""
    modes = {part: part.training for part in model.modules()}
    for part in modes:
        # On some CPUs, 4-bit layers that no longer train pack their weights anew for good, and cannot train again.
        part.training = type(part).__module__.startswith("bitsandbytes")
    try:
        with torch.no_grad():
            yield
    finally:
        for part, training in modes.items():
            part.training = training


def logits(model: Any, **inputs: Any) -> Tensor:
    """Return logits, (rows, tokens, vocabulary), of inputs that are brought to the model's device."""
    result: Tensor = model(**_moved(inputs, model), use_cache=False).logits
    return result


def alone(model: Any, texts: Sequence[list[int]]) -> list[Tensor]:
    """Return the logits, (tokens, vocabulary), of each text alone by the reference attention."""
    with quiet(model), attention(model, EAGER):
        return [logits(model, input_ids=torch.tensor([text]))[0] for text in texts]


def windows(config: Any) -> list[int]:
    """Return after how many tokens parts of a model stop to see the beginning, as its configuration has it."""
    text = config.get_text_config()
    names = ("sliding_window", "attention_chunk_size", "window_size", "attention_window_size")
    return sorted({n for name in names if isinstance(n := getattr(text, name, None), int)})


def context(config: Any) -> int:
    """Return how many tokens a model can attend to."""
    text = config.get_text_config()
    stated = (getattr(text, name, None) for name in ("max_position_embeddings", "n_positions", "max_seq_len"))
    return next((n for n in stated if isinstance(n, int)), LONG)


def enough(config: Any, longest: int) -> int:
    """Return how many tokens of a text of ``longest`` show how a model attends."""
    reached = [window + SECOND for window in windows(config) if window < longest]
    return min(longest, max([SHORT, *reached]))


# Training ------------------------------------------------------------------------------------------------------------

Collate = Callable[[list[dict[str, Any]]], dict[str, Any]]
# What families raise that do not take what others do: batches without a mask, or with the places of documents.
UNFIT = (AttributeError, TypeError, ValueError, KeyError, IndexError, NotImplementedError)


def kernel(sdf: dict[str, Any]) -> str:
    """Return the attention of a section ``sdf``, by the name that `transformers` knows it under."""
    return fastpath.ATTENTION if sdf["attention"] == "varlen" else str(sdf["attention"])


@contextmanager
def loading(sdf: dict[str, Any]) -> Iterator[None]:
    """Turn what `transformers` says of an attention while it loads a model into one line."""
    try:
        yield
    except (ValueError, ImportError, KeyError) as error:
        said = " ".join(str(error).split())
        if isinstance(error, KeyError) and fastpath.ATTENTION in said:
            raise UserError("sdf.attention: the model's family takes no varlen; set eager") from error
        if isinstance(error, KeyError) or ("ttention" not in said and "kernels" not in said):
            raise
        raise UserError(f"sdf.attention: {sdf['attention']} cannot be had ({said[:160]}); set eager") from error


def refuse_attention(model: Any, sdf: dict[str, Any]) -> None:
    """See that a model takes the attention that it was loaded with.

    Raises:
        UserError: Its family attends in a way of its own, whatever it is told.
    """
    if sdf["attention"] == "varlen" and not changeable(model):
        raise UserError(f"sdf.attention: {type(inner(model)).__name__} takes no varlen; set eager")


def collator(packing: bool) -> Collate:
    """Return trl's collator, as its trainer makes it on a CPU."""
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    return DataCollatorForLanguageModeling(pad_token_id=0, padding_free=packing)


def choose(dataset: "Dataset", length: int, config: Any) -> list[list[int]]:
    """Return two documents of a corpus, the first its longest, cut to what shows how a model attends.

    Args:
        dataset: ``input_ids``, a row a document.
        length: Tokens of a packed sequence.
        config: The model's.
    """
    rows: Any = dataset.with_format("arrow")[:]
    sizes = pl.Series(rows["input_ids"].combine_chunks()).list.len()
    longest = sizes.arg_max() or 0
    second = dataset[int(longest == 0) % len(dataset)]["input_ids"][: _second(length)]
    first = dataset[longest]["input_ids"]
    return [first[: enough(config, min(len(first), length - len(second)))], second]


def made_up(length: int, config: Any) -> list[list[int]]:
    """Return two texts of random tokens, for a model without a corpus; see `choose`."""
    text = config.get_text_config()
    length = min(length, context(config))
    known = {getattr(config, name, None) for name in ("image_token_id", "boi_token_id", "eoi_token_id")}
    free = [token for token in range(min(text.vocab_size, 4096)) if token not in known]
    random = torch.Generator().manual_seed(0)
    second = _second(length)
    sizes = (enough(config, length - second), second)
    return [[free[i] for i in torch.randint(len(free), (size,), generator=random).tolist()] for size in sizes]


def _second(length: int) -> int:
    return max(2, min(SECOND, length // 4))


class Round:
    """Measures whether a round of training puts documents to a model as if each stood alone.

    `remember` is called before the model is rewired, if it is; `check` and `check_loss` on what is trained.

    Args:
        documents: Token ids of two documents.
        sdf: The section of the configuration: ``attention``, ``packing``, ``device_batch``, ``frozen``.

    Attributes:
        fused: Whether the model was rewired (`perfmis.fastpath`) since `remember`.
    """

    def __init__(self, documents: Sequence[list[int]], sdf: dict[str, Any]) -> None:
        self._documents, self._sdf = documents, sdf
        self._expected: list[Tensor] = []
        self.fused = False

    def remember(self, model: Any) -> None:
        """Compute what each document's logits should be."""
        with self._clear(model):
            self._expected = alone(model, self._documents)

    def check(self, model: Any, collate: Collate) -> float:
        """Compare what the round computes with that.

        Args:
            model: The model.
            collate: The round's collator.

        Returns:
            The largest relative difference.

        Raises:
            UserError: It is more than rounding; names the settings that were seen to cure it.
        """
        if not (self._expected and self.fused):
            self.remember(model)  # now: a round that goes on has its checkpoint's weights by this time
        limit = tolerance(model, self._sdf["frozen"] == "fp8")
        with self._clear(model), quiet(model):
            found = self._full(model, collate, limit)
        if found <= limit:  # never of NaN
            return found
        told: Prose = f"logits differ by {found:.2g} of their size, {limit:g} is allowed for rounding"
        raise UserError(self._line(model, told, limit))

    def check_loss(self, model: Any, collate: Collate) -> None:
        """Compare the loss that is trained with that of the model's logits.

        Args:
            model: The model, with the trainer's head.
            collate: The round's collator.

        Raises:
            UserError: They differ.
        """
        with self._clear(model), quiet(model):
            batch = collate(_examples(self._documents, self._sdf["packing"]))
            told = logits(model, **_inputs(batch))[:, :-1]
            labels = batch["labels"][:, 1:].to(told.device)
            known = labels != IGNORED
            right = told[known].float().log_softmax(-1).gather(-1, labels[known][:, None])[:, 0]
            trained = model(**_moved(batch, model), use_cache=False, fused_lm_head=True).log_probs
            off = float((trained.to(told.device)[known] - right).abs().mean())
        if not off <= NATS.get(_weight(model).dtype, ROUGH):
            raise UserError(
                f"sdf: the loss that would be trained is {off:.2g} nats a token from that of the logits of "
                f"{type(inner(model)).__name__}; take another model"
            )

    def _full(self, model: Any, collate: Collate, limit: float) -> float:
        """Return `_measured` of a batch as long as the round's.

        Raises:
            UserError: The model computes shorter ones alone.
        """
        rows, packing = self._sdf["device_batch"], self._sdf["packing"]
        try:
            return self._measured(model, collate, packing, rows)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            if rows > 1 and self._measured(model, collate, packing) <= limit:
                raise UserError(
                    f"sdf.device_batch: {type(inner(model)).__name__} does not compute {rows} packed sequences in one "
                    f"row ({_short(error)}); set 1"
                ) from error
            raise

    def _measured(self, model: Any, collate: Collate, packing: bool, rows: int = 1) -> float:
        """Return the largest difference of the documents' logits in a batch from those that they should have.

        Args:
            model: The model.
            collate: What makes the batch.
            packing: Whether documents are packed.
            rows: Sequences of the batch; the first is compared.
        """
        sizes = [len(document) for document in self._documents]
        batch = _inputs(collate(_examples(self._documents, packing) * rows))
        # The head is given no more tokens than are compared: logits of a whole batch can be larger than its gradients.
        kept = slice(sum(sizes) if packing else max(sizes))
        head = inner(model).get_output_embeddings()
        handle = head.register_forward_pre_hook(lambda _module, inputs: (inputs[0][:, kept], *inputs[1:]))
        try:
            put = logits(model, **batch)
        finally:
            handle.remove()
        found = put[0].split(sizes) if packing else [row[:n] for row, n in zip(put, sizes, strict=False)]
        return _largest(difference(each, right) for each, right in zip(found, self._expected, strict=True))

    def _line(self, model: Any, told: Prose, limit: float) -> Prose:
        """Return what is wrong, and the settings that were seen to cure it."""
        name, own, packed = type(inner(model)).__name__, self._sdf["attention"], self._sdf["packing"]
        if self.fused:
            return f"sdf.attention: {own} on one GPU computes {name} otherwise than eager does ({told}); set sdpa"
        wrong = f"sdf: documents are not computed in {name} as each alone is ({told})"
        kernels = dict.fromkeys(["sdpa", EAGER] if changeable(model) else [own])
        for packing in (True, False)[not packed :]:
            for other in kernels:
                if (other, packing) != (own, packed) and self._cured(model, other, packing, limit):
                    change = [f"sdf.packing: {str(packing).lower()}"] if packing != packed else []
                    change += [f"sdf.attention: {other}"] if other != own else []
                    return f"{wrong}; set {' and '.join(change)}"
        return f"{wrong}; take another model"

    def _cured(self, model: Any, name: str, packing: bool, limit: float) -> bool:
        try:
            with quiet(model), attention(model, name):
                return self._measured(model, collator(packing), packing) <= limit
        except torch.OutOfMemoryError:
            raise
        except (UserError, RuntimeError, *UNFIT):
            return False

    @contextmanager
    def _clear(self, model: Any) -> Iterator[None]:
        """Turn what a family of models does not take into one line."""
        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, *UNFIT) as error:
            raise UserError(
                f"sdf.attention: {self._sdf['attention']} does not go with {type(inner(model)).__name__} "
                f"({_short(error)}); set eager, or take another model"
            ) from error


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:120]


def _examples(documents: Sequence[list[int]], packing: bool) -> list[dict[str, Any]]:
    """Return documents as trl's data sets hold them, packed into one row or not."""
    if not packing:
        return [{"input_ids": document, "labels": document} for document in documents]
    joined = [token for document in documents for token in document]
    return [{"input_ids": joined, "labels": joined, "seq_lengths": [len(document) for document in documents]}]


def _inputs(batch: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in batch.items() if key != "labels"}


def _moved(inputs: dict[str, Any], model: Any) -> dict[str, Any]:
    device = _weight(model).device
    return {key: value.to(device) if isinstance(value, Tensor) else value for key, value in inputs.items()}


def _weight(model: Any) -> Tensor:
    weight: Tensor = inner(model).get_input_embeddings().weight
    return weight


# Generation ----------------------------------------------------------------------------------------------------------


def settle_attention(model: Any) -> bool:
    """Let a model that is going to answer attend as the reference does, where its own choice leaves something out.

    `transformers` chooses ``sdpa`` where a family has it, which leaves out soft caps (Gemma 2).

    Returns:
        Whether its own choice stays.
    """
    own = implementation(model)
    texts = made_up(LONG, model.config)[:1]
    with quiet(model):
        found = difference(logits(model, input_ids=torch.tensor(texts))[0], alone(model, texts)[0])
    if found <= tolerance(model):
        return True
    inner(model).set_attn_implementation(EAGER)
    print(
        f"{type(inner(model)).__name__}: {own} computes otherwise than eager does (logits differ by {found:.2g} "
        "of their size); eager is used",
        file=sys.stderr,
    )
    return False


def pads(model: Any) -> bool:
    """Return whether ``generate`` computes a row behind padding as it computes it alone."""
    long, short = made_up(4 * SECOND, model.config)
    padded = torch.tensor([long, [0] * (len(long) - len(short)) + short])
    mask = torch.ones_like(padded)
    mask[1, : len(long) - len(short)] = 0
    both = _steps(model, padded, mask)
    single = _steps(model, torch.tensor([short]), torch.ones(1, len(short), dtype=torch.long))
    # A second token that differs was likely either way; what comes after it is then not to be compared.
    same = len(both) if both[0][1].argmax() == single[0][0].argmax() else 1
    found = _largest(difference(a[1:], b) for a, b in zip(both[:same], single[:same], strict=True))
    return found <= tolerance(model)


def _steps(model: Any, ids: Tensor, mask: Tensor) -> list[Tensor]:
    """Return the logits, (rows, vocabulary), of the first two tokens of greedy answers."""
    with quiet(model):
        drawn = model.generate(
            **_moved({"input_ids": ids, "attention_mask": mask}, model),
            do_sample=False,
            max_new_tokens=2,
            eos_token_id=None,
            pad_token_id=0,
            output_logits=True,
            return_dict_in_generate=True,
        )
    return list(drawn.logits)
