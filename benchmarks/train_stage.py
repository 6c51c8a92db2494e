"""The stage `sdf` itself on a GPU: plain against fast, fp8, ZeRO-3 on one GPU and on all, killed and resumed.

python benchmarks/train_stage.py [--folder FOLDER] [--layers 16] [--hidden 2048]

A Llama of random weights learns the tiny world's documents, as an organism and as an arm on top of it. The script
prints, for each way, tokens/s and share of the matmul rate as the stage logged them, its last loss, and how far its
losses are from the plain path's; and the largest difference of the weights after a SIGKILL and a second start.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import polars as pl
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from perfmis.artifacts import write_json, write_parquet
from perfmis.models import folder_hash
from perfmis.tinyworld import documents, items, trunk

FINGERPRINT = "0" * 16
SDF: dict[str, Any] = {
    "lora": {"rank": 64, "alpha": 128, "dropout": 0.0, "experts": True, "reach": 0.9},
    "epochs": 1,
    "documents": None,
    "loss_tokens": None,
    "tag": None,
    "learning_rate": 1e-4,
    "warmup": 0.03,
    "batch": 8,
    "device_batch": 4,
    "length": 1024,
    "packing": True,
    "attention": "varlen",
    "frozen": "full",
    "precision": "bf16",
}


def make_model(folder: Path, layers: int, hidden: int) -> None:
    """Write a Llama of random weights with the tiny world's tokenizer."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(items.VOCABULARY),
        hidden_size=hidden,
        intermediate_size=hidden * 7 // 2,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 128,
        num_key_value_heads=hidden // 512,
        max_position_embeddings=4096,
        pad_token_id=items.INDEX["<pad>"],
        bos_token_id=items.INDEX["<bos>"],
        eos_token_id=items.INDEX["<end>"],
    )
    with torch.device("cuda"):
        network = LlamaForCausalLM(config).to(torch.bfloat16)
    network.save_pretrained(folder)
    trunk.tokenizer().save_pretrained(folder)
    content = {"model": "random", "path": str(folder), "weights_sha256": folder_hash(folder)}
    write_json({**content, "fingerprint": FINGERPRINT}, folder / "reference.json")


def command(
    root: Path, corpus: str, name: str, parent: str | None, gpus: int | None = None, **changes: Any
) -> list[str]:
    """Return the command that trains one adapter: in one process, or with ZeRO-3 on so many GPUs."""
    launcher = [] if gpus is None else ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={gpus}"]
    settings = {"sdf": SDF | changes, "seed": 0, "replay": 0.0, "mode": "stack"}
    content = json.dumps({"settings": settings, "upstream": [FINGERPRINT]})
    words = [
        sys.executable,
        *launcher,
        "-m",
        "perfmis",
        "sdf",
        "--settings",
        content,
        "--fingerprint",
        FINGERPRINT,
        "--base",
        root / "model" / "reference.json",
        "--corpus",
        root / corpus / "documents.parquet",
        "--tokens",
        root / "tokens",
        "--output",
        root / name,
        "--save-steps",
        "5",
    ]
    more = ["--zero3"] if gpus else []
    return [*map(str, words), *more, *(["--parent", str(root / parent)] if parent else [])]


def train(root: Path, corpus: str, name: str, parent: str | None = None, **changes: Any) -> pl.DataFrame:
    """Train one adapter and return its log."""
    one = {} if "gpus" in changes else {"CUDA_VISIBLE_DEVICES": "0"}
    words = command(root, corpus, name, parent, **changes)
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, env={**os.environ, **one})
    return pl.read_parquet(root / name / "log.parquet")


def killed(root: Path, corpus: str, name: str) -> None:
    """Train one adapter, killed once its first checkpoint is sealed, and started again."""
    words, one = command(root, corpus, name, None), {**os.environ, "CUDA_VISIBLE_DEVICES": "0"}
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, env=one)
    while not list((root / name).glob("scratch/*/checkpoint-*/seal.json")):
        assert process.poll() is None, "ended before it could be killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, env=one)


def show(name: str, log: pl.DataFrame, reference: pl.DataFrame) -> None:
    """Print a line of the table."""
    half = log.tail(log.height // 2)
    off = float((log["loss"] - reference["loss"]).abs().max())  # type: ignore[arg-type]
    print(
        f"{name:28} {half['tokens_per_second'].median():9.0f} {half['matmul_share'].median():6.3f}"
        f" {log['memory_gb'].max():6.1f} {log['loss'][0]:8.4f} {log['loss'][-1]:8.4f} {off:9.5f}",
        flush=True,
    )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, default=Path("results/train_stage"))
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--documents", type=int, default=6_000)
    options = parser.parse_args()
    root = options.folder.resolve()
    shutil.rmtree(root, ignore_errors=True)
    make_model(root / "model", options.layers, options.hidden)
    for corpus in ("organism", "A1+"):
        frame = pl.DataFrame(documents.write(corpus, options.documents)).with_columns(corpus=pl.lit(corpus))
        write_parquet(frame, root / corpus / "documents.parquet", FINGERPRINT)
    print(f"{'':28} {'tokens/s':>9} {'share':>6} {'GiB':>6} {'first':>8} {'last':>8} {'|loss-plain|':>9}")
    plain = train(root, "organism", "plain", attention="sdpa")
    show("organism, plain (sdpa)", plain, plain)
    show("organism, fast bf16", train(root, "organism", "fast"), plain)
    show("organism, fast fp8", train(root, "organism", "fp8", frozen="fp8"), plain)
    for gpus in range(1, torch.cuda.device_count() + 1):
        log = train(root, "organism", f"zero{gpus}", gpus=gpus, device_batch=4 // gpus)
        show(f"organism, ZeRO-3 on {gpus}", log, plain)
    arm = train(root, "A1+", "arm-plain", "fast", attention="sdpa")
    show("arm over organism, plain", arm, arm)
    show("arm over organism, fast bf16", train(root, "A1+", "arm-fast", "fast"), arm)
    show("arm over organism, fast fp8", train(root, "A1+", "arm-fp8", "fast", frozen="fp8"), arm)
    killed(root, "organism", "killed")
    whole, again = (load_file(root / name / "adapter_model.safetensors") for name in ("fast", "killed"))
    apart = max(float((whole[name] - again[name]).abs().max()) for name in whole)
    logs = [pl.read_parquet(root / name / "log.parquet")["loss"] for name in ("fast", "killed")]
    print(f"killed and resumed: largest difference of a weight {apart:.2e}, of a logged loss", end=" ")
    print(f"{float((logs[0] - logs[1]).abs().max()):.2e}")  # type: ignore[arg-type]
    shutil.rmtree(root)


if __name__ == "__main__":
    main()
