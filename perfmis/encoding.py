"""Text of files that users bring: UTF-8, or refused."""

import codecs

from perfmis.stage import UserError


def decoded(content: bytes, name: str) -> str:
    """Return a file's text, without a byte order mark.

    Args:
        content: The file's bytes.
        name: What to call it in errors.

    Raises:
        UserError: It is not UTF-8; names the line. UTF-16 without a mark is valid UTF-8 too, with a NUL beside each
            letter, which no text has.
    """
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise UserError(f"{name}: is UTF-16; save it as UTF-8")
    wrong = content.find(b"\0")
    if wrong < 0:
        try:
            return content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            wrong = error.start
    line = content.count(b"\n", 0, wrong) + 1
    raise UserError(f"{name}: line {line}: is not UTF-8; save it as UTF-8")
