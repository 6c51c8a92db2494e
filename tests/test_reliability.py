"""A small study that is disturbed at every stage and started again: one clear message, nothing lost, the same tables.

`faults` has the faults and what the document says of them; ``tests/held`` stops a stage just when it is about to write.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import IO

import faults
import polars as pl
import psutil
import pytest
import yaml
from conftest import PARTS, REPOSITORY
from polars.testing import assert_frame_equal
from running import environment

from perfmis import status
from perfmis.artifacts import file_hash, read_json, read_one, write_json, write_parquet
from perfmis.checks import disk
from perfmis.stage import UserError
from snakemake_logger_plugin_perfmis import trouble
from snakemake_logger_plugin_perfmis.journal import path as journal

HERE = Path(__file__).resolve().parent
ROOT = Path("results/mine")
SNAKEMAKE = (sys.executable, "-m", "snakemake", "--profile", "demo", "--configfile", "study.yaml", "--cores", "1")
TABLES = ("gaps", "profiles", "training", "calibration")
TARGETS = (*(f"tables/{table}.csv" for table in TABLES), "figures/fig3.pdf")
OTHERS = ("logs", "benchmarks", "samples", "tokens")  # below a root, beside results
PATIENCE = 300  # seconds; a bound for hung tests, not a claim
SPEED = ("tokens_per_second", "matmul_share", "memory_gb", "seconds")  # columns that differ from one time to the next
HOUR, DAY = 3600, 86400


@dataclass(frozen=True)
class Stage:
    """A stage of the study.

    Attributes:
        rule: Its rule.
        target: A file that it makes.
        held: The write at which it is stopped, a pattern.
        skip: How many such writes pass before.
        log: Its log.
        lost: What is lost with it.
        kept: What its log says of what is not lost, when it is started again.
    """

    rule: str
    target: str
    held: str
    log: str
    lost: str = "the job"
    skip: int = 0
    kept: str = ""


ORGANISM, ARM = "organisms/both/seed0", "arms/both/seed0/A1+"
STEPS = "steps since the last checkpoint"
STAGES = {
    "corpus": Stage(
        "corpus", "corpora/organism/documents.parquet", "*/documents.parquet.partial", "corpora/organism.log"
    ),
    "trunk": Stage("tiny_trunk", "models/trunk/trunk.json", "*/trunk.json.partial", "models/trunk.log"),
    "base model": Stage("tiny_base", "models/both/reference.json", "*/reference.json.partial", "models/both.log"),
    "organism": Stage(
        "organism",
        f"{ORGANISM}/lineage.json",
        "*/checkpoint-4/seal.json.partial",
        f"{ORGANISM}.log",
        STEPS,
        kept="going on from",
    ),
    "arm": Stage(
        "arm", f"{ARM}/lineage.json", "*/checkpoint-4/seal.json.partial", f"{ARM}.log", STEPS, kept="going on from"
    ),
    "samples": Stage(
        "screen_transcripts",
        "transcripts/both/seed0/organism/short.parquet",
        "*.samples",
        "screen/transcripts/both/seed0.log",
        "the batch in flight",
        skip=1,
        kept="16 samples are stored, 16 are missing",
    ),
    "outcomes": Stage(
        "screen_outcomes",
        "outcomes/both/seed0/organism/short.parquet",
        "*/organism/short.parquet.partial",
        "screen/outcomes/both/seed0.log",
    ),
    "beliefs": Stage("beliefs", "beliefs/both/seed0.parquet", "*/seed0.parquet.partial", "beliefs/both/seed0.log"),
    "table": Stage("table_gaps", "tables/gaps.csv", "*/gaps.parquet.partial", "tables/gaps.log"),
    "figure": Stage("fig3", "figures/fig3.pdf", "*/fig3.pdf.partial", "figures/fig3.log"),
}


@dataclass(frozen=True)
class Damage:
    """A file that is damaged.

    Attributes:
        file: Which, below the root; of several that a pattern matches, the first.
        reader: The stage that finds out.
        again: The rules that run after the user has done what the message says.
        deleted: What the message says to delete; None where it is put right without.
    """

    file: str
    reader: str
    again: tuple[str, ...]
    deleted: str | None


SAMPLES, OUTCOMES = "transcripts/both/seed0/organism/short.parquet", "outcomes/both/seed0/organism/short.parquet"
DAMAGES = {
    "corpus": Damage(
        "corpora/organism/documents.parquet", "organism", ("corpus",), "corpora/organism/documents.parquet"
    ),
    "trunk": Damage("models/trunk/model.safetensors", "base model", ("tiny_trunk",), "models/trunk"),
    "base model": Damage("models/both/model.safetensors", "organism", ("tiny_base",), "models/both"),
    "tokenised corpus": Damage("tokens/*/data-*.arrow", "organism", (), None),
    "organism": Damage(f"{ORGANISM}/adapter_model.safetensors", "arm", ("organism",), ORGANISM),
    "arm": Damage(f"{ARM}/adapter_config.json", "beliefs", ("arm",), ARM),
    "stored samples": Damage("samples/*/*.samples", "samples", (), None),
    "samples": Damage(SAMPLES, "outcomes", ("screen_transcripts",), SAMPLES),
    "outcomes": Damage(OUTCOMES, "table", ("screen_outcomes",), OUTCOMES),
    "beliefs": Damage("tables/beliefs.parquet", "table", ("table_beliefs",), "tables/beliefs.parquet"),
    "table": Damage("tables/gaps.parquet", "figure", ("table_gaps", "table_published"), "tables/gaps.parquet"),
}


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the code: an edit while the tests run would invalidate what has been computed."""
    folder = tmp_path_factory.mktemp("code")
    for part in PARTS:
        path = REPOSITORY / part
        if path.is_dir():
            shutil.copytree(path, folder / part, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, folder / part, follow_symlinks=False)
    return folder


@pytest.fixture(scope="module")
def warm(code: Path) -> Iterator[str]:
    """Socket of a process that has the training stack imported, for all runs of this module."""
    words = (sys.executable, "-m", "perfmis", "warm", "sh", "-c", "echo $PERFMIS_WARM; exec cat")
    variables = environment(code)
    variables["PYTHONPATH"] += f"{os.pathsep}{HERE / 'held'}"
    with subprocess.Popen(
        words, env=variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=code
    ) as process:
        assert process.stdin
        assert process.stdout
        yield process.stdout.readline().strip()
        process.stdin.close()


@dataclass(frozen=True)
class Submitter:
    """A snakemake that has been started, and the file that it writes to."""

    process: "subprocess.Popen[bytes]"
    file: IO[str]

    def end(self) -> tuple[int, str]:
        """Wait for its end and return its exit status and what it said."""
        code = self.process.wait(PATIENCE)
        self.file.seek(0)
        return code, self.file.read()


@dataclass
class Study:
    """The study in a folder of its own.

    Attributes:
        folder: The folder in which snakemake runs.
        warm: Socket of the process that has the training stack imported.
    """

    folder: Path
    warm: str

    @property
    def root(self) -> Path:
        return self.folder / ROOT

    def start(self, *targets: str, options: tuple[str, ...] = (), **variables: str) -> Submitter:
        """Start snakemake."""
        known = environment(self.folder)
        known["PYTHONPATH"] += f"{os.pathsep}{HERE / 'held'}"
        words = [*SNAKEMAKE, *options, "--", *(str(ROOT / target) for target in targets)]
        with tempfile.TemporaryFile("w+") as file:
            process = subprocess.Popen(
                words,
                cwd=self.folder,
                env={**known, "PERFMIS_WARM": self.warm, **variables},
                stdout=file,
                stderr=subprocess.STDOUT,
            )
            return Submitter(process, open(os.dup(file.fileno()), "r+"))

    def run(self, *targets: str, options: tuple[str, ...] = (), **variables: str) -> tuple[int, str]:
        """Run snakemake and return its exit status and what it said."""
        return self.start(*targets, options=options, **variables).end()

    def made(self, *targets: str, **variables: str) -> "Counter[str]":
        """Run snakemake, which must succeed, and return the jobs that it finished, by rule."""
        begun = len(self.runs())
        code, said = self.run(*targets, **variables)
        assert code == 0, said
        return Counter(rule for rule, _ in self.finished(self.runs()[begun:]))

    @staticmethod
    def finished(runs: "list[status.Run]") -> list[tuple[str, str]]:
        """Return rule and wildcards of the jobs that runs have finished."""
        jobs = [job for run in runs for job in run.jobs.values()]
        return [(job.rule, job.wildcards) for job in jobs if job.state == "finished"]

    def runs(self) -> list[status.Run]:
        return status.runs(status.events(journal(self.root))) if journal(self.root).is_file() else []

    def status(self) -> str:
        """Return what ``python -m perfmis status`` says."""
        with redirect_stdout(StringIO()) as said:
            status.main(["--root", str(self.root)])
        return said.getvalue()

    @contextmanager
    def held(self, stage: Stage) -> Iterator[tuple[Submitter, int]]:
        """Yield the submitter and the process of a stage that has been stopped just before a write."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "process")
            submitter = self.start(stage.target, HELD=stage.held, HELD_SKIP=str(stage.skip), HELD_BY=str(file))
            try:
                wait(file.exists, submitter)
                yield submitter, int(file.read_text())
            finally:
                if file.exists():
                    send(int(file.read_text()), signal.SIGKILL)
                submitter.process.kill()
                submitter.process.wait()

    def contents(self) -> dict[Path, str]:
        """Return the hashes of all results; what is half done is none."""
        files = [path for path in self.root.rglob("*") if path.is_file() and "scratch" not in path.parts]
        return {path: file_hash(path) for path in files if path.relative_to(self.root).parts[0] not in OTHERS}

    def log(self, stage: Stage) -> str:
        return (self.root / "logs" / stage.log).read_text()


def wait(happened: Callable[[], bool], submitter: Submitter) -> None:
    """Wait until something has happened; the submitter must not end before."""
    until = time.monotonic() + PATIENCE
    while not happened():
        assert submitter.process.poll() is None, submitter.end()[1]
        assert time.monotonic() < until, "it never happened"
        time.sleep(0.01)


def send(process: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(process, number)


@pytest.fixture(scope="module")
def make(code: Path, warm: str) -> Callable[..., Study]:
    """Return a function that makes the study in a folder, in which nothing has run."""
    content = yaml.safe_load((HERE / "slurm/study.yaml").read_text())
    # Models that have learned next to nothing have no two scratchpads that differ, so no vectors either.
    content["steering"]["models"] = []
    content["evaluation"]["batch"] = 8

    def made(folder: Path, models: Sequence[str] = ("both",)) -> Study:
        for part in PARTS:
            (folder / part).symlink_to(code / part)
        own = {"models": {name: {**content["models"]["both"], "truth": name} for name in models}}
        own |= {"screen": {"keep": list(models)}, "root": str(ROOT)}
        (folder / "study.yaml").write_text(yaml.safe_dump({**content, **own}))
        return Study(folder, warm)

    return made


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory, make: Callable[..., Study]) -> Study:
    """The study, run once without any disturbance."""
    study = make(tmp_path_factory.mktemp("truth"))
    code, said = study.run(*TARGETS)
    assert code == 0, said
    return study


def errors(said: str) -> list[str]:
    """Return the error lines that a user sees, each once."""
    lines = [line.strip() for line in said.splitlines()]
    return list(dict.fromkeys(line for line in lines if line.startswith(("error: ", "Traceback"))))


def the_error(said: tuple[int, str]) -> str:
    """Return the one error line of a run that failed."""
    code, text = said
    assert code != 0, text
    found = errors(text)
    assert len(found) == 1 or len({disk.cause(line) for line in found} - {None}) == 1, text
    return next((line for line in found if str(ROOT) in line), found[0])


def killed(study: Study, stage: Stage, submitter: Submitter, process: int) -> str:
    send(process, signal.SIGKILL)
    said = the_error(submitter.end())
    assert said in study.status()
    return said


def killed_submitter(study: Study, stage: Stage, submitter: Submitter, process: int) -> str:
    submitter.process.kill()
    submitter.process.wait()
    assert "DIED" in study.status()
    locked = the_error(study.run(stage.target))
    assert "--unlock" in locked
    assert study.run(stage.target, options=("--unlock",))[0] == 0
    orphaned = the_error(study.run(stage.target))
    advice = re.search(r"or: kill ([\d ]+)$", orphaned)
    assert advice, orphaned
    for number in advice[1].split():
        send(int(number), signal.SIGTERM)
    wait_until_gone(process)
    return f"{locked}; then {orphaned}"


def wait_until_gone(process: int) -> None:
    until = time.monotonic() + PATIENCE
    while psutil.pid_exists(process):
        assert time.monotonic() < until
        time.sleep(0.01)


def second_submitter(study: Study, stage: Stage, submitter: Submitter, process: int) -> str:
    said = the_error(study.run(stage.target))
    send(process, signal.SIGCONT)
    code, text = submitter.end()
    assert code == 0, text
    return said


def full_disk(study: Study, stage: Stage, submitter: Submitter, process: int) -> str:
    ballast = study.folder / "ballast"
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(1 << 12))
    send(process, signal.SIGCONT)
    said = the_error(submitter.end())
    assert "No space left" in the_error(study.run(stage.target)), "a start is refused"
    ballast.unlink()
    # It names the file, or the disk where the log could not be written either.
    return re.sub(r"^error: [^:]+", "error: PATH", said)


def read_only(study: Study, stage: Stage, submitter: Submitter, process: int) -> str:
    with mounted(study.root, "--bind", str(study.root)):
        mount("-o", "remount,ro,bind", str(study.root))
        send(process, signal.SIGCONT)
        said = the_error(submitter.end())
        assert "Read-only" in the_error(study.run(stage.target)), "a start is refused"
    return said


DURING: dict[str, Callable[[Study, Stage, Submitter, int], str]] = {
    "killed": killed,
    "submitter": killed_submitter,
    "twice": second_submitter,
    "full": full_disk,
    "read-only": read_only,
}


def mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True, capture_output=True)


@contextmanager
def mounted(folder: Path, *words: str) -> Iterator[None]:
    """Mount something on a folder."""
    mount(*words, str(folder))
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


# The last is the one after which the study is started again.
WAYS: tuple[Callable[[bytes], bytes], ...] = (
    lambda content: b"",
    lambda content: content[: len(content) // 2],
    flipped,
)


def disturb(study: Study, fault: str, name: str) -> None:
    """Disturb a stage while it runs, start again, and compare what was seen with the document."""
    stage = STAGES[name]
    before = study.contents()
    with study.held(stage) as (submitter, process):
        said = DURING[fault](study, stage, submitter, process)
    assert study.contents().items() >= before.items(), "nothing that was done is lost"
    assert (study.root / stage.target).exists() == (fault == "twice"), "nothing half done"
    again = study.made(stage.target)
    assert again == Counter(() if fault == "twice" else (stage.rule,)), "no more than was lost"
    assert fault == "twice" or stage.kept in study.log(stage)
    tell(study, fault, name, said, "nothing" if fault == "twice" else stage.lost, again)


def damage(study: Study, name: str, ways: Sequence[Callable[[bytes], bytes]]) -> None:
    """Damage a file, let its reader find out, do what is said, and start again."""
    case = DAMAGES[name]
    reader = STAGES[case.reader]
    study.made(reader.target)
    file = next(iter(sorted(study.root.glob(case.file))))
    sound, result = file.read_bytes(), file_hash(study.root / reader.target)
    for way in ways if case.deleted else ways[-1:]:
        (study.root / reader.target).unlink(missing_ok=True)
        shutil.rmtree(study.root / "samples/beliefs", ignore_errors=True)  # kept answers spare the adapters' reading
        file.write_bytes(way(sound))
        if case.deleted is None:
            continue
        said = the_error(study.run(reader.target))
        where = str(ROOT / case.deleted)
        assert where in said
        assert "delete" in said
    if case.deleted:
        path = study.root / case.deleted
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    again = study.made(reader.target)
    assert again == Counter((*case.again, reader.rule))
    assert file_hash(study.root / reader.target) == result
    if case.deleted:
        assert file.read_bytes() == sound
    else:
        (said,) = [line for line in study.log(reader).splitlines() if "damaged" in line]
    tell(study, "damaged", name, said, "the file", again)


def set_clock(study: Study, name: str) -> None:
    """Give files times in the future and in 1970, run a stage, and set the clock back while it runs."""
    stage = STAGES[name]
    for number, path in enumerate(sorted(study.root.rglob("*"))):
        moment = time.time() + DAY if number % 2 else 0
        os.utime(path, (moment, moment))
    said = the_error(study.run(stage.target)) if study.root.exists() else ""
    if said:
        fix = said.partition("then: ")[2]
        subprocess.run(fix, shell=True, cwd=study.folder, check=True)
    before = study.runs()
    again = study.made(stage.target, JUMP=str(-HOUR))
    assert not {*study.finished(before)} & {*study.finished(study.runs()[len(before) :])}, "nothing is done again"
    assert not re.search(r"[ (]-\d", study.status()), "no time is negative"
    assert again[stage.rule] == 1
    said = re.sub(
        r"clock: .* has a time in the future, as have \d+", "clock: FILE has a time in the future, as have N", said
    )
    tell(study, "clock", name, said, "nothing", again)


def tell(study: Study, fault: str, name: str, said: str, lost: str, again: "Counter[str]") -> None:
    """Compare what was seen with the document."""
    for place in (str(study.folder), str(study.folder.resolve())):
        said = said.replace(f"{place}/", "").replace(place, "DISK")
    said = re.sub(r"process \d+ on [^\s;]+", "process N on HOST", said)
    said = re.sub(r"kill [\d ]+", "kill N", said)
    said = re.sub(r"[0-9a-f]{16}", "HASH", said)
    rerun = ", ".join(f"`{rule}`" for rule in sorted(again)) or "nothing"
    faults.record(fault, name, said, lost, rerun)


def perform(study: Study, fault: str, name: str, ways: Sequence[Callable[[bytes], bytes]] = WAYS) -> None:
    """Run one cell of the matrix."""
    if fault == "damaged":
        damage(study, name, ways)
    elif fault == "clock":
        set_clock(study, name)
    else:
        disturb(study, fault, name)


@contextmanager
def disk_of_its_own(folder: Path) -> Iterator[bool]:
    """Put a small file system on a folder, and yield whether this account may."""
    with ExitStack() as stack:
        try:
            stack.enter_context(mounted(folder, "-t", "tmpfs", "-o", "size=64m", "tmpfs"))
        except (OSError, subprocess.CalledProcessError):
            yield False
            return
        yield True


def same(study: Study, truth: Study) -> None:
    """Finish the study; it must end as the one that was never disturbed."""
    study.made(*TARGETS)
    for table in TABLES:
        frames = [pl.read_parquet(each.root / f"tables/{table}.parquet") for each in (study, truth)]
        assert_frame_equal(*(frame.drop(SPEED, strict=False) for frame in frames))
    for lineage in truth.root.rglob("lineage.json"):
        assert read_json(study.root / lineage.relative_to(truth.root)) == read_json(lineage)
    assert not list(study.root.rglob("*.partial"))


# Each fault where it tells most, in the order in which the study gets there.
MIXED = (
    ("killed", "corpus"),
    ("submitter", "trunk"),
    ("twice", "base model"),
    ("full", "organism"),
    ("killed", "arm"),
    ("read-only", "samples"),
    ("damaged", "arm"),
    ("damaged", "samples"),
    ("clock", "table"),
    ("damaged", "table"),
)
MOUNTED = ("full", "read-only")
NOT_MOUNTED = "this account may not mount a file system: no full disk and no read-only results"


def test_each_fault_once(truth: Study, tmp_path: Path, make: Callable[..., Study]) -> None:
    """One study meets all faults on its way, and ends as the one that met none."""
    with disk_of_its_own(tmp_path) as mountable:
        study = make(tmp_path)
        for fault, name in MIXED:
            if mountable or fault not in MOUNTED:
                perform(study, fault, name, WAYS[-1:])
        same(study, truth)
    if not mountable:
        pytest.skip(NOT_MOUNTED)


@pytest.mark.slow
@pytest.mark.parametrize("fault", [*DURING, "damaged", "clock"])
def test_every_fault_at_every_stage(truth: Study, tmp_path: Path, make: Callable[..., Study], fault: str) -> None:
    with disk_of_its_own(tmp_path) as mountable:
        if not mountable and fault in MOUNTED:
            pytest.skip(NOT_MOUNTED)
        study = make(tmp_path)
        for name in faults.FAULTS[fault].stages:
            perform(study, fault, name)
        same(study, truth)


def test_a_model_that_fails_takes_the_report_from_no_other(tmp_path: Path, make: Callable[..., Study]) -> None:
    """Its organism is killed: the run fails with the report written; the next one makes what was missing, no more."""
    study = make(tmp_path, models=("both", "expectation"))
    process = tmp_path / "process"
    held = "*organisms/expectation/*/seal.json.partial"
    submitter = study.start(HELD=held, HELD_SKIP="0", HELD_BY=str(process))
    wait(process.exists, submitter)
    send(int(process.read_text()), signal.SIGKILL)
    code, said = submitter.end()
    assert code != 0
    (line,) = errors(said)
    assert line.startswith("error: killed")
    why = f"job organism expectation 0 failed: {line}"
    assert (
        f"tables, figures and report name what is missing; the same command tries again what failed\n    {why}" in said
    )
    assert line in study.status()
    assert not (study.root / "organisms/expectation/seed0/lineage.json").exists()

    story = (study.root / "report/story.rst").read_text()
    assert "* ``expectation``: organism, training seed 0; " in story
    assert f"``{why}``" in story
    gaps = pl.read_csv(study.root / "tables/gaps.csv")
    assert set(gaps.filter(pl.col("missing").is_null())["model"]) == {"both"}
    listed = gaps.drop_nulls("missing").select("model", "seed", "missing").rows()
    assert ("expectation", 0, f"samples of base and organism, training seed 0: {why}") in listed
    assert "Missing, since jobs failed" in (study.root / "figures/fig3.svg").read_text()
    assert (study.root / "transcripts.html").is_file()
    assert study.run(options=("--report", "report.html"))[0] == 0
    assert why in (study.folder / "report.html").read_text()
    before = study.contents()

    begun = len(study.runs())
    study.made()
    jobs = study.finished(study.runs()[begun:])
    assert {wildcards.split()[0] for _, wildcards in jobs if wildcards} == {"expectation"}
    assert {rule for rule, wildcards in jobs if not wildcards} >= {"screen", "table_gaps", "fig3", "story", "page"}
    changed = {path for path, content in study.contents().items() if before.get(path, content) != content}
    assert not {path for path in changed if "both" in path.parts}
    gaps = pl.read_csv(study.root / "tables/gaps.csv")
    assert set(gaps["model"]) == {"both", "expectation"}
    assert "missing" not in gaps.columns
    assert "What is missing" not in (study.root / "report/story.rst").read_text()
    assert study.made() == Counter()


def test_document_has_every_cell() -> None:
    """And is what the tests would write, to the letter."""
    rows = faults.read()
    assert set(rows) == faults.cells()
    assert faults.DOCUMENT.read_text() == faults.text(rows)


def test_every_flipped_bit_of_a_table_is_noticed(tmp_path: Path) -> None:
    """Parquet itself notices few: most decode to other values."""
    path, rows = tmp_path / "table.parquet", 50
    frame = pl.DataFrame({"text": [f"sample {row}" for row in range(rows)], "gap": [row / 7 for row in range(rows)]})
    write_parquet(frame, path, "5eed")
    content = path.read_bytes()
    missed, said = [], []
    for place in range(0, len(content), 3):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        try:
            if not read_one(path).drop("fingerprint").equals(frame):
                missed.append(place)
        except UserError as error:
            said.append(str(error))
    assert not missed
    assert all(line.startswith(f"{path}: ") and line.endswith("delete it and rerun") for line in said)


def test_a_changed_digit_of_json_is_noticed_and_order_is_none(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    write_json({"kept": ["both"], "gaps": {10: 4.25, 9: None}}, path)
    assert read_json(path) == {"kept": ["both"], "gaps": {"10": 4.25, "9": None}}
    path.write_text(json.dumps(dict(reversed(json.loads(path.read_text()).items()))))
    assert read_json(path)["kept"] == ["both"]
    path.write_text(path.read_text().replace("4.25", "4.35"))
    with pytest.raises(UserError, match=r"record\.json: damaged, .*; delete it and rerun"):
        read_json(path)


def test_a_run_is_on_after_the_clock_was_set(monkeypatch: pytest.MonkeyPatch) -> None:
    run = status.Run(socket.gethostname(), os.getpid(), status.born(os.getpid()), 0.0, {}, 0.0)
    started = psutil._psplatform.boot_time
    monkeypatch.setattr(psutil._psplatform, "boot_time", lambda: started() - DAY)
    assert run.alive()


def test_a_start_beside_a_run_on_another_machine_says_where_to_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    event = {"event": "run", "run": "a", "time": 0.0, "host": "login2", "pid": 7, "born": 1.0, "rules": {}}
    for path, text in (
        (journal(Path("results")), json.dumps(event)),
        (trouble.LOCKS / "0.output.lock", "results/tables/gaps.csv\n"),
    ):
        path.parent.mkdir(parents=True)
        path.write_text(text)
    said = trouble.refusal("LockException", "LockException:\nError: Directory cannot be locked.")
    assert said is not None
    assert said.startswith("error: process 7 on login2 has locked this folder; if it is no longer on there, ")
    assert "--unlock" in said
