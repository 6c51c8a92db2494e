#!/usr/bin/env bash
# A key that first stands in row 101 has no column in polars, and nothing is said.
#
# One would guess that a key which comes late either makes a column, null in the rows before, or is an error, as a late
# value of another type is. Seen: types are taken from the first 100 rows, and what only later rows have is left out, by
# pl.DataFrame of dictionaries and by pl.read_ndjson alike; one row earlier it makes a column.
#
#     bash findings/late_keys_are_left_out.sh    # FINDINGS_PYTHON=/path/to/python: that one, no installation
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python=${FINDINGS_PYTHON:-}
if [ -z "$python" ]; then
    python3 -m venv "$folder/venv"
    "$folder/venv/bin/pip" install --quiet polars==2.1.0
    python=$folder/venv/bin/python
fi
cd "$folder"
"$python" -I - <<'PYTHON'
import io
import json

import polars as pl

print(f"polars {pl.__version__}")
assert pl.__version__ == "2.1.0"


def columns(before, late):
    """Return the columns of rows of which only the last has what is in ``late``: from dictionaries, and from JSON lines."""
    rows = [{"step": row} for row in range(before)] + [{"step": before, **late}]
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    return pl.DataFrame(rows).columns, pl.read_ndjson(io.BytesIO(text)).columns


for before in (99, 100):
    print(f"a new key in row {before + 1}: {columns(before, {'loss': 0.5})}")
assert columns(99, {"loss": 0.5}) == (["step", "loss"], ["step", "loss"])
assert columns(100, {"loss": 0.5}) == (["step"], ["step"]), "a late key makes a column now"
try:
    columns(100, {"step": "a text"})
except Exception as error:
    print(f"another type in row 101: {type(error).__name__}")
else:
    raise SystemExit("a late value of another type is no error now")
PYTHON
