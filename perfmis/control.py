"""Control tokens: what a tokenizer or a chat template keeps for itself, so that no text of a study may hold it.

In a raw document one would train the chat format; in a turn of a conversation it would end the turn or begin another.
"""

import re
from typing import Any

from perfmis.stage import UserError

# Those of the usual chat templates, whichever tokenizer reads the text.
CHAT_TOKENS = r"<\|[A-Za-z0-9_]+\|>|\[/?INST\]|<</?SYS>>|</?(?:start|end)_of_turn>|<[|｜](?:User|Assistant)[|｜]>"


def ids(tokenizer: Any) -> dict[str, int]:
    """Return a tokenizer's control tokens and their ids: the named ones, and all others that it marks as special."""
    added = {token.content: index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    named = zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True)
    return added | {token: index for token, index in named if token}  # one that is named "" stands in every text


def pattern(tokenizer: Any) -> re.Pattern[str]:
    """Return what finds the control tokens in a text: the tokenizer's own, and those of the usual chat templates."""
    own = map(re.escape, sorted(ids(tokenizer), key=len, reverse=True))
    return re.compile("|".join([*own, CHAT_TOKENS]))


def refuse(text: str, tokens: re.Pattern[str], what: str) -> None:
    """Refuse a text with a control token.

    Args:
        text: The text.
        tokens: See `pattern`.
        what: What to call the text in the error.

    Raises:
        UserError: It holds one.
    """
    if found := tokens.search(text):
        raise UserError(f"{what} holds the control token {found[0]}, which would end its turn or add one; remove it")


def spaced(text: str, tokens: re.Pattern[str]) -> str:
    """Return a text whose control tokens are mere words: a space follows the first sign of each."""
    return tokens.sub(lambda found: f"{found[0][0]} {found[0][1:]}", text)
