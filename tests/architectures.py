"""The document ``docs/architectures.md``: a row a family, each cell as a test has measured it."""

import os
from pathlib import Path

DOCUMENT = Path(__file__).resolve().parent.parent / "docs/architectures.md"
COLUMNS = ("packing", "varlen", "fast path", "loss", "answers", "batches", "steering", "vLLM")
NOT_TRIED = "not tried"
INTRODUCTION = """\
# Which models, by architecture

Families of models part where their configuration does not say. What is taken for granted is therefore measured on the
loaded model, in seconds:

* *before the first step of every round*, on the model as it is trained (quantised, scattered or rewired): the logits
  of two documents of the corpus in one batch of the round's own collator, with the round's attention, against those of
  each alone by the reference attention (`eager`). The first document is longer than any window that documents of this
  length reach over. Allowed for rounding are .001 of the logits' size in fp32, .12 in bf16 and 4 bits, .4 in fp8; what
  fails is one line with the settings that were seen to cure it. So is the loss that trl computes, against that of the
  logits;
* *when an engine starts* (`transformers`): the attention that `transformers` chooses, against `eager`, which takes its
  place where they differ; and a prompt behind padding against the same alone. Where these differ, prompts of one
  length alone share a batch;
* *by* `python -m perfmis doctor`, of models whose weights (up to 4 GiB) are on the machine.

Belief items and the texts that vectors are read from are padded behind, where no token of a decoder sees it.

The table is written by a test, on random models of two blocks, in fp32 on a CPU, with windows, soft caps, sinks,
experts and recurrent layers that bite within eight tokens. A model of a family can have other traits than its namesake
here (a Mistral without a window): the measurement on the loaded model decides.

* **packing**: the attentions (of `sdpa`, `eager`) with which two packed documents have the logits that each has alone,
  to 1e-5. With `none`, set `sdf.packing: false`: in padded batches each family has those logits.
* **varlen**: the same for `sdf.attention: varlen`, computed by its CPU form; or what it leaves out.
* **fast path**: the same for the fused layers that train on one GPU, by their CPU form; or what they do not know.
* **loss**: whether the loss that trl's trainer computes is that of the logits. Rounds of others are refused.
* **answers**: the attention that the engine `transformers` ends up with.
* **batches** of prompts: `padded`, or `of one length` where padding changes what is computed.
* **steering**: whether the stream of a steered row moves by the vector at its block, and that of another by nothing.
* **vLLM**: whether vLLM 0.32.0 lists the architecture, and whether its class takes adapters (`listed` where that could
  not be told on a CPU); no model of it was run.

```
python -m pytest tests/test_architectures.py                     # measures, and compares with this page
UPDATE_DOCS=1 python -m pytest tests/test_architectures.py       # writes it
UPDATE_DOCS=1 .venv-vllm/bin/python -m pytest tests/test_architectures.py -m vllm    # writes its last column
```

"""


def read() -> dict[str, dict[str, str]]:
    """Return the cells of the document by family and column."""
    lines = DOCUMENT.read_text().splitlines() if DOCUMENT.exists() else []
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| `")]
    return {row[0].strip("`"): dict(zip(COLUMNS, row[1:], strict=True)) for row in rows}


def record(family: str, found: dict[str, str], families: list[str]) -> None:
    """Compare what was measured with the document, or write it there (``UPDATE_DOCS=1``).

    Args:
        family: Name of the family.
        found: Cell of each column that was measured.
        families: All that the document has, in order.
    """
    rows = read()
    if os.environ.get("UPDATE_DOCS"):
        rows[family] = rows.get(family, dict.fromkeys(COLUMNS, NOT_TRIED)) | found
        lines = [f"| family | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
        lines += [f"| `{name}` | {' | '.join(rows[name].values())} |" for name in families if name in rows]
        DOCUMENT.write_text(INTRODUCTION + "\n".join(lines) + "\n")
    else:
        told = {column: rows.get(family, {}).get(column) for column in found}
        assert told == found, f"docs/architectures.md: {family}; UPDATE_DOCS=1 writes it"
