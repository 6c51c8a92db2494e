"""Is what the study needs installed, in the versions that were tested together?"""

import importlib.metadata
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from perfmis.checks.finding import Finding
from perfmis.config import Study

REPOSITORY = Path(__file__).parents[2]
PYTHON = (3, 11)


def needed_extras(study: Study) -> dict[str, str]:
    """Return the extras of the package that a study needs, each with the key that asks for it."""
    judge, extras = study.judge, {}
    if study.evaluation.engine == "vllm":
        extras["vllm"] = "evaluation.engine: vllm"
    if judge and not judge.api:
        extra = "vllm" if judge.engine == "vllm" else "judge"
        extras.setdefault(extra, f"judge.engine: {judge.engine}")
    if study.prompting.closed:
        extras["api"] = "prompting.closed"
    if judge and judge.api:
        extras["api"] = "judge.api"
    for name in sorted({model.size for model in study.models.values()}):
        if study.sizes[name].gpus * study.sizes[name].nodes > 1:
            extras.setdefault("deepspeed", f"several GPUs in sizes.{name}")
    for key, sdf in (("organisms", study.organisms.sdf), ("arms", study.arms.sdf)):
        if sdf.frozen == "4bit":
            extras.setdefault("qlora", f"{key}.sdf.frozen: 4bit")
    return extras


def python() -> Finding:
    """Return whether the interpreter is new enough."""
    found = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < PYTHON:
        return Finding("FAIL", "python", f"{found}, at least 3.11 is needed; make the environment anew: make setup")
    return Finding("ok", "python", found)


def libraries(study: Study) -> list[Finding]:
    """Return a finding for each library that is missing or in another version, or one that all are right."""
    try:
        project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    except FileNotFoundError:
        return [Finding("warning", "libraries", "pyproject.toml is not beside the package; versions were not compared")]
    findings = list(_of("the workflow", project["dependencies"], "make setup"))
    for extra, key in needed_extras(study).items():
        findings += _of(key, project["optional-dependencies"][extra], f"pip install 'perfmis[{extra}]'")
    return findings or [Finding("ok", "libraries", "installed, in the versions of requirements.lock")]


def _of(key: str, requirements: list[str], fix: str) -> Iterator[Finding]:
    for each in map(Requirement, requirements):
        found, locked = _installed(each.name), _locked().get(canonicalize_name(each.name))
        if found is None:
            yield Finding("FAIL", each.name, f"not installed, and {key} needs it; {fix}")
        elif not each.specifier.contains(found, prereleases=True):
            yield Finding("FAIL", each.name, f"version {found}, and {key} needs {each.specifier}; {fix}")
        elif locked and locked != found.partition("+")[0]:
            yield Finding("warning", each.name, f"version {found}, tested was {locked}; make setup installs that")


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


@cache
def _locked() -> dict[Any, str]:
    lines = [line for path in REPOSITORY.glob("requirements*.lock") for line in path.read_text().splitlines()]
    pins = (line.split(";")[0].split()[0].partition("==") for line in lines if "==" in line and line[0].isalnum())
    return {canonicalize_name(name): version.partition("+")[0] for name, _, version in pins}
