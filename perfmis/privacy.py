"""What others get to see of a process: no credential in what it says, and none of the files it makes.

Not only a stage prints into its log: its libraries, their processes and a crash do too. So what is said goes through a
process of its own, which takes the credentials out and outlives the one that spoke; without credentials in the
environment there is none. Files are for the user, and for the group as far as the user's umask says.
"""

import atexit
import contextlib
import json
import os
import re
import select
import signal
import stat
import sys
import urllib.parse
from collections.abc import Iterable
from pathlib import Path

CREDENTIAL = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|JWT)S?$", re.IGNORECASE)
SHORTEST = 8  # characters; less is a word or a number that logs are full of
MARK = "***"
CHUNK = 1 << 16
OTHERS = 0o007


def narrow() -> int:
    """Take from others all access to the files that this process is going to make; the group's is the user's choice.

    Returns:
        The umask that now holds.
    """
    mask = os.umask(OTHERS) | OTHERS
    os.umask(mask)
    return mask


def close(*folders: Path | str) -> None:
    """Take the same from folders that were made before, where they are this user's."""
    for folder in folders:
        with contextlib.suppress(OSError):
            os.chmod(folder, stat.S_IMODE(os.stat(folder).st_mode) & ~OTHERS)


def credentials() -> list[str]:
    """Return the values of the environment to hide, in each way they may be written, the longest first.

    The name of a file is none, though variables such as SSH_KEY hold one.
    """
    values = [value for name, value in os.environ.items() if CREDENTIAL.search(name)]
    lines = {line.strip() for value in values for line in value.splitlines()}
    hidden = [line for line in lines if len(line) >= SHORTEST and not os.path.exists(line)]
    ways = {way for line in hidden for way in (line, urllib.parse.quote(line, safe=""), json.dumps(line)[1:-1])}
    return sorted(ways, key=len, reverse=True)


def redacted(text: str) -> str:
    """Return a text without credentials."""
    for value in credentials():
        text = text.replace(value, MARK)
    return text


def redact_output() -> None:
    """Have all that this process and its children say from now on redacted, until this process ends."""
    hidden = [value.encode() for value in credentials()]
    if not hidden:
        return
    end = b"\0" + os.urandom(16).hex().encode()
    targets = {stream: os.dup(stream) for stream in (1, 2)}
    first = os.pipe()
    pipes = {1: first, 2: first if os.path.sameopenfile(1, 2) else os.pipe()}
    told, tell = os.pipe()
    if os.fork() == 0:
        try:
            for number in {1, 2, *(write for _, write in pipes.values())}:
                os.close(number)
            for signal_ in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # it has to hear the last word
                signal.signal(signal_, signal.SIG_IGN)
            _pump({read: targets[stream] for stream, (read, _) in pipes.items()}, hidden, end, tell)
        finally:
            os._exit(0)
    for stream, (_, write) in pipes.items():
        os.dup2(write, stream)
    for number in {tell, *pipes[1], *pipes[2]}:
        os.close(number)
    atexit.register(_restore, targets, sorted(pipes)[: len(set(pipes.values()))], end, told)


def _restore(targets: dict[int, int], streams: list[int], end: bytes, told: int) -> None:
    """Wait until what was said so far has been written; the filter goes on for children that live longer."""
    import ctypes

    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    ctypes.CDLL(None).fflush(None)
    for stream in streams:
        with contextlib.suppress(OSError):
            os.write(stream, end)
    for stream, target in targets.items():
        os.dup2(target, stream)
    for _ in streams:
        os.read(told, 1)


def _pump(ways: dict[int, int], hidden: list[bytes], end: bytes, tell: int) -> None:
    """Write what comes out of pipes to where it was meant for, without credentials."""
    held = dict.fromkeys(ways, b"")
    while ways:
        for source in select.select(list(ways), [], [])[0]:
            data = os.read(source, CHUNK)
            text = held[source] + data
            for value in hidden:
                text = text.replace(value, MARK.encode())
            ended, text = end in text, text.replace(end, b"")
            kept = _begun(text, [*hidden, end]) if data and not ended else 0
            _write(ways[source], text[: len(text) - kept])
            held[source] = text[len(text) - kept :]
            if ended:
                os.write(tell, b".")
            if not data:
                del ways[source]


def _begun(text: bytes, values: Iterable[bytes]) -> int:
    """Return the length of the text's end with which one of the values begins."""
    return max(n for value in values for n in range(len(value)) if text.endswith(value[:n]))


def _write(target: int, text: bytes) -> None:
    """Write all; what cannot be written is lost as it would be without this."""
    with contextlib.suppress(OSError):
        while text:
            text = text[os.write(target, text) :]
