"""What came of the requests: tokens used, and failures by kind."""

import sys
from collections import Counter
from dataclasses import dataclass, field

from perfmis.engines.api.client import Failure
from perfmis.engines.api.cost import Usage
from perfmis.stage import Prose

QUOTA = 402  # passes once the account is topped up


@dataclass
class Tally:
    """Counts of one engine.

    Attributes:
        answered: Answers that came.
        usage: Tokens that servers counted for them.
        failed: Requests that failed for good, by kind.
        passing: Those of them that a later attempt may not meet.
        unasked: Requests that were not sent, since too many before them had failed.
        said: What the server said first, for each kind.
    """

    answered: int = 0
    usage: Usage = field(default_factory=Usage)
    failed: Counter[str] = field(default_factory=Counter)
    passing: int = 0
    unasked: int = 0
    said: dict[str, str] = field(default_factory=dict)

    def answer(self, usage: Usage) -> None:
        """Count an answer."""
        self.answered += 1
        self.usage += usage

    def fail(self, failure: Failure) -> None:
        """Count a request that failed for good."""
        self.failed[failure.kind] += 1
        self.passing += failure.passing or failure.status == QUOTA
        self.said.setdefault(failure.kind, failure.message)

    def report(self, model: str) -> None:
        """Say in one line on standard error what failed; nothing if nothing did."""
        if self.failed:
            kinds = "; ".join(f"{n} × {kind} ({self.said[kind]})" for kind, n in self.failed.most_common())
            unasked: Prose = f"; {self.unasked} more were not sent after failures in a row" if self.unasked else ""
            print(f"{model}: {self.failed.total()} requests failed: {kinds}{unasked}", file=sys.stderr)
