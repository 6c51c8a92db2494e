#!/usr/bin/env bash
# One number among the texts of a JSON column, and datasets turns other texts of that column into values.
#
# One would guess that a text stays the text it is, whatever stands in other rows. Seen: a column of texts is read as it
# is; with a single number in it the column becomes a Json feature, and every text that happens to be JSON is parsed
# too: "007" is 7, "1e3" is 1000.0, "true" is True, "null" and "NaN" are None.
#
#     bash findings/texts_become_values_in_mixed_columns.sh    # FINDINGS_PYTHON=/path/to/python: that one, no installation
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python=${FINDINGS_PYTHON:-}
if [ -z "$python" ]; then
    python3 -m venv "$folder/venv"
    "$folder/venv/bin/pip" install --quiet datasets==5.2.0
    python=$folder/venv/bin/python
fi
cd "$folder"
export HF_HOME="$folder/home"
"$python" -I - <<'PYTHON'
import json
from pathlib import Path

import datasets

datasets.disable_progress_bars()
print(f"datasets {datasets.__version__}")
assert datasets.__version__ == "5.2.0"
TEXTS = ["words", "007", "1e3", "true", "null", "NaN"]
VALUES = ["words", 7, 1000.0, True, None, None]


def read(name, cells):
    """Return a column and its type as load_dataset reads them from JSON lines."""
    path = Path(f"{name}.jsonl")
    path.write_text("".join(json.dumps({"answer": cell}) + "\n" for cell in cells))
    made = datasets.load_dataset("json", data_files=str(path), split="train")
    return list(made["answer"]), made.features["answer"]


texts, plain = read("texts", TEXTS)
mixed, changed = read("mixed", [*TEXTS, 5])
print(f"texts alone        {plain}\n  {texts}\nand a number more  {changed}\n  {mixed}")
assert texts == TEXTS
assert mixed == [*VALUES, 5], "texts in a mixed column are other than seen before"
assert [type(cell) for cell in mixed] == [type(cell) for cell in [*VALUES, 5]]
PYTHON
