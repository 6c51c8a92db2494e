"""`python -m perfmis doctor`: each fault that stops a study later is named before, with its fix."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fakeserver import KEY
from running import command
from test_config import COMMIT, FREE
from test_lora import save

from perfmis import config, doctor
from perfmis.checks import access, cluster, gpus, lengths, lora, orphans, reach, storage, versions, weights
from perfmis.checks.finding import Finding
from perfmis.config import Study
from perfmis.stage import UserError
from perfmis.typed import mapping
from snakemake_logger_plugin_perfmis.journal import Journal

CPU = "organisms: {sdf: {attention: sdpa}}\narms: {sdf: {attention: sdpa}}"  # for models of a size without GPU
SMALL = {"config.json": {"max_position_embeddings": 4096}, "tokenizer.json": {}}
Make = Callable[[str], Study]


@pytest.fixture
def study(tmp_path: Path) -> Make:
    """Return a function that reads a study from text."""

    def make(text: str) -> Study:
        path = tmp_path / "study.yaml"
        path.write_text(text)
        return config.load([path])

    return make


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache."""
    folder = tmp_path / "hub"
    folder.mkdir()
    monkeypatch.setenv("HF_HUB_CACHE", str(folder))
    return folder


def model_folder(folder: Path, files: dict[str, Any] = SMALL) -> Path:
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    return folder


def failures(findings: Iterable[Finding]) -> list[str]:
    return [str(finding) for finding in findings if finding.level == "FAIL"]


def about(findings: Iterable[Finding], key: str) -> Finding:
    (found,) = [finding for finding in findings if finding.about == key]
    return found


def test_the_demo_is_well(workdir: Callable[..., Path]) -> None:
    said = command(workdir(), sys.executable, "-m", "perfmis", "doctor", "--config", "config/demo.yaml")
    assert said.returncode == 0, said.stdout + said.stderr
    lines = said.stdout.splitlines()
    assert all(line.startswith(("ok ", "warning ")) for line in lines)
    assert any("disk, root" in line for line in lines)


def test_a_failure_is_exit_status_1_and_one_line(
    study: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "examine", lambda *_: [Finding("ok", "a", "b"), Finding("FAIL", "key", "x;\n mend it")])
    study(FREE)
    with pytest.raises(SystemExit) as stopped:
        doctor.main(["--config", str(tmp_path / "study.yaml")])
    assert stopped.value.code == 1
    assert capsys.readouterr().out.splitlines() == ["ok      a: b", "FAIL    key: x; mend it"]


def test_the_workflow_stops_at_a_failure_and_not_at_a_warning() -> None:
    doctor.refuse([Finding("ok", "a", "b"), Finding("warning", "c", "d")])
    with pytest.raises(UserError, match=r"^vllm: not there; install it \(1 more: python -m perfmis doctor\)$"):
        doctor.refuse([Finding("FAIL", "vllm", "not there; install it"), Finding("FAIL", "c", "d")])


def test_preflight_imports_nothing_heavy(repository: Path) -> None:
    heavy = ["torch", "transformers", "polars", "numpy", "huggingface_hub", "tokenizers", "snakemake"]
    code = (
        "import sys; from perfmis import config, doctor; doctor.preflight(config.load(['config/config.yaml']));"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", code], cwd=repository, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("text", "extras"),
    [
        ("evaluation: {engine: transformers}", {"deepspeed"}),
        ("{}", {"deepspeed", "vllm"}),
        ("organisms: {sdf: {frozen: 4bit}}", {"deepspeed", "vllm", "qlora"}),
        ("prompting: {closed: {c: {provider: openai, model: m}}}", {"deepspeed", "vllm", "api"}),
        ("judge: {api: {provider: anthropic, model: m}}", {"deepspeed", "vllm", "api"}),
    ],
)
def test_extras_follow_from_the_study(study: Make, text: str, extras: set[str]) -> None:
    assert set(versions.needed_extras(study(text))) == extras


def test_libraries_that_are_missing_or_of_another_version(study: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"vllm": None, "torch": "2.0.0", "polars": "0.1"}
    original = versions._installed
    monkeypatch.setattr(versions, "_installed", lambda name: installed.get(name, original(name)))
    found = versions.libraries(study("{}"))
    missing = about(found, "vllm")
    assert missing.level == "FAIL"
    assert "evaluation.engine: vllm" in missing.text
    assert "pip install 'perfmis[vllm]'" in missing.text
    pinned = about(found, "torch")
    assert (pinned.level, "make setup" in pinned.text) == ("FAIL", True)
    assert about(found, "polars").level == "warning"


def test_keys_are_asked_for_and_never_shown(study: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    two = study(
        "judge: {api: {provider: openai, model: j, key: FIRST_KEY}}\n"
        "prompting: {closed: {c: {provider: anthropic, model: m, key: SECOND_KEY}}}"
    )
    monkeypatch.setenv("FIRST_KEY", KEY)
    monkeypatch.delenv("SECOND_KEY", raising=False)
    found = access.keys(two)
    assert about(found, "judge.api").level == "ok"
    missing = about(found, "prompting.closed.c")
    assert missing.level == "FAIL"
    assert "SECOND_KEY" in missing.text
    assert "export" in missing.text
    assert KEY not in "".join(map(str, found))


@pytest.mark.parametrize("hub", [True, False])
def test_answers_longer_than_the_context_are_found_without_a_download(
    study: Make, tmp_path: Path, cache: Path, hub: bool
) -> None:
    folder = cache / "models--a--b/snapshots" / COMMIT if hub else tmp_path / "m"
    source = f"hub: a/b, revision: {COMMIT}" if hub else f"path: {folder}"
    model_folder(folder)
    models = FREE + f"models: {{m: {{{source}}}}}\n{CPU}"
    assert lengths.limits(study(f"{models}\nevaluation: {{max_tokens: 1000}}")) == []
    (failed,) = failures(lengths.limits(study(f"{models}\nevaluation: {{max_tokens: 4096}}")))
    assert "evaluation.max_tokens: 4096 tokens, models.m attends to 4096; lower it" in failed


def test_prompts_are_counted_in_the_models_own_tokens(study: Make, tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = model_folder(tmp_path / "m")
    tokenizer = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    start = FREE + f"models: {{m: {{path: {folder}}}}}\n{CPU}"
    found = lengths.prompts(study(f"{start}\nevaluation: {{max_tokens: 1000}}"))
    assert failures(found) == []
    room = int(about(found, "evaluation.base_protocol").text.split()[1])
    assert 0 < room < about_room(found) < 3096, "the long protocol leaves less room than the short one"
    full = study(f"{start}\nevaluation: {{max_tokens: {1000 + room - lengths.REQUEST + 1}}}")
    (failed,) = failures(lengths.prompts(full))
    assert failed.startswith("FAIL    evaluation.base_protocol: models.m")
    assert "shorter protocol" in failed
    assert failed in failures(doctor.preflight(full)), "the workflow looks before its first job"


def about_room(found: list[Finding]) -> int:
    return int(about(found, "evaluation.protocol").text.split()[1])


ONE_GPU = (
    FREE + f"models: {{m: {{hub: a/b, revision: {COMMIT}, size: one}}}}\n"
    "sizes: {one: {gpus: 1}}\nwriter: {size: one}\n"
)


@pytest.mark.parametrize(
    ("text", "key", "fix"),
    [
        (
            "organisms: {sdf: {lora: {rank: 256}}}\narms: {sdf: {lora: {rank: 320}}}",
            "arms.sdf.lora.rank",
            "rank 576 (organisms' and arms' added), vllm serves at most 512; lower it",
        ),
        ("organisms: {sdf: {lora: {rank: 640}}}\narms: {mode: continue}", "arms.sdf.lora.rank", "rank 640, vllm"),
        (ONE_GPU + "organisms: {sdf: {frozen: fp8, lora: {rank: 24}}}", "organisms.sdf.lora.rank", "no multiple of 16"),
        (ONE_GPU + "arms: {sdf: {lora: {dropout: 0.1}}}", "arms.sdf.lora.dropout", "set 0, or attention: sdpa"),
        (ONE_GPU + "evaluation: {precision: fp32}", "evaluation.precision", "set bf16, or engine: transformers"),
    ],
)
def test_adapters_that_cannot_be_trained_or_served(study: Make, text: str, key: str, fix: str) -> None:
    finding = about(lora.ranks(study(text)), key)
    assert finding.level == "FAIL"
    assert fix in finding.text


def test_ranks_are_free_without_vllm(study: Make) -> None:
    assert failures(lora.ranks(study("{}"))) == []
    high = "organisms: {sdf: {lora: {rank: 640}}}\nevaluation: {engine: transformers}"
    assert failures(lora.ranks(study(high))) == []


def test_peaks_against_the_gpus_of_this_machine(study: Make) -> None:
    default = study("{}")
    few = failures(gpus.fit(default, gpus.Gpus(1, 200.0), cluster=False))
    assert any("sizes.70b: 8 GPUs a job, this machine has 1" in line for line in few)
    small = failures(gpus.fit(default, gpus.Gpus(8, 10.0), cluster=False))
    assert any("10 GiB measured here" in line and "sizes.70b.gpus" in line for line in small)
    assert failures(gpus.fit(default, gpus.Gpus(8, 1000.0), cluster=False)) == []
    assert failures(gpus.fit(default, None, cluster=True)) == [], "a login node has no GPU"


def program(folder: Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def test_gpus_are_read_from_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path / "bin", "nvidia-smi", "echo 81920; echo 40960")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    assert gpus.here() == gpus.Gpus(2, 40.0)
    program(tmp_path / "bin", "nvidia-smi", "echo no driver; exit 9")
    assert gpus.here() is None


PROFILE = """
executor: slurm
default-resources: {slurm_partition: gpu, slurm_account: mine}
set-resources: {screen: {slurm_partition: cpu}}
"""


def controller(folder: Path, accounting: str, age: str) -> None:
    program(folder, "scontrol", f'echo "AccountingStorageType   = {accounting}"; echo "MinJobAge = {age}"')


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A profile, and a cluster that has the partitions ``gpu`` and ``cpu`` and the account ``mine``."""
    program(tmp_path / "bin", "sinfo", 'echo "gpu|gpu:h200:8(S:0-1)"; echo "cpu|(null)"')
    program(tmp_path / "bin", "sacctmgr", "echo mine")
    controller(tmp_path / "bin", "accounting_storage/slurmdbd", "300 sec")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    path = tmp_path / "profile.yaml"
    path.write_text(PROFILE)
    return path


def test_a_profile_that_fits_the_cluster(study: Make, slurm: Path) -> None:
    assert {finding.level for finding in cluster.checked(study("{}"), slurm)} == {"ok"}


@pytest.mark.parametrize(
    ("old", "new", "key", "fix"),
    [
        ("slurm_partition: gpu", "slurm_partition: gpus", "default-resources.slurm_partition", "set one of cpu, gpu"),
        ("slurm_partition: cpu", "slurm_partition: c", "set-resources.screen.slurm_partition", "set one of cpu, gpu"),
        ("slurm_account: mine", "slurm_account: x", "default-resources.slurm_account", "set one of mine"),
    ],
)
def test_partitions_and_accounts_that_are_not_there(
    study: Make, slurm: Path, old: str, new: str, key: str, fix: str
) -> None:
    slurm.write_text(PROFILE.replace(old, new))
    finding = about(cluster.checked(study("{}"), slurm), key)
    assert finding.level == "FAIL"
    assert fix in finding.text
    assert str(slurm) in finding.text


def test_partitions_in_a_file_of_their_own(study: Make, slurm: Path) -> None:
    """The executor plug-in's option `slurm-partition-config` names partitions too."""
    listed = slurm.parent / "partitions.yaml"
    slurm.write_text(f"executor: slurm\nslurm-partition-config: {listed}\n")
    listed.write_text("partitions: {cpu: {max_gpu: 0}, gpu: {max_gpu: 8}}\n")
    assert {finding.level for finding in cluster.checked(study("{}"), slurm)} == {"ok"}
    listed.write_text("partitions: {cpu: {max_gpu: 0}, big: {max_gpu: 8}}\n")
    assert "no partition big; set one of cpu, gpu" in failures(cluster.checked(study("{}"), slurm))[0]


def test_a_cluster_without_accounting_is_not_asked_for_it(study: Make, slurm: Path) -> None:
    program(slurm.parent / "bin", "sacct", "echo Slurm accounting storage is disabled >&2; exit 1")
    assert {finding.level for finding in cluster.checked(study("{}"), slurm)} == {"ok"}
    slurm.write_text(PROFILE + "slurm-status-command: sacct\n")
    (failed,) = failures(cluster.checked(study("{}"), slurm))
    assert "accounting storage is disabled" in failed
    assert "set squeue" in failed


@pytest.mark.parametrize("told", ["accounting_storage/none", "(null)"])
def test_accounting_that_is_off_is_found_though_sacct_answers_or_is_not_there(
    study: Make, slurm: Path, told: str
) -> None:
    program(slurm.parent / "bin", "sacct", "true")
    slurm.write_text(PROFILE + "slurm-status-command: sacct\n")
    assert failures(cluster.checked(study("{}"), slurm)) == []
    controller(slurm.parent / "bin", told, "300 sec")
    (failed,) = failures(cluster.checked(study("{}"), slurm))
    assert "slurm-status-command: this cluster keeps no accounting" in failed
    assert f"set squeue in {slurm}" in failed


def test_a_controller_that_forgets_jobs_before_they_are_asked_after(study: Make, slurm: Path) -> None:
    slurm.write_text(PROFILE + "slurm-status-command: squeue\n")
    assert {finding.level for finding in cluster.checked(study("{}"), slurm)} == {"ok"}
    controller(slurm.parent / "bin", "accounting_storage/none", "2 sec")
    finding = about(cluster.checked(study("{}"), slurm), "slurm-status-command")
    assert finding.level == "warning"
    assert "2 s after they ended" in finding.text


def test_clusters_with_too_few_gpus_or_without_an_answer(study: Make, slurm: Path) -> None:
    program(slurm.parent / "bin", "sinfo", 'echo "gpu|gpu:4"; echo "cpu|(null)"')
    assert any("sizes.70b.gpus: 8 GPUs a node" in line for line in failures(cluster.checked(study("{}"), slurm)))
    program(slurm.parent / "bin", "sinfo", "echo slurm_load_partitions: no controller >&2; exit 1")
    (failed,) = failures(cluster.checked(study("{}"), slurm))
    assert "no controller" in failed


def test_jobs_of_a_dead_run_stop_a_second_one(tmp_path: Path, study: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only jobs that a run of this study sent from here: the message says how to end them, and no other of the user."""
    here, root = Path.cwd(), tmp_path / "mine"
    jobs = [
        f"6|rule_arm_wildcards_x|{here}",
        f"7|rule_arm_wildcards_x|{here}",
        f"8|rule_gaps|{here}x",
        f"9|(null)|{here}",
    ]
    program(tmp_path / "bin", "squeue", "\n".join(f"echo '{job}'" for job in jobs))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    assert not orphans.live(here, str(root)), "job 6 may be of another study, which is on"
    journal = Journal()
    journal.found([f"{root}/logs/a.log"], f"{root}/benchmarks/a.tsv")
    for number in "789":
        journal.note("submitted", job=0, cluster=number)
    before = failures(doctor.preflight(study(f"root: {root}")))
    (failed,) = failures(orphans.live(here, str(root)))
    assert failed in before
    assert failed.endswith("are still on, and are started anew; first: scancel 7")
    program(tmp_path / "bin", "squeue", "echo slurm_load_jobs: no controller >&2; exit 1")
    assert not orphans.live(here, str(root))


@pytest.mark.parametrize("options", [("-m",), ("-u", "-m")], ids=["python", "torchrun"])
def test_stages_of_a_dead_run_stop_a_second_one(tmp_path: Path, options: tuple[str, ...]) -> None:
    """But those of another study in the same folder do not."""
    (tmp_path / "perfmis.py").write_text("import sys\nprint(flush=True)\nsys.stdin.read()\n")
    words = [sys.executable, *options, "perfmis", "sdf", "--fingerprint", "0", "--output", "results/mine/x"]
    with subprocess.Popen(words, cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        (failed,) = failures(orphans.stages(tmp_path, "results/mine"))
        others = orphans.stages(tmp_path, "results/other")
        process.communicate()
    assert failed.endswith(f"or: kill {process.pid}")
    assert not others
    assert not orphans.stages(tmp_path, "results/mine")


def test_files_that_vanish_while_times_are_read_are_no_matter(
    tmp_path: Path, study: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as checkpoints of another study below the same root."""
    root = tmp_path / "mine"
    (root / "gone").mkdir(parents=True)
    (root / "gone.json").symlink_to("nowhere")
    (root / "ahead").touch()
    os.utime(root / "ahead", (2**33, 2**33))
    scan = os.scandir

    def scandir(path: Any) -> Any:
        if str(path).endswith("/gone"):
            raise FileNotFoundError(path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    (failed,) = failures(storage.times(study(f"root: {root}")))
    assert f"{root}/ahead has a time in the future" in failed


def test_the_shipped_profile_is_understood_and_a_missing_one_named(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(repository)
    content = mapping(cluster.profile("slurm"))
    assert content["executor"] == "slurm"
    assert all(cluster.asked(content)[kind] for kind in ("slurm_partition", "slurm_account"))
    with pytest.raises(UserError, match="--profile slrum: no such profile"):
        cluster.profile("slrum")


def test_without_a_connection_the_hub_is_a_warning(study: Make, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    two = FREE + f"models: {{a: {{hub: o/a, revision: {COMMIT}}}, b: {{hub: o/b, revision: {COMMIT}}}}}"
    two += f"\n{CPU}"
    model_folder(cache / "models--o--a/snapshots" / COMMIT)
    found = access.hub(study(two))
    assert about(found, "models.a").level == "ok"
    offline = about(found, "hub")
    assert offline.level == "warning"
    assert "no connection" in offline.text
    assert "models.b" in offline.text


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("GatedRepoError", "accept its licence"),
        ("RevisionNotFoundError", "correct models.m.revision"),
        ("RepositoryNotFoundError", "correct models.m.hub"),
    ],
)
def test_models_that_may_not_be_fetched(
    study: Make, cache: Path, monkeypatch: pytest.MonkeyPatch, name: str, fix: str
) -> None:
    import huggingface_hub
    from huggingface_hub import errors

    def refuse(*_: object, **__: object) -> None:
        raise getattr(errors, name)("no", response=SimpleNamespace(headers={}, status_code=403, request=None))

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(huggingface_hub.HfApi, "auth_check", refuse)
    text = FREE + f"models: {{m: {{hub: a/b, revision: {COMMIT}}}}}"
    text += f"\n{CPU}"
    finding = about(access.hub(study(text)), "models.m")
    assert finding.level == "FAIL"
    assert fix in finding.text


def test_disk_against_the_plan(study: Make, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: Any = [
        SimpleNamespace(stage="organisms", disk_gb_left=10.0, scratch_gb=5.0, left=3),
        SimpleNamespace(stage="base models", disk_gb_left=100.0, scratch_gb=0.0, left=1),
    ]
    free = {"bytes": 116e9}
    monkeypatch.setattr(storage.shutil, "disk_usage", lambda _: SimpleNamespace(free=free["bytes"]))
    monkeypatch.setattr(storage, "standing", lambda _: cache)
    (finding,) = storage.room(study("{}"), rows)
    assert finding.level == "ok"
    free["bytes"] = 114e9
    (finding,) = storage.room(study("{}"), rows)
    assert finding.level == "FAIL"
    assert "115 GB to be written" in finding.text
    assert "free space" in finding.text


def test_a_root_that_cannot_be_written(study: Make, tmp_path: Path) -> None:
    assert storage.writable(study(f"root: {tmp_path}/new/deep")).level == "ok"
    (tmp_path / "file").write_text("")
    finding = storage.writable(study(f"root: {tmp_path}/file/results"))
    assert finding.level == "FAIL"
    assert "set another root" in finding.text


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"max_position_embeddings": 99}, 99),
        ({"text_config": {"max_position_embeddings": 99}}, 99),  # a model that reads pictures too
        ({"model_type": "gpt2", "n_positions": 1024, "n_ctx": 1024}, 1024),
        ({"model_type": "mpt", "max_seq_len": 2048}, 2048),
        ({"model_type": "bloom"}, None),
    ],
    ids=["most models", "a text part", "GPT-2", "MPT", "no limit"],
)
def test_context_by_the_names_that_configurations_have(content: Any, expected: int | None, tmp_path: Path) -> None:
    assert weights.context(model_folder(tmp_path / "a", {"config.json": content})) == expected


def test_a_broken_configuration_says_nothing(tmp_path: Path) -> None:
    model_folder(tmp_path / "a")
    (tmp_path / "a/config.json").write_text("{")
    assert weights.context(tmp_path / "a") is None


@pytest.mark.parametrize(
    ("family", "text", "level", "key", "said"),
    [
        ("gpt2", "evaluation: {engine: vllm}", "ok", "models.m", "arms: LoRA reaches 100.0% of the blocks' weights"),
        ("mixtral", "evaluation: {engine: transformers}", "ok", "models.m", "organisms: LoRA reaches 99."),
        ("mixtral", "evaluation: {engine: vllm}", "warning", "models.m", "vllm reads adapters of fused experts"),
        (
            "mixtral",
            "organisms: {sdf: {lora: {experts: false}}}",
            "FAIL",
            "organisms.sdf.lora.reach",
            "models.m: LoRA reaches 14.2% of the blocks' weights, not mlp.experts.gate_up_proj",
        ),
        (
            "mixtral",
            "organisms: {sdf: {frozen: 4bit}}",
            "warning",
            "organisms.sdf.frozen",
            "4bit leaves fused experts, 85% of the blocks' weights, in bf16",
        ),
        ("mixtral", "arms: {sdf: {lora: {dropout: 0.1}}}", "FAIL", "arms.sdf.lora.dropout", "set it to 0"),
        ("mixtral", "arms: {mode: merge}", "FAIL", "arms.mode", "models.m: merge knows no weights such as"),
        ("gemma3", "arms: {mode: merge}", "FAIL", "arms.mode", "models.m: merge finds no weight"),
    ],
)
def test_what_lora_reaches_is_measured_on_models_of_this_machine(
    family: str, text: str, level: str, key: str, said: str, study: Make, tmp_path: Path
) -> None:
    folder = save(family, tmp_path / "model")
    written = study(
        FREE + f"models: {{m: {{path: {folder}, size: one}}}}\n{text}\n"
        "sizes: {one: {gpus: 1}}\nwriter: {size: one}"
    )
    found = [finding for finding in reach.shares(written) if (finding.level, finding.about) == (level, key)]
    assert any(said in finding.text for finding in found)
