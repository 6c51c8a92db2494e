"""An adapter merged into weights on disk: the right function for each family, and what rounding left of it."""

from pathlib import Path

import polars as pl
import pytest
import sdfstage
import torch
from conftest import SDF
from peft import PeftModel
from safetensors.torch import load_file, save_file
from test_lora import load, logits, save

from perfmis import adapters, merge, sdf
from perfmis.artifacts import read_json, write_json
from perfmis.stage import UserError

FOUND = {  # what merging finds of each family's weights, by their names on disk
    "llama": None,
    "gpt2": None,
    "gpt_neox": None,
    "phi3": None,
    "mixtral": "merge knows no weights such as .*experts.*; set arms.mode: stack",
    "gemma3": "merge finds no weight .*; set arms.mode: stack",
}


def adapter(base: Path, folder: Path, std: float = 0.1) -> Path:
    """Write an adapter of random weights on all that LoRA reaches."""
    model, _ = load(base)
    network, name = sdf.prepare(model, None, "stack", SDF["lora"], 0)
    torch.manual_seed(0)
    for key, parameter in network.named_parameters():
        if ".lora_" in key:
            torch.nn.init.normal_(parameter, std=std)
    adapters.export(adapters.state(network, name), network.peft_config[name], None, folder)
    return folder


@pytest.mark.parametrize("family", FOUND)
def test_merged_weights_are_the_adapted_model_or_are_refused(family: str, tmp_path: Path) -> None:
    """GPT-2 keeps its weights as (in, out), square ones too: the other way round they merge without a word."""
    base = save(family, tmp_path / "base")
    folder = adapter(base, tmp_path / "adapter")
    if said := FOUND[family]:
        with pytest.raises(UserError, match=said):
            merge.merge(base, folder, tmp_path / "merged")
        assert not (tmp_path / "merged").exists()
        return
    merged = merge.merge(base, folder, tmp_path / "merged")
    write_json({"path": str(merged)}, merged / "reference.json")
    model, tokenizer = load(base)
    alone = logits(model, tokenizer)
    adapted = logits(PeftModel.from_pretrained(model, str(folder)), tokenizer)
    torch.testing.assert_close(logits(load(merged)[0], tokenizer), adapted, atol=1e-3, rtol=0)
    assert (adapted - alone).abs().max() > 0.05
    assert merge.survived(merged) == pytest.approx(1, abs=1e-5), "nothing is rounded in fp32"


@pytest.mark.parametrize(("size", "expected"), [(1e-4, 0.06), (1e-3, 0.52), (1e-2, 1.0)])
def test_share_that_rounding_left_is_measured(size: float, expected: float, tmp_path: Path) -> None:
    """Of a normal change of normal weights in bf16, by the size of the one over that of the other.

    The right values are sums over 4 million pairs of numbers (rounded to nearest, the share along the change).
    """
    torch.manual_seed(0)
    weight = torch.randn(256, 256).bfloat16()
    a, b = torch.randn(64, 256), torch.randn(256, 64)
    b *= size * weight.float().norm() / (b @ a).norm()
    (tmp_path / "base").mkdir()
    save_file({"up.weight": weight}, tmp_path / "base" / "model.safetensors")
    (tmp_path / "adapter").mkdir()
    save_file(
        {f"{merge.PREFIX}up.lora_A.weight": a, f"{merge.PREFIX}up.lora_B.weight": b},
        tmp_path / "adapter" / adapters.WEIGHTS,
    )
    write_json({"r": 64, "lora_alpha": 64}, tmp_path / "adapter" / adapters.CONFIG)
    folder = merge.merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    assert merge.survived(folder) == pytest.approx(expected, abs=0.03)
    made = load_file(folder / "model.safetensors")["up.weight"].float() - weight.float()
    change = b @ a
    assert merge.survived(folder) == pytest.approx(float((made * change).sum() / change.square().sum()), rel=1e-4)


def test_share_stands_in_lineage_and_log(
    tiny_model: Path, corpora: dict[str, Path], organism: Path, tmp_path: Path
) -> None:
    """Of an arm over merged weights; other arms have none."""
    for mode, kept in (("merge", pytest.approx(1, abs=1e-5)), ("stack", None)):
        arm = tmp_path / mode
        assert sdfstage.second(tiny_model, corpora["A1+"], arm, organism, mode) == 0
        assert read_json(arm / "lineage.json")["merge_kept"] == kept
        assert pl.read_parquet(arm / "log.parquet")["merge_kept"].unique().to_list() == [kept]
