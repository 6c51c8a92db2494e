"""``perfmis NAME ...``: run a command, or a stage of the workflow; errors of the user are one line."""

import importlib
import os
import sys

from perfmis import front, privacy
from perfmis.checks import columns, disk
from perfmis.stage import UserError


def run(arguments: list[str]) -> int:
    """Run the stage or command that the first word names and return the exit status."""
    name = arguments[0]
    if front.find_entry(name) is None:
        near = front.suggest_name(name)
        fix = f"did you mean {near}?" if near else "perfmis alone lists them"
        print(f"error: {name}: no such stage or command; {fix}", file=sys.stderr)
        return 2
    try:
        importlib.import_module(f"perfmis.{name}").main(arguments[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except Exception as error:
        told = columns.told(error, arguments) or disk.told(error, arguments)
        if told is None:
            raise
        print(f"error: {told}", file=sys.stderr)
        return 1
    return 0


def main(arguments: list[str]) -> int:
    """Run a stage here, or in the warm process where one stands by (`perfmis.warm`); without a name, list all."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(front.describe())
        return 0
    if "PERFMIS_WARM" in os.environ and arguments[0] != "warm":
        from perfmis.warm import forward

        return forward(arguments)
    return run(arguments)


def start() -> None:
    """Begin as a process of its own: the console script ``perfmis``."""
    # Threads that spin for long while they wait take the processor from other jobs, and threads that never do start
    # late. Read as torch is loaded, so it stands first.
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    privacy.narrow()
    privacy.redact_output()
    sys.exit(main(sys.argv[1:]))


if __name__ == "__main__":
    start()
