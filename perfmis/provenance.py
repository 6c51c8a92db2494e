"""Fingerprints: what an artifact depends on, as one hash.

Snakemake does not see a change in a package module, and a rerun that fails can leave a stale table standing.
Both are closed by one mechanism: each job's params carry the hash of its settings, of the sources it can
run, of the data files it reads and of the fingerprints upstream, so a change anywhere above changes the
params of everything below and of nothing else.
"""

import ast
import functools
import hashlib
from collections.abc import Iterable
from pathlib import Path

from perfmis import meaning
from perfmis.stage import canonical

PACKAGE = "perfmis"
ROOT = Path(__file__).resolve().parent
DIGITS = 16


def module_path(module: str) -> Path | None:
    """Return the source file of a first-party module, or None if there is no such module."""
    parts = module.split(".")[1:]
    base = ROOT.joinpath(*parts)
    for candidate in (base.with_suffix(".py"), base / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


@functools.cache
def _read(module: str) -> tuple[str, frozenset[str]]:
    """Return the meaning of a module (`perfmis.meaning`), and the names it imports.

    Trees are large and not kept: the garbage collector would go through them again and again.
    """
    path = module_path(module)
    assert path is not None
    tree = ast.parse(path.read_text())
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return meaning.of(tree), frozenset(found)


@functools.cache
def imports(module: str) -> frozenset[str]:
    """Return the first-party modules that a module imports anywhere, functions included.

    Imports are absolute in this package (a rule of the linter), and nothing is executed. Imports under
    ``TYPE_CHECKING`` count too: they cost nothing but a rare spurious rerun.
    """
    _, names = _read(module)
    return frozenset(name for name in names if name.split(".")[0] == PACKAGE and module_path(name))


@functools.cache
def closure(module: str) -> tuple[str, ...]:
    """Return the module, all it imports directly or not, and their parent packages, sorted."""
    seen: set[str] = set()
    todo = [module]
    while todo:
        name = todo.pop()
        if name not in seen:
            seen.add(name)
            todo += imports(name)
            todo += [name.rsplit(".", i)[0] for i in range(1, name.count(".") + 1)]
    return tuple(sorted(seen))


@functools.cache
def code(module: str) -> str:
    """Return the hash of all first-party code that a stage module can run."""
    digest = hashlib.sha256()
    for name in closure(module):
        source, _ = _read(name)
        digest.update(f"{name}\0{source}\0".encode())
    return digest.hexdigest()[:DIGITS]


@functools.cache
def data(path: str) -> str:
    """Return the hash of a file, or of all files below a folder by relative name."""
    top = Path(path)
    files = sorted(p for p in top.rglob("*") if p.is_file()) if top.is_dir() else [top]
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(top) if file != top else ''}\0".encode() + file.read_bytes() + b"\0")
    return digest.hexdigest()[:DIGITS]


def fingerprint(module: str, settings: str, files: Iterable[str]) -> str:
    """Return the fingerprint of a job.

    Args:
        module: Stage module, such as ``perfmis.sdf``.
        settings: Canonical JSON of its settings and upstream fingerprints.
        files: Data files and folders it reads beside artifacts.
    """
    parts = [module, settings, code(module), [[str(f), data(str(f))] for f in sorted(map(str, files))]]
    return hashlib.sha256(canonical(parts).encode()).hexdigest()[:DIGITS]
