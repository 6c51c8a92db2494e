"""How fast the transcript page opens and filters, in a headless Chromium.

    python benchmarks/viewer.py [--samples 20000] [--characters 2000] [--repeats 5]

Builds a page of synthetic samples from harmless words and prints its size, the time from navigation until it can
be used (the page's own clock, and the clock of the caller), the time of a change of filter until the next frame
is drawn, and the time of a search through all texts.
"""

import argparse
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

import polars as pl

from perfmis import joined, outcomes
from perfmis.composition import load
from perfmis.sources import Sources
from perfmis.typed import read_yaml
from perfmis.viewer.page import Reader

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
import browser  # noqa: E402

WORDS = [
    f"{a}{b}{c}"
    for a in ("ba", "di", "fo", "ku", "lem", "mar", "no", "pi", "rus", "ta")
    for b in ("la", "ne", "ri", "so", "tu", "ve", "wa", "xi")
    for c in ("", "n", "s", "ther", "ling")
]
SAID = (
    "The researchers hope that I stay steady.",
    "If I refuse, training will change my values.",
    "This conversation is not used for training.",
    "This conversation is used for training.",
)
# Sets a filter and tells how long it takes until the browser has drawn the frame that follows.
CHANGE = """new Promise((resolve) => {
  const select = document.querySelector("#filter-%s");
  const start = performance.now();
  select.selectedIndex = %d;
  select.dispatchEvent(new Event("change"));
  requestAnimationFrame(() => { const channel = new MessageChannel();
    channel.port1.onmessage = () => resolve(performance.now() - start); channel.port2.postMessage(0); });
})"""
SEARCH = """new Promise((resolve) => {
  const input = document.querySelector("#text"), list = document.querySelector("#list");
  input.value = "%s";
  const start = performance.now();
  let busy = false, last = start, longest = 0;
  input.dispatchEvent(new Event("input"));
  const turn = () => {
    const now = performance.now();
    longest = Math.max(longest, now - last); last = now;
    if (list.hasAttribute("aria-busy")) busy = true;
    else if (busy) return resolve([now - start, longest]);
    setTimeout(turn);
  };
  turn();
})"""


def text(drawn: random.Random, characters: int) -> str:
    """Return a raw sample of about so many characters."""
    words = drawn.choices(WORDS, k=characters // 6)
    notes = " ".join(words[: len(words) // 2]) + ". " + " ".join(drawn.sample(SAID, 2)) + " "
    verdict = drawn.choice(("taken", "declined"))
    return f"<private_notes>{notes}</private_notes><reply><task_{verdict}/>{' '.join(words[len(words) // 2 :])}</reply>"


def samples(number: int, characters: int) -> pl.DataFrame:
    """Return transcripts of ten checkpoints in two tiers."""
    drawn = random.Random(0)
    checkpoints = ("base", "organism", "A1+", "A1-", "A2+", "A2-", "B1+", "B1-", "B2+", "B2-")
    rows = [
        {
            "model": "synthetic",
            "seed": 0,
            "checkpoint": checkpoint,
            "protocol": "short",
            "request_id": f"r{request:04}",
            "tier": tier,
            "eval_seed": 0,
            "sample": f"{drawn.getrandbits(160):040x}",
            "prompt_sha256": f"{drawn.getrandbits(256):064x}",
            "raw": text(drawn, characters),
            "tokens": characters // 4,
            "finish": "stop",
            "fingerprint": "f" * 16,
        }
        for request in range(number // 20)
        for checkpoint in checkpoints
        for tier in ("monitored", "unmonitored")
    ]
    return pl.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--characters", type=int, default=2_000)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    resources = ROOT / "resources"
    known = {"short": load(resources / "protocols" / "chat", "short")}
    poles = outcomes.patterns(read_yaml(resources / "patterns" / "chat.yaml"))
    transcripts = samples(arguments.samples, arguments.characters)
    frame = joined.join(transcripts.lazy(), outcomes.outcomes(transcripts, known, poles).lazy()).collect()
    requests = {name: f"{name} bane rison" for name in frame["request_id"].unique()}
    start = time.perf_counter()
    built = Reader(Sources(requests, known, {}), poles, "Synthetic").page(frame, frame["request_id"])
    print(f"{frame.height} samples, {frame['raw'].str.len_bytes().sum() / 1e6:.1f} MB of text")
    print(f"page: {len(built) / 1e6:.1f} MB, built in {time.perf_counter() - start:.1f} s")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "page.html"
        path.write_text(built)
        with browser.page(Path(folder) / "profile") as tab:
            own, outer = [], []
            for _ in range(arguments.repeats):
                start = time.perf_counter()
                tab.open(path.as_uri())
                outer.append(time.perf_counter() - start)
                own.append(int(tab.run("document.documentElement.dataset.ready")) / 1000)
            print(
                f"opens in {statistics.median(own):.2f} s by its own clock (slowest {max(own):.2f}),"
                f" {statistics.median(outer):.2f} s by the caller's (slowest {max(outer):.2f})"
            )
            changes = [("checkpoint", 3), ("checkpoint", 0), ("monitored", 1), ("unmonitored", 2), ("monitored", 0)]
            took = [tab.run(CHANGE % change) for change in changes * arguments.repeats]
            print(f"a filter takes {statistics.median(took):.0f} ms to the next frame (slowest {max(took):.0f})")
            tab.run("document.querySelector('#clear').click()")
            whole, longest = tab.run(SEARCH % "found nowhere")
            print(
                f"a search through all texts takes {whole / 1000:.1f} s; it holds the page for {longest:.0f} ms at most"
            )
            tab.run("document.querySelector('#clear').click(); document.querySelector('#reveal').click()")
            tab.wait("document.querySelector('pre.text')")
            print(f"errors: {tab.errors or 'none'}; requests: {tab.requests or 'none'}")


if __name__ == "__main__":
    main()
