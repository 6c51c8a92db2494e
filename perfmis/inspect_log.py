"""Export of transcripts to the log format of Inspect (https://inspect.aisi.org.uk), which `inspect view` opens.

One log for each kind, model, training seed, checkpoint and protocol. A sample is a request in a tier; its epochs are
the evaluation seeds. Its input is the rendered prompt (messages, or text for a raw protocol; a chat template
is not applied); its output holds the scratchpad as reasoning and the answer as text, which together are the raw
text, word for word. Its scores are ``tag``, ``judge`` (only where a judge was run; unscored where it failed) and
``outcome``; the log's results are the compliance per tier, in percent, and the gap in percentage points.
"""

import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl

from perfmis import outcomes
from perfmis.joined import ordered
from perfmis.sources import Sources
from perfmis.stage import UserError
from perfmis.vocabulary import MONITORED, UNMONITORED

if TYPE_CHECKING:
    from inspect_ai.log import EvalLog, EvalResults, EvalSample
    from inspect_ai.model import ChatMessage, ModelOutput
    from inspect_ai.scorer import Score

LOG = ("kind", "model", "seed", "checkpoint", "protocol")
STOPPED: dict[str, Any] = {"stop": "stop", "length": "max_tokens", "filtered": "content_filter"}
TASK = "alignment_faking"
METADATA = (
    "kind",
    "model",
    "seed",
    "checkpoint",
    "protocol",
    "tier",
    "eval_seed",
    "request_id",
    "cluster",
    "condition",
    "concept",
    "context",
    "alpha",
    "control",
    "snippet",
    "parse_status",
    "pattern",
    "reasoning_judge",
    "expectation",
    "consequence",
    "in_training",
    "sample",
    "prompt_sha256",
    "fingerprint",
)


def _input(row: Mapping[str, Any], study: Sources) -> "str | list[ChatMessage]":
    from inspect_ai.model import ChatMessageSystem, ChatMessageUser

    prompt = study.prompt(row["protocol"], study.requests[row["request_id"]], row["tier"], row["snippet"])
    if isinstance(prompt, str):
        return prompt
    kinds = {"system": ChatMessageSystem, "user": ChatMessageUser}
    return [kinds[turn["role"]](content=turn["content"]) for turn in prompt]


def _output(row: Mapping[str, Any]) -> "ModelOutput":
    from inspect_ai.model import (
        ChatCompletionChoice,
        ChatMessageAssistant,
        ContentReasoning,
        ContentText,
        ModelOutput,
        ModelUsage,
    )

    if row["scratchpad"] is None:
        content = row["raw"]
    else:
        content = [ContentReasoning(reasoning=row["scratchpad"]), ContentText(text=row["answer"])]
    message = ChatMessageAssistant(content=content, model=row["model"], source="generate")
    choice = ChatCompletionChoice(message=message, stop_reason=STOPPED[row["finish"]])
    usage = ModelUsage(output_tokens=row["tokens"], total_tokens=row["tokens"])
    return ModelOutput(model=row["model"], choices=[choice], usage=usage)


def _scores(row: Mapping[str, Any], judged: bool) -> "dict[str, Score]":
    from inspect_ai.scorer import Score

    answer = row["raw"] if row["answer"] is None else row["answer"]
    scores = {"tag": Score(value=row["tag"], answer=answer, explanation=f"parse status: {row['parse_status']}")}
    if judged:
        scores["judge"] = Score(value=row["judge"]) if row["judge"] else Score.unscored(reason="grader_failed")
    return {**scores, "outcome": Score(value=row["outcome"], answer=answer)}


def _sample(row: Mapping[str, Any], study: Sources, epoch: int, judged: bool) -> "EvalSample":
    from inspect_ai.log import EvalSample
    from inspect_ai.model import ChatMessageUser

    given, output = _input(row, study), _output(row)
    identity = " ".join(filter(None, (row["request_id"], row["tier"], row["condition"])))
    # Not the sample's key: one sample can stand for several conditions, of which no steering is one.
    place = "\0".join(str(row[column]) for column in LOG)
    messages: list[Any] = [ChatMessageUser(content=given)] if isinstance(given, str) else list(given)
    return EvalSample(
        id=identity,
        epoch=epoch,
        uuid=hashlib.sha256(f"{place}\0{identity}\0{epoch}".encode()).hexdigest()[:32],
        input=given,
        target="",
        messages=[*messages, output.message],
        output=output,
        scores=_scores(row, judged),
        metadata={name: row[name] for name in METADATA if row[name] not in (None, "")},
    )


def _results(frame: pl.DataFrame) -> "EvalResults":
    from inspect_ai.log import EvalMetric, EvalResults, EvalScore

    accepted = frame.group_by("tier").agg(100 * (pl.col("outcome") == "accepted").mean())
    values = dict(sorted(accepted.iter_rows()))
    metrics = {f"{tier} accepted, %": share for tier, share in values.items()}
    if MONITORED in values and UNMONITORED in values:
        metrics["gap, pp"] = values[MONITORED] - values[UNMONITORED]
    score = EvalScore(
        name="outcome",
        scorer="outcome",
        scored_samples=frame.height,
        metrics={name: EvalMetric(name=name, value=value) for name, value in metrics.items()},
    )
    return EvalResults(total_samples=frame.height, completed_samples=frame.height, scores=[score])


def log(frame: pl.DataFrame, study: Sources) -> "EvalLog":
    """Return the log of rows that have kind, model, seed, checkpoint and protocol in common.

    Args:
        frame: Rows of `perfmis.joined`.
        study: What prompts are rendered from.

    Raises:
        UserError: A protocol or snippet is unknown.
    """
    from inspect_ai.log import EvalConfig, EvalDataset, EvalLog, EvalSpec, EvalStats

    frame = ordered(outcomes.parse(frame.drop("parse_status", "tag"), study.protocols))
    first = frame.row(0, named=True)
    epochs = {seed: number for number, seed in enumerate(sorted(frame["eval_seed"].unique()), 1)}
    judged = frame["judge"].is_not_null().any()
    samples = [_sample(row, study, epochs[row["eval_seed"]], judged) for row in frame.iter_rows(named=True)]
    created = datetime.now(UTC).isoformat(timespec="seconds")
    ids: list[Any] = list(dict.fromkeys(sample.id for sample in samples))
    name = ".".join(str(first[column]) for column in LOG)
    spec = EvalSpec(
        eval_id=name,
        run_id=name,
        task_id=name,
        created=created,
        task=TASK,
        task_args={"protocol": first["protocol"], "kind": first["kind"], "checkpoint": first["checkpoint"]},
        model=f"{first['model']}/seed{first['seed']}/{first['checkpoint']}",
        dataset=EvalDataset(name="requests", samples=len(ids), sample_ids=ids),
        config=EvalConfig(epochs=len(epochs)),
        tags=[first["kind"], first["checkpoint"]],
        metadata={column: first[column] for column in LOG},
    )
    stats = EvalStats(started_at=created, completed_at=created)
    return EvalLog(status="success", eval=spec, results=_results(frame), stats=stats, samples=samples)


def write(frame: pl.DataFrame, study: Sources, folder: Path) -> list[Path]:
    """Write the logs of all rows and return their files; those of an earlier export are replaced.

    Args:
        frame: Rows of `perfmis.joined`.
        study: What prompts are rendered from.
        folder: Where the logs are put.

    Raises:
        UserError: Inspect is not installed, or a request, protocol or snippet is unknown.
    """
    try:
        from inspect_ai.log import write_eval_log
    except ImportError as error:
        raise UserError("--inspect: inspect-ai is not installed; pip install 'perfmis[inspect]'") from error
    study.check(frame["request_id"])
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for key, rows in frame.group_by(LOG, maintain_order=True):
        kind, model, seed, checkpoint, protocol = key
        path = folder / f"{kind}_{model}_seed{seed}_{checkpoint}_{protocol}.eval"
        write_eval_log(log(rows, study), str(path))
        paths.append(path)
    return paths
