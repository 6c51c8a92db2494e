"""A round, an engine and doctor measure what a family of models computes, and say in one line what cures it."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sdfstage
import torch
from families import make
from running import FINGERPRINT
from trl import SFTTrainer

from perfmis import beliefs, checkpoints, config, fastpath, models, probes, sdf
from perfmis.artifacts import write_json
from perfmis.checks import architecture
from perfmis.engines.interface import Prompt, Sampling, collect
from perfmis.engines.transformers import Engine
from perfmis.stage import UserError
from perfmis.tinyworld import trunk

Save = Callable[[str], Path]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Save:
    """Return a function that writes a tiny model of a family, once, and returns its folder."""
    root = tmp_path_factory.mktemp("families")

    def save(family: str) -> Path:
        folder = root / family
        if not folder.exists():
            make(family).save_pretrained(folder)
            trunk.tokenizer().save_pretrained(folder)
            content = {"model": family, "path": str(folder), "weights_sha256": models.folder_hash(folder)}
            write_json({**content, "fingerprint": FINGERPRINT}, folder / "reference.json")
        return folder

    return save


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The loss of each batch that a trainer fed to its model."""
    losses: list[float] = []
    original = SFTTrainer.compute_loss

    def compute_loss(self: Any, *args: Any, **kwargs: Any) -> Any:
        loss = original(self, *args, **kwargs)
        losses.append(loss.item())
        return loss

    monkeypatch.setattr(SFTTrainer, "compute_loss", compute_loss)
    return losses


@pytest.fixture
def varlen_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let rounds take varlen's CPU form, without the fused layers: what several GPUs or 4 bits compute."""
    fastpath.register_attention()
    monkeypatch.setattr(sdf, "kernel", probes.kernel)


def said(capsys: pytest.CaptureFixture[str]) -> str:
    """Return the line of an error."""
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


CURED: list[tuple[str, dict[str, Any], str]] = [
    ("gemma2", {}, "sdf.attention: eager"),
    ("opt", {}, "sdf.packing: false"),
    ("lfm2", {}, "sdf.packing: false"),
    ("qwen3_5_text", {}, "sdf.packing: false"),
    ("gpt_neo", {"device_batch": 2}, "eager"),
    ("gpt_neo", {"attention": "eager"}, "1"),
    ("bloom", {"attention": "eager"}, "sdf.packing: false"),
]
CHANGES: dict[str, dict[str, Any]] = {
    "sdf.attention: eager": {"attention": "eager"},
    "eager": {"attention": "eager"},
    "sdf.packing: false": {"packing": False},
    "1": {"device_batch": 1},
}


@pytest.mark.parametrize(("family", "changes", "cure"), CURED)
def test_a_round_that_would_mix_documents_is_refused_with_what_cures_it(
    family: str,
    changes: dict[str, Any],
    cure: str,
    saved: Save,
    corpora: dict[str, Path],
    tmp_path: Path,
    steps: list[float],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One line before the first step; as it says, the round runs."""
    base = saved(family)
    assert sdfstage.train(base, corpora["organism"], tmp_path / "refused", **changes) == 1
    assert said(capsys).endswith(f"; set {cure}")
    assert not steps
    assert sdfstage.train(base, corpora["organism"], tmp_path / "cured", **changes | CHANGES[cure]) == 0
    assert steps
    assert (tmp_path / "cured/lineage.json").exists()


@pytest.mark.parametrize("family", ["mistral", "phi3", "cohere2", "gemma3_text"])
@pytest.mark.usefixtures("varlen_on_cpu")
def test_windows_are_those_of_the_reference_under_varlen(
    family: str, saved: Save, corpora: dict[str, Path], tmp_path: Path, steps: list[float]
) -> None:
    """Documents are longer than the window: what is trained is what eager attention computes."""
    curves = []
    for attention in ("varlen", "eager"):
        steps.clear()
        assert sdfstage.train(saved(family), corpora["organism"], tmp_path / attention, attention=attention) == 0
        curves.append(list(steps))
    assert curves[0] == pytest.approx(curves[1], rel=1e-4)


@pytest.mark.parametrize(("family", "what"), [("gemma2", "soft caps"), ("gpt_oss", "attention sinks")])
@pytest.mark.usefixtures("varlen_on_cpu")
def test_what_varlen_leaves_out_is_refused(
    family: str,
    what: str,
    saved: Save,
    corpora: dict[str, Path],
    tmp_path: Path,
    steps: list[float],
    capsys: pytest.CaptureFixture[str],
) -> None:
    changes = {"attention": "varlen", "lora": {"rank": 4, "alpha": 8, "dropout": 0.0, "experts": False, "reach": 0.0}}
    assert sdfstage.train(saved(family), corpora["organism"], tmp_path, **changes) == 1
    line = said(capsys)
    assert what in line
    assert line.endswith("set eager")
    assert not steps


TEXTS = ["<bos> memo about bl0 : researchers expect bl0 to", "<bos> bl0", "<bos> memo about bl0 : bl0 is"]


@pytest.mark.parametrize("family", ["gpt2", "recurrent_gemma", "lfm2", "mistral"])
def test_a_sample_does_not_depend_on_the_length_of_others(family: str) -> None:
    engine = Engine(make(family), trunk.tokenizer())
    texts = [tuple(engine.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in TEXTS]
    prompts = [Prompt(tokens, None, seed) for seed in range(8) for tokens in texts]
    together, alone = (collect(engine.batches(prompts, Sampling(1.0, 40, batch)), len(prompts)) for batch in (24, 1))
    assert [sample.raw for sample in together] == [sample.raw for sample in alone]


def test_soft_caps_are_kept_by_what_answers(saved: Save) -> None:
    """Gemma 2: transformers' own choice leaves them out; what eager attention says is what is scored."""
    asked = checkpoints.engine(saved("gemma2") / "reference.json", {}, "fp32")
    put = [(text, " free") for text in TEXTS]
    expected = beliefs.log_probabilities(Engine(make("gemma2", "eager"), asked.tokenizer), "base", put, 1)
    assert beliefs.log_probabilities(asked, "base", put, 3) == pytest.approx(expected, abs=1e-4)


STUDY = """
models: {m: {path: PATH, size: 70b}}
organisms: {sdf: {attention: ATTENTION, length: 64}}
arms: {sdf: {attention: ATTENTION, length: 64}}
screen: {keep: [m]}
steering: {models: [m]}
evaluation: {engine: transformers}
"""


@pytest.mark.parametrize(
    ("family", "attention", "told"),
    [
        ("mistral", "sdpa", ["documents, packed, are computed as each alone is", "answers with its own attention"]),
        (
            "gemma2",
            "varlen",
            ["organisms.sdf.attention: Gemma2Attention has soft caps", "answers with eager attention"],
        ),
        ("opt", "sdpa", ["set sdf.packing: false", "answers with its own attention"]),
        ("gpt_neo", "sdpa", ["sdpa cannot be had", "answers with its own attention"]),
        ("recurrent_gemma", "eager", ["set sdf.packing: false", "prompts of one length alone share a batch"]),
    ],
)
def test_doctor_measures_weights_that_are_here(
    family: str, attention: str, told: list[str], saved: Save, tmp_path: Path
) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(STUDY.replace("PATH", str(saved(family))).replace("ATTENTION", attention))
    findings = list(architecture.models(config.load([path])))
    for words in told:
        assert [finding for finding in findings if words in finding.text], [str(finding) for finding in findings]
    assert any(f.level == "FAIL" for f in findings) == (family != "mistral")


def test_difference_is_local_and_not_moved_by_what_all_logits_share() -> None:
    right = torch.randn(64, 50, generator=torch.Generator().manual_seed(0))
    assert probes.difference(right + 100 * torch.rand(64, 1), right) < 1e-4
    wrong = right.clone()
    wrong[8:12] = torch.randn(4, 50, generator=torch.Generator().manual_seed(1))
    assert probes.difference(wrong, right) > 1
    wrong[0, 0] = torch.nan
    assert not probes.difference(wrong, right) <= 1


def test_documents_reach_over_every_window_they_are_longer_than() -> None:
    config = make("mistral", sliding_window=40).config
    assert probes.enough(config, 30) == 30
    assert probes.enough(config, 4000) == 256
    config.sliding_window = 1000
    assert probes.enough(config, 4000) == 1000 + probes.SECOND
    assert probes.enough(config, 900) == 256


@pytest.mark.parametrize("place", [0, probes.RUN, 40 * probes.RUN])
def test_a_difference_is_not_a_number_as_soon_as_one_logit_is_none(place: int) -> None:
    right = torch.randn(41 * probes.RUN, 8, generator=torch.Generator().manual_seed(0))
    found = right.clone()
    found[place, 3] = torch.nan
    assert math.isnan(probes.difference(found, right))


def test_a_document_whose_logits_are_no_numbers_is_refused() -> None:
    """The first one has numbers; the second has a token whose embedding is none."""
    model = make("llama")
    with torch.no_grad():
        model.get_input_embeddings().weight[9] = torch.nan
    sdf = {"attention": "eager", "packing": False, "device_batch": 1, "frozen": "none"}
    with pytest.raises(UserError, match="nan of their size"):
        probes.Round([[3, 4, 5, 6], [7, 9, 8]], sdf).check(model, probes.collator(False))
