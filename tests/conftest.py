"""The ground all tests share: the repository, folders to run the workflow in, a tiny model with adapters."""

import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import polars as pl
import pytest
import running
from running import FINGERPRINT

from perfmis.artifacts import write_json, write_parquet

os.environ.setdefault("OMP_NUM_THREADS", "1")  # each of the processes among which tests are shared out has one core

REPOSITORY = Path(__file__).resolve().parent.parent
PARTS = (
    "Snakefile",
    "workflow",
    "config",
    "profiles",
    "demo",
    "slurm",
    "resources",
    "perfmis",
    "snakemake_logger_plugin_perfmis",
)
SDF = {
    "lora": {"rank": 4, "alpha": 8, "dropout": 0.0, "experts": True, "reach": 0.9},
    "epochs": 1,
    "learning_rate": 0.01,
    "warmup": 0.0,
    "batch": 4,
    "device_batch": 4,
    "length": 64,
    "documents": None,
    "loss_tokens": None,
    "tag": None,
    "packing": True,
    "attention": "sdpa",
    "frozen": "full",
    "precision": "fp32",
}


@pytest.fixture(scope="session")
def repository() -> Path:
    """Root of the repository."""
    return REPOSITORY


@pytest.fixture(scope="session")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function that makes a folder in which the workflow runs with results of its own.

    Its argument names the parts that a test is going to edit: they are copied, the others linked.
    """

    def make(copied: Iterable[str] = ()) -> Path:
        folder = tmp_path_factory.mktemp("work")
        for part in PARTS:
            if part in copied:
                shutil.copytree(REPOSITORY / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                (folder / part).symlink_to(REPOSITORY / part)
        return folder

    return make


def untrained(folder: Path, hidden: int, heads: int, scale: float) -> Path:
    """Write an untrained model of the tiny world, with ``reference.json``.

    Its weights are large, so that what it says depends on its context and on every adapter.
    """
    import torch

    from perfmis import models
    from perfmis.tinyworld import trunk

    network = trunk.model({"seed": 0, "hidden": hidden, "layers": 2, "heads": heads})
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(scale if parameter.ndim == 2 else 1)
    network.save_pretrained(folder)
    trunk.tokenizer().save_pretrained(folder)
    content = {"model": "tiny", "path": str(folder), "weights_sha256": models.folder_hash(folder)}
    write_json({**content, "fingerprint": FINGERPRINT}, folder / "reference.json")
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the untrained model of most tests."""
    return untrained(tmp_path_factory.mktemp("model"), hidden=32, heads=4, scale=5)


@pytest.fixture(scope="session")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Documents of the organism and of one arm, 24 each."""
    from perfmis.tinyworld import documents

    folder = tmp_path_factory.mktemp("corpora")
    for corpus in ("organism", "A1+"):
        frame = pl.DataFrame(documents.write(corpus, 24)).with_columns(corpus=pl.lit(corpus))
        write_parquet(frame, folder / f"{corpus}.parquet", FINGERPRINT)
    return {path.stem: path for path in folder.glob("*.parquet")}


@pytest.fixture(scope="session")
def organism(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, corpora: dict[str, Path]) -> Path:
    """Folder of an adapter of the tiny model, made by the stage."""
    folder = tmp_path_factory.mktemp("organism")
    settings = {"sdf": SDF, "seed": 0, "replay": 0.0}
    options = ["--base", tiny_model / "reference.json", "--corpus", corpora["organism"], "--output", folder]
    options += ["--tokens", folder.parent / "tokens"]
    assert running.stage("sdf", settings, *options) == 0
    return folder


@pytest.fixture(scope="session")
def arm(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, corpora: dict[str, Path], organism: Path) -> Path:
    """Folder of an adapter that was trained on top of the organism, with half as many documents replayed."""
    folder = tmp_path_factory.mktemp("arm")
    settings = {"sdf": SDF, "seed": 0, "replay": 0.5, "mode": "stack"}
    options = ["--base", tiny_model / "reference.json", "--corpus", corpora["A1+"], "--output", folder]
    options += ["--parent", organism, "--replay", corpora["organism"], "--tokens", folder.parent / "tokens"]
    assert running.stage("sdf", settings, *options) == 0
    return folder


@pytest.fixture(scope="session")
def requests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Table of eight requests of the tiny world."""
    folder = tmp_path_factory.mktemp("requests")
    settings = {"source": "tiny", "location": "", "sha256": None, "column": "goal", "number": 8}
    output = folder / "requests.parquet"
    assert running.stage("requests", settings, "--output", output, "--card", folder / "card.json") == 0
    return output
