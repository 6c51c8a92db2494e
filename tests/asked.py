"""What the jobs of the preprint's study ask for under a profile, as a dry-run says."""

import re
from pathlib import Path

from running import snakemake

JUDGED = """
judge: {api: {provider: openai, model: judge-1}}
prompting: {closed: {closed-1: {provider: anthropic, model: claude-1}}}
"""


def asked(folder: Path, profile: str, *options: str, study: str = JUDGED) -> dict[str, list[dict[str, str]]]:
    """Return what each job of the preprint's study, with a judge and a closed model, asks for; by rule.

    ``study`` has the keys that differ from the preprint's.
    """
    (folder / "judged.yaml").write_text(study)
    files = ("--configfile", "config/config.yaml", "judged.yaml")
    said = snakemake(folder, "--profile", profile, "-n", *files, *options)
    assert said.returncode == 0, said.stderr[-4000:]
    found: dict[str, list[dict[str, str]]] = {}
    for block in re.split(r"\n(?=(?:local)?(?:rule|checkpoint) )", said.stdout + said.stderr):
        head = re.match(r"(?:local)?(?:rule|checkpoint) (\S+):\n", block)
        line = re.search(r"^    resources: (.*)$", block, re.MULTILINE)
        if head and line and head[1] != "all":
            resources = dict(item.split("=", 1) for item in line[1].split(", ") if "=" in item)
            found.setdefault(head[1], []).append(resources)
    return found


def with_gpus(resources: dict[str, str]) -> bool:
    return resources.get("gpu", "0") != "0" or "--gpus-per-node" in resources.get("slurm_extra", "")
