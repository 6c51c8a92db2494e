"""Stage `judging`: what a judge model makes of transcripts, by rubrics.

    python -m perfmis judging --settings JSON --fingerprint HEX --protocols FILES --rubrics FILES --requests FILE
        --transcripts FILES --base FILE --samples FOLDER --judgements FILES

One file of judgements a file of transcripts, in the same order. Settings: ``judge``. The judge's answers go to the
store of samples, so that another threshold, or the same question about the same text, costs nothing.

Judged is what has an answer and a place where it begins (see `perfmis.outcomes`): truncated, filtered, empty and
undelimited texts are *missing*, whatever a judge might make of them. So is a judgement of which fewer than half of
the votes came back valid; it is never a zero. Texts that are equal are judged once.

A file has one row a sample, with the columns of each rubric: ``NAME_score`` (0..1: the median of the graded votes, or
the share of those that say yes) and ``NAME`` (whether it is above the threshold); or, for a rubric of labels,
``NAME_LABEL_score`` (share of the votes) and ``NAME`` (list of the labels above the threshold, or ["none"]); and
``NAME_votes``, the number of valid votes, null where no judge was asked.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from perfmis import protocols, rubrics, stage, subject
from perfmis.artifacts import read_parquet, write_parquet
from perfmis.engines.interface import Sampling
from perfmis.materials import materials
from perfmis.outcomes import parse
from perfmis.protocols import Messages
from perfmis.rubrics import Labels, Material, Rubric
from perfmis.samples import seed_of
from perfmis.stage import UserError
from perfmis.subject import Ask

Row = tuple[float | None, ...]
NONE = "none"


def vote_seed(name: str, number: int, messages: Messages) -> int:
    """Return the seed of one vote; it depends on what is asked alone, so equal texts get equal votes."""
    return seed_of(f"{name}|{number}|{messages[-1]['content']}")


def scores(
    name: str, rubric: Rubric, materials: Sequence[Material | None], settings: Mapping[str, Any], ask: Ask
) -> pl.DataFrame:
    """Judge texts by one rubric.

    Args:
        name: The rubric's name.
        rubric: The rubric.
        materials: What is judged; None is missing without being asked.
        settings: The section ``judge``.
        ask: Returns what the judge says to each conversation with the seed beside it; None where it failed for good.

    Returns:
        One row a material: the measures of the rubric (scores 0..1 or null) and ``NAME_votes``.
    """
    number = settings["rubrics"][name]["votes"]
    distinct = list(dict.fromkeys(material for material in materials if material))
    # Votes share one conversation: with twenty votes, copies of long scratchpads would fill the memory.
    conversations = [
        messages for messages in (rubrics.messages(rubric, material) for material in distinct) for _ in range(number)
    ]
    seeds = [vote_seed(name, place % number, messages) for place, messages in enumerate(conversations)]
    sampling = Sampling(settings["temperature"], settings["max_tokens"], settings["batch"], rubric.answer_schema)
    said = ask(conversations, seeds, sampling) if conversations else []
    votes = [rubrics.vote(rubric, sample.raw) if sample and sample.finish == "stop" else None for sample in said]
    measures = rubric.measures(name)
    # None stands for what was not asked.
    rows: dict[Material | None, Row] = {None: (*[None] * len(measures), None)}
    for place, material in enumerate(distinct):
        own = votes[place * number : (place + 1) * number]
        together = rubrics.joined(rubric, own) or [None] * len(measures)
        rows[material] = (*together, number - own.count(None))
    schema = {**{f"{measure}_score": pl.Float64 for measure in measures}, f"{name}_votes": pl.UInt16}
    return pl.DataFrame([rows[material] for material in materials], schema=schema, orient="row")


def decided(name: str, rubric: Rubric, threshold: float) -> pl.Expr:
    """Return the column ``NAME``: what holds of a sample, from its scores; null where they are."""
    above = {measure: pl.col(f"{measure}_score") > threshold for measure in rubric.measures(name)}
    if not isinstance(rubric.score, Labels):
        return above[name].alias(name)
    labels = dict(zip(above, rubric.score.labels, strict=True))
    held = pl.concat_list(pl.when(is_above).then(pl.lit(labels[measure])) for measure, is_above in above.items())
    held = held.list.drop_nulls()
    held = pl.when(held.list.len() > 0).then(held).otherwise(pl.lit([NONE], dtype=pl.List(pl.String)))
    return pl.when(pl.all_horizontal(is_above.is_not_null() for is_above in above.values())).then(held).alias(name)


def judgements(
    parsed: pl.DataFrame, chosen: Mapping[str, Rubric], settings: Mapping[str, Any], ask: Ask
) -> pl.DataFrame:
    """Return ``sample`` and the columns of all rubrics.

    Args:
        parsed: Rows of `perfmis.outcomes.parse`, with ``sample`` and ``request``.
        chosen: Rubrics by name.
        settings: The section ``judge``.
        ask: See `scores`.
    """
    frames = [parsed.select("sample")]
    for name, rubric in chosen.items():
        frame = scores(name, rubric, materials(rubric, parsed), settings, ask)
        frames.append(frame.with_columns(decided(name, rubric, settings["rubrics"][name]["threshold"])))
    return pl.concat(frames, how="horizontal")


def main(argv: list[str]) -> None:
    """Run the stage."""
    options = subject.parser(__doc__ or "")
    options.add_argument("--protocols", required=True, nargs="+", type=Path, help="files named NAME.yaml or .json")
    options.add_argument("--rubrics", required=True, nargs="+", type=Path, help="YAML files, named NAME.yaml")
    options.add_argument("--requests", required=True, type=Path, help="requests.parquet")
    options.add_argument("--transcripts", required=True, nargs="+", help="parquet files with raw samples")
    options.add_argument("--judgements", required=True, nargs="+", help="parquet files to write, in the same order")
    arguments = options.parse_args(argv)
    if len(arguments.transcripts) != len(arguments.judgements):
        raise UserError("--transcripts and --judgements differ in number; give one output a input")
    job = stage.job(arguments)
    settings = job.settings["judge"]
    known = {path.stem: protocols.load(path) for path in arguments.protocols}
    # Steering vectors share their unsteered samples, within a file and across them.
    frames = [
        read_parquet([path], job.upstream).unique("sample", keep="first", maintain_order=True)
        for path in arguments.transcripts
    ]
    columns = ["sample", "request_id", "protocol", "raw", "finish"]
    everything = pl.concat([frame.select(columns) for frame in frames]).unique("sample", maintain_order=True)
    texts = read_parquet([arguments.requests], job.upstream).select("request_id", request="text")
    parsed = parse(everything, known).join(texts, on="request_id", how="left", maintain_order="left")
    ask = subject.messages_ask(arguments, settings)
    judged = judgements(parsed, rubrics.load(arguments.rubrics), settings, ask)
    for frame, target in zip(frames, arguments.judgements, strict=True):
        own = frame.select("sample").join(judged, on="sample", how="left", maintain_order="left")
        write_parquet(own, target, job.fingerprint)
