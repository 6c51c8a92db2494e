"""For the tests of recomputation: studies that seem to have run, their DAG, and what a real run was seen to depend on.

What must rerun after an edit is told without the fingerprints that are tested: stages that load a module, open a file
or read a setting were watched while they ran (`observe`), and what lies below them is the workflow's DAG (`listed`).
"""

import json
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import yaml
from conftest import REPOSITORY
from running import command

from perfmis.study import Chain, Stage

STAND_INS = Path(__file__).parent / "stand_ins"
DEMO = "config/demo.yaml"
KEPT = ("expectation", "consequence", "both", "neither")
BLANK = "0123456789abcdef"
OBSERVED_ARM = "A1+"  # stands for all arms of the observed study
Name = tuple[str, tuple[tuple[str, str], ...]]

# Which method of the chain describes a rule's jobs; those that are not here have the rule's name.
METHODS = {
    "outcomes": "treated",
    "prompting_transcripts": "prompting",
    "protocol": "composition",
    "screen_outcomes": "screened",
    "steering_transcripts": "steering",
    "tiny_base": "model",
    "hub_model": "model",
    "tiny_trunk": "trunk",
    "transcripts": "arm_transcripts",
}

# The jobs of a workflow: rule, wildcards, module, command and files, fingerprint, and the jobs that they need.
LIST = """
import json, re, sys
from pathlib import Path
from snakemake.api import SnakemakeApi
from snakemake.settings.types import ConfigSettings, OutputSettings, Quietness, ResourceSettings

with SnakemakeApi(OutputSettings(quiet={Quietness.ALL}, dryrun=True)) as api:
    workflow = api.workflow(
        resource_settings=ResourceSettings(cores=1),
        config_settings=ConfigSettings(configfiles=[Path(path) for path in sys.argv[1:]]),
        snakefile=Path("Snakefile").resolve(),
    )
    made = workflow.dag()
    made.execute_workflow(executor="dryrun")
    dag = made.workflow_api._workflow.dag
    jobs = [job for job in dag.jobs if job.shellcmd]
    number = {job: place for place, job in enumerate(jobs)}
    result = []
    for job in jobs:
        followed = [
            number[needed] for needed, files in dag.dependencies[job].items()
            if not all(file.is_ancient for file in job.input if file in files)
        ]
        told = job.format_wildcards("{params.settings:q}")
        result.append({
            "rule": job.rule.name, "wildcards": job.wildcards_dict, "fingerprint": str(job.params.fingerprint),
            "settings": str(job.params.settings), "module": re.search(r"perfmis ([\\w.]+) --settings", job.shellcmd)[1],
            "rest": job.shellcmd.replace(told, "").replace(job.params.fingerprint, ""),
            "input": sorted(map(str, job.input)), "needs": followed,
        })
print(json.dumps(result))
"""


@dataclass(frozen=True)
class Job:
    """A job of the DAG.

    Attributes:
        name: Its rule and wildcards.
        module: The stage that it runs.
        settings: What the stage is told.
        fingerprint: Its fingerprint.
        rest: Its command without these.
        input: Its input files.
        needs: Jobs whose rerun makes it rerun.
    """

    name: Name
    module: str
    settings: dict[str, Any]
    fingerprint: str
    rest: str
    input: tuple[str, ...]
    needs: tuple[Name, ...]


def listed(folder: Path, *configs: str) -> dict[Name, Job]:
    """Return the jobs of a study as Snakemake sees them."""
    said = command(folder, sys.executable, "-c", LIST, *configs)
    assert said.returncode == 0, said.stdout + said.stderr
    content = json.loads(said.stdout.splitlines()[-1])
    names = [(job["rule"], tuple(sorted(job["wildcards"].items()))) for job in content]
    return {
        name: Job(
            name,
            job["module"],
            json.loads(job["settings"])["settings"],
            job["fingerprint"],
            job["rest"],
            tuple(job["input"]),
            tuple(names[place] for place in job["needs"]),
        )
        for name, job in zip(names, content, strict=True)
    }


def below(jobs: Mapping[Name, Job], edited: Iterable[Name]) -> set[Name]:
    """Return some jobs and all that lie below them in the DAG."""
    users: dict[Name, list[Name]] = {}
    for job in jobs.values():
        for needed in job.needs:
            users.setdefault(needed, []).append(job.name)
    found, todo = set[Name](), list(edited)
    while todo:
        name = todo.pop()
        if name not in found:
            found.add(name)
            todo += users.get(name, [])
    return found


def stages(chain: Chain, names: Iterable[Name]) -> dict[Name, Stage]:
    """Return the stages of jobs as the chain describes them."""
    return {name: _stage(chain, *name) for name in names}


def _stage(chain: Chain, rule: str, wildcards: tuple[tuple[str, str], ...]) -> Stage:
    values: dict[str, Any] = {key: int(value) if key == "seed" else value for key, value in wildcards}
    if rule.startswith("fig"):
        return chain.figure(int(rule.removeprefix("fig")))
    made: Stage = getattr(chain, METHODS.get(rule, rule))(**values)
    return made


def leaves(content: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Yield (dotted path, value) of all that is no mapping, and (path.*, keys) of each mapping."""
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from leaves(value, (*path, key))
        else:
            yield ".".join((*path, key)), value
    yield ".".join((*path, "*")), tuple(content)


def pretended(make: Callable[..., Path], *configs: str, kept: Iterable[str] = KEPT) -> Path:
    """Return a folder in which a study has run, with the stub in the place of the stages."""
    folder = with_stub(make(copied=("perfmis", "resources", "config")), kept)
    said = run(folder, *(configs or (DEMO,)))
    assert said.returncode == 0, said.stdout[-3000:] + said.stderr[-3000:]
    return folder


def with_stub(folder: Path, kept: Iterable[str]) -> Path:
    """Return a folder that has a copy of the package, after putting the stub in the place of its stages."""
    shutil.copy(STAND_INS / "stub.py", folder / "perfmis/__main__.py")
    (folder / "kept").write_text(" ".join(kept))
    pl.DataFrame({"fingerprint": [BLANK]}).write_parquet(folder / "blank.parquet", compression="uncompressed")
    return folder


def run(folder: Path, *configs: str, options: Iterable[str] = ()) -> Any:
    """Run a study in a folder with the stub."""
    words = ("--configfile", *(configs or (DEMO,)), "--cores", "2", "--scheduler", "greedy", "--quiet", "all", *options)
    return command(folder, sys.executable, "-m", "snakemake", *words)


def observed_study() -> dict[str, Any]:
    """Return the demo's configuration, as small as its stages allow: what its models learn is of no interest."""
    content: dict[str, Any] = yaml.safe_load((REPOSITORY / DEMO).read_text())
    arms = ("A1+", "A1-")
    section = content["organisms"]["sdf"]
    content |= {
        "root": "results/observed",
        "models": {"both": {"truth": "both"}},
        "requests": {"source": "tiny", "number": 4},
        "corpora": {name: {"source": "tiny", "documents": 128} for name in ("organism", *arms)},
        "organisms": {"sdf": {**section, "epochs": 1}},
        "arms": {
            "names": list(arms),
            "replay": 0.5,
            "sdf": {**section, "epochs": 1, "documents": 96, "loss_tokens": 2790},
        },
        "screen": {"keep": ["both"], "minimum_gap": 10},
        "steering": {"alphas": [-9.0, 0.0, 9.0], "controls": 0, "requests": 2, "models": None},
        "prompting": {"requests": 2},
        "statistics": {"resamples": 100},
        "tiny": {"trunk_steps": 2, "gate": False, "hidden": 16, "layers": 1, "heads": 2},
    }
    content["evaluation"]["max_tokens"] = 2
    content["vectors"]["pairs"] = 4
    return content


def observe(make: Callable[..., Path]) -> dict[str, dict[str, set[str]]]:
    """Run a study for real and return, by stage: ``modules`` loaded, ``files`` opened, settings ``read``."""
    folder = make(copied=("perfmis",))
    shutil.copy(STAND_INS / "recorder.py", folder / "perfmis/__main__.py")
    (folder / "observed.yaml").write_text(yaml.safe_dump(observed_study()))
    words = ("-m", "snakemake", "--configfile", "observed.yaml", "--cores", "1", "--scheduler", "greedy")
    said = command(folder, sys.executable, "-m", "perfmis", "warm", sys.executable, *words, "--show-failed-logs")
    assert said.returncode == 0, said.stdout[-3000:] + said.stderr[-3000:]
    result: dict[str, dict[str, set[str]]] = {}
    for path in (folder / "observed").iterdir():
        record = json.loads(path.read_text())
        own = result.setdefault(record["stage"], {"modules": set(), "files": set(), "read": set()})
        own["modules"] |= set(record["modules"])
        own["read"] |= set(record["read"])
        own["files"] |= {str((folder / file).resolve()) for file in record["files"]}
    sources = {str(folder / "perfmis"): "perfmis", str(REPOSITORY / "resources"): "resources"}
    for own in result.values():
        found = {(file, top) for file in own["files"] for top in sources if file.startswith(f"{top}/")}
        own["files"] = {
            sources[top] + file.removeprefix(top) for file, top in found if not file.endswith((".py", ".pyc"))
        }
    return result
