"""Exact recomputation over the demo: for every module, file and key, what reruns is what must rerun, and nothing else.

A real run, made small, is watched once: which modules each stage loads, which files it opens, which settings it reads.
What must rerun after an edit are the stages that were seen to depend on it, and what lies below them in Snakemake's own
DAG; what does rerun is what fingerprints say, and for an edit of each sort what Snakemake itself says in a folder in
which the whole demo has been pretended to run.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import keys
import pytest
import recomputation as rc
import yaml
from conftest import REPOSITORY
from recomputation import Job, Name
from running import jobs, snakemake

from perfmis import config, provenance
from perfmis.study import Chain

# The screen's verdict as a list: with `auto` no dry-run sees beyond a screen that is to run again.
STUDY = ("config/demo.yaml", "kept.yaml")
KEPT: dict[str, Any] = {
    "screen": {"keep": list(rc.KEPT)},
    "sizes": {"tiny": {}, "spare": {}, "70b": {}},
    "organisms": {"sdf": {"device_batch": 4}},
    "arms": {"sdf": {"device_batch": 4}},
}

MODULES = sorted(
    ".".join(("perfmis", *path.relative_to(REPOSITORY / "perfmis").with_suffix("").parts)).removesuffix(".__init__")
    for path in (REPOSITORY / "perfmis").rglob("*.py")
)
FILES = sorted(
    str(path.relative_to(REPOSITORY))
    for folder in ("resources", "perfmis")
    for path in (REPOSITORY / folder).rglob("*")
    if path.is_file() and path.suffix not in (".py", ".pyc")
)

# Part of a stage's fingerprint though the demo never loads it: modules imported inside of functions.
NOT_LOADED = {
    "perfmis.engines.api*": "an engine is imported when it is chosen, and the demo's is transformers",
    "perfmis.engines.vllm*": "likewise",
    "perfmis.kernels": "imported where there is a GPU",
    "perfmis.engines.kernels": "likewise",
}
# Read by a stage, without a part in what it makes.
NOT_DECISIVE = {
    (stage, "batch"): "how many samples or texts at once: it is in no sample's address"
    for stage in ("generation", "prompting", "steering", "beliefs", "vectors")
} | {("sdf", "sdf.lora.reach"): "below it a round is refused; one that is not learns the same"}
# Read by a stage in the demo, but not in the study that was watched.
NOT_SEEN = {("tables.gaps", "statistics.floor"): "read of a neutral arm, which the watched study lacks"}

Seen = dict[str, dict[str, set[str]]]


@pytest.fixture(scope="module")
def folder(workdir: Callable[..., Path]) -> Path:
    """A folder in which the demo has been pretended to run."""

    def make(copied: tuple[str, ...]) -> Path:
        made = workdir(copied)
        (made / "kept.yaml").write_text(yaml.safe_dump(KEPT))
        return made

    return rc.pretended(make, *STUDY)


@pytest.fixture(scope="module")
def dag(folder: Path) -> dict[Name, Job]:
    return rc.listed(folder, *STUDY)


@pytest.fixture(scope="module")
def observed(workdir: Callable[..., Path]) -> Seen:
    return rc.observe(workdir)


@pytest.fixture(scope="module")
def here(folder: Path) -> Iterator[Path]:
    """The folder, as the place where the chain of this process reads code and files."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(provenance, "ROOT", folder / "perfmis")
        forget()
        yield folder
    forget()


@pytest.fixture(scope="module")
def before(here: Path, dag: dict[Name, Job]) -> dict[Name, str]:
    """Fingerprints of all jobs when nothing is edited."""
    return fingerprints(dag)


def fingerprints(dag: dict[Name, Job], *overrides: str) -> dict[Name, str]:
    """Return the fingerprints of the jobs, from the files of the current folder and further configuration."""
    chain = Chain(config.load([*STUDY, *overrides]))
    return {name: stage.fingerprint for name, stage in rc.stages(chain, dag).items()}


def forget() -> None:
    """Let hashes of code and files be computed anew."""
    provenance.code.cache_clear()
    provenance.data.cache_clear()


def changed(before: Mapping[Name, str], after: Mapping[Name, str]) -> set[Name]:
    return {name for name in before if before[name] != after[name]}


def test_chain_describes_the_jobs_that_the_workflow_has(dag: dict[Name, Job], before: dict[Name, str]) -> None:
    assert len(dag) == 128
    assert {name: job.fingerprint for name, job in dag.items()} == before


def test_what_a_stage_loads_is_in_its_fingerprint_and_all_else_in_it_is_explained(
    observed: Seen,
) -> None:
    more: dict[str, set[str]] = {}
    for stage, own in observed.items():
        closure = set(provenance.closure(f"perfmis.{stage}"))
        assert own["modules"] <= closure, stage
        for module in closure - own["modules"] - {"perfmis"}:
            more.setdefault(module, set()).add(stage)
    unexplained = {module for module in more if not any(fnmatch(module, pattern) for pattern in NOT_LOADED)}
    assert not unexplained
    assert all(any(fnmatch(module, pattern) for module in more) for pattern in NOT_LOADED), (
        "an exception is out of date"
    )


def loading(module: str, stage: str, observed: Seen) -> bool:
    """Say whether a stage depends on a module: it was seen to load it, or has it for one of the reasons above."""
    if any(fnmatch(module, pattern) for pattern in NOT_LOADED):
        return module in provenance.closure(f"perfmis.{stage}")
    return module in observed[stage]["modules"] | {"perfmis"}


@contextmanager
def edited(path: Path, text: str) -> Iterator[None]:
    """Replace a file's text for a while."""
    original = path.read_text()
    path.write_text(text)
    forget()
    try:
        yield
    finally:
        path.write_text(original)
        forget()


@pytest.mark.parametrize("module", MODULES)
def test_module(
    module: str,
    here: Path,
    dag: dict[Name, Job],
    before: dict[Name, str],
    observed: Seen,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A statement more reruns the stages that load the module and what lies below; a comment and a docstring do not."""
    path = provenance.module_path(module)
    assert path is not None
    text = path.read_text()

    known = provenance._read
    told_otherwise = re.sub(r'(?s)\A""".*?"""', '"""Another docstring."""', text)
    with edited(path, f"# A comment.\n{told_otherwise}\n"):
        assert known.__wrapped__(module) == known(module)
    with edited(path, f"{text}\n\nEDITED = True\n"):
        anew = known.__wrapped__(module)
        # It alone is parsed again.
        monkeypatch.setattr(provenance, "_read", lambda name: anew if name == module else known(name))
        after = fingerprints(dag)
    must = {job.name for job in dag.values() if loading(module, job.module, observed)}
    assert changed(before, after) == rc.below(dag, must)


def opening(file: str, stage: str, observed: Seen) -> bool:
    """Say whether a stage was seen to open a file; those of the watched study's arm stand for those of all arms."""
    return re.sub(r"/[AB][12][+-]\.|/N0\.", f"/{rc.OBSERVED_ARM}.", file) in observed[stage]["files"]


@pytest.mark.parametrize("file", FILES)
def test_file(file: str, here: Path, dag: dict[Name, Job], before: dict[Name, str], observed: Seen) -> None:
    path = here / file
    with edited(path, path.read_text() + "\n"):
        after = fingerprints(dag)
    must = {job.name for job in dag.values() if opening(file, job.module, observed)}
    if file.startswith("resources/protocols"):  # each is a job of its own
        must = {name for name in must if name[1] == (("protocol", path.stem),)}
    assert changed(before, after) == rc.below(dag, must)


def reading(stage: str, path: str, observed: Seen) -> bool:
    """Say whether a stage was seen to read a setting, and makes something else of another value."""
    if (stage, path) in NOT_DECISIVE:
        return False
    return re.sub(r"^models\.[^*]*", "models.both", path) in observed[stage]["read"] or (stage, path) in NOT_SEEN


def moved(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
    """Return the settings that differ."""
    was, now = dict(rc.leaves(before)), dict(rc.leaves(after))
    return {path for path in was.keys() | now.keys() if was.get(path, ...) != now.get(path, ...)}


@pytest.mark.parametrize("key", keys.changeable())
def test_key(key: str, here: Path, dag: dict[Name, Job], before: dict[Name, str], observed: Seen) -> None:
    """Another value reruns the stages that read a setting which it changes, and what lies below."""
    study = dict(rc.leaves(config.load(list(STUDY)).model_dump()))
    (here / "other.yaml").write_text(yaml.safe_dump(keys.nested(key, keys.another(key, study[key]))))
    other = config.load([*STUDY, "other.yaml"])
    assert dict(rc.leaves(other.model_dump()))[key] != study[key]
    after = rc.stages(Chain(other), dag)
    told = {name: json.loads(stage.settings)["settings"] for name, stage in after.items()}
    must = {
        name
        for name, job in dag.items()
        if any(reading(job.module, path, observed) for path in moved(job.settings, told[name]))
    }
    assert changed(before, {name: stage.fingerprint for name, stage in after.items()}) == rc.below(dag, must)


def followed(job: Job, before: Job, observed: Seen) -> bool:
    """Say whether a job's command, its input files or a setting that its stage reads are others than before."""
    if (job.rest, job.input) != (before.rest, before.input):
        return True
    return any(reading(job.module, path, observed) for path in moved(before.settings, job.settings))


@pytest.mark.slow
@pytest.mark.parametrize("key", keys.DAG)
def test_key_that_makes_another_dag(
    key: str, here: Path, dag: dict[Name, Job], before: dict[Name, str], observed: Seen
) -> None:
    """Jobs that stay rerun where their command, inputs or settings are others, or below such jobs and new ones."""
    (here / "weights").mkdir(exist_ok=True)
    for name in ("config.json", "tokenizer.json"):
        (here / "weights" / name).touch()
    (here / "other.yaml").write_text(yaml.safe_dump(keys.DAG[key]))
    after = rc.listed(here, *STUDY, "other.yaml")
    must = {name for name, job in after.items() if name not in dag or followed(job, dag[name], observed)}
    rerun = {name for name, job in after.items() if name not in dag or before[name] != job.fingerprint}
    assert rerun == rc.below(after, must)


def dry_run(folder: Path, *overrides: str) -> Counter[str]:
    """Return the jobs by rule that Snakemake would run, without the target `all`, which runs nothing."""
    said = snakemake(folder, "--configfile", *STUDY, *overrides, "--dry-run", "--quiet", "rules")
    assert said.returncode == 0, said.stderr
    return Counter({rule: number for rule, number in jobs(said.stdout + said.stderr).items() if rule != "all"})


def rules(names: Iterable[Name]) -> Counter[str]:
    """Return how many jobs of each rule there are."""
    return Counter(rule for rule, _ in names)


def sorts(dag: dict[Name, Job], observed: Seen) -> dict[frozenset[Name], tuple[str, str]]:
    """Return an edit (module, file or key, and which) for each set of jobs that some edit must rerun."""
    found: dict[frozenset[Name], tuple[str, str]] = {}
    for module in MODULES:
        must = {name for name, job in dag.items() if loading(module, job.module, observed)}
        found.setdefault(frozenset(rc.below(dag, must)), ("module", module))
    for file in FILES:
        must = {name for name, job in dag.items() if opening(file, job.module, observed)}
        if not file.startswith("resources/protocols"):
            found.setdefault(frozenset(rc.below(dag, must)), ("file", file))
    return found


@pytest.mark.slow
def test_snakemake_reruns_what_each_sort_of_edit_must_rerun(here: Path, dag: dict[Name, Job], observed: Seen) -> None:
    """One edit of each sort, reverted before the next; after the last there is nothing to do."""
    edits = sorts(dag, observed)
    assert len(edits) > 20
    for must, (kind, name) in edits.items():
        path = provenance.module_path(name) if kind == "module" else here / name
        assert path is not None
        with edited(path, path.read_text() + ("\nEDITED = True\n" if kind == "module" else "\n")):
            assert dry_run(here) == rules(must), name
    assert dry_run(here) == Counter()


def test_snakemake_reruns_what_an_edit_must_rerun(here: Path, dag: dict[Name, Job], observed: Seen) -> None:
    """Of a module that many jobs load, some of which lie below others by order alone."""
    path = here / "perfmis/checkpoints.py"
    must = {name for name, job in dag.items() if loading("perfmis.checkpoints", job.module, observed)}
    with edited(path, path.read_text() + "\nEDITED = True\n"):
        assert dry_run(here) == rules(rc.below(dag, must))


def test_snakemake_reruns_nothing_after_edits_that_change_no_result(here: Path) -> None:
    """Comments and docstrings everywhere, other times of all files, and how jobs are run: batches and resources."""
    for path in (here / "perfmis").rglob("*.py"):
        text = path.read_text()
        path.write_text(re.sub(r'(?s)\A""".*?"""', '"""Another docstring."""', text) + "\n# A comment.\n")
    for path in (here / "resources").rglob("*"):
        path.touch()
    lora = {"sdf": {"lora": {"reach": 0.5}}}
    other = {
        "organisms": lora,
        "arms": lora,
        "evaluation": {"batch": 7},
        "sizes": {"tiny": {"save_steps": 7, "threads": 2, "checkpointing": True}},
    }
    (here / "other.yaml").write_text(yaml.safe_dump(other))
    assert dry_run(here, "other.yaml") == Counter()
