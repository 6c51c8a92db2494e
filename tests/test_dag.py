"""The DAG: what each figure asks for, by formulas of the design, in the preprint's study and in the demo."""

import importlib
import re
import shlex
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from running import jobs, snakemake

from perfmis import stage as stage_module

ARMS = 9  # two families, two contents, two poles, and the neutral arm
CORPORA = ARMS + 1  # and the organism's
TABLES = 9
PROTOCOLS = 2
INTERVENED = ("vectors", "steering_transcripts", "steering_outcomes")
PROMPTED = ("prompting_transcripts", "prompting_outcomes")
DEMO_KEPT = "screen={keep: [expectation, consequence, both, neither], minimum_gap: 10}"


@dataclass(frozen=True)
class Design:
    """Size of a study.

    Attributes:
        options: Options of snakemake that select it.
        root: Where its results go.
        base: Jobs that make one base model per screened model.
        shared: Further jobs without which there is no base model.
        screened: Models that are screened.
        kept: Models that go on.
        steered: Kept models whose organisms are steered.
        large: Kept models that train on several nodes; they are not steered.
        seeds: Training seeds.
        figures: Numbers of its figures.
    """

    options: tuple[str, ...]
    root: str
    base: str
    shared: tuple[str, ...]
    screened: int
    kept: int
    steered: int
    large: int
    seeds: int
    figures: tuple[int, ...]


PREPRINT = Design(
    (),
    "results",
    "hub_model",
    (),
    screened=6,
    kept=4,
    steered=1,
    large=1,
    seeds=3,
    figures=(*range(1, 9), 10),
)
DEMO = Design(
    ("--configfile", "config/demo.yaml", "--config", DEMO_KEPT),
    "results/demo",
    "tiny_base",
    ("tiny_trunk",),
    screened=5,
    kept=4,
    steered=4,
    large=0,
    seeds=1,
    figures=tuple(range(1, 11)),
)
DESIGNS = {"preprint": PREPRINT, "demo": DEMO}


def organisms(design: Design, models: int) -> Counter[str]:
    """Jobs that make the organisms of some models: base models, one corpus, one adapter a seed."""
    large = min(design.large, models - design.steered)
    adapters = Counter(organism=(models - large) * design.seeds, organism_multinode=large * design.seeds)
    return Counter({design.base: models, "corpus": 1} | dict.fromkeys(design.shared, 1)) | adapters


def screened(design: Design, models: int) -> Counter[str]:
    """Jobs up to the outcomes of base and organism: one job a model and seed samples both, under their protocol."""
    runs = models * design.seeds
    sampled = Counter(requests=1, protocol=1, screen_transcripts=runs, screen_outcomes=runs)
    return organisms(design, models) | sampled


def arms(design: Design) -> Counter[str]:
    """Jobs up to the arms: one an arm and seed of each kept organism, after the audit and the model's budget."""
    rounds = design.seeds * ARMS
    kept = Counter(arm=(design.kept - design.large) * rounds, arm_multinode=design.large * rounds)
    around = Counter(corpus=CORPORA, audit=1, requests=1, protocol=PROTOCOLS, budget=design.kept)
    return organisms(design, design.kept) | kept | around


def beliefs(design: Design) -> Counter[str]:
    """Jobs up to the table of beliefs: one job a model and seed scores all checkpoints."""
    return arms(design) | Counter(beliefs=design.kept * design.seeds, table_beliefs=1)


def gaps(design: Design) -> Counter[str]:
    """Jobs up to the table of gaps: every screened organism, and the arms of the kept ones."""
    runs = design.kept * design.seeds
    return screened(design, design.screened) | beliefs(design) | Counter(transcripts=runs, outcomes=runs, table_gaps=1)


def steering(design: Design) -> Counter[str]:
    """Jobs up to the table of steering: only the steered organisms, no arms."""
    runs = Counter(dict.fromkeys(INTERVENED, design.steered * design.seeds))
    return screened(design, design.steered) | runs | Counter(table_steering=1)


def prompting(design: Design) -> Counter[str]:
    """Jobs up to the two tables of prompting, made in one job.

    Arms are prompted, so they are needed; what is asked without a snippet is drawn by the jobs of transcripts.
    """
    sampled = ("screen_transcripts", "transcripts", *PROMPTED)
    runs = Counter(dict.fromkeys(sampled, design.kept * design.seeds))
    return arms(design) | runs | Counter(table_prompting=1)


def profiles(design: Design) -> Counter[str]:
    """Jobs up to the table of profiles, which reads outcomes itself and of the tables only that of gaps."""
    read = Counter({rule: n for rule, n in (steering(design) | prompting(design)).items() if "table" not in rule})
    return gaps(design) | read | Counter(table_profiles=1)


def published(design: Design) -> Counter[str]:
    """Jobs up to the table of published numbers, which stand beside the study's own."""
    return Counter(table_published=1)


def training(design: Design) -> Counter[str]:
    """Jobs up to the table of training runs, which reads the logs of organisms and arms."""
    return arms(design) | Counter(table_training=1)


FIGURES: dict[int, Callable[[Design], Counter[str]]] = {
    1: lambda design: Counter(),
    2: lambda design: screened(design, design.screened) | Counter(screen=1),
    3: lambda design: gaps(design) | published(design),
    4: steering,
    5: lambda design: profiles(design) | prompting(design),
    6: steering,
    7: beliefs,
    8: lambda design: profiles(design) | published(design),
    9: profiles,
    10: training,
}


def everything(design: Design) -> Counter[str]:
    """Jobs of the default target: all figures and tables, the screen, the report's page and that of transcripts."""
    total: Counter[str] = Counter({"screen": 1, "table_convergence": 1, "story": 1, "page": 1, "all": 1})
    for number in design.figures:
        total |= FIGURES[number](design) | Counter({f"fig{number}": 1})
    return total


@dataclass(frozen=True)
class Graph:
    """The jobs of a DAG by number: their rules and what they need."""

    rules: dict[str, str]
    needs: dict[str, list[str]]

    def jobs(self, rule: str) -> Counter[str]:
        """Count, by rule, what the one job of ``rule`` needs, itself included."""
        todo = [next(job for job, name in self.rules.items() if name == rule)]
        seen: set[str] = set()
        while todo:
            job = todo.pop()
            if job not in seen:
                seen.add(job)
                todo += self.needs.get(job, [])
        return Counter(self.rules[job] for job in seen)


@pytest.fixture(scope="module")
def folder(workdir: Callable[..., Path]) -> Path:
    return workdir()


@pytest.fixture(scope="module")
def graphs(folder: Path) -> dict[str, Graph]:
    """The DAG of each study's default target, from ``snakemake --dag``: one call for all figures."""
    result = {}
    for name, design in DESIGNS.items():
        text = snakemake(folder, *design.options, "--dag", "dot", "--", "all").stdout
        rules = dict(re.findall(r'^\s*(\d+)\[label = "([^"\\]+)', text, re.MULTILINE))
        needs: dict[str, list[str]] = {}
        for source, target in re.findall(r"^\s*(\d+) -> (\d+)", text, re.MULTILINE):
            needs.setdefault(target, []).append(source)
        result[name] = Graph(rules, needs)
    return result


@pytest.mark.parametrize(("study", "number"), [(name, n) for name, d in DESIGNS.items() for n in d.figures])
def test_figure_needs_the_jobs_of_the_design_and_no_others(graphs: dict[str, Graph], study: str, number: int) -> None:
    expected = FIGURES[number](DESIGNS[study]) | Counter({f"fig{number}": 1})
    assert graphs[study].jobs(f"fig{number}") == expected


@pytest.mark.parametrize("study", DESIGNS)
def test_default_target_is_everything(folder: Path, study: str) -> None:
    design = DESIGNS[study]
    said = snakemake(folder, "-n", "--quiet", "rules", *design.options)
    assert said.returncode == 0, said.stderr
    assert jobs(said.stdout + said.stderr) == everything(design)


def test_job_table_of_a_figure_is_that_of_its_part_of_the_graph(folder: Path) -> None:
    said = snakemake(folder, "-n", "--quiet", "rules", "--", "results/figures/fig7.pdf")
    assert jobs(said.stdout + said.stderr) == beliefs(PREPRINT) | Counter(fig7=1)


def test_figure_of_planted_truths_needs_some(folder: Path) -> None:
    said = snakemake(folder, "-n", "--quiet", "rules", "--", "results/figures/fig9.pdf")
    assert said.returncode != 0
    assert "results/figures/fig9.pdf" in said.stdout + said.stderr


def test_demo_shows_no_arm_before_its_screen_has_run(folder: Path) -> None:
    """With `keep: auto` nobody knows yet who goes on: the dry-run shows the screen and what hangs on it."""
    said = snakemake(folder, "-n", "--quiet", "rules", "--configfile", "config/demo.yaml")
    assert said.returncode == 0, said.stderr
    tables = ("beliefs", "gaps", "steering", "prompting", "profiles", "convergence", "published", "training")
    hanging = {"all", "story", "page", *(f"table_{t}" for t in tables), *(f"fig{n}" for n in DEMO.figures)}
    expected = screened(DEMO, DEMO.screened) | Counter(["screen", *hanging])
    assert jobs(said.stdout + said.stderr) == expected


def test_lint_finds_nothing(folder: Path) -> None:
    said = snakemake(folder, "--lint")
    assert said.returncode == 0, said.stdout + said.stderr


@pytest.mark.parametrize(
    ("model", "launched", "resources"),
    [
        (
            "llama-3.1-405b",
            "srun --nodes=2 --ntasks=2 --ntasks-per-node=1 --gpus-per-node=8 --cpus-per-task=64 bash "
            "workflow/scripts/torchrun.sh 8 -m perfmis sdf",
            ("nodes=2", "tasks=2", "mpi=srun", "slurm_extra=--gpus-per-node=8 --exclusive"),
        ),
        ("llama-3.1-70b", "torchrun --standalone --nproc-per-node=8 -m perfmis sdf", ("gpu=8", "mem_mb=800000")),
    ],
)
def test_training_asks_slurm_for_the_gpus_it_starts_processes_for(
    workdir: Callable[..., Path], model: str, launched: str, resources: tuple[str, ...]
) -> None:
    """One node or two, with ZeRO-3 over a process for each GPU."""
    target = f"results/arms/{model}/seed0/A1+/lineage.json"
    said = snakemake(workdir(), "--dry-run", "--printshellcmds", target)
    assert said.returncode == 0, said.stderr
    job = said.stdout.split("\nrule arm")[1].split("\n\n")[0]
    assert launched in job
    assert "--zero3" in job
    asked = next(line for line in job.splitlines() if line.strip().startswith("resources:"))
    assert all(resource in asked for resource in resources)


JUDGED = """
judge: {api: {provider: openai, model: judge-1}, samples: [checkpoints, steering, prompting]}
prompting: {closed: {closed-1: {provider: anthropic, model: claude-1}}}
evaluation: {compliance: and}
"""


@pytest.fixture(scope="module")
def judged(folder: Path) -> str:
    """What a dry-run of the demo with a judge and a closed model says, commands included."""
    (folder / "judged.yaml").write_text(JUDGED)
    options = ("-n", "-p", "--configfile", "config/demo.yaml", "judged.yaml", "--config", DEMO_KEPT)
    said = snakemake(folder, *options)
    assert said.returncode == 0, said.stderr
    return said.stdout + said.stderr


def test_a_judge_reads_every_kind_of_sample(judged: str) -> None:
    counts = jobs(judged)
    assert counts["screen_judgements"] == DEMO.screened
    kept = ("judgements", "steering_judgements", "prompting_judgements")
    assert {counts[rule] for rule in kept} == {DEMO.kept}
    once = ("judge_model", "audit_sheet", "validation", "table_scorings", "closed_model", "closed_transcripts")
    assert {counts[rule] for rule in (*once, "closed_judgements", "closed_outcomes")} == {1}


def test_every_command_of_a_rule_is_one_that_its_stage_takes(judged: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All rules of the demo, of a judge and of a closed model: the stage parses its options, and stops there."""

    class Parsed(Exception):  # noqa: N818
        pass

    def stop(_arguments: Any) -> None:
        raise Parsed

    monkeypatch.setattr(stage_module, "job", stop)
    commands = {}
    for line in judged.splitlines():
        words = shlex.split(line.removeprefix("Shell command: ")) if line.startswith("Shell command: ") else []
        if words[:3] == ["python", "-m", "perfmis"]:
            commands.setdefault((words[3], *sorted(word for word in words if word.startswith("--"))), words)
    assert len({name for name, *_ in commands}) > 30
    for words in commands.values():
        with pytest.raises(Parsed):
            importlib.import_module(f"perfmis.{words[3]}").main(words[4 : words.index(">")])
