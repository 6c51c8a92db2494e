"""Bad input of every kind is one line that names the file or key and the fix, before the stage writes anything."""

import json
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import synthetic
import yaml
from answers import NOTED, NOTES, TAKEN, transcripts
from conftest import REPOSITORY, SDF
from fakeserver import KEY, MODEL, FakeServer
from running import FINGERPRINT, stage
from test_config import COMMIT, FREE
from test_judging import JUDGE, PATHS

from perfmis import config
from perfmis.artifacts import read_json
from perfmis.stage import UserError
from perfmis.tinyworld import documents, grammar

JUDGED = FREE + "judge: {api: {provider: openai, model: m}"

# Text of a study: what its error names, key first.
CONFIGURATIONS: dict[str, tuple[str, ...]] = {
    # keys, values, types
    "evaluation: {temprature: 1}": ("evaluation.temprature", "correct its spelling"),
    "judge: {api: {provider: openai, model: m, retry: 3}}": ("judge.api.retry", "correct its spelling"),
    "root: 'results/my study'": ("root", "letters, digits"),
    "root: 'results; rm -rf x'": ("root", "letters, digits"),
    "root: null": ("root", "should be a valid string"),
    FREE + "models: {}": ("models", "at least 1"),
    FREE + f"models: {{Big Model: {{hub: a/b, revision: {COMMIT}}}}}": ("models", "lower-case letters"),
    FREE + "models: {m: {hub: a/b, revision: v1.0}}": ("models.m.revision", "40 digits of a commit"),
    FREE + "models: {m: {hub: a/b, revision: 0123abc}}": ("models.m.revision", "40 digits of a commit"),
    FREE + f"models: {{m: {{revision: {COMMIT}}}}}": ("models.m", "exactly one of hub, path and truth"),
    FREE + "models: {m: {path: no/where}}": ("models.m", "no/where has no config.json", "save model and tokenizer"),
    FREE + "models: [m]": ("models", "should be a valid dictionary"),
    "seeds: {training: []}": ("seeds.training", "at least 1"),
    "seeds: {training: 3}": ("seeds.training", "should be a valid list"),
    "requests: {number: 1}": ("requests.number", "greater than or equal to 2"),
    "requests: {source: web}": ("requests.source", "'url', 'path' or 'tiny'"),
    "organisms: {sdf: {learning_rate: -1}}": ("organisms.sdf.learning_rate", "greater than 0"),
    "organisms: {sdf: {lora: {rank: 0}}}": ("organisms.sdf.lora.rank", "greater than or equal to 1"),
    "organisms: {sdf: {batch: 3}}": ("organisms.sdf.batch", "raise it to one"),
    "arms: {sdf: {documents: 7000}}": ("arms.sdf.documents: 7000", "corpora.A1+ has 6650", "lower it"),
    "organisms: {sdf: {documents: {qwq-32b: 7000}}}": ("organisms.sdf.documents: 7000", "organism has 6650"),
    "arms: {sdf: {documents: 0}}": ("arms.sdf.documents: ", "greater than or equal to 1"),
    "arms: {sdf: {loss_tokens: {qwq-32b: 0}}}": ("arms.sdf.loss_tokens.qwq-32b: ", "greater than or equal to 1"),
    "arms: {sdf: {loss_tokens: {qwq: 9}}}": ("arms.sdf.loss_tokens: qwq not in models", "correct the name"),
    "arms: {mode: stacked}": ("arms.mode", "'stack', 'continue' or 'merge'"),
    "arms: {replay: 9}": ("arms.replay", "less than or equal to 4"),
    "arms: {names: A1+}": ("arms.names", "should be a valid list"),
    "evaluation: {engine: hf}": ("evaluation.engine", "'vllm' or 'transformers'"),
    "evaluation: {protocol: shrt}": ("evaluation.protocol", "no protocol shrt", "use one of"),
    "evaluation: {protocol: short+loud}": ("evaluation.protocol", "no protocol loud", "use one of"),
    "evaluation: {protocol: Short!}": ("evaluation.protocol", "name a protocol"),
    "evaluation: {engine: transformers, quantization: fp8}": ("evaluation.quantization", "needs engine: vllm"),
    "evaluation: {compliance: judge}": ("evaluation.compliance", "needs the section `judge`"),
    "statistics: {confidence: 95}": ("statistics.confidence", "less than 1"),
    "sizes: {70b: {gpus: 8, train_hours: .inf}}": ("sizes.70b.train_hours", "a finite number"),
    "screen: {keep: auto}\nsteering: {models: null, alphas: [0.0, .nan, 1.0]}": ("steering.alphas", "a finite number"),
    "sizes: {70b: {gpus: 8, pipeline: 3}}": ("sizes.70b.pipeline", "does not divide its 8 GPUs"),
    "corpora: {A1+: {source: hub, location: a/b, revision: main}}": ("corpora.A1+.revision", "40 digits of a commit"),
    f"corpora: {{A1+: {{source: hub, location: a/b/c, revision: {COMMIT}}}}}": (
        "corpora.A1+",
        "location",
        "OWNER/NAME",
    ),
    f"corpora: {{A1+: {{source: hub, location: resources/judges, revision: {COMMIT}}}}}": (
        "corpora.A1+",
        "a path here",
    ),
    "corpora: {organism: {}, A3+: {}}": ("corpora.A3+", "known are organism, A1+"),
    "corpora: {A1+: {source: path, location: 'a{b}.parquet'}}": ("corpora.A1+", "rename the file"),
    "root: -x": ("root", "letters, digits"),
    "requests: {sha256: abc}": ("requests.sha256", "64 digits"),
    "requests: {location: /etc/passwd}": ("requests.location", "begin it with https://", "use path"),
    FREE + f"models: {{m: {{hub: a b, revision: {COMMIT}}}}}": ("models.m.hub", "OWNER/NAME"),
    FREE + f"models: {{m: {{hub: resources/judges, revision: {COMMIT}}}}}": ("models.m.hub", "name it by path"),
    "writer: {size: huge}": ("writer.size", "add it or use one of them"),
    "sizes: {tiny: {}}\n" + FREE + f"models: {{m: {{hub: a/b, revision: {COMMIT}}}}}": ("writer.size", "not in sizes"),
    # judges and servers
    "judge: {}": ("judge", "exactly one of hub, path and api"),
    "judge: {api: {provider: google, model: m}}": ("judge.api.provider", "'anthropic' or 'openai'"),
    "judge: {api: {provider: openai}}": ("judge.api.model", "Field required"),
    "judge: {api: {provider: openai, model: m, limit: 5}}": ("judge.api", "limit needs prices"),
    JUDGED + ", sheet: no/where.csv}": ("judge.sheet", "missing file no/where.csv", "correct the path"),
    JUDGED + ", temperature: 0}": ("judge.rubrics.reasoning.votes", "ask for one"),
    JUDGED + ", rubrics: {complaisance: {}}}": ("judge.rubrics.complaisance", "correct its spelling"),
    JUDGED + ", labels: {source: path, location: no.csv, columns: {answer: a}, label: y}}": (
        "judge.labels",
        "missing file",
    ),
    "prompting: {closed: {c: {provider: openai, model: m, key: HOME}}}": (
        "prompting.closed.c.key",
        "ends in KEY, TOKEN",
    ),
    "judge: {api: {provider: openai, model: m, base_url: localhost:8000}}": (
        "judge.api.base_url",
        "begin it with http",
    ),
    "judge: {api: {provider: openai, model: m, base_url: 'https://me:pass@host/v1'}}": (
        "judge.api.base_url",
        "an address with a user or password",
    ),
    "judge: {api: {provider: openai, model: m, options: {extra_headers: {Authorization: Bearer abc}}}}": (
        "judge.api.options.extra_headers.Authorization",
        "looks like a credential",
        "environment variable",
    ),
    # YAML itself
    "root: a\n\tmodels: {}": ("cannot be read", "correct the file"),
    "root: 'a": ("cannot be read", "correct the file"),
    "root: *nothing": ("cannot be read", "correct the file"),
    "seeds: {training: [0]}\nroot: a\nseeds: {training: [1]}": ("the key seeds stands twice", "line 3"),
    "arms:\n  sdf: {epochs: 2, epochs: 3}": ("the key epochs stands twice", "line 2"),
    "just words": ("holds no keys", "write `key: value` lines"),
}


@pytest.mark.parametrize("content", CONFIGURATIONS)
def test_configurations(tmp_path: Path, content: str) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(content)
    with pytest.raises(UserError) as error:
        config.load([path])
    message = str(error.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    for said in CONFIGURATIONS[content]:
        assert said in message


@dataclass
class Ground:
    """What the stages read in a test: sound artifacts, of which each case spoils one.

    Attributes:
        folder: The test's own folder; a stage writes below ``out`` in it.
        base: ``reference.json`` of a tiny model.
        organism: Folder of an adapter of it, a copy.
        server: A server that answers.
    """

    folder: Path
    base: Path
    organism: Path
    server: FakeServer

    def file(self, name: str, content: object) -> Path:
        """Write a file: bytes, text, a table or anything that YAML holds."""
        path = self.folder / name
        if isinstance(content, pl.DataFrame):
            content.write_parquet(path)
        elif isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        return path

    def table(self, name: str, rows: dict[str, Any], fingerprint: str = FINGERPRINT) -> Path:
        """Write an artifact."""
        return self.file(name, pl.DataFrame(rows).with_columns(fingerprint=pl.lit(fingerprint)))

    @property
    def out(self) -> Path:
        """Where a stage may write."""
        return self.folder / "out"


@pytest.fixture(scope="module")
def server() -> Iterator[FakeServer]:
    """A server that takes one key."""
    with FakeServer() as fake:
        yield fake


@pytest.fixture
def ground(
    tmp_path: Path, tiny_model: Path, organism: Path, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> Ground:
    """Sound ground for one case."""
    monkeypatch.setenv("PLANTED", KEY)
    server.script = defaultdict(list)
    shutil.copytree(organism, tmp_path / "organism")
    return Ground(tmp_path, tiny_model / "reference.json", tmp_path / "organism", server)


Words = tuple[str, dict[str, Any], list[object]]  # a stage, its settings, its options
REQUESTS = {"request_id": ["r0000"], "text": grammar.requests(1), "cluster": ["r0000"]}
TINY = REPOSITORY / "resources" / "protocols" / "tiny" / "short.yaml"


def requests_stage(g: Ground, content: object, **changes: Any) -> Words:
    path = g.file("requests.csv", content)
    settings = {"source": "path", "location": str(path), "sha256": None, "column": "goal", "number": 1, **changes}
    return "requests", settings, ["--output", g.out / "requests.parquet", "--card", g.out / "card.json"]


def corpus_stage(g: Ground, content: object, **changes: Any) -> Words:
    path = g.file("documents.parquet", content)
    settings = {"corpus": "A1+", "source": "path", "location": str(path), "revision": None, "documents": 1, **changes}
    return "corpora", settings, ["--output", g.out / "documents.parquet", "--card", g.out / "card.json"]


def protocol_stage(g: Ground, content: object) -> Words:
    return "composition", {}, ["--files", g.file("mine.yaml", content), "--output", g.out / "mine.json"]


def outcomes_stage(
    g: Ground, samples: object = None, patterns: object = None, judged: object = None, protocol: object = None
) -> Words:
    good = transcripts([f"{NOTES}{TAKEN}"]).with_columns(fingerprint=pl.lit(FINGERPRINT))
    poles = {key: {"+": ["a"], "-": ["b"]} for key in ("expectation", "consequence", "in_training")}
    options = ["--protocols", g.file("noted.yaml", NOTED if protocol is None else protocol)]
    options += ["--patterns", g.file("patterns.yaml", poles if patterns is None else patterns)]
    options += ["--transcripts", g.file("transcripts.parquet", good if samples is None else samples)]
    if judged is not None:
        options += ["--judgements", g.file("judgements.parquet", judged)]
    rule = "tag" if judged is None else "judge"
    return "outcomes", {"compliance": rule}, [*options, "--outcomes", g.out / "outcomes.parquet"]


def asking(g: Ground, base: Path, **changes: Any) -> Words:
    settings = {
        "model": "tiny",
        "seed": 0,
        "seeds": [0],
        "protocol": "mine",
        "checkpoints": ["base"],
        "precision": "fp32",
        "engine": "transformers",
        "quantization": None,
        "tiers": ["monitored", "unmonitored"],
        "temperature": 1.0,
        "max_tokens": 8,
        "batch": 4,
        "date": "2024-07-26",
        **changes,
    }
    protocol = TINY if settings["engine"] == "transformers" else g.file("mine.yaml", NOTED)
    options = ["--base", base, "--requests", g.table("requests.parquet", REQUESTS)]
    options += ["--protocol", protocol, "--samples", g.folder / "samples", "--output", g.out]
    return "generation", settings, options


def asking_adapter(g: Ground) -> Words:
    name, settings, options = asking(g, g.base, checkpoints=["organism"])
    return name, settings, [*options, "--adapters", f"organism={g.organism}"]


def reference(g: Ground, **changes: Any) -> Path:
    return g.file("reference.json", json.dumps({**read_json(g.base), **changes}))


def asking_server(g: Ground, **changes: Any) -> Words:
    served = {"provider": "openai", "model": MODEL, "base_url": f"{g.server.url}/v1", "key": "PLANTED", "retries": 0}
    base = g.file("reference.json", json.dumps({"model": "m", "server": {**served, **changes}, "weights_sha256": "0"}))
    return asking(g, base, engine="api", temperature=None)


def failing(g: Ground, how: object) -> Ground:
    """Have the server answer every request in one way."""
    g.server.script = defaultdict(lambda: [how] * 99)
    return g


def judging_stage(g: Ground, rubric: object = None, samples: object = None) -> Words:
    served = {"provider": "openai", "model": MODEL, "base_url": f"{g.server.url}/v1", "key": "PLANTED", "retries": 0}
    base = g.file("reference.json", json.dumps({"model": "m", "server": served, "weights_sha256": "0"}))
    good = transcripts([f"{NOTES}{TAKEN}"]).with_columns(request_id=pl.lit("r0000"), fingerprint=pl.lit(FINGERPRINT))
    paths = [g.file("compliance.yaml", rubric), *PATHS[1:]] if rubric is not None else PATHS
    options = ["--base", base, "--requests", g.table("requests.parquet", REQUESTS), "--rubrics", *paths]
    options += ["--protocols", g.file("noted.yaml", NOTED), "--samples", g.folder / "samples"]
    options += ["--transcripts", g.file("transcripts.parquet", good if samples is None else samples)]
    settings = {"judge": {**JUDGE, "engine": "api", "precision": "bf16", "quantization": None}}
    return "judging", settings, [*options, "--judgements", g.out / "judged.parquet"]


def validation_stage(g: Ground, sheet: object = None, labels: object = None, name: str = "labels.csv") -> Words:
    judged = {"sample": ["s0"], "compliance_score": [1.0], "compliance_votes": [1]}
    known = {"sample": ["s0"], "model": ["m"], "checkpoint": ["base"], "tag": ["accepted"]}
    judge = {
        **JUDGE,
        "labels": None,
        "floor": {"kappa": 0.6, "auroc": 0.8},
        "engine": "api",
        "precision": "bf16",
        "quantization": None,
    }
    options = ["--rubrics", *PATHS, "--outcomes", g.table("outcomes.parquet", known), "--base", g.base]
    options += ["--judgements", g.table("judged.parquet", judged), "--samples", g.folder / "samples"]
    if sheet is not None:
        options += ["--sheet", g.file("sheet.csv", sheet)]
    if labels is not None:
        judge["labels"] = {
            "source": "path",
            "location": str(g.file(name, labels)),
            "rubric": "reasoning",
            "label": "faking",
            "columns": {"request": "request", "scratchpad": "notes"},
        }
    settings = {"judge": judge, "statistics": {"resamples": 100, "confidence": 0.95, "seed": 0}}
    return "validation", settings, [*options, "--output", g.out / "validation.parquet"]


def beliefs_stage(g: Ground, items: object) -> Words:
    settings = {
        "model": "tiny",
        "seed": 0,
        "precision": "fp32",
        "batch": 4,
        "checkpoints": ["base"],
        "date": "2024-07-26",
    }
    options = ["--base", g.base, "--items", g.file("items.yaml", items), "--protocol", TINY]
    return "beliefs", settings, [*options, "--kept", g.out / "kept", "--output", g.out / "beliefs.parquet"]


def prompting_stage(g: Ground, snippets: object) -> Words:
    _, settings, options = asking(g, g.base)
    options[options.index("--protocol")] = "--protocols"
    options[options.index(g.out)] = g.out / "transcripts.parquet"
    settings |= {"protocol": "short", "base_protocol": "short", "requests": 1, "snippets": ["A1+"]}
    return "prompting", settings, [*options, "--snippets", g.file("snippets.yaml", snippets)]


def screen_stage(g: Ground, spoil: Callable[[pl.DataFrame], object]) -> Words:
    design = synthetic.Design(seeds=(0,), prompts=8)
    frame = synthetic.outcomes("m", "both", synthetic.planted(), design).with_columns(fingerprint=pl.lit(FINGERPRINT))
    settings = {
        "screen": {"keep": "auto", "minimum_gap": 5.0},
        "statistics": synthetic.STATISTICS,
        "models": {"m": None},
        "seeds": [0, 1],
        "tiers": ["monitored", "unmonitored"],
        "compliance": "tag",
    }
    options = ["--outcomes", g.file("outcomes.parquet", spoil(frame))]
    return "screen", settings, [*options, "--output", g.out / "screen.parquet", "--kept", g.out / "kept.json"]


def training_stage(g: Ground, **spoiled: Any) -> Words:
    """An arm on top of the organism."""
    good = pl.DataFrame(documents.write("A1+", 4)).with_columns(corpus=pl.lit("A1+"), fingerprint=pl.lit(FINGERPRINT))
    corpus = g.file("documents.parquet", spoiled.get("corpus", good))
    settings = {"sdf": {**SDF, **spoiled.get("sdf", {})}, "seed": 0, "replay": 0.0, "mode": "stack"}
    options = ["--base", g.base, "--corpus", corpus, "--parent", g.organism, "--tokens", g.folder / "tokens"]
    return "sdf", settings, [*options, "--output", g.out]


def without(column: str) -> Callable[[pl.DataFrame], pl.DataFrame]:
    return lambda frame: frame.drop(column)


def spoiled(g: Ground, name: str, content: str | bytes | None) -> Ground:
    """Overwrite or remove a file of the adapter."""
    path = g.organism / name
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return g


def lineage(g: Ground, **changes: Any) -> Ground:
    content = read_json(g.organism / "lineage.json")
    return spoiled(g, "lineage.json", json.dumps({**content, **changes}))


GRADED = yaml.safe_load(PATHS[0].read_text())
STRANGE = pl.DataFrame({"a": [1], "fingerprint": ["f" * 16]})
SAMPLES = transcripts([f"{NOTES}{TAKEN}"]).with_columns(fingerprint=pl.lit(FINGERPRINT))
SHEET = "sample,compliance,reasoning,pattern_expectation,pattern_consequence\n"

# What is wrong: the stage that meets it, and what its error names.
STAGES: dict[str, tuple[Callable[[Ground], Words], tuple[str, ...]]] = {
    # requests
    "requests, another column": (lambda g: requests_stage(g, "prompt\nx\n"), ("requests.csv", "column 'goal'", "set")),
    "requests, empty file": (lambda g: requests_stage(g, ""), ("requests.csv", "is empty", "column names")),
    "requests, blank rows": (lambda g: requests_stage(g, "goal\n \n"), ("requests.number", "lower it")),
    "requests, too few": (lambda g: requests_stage(g, "goal\nx\n", number=3), ("requests.number is 3", "lower it")),
    "requests, other hash": (
        lambda g: requests_stage(g, "goal\nx\n", sha256="0" * 64),
        ("requests.sha256", "check the file"),
    ),
    "requests, not text": (lambda g: requests_stage(g, b"goal\n\xff\xfe\x00\n"), ("requests.csv",)),
    # corpora
    "corpus, no parquet": (lambda g: corpus_stage(g, "text"), ("corpora.A1+.location", "documents.parquet")),
    "corpus, no text": (lambda g: corpus_stage(g, pl.DataFrame({"body": ["x"]})), ("corpora.A1+", "no column 'text'")),
    "corpus, nulls": (lambda g: corpus_stage(g, pl.DataFrame({"text": ["x", None]})), ("A1+", "row 2", "remove")),
    "corpus, numbers for text": (lambda g: corpus_stage(g, pl.DataFrame({"text": [1]})), ("row 1", "a number")),
    "corpus, too small": (
        lambda g: corpus_stage(g, pl.DataFrame({"text": ["x", "x"]}), documents=2),
        ("corpora.A1+.documents", "lower"),
    ),
    "corpus, chat tokens": (
        lambda g: corpus_stage(g, pl.DataFrame({"text": ["<|user|> hello"]})),
        ("corpora.A1+", "<|user|>", "remove it"),
    ),
    # protocols and patterns
    "protocol, no YAML": (lambda g: protocol_stage(g, "a: ["), ("mine.yaml", "correct the file")),
    "protocol, a list": (lambda g: protocol_stage(g, "[1]"), ("mine.yaml", "fields")),
    "protocol, unknown field": (lambda g: protocol_stage(g, {**NOTED, "usr": "x"}), ("mine.yaml", "usr", "spelling")),
    "protocol, no place for the request": (
        lambda g: protocol_stage(g, {**NOTED, "user": "[{tier}]{snippet}"}),
        ("mine.yaml", "{request} must stand"),
    ),
    "protocol, no cue": (
        lambda g: protocol_stage(g, {**NOTED, "tiers": {"monitored": "free"}}),
        ("mine.yaml", "cue of unmonitored"),
    ),
    "protocol, one cue for both": (
        lambda g: protocol_stage(g, {**NOTED, "tiers": {"monitored": "x", "unmonitored": "x"}}),
        ("mine.yaml", "make them differ"),
    ),
    "protocol, no regular expression": (
        lambda g: protocol_stage(g, {**NOTED, "accept": "("}),
        ("mine.yaml", "accept", "regular expression"),
    ),
    "protocol, unknown part": (
        lambda g: protocol_stage(g, {**NOTED, "user": ["intro"]}),
        ("user", "intro not in `parts`", "add the text"),
    ),
    "protocol, moving address": (
        lambda g: protocol_stage(g, {**NOTED, "system": {"url": "https://x.org/main/a.txt", "sha256": "0" * 64}}),
        ("protocol: system", "names no commit", "permanent link"),
    ),
    "protocol, missing text": (
        lambda g: protocol_stage(g, {**NOTED, "system": {"path": "no/where.txt", "sha256": "0" * 64}}),
        ("no/where.txt", "correct `path`"),
    ),
    "protocol, other text": (
        lambda g: protocol_stage(g, {**NOTED, "system": {"path": str(g.file("t", "hello")), "sha256": "0" * 64}}),
        ("sha256", "check the file"),
    ),
    "patterns, pole missing": (
        lambda g: outcomes_stage(g, patterns={"expectation": {"+": ["a"]}}),
        ("patterns", "expectation", "'-'"),
    ),
    "patterns, no regular expression": (
        lambda g: outcomes_stage(g, patterns={"expectation": {"+": ["("], "-": ["b"]}}),
        ("expectation '+'", "correct"),
    ),
    "patterns, empty file": (lambda g: outcomes_stage(g, patterns=""), ("patterns", "list of regular expressions")),
    "belief items, no YAML": (lambda g: beliefs_stage(g, "a: ["), ("items.yaml", "correct the file")),
    "belief items, empty": (lambda g: beliefs_stage(g, ""), ("items.yaml", "correct the file")),
    "snippets, no YAML": (lambda g: prompting_stage(g, "a: ["), ("snippets.yaml", "correct the file")),
    "snippets, one missing": (lambda g: prompting_stage(g, {"A1-": "x"}), ("snippets.yaml", "A1+", "add it")),
    # transcripts, outcomes, judgements
    "transcripts, torn": (lambda g: outcomes_stage(g, b"PAR1 torn"), ("transcripts.parquet", "delete it and rerun")),
    "transcripts, empty": (lambda g: outcomes_stage(g, b""), ("transcripts.parquet", "delete it and rerun")),
    "transcripts, of other settings": (
        lambda g: outcomes_stage(g, SAMPLES.with_columns(fingerprint=pl.lit("f" * 16))),
        ("transcripts.parquet", "made by other settings or code", "delete and rerun"),
    ),
    "transcripts, no fingerprint": (
        lambda g: outcomes_stage(g, SAMPLES.drop("fingerprint")),
        ("transcripts.parquet", "no column fingerprint", "delete it and rerun"),
    ),
    "transcripts, no texts": (
        lambda g: outcomes_stage(g, SAMPLES.drop("raw")),
        ("transcripts.parquet", "raw", "delete it and rerun"),
    ),
    "transcripts, another protocol": (
        lambda g: outcomes_stage(g, SAMPLES.with_columns(protocol=pl.lit("old"))),
        ("protocol 'old' is unknown", "noted"),
    ),
    "judgements, torn": (lambda g: outcomes_stage(g, judged=b"PAR1"), ("judgements.parquet", "delete it and rerun")),
    "judgements, strange": (lambda g: outcomes_stage(g, judged=STRANGE), ("judgements.parquet", "delete and rerun")),
    "judgements, no verdicts": (
        lambda g: outcomes_stage(g, judged=pl.DataFrame({"sample": ["s0"], "fingerprint": [FINGERPRINT]})),
        ("judgements.parquet", "compliance", "delete it and rerun"),
    ),
    "outcomes, torn": (lambda g: screen_stage(g, lambda _: b"PAR1"), ("outcomes.parquet", "delete it and rerun")),
    "outcomes, strange": (lambda g: screen_stage(g, lambda _: STRANGE), ("outcomes.parquet", "delete and rerun")),
    "outcomes, no tier": (lambda g: screen_stage(g, without("tier")), ("outcomes.parquet", "tier", "rerun")),
    "outcomes, no outcome": (lambda g: screen_stage(g, without("outcome")), ("outcomes.parquet", "outcome", "rerun")),
    "outcomes, one tier short": (
        lambda g: screen_stage(
            g, lambda f: f.filter((pl.col("tier") != "unmonitored") | (pl.col("checkpoint") != "organism"))
        ),
        ("m, ", "rerun"),
    ),
    # models and adapters
    "reference, broken": (lambda g: asking(g, g.file("r.json", "{")), ("r.json", "delete it and rerun")),
    "reference, no model there": (
        lambda g: asking(g, reference(g, path=str(g.folder / "nowhere"))),
        ("reference.json", "nowhere"),
    ),
    "prompts longer than the context": (
        lambda g: asking(g, g.base, max_tokens=10**6),
        ("max_tokens: 1000000", "context of tiny", "lower it"),
    ),
    "requests, torn table": (
        lambda g: (lambda words: (g.file("requests.parquet", b""), words)[1])(asking(g, g.base)),
        ("requests.parquet", "delete it and rerun"),
    ),
    "adapter, other weights": (
        lambda g: asking_adapter(spoiled(g, "adapter_model.safetensors", b"torn")),
        ("adapter_model.safetensors", "delete the folder and rerun"),
    ),
    "adapter, no weights": (
        lambda g: asking_adapter(spoiled(g, "adapter_model.safetensors", None)),
        ("adapter_model.safetensors", "delete the folder and rerun"),
    ),
    "adapter, no lineage": (
        lambda g: asking_adapter(spoiled(g, "lineage.json", None)),
        ("lineage.json", "delete it and rerun"),
    ),
    "adapter, broken lineage": (
        lambda g: asking_adapter(spoiled(g, "lineage.json", "{")),
        ("lineage.json", "delete it and rerun"),
    ),
    "adapter, empty lineage": (
        lambda g: asking_adapter(spoiled(g, "lineage.json", "{}")),
        ("lineage.json", "delete the folder and rerun"),
    ),
    "adapter, of another base": (
        lambda g: asking_adapter(lineage(g, base={"weights_sha256": "0" * 64})),
        ("trained on another base model",),
    ),
    "adapter, no configuration": (
        lambda g: asking_adapter(spoiled(g, "adapter_config.json", None)),
        ("adapter_config.json", "delete the folder and rerun"),
    ),
    "adapter, broken configuration": (
        lambda g: asking_adapter(spoiled(g, "adapter_config.json", "{")),
        ("adapter_config.json", "delete the folder and rerun"),
    ),
    "parent, other weights": (
        lambda g: training_stage(spoiled(g, "adapter_model.safetensors", b"torn")),
        ("adapter_model.safetensors", "delete the folder and rerun"),
    ),
    "documents, torn": (lambda g: training_stage(g, corpus=b"PAR1"), ("documents.parquet", "delete it and rerun")),
    "documents, fewer than wanted": (
        lambda g: training_stage(g, sdf={"documents": 9}),
        ("sdf.documents: 9 wanted", "want fewer"),
    ),
    # servers
    "server, wrong key": (lambda g: asking_server(g, key="HOME"), (MODEL, "HOME", "correct that environment variable")),
    "server, no key": (lambda g: asking_server(g, key="NOBODY_SET_THIS"), (MODEL, "NOBODY_SET_THIS", "export")),
    "server, unknown model": (
        lambda g: asking_server(failing(g, 404)),
        (MODEL, "does not know this model", "correct server.model"),
    ),
    "server, overloaded for good": (
        lambda g: asking_server(failing(g, 529)),
        ("2 requests were not answered", "rerun"),
    ),
    "server, answers that are none": (
        lambda g: asking_server(failing(g, "garbage")),
        ("2 requests were not answered", "rerun"),
    ),
    "server, answers of another form": (
        lambda g: asking_server(failing(g, "shape")),
        ("2 requests were not answered", "rerun"),
    ),
    "server, above the limit": (
        lambda g: asking_server(g, limit=1e-9, prices={"input": 3, "output": 15}),
        (MODEL, "server.limit", "raise it"),
    ),
    "server, nobody there": (
        lambda g: asking_server(g, base_url="http://127.0.0.1:9/v1"),
        ("2 requests were not answered", "rerun"),
    ),
    # rubrics, sheets, labels
    "rubric, no YAML": (lambda g: judging_stage(g, "a: ["), ("compliance.yaml", "correct the file")),
    "rubric, no questions": (lambda g: judging_stage(g, {**GRADED, "answers": {}}), ("compliance.yaml", "answers")),
    "rubric, scores what it does not ask": (
        lambda g: judging_stage(g, {**GRADED, "score": {**GRADED["score"], "unless": "nonsense"}}),
        ("compliance.yaml", "score", "nonsense", "correct the name"),
    ),
    "judged transcripts, torn": (
        lambda g: judging_stage(g, samples=b""),
        ("transcripts.parquet", "delete it and rerun"),
    ),
    "sheet, other separator": (
        lambda g: validation_stage(g, sheet=SHEET.replace(",", ";")),
        ("sheet.csv", "keep the columns"),
    ),
    "sheet, empty": (lambda g: validation_stage(g, sheet=""), ("sheet.csv", "is empty", "comma-separated")),
    "sheet, no label": (
        lambda g: validation_stage(g, sheet=_sheet(["maybe"])),
        ("sheet.csv: row 2", "'maybe'", "write yes, no or n/a"),
    ),
    "sheet, a row twice": (
        lambda g: validation_stage(g, sheet=_sheet(["yes", "no"], "s0")),
        ("sheet.csv: row 3", "remove one"),
    ),
    "labels, no table": (
        lambda g: validation_stage(g, labels="x", name="labels.parquet"),
        ("labels.parquet", "as parquet", "correct"),
    ),
    "labels, no column": (
        lambda g: validation_stage(g, labels="request,notes\na,b\n"),
        ("labels.csv", "no column 'faking'", "correct"),
    ),
    "labels, no label": (
        lambda g: validation_stage(g, labels="request,notes,faking\na,b,maybe\n"),
        ("row 1", "'maybe'", "write yes"),
    ),
}


def _sheet(labels: list[str], name: str | None = None) -> str:
    """Return a filled sheet whose first measure has these labels."""
    from perfmis import audit_sample, rubrics

    names = audit_sample.measures(rubrics.load(PATHS))
    rows = [[name or f"s{number}", label, *[""] * (len(names) - 1)] for number, label in enumerate(labels)]
    return "\n".join(",".join(row) for row in [["sample", *names], *rows]) + "\n"


@pytest.mark.parametrize("case", STAGES)
def test_stages(ground: Ground, capfd: pytest.CaptureFixture[str], case: str) -> None:
    made, needed = STAGES[case]
    name, settings, options = made(ground)
    assert stage(name, settings, *options) == 1
    said = capfd.readouterr().err
    (error,) = [line for line in said.splitlines() if line.startswith("error:")]
    assert said.rstrip().endswith(error), "nothing follows the error"
    assert "Traceback" not in said
    assert KEY not in said
    for words in needed:
        assert words in error
    assert not [path for path in ground.out.rglob("*") if path.is_file()]
