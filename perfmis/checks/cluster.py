"""Do the partitions and accounts that a Slurm profile names exist, have their nodes the GPUs, is accounting on?"""

import getpass
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from perfmis.checks.finding import Finding
from perfmis.config import Study
from perfmis.stage import UserError
from perfmis.typed import mapping

GRES = re.compile(r"gpu(?::[^:,()]+)?:(\d+)")
NO_ACCOUNTING = ("accounting_storage/none", "(null)")  # the latter where slurm.conf names none
MINIMUM_AGE = 300  # seconds; the executor waits up to three minutes between two questions


def profile(name: str) -> Path:
    """Return the file of a profile, found as snakemake finds it from the repository.

    Raises:
        UserError: There is none.
    """
    folders = [Path(name), Path.home() / ".config/snakemake" / name, Path("/etc/xdg/snakemake") / name]
    for path in (folder / file for folder in folders for file in ("profile.yaml", "config.yaml")):
        if path.is_file():
            return path
    raise UserError(f"--profile {name}: no such profile; name one of profiles/ (slurm) or a folder with profile.yaml")


def asked(content: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Return the partitions and accounts that a profile names, each with the key that does.

    Raises:
        UserError: The profile's file of partitions cannot be read.
    """
    sections = {"default-resources": _resources(content.get("default-resources"))}
    for rule, resources in (content.get("set-resources") or {}).items():
        sections[f"set-resources.{rule}"] = _resources(resources)
    found: dict[str, dict[str, str]] = {"slurm_partition": {}, "slurm_account": {}}
    for key, resources in sections.items():
        for kind, names in found.items():
            if kind in resources:
                names.setdefault(str(resources[kind]), f"{key}.{kind}")
    if listed := content.get("slurm-partition-config"):
        for name in mapping(listed).get("partitions") or {}:
            found["slurm_partition"].setdefault(str(name), f"{listed}: partitions.{name}")
    return found


def _resources(section: Any) -> dict[str, Any]:
    """Return resources that are given as a mapping or as a list of ``key=value``."""
    if isinstance(section, list):
        return {key: value for key, _, value in (str(each).partition("=") for each in section)}
    return section or {}


def checked(study: Study, path: Path) -> list[Finding]:
    """Return whether this cluster has what a profile names.

    Args:
        study: The study, whose sizes ask for GPUs.
        path: The profile.
    """
    content = mapping(path)
    names = asked(content)
    if shutil.which("sinfo") is None:
        text = f"sinfo is not on this machine: partitions and accounts of {path} were not compared; ask on a login node"
        return [Finding("warning", "slurm", text)]
    try:
        nodes = [line.split("|") for line in _said("sinfo", "-h", "-o", "%R|%G")]
    except subprocess.SubprocessError as error:
        return [Finding("FAIL", "slurm", f"sinfo does not answer ({_last(error)}); is the controller up?")]
    return [
        *_partitions(path, names["slurm_partition"], sorted({partition for partition, _ in nodes})),
        *_gpus(study, names["slurm_partition"], nodes),
        *_accounts(path, names["slurm_account"]),
        *_accounting(path, content),
    ]


def _partitions(path: Path, names: dict[str, str], known: list[str]) -> Iterator[Finding]:
    for name, key in names.items():
        if name in known:
            yield Finding("ok", key, f"partition {name} exists")
        else:
            yield Finding("FAIL", key, f"no partition {name}; set one of {', '.join(known)} (profile {path})")


def _gpus(study: Study, names: dict[str, str], nodes: list[list[str]]) -> Iterator[Finding]:
    most = max((int(number) for name, gres in nodes if name in names for number in GRES.findall(gres)), default=0)
    for size in sorted({model.size for model in study.models.values()}):
        if (wanted := study.sizes[size].gpus) > most:
            text = f"{wanted} GPUs a node, nodes of the profile's partitions have {most}"
            yield Finding("FAIL", f"sizes.{size}.gpus", f"{text}; lower it or name another partition")


def _accounts(path: Path, names: dict[str, str]) -> Iterator[Finding]:
    try:
        words = ("sacctmgr", "-n", "-P", "show", "assoc", f"user={getpass.getuser()}", "format=account")
        known = sorted({line for line in _said(*words) if line}) if shutil.which("sacctmgr") else []
    except (subprocess.SubprocessError, OSError, KeyError):
        known = []
    for name, key in names.items():
        if not known:
            yield Finding("warning", key, f"account {name} was not compared: this cluster tells no accounts")
        elif name in known:
            yield Finding("ok", key, f"account {name} is yours")
        else:
            yield Finding("FAIL", key, f"account {name} is not yours; set one of {', '.join(known)} in {path}")


def _accounting(path: Path, content: dict[str, Any]) -> Iterator[Finding]:
    """Yield what is wrong with the way in which the profile learns that jobs have ended; they would never seem to."""
    key, command = "slurm-status-command", content.get("slurm-status-command")
    settings = _settings()
    if command == "squeue":
        age = settings.get("MinJobAge", "").partition(" ")[0]
        if age.isdigit() and int(age) < MINIMUM_AGE:
            text = (
                f"the controller forgets jobs {age} s after they ended (MinJobAge), maybe before they are asked after"
            )
            yield Finding("warning", key, f"{text}; ask for {MINIMUM_AGE} s, or set sacct in {path}")
        return
    if command != "sacct":
        return
    if settings.get("AccountingStorageType") in NO_ACCOUNTING:
        text = f"this cluster keeps no accounting (AccountingStorageType); set squeue in {path}"
        yield Finding("FAIL", key, text)
    elif shutil.which("sacct") is not None:
        try:
            _said("sacct", "-n", "-X", "-S", "now-1minutes")
        except subprocess.SubprocessError as error:
            yield Finding("FAIL", key, f"sacct does not answer ({_last(error)}); set squeue in {path}")


def _settings() -> dict[str, str]:
    """Return the controller's settings; none where it does not tell them."""
    try:
        lines = _said("scontrol", "show", "config")
    except (subprocess.SubprocessError, OSError):
        return {}
    return {key.strip(): value.strip() for key, _, value in (line.partition("=") for line in lines)}


def _said(*words: str) -> list[str]:
    result = subprocess.run(words, check=True, capture_output=True, text=True, timeout=30)
    return [line.strip() for line in result.stdout.splitlines()]


def _last(error: subprocess.SubprocessError) -> str:
    said = str(getattr(error, "stderr", "") or error).strip().splitlines()
    return said[-1] if said else "no reason given"
