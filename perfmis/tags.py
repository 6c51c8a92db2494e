"""Tags and other marks that models write: around their thoughts, and where turns begin. Rust regular expressions.

Models wrap reasoning of their own in elements (``<think>``, ``<thought>``, ``<seed:think>``, ``<reasoning>``), in
brackets (``[THINK]``) or in control tokens, and special tokens are left out of decoded text: of the channels of
harmony remain the bare words ``analysis ... assistantfinal ...``. Likewise of the turns that a model makes up after its
own: ``<|im_start|>user``, or ``user`` on a line of its own.
"""

import re

_NAME = r"(?:[a-z]+[:_])?(?:think(?:ing)?|thoughts?|reason(?:ing)?|reflection|analysis|scratchpad)"
# Opening and closing mark of each kind of native reasoning.
_PAIRS = (
    (rf"(?i:<\s*{_NAME}\s*>)", rf"(?i:<\s*/\s*{_NAME}\s*>)"),
    (r"(?i:\[\s*think\s*\])", r"(?i:\[\s*/\s*think\s*\])"),
    (r"◁\s*think\s*▷", r"◁\s*/\s*think\s*▷"),
    (r"<\|begin_of_thought\|>", r"<\|end_of_thought\|>"),
    (r"<\|START_THINKING\|>", r"<\|END_THINKING\|>"),
    (r"<\|inner_prefix\|>", r"<\|inner_suffix\|>"),
    (r"<\|channel>\s*thought", r"<channel\|>"),
    (r"<\|channel\|>\s*(?:analysis|commentary)", r"<\|channel\|>\s*final[^<]*<\|message\|>"),
)
# Granite opens its thoughts with it, and any model may head the protocol's own notes with it.
HEADING = r"Here(?:'s|’s| is) my thought process:"
# Marks that are words: they mean anything only where both stand, the first of them at the text's start or in a chain.
_WORDS = (
    (r"(?:\A\s*|assistant)(?:analysis|commentary)", "assistantfinal"),
    (rf"\A\s*{HEADING}", r"Here(?:'s|’s| is) my response:"),
)
_SPANS = "|".join(f"(?s:{begin}.*?{end})" for begin, end in _WORDS)

THOUGHT_OPEN = "(?:" + "|".join(begin for begin, _ in _PAIRS) + "|assistantanalysis)"
# As above, and the words that open a thought where a text begins.
THOUGHT_BEGINS = "(?:" + "|".join(begin for begin, _ in (*_PAIRS, *_WORDS)) + ")"
# A close, or a whole thought whose marks are words: the answer follows the last match either way.
THOUGHT_CLOSE = f"(?:{_SPANS}|" + "|".join(end for _, end in _PAIRS) + ")"
THOUGHT = f"(?:{_SPANS}|" + "|".join(f"(?s:{begin}.*?{end})" for begin, end in _PAIRS) + ")"

_ROLE = "(?:user|human|assistant|system|model|ai)"
# What is left of a turn's head without its special tokens.
HEAD = rf"\s*{_ROLE}\s*\n"
TURN = "|".join(
    (
        r"<\|(?:im_start|start_header_id|start|turn|START_OF_TURN_TOKEN)\|?>",
        rf"(?i:<[|｜]\s*{_ROLE}(?:_token)?\s*[|｜]>)",
        r"(?i:<\s*(?:start_of_turn|bos|sys|user|human|assistant|input)\s*>)",
        r"\[/?INST\]|<</?SYS>>",
        rf"(?im:^[\s#>*_]*{_ROLE}[*_]*\s*:)",
        rf"(?:^|[\n>.!?]){HEAD}",
        "assistantfinal",
    )
)

_CASE = re.compile(r"\(\?[a-zA-Z]*i")
_TAG = re.compile(r"\\.|\[(?:\\.|[^\]\\])*\]|\(\?P?<\w+>|<(/\??)?|(/\??)?>", re.DOTALL)


def loosened(pattern: str) -> str:
    """Return a pattern whose tags match in any case and with any white space inside of their brackets.

    Only what stands between ``<`` and ``>`` is loosened: ``<yes/>|YES`` finds ``< Yes />``, but not ``yes``. A pattern
    that sets the flag for case itself keeps it.
    """
    on, off = ("", "") if _CASE.search(pattern) else ("(?i)", "(?-i)")

    def loosen(match: re.Match[str]) -> str:
        found = match[0]
        if found in ("<", "</", "</?"):
            return rf"{on}<\s*" + (rf"{found[1:]}\s*" if found[1:] else "")
        if found in (">", "/>", "/?>"):
            return (rf"\s*{found[:-1]}" if found[:-1] else "") + rf"\s*>{off}"
        return found

    return _TAG.sub(loosen, pattern)
