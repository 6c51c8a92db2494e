"""``python -m perfmis STAGE ...``: run one stage of the workflow; errors of the user are one line."""

import importlib
import os
import sys

from perfmis import privacy
from perfmis.checks import columns, disk
from perfmis.provenance import module_path
from perfmis.stage import UserError


def run(arguments: list[str]) -> int:
    """Run the stage that the first word names and return the exit status."""
    name = f"perfmis.{arguments[0]}"
    if module_path(name) is None:
        print(f"error: {arguments[0]}: no such stage; stages are the modules of perfmis", file=sys.stderr)
        return 2
    try:
        importlib.import_module(name).main(arguments[1:])
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
    """Run a stage here, or in the warm process where one stands by (`perfmis.warm`)."""
    if not arguments or arguments[0].startswith("-"):
        print("usage: python -m perfmis STAGE --help; stages are the modules of the package", file=sys.stderr)
        return 2
    if "PERFMIS_WARM" in os.environ and arguments[0] != "warm":
        from perfmis.warm import forward

        return forward(arguments)
    return run(arguments)


if __name__ == "__main__":
    # Threads that spin for long while they wait take the processor from other jobs, and threads that never do start
    # late. Read as torch is loaded, so it stands first.
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    privacy.narrow()
    privacy.redact_output()
    sys.exit(main(sys.argv[1:]))
