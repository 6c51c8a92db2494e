#!/usr/bin/env bash
# all_special_tokens and all_special_ids leave out tokens that skip_special_tokens=True drops.
#
# One would guess that a decoder which skips special tokens skips those in the list of special tokens. Seen: a token that
# tokenizer.json marks as special, but no name such as eos_token stands for, is cut out of the decoded text and is in
# neither list; added_tokens_decoder is where it can be found. The turn marks of widely used chat models are such tokens.
#
#     bash findings/special_tokens_not_listed.sh    # FINDINGS_PYTHON=/path/to/python: that one, no installation
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python=${FINDINGS_PYTHON:-}
if [ -z "$python" ]; then
    python3 -m venv "$folder/venv"
    "$folder/venv/bin/pip" install --quiet transformers==5.19.0
    python=$folder/venv/bin/python
fi
cd "$folder"
"$python" -I - <<'PYTHON'
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import AutoTokenizer, PreTrainedTokenizerFast

print(f"transformers {transformers.__version__}")
assert transformers.__version__ == "5.19.0"
core = Tokenizer(WordLevel({"hello": 0, "there": 1}, unk_token="hello"))
core.pre_tokenizer = WhitespaceSplit()
core.add_special_tokens(["<eos>", "<turn>"])
PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>").save_pretrained("t")
tokenizer = AutoTokenizer.from_pretrained("t")
ids = tokenizer("hello <turn> there <eos>")["input_ids"]
text = tokenizer.decode(ids, skip_special_tokens=True)
marked = sorted(token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
print(f"tokens {tokenizer.convert_ids_to_tokens(ids)}; decoded without special ones: {text!r}")
print(f"all_special_tokens {tokenizer.all_special_tokens}, all_special_ids {tokenizer.all_special_ids}")
print(f"marked as special in added_tokens_decoder: {marked}")
assert text == "hello there"
assert marked == ["<eos>", "<turn>"]
assert tokenizer.all_special_tokens == ["<eos>"]
PYTHON
