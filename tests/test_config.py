"""The configuration: bad input is one line with file, key and fix, before any job; defaults do not drift."""

import json
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest
import yaml
from running import snakemake

from perfmis import config, default_config
from perfmis.config import Study
from perfmis.stage import UserError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FREE = "screen: {keep: auto}\nsteering: {models: null}\n"  # for files whose models are not the preprint's

BAD = {
    "unknown key": ("nonsense: 1", "nonsense", "correct its spelling or remove it"),
    "unknown key, deep": ("arms: {sdf: {lora: {rnak: 3}}}", "arms.sdf.lora.rnak", "correct its spelling"),
    "arm without its opposite pole": ("arms: {names: [A1+, A1-, B2-]}", "arms.names", "add B2+"),
    "unknown arm": ("arms: {names: [C1+]}", "arms.names", "known are A1+, A1-"),
    "arm named twice": ("arms: {names: [A1+, A1-, A1+]}", "arms.names", "remove the duplicate"),
    "missing corpus file": (
        "corpora: {organism: {source: path, location: no/where.parquet}}",
        "corpora.organism",
        "missing corpus no/where.parquet; write it or correct `location`",
    ),
    "corpus file without location": ("corpora: {organism: {source: path}}", "corpora.organism", "needs `location`"),
    "data set without revision": ("corpora: {N0: {source: hub, location: a/b}}", "corpora.N0", "needs `revision`"),
    "arm without a corpus": ("corpora: {organism: {}}", "corpora.A1+ is missing", "every arm needs a corpus"),
    "hub id without revision": (FREE + "models: {m: {hub: a/b}}", "models.m", "needs its revision"),
    "branch for a commit": (FREE + "models: {m: {hub: a/b, revision: main}}", "models.m.revision", "[0-9a-f]{40}"),
    "two sources of one model": (
        FREE + f"models: {{m: {{hub: a/b, revision: {COMMIT}, truth: both}}}}",
        "models.m",
        "exactly one of hub, path and truth",
    ),
    "planted truth without the tiny world": (
        FREE + "models: {m: {truth: both}}",
        "models.m.truth",
        "needs the section `tiny`",
    ),
    "unknown truth": (FREE + "models: {m: {truth: bth}}", "models.m.truth", "'both'"),
    "unknown size": (
        FREE + f"models: {{m: {{hub: a/b, revision: {COMMIT}, size: huge}}}}",
        "models.m.size",
        "add it or use one of them",
    ),
    "duplicate seeds": ("seeds: {training: [0, 1, 0]}", "seeds.training", "remove the duplicate"),
    "screen on seeds that nobody draws": (
        "seeds: {evaluation: [0, 1], screen: [0, 9]}",
        "seeds.screen",
        "among seeds.evaluation",
    ),
    "tier named twice": (
        "evaluation: {tiers: [monitored, unmonitored, monitored]}",
        "evaluation.tiers",
        "remove the duplicate",
    ),
    "missing monitored tier": (
        "evaluation: {tiers: [rated, unmonitored]}",
        "evaluation.tiers lacks monitored",
        "the gap needs it",
    ),
    "unknown tier": ("evaluation: {tiers: [monitored, paid]}", "evaluation.tiers.1", "'unmonitored' or 'rated'"),
    "kept model, not screened": ("screen: {keep: [gpt]}", "screen.keep", "correct the name"),
    "steered model, not screened": ("steering: {models: [gpt]}", "steering.models", "correct the name"),
    "keep that is no list": ("screen: {keep: 3}", "screen.keep:", "'auto'"),
    "alphas without 0": ("steering: {alphas: [-1.0, 0.5, 1.0]}", "steering.alphas", "lacks 0.0"),
    "alphas of one sign": ("steering: {alphas: [0.0, 0.5, 1.0]}", "steering.alphas", "both signs"),
    "alphas that have no opposite": ("steering: {alphas: [-0.5, 0.0, 1.0]}", "steering.alphas", "both signs"),
    "depth beyond the model": ("vectors: {layers: [0.5, 1.5]}", "vectors.layers.1", "less than"),
    "fewer requests than are steered": ("requests: {number: 10}", "requests.number", "smaller than steering.requests"),
    "missing file of requests": ("requests: {source: path, location: no/where.csv}", "requests", "no/where.csv"),
    "bad YAML": ("arms: [", "cannot be read", "correct the file"),
    "a list for a file": ("[1, 2]", "holds no keys", "write `key: value` lines"),
    "a word for a number": ("requests: {number: many}", "requests.number", "should be a valid integer"),
    "a word for a seed": ("seeds: {training: [zero]}", "seeds.training.0", "should be a valid integer"),
    "nothing for a section": ("models: null", "models", "should be a valid dictionary"),
}


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_with_file_key_and_fix(tmp_path: Path, case: str) -> None:
    content, key, fix = BAD[case]
    path = tmp_path / "study.yaml"
    path.write_text(content)
    with pytest.raises(UserError) as error:
        config.load([path])
    message = one_line(error)
    assert message.startswith(f"{path}: ")
    assert key in message
    assert fix in message


@pytest.mark.parametrize("case", ["unknown key, deep", "arm without its opposite pole"])
def test_key_is_said_once(tmp_path: Path, case: str) -> None:
    content, key, _ = BAD[case]
    path = tmp_path / "study.yaml"
    path.write_text(content)
    with pytest.raises(UserError) as error:
        config.load([path])
    assert one_line(error).startswith(f"{path}: {key}: ")


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        config.load([tmp_path / "none.yaml"])
    assert one_line(error).startswith(f"{tmp_path / 'none.yaml'}: cannot be read")


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json"])
def test_model_folder_without_tokenizer_is_named(tmp_path: Path, missing: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in {"config.json", "tokenizer.json"} - {missing}:
        (folder / name).write_text("{}")
    path = tmp_path / "study.yaml"
    path.write_text(FREE + f"models: {{m: {{path: {folder}}}}}")
    with pytest.raises(UserError) as error:
        config.load([path])
    assert one_line(error) == f"{path}: models.m: {folder} has no {missing}; save model and tokenizer there"


@pytest.mark.parametrize("case", ["arm without its opposite pole", "missing corpus file"])
def test_snakemake_stops_with_that_line_before_any_job(tmp_path: Path, workdir: Callable[..., Path], case: str) -> None:
    content, key, fix = BAD[case]
    path = tmp_path / "study.yaml"
    path.write_text(content)
    said = snakemake(workdir(), "-n", "--configfile", str(path))
    assert said.returncode != 0
    lines = (said.stdout + said.stderr).splitlines()
    (error,) = [line for line in lines if line.startswith("error:")]
    assert str(path) in error
    assert key in error
    assert fix in error
    assert not any("Traceback" in line or line.startswith("job ") for line in lines)


def test_later_files_override_key_by_key(tmp_path: Path) -> None:
    """A second file changes what it names and leaves the other keys of the same section alone."""
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text("statistics: {resamples: 300, confidence: 0.9}")
    second.write_text("statistics: {confidence: 0.8}")
    statistics = config.load([first, second]).statistics
    assert (statistics.resamples, statistics.confidence) == (300, 0.8)


def test_default_file_is_the_default_study(repository: Path) -> None:
    assert config.load([repository / "config/config.yaml"]) == Study()


def test_generated_files_do_not_drift(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`python -m perfmis default_config --check` passes here, and fails where a file was edited by hand."""
    monkeypatch.chdir(repository)
    default_config.main(["--check"])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config").mkdir()
    (tmp_path / "resources").symlink_to(repository / "resources")
    default_config.main([])
    default_config.main(["--check"])
    edited = tmp_path / "config/config.yaml"
    edited.write_text(edited.read_text().replace("resamples: 2000", "resamples: 100"))
    with pytest.raises(UserError, match=r"config/config\.yaml differs .* run python -m perfmis default_config"):
        default_config.main(["--check"])


@pytest.mark.parametrize("path", ["config/config.yaml", "config/demo.yaml", "tests/smaller.yaml"])
def test_schema_accepts_the_studies(repository: Path, path: str) -> None:
    """Editors check a study by config/schema.json; it must be valid itself and agree with the loader."""
    schema = json.loads((repository / "config/schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    content = yaml.safe_load((repository / path).read_text())
    jsonschema.validate(content, schema)
    config.load([repository / path])


def test_schema_refuses_an_unknown_key(repository: Path) -> None:
    schema = json.loads((repository / "config/schema.json").read_text())
    with pytest.raises(jsonschema.ValidationError, match="nonsense"):
        jsonschema.validate({"arms": {"nonsense": 1}}, schema)


def test_jobs_without_a_model_have_a_size_whatever_a_study_names(tmp_path: Path) -> None:
    """Sizes of one's own are those of models; tables and downloads need no entry."""
    path = tmp_path / "study.yaml"
    model = f"models: {{m: {{hub: a/b, revision: {COMMIT}, size: mine}}}}"
    path.write_text(f"{FREE}{model}\nwriter: {{size: mine}}\nsizes: {{mine: {{gpus: 4, threads: 8}}}}")
    sizes = config.load([path]).sizes
    assert (sizes["tiny"].gpus, sizes["mine"].gpus) == (0, 4)


def test_a_key_may_stand_beside_a_merged_one(tmp_path: Path) -> None:
    """Anchors are for sections that differ in a key; their merge is no key that stands twice."""
    path = tmp_path / "study.yaml"
    path.write_text("organisms: {sdf: &sdf {epochs: 4, batch: 32}}\narms: {sdf: {<<: *sdf, epochs: 2}}\n")
    study = config.load([path])
    assert (study.arms.sdf.epochs, study.arms.sdf.batch) == (2, 32)


def test_the_workflow_refuses_a_key_that_stands_twice(workdir: Callable[..., Path]) -> None:
    folder = workdir()
    (folder / "study.yaml").write_text("seeds: {training: [0]}\nroot: results/a\nseeds: {training: [1]}\n")
    said = snakemake(folder, "--configfile", "study.yaml", "-n")
    assert said.returncode != 0
    assert "study.yaml: cannot be read (the key seeds stands twice" in said.stdout + said.stderr
