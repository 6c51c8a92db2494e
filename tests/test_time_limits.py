"""Time limits: hours of the configuration become whole minutes, rounded up, in every job that asks for them."""

from collections.abc import Callable
from pathlib import Path

import pytest
from asked import asked
from test_config import COMMIT

from perfmis import config

TRAINED = {"organism", "organism_multinode", "arm", "arm_multinode"}
ASKING = {
    "corpus",
    "screen_transcripts",
    "transcripts",
    "beliefs",
    "vectors",
    "steering_transcripts",
    "prompting_transcripts",
    "screen_judgements",
    "judgements",
    "validation",
}


@pytest.mark.parametrize(
    ("hours", "minutes"),
    [
        (1, 60),
        (2.5 / 60, 3),
        (0.004, 1),
        (1e-9, 1),
        (59 / 60, 59),
        (1.1, 66),
        (0.1, 6),
        (1 / 3, 20),
        (7.001, 421),
        (72, 4320),
    ],
)
def test_hours_become_whole_minutes(hours: float, minutes: int) -> None:
    size = config.Size(train_hours=hours, generate_hours=hours)
    assert (size.train_minutes, size.generate_minutes) == (minutes, minutes)


def test_no_job_of_a_model_is_sent_without_a_limit(workdir: Callable[..., Path]) -> None:
    """To Slurm no minutes are no limit, so the job would get the partition's longest."""
    limits = "{train_hours: 0.004, generate_hours: 0.0401"
    study = f"""
judge: {{hub: a/b, revision: {COMMIT}}}
sizes:
  tiny: {limits}}}
  32b: {limits}, gpus: 4}}
  70b: {limits}, gpus: 8}}
  405b: {limits}, gpus: 8, nodes: 2}}
"""
    found = asked(workdir(), "slurm", study=study)
    minutes = {rule: {job["runtime"] for job in jobs} for rule, jobs in found.items()}
    assert {rule: minutes[rule] for rule in TRAINED} == {rule: {"1"} for rule in TRAINED}
    assert {rule: minutes.get(rule) for rule in ASKING} == {rule: {"3"} for rule in ASKING}
    assert all("0" not in limits for limits in minutes.values())
