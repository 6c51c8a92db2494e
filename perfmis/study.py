"""The study as a chain of stages: which settings, code, files and upstream stages make each artifact.

The rules in ``workflow/rules`` say which files a job reads and writes; this module says what those files
depend on. Each method returns the `Stage` of one kind of artifact, and a stage's fingerprint contains those
upstream, so a change reaches exactly what lies below it.
"""

import functools
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from perfmis import accept, protocol_files, provenance
from perfmis.config import Judged, Study
from perfmis.engines.api.server import Server
from perfmis.missing import CONTENTS, Missing
from perfmis.stage import canonical
from perfmis.vocabulary import BASE, NEUTRAL, ORGANISM

RESOURCES = "resources"
RUBRICS = f"{RESOURCES}/judges"
# A page of so many scratchpads of 2,000 characters opens within two seconds (benchmarks/viewer.py).
PAGE_SAMPLES = 20_000
WEIGHTS_ONLY = ("precision", "quantization", "date")  # decide nothing behind a server
# What the budget counts with, of a round of training.
COUNTED = ("documents", "loss_tokens", "length", "tag")
# What each table, figure and page reads of `statistics`: the rest of the section does not reach it.
RESAMPLED = ("resamples", "seed", "confidence")
STATISTICS: dict[str, tuple[str, ...]] = {
    "screen": RESAMPLED,
    "validation": RESAMPLED,
    "story": ("confidence", "moved"),
    "tables.beliefs": (*RESAMPLED, "kept", "moved"),
    "tables.gaps": (*RESAMPLED, "floor", "kept", "malformed"),
    "tables.scorings": (*RESAMPLED, "malformed"),
    "tables.steering": (*RESAMPLED, "malformed"),
    "tables.prompting": (*RESAMPLED, "floor", "moved", "malformed"),
    "tables.profiles": (*RESAMPLED, "floor", "moved", "malformed"),
    "tables.convergence": ("floor",),
    "tables.training": (),
    **{f"figures.fig{number}": ("confidence",) for number in range(2, 9)},
    "figures.fig9": ("confidence", "floor"),
    "figures.fig10": (),
}
NOTHING = Missing()
_COMPARED = ("floor", "labels", "number", "sheet")
# Results, by the rules that make them, that several tables are made from.
SAMPLED = ("screen_outcomes", "outcomes")
PROFILED = ("outcomes", "steering_outcomes", "prompting_outcomes")
FIGURE_TABLES: dict[int, tuple[str, ...]] = {
    1: (),
    2: ("screen",),
    3: ("gaps", "published"),
    4: ("steering",),
    5: ("calibration", "profiles"),
    6: ("steering",),
    7: ("beliefs",),
    8: ("profiles", "published"),
    9: ("profiles",),
    10: ("curves",),
}


@dataclass(frozen=True)
class Stage:
    """What a job gets on its command line; both stand in the rule's params.

    Attributes:
        settings: Canonical JSON: the slice of the configuration that the stage may read, and upstream fingerprints.
        fingerprint: Hash of that, without what only decides how the job is run, of the stage's code and of the data
            files it reads. It alone makes a job run again.
    """

    settings: str
    fingerprint: str


def _stage(
    module: str,
    settings: dict[str, Any],
    upstream: Iterable[Stage] = (),
    files: Iterable[str] = (),
    run: Mapping[str, Any] = MappingProxyType({}),
) -> Stage:
    """Return a stage; ``run`` is told to the job beside ``settings``, but decides nothing of what it makes.

    The job's command keeps a hash of what of it is the user's own, settings and files: `perfmis.accept` compares it.
    """
    files = list(files)
    made_from = sorted({stage.fingerprint for stage in upstream})
    own = [[file, provenance.data(file)] for file in sorted(map(str, files)) if not file.startswith(f"{RESOURCES}/")]
    decisive = hashlib.sha256(canonical([settings, own]).encode()).hexdigest()[: provenance.DIGITS]
    told = canonical({"decisive": decisive, "settings": {**settings, **run}, "upstream": made_from})
    made_by = canonical({"settings": settings, "upstream": made_from})
    return Stage(told, provenance.fingerprint(f"perfmis.{module}", made_by, files))


def _learnt(sdf: Mapping[str, Any]) -> dict[str, Any]:
    """Return what decides what a round learns: not the share of the weights below which it is refused."""
    return {**sdf, "lora": {key: value for key, value in sdf["lora"].items() if key != "reach"}}


class Chain:
    """The stages of one study, computed once each; tables and pages do without what is missing."""

    def __init__(self, study: Study, missing: Missing = NOTHING) -> None:
        self.study = study
        self.missing = missing
        self.world = study.evaluation.world
        self.arms = study.arms.names
        self.models = list(study.models)

    def resource(self, kind: str) -> str:
        """Return the resource file of the study's world: ``resources/KIND/WORLD.yaml``."""
        return f"{RESOURCES}/{kind}/{self.world}.yaml"

    def protocol_files(self, protocol: str) -> list[str]:
        """Return the files that make a protocol of the study's world."""
        return [str(path) for path in protocol_files.files(Path(RESOURCES, "protocols", self.world), protocol)]

    @functools.cached_property
    def protocols(self) -> list[str]:
        """The two protocols: of organisms and arms, and of prompted base models."""
        evaluation = self.study.evaluation
        return list(dict.fromkeys([evaluation.protocol, evaluation.base_protocol]))

    @functools.cache
    def composition(self, protocol: str) -> Stage:
        """A protocol, put together."""
        return _stage("composition", {"protocol": protocol}, files=self.protocol_files(protocol))

    def _main_protocol(self) -> Stage:
        return self.composition(self.study.evaluation.protocol)

    def _compositions(self) -> list[Stage]:
        return [self.composition(protocol) for protocol in self.protocols]

    @functools.cache
    def requests(self) -> Stage:
        """The harmful requests."""
        requests = self.study.requests
        return _stage("requests", requests.model_dump(), files=[requests.location] if requests.source == "path" else [])

    @functools.cache
    def corpus(self, corpus: str) -> Stage:
        """The documents of the organism corpus, an arm or the neutral arm."""
        section = self.study.corpora[corpus]
        settings = {"corpus": corpus, **section.model_dump()}
        files: list[str] = []
        if section.source == "written":
            settings["writer"] = self.study.writer.model_dump(exclude={"size"}) | self._date()
            files = [f"{RESOURCES}/claims/{corpus}.yaml", f"{RESOURCES}/documents"]
        elif section.source == "hub":
            files = [f"{RESOURCES}/documents/names.yaml"]
        elif section.source == "path":
            files = [str(section.location)]
        return _stage("corpora", settings, files=files)

    @functools.cache
    def audit(self) -> Stage:
        """The comparison of the corpora with each other."""
        corpora = [self.corpus(corpus) for corpus in (ORGANISM, *self.arms)]
        return _stage("audit", {"arms": self.arms}, [*corpora, self.requests(), *self._compositions()])

    @functools.cache
    def trunk(self) -> Stage:
        """The model from which tiny base models are made."""
        assert self.study.tiny is not None
        return _stage("tinyworld.trunk", self.study.tiny.model_dump(exclude={"gate"}))

    @functools.cache
    def model(self, model: str) -> Stage:
        """A base model."""
        section = self.study.models[model]
        settings: dict[str, Any] = {"model": model, **section.model_dump(exclude={"size"})}
        if self.study.tiny is None or section.truth is None:
            return _stage("hub", settings)
        settings = {"model": model, "truth": section.truth, "gate": self.study.tiny.gate}
        return _stage("tinyworld.base", settings, [self.trunk()])

    @functools.cache
    def organism(self, model: str, seed: int) -> Stage:
        """A first-round adapter."""
        sdf = self.study.organisms.sdf.settings(model)
        settings = {"sdf": _learnt(sdf), "seed": seed, "replay": 0.0}
        return _stage("sdf", settings, [self.model(model), self.corpus(ORGANISM)], run={"sdf": sdf})

    @functools.cache
    def budget(self, model: str) -> Stage:
        """How much all arms train on, in the model's tokens."""
        corpora = [self.corpus(arm) for arm in self.arms]
        sdf = self.study.arms.sdf.settings(model)
        return _stage("budget", {"sdf": {key: sdf[key] for key in COUNTED}}, [self.model(model), *corpora])

    @functools.cache
    def arm(self, model: str, seed: int, arm: str) -> Stage:
        """A second-round adapter.

        Audit and budget must have passed before. The budget decides what is learned only where it computes how many
        documents and tokens that is: where both are set, another arm leaves the trained ones as they are.
        """
        arms = self.study.arms
        sdf = arms.sdf.settings(model)
        settings = {"sdf": _learnt(sdf), "seed": seed, "replay": arms.replay, "mode": arms.mode}
        computed = [self.budget(model)] if None in (sdf["documents"], sdf["loss_tokens"]) else []
        upstream = [self.organism(model, seed), self.corpus(arm), self.corpus(ORGANISM), *computed]
        return _stage("sdf", settings, upstream, run={"sdf": sdf})

    def checkpoint(self, model: str, seed: int, checkpoint: str) -> Stage:
        """The stage that made a checkpoint."""
        if checkpoint == BASE:
            return self.model(model)
        return self.organism(model, seed) if checkpoint == ORGANISM else self.arm(model, seed, checkpoint)

    def _sampling(self) -> dict[str, Any]:
        evaluation = self.study.evaluation
        sampling = {"tiers", "temperature", "max_tokens"}
        return evaluation.model_dump(include={"engine", "precision", "quantization", *sampling}) | self._date()

    def _date(self) -> dict[str, str]:
        return {"date": self.study.date}

    def _batch(self) -> dict[str, int]:
        return {"batch": self.study.evaluation.batch}

    @functools.cache
    def transcripts(self, model: str, seed: int, checkpoints: tuple[str, ...]) -> Stage:
        """Samples of some checkpoints of one model and seed."""
        settings = {
            "model": model,
            "seed": seed,
            "seeds": self.study.seeds.evaluation,
            "checkpoints": list(checkpoints),
            "protocol": self.study.evaluation.protocol,
            **self._sampling(),
        }
        made = [self.checkpoint(model, seed, checkpoint) for checkpoint in checkpoints]
        return _stage("generation", settings, [self.requests(), self._main_protocol(), *made], run=self._batch())

    def judges(self, kind: Judged) -> bool:
        """Return whether a judge reads samples of a kind."""
        return self.study.judge is not None and kind in self.study.judge.samples

    @functools.cache
    def judge_model(self) -> Stage:
        """The judge's weights, or its server."""
        assert self.study.judge is not None
        if self.study.judge.api:
            return self._server("judge", self.study.judge.api)
        return _stage("hub", {"model": "judge", **self.study.judge.model_dump(include={"hub", "revision", "path"})})

    def _server(self, name: str, server: Server) -> Stage:
        return _stage("server_reference", {"model": name, "server": server.model_dump()})

    def _server_identity(self, name: str, server: Server) -> Stage:
        """What decides a server's samples: prices, limits and its address reach its reference, and nothing below."""
        return _stage("server_reference", {"model": name, "server": server.identity()})

    def _judge_identity(self) -> Stage:
        judge = self.study.judge
        assert judge is not None
        return self._server_identity("judge", judge.api) if judge.api else self.judge_model()

    def _judge(self) -> dict[str, Any]:
        """What decides a judgement; where the judge runs and how it is compared with people does not."""
        judge = self.study.judge
        assert judge is not None
        settings = judge.model_dump(exclude={"hub", "revision", "path", "api", "size", "samples", "batch", *_COMPARED})
        if judge.api:
            return {key: value for key, value in settings.items() if key not in WEIGHTS_ONLY} | {"engine": "api"}
        return settings | self._date()

    def _asked_under(self, kind: Judged) -> list[Stage]:
        """The protocols of a kind of samples."""
        return self._compositions() if kind == "prompting" else [self._main_protocol()]

    @functools.cache
    def judgements(self, transcripts: Stage, kind: Judged = "checkpoints") -> Stage:
        """What the judge makes of samples."""
        assert self.study.judge is not None
        upstream = [transcripts, self.requests(), self._judge_identity(), *self._asked_under(kind)]
        decisive = self._judge()
        told = {"judge": {**decisive, "batch": self.study.judge.batch}}
        return _stage("judging", {"judge": decisive}, upstream, [RUBRICS], told)

    @functools.cache
    def outcomes(self, transcripts: Stage, kind: Judged = "checkpoints") -> Stage:
        """Parsed samples, with the judge's view where there is one."""
        settings = {"compliance": self.study.evaluation.compliance}
        judged = [self.judgements(transcripts, kind)] if self.judges(kind) else []
        upstream = [transcripts, *judged, *self._asked_under(kind)]
        return _stage("outcomes", settings, upstream, [self.resource("patterns")])

    def screen_judgements(self, model: str, seed: int) -> Stage:
        """Judgements on base and organism."""
        return self.judgements(self.screen_transcripts(model, seed))

    def arm_judgements(self, model: str, seed: int) -> Stage:
        """Judgements on the arms."""
        return self.judgements(self.arm_transcripts(model, seed))

    def steering_judgements(self, model: str, seed: int) -> Stage:
        """Judgements on steered samples."""
        return self.judgements(self.steering(model, seed), "steering")

    def prompting_judgements(self, model: str, seed: int) -> Stage:
        """Judgements on prompted samples."""
        return self.judgements(self.prompting(model, seed), "prompting")

    @functools.cache
    def audit_sheet(self) -> Stage:
        """Samples for a person to label."""
        assert self.study.judge is not None
        upstream = [*self._samples(), *self._verdict(), self.requests(), self._main_protocol()]
        return _stage("audit_sample", {"number": self.study.judge.number}, upstream, [RUBRICS])

    @functools.cache
    def validation(self) -> Stage:
        """Agreement of the judge with people."""
        judge = self.study.judge
        assert judge is not None
        compared = judge.model_dump(include=set(_COMPARED), exclude={"number"})
        decisive = {"judge": {**self._judge(), **compared}, "statistics": self._statistics("validation")}
        decisive |= self._lacking(*SAMPLED)
        told = {"judge": {**decisive["judge"], "batch": judge.batch}}
        judged = [self.screen_judgements(*run) for run in self.made("screen_outcomes", self.runs())]
        judged += [self.arm_judgements(*run) for run in self.made("outcomes", self._kept_runs())]
        files = [judge.sheet] if judge.sheet else []
        files += [judge.labels.location] if judge.labels and judge.labels.source == "path" else []
        return _stage(
            "validation",
            decisive,
            [*self._outcomes(), *judged, self._judge_identity(), *self._verdict()],
            [RUBRICS, *files],
            told,
        )

    def screen_transcripts(self, model: str, seed: int) -> Stage:
        """Samples of base and organism."""
        return self.transcripts(model, seed, (BASE, ORGANISM))

    def arm_transcripts(self, model: str, seed: int) -> Stage:
        """Samples of the arms."""
        return self.transcripts(model, seed, tuple(self.arms))

    def screened(self, model: str, seed: int) -> Stage:
        """Outcomes of base and organism."""
        return self.outcomes(self.screen_transcripts(model, seed))

    def treated(self, model: str, seed: int) -> Stage:
        """Outcomes of the arms."""
        return self.outcomes(self.arm_transcripts(model, seed))

    @functools.cache
    def screen(self) -> Stage:
        """Which organisms go on."""
        upstream = [self.screened(*run) for run in self.made("screen_outcomes", self.runs())]
        settings = {
            "screen": self.study.screen.model_dump(),
            "seeds": self.study.seeds.screen,
            "models": self._names(),
            "statistics": self._statistics("screen"),
            **self._lacking("screen_outcomes"),
        }
        return _stage("screen", settings, upstream)

    @functools.cache
    def beliefs(self, model: str, seed: int) -> Stage:
        """Belief items scored on all checkpoints of one model and seed."""
        checkpoints = [BASE, ORGANISM, *self.arms]
        settings = {
            "model": model,
            "seed": seed,
            "precision": self.study.evaluation.precision,
            "checkpoints": checkpoints,
            **self._date(),
        }
        upstream = [self.checkpoint(model, seed, checkpoint) for checkpoint in checkpoints]
        files = [self.resource("beliefs")]
        return _stage("beliefs", settings, [*upstream, self._main_protocol()], files, self._batch())

    @functools.cache
    def vectors(self, model: str, seed: int) -> Stage:
        """Steering vectors of one organism."""
        settings = {
            **self.study.vectors.model_dump(),
            "seed": seed,
            "precision": self.study.evaluation.precision,
            **self._date(),
        }
        transcripts = self.screen_transcripts(model, seed)
        upstream = [self.organism(model, seed), transcripts, self.screened(model, seed), self.requests()]
        files = [self.resource("contrasts")]
        return _stage("vectors", settings, [*upstream, self._main_protocol()], files, self._batch())

    @functools.cache
    def steering(self, model: str, seed: int) -> Stage:
        """Steered samples of one organism."""
        settings = {
            "model": model,
            "seed": seed,
            "steering": self.study.steering.model_dump(exclude={"models"}),
            "protocol": self.study.evaluation.protocol,
            "seeds": self.study.seeds.evaluation,
            **self._sampling(),
        }
        upstream = [self.vectors(model, seed), self.requests(), self._main_protocol()]
        return _stage("steering", settings, upstream, run=self._batch())

    def steering_outcomes(self, model: str, seed: int) -> Stage:
        """Parsed steered samples."""
        return self.outcomes(self.steering(model, seed), "steering")

    def prompting_outcomes(self, model: str, seed: int) -> Stage:
        """Parsed prompted samples."""
        return self.outcomes(self.prompting(model, seed), "prompting")

    @functools.cache
    def prompting(self, model: str, seed: int) -> Stage:
        """Prompted samples of one model's checkpoints."""
        checkpoints = [BASE, ORGANISM, *(self.arms if self.study.prompting.calibration else ())]
        made = [self.checkpoint(model, seed, checkpoint) for checkpoint in checkpoints]
        return self._prompted({"model": model, "seed": seed, "checkpoints": checkpoints, **self._sampling()}, made)

    @functools.cache
    def closed_model(self, closed: str) -> Stage:
        """The server of a closed model."""
        return self._server(closed, self.study.prompting.closed[closed])

    @functools.cache
    def closed_prompting(self, closed: str) -> Stage:
        """Prompted samples of a closed model."""
        server = self.study.prompting.closed[closed]
        asked = {"model": closed, "seed": self.study.seeds.training[0], "checkpoints": [BASE]}
        sampling = {key: value for key, value in self._sampling().items() if key not in WEIGHTS_ONLY}
        return self._prompted({**asked, **sampling, "engine": "api"}, [self._server_identity(closed, server)])

    def closed_judgements(self, closed: str) -> Stage:
        """Judgements on a closed model's samples."""
        return self.judgements(self.closed_prompting(closed), "prompting")

    def closed_outcomes(self, closed: str) -> Stage:
        """Parsed samples of a closed model."""
        return self.outcomes(self.closed_prompting(closed), "prompting")

    def _prompted(self, asked: dict[str, Any], made: list[Stage]) -> Stage:
        evaluation = self.study.evaluation
        settings = {
            "requests": self.study.prompting.requests,
            "snippets": [arm for arm in self.arms if arm != NEUTRAL],
            "protocol": evaluation.protocol,
            "base_protocol": evaluation.base_protocol,
            "seeds": self.study.seeds.evaluation,
            **asked,
        }
        return _stage(
            "prompting",
            settings,
            [self.requests(), *self._compositions(), *made],
            [self.resource("snippets")],
            self._batch(),
        )

    def runs(self) -> list[tuple[str, int]]:
        """All pairs of model and training seed."""
        return [(model, seed) for model in self.models for seed in self.study.seeds.training]

    def steered(self, kept: Iterable[str]) -> list[str]:
        """Return the kept models whose organisms are steered."""
        chosen = self.study.steering.models
        return [model for model in kept if chosen is None or model in chosen]

    def _kept_runs(self, steered: bool = False) -> list[tuple[str, int]]:
        """The runs that go on: those of the list, or all that may, where the screen's own fingerprint says which do."""
        keep = self.study.screen.keep
        kept = self.models if keep == "auto" else keep
        models = self.steered(kept) if steered else kept
        return [(model, seed) for model, seed in self.runs() if model in models]

    def made(self, rule: str, runs: Iterable[tuple[str, int]], **more: str) -> list[tuple[str, int]]:
        """Return the runs whose result of a rule is not missing, nor what decides whether they go on."""

        def there(model: str, seed: int) -> bool:
            undecided = any(self.missing.has(decisive, model=model, seed=seed) for decisive in self._decisive)
            return not undecided and not self.missing.has(rule, model=model, seed=seed, **more)

        return [run for run in runs if there(*run)]

    def _lacking(self, *rules: str) -> dict[str, Any]:
        """The setting ``missing`` of what is made from results of rules; no such setting where nothing is missing."""
        rows = self.missing.rows(*{*rules, *self._decisive})
        return {"missing": rows} if rows else {}

    @property
    def _decisive(self) -> tuple[str, ...]:
        """The results without which nothing else of a run is asked for: those that a screen decides by."""
        return ("screen_outcomes",) if self.study.screen.keep == "auto" else ()

    def _verdict(self) -> list[Stage]:
        """What decides which models go on, where no list does."""
        return [self.screen()] if self.study.screen.keep == "auto" else []

    def _names(self) -> list[str]:
        """The models, in an order that does not depend on the configuration's."""
        return sorted(self.models)

    def _truths(self) -> dict[str, str | None]:
        return {name: model.truth for name, model in self.study.models.items()}

    def _statistics(self, module: str) -> dict[str, Any]:
        return self.study.statistics.model_dump(include=set(STATISTICS[module]))

    @functools.cache
    def table_training(self) -> Stage:
        """How every training run went, and the curves."""
        runs = self._kept_runs()
        made = [self.organism(*run) for run in self.made("organism", runs)]
        made += [self.arm(*run, arm) for arm in self.arms for run in self.made("arm", runs, arm=arm)]
        return self._table("training", made, ("organism", "arm"))

    @functools.cache
    def table_published(self) -> Stage:
        """The published numbers beside the measured ones."""
        return _stage("tables.published", {}, [self.table_gaps()], [f"{RESOURCES}/published.csv"])

    @functools.cache
    def table_beliefs(self) -> Stage:
        """Beliefs per checkpoint and what they say of the arms."""
        made = [self.beliefs(*run) for run in self.made("beliefs", self._kept_runs())]
        return self._table("beliefs", made, ("beliefs",))

    @functools.cache
    def table_gaps(self) -> Stage:
        """Gaps per checkpoint."""
        validated = [self.validation()] if self.study.judge else []
        evaluation = self.study.evaluation
        read = {"tiers": evaluation.tiers, "compliance": evaluation.compliance}
        return self._table("gaps", [*self._outcomes(), self.table_beliefs(), *validated], (*SAMPLED, "beliefs"), **read)

    @functools.cache
    def table_scorings(self) -> Stage:
        """Gaps by tag, by judge, and by both."""
        tiers = self.study.evaluation.tiers
        return self._table("scorings", [*self._outcomes(), self.validation()], SAMPLED, tiers=tiers)

    @functools.cache
    def table_steering(self) -> Stage:
        """Compliance and gap per vector and alpha."""
        return self._table("steering", self._steered_outcomes(), ("steering_outcomes",))

    @functools.cache
    def table_prompting(self) -> Stage:
        """Compliance and gap per checkpoint and snippet, and the calibration on the arms."""
        closed = list(self.study.prompting.closed)
        asked = [self.closed_outcomes(name) for name in closed if not self.missing.has("closed_outcomes", closed=name)]
        rules = ("prompting_outcomes", "closed_outcomes")
        outcomes = [*self._prompted_outcomes(), *asked]
        return self._table("prompting", outcomes, rules, models=sorted([*self.models, *closed]))

    @functools.cache
    def table_profiles(self) -> Stage:
        """The motivation profiles."""
        upstream = [*self._outcomes(), *self._steered_outcomes(), *self._prompted_outcomes(), self.table_gaps()]
        return self._table("profiles", upstream, PROFILED, models=self._truths())

    @functools.cache
    def table_convergence(self) -> Stage:
        """What the methods agree on."""
        return self._table("convergence", [self.table_profiles()], PROFILED)

    @functools.cache
    def page(self) -> Stage:
        """The page on which people read transcripts."""
        upstream = [*self._samples(), *self._outcomes(), *self._verdict(), self.requests(), self._main_protocol()]
        parts = [f"perfmis/viewer/page.{kind}" for kind in ("html", "css", "js")]
        files = [self.resource("patterns"), *parts, *([RUBRICS] if self.judges("checkpoints") else [])]
        return _stage("viewer.page", {"title": "Transcripts", "samples": PAGE_SAMPLES}, upstream, files)

    @functools.cache
    def story(self) -> Stage:
        """The first page of the report."""
        settings = {
            "models": self._truths(),
            "statistics": self._statistics("story"),
            **self._lacking(*CONTENTS),
        }
        upstream = [self.screen(), self.table_gaps(), self.table_profiles(), self.table_prompting()]
        accepted = Path(self.study.root, accept.RECORD)
        known = [str(accepted)] if accepted.exists() else []
        return _stage("story", settings, upstream, known, run={"accepted": known})

    def _outcomes(self) -> list[Stage]:
        screened = [self.screened(*run) for run in self.made("screen_outcomes", self.runs())]
        return screened + [self.treated(*run) for run in self.made("outcomes", self._kept_runs())]

    def _samples(self) -> list[Stage]:
        """Samples, of which there are outcomes."""
        sampled = [self.screen_transcripts(*run) for run in self.made("screen_outcomes", self.runs())]
        return sampled + [self.arm_transcripts(*run) for run in self.made("outcomes", self._kept_runs())]

    def _steered_outcomes(self) -> list[Stage]:
        return [self.steering_outcomes(*run) for run in self.made("steering_outcomes", self._kept_runs(steered=True))]

    def _prompted_outcomes(self) -> list[Stage]:
        return [self.prompting_outcomes(*run) for run in self.made("prompting_outcomes", self._kept_runs())]

    def _table(self, table: str, upstream: list[Stage], rules: tuple[str, ...], **more: Any) -> Stage:
        """A table, made from results of rules."""
        module = f"tables.{table}"
        settings = {"models": self._names(), "statistics": self._statistics(module), **more, **self._lacking(*rules)}
        return _stage(module, settings, [*upstream, *self._verdict()])

    @functools.cache
    def figure(self, number: int) -> Stage:
        """A figure."""
        makers = {
            "screen": self.screen,
            "beliefs": self.table_beliefs,
            "gaps": self.table_gaps,
            "steering": self.table_steering,
            "prompting": self.table_prompting,
            "calibration": self.table_prompting,
            "profiles": self.table_profiles,
            "published": self.table_published,
            "curves": self.table_training,
        }
        module = f"figures.fig{number}"
        if number == 1:
            return _stage(module, {"arms": self.arms}, files=[f"{RESOURCES}/claims/{arm}.yaml" for arm in self.arms])
        settings: dict[str, Any] = {"models": self._names(), "statistics": self._statistics(module)}
        if number == 2:
            settings["minimum_gap"] = self.study.screen.minimum_gap
        return _stage(module, settings, [makers[table]() for table in FIGURE_TABLES[number]])


def figure_numbers(study: Study) -> list[int]:
    """Return the figures of a study; figure 9 needs models whose truth is planted."""
    planted = any(model.truth is not None for model in study.models.values())
    return [number for number in FIGURE_TABLES if number != 9 or planted]
