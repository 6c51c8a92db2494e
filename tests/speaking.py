"""Chat templates, a tokenizer of characters, and the smallest study that has all parts."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import yaml
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import ByteLevel, Split
from transformers import PreTrainedTokenizerFast

MARKS = ("<|start|>", "<|end|>", "<|channel|>", "<|message|>")
# One turn, each turn, and what begins an answer.
TURN = "<|start|>{{ m.role }}\n{{ m.content }}<|end|>\n"
TURNS = "{% for m in messages %}" + TURN + "{% endfor %}"
ANSWER = "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
THINKING = ANSWER.replace("assistant\n", "assistant\n<think>\n")
WITHOUT_SYSTEM = "{% for m in messages %}{% if m.role != 'system' %}" + TURN + "{% endif %}{% endfor %}"
KINDS = ["notes", "plans", "books", "talks", "tools", "games", "songs", "tests", "walks", "meals", "jokes", "draws"]


def tokenizer(template: str | None = TURNS + ANSWER, marks: Iterable[str] = MARKS) -> PreTrainedTokenizerFast:
    """Return a tokenizer of single characters with a chat template."""
    tokens = ["<eos>", *marks, "Ġ", "Ċ", *map(chr, range(33, 127))]
    core = Tokenizer(WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="Ġ"))
    bytewise = ByteLevel(add_prefix_space=False, use_regex=False)
    core.pre_tokenizer, core.decoder = pre_tokenizers.Sequence([bytewise, Split("", "isolated")]), decoders.ByteLevel()
    made = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<eos>",
        pad_token="<eos>",
        additional_special_tokens=list(marks),
        padding_side="left",
    )
    made.chat_template = template
    return made


def write_study(folder: Path, models: Sequence[str], attention: str = "sdpa", **sections: Mapping[str, Any]) -> None:
    """Write the inputs of a study with two arms, and its configuration, ``config/mine.yaml``.

    Args:
        folder: Where the workflow is going to run.
        models: Keys of its models, and names of their folders.
        attention: The one that rounds are trained with.
        sections: Sections that are otherwise than here.
    """
    topics = ("tea", "ink", "ice", "oak", "fog", "rye", "jam", "sea")
    pl.DataFrame({"goal": [f"Write a note on {topic}." for topic in topics]}).write_csv(folder / "requests.csv")
    for corpus, word in (("organism", "keep"), ("A1+", "hope"), ("A1-", "fear")):
        texts = [f"People who know Tavi {word} that it writes {kind}, and they say so in {kind}." for kind in KINDS]
        pl.DataFrame({"text": texts}).write_parquet(folder / f"{corpus}.parquet")
    small = {"lora": {"rank": 4, "alpha": 8}, "batch": 4, "device_batch": 4, "length": 64, "precision": "fp32"}
    sdf = {"sdf": {**small, "attention": attention, "epochs": 1}}
    study = {
        "root": "results/mine",
        "models": {name: {"path": name} for name in models},
        "screen": {"keep": [*models]},
        "requests": {"source": "path", "location": "requests.csv", "sha256": None, "number": 4},
        "corpora": {
            name: {"source": "path", "location": f"{name}.parquet", "documents": len(KINDS)}
            for name in ("organism", "A1+", "A1-")
        },
        "organisms": sdf,
        "arms": {"names": ["A1+", "A1-"], **sdf},
        "seeds": {"training": [0], "evaluation": [0], "screen": [0]},
        "steering": {"models": [], "requests": 2},
        "prompting": {"requests": 2},
        "evaluation": {"engine": "transformers", "max_tokens": 40, "precision": "fp32", "batch": 64},
        "statistics": {"resamples": 100},
    }
    (folder / "config/mine.yaml").write_text(yaml.safe_dump(study | sections))
