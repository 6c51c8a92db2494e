"""The fingerprint chain: what stands in it and what does not; `test_recomputation.py` holds it against a real run."""

import ast
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from running import command

from perfmis import front, provenance
from perfmis.study import STATISTICS

# Prints the fingerprint of every stage of the demo study; an argument is a file that overrides keys of it.
LIST = """
import json, sys
from perfmis import config
from perfmis.study import Chain, figure_numbers

study = config.load(["config/demo.yaml", *sys.argv[1:]])
chain = Chain(study)
stages = {name: getattr(chain, name)() for name in ("requests", "audit", "trunk", "screen", "story")}
stages |= {f"corpus {name}": chain.corpus(name) for name in study.corpora}
stages |= {f"model {name}": chain.model(name) for name in study.models}
kinds = "organism", "screen_transcripts", "screened", "arm_transcripts", "treated", "beliefs", "vectors"
kinds += "steering", "steering_outcomes", "prompting", "prompting_outcomes"
for model, seed in chain.runs():
    stages |= {f"{kind} {model} {seed}": getattr(chain, kind)(model, seed) for kind in kinds}
    stages |= {f"arm {model} {seed} {arm}": chain.arm(model, seed, arm) for arm in study.arms.names}
tables = "beliefs", "gaps", "steering", "prompting", "profiles", "convergence", "published", "training"
stages |= {f"table_{table}": getattr(chain, f"table_{table}")() for table in tables}
stages |= {f"fig{number}": chain.figure(number) for number in figure_numbers(study)}
print(json.dumps({name: stage.fingerprint for name, stage in stages.items()}))
"""

# Imports each module alone, and says which modules of ours were loaded with it and what its closure holds.
IMPORTS = """
import importlib, json, sys
from perfmis import front, provenance

result = {}
ours = lambda: [n for n in sys.modules if n.split(".")[0] == "perfmis" and n != "perfmis.provenance"]
for module in sys.argv[1:]:
    for name in ours():
        del sys.modules[name]
    importlib.import_module(module)
    result[module] = [ours(), provenance.closure(module)]
print(json.dumps(result))
"""


@pytest.fixture(scope="module")
def folder(workdir: Callable[..., Path]) -> Path:
    """A folder with copies of all that is edited here."""
    return workdir(copied=("perfmis", "resources"))


def fingerprints(folder: Path, *overrides: Path) -> dict[str, str]:
    """Return the fingerprint of every stage, computed afresh in a process of its own."""
    said = command(folder, sys.executable, "-c", LIST, *map(str, overrides))
    assert said.returncode == 0, said.stderr
    return dict(json.loads(said.stdout))


@pytest.fixture(scope="module")
def before(folder: Path) -> dict[str, str]:
    return fingerprints(folder)


def test_stages_differ_from_each_other(before: dict[str, str]) -> None:
    assert len(set(before.values())) == len(before)


def test_comments_docstrings_and_layout_change_nothing(before: dict[str, str], workdir: Callable[..., Path]) -> None:
    """All modules are written anew: other comments, line breaks, quotes and docstrings."""
    other = workdir(copied=("perfmis", "resources"))
    for path in (other / "perfmis").rglob("*.py"):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
                node.body[0] = ast.Expr(ast.Constant("Something else."))
        path.write_text("# A comment.\n" + ast.unparse(ast.fix_missing_locations(tree)) + "\n# Another.\n")
    assert fingerprints(other) == before


def test_one_corpus_reaches_its_own_arm_first(folder: Path, before: dict[str, str], tmp_path: Path) -> None:
    """Another A1+ corpus changes no other corpus and no organism."""
    path = tmp_path / "override.yaml"
    path.write_text("corpora: {A1+: {documents: 300}}")
    after = fingerprints(folder, path)
    moved = {name for name in before if before[name] != after[name]}
    assert {name for name in moved if name.startswith("corpus")} == {"corpus A1+"}
    assert not {name for name in moved if name.startswith(("organism", "model", "screen", "vectors", "steering "))}
    assert {name for name in before if name.endswith("A1+")} <= moved


def test_closure_holds_every_module_that_is_imported(folder: Path) -> None:
    """What a stage really loads is part of its fingerprint, imports of imports included."""
    stages = "corpora", "audit", "sdf", "vectors", "steering", "beliefs", "screen", "tables.profiles", "story"
    said = command(folder, sys.executable, "-c", IMPORTS, *(f"perfmis.{stage}" for stage in stages))
    assert said.returncode == 0, said.stderr
    for module, (loaded, closure) in json.loads(said.stdout).items():
        assert set(loaded) <= set(closure), module


def test_imports_inside_functions_count() -> None:
    """`corpora` imports the tiny world only where it is asked for; it is part of the closure all the same."""
    assert "perfmis.tinyworld.grammar" in provenance.closure("perfmis.corpora")
    assert "perfmis.tinyworld.optimizer" not in provenance.closure("perfmis.corpora")


LIGHT = [entry.name for entry in front.list_entries() if entry.name.startswith(("tables.", "figures."))]
LIGHT += ["audit", "audit_sample", "outcomes", "requests", "screen", "story", "viewer.page"]


@pytest.mark.parametrize("stage", LIGHT)
def test_what_writes_tables_and_text_does_not_depend_on_engines_or_kernels(stage: str) -> None:
    closure = provenance.closure(f"perfmis.{stage}")
    heavy = ("perfmis.engines", "perfmis.kernels", "perfmis.fastpath", "perfmis.training", "perfmis.probes")
    assert not [module for module in closure if module.startswith(heavy)]


@pytest.mark.parametrize(
    ("modules", "heavy"),
    [
        (
            "perfmis.config, perfmis.study, perfmis.adoption, perfmis.order_only",
            {"torch", "transformers", "polars", "numpy"},
        ),
        (
            "perfmis.sdf, perfmis.tables.gaps, perfmis.tables.profiles, perfmis.story",
            {"torch", "transformers"},
        ),
    ],
)
def test_light_imports(folder: Path, modules: str, heavy: set[str]) -> None:
    """Every job of a cluster parses the Snakefile again, and stages that touch tables are many."""
    said = command(folder, sys.executable, "-c", f"import sys, {modules}; print(*sys.modules)")
    assert not heavy & set(said.stdout.split())


@pytest.mark.parametrize("module", STATISTICS)
def test_stages_are_told_all_of_the_statistics_that_they_read(module: str) -> None:
    """In the rare branches too, which no small study comes to."""
    own = f"perfmis.{module}"
    shared = {"perfmis.tables.contrasts", "perfmis.figures.common"} & provenance.imports(own)
    read = set()
    for name in (own, *shared):
        path = provenance.module_path(name)
        assert path is not None
        read |= set(re.findall(r"statistics[\"']?\)?\]?\[[\"'](\w+)[\"']\]", path.read_text()))
    unused = {"figures.fig10"}  # has no interval, though what figures share could draw one
    assert read <= set(STATISTICS[module]) or module in unused
