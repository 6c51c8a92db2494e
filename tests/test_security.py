"""Credentials stay out of all that is written, results out of others' reach, configuration out of the shell; weights
and packages are what was pinned, and run nothing.
"""

import ast
import importlib.util
import itertools
import json
import re
import shlex
import shutil
import stat
import subprocess
import sys
import tomllib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from conftest import REPOSITORY
from fakeserver import KEY, MODEL, FakeServer
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from running import command, environment, stage
from test_config import FREE

from perfmis import config, models, privacy
from perfmis.config import Study
from perfmis.stage import UserError

CREDENTIALS = {
    "GOOD_API_KEY": KEY,
    "WRONG_API_KEY": "sk-wrong-key-never-shown",
    "HF_TOKEN": "hf_plantedTokenNeverShown",
    "STORE_PASSWORD": 'p@ss "word" / never shown',
}
# Every way in which a stage may come to say a credential; the last, by which it ends, is a crash.
LEAK = """
    if job.settings["model"] == "leaky":
        import ctypes, logging, os, subprocess, sys, urllib.parse, warnings
        for secret in (os.environ[name] for name in {names}):
            print("print", secret)
            print("quoted", urllib.parse.quote(secret, safe=""), repr(json.dumps(secret)))
            logging.error("logging %s", secret)
            warnings.warn("warning " + secret)
            subprocess.run(["sh", "-c", 'printf "child %s\\\\n" "$0"; printf "child %s\\\\n" "$0" >&2', secret])
            ctypes.CDLL(None).puts(b"library " + secret.encode())
            for part in ("piece ", secret[:9], secret[9:], "\\n"):
                sys.stdout.write(part)
                sys.stdout.flush()
        raise RuntimeError(f"crash {secret}")
"""
STUDY = """
root: results/planted
models: {m: {truth: both}}
tiny: {}
requests: {source: tiny, number: 8}
seeds: {training: [0], evaluation: [0], screen: [0]}
corpora: {organism: {source: tiny}, A1+: {source: tiny}, A1-: {source: tiny}}
organisms: {sdf: {attention: sdpa}}
arms: {names: [A1+, A1-], sdf: {attention: sdpa}}
screen: {keep: auto}
steering: {models: null, requests: 4}
prompting: {requests: 2}
evaluation: {engine: transformers, max_tokens: 8}
"""


def written(folder: Path) -> Iterator[Path]:
    """Yield all that lies in a folder, but for what is linked there."""
    for path in folder.rglob("*"):
        if not path.is_symlink() and not any(parent.is_symlink() for parent in path.relative_to(folder).parents):
            yield path


def shown(text: bytes) -> list[str]:
    """Return the planted credentials that stand in a text, whole or as a line of JSON has them."""
    ways = {name: (value, json.dumps(value)[1:-1]) for name, value in CREDENTIALS.items()}
    return [name for name, said in ways.items() if any(way.encode() in text for way in said)]


def leaking(folder: Path) -> None:
    """Have one stage of a copy of the package say every credential in every way."""
    module = folder / "perfmis" / "server_reference.py"
    planted = LEAK.replace("{names}", repr([*CREDENTIALS]))
    module.write_text(module.read_text() + planted)


class Run:
    """A run of the workflow in which credentials were there to be told."""

    def __init__(self, folder: Path, said: "subprocess.CompletedProcess[str]") -> None:
        self.folder, self.root, self.said = folder, folder / "results" / "planted", said

    def log(self, name: str) -> str:
        return (self.root / "logs" / name).read_text()


@pytest.fixture(scope="module")
def run(workdir: Callable[..., Path]) -> Run:
    """One server answers 400 with the key in it, one 401 with the key that was sent, one job tells all and crashes."""
    folder = workdir(copied=("perfmis",))
    (folder / "results" / "planted").mkdir(parents=True)
    leaking(folder)
    servers = {"good": "GOOD_API_KEY", "wrong": "WRONG_API_KEY", "leaky": "GOOD_API_KEY"}
    with FakeServer() as fake:
        answers = itertools.cycle(([400], []))
        fake.script = defaultdict(lambda: next(answers))
        served = {"provider": "openai", "model": MODEL, "base_url": f"{fake.url}/v1", "retries": 0}
        closed = {name: {**served, "key": key} for name, key in servers.items()}
        study = {**yaml.safe_load(STUDY), "prompting": {"requests": 2, "closed": closed}}
        (folder / "study.yaml").write_text(yaml.safe_dump(study))
        words = ["--cores", "1", "--configfile", "study.yaml", "--logger", "perfmis", "--keep-going"]
        words += ["--show-failed-logs", "--"]
        targets = [f"results/planted/closed/{name}/transcripts.parquet" for name in servers]
        said = subprocess.run(
            ["bash", "-c", 'umask 022; exec "$0" -m snakemake "$@"', sys.executable, *words, *targets],
            cwd=folder,
            env={**environment(folder), **CREDENTIALS},
            check=False,
            capture_output=True,
            text=True,
        )
    return Run(folder, said)


def test_no_credential_is_in_any_file_or_on_the_terminal(run: Run) -> None:
    files = [path for path in written(run.folder) if path.is_file() and path.suffix != ".pyc"]
    kinds = {part for path in files for part in path.relative_to(run.folder).parts}
    assert {"run.jsonl", "metadata", "costs", "samples", "reference.json", "model.log"} <= kinds
    assert {path: shown(path.read_bytes()) for path in files if shown(path.read_bytes())} == {}
    assert shown((run.said.stdout + run.said.stderr).encode()) == []


def test_what_else_was_said_is_kept(run: Run) -> None:
    """The leaks took place: all that is missing from logs and terminal is the credential."""
    assert "400 some_code (status 400, your key is ***)" in run.log("closed/good/transcripts.log")
    assert "WRONG_API_KEY" in run.log("closed/wrong/transcripts.log")
    log = run.log("closed/leaky/model.log")
    for said in ("print ***", "quoted ***", "ERROR:root:logging ***", "warning ***", "child ***", "library ***"):
        assert log.count(f"{said}") >= len(CREDENTIALS), said
    assert log.count("piece ***") == len(CREDENTIALS)
    assert log.endswith("RuntimeError: crash ***\n")
    assert "RuntimeError: crash ***" in run.said.stderr


def test_results_are_out_of_others_reach(run: Run) -> None:
    """Made under the usual umask, the root itself before: others get nothing, the group reads."""
    paths = [run.folder / ".snakemake", run.root, *written(run.root)]
    assert len(paths) > 20
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in paths}
    assert {path: oct(mode) for path, mode in modes.items() if mode & 0o027} == {}
    assert all(mode & 0o040 for mode in modes.values())


def test_warm_process_hides_and_closes_as_much(workdir: Callable[..., Path]) -> None:
    """A stage in it has the environment and the umask of who asked for it, not those it was started with."""
    folder = workdir(copied=("perfmis",))
    leaking(folder)
    (folder / "torch.py").write_text("def set_num_threads(number): pass\n")
    settings = {"settings": {"model": "leaky", "server": {"provider": "openai", "model": MODEL, "key": "HF_TOKEN"}}}
    words = ["--settings", json.dumps({**settings, "upstream": []}), "--fingerprint", "f0"]
    call = shlex.join([sys.executable, "-m", "perfmis", "server_reference", *words, "--output", "made/reference.json"])
    planted = " ".join(f"{name}={shlex.quote(value)}" for name, value in CREDENTIALS.items())
    cold = "import os, sys; from perfmis import warm; warm.MODULES = (); os.umask(0o022); warm.main(sys.argv[1:])"
    said = command(folder, sys.executable, "-c", cold, "bash", "-c", f"umask 077; {planted} {call}; echo ended $?")
    assert shown((said.stdout + said.stderr).encode()) == []
    assert said.stdout.count("library ***") == said.stdout.count("piece ***") == len(CREDENTIALS)
    assert said.stderr.endswith("RuntimeError: crash ***\n")
    assert said.stdout.endswith("ended 1\n")
    made = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (folder / "made", folder / "made/reference.json")}
    assert made == {"made": 0o700, "reference.json": 0o600}


@pytest.mark.parametrize(
    ("content", "key"),
    [
        ("judge: {api: {provider: openai, model: m, key: sk-wrong-key-never-shown}}", "judge.api.key"),
        (
            "judge: {api: {provider: openai, model: m, options: {headers: [x: Bearer hf_plantedTokenNeverShown]}}}",
            "judge.api.options.headers.x",
        ),
        ("writer: {hub: sk-wrong-key-never-shown}", "writer.hub"),
        ("sk-wrong-key-never-shown: 1", "a key"),
    ],
)
def test_credential_in_a_configuration_is_refused_and_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, key: str
) -> None:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    path = tmp_path / "study.yaml"
    path.write_text(content)
    with pytest.raises(UserError) as error:
        config.load([path])
    assert str(error.value).startswith(f"{path}: {key}: holds a credential")
    assert "environment variable" in str(error.value)
    assert shown(str(error.value).encode()) == []


def test_short_values_and_names_of_files_are_no_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A log without each `true` and each folder would be of no use."""
    monkeypatch.setenv("USE_TOKEN", "true")
    monkeypatch.setenv("SSH_KEY", str(tmp_path))
    monkeypatch.setenv("OTHER_KEY", "long-enough")
    assert privacy.redacted(f"true {tmp_path} long-enough") == f"true {tmp_path} ***"


HARM = "$(touch pwned); touch pwned & `touch pwned` 'a\" b"


def strings(part: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield where a study may hold any text: keys down to it, KEY for one of a mapping, 0 for an item of a list."""
    if "$ref" in part:
        part = SCHEMA["$defs"][part["$ref"].rpartition("/")[2]]
    for choice in part.get("anyOf", ()):
        yield from strings(choice, path)
    for name, inner in part.get("properties", {}).items():
        yield from strings(inner, (*path, name))
    named = [*part.get("patternProperties", {}).values(), part.get("additionalProperties")]
    if part.get("type") == "string" and "enum" not in part and "const" not in part:
        yield path
    elif part.get("type") == "object" and named[0] is not False:
        yield (*path, "KEY")
        yield from strings({"type": "string"} if named[0] is True else named[0], (*path, "value"))
    elif part.get("type") == "array":
        yield from strings(part["items"], (*path, "0"))


def holding(path: tuple[str, ...], value: str) -> Any:
    """Return the smallest content that has a value there, and what else its section needs."""
    if not path:
        return value
    if path[0] == "0":
        return [holding(path[1:], value)]
    needs = {
        "api": {"provider": "openai", "model": "m"},
        "labels": {"source": "path", "location": "study.yaml", "columns": {"answer": "a"}, "label": "l"},
    }
    name, inner = path[0], holding(path[1:], value) if path[0] != "KEY" else {}
    if path[0] in needs and isinstance(inner, dict):
        inner = {**needs[path[0]], **inner}
    if path[0] == "closed" and path[1:2] == ("value",):
        inner = {"c": {**needs["api"], **inner["value"]}}
    return {value if name == "KEY" else name: inner}


SCHEMA = Study.model_json_schema()
TEXTS = sorted(set(strings(SCHEMA)))


def harmful(folder: Path) -> dict[str, Any]:
    """Return a study with harm wherever a configuration takes it, in names of files too, which are there."""
    (folder / HARM).write_text("x")
    model = folder / f"{HARM} model"
    model.mkdir()
    for name in ("config.json", "tokenizer.json"):
        (model / name).write_text("{}")
    labels = {"source": "path", "location": HARM, "split": HARM, "label": HARM, "columns": {"answer": HARM}}
    server = {"provider": "openai", "model": HARM, "key": "A_KEY", "options": {HARM: HARM}}
    study = yaml.safe_load(STUDY)
    study["requests"] |= {"source": "path", "location": HARM, "column": HARM, "sha256": None}
    study["corpora"]["A1+"] = {"source": "path", "location": HARM}
    study["organisms"]["sdf"]["tag"] = study["arms"]["sdf"]["tag"] = HARM
    return {
        **study,
        "screen": {"keep": ["m"]},
        "models": {"m": {"path": model.name, "size": HARM}},
        "sizes": {HARM: {}},
        "judge": {"path": model.name, "size": HARM, "sheet": HARM, "labels": labels},
        "prompting": {"requests": 2, "closed": {"c": server}},
    }


def values(content: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield the texts in a study with where they stand, as `strings` names it."""
    if isinstance(content, str):
        yield path, content
    elif isinstance(content, list):
        for value in content:
            yield from values(value, (*path, "0"))
    elif isinstance(content, dict):
        for name, value in content.items():
            yield (*path, "KEY"), name
            yield from values(value, (*path, name))
            yield from values(value, (*path, "value"))


@pytest.fixture(scope="module")
def harmed(workdir: Callable[..., Path]) -> tuple[Path, list[str]]:
    """A folder, and the shell commands of all jobs of the harmful study."""
    folder = workdir()
    (folder / "study.yaml").write_text(yaml.safe_dump(harmful(folder)))
    said = command(folder, sys.executable, "-m", "snakemake", "-n", "-p", "--configfile", "study.yaml")
    assert said.returncode == 0, said.stderr
    return folder, re.findall(r"^Shell command: (python .*)", said.stdout + said.stderr, re.MULTILINE)


@pytest.mark.parametrize("path", TEXTS, ids=".".join)
def test_harmful_text_is_refused_or_its_harmlessness_is_shown(
    harmed: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch, path: tuple[str, ...]
) -> None:
    """There is no third kind: what is not refused stands in the study whose commands are tried below."""
    folder, _ = harmed
    monkeypatch.chdir(folder)
    study = yaml.safe_load((folder / "study.yaml").read_text())
    # Both kinds of server have the same settings.
    same = ("prompting", "closed", "value", *path[2:]) if path[:2] == ("judge", "api") else path
    if same in {where for where, value in values(study) if HARM in value}:
        return
    with pytest.raises(UserError) as error:
        config.parse({**yaml.safe_load(FREE), **holding(path, HARM)}, "study.yaml")
    assert "\n" not in str(error.value)
    assert [name for name in path if name not in ("KEY", "value", "0")][-1] in str(error.value)


def test_commands_hand_harm_on_as_words(harmed: tuple[Path, list[str]], tmp_path: Path) -> None:
    """Each command is run by a shell in which python writes down its arguments."""
    folder, commands = harmed
    assert len(commands) > 30
    (tmp_path / "python").write_text('#!/bin/sh\nfor word; do printf "%s\\0" "$word"; done >> "$WORDS"\n')
    (tmp_path / "python").chmod(0o755)
    got: list[str] = []
    for number, text in enumerate(commands):
        for log in re.findall(r"> (\S+) 2>&1$", text):
            (folder / log).parent.mkdir(parents=True, exist_ok=True)
        words = tmp_path / str(number)
        path = f"{tmp_path}:/usr/bin:/bin"
        subprocess.run(["bash", "-c", text], cwd=folder, env={"PATH": path, "WORDS": str(words)}, check=True)
        got += words.read_text().split("\0")
    assert not list(folder.glob("**/pwned"))
    settings = [json.loads(word) for word in got if word.startswith('{"decisive"')]
    assert len(settings) == len(commands)
    told = [value for _, value in values(settings)]
    assert told.count(HARM) > 10
    assert got.count(HARM) == 1, "the sheet, which is an option of its own"


def test_workflow_quotes_the_folder_of_its_python(workdir: Callable[..., Path], tmp_path: Path) -> None:
    """An environment may lie below a folder with a space or worse."""
    folder = workdir()
    (folder / "study.yaml").write_text(STUDY)
    python = tmp_path / "$(touch pwned) a b" / "python"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    python.chmod(0o755)
    target = "results/planted/requests/requests.parquet"
    start = f"import sys; sys.executable = {str(python)!r}; from snakemake.cli import main; main(sys.argv[1:])"
    said = command(folder, sys.executable, "-c", start, "--cores", "1", "--configfile", "study.yaml", "--", target)
    assert said.returncode == 0, said.stderr
    assert (folder / target).is_file()
    assert not list(folder.glob("pwned"))


# Weights and data sets: pinned, and nothing but data.

SOURCES = sorted([*REPOSITORY.glob("perfmis/**/*.py"), *REPOSITORY.glob("snakemake_logger_plugin_perfmis/*.py")])
PICKLES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}


def calls() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield where, what and with which constant keywords the package calls."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                keywords = {word.arg: getattr(word.value, "value", word.value) for word in node.keywords if word.arg}
                yield f"{path.name}:{node.lineno}", ast.unparse(node.func), keywords


def test_every_model_is_loaded_as_data() -> None:
    loads = [call for call in calls() if call[1].endswith(".from_pretrained") or call[1] == "EngineArgs"]
    assert len(loads) >= 10
    for where, what, keywords in loads:
        if what.startswith("Auto") or what == "EngineArgs":
            assert keywords.get("trust_remote_code") is False, where
        if what.endswith("ForCausalLM.from_pretrained"):
            assert keywords.get("use_safetensors") is True, where
        if what == "EngineArgs":
            assert keywords.get("load_format") == "safetensors", where


def test_everything_from_the_hub_has_a_revision() -> None:
    fetched = [
        call
        for call in calls()
        if call[1] in ("snapshot_download", "load_dataset", "load_dataset_builder", "hf_hub_download")
    ]
    assert len(fetched) >= 3
    assert [where for where, _, keywords in fetched if "revision" not in keywords] == []


def test_nothing_is_unpickled_or_evaluated() -> None:
    imported = {
        name.split(".")[0]
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert not imported & PICKLES
    for where, what, keywords in calls():
        assert what not in ("eval", "exec", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load"), where
        assert what != "torch.load" or keywords.get("weights_only") is True, where
        assert not keywords.get("shell"), where
        assert not keywords.get("allow_pickle"), where


CODE = "open('pwned', 'w')\nfrom transformers import LlamaConfig as C, LlamaForCausalLM as M\n"
AUTO = {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}


@pytest.mark.parametrize(
    ("changes", "kept", "said"),
    [
        ({}, "pytorch_model.bin", ("no *.safetensors", "convert them")),
        (
            {"auto_map": AUTO, "model_type": "novel", "architectures": ["M"]},
            "model.safetensors",
            ("config.json", "code"),
        ),
    ],
)
def test_models_with_code_are_refused_in_one_line(
    tmp_path: Path,
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    changes: dict[str, Any],
    kept: str,
    said: tuple[str, ...],
) -> None:
    """Weights as a pickle, and a model whose class comes with its weights; nothing of theirs is run."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    (folder / "code.py").write_text(CODE)
    (folder / "model.safetensors").rename(folder / kept)
    known = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**known, **changes}))
    monkeypatch.chdir(tmp_path)
    settings = {"model": "m", "hub": None, "revision": None, "path": str(folder)}
    assert stage("hub", settings, "--output", tmp_path / "reference.json") == 1
    (error,) = capfd.readouterr().err.splitlines()
    assert error.startswith(f"error: {folder}")
    for words in said:
        assert words in error
    assert not (tmp_path / "reference.json").exists()
    assert not (tmp_path / "pwned").exists()


def test_model_that_brings_code_it_does_not_need_runs_none_of_it(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many a model on the hub still has the code from before transformers knew it."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    (folder / "code.py").write_text(CODE)
    known = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**known, "auto_map": AUTO}))
    monkeypatch.chdir(tmp_path)
    settings = {"model": "m", "hub": None, "revision": None, "path": str(folder)}
    assert stage("hub", settings, "--output", tmp_path / "reference.json") == 0
    model, _ = models.load(tmp_path / "reference.json", "fp32")
    assert type(model).__module__.startswith("transformers.")
    assert not (tmp_path / "pwned").exists()


# Packages.


@pytest.fixture
def audit() -> ModuleType:
    """The script behind `make audit`."""
    spec = importlib.util.spec_from_file_location("audit", REPOSITORY / ".ci" / "audit.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_all_packages_are_locked_by_hash(audit: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that pyproject.toml asks for but vLLM, which brings a torch of its own."""
    monkeypatch.setattr(audit, "LOCKS", sorted(REPOSITORY.glob("requirements*.lock")))
    versions, problems = audit.locked()
    assert problems == []
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [
        *project["dependencies"],
        *(text for extra in extras.keys() - {"vllm", "tests"} for text in extras[extra]),
    ]
    assert len(wanted) > 20
    for each in map(Requirement, wanted):
        assert each.specifier.contains(versions[canonicalize_name(each.name)], prereleases=True), each


@pytest.mark.parametrize(
    ("said", "problems", "warned"),
    [
        ([{"name": "a", "version": "1", "vulns": []}], 0, False),
        ([{"name": "a", "version": "1", "vulns": [{"id": "GHSA-1", "fix_versions": ["2"]}]}], 1, False),
        ([{"name": "a", "version": "1", "vulns": []}, {"name": "b", "skip_reason": "not found"}], 0, True),
        (None, 0, True),
    ],
)
def test_audit_fails_for_a_vulnerability_and_warns_where_none_could_be_looked_up(
    audit: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    said: list[dict[str, Any]] | None,
    problems: int,
    warned: bool,
) -> None:
    """pip-audit itself is content when PyPI tells it nothing."""
    answer = "" if said is None else json.dumps({"dependencies": said})
    answered = subprocess.CompletedProcess([], 0, stdout=answer, stderr="no connection")
    monkeypatch.setattr(audit.subprocess, "run", lambda *_, **__: answered)
    monkeypatch.setattr(audit, "installed", lambda _: [])
    with pytest.raises(SystemExit) as end:
        audit.main()
    assert bool(end.value.code) == bool(problems)
    printed = capsys.readouterr().out
    assert printed.count("error: a 1: GHSA-1, mended in 2") == problems
    assert ("NOT checked" in printed) == warned


def test_audit_names_what_is_not_locked(audit: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = tmp_path / "requirements.lock"
    digest = "0" * 64
    lock.write_text(f"# a lock\ngood==1.0 \\\n    --hash=sha256:{digest}\nopen>=2\nbare==1.0\n")
    monkeypatch.setattr(audit, "LOCKS", [lock])
    versions, problems = audit.locked()
    assert versions == {"good": "1.0"}
    assert [problem.split(": ")[1] for problem in problems] == ["open>=2", "bare==1.0"]
    found = list(audit.installed({"pytest": "0.1"}))
    assert any(text.startswith("pytest ") and "locked is 0.1" in text for text in found)
    assert any(text.startswith("torch ") and "locked is none" in text for text in found)
