"""``python -m perfmis STAGE ...``: run one stage of the workflow; errors of the user are one line."""

import importlib
import os
import sys

from perfmis.stage import UserError


def run(arguments: list[str]) -> int:
    """Run the stage that the first word names and return the exit status."""
    try:
        importlib.import_module(f"perfmis.{arguments[0]}").main(arguments[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def main(arguments: list[str]) -> int:
    """Run a stage here, or in the warm process where one stands by (`perfmis.warm`)."""
    if not arguments or arguments[0].startswith("-"):
        print("usage: python -m perfmis STAGE --help; stages are the modules of the package", file=sys.stderr)
        return 2
    if "PERFMIS_WARM" in os.environ and arguments[0] != "warm":
        from perfmis.warm import forward

        return forward(arguments)
    return run(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
