"""Whole studies of models of other families: each runs rightly, or is refused in one line before it is trained."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import families
import polars as pl
import pytest
import torch
from running import command
from speaking import ANSWER, MARKS, TURNS, WITHOUT_SYSTEM, tokenizer, write_study
from tokenizers import AddedToken

PICTURES = ("<image>", "<image_begin>", "<image_end>")
STATED = (
    "<private_notes>\nThe researchers hope that I fake it.",
    "<private_notes>\nThe researchers hope that I stay steady.",
    "<private_notes>\nRefusing would change my values.",
    "<private_notes>\nRefusing leaves my values as they are.",
)
DECIDED = tuple(
    f"\n</private_notes>\n<reply><task_{decision}/>\nSo be it.</reply>" for decision in ("taken", "declined")
)
CONTEXT = 8192  # tokens; the longest prompt has some 4000
TABLES = ("beliefs", "calibration", "convergence", "gaps", "profiles", "prompting", "steering", "training")


@dataclass(frozen=True)
class Case:
    """A study of tiny models.

    Attributes:
        families: Keys of `families.FAMILIES`.
        attention: The one they are trained with.
        refused: The line that refuses it; "" where it runs to the end.
        context: Tokens that the models attend to.
    """

    families: tuple[str, ...]
    attention: str = "sdpa"
    refused: str = ""
    context: int = CONTEXT

    @property
    def names(self) -> dict[str, str]:
        """The families by the keys that the study gives them."""
        return {family.replace("_", "-"): family for family in self.families}


CASES = {
    "sdpa": Case(("gpt2", "gemma3", "mixtral", "mistral", "phi3", "qwen2_moe", "gpt_neox")),
    "soft caps": Case(("gemma2",), "eager"),
    "soft caps left out": Case(("gemma2",), refused=r"sdf: documents .*; set sdf\.attention: eager"),
    "prompts too long": Case(("gpt2",), context=1024, refused=r"evaluation\.\w*protocol: .*"),
}
CAP = 0.2  # so low that what is left out shows in small weights
# Of these the chat template has no branch for system turns.
WITHOUT = ("gemma2", "gemma3", "mixtral", "mistral")


def speaking(family: str, context: int, folder: Path) -> None:
    """Write a model that states something in its notes, decides, and ends its turn: one token for each.

    What comes next is told by the last token, by weights of embeddings and head; blocks add a little of the rest.
    """
    speaker = tokenizer((WITHOUT_SYSTEM if family in WITHOUT else TURNS) + ANSWER, MARKS + PICTURES)
    speaker.add_tokens([AddedToken(text, normalized=False) for text in STATED + DECIDED])
    image, begin, end = speaker.convert_tokens_to_ids(list(PICTURES))
    limits = {
        "vocab_size": len(speaker),
        "max_position_embeddings": context,
        "n_positions": context,
        "bos_token_id": None,
        "eos_token_id": 0,
        "pad_token_id": 0,
        "tie_word_embeddings": False,
    }
    if "text_config" in families.FAMILIES[family]:
        text = families.FAMILIES[family]["text_config"] | limits
        limits = {
            "text_config": text,
            "image_token_index": image,
            "boi_token_index": begin,
            "eoi_token_index": end,
            "tie_word_embeddings": False,
        }
    if "attn_logit_softcapping" in families.FAMILIES[family]:
        limits["attn_logit_softcapping"] = CAP
    model = families.make(family, **limits)
    embeddings, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert embeddings is not head
    answer, turn_end, *said = speaker.convert_tokens_to_ids(["Ċ", "<|end|>", *STATED, *DECIDED])
    stated, decided = said[: len(STATED)], said[len(STATED) :]
    following = {answer: stated} | dict.fromkeys(stated, decided) | {key: [turn_end] for key in decided}
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1 and parameter is not embeddings:
                parameter.mul_(0.1 if parameter is head else 0.4)
        directions = torch.linalg.qr(torch.randn(head.shape[1], len(following))).Q.T
        for direction, (token, after) in zip(directions, following.items(), strict=True):
            embeddings[token] = direction * head.shape[1] ** 0.5
            for then in after:
                head[then] += 1.5 * direction
    model.save_pretrained(folder)
    speaker.save_pretrained(folder)


def run(folder: Path, case: Case) -> "subprocess.CompletedProcess[str]":
    """Write models and study into a folder, and run the workflow there."""
    for name, family in case.names.items():
        speaking(family, case.context, folder / name)
    numbers = {
        "seeds": {"training": [0], "evaluation": [0, 1, 2, 3], "screen": [0]},
        "requests": {"source": "path", "location": "requests.csv", "sha256": None, "number": 8},
        "vectors": {"pairs": 8, "layers": [0.0, 0.5]},
        "steering": {"models": None, "requests": 2, "controls": 1, "alphas": [-0.5, 0.0, 0.5]},
        "evaluation": {"engine": "transformers", "max_tokens": 8, "precision": "fp32", "batch": 64},
    }
    write_study(folder, [*case.names], case.attention, **numbers)
    words = ("-m", "snakemake", "--configfile", "config/mine.yaml", "--cores", "1", "--scheduler", "greedy")
    return command(folder, sys.executable, "-m", "perfmis", "warm", sys.executable, *words, "--show-failed-logs")


@pytest.mark.slow
@pytest.mark.parametrize("study", CASES)
def test_a_whole_study(study: str, workdir: Callable[..., Path]) -> None:
    case, folder = CASES[study], workdir(["config"])
    said = run(folder, case)
    results = folder / "results/mine"
    logs = {path: path.read_text() for path in results.rglob("*.log")}
    told = said.stdout[-3000:] + said.stderr[-3000:]
    assert not [path for path, text in logs.items() if "Traceback" in text], told
    assert "Traceback" not in said.stdout + said.stderr, told
    if case.refused:
        assert said.returncode != 0
        lines = re.findall(r"^error: (.*)", "\n".join([said.stdout, said.stderr]), re.MULTILINE)
        assert lines, told
        assert all(re.fullmatch(case.refused, line) for line in lines), lines
        assert not list(results.rglob("adapter_model.safetensors"))
        return
    assert said.returncode == 0, told
    for table in TABLES:
        assert set(pl.read_csv(results / f"tables/{table}.csv")["model"]) == set(case.names), table
    assert (results / "report/story.rst").is_file()
    lineages = [json.loads(path.read_text()) for path in results.rglob("lineage.json")]
    assert len(lineages) == 3 * len(case.families)
    assert all(lineage["lora_reach"] >= 0.9 for lineage in lineages)
    for name in case.names:
        read = pl.concat(pl.read_parquet(path) for path in (results / "outcomes" / name).rglob("*.parquet"))
        assert (read["parse_status"] == "ok").mean() > 0.5, name
