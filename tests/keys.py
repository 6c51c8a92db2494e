"""Another value of each key of the demo's configuration, for the tests of recomputation."""

from fnmatch import fnmatch
from typing import Any

from conftest import REPOSITORY
from recomputation import DEMO, leaves

from perfmis import config

# Another value of each key, where it is not the next number or the other truth value; what it needs beside it.
REVISION = "0" * 40
OTHER: dict[str, Any] = {
    "root": "results/elsewhere",
    "models.neither.truth": "both",
    "models.*.truth": "neither",
    "models.*.size": "spare",
    "sizes.*.nodes": {"nodes": 2, "gpus": 0},
    "sizes.*.pipeline": {"gpus": 2, "pipeline": 2},
    "seeds.evaluation": [0, 1, 2],
    "seeds.screen": [0],
    "requests.source": {"source": "path", "location": "config/demo.yaml"},
    "requests.location": "elsewhere.csv",
    "requests.sha256": None,
    "requests.column": "other",
    "corpora.*.source": {"source": "written"},
    "corpora.*.location": "data/set",
    "corpora.*.revision": REVISION,
    "writer.hub": "a/b",
    "date": "2025-01-31",
    "writer.revision": REVISION,
    "writer.size": "spare",
    "*.sdf.documents": 200,
    "*.sdf.loss_tokens": 6000,
    "*.sdf.tag": "<tag>",
    "*.sdf.learning_rate": 0.001,
    "*.sdf.batch": 16,
    "*.sdf.device_batch": 2,
    "*.sdf.attention": "eager",
    "*.sdf.frozen": "4bit",
    "*.sdf.precision": "bf16",
    "*.sdf.lora.dropout": 0.1,
    "*.sdf.lora.reach": 0.5,
    "*.sdf.warmup": 0.1,
    "arms.mode": "merge",
    "evaluation.tiers": ["monitored", "unmonitored", "rated"],
    "evaluation.engine": "vllm",
    "evaluation.quantization": {"engine": "vllm", "quantization": "fp8"},
    "evaluation.precision": "bf16",
    "vectors.layers": [0.25],
    "steering.alphas": [-0.5, 0.0, 0.5],
    "statistics.confidence": 0.9,
    "statistics.moved": 0.3,
    "statistics.kept": 0.7,
    "tiny.hidden": 128,
}
# Keys that make another DAG, with another value of each, and what it needs beside it.
JUDGE: dict[str, Any] = {
    "api": {"provider": "openai", "model": "judge"},
    "samples": ["checkpoints", "steering", "prompting"],
}
DAG: dict[str, dict[str, Any]] = {
    "models.*.hub": {"models": {"both": {"truth": None, "hub": "a/b", "revision": REVISION}}},
    "models.*.revision": {"models": {"both": {"truth": None, "hub": "a/b", "revision": REVISION}}},
    "models.*.path": {"models": {"both": {"truth": None, "path": "weights"}}},
    "seeds.training": {"seeds": {"training": [7]}},
    "arms.names": {"arms": {"names": ["A1+", "A1-"]}},
    "screen.keep": {"screen": {"keep": ["expectation", "both"]}},
    "evaluation.world": {"evaluation": {"world": "chat"}},
    "evaluation.protocol": {"evaluation": {"protocol": "long"}},
    "evaluation.base_protocol": {"evaluation": {"base_protocol": "short"}},
    "evaluation.compliance": {"evaluation": {"compliance": "and"}, "judge": JUDGE},
    "judge": {"judge": JUDGE},
    "steering.models": {"steering": {"models": ["both"]}},
    "prompting.calibration": {"prompting": {"calibration": False}},
    "prompting.closed": {"prompting": {"closed": {"closed": {"provider": "openai", "model": "closed"}}}},
}


def changeable() -> list[str]:
    """Return every key of the demo's configuration, defaults included, that can be changed alone."""
    study = config.load([REPOSITORY / DEMO]).model_dump()
    study["sizes"] = {"tiny": study["sizes"]["tiny"]}
    found = [key for key, _ in leaves(study) if not key.endswith("*")]
    return [key for key in found if not any(fnmatch(key, pattern) for pattern in DAG)]


def nested(key: str, value: Any) -> dict[str, Any]:
    """Return the YAML content that sets a key; a mapping stands for keys of its section."""
    *path, last = key.split(".")
    content = value if isinstance(value, dict) else {last: value}
    for part in reversed(path):
        content = {part: content}
    return content


def another(key: str, value: Any) -> Any:
    """Return another value of a key."""
    for pattern, given in OTHER.items():
        if fnmatch(key, pattern):
            return given
    return not value if isinstance(value, bool) else value + 1 if isinstance(value, int) else value * 1.5
