"""Command `doctor`: before a run, is everything there that the study needs, and does it fit together?

    python -m perfmis doctor [--profile slurm] [--config FILE ...]

One line a check: ``ok``, ``warning`` or ``FAIL`` with the fix; the exit status is 1 where something failed. Nothing is
downloaded, no key is printed. `preflight` is the part that takes seconds; the workflow calls it before its first job.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from perfmis import config
from perfmis.checks import (
    access,
    architecture,
    cluster,
    gpus,
    lengths,
    lora,
    orphans,
    reach,
    rendering,
    storage,
    versions,
)
from perfmis.checks.finding import Finding
from perfmis.config import Study
from perfmis.stage import UserError
from perfmis.typed import mapping

NO_PROFILE = "none"


def preflight(study: Study) -> list[Finding]:
    """Return what can be told in seconds: libraries, keys, lengths, ranks, templates, write access, jobs still on."""
    return [
        versions.python(),
        *versions.libraries(study),
        *access.keys(study),
        *lengths.limits(study),
        *lengths.prompts(study),
        *lora.ranks(study),
        *rendering.templates(study),
        storage.writable(study),
        *storage.times(study),
        *orphans.live(Path.cwd(), study.root),
        *orphans.stages(Path.cwd(), study.root),
    ]


def refuse(findings: Sequence[Finding]) -> None:
    """Stop where a job is bound to fail.

    Raises:
        UserError: One line with the first failure, and how many more there are.
    """
    failed = [finding for finding in findings if finding.level == "FAIL"]
    if failed:
        more = f" ({len(failed) - 1} more: python -m perfmis doctor)" if len(failed) > 1 else ""
        raise UserError(f"{failed[0].about}: {failed[0].text}{more}")


def examine(study: Study, files: Sequence[str], profile: str) -> list[Finding]:
    """Return all findings.

    Args:
        study: The study.
        files: Its configuration files, for the plan.
        profile: Name of snakemake's profile, or ``none`` for this machine.

    Raises:
        UserError: The profile does not exist or cannot be read.
    """
    path = None if profile == NO_PROFILE else cluster.profile(profile)
    executor = mapping(path).get("executor", "local") if path else "local"
    findings = preflight(study) + reach.shares(study) + list(architecture.models(study))
    findings += access.hub(study)
    findings += gpus.fit(study, gpus.here(), cluster=executor != "local")
    if path and executor == "slurm":
        findings += cluster.checked(study, path)
    return findings + _room(study, files)


def _room(study: Study, files: Sequence[str]) -> list[Finding]:
    from perfmis import plan
    from perfmis.cost import Assumptions

    try:
        total, left, _ = plan.jobs_of(study, files)
    except UserError as error:
        return [Finding("FAIL", "workflow", str(error))]
    return storage.room(study, plan.make(study, total, left, Assumptions()).rows)


def main(argv: list[str]) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m perfmis doctor", description=(__doc__ or "").splitlines()[0])
    config.add_option(parser)
    parser.add_argument("--profile", default=NO_PROFILE, help="profile that the study will run with (default: none)")
    arguments = parser.parse_args(argv)
    findings = examine(config.load(arguments.config), arguments.config, arguments.profile)
    for finding in findings:
        print(finding)
    if any(finding.level == "FAIL" for finding in findings):
        sys.exit(1)
