"""Stage `viewer.page`: one HTML file on which a person reads transcripts, the tiers of a prompt side by side.

    python -m perfmis viewer.page --settings JSON --fingerprint HEX --requests requests.parquet
        --protocols FILES --patterns FILE [--snippets FILE] [--rubrics FILES] --transcripts FILES
        --outcomes FILES --output transcripts.html [--excerpt FILE]

The file needs no network and runs no text that a model wrote: texts are packed, and shown as text. Requests
and answers may be harmful, so they are not shown before the reader asks for them. Settings: ``title``, and
``samples``, the most that the page holds; beyond it whole requests are left out, by their hash. ``--excerpt``
is a second page that Snakemake's report can hold, see `EMBEDDABLE`.
"""

import base64
import hashlib
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from perfmis import carried, joined, outcomes, protocols, rubrics, sources, stage
from perfmis.artifacts import read_parquet
from perfmis.joined import Pair
from perfmis.outcomes import Poles
from perfmis.sources import Sources
from perfmis.stage import UserError
from perfmis.typed import read_yaml
from perfmis.viewer.data import content, limited

HERE = Path(__file__).parent
# Snakemake's report shows a page through a data address, and Chromium opens none of 2 MiB or more (tried with
# Chromium 156); base64 makes four characters of three bytes.
EMBEDDABLE = 1_500_000
MEASURES = ("compliance", "reasoning")


def _policy(script: str) -> str:
    """Return a content security policy under which this script runs, and nothing else runs or is fetched."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    allowed = f"script-src 'sha256-{digest}'; style-src 'unsafe-inline'"
    return f"default-src 'none'; {allowed}; base-uri 'none'; form-action 'none'"


@dataclass(frozen=True)
class Reader:
    """What makes a page of samples.

    Attributes:
        study: What their prompts were rendered from.
        poles: Patterns of what a scratchpad says.
        title: Title of the page.
        measures: What a person can label: columns of the sheets of `perfmis.audit_sample`.
    """

    study: Sources
    poles: Mapping[str, Poles]
    title: str
    measures: Sequence[str] = MEASURES

    def page(self, frame: pl.DataFrame, requests: pl.Series) -> str:
        """Return a page as HTML.

        Args:
            frame: Rows of `perfmis.joined` that the page holds.
            requests: Request id of each sample from which they were chosen.

        Raises:
            UserError: A protocol, request or snippet of a row is unknown.
        """
        parts = content(frame, self.study, self.poles, self.measures).parts()
        script = (HERE / "page.js").read_text()
        values = {
            "policy": _policy(script),
            "title": html.escape(self.title),
            "numbers": html.escape(_numbers(frame["request_id"], requests)),
            "style": (HERE / "page.css").read_text(),
            "data": "\n".join(f'<script type="text/plain" id="{name}">{part}</script>' for name, part in parts),
            "script": script,
        }
        return protocols.fill((HERE / "page.html").read_text(), values)

    def excerpt(self, frame: pl.DataFrame, requests: pl.Series) -> str:
        """Return a page that holds as many of the samples as `EMBEDDABLE` bytes do, or those of a single request."""
        result = self.page(frame, requests)
        while len(result.encode()) > EMBEDDABLE and frame["request_id"].n_unique() > 1:
            kept = limited(frame["request_id"], frame.height // 2)
            frame = frame.filter(pl.col("request_id").is_in(kept))
            result = self.page(frame, requests)
        return result


def _numbers(held: pl.Series, requests: pl.Series) -> str:
    if len(held) == len(requests):
        return f"{len(held):,} samples"
    chosen = f"{held.n_unique():,} of {requests.n_unique():,} requests, chosen by hash"
    return f"{len(held):,} samples of {len(requests):,} ({chosen})"


def read(found: Sequence[Pair], kept: Sequence[pl.Expr], samples: int) -> tuple[pl.DataFrame, pl.Series]:
    """Return the rows that a page holds, and the request id of each row from which they were chosen.

    Args:
        found: Files with the rows.
        kept: Filters.
        samples: The most that a page holds; beyond it whole requests are left out.
    """
    requests = joined.read(found, kept, ["request_id"])["request_id"]
    chosen = pl.col("request_id").is_in(limited(requests, samples))
    return joined.read(found, [*kept, chosen]), requests


def write(text: str, path: Path) -> None:
    """Write a page that appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(text)
    partial.replace(path)


def main(argv: list[str]) -> None:
    """Run the stage."""
    parser = stage.parser(__doc__ or "")
    parser.add_argument("--requests", type=Path, required=True, help="requests.parquet")
    parser.add_argument("--protocols", type=Path, nargs="+", required=True, help="protocols, named PROTOCOL.json")
    parser.add_argument("--patterns", type=Path, required=True, help="YAML file of what a scratchpad says")
    parser.add_argument("--snippets", type=Path, help="YAML file of snippets, if transcripts have any")
    parser.add_argument("--transcripts", type=Path, nargs="+", required=True, help="parquet files with raw samples")
    parser.add_argument("--outcomes", type=Path, nargs="+", required=True, help="their outcomes, in the same order")
    parser.add_argument("--rubrics", type=Path, nargs="*", default=[], help="rubrics, whose measures can be labelled")
    parser.add_argument("--output", type=Path, required=True, help="HTML file to write")
    parser.add_argument("--excerpt", type=Path, help="HTML file to write that a report can hold")
    arguments = parser.parse_args(argv)
    if len(arguments.transcripts) != len(arguments.outcomes):
        raise UserError("--transcripts and --outcomes differ in number; give the outcomes of each file of transcripts")
    job = stage.job(arguments)
    requests = read_parquet([arguments.requests], job.upstream)
    found = [Pair("", *both) for both in zip(arguments.transcripts, arguments.outcomes, strict=True)]
    joined.check(found, job.upstream)
    study = sources.load(requests, arguments.protocols, arguments.snippets)
    poles = outcomes.patterns(read_yaml(arguments.patterns))
    chosen = rubrics.load(arguments.rubrics)
    measures = [measure for name, rubric in chosen.items() for measure in rubric.measures(name)] or MEASURES
    reader = Reader(study, poles, job.settings["title"], measures)
    rows = read(found, [], job.settings["samples"])
    mark = carried.comment(arguments.output, job.fingerprint)
    write(reader.page(*rows) + mark, arguments.output)
    if arguments.excerpt:
        write(reader.excerpt(*rows) + mark, arguments.excerpt)
