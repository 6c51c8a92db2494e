"""The cost model: formulas against values computed by hand, and what a user expects of a change of the study."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from perfmis import cost
from perfmis.config import Sdf, Size, Study
from perfmis.cost import Assumptions, Costs, Reading

ASSUMED = Assumptions()
PLAIN = replace(
    ASSUMED,
    matmul_tflops=1000.0,
    share_one=0.5,
    share_node=0.4,
    share_nodes=0.2,
    bandwidth_tbs=4.0,
    share_bandwidth=0.5,
    longest_over_mean=1.0,
    load_gbs=1.0,
    start_minutes=6.0,
    overhead_gib=1.0,
)
BILLION = Size(gpus=1, parameters=1, layers=10, hidden=1000)
ARM = {"model": "llama-3.1-70b", "seed": "0", "arm": "A1+"}
RUN = {"model": "llama-3.1-70b", "seed": "0"}


def sized(size: Size, **changes: Any) -> Size:
    return size.model_copy(update=changes)


def study(**sections: Any) -> Study:
    return Study.model_validate(sections)


def costs(**sections: Any) -> Costs:
    return Costs(study(**sections))


# Training


def test_hours_of_training_by_hand() -> None:
    """4 x 1e9 FLOPs a token, 1e9 tokens, one GPU at half of 1e15 FLOP/s: 8,000 s."""
    assert cost.training_hours(BILLION, 1e9, PLAIN) == pytest.approx(8000 / 3600)


def test_more_gpus_are_faster_but_reach_less_of_their_rate() -> None:
    hours = [cost.training_hours(sized(BILLION, gpus=8, nodes=n), 1e9, PLAIN) for n in (1, 2)]
    assert hours == pytest.approx([4000 / 8 / 0.4 / 3600, 4000 / 16 / 0.2 / 3600])


def test_start_reads_the_weights() -> None:
    """2 GB at 1 GB/s, and six minutes."""
    assert cost.start_hours(BILLION, PLAIN) == pytest.approx(2 / 3600 + 0.1)


def test_tokens_of_a_round() -> None:
    tokens = replace(ASSUMED, document_tokens=100.0)
    assert cost.training_tokens(Sdf(epochs=3), "m", 50, 10, tokens) == 3 * 60 * 100
    assert cost.training_tokens(Sdf(epochs=3, documents=20), "m", 50, 10, tokens) == 3 * 30 * 100
    assert cost.training_tokens(Sdf(documents=80), "m", 50, 0, tokens) == 50 * 100
    assert cost.training_tokens(Sdf(documents={"m": 20, "n": 30}), "n", 50, 0, tokens) == 30 * 100
    assert cost.training_tokens(Sdf(epochs=2, documents=20, loss_tokens=1800), "m", 50, 10, tokens) == 2 * (1800 + 1000)


def test_widths_and_adapter_by_hand() -> None:
    """Built from h = k = 8, f = 32, 2 blocks and 10 entries; rank 2 on in + out of seven products a block."""
    total = 2 * 10 * 8 + 2 * (2 * 8 * 8 + 2 * 8 * 8 + 3 * 8 * 32)
    size, assumed = Size(parameters=total / 1e9, layers=2, hidden=8), replace(ASSUMED, vocabulary=10.0)
    assert cost.intermediate(size, assumed) == pytest.approx(32)
    assert cost.lora_parameters(size, 2, assumed) == pytest.approx(2 * 2 * (4 * 16 + 3 * 40))


@pytest.mark.parametrize(
    ("name", "width", "intermediate", "blocks"),
    [("32b", 5120, 27648, 64), ("70b", 8192, 29568, 80), ("405b", 16384, 53248, 126)],
)
def test_adapters_of_published_shapes(name: str, width: int, intermediate: int, blocks: int) -> None:
    """Qwen2.5-32B, Qwen2.5-72B and Llama-3.1-405B, whose keys and values have 1,024: within 5 %."""
    true = 64 * blocks * (4 * width + 2 * (width + 1024) + 3 * (width + intermediate))
    assert cost.lora_parameters(Study().sizes[name], 64, ASSUMED) == pytest.approx(true, rel=0.05)


def test_memory_of_training_by_hand() -> None:
    sdf, assumed = Sdf(length=100, device_batch=2), replace(PLAIN, vocabulary=1000.0, logit_tokens=50.0)
    one = cost.training_memory(BILLION, sdf, trained=1e6, frozen=2e6, assumed=assumed)
    activations, logits = 200 * 10 * 17 * 1000 * 2, 50 * 1000 * 10
    assert one == pytest.approx((2e9 + 16e6 + 8e6 + activations + logits) / 2**30 + 1)
    four = cost.training_memory(sized(BILLION, gpus=2, nodes=2), sdf, trained=1e6, frozen=2e6, assumed=assumed)
    assert four == pytest.approx(((2e9 + 16e6 + 8e6) / 4 + 2 * 2e9 / 10 + activations + logits) / 2**30 + 1)


@pytest.mark.parametrize(("frozen", "gigabytes"), [("full", 2.0), ("fp8", 2.0), ("4bit", 0.5)])
def test_frozen_weights_by_format(frozen: str, gigabytes: float) -> None:
    memory = [cost.training_memory(sized(BILLION, parameters=n), Sdf(frozen=frozen), 0, 0, PLAIN) for n in (1, 2)]
    assert memory[1] - memory[0] == pytest.approx(gigabytes * 1e9 / 2**30)


def test_checkpointing_takes_less_memory_and_more_hours() -> None:
    plain = sized(Study().sizes["70b"], checkpointing=False)
    recomputed = sized(plain, checkpointing=True)
    memory = [cost.training_memory(size, Sdf(), 1e9, 1e9, ASSUMED) for size in (plain, recomputed)]
    assert memory[1] < 0.7 * memory[0]
    hours = [cost.training_hours(size, 1e7, ASSUMED) for size in (plain, recomputed)]
    assert hours[1] == pytest.approx(1.5 * hours[0])


def test_405b_does_not_fit_eight_gpus_of_80_gib_in_full_precision() -> None:
    """Spread over two nodes it needs far less a GPU, and in 4 bits one node of such GPUs holds it."""

    def peak(frozen: str, nodes: int) -> float:
        sizes: dict[str, Any] = Study().model_dump(include={"sizes"})["sizes"]
        sizes["405b"]["nodes"] = nodes
        section = {"sdf": {"epochs": 3, "frozen": frozen}}
        job = costs(sizes=sizes, arms=section).job("arm_multinode", {**ARM, "model": "llama-3.1-405b"})
        assert (job.nodes, job.gpus) == (nodes, 8)
        assert job.memory_gib is not None
        return job.memory_gib

    assert peak("full", 1) > 120
    assert peak("full", 2) < 90
    assert peak("4bit", 1) < 79


# Asking and reading


def test_hours_of_prompts_and_answers_by_hand() -> None:
    """Prompts: 80 x 100 x 2e9 FLOPs at 5e14 a second. Answers: 2 batches of 50 steps, each 2e9 bytes of weights and
    40 x 125 x 2 x 1000 x 10 x 2 of cache at 2e12 a second."""
    work = Reading(texts=80, prompt_tokens=100, new_tokens=50, most_tokens=400, batch=40, adapter_parameters=0)
    step = (2e9 + 40 * 125 * 40000) / 2e12
    assert cost.reading_hours(BILLION, work, 2, PLAIN) == pytest.approx((80 * 100 * 2e9 / 5e14 + 100 * step) / 3600)


def test_large_batches_are_bound_by_arithmetic() -> None:
    work = Reading(texts=4000, prompt_tokens=1, new_tokens=50, most_tokens=50, batch=4000, adapter_parameters=0)
    step = 2e9 * 4000 / 5e14
    assert cost.reading_hours(BILLION, work, 2, PLAIN) == pytest.approx((4000 * 2e9 / 5e14 + 50 * step) / 3600)


def test_layers_spread_over_gpus_do_not_speed_up_but_tensors_do() -> None:
    def hours(gpus: int, engine: cost.Engine) -> float:
        work = Reading(
            64, prompt_tokens=10, new_tokens=10, most_tokens=10, batch=64, adapter_parameters=0, engine=engine
        )
        return cost.reading_hours(sized(BILLION, gpus=gpus), work, 2, PLAIN)

    assert hours(8, "transformers") == hours(1, "transformers") == hours(1, "vllm")
    assert hours(8, "vllm") == pytest.approx(hours(1, "vllm") / 8)


def test_a_batch_waits_for_its_longest_answer_unless_it_is_refilled() -> None:
    def hours(engine: cost.Engine) -> float:
        work = Reading(
            64, prompt_tokens=1, new_tokens=100, most_tokens=100, batch=8, adapter_parameters=0, engine=engine
        )
        return cost.reading_hours(BILLION, work, 2, replace(PLAIN, longest_over_mean=2.0))

    assert hours("transformers") == pytest.approx(2 * hours("vllm"), rel=0.01)


def test_memory_of_answers_by_hand() -> None:
    """Weights, adapters and the cache of 40 answers of full length are shared by two GPUs."""
    work = Reading(texts=80, prompt_tokens=100, new_tokens=50, most_tokens=400, batch=40, adapter_parameters=1e6)
    cache, block = 40 * 500 * 40000, 40 * 100 * 1000 * 2 * 17
    expected = ((2e9 + 4e6 + cache) / 2 + block) / 2**30 + 1
    assert cost.reading_memory(sized(BILLION, gpus=2), work, 2, PLAIN) == pytest.approx(expected)


def test_numbers_of_texts_are_those_of_the_stages(repository: Path) -> None:
    """The model counts for itself, so as not to import the stages; here the two are compared."""
    from perfmis.beliefs import variants
    from perfmis.corpora import CHUNK
    from perfmis.steering import conditions

    steering = {"alphas": [-1.0, 0.0, 1.0], "controls": 2}
    vectors: Any = {
        f"{concept}.{context}": {} for concept in ("expectation", "consequence") for context in ("in", "out")
    }
    asked = costs(steering={**steering, "requests": 10}).job("steering_transcripts", RUN)
    samples = len(conditions(vectors, steering, 0)) * 10 * 2 * 5
    assert asked.disk_gb == pytest.approx(samples * 0.2 * 4096 * 2 / 1e9)
    items = yaml.safe_load((repository / "resources/beliefs/chat.yaml").read_text())
    assert sum(2 * len(variants(item, items["templates"][item["template"]])) for item in items["items"]) == (
        ASSUMED.belief_texts
    )
    assert CHUNK == cost.WRITER_BATCH


def test_seeds_snippets_and_checkpoints_multiply_samples() -> None:
    """Disk of transcripts is proportional to samples: a tier x seed x request of each checkpoint (and snippet)."""
    sample = 0.2 * 4096 * 2 / 1e9
    small = costs(requests={"number": 100}, prompting={"requests": 10}, steering={"requests": 10})
    assert small.job("screen_transcripts", RUN).disk_gb == pytest.approx(2 * 100 * 2 * 5 * sample)
    assert small.job("transcripts", RUN).disk_gb == pytest.approx(9 * 100 * 2 * 5 * sample)
    assert small.job("prompting_transcripts", RUN).disk_gb == pytest.approx(11 * 9 * 10 * 2 * 5 * sample)
    uncalibrated = costs(prompting={"requests": 10, "calibration": False})
    assert uncalibrated.job("prompting_transcripts", RUN).disk_gb == pytest.approx(2 * 9 * 10 * 2 * 5 * sample)


def test_a_job_that_asks_uses_one_node() -> None:
    job = costs().job("transcripts", {**RUN, "model": "llama-3.1-405b"})
    assert (job.nodes, job.gpus) == (1, 8)
    assert job.gpu_hours == pytest.approx(job.hours * 8)


# Whole studies


def test_replay_and_epochs_lengthen_an_arm() -> None:
    base, replayed = (costs(arms={"replay": replay}).job("arm", ARM) for replay in (0.0, 1.0))
    start = cost.start_hours(Study().sizes["70b"], ASSUMED)
    assert replayed.hours - start == pytest.approx(2 * (base.hours - start))
    organism = costs().job("organism", RUN)
    assert base.hours - start == pytest.approx(3 * (organism.hours - start))


def test_exported_arms_hold_both_ranks_unless_one_adapter_trains_on() -> None:
    organism = costs().job("organism", RUN).disk_gb
    arm = {**ARM, "arm": "N0"}
    disks = {mode: costs(arms={"mode": mode}).job("arm", arm).disk_gb for mode in ("stack", "continue", "merge")}
    assert disks == pytest.approx({"stack": 2 * organism, "continue": organism, "merge": 2 * organism})


def test_a_merged_base_is_stored_once_an_organism() -> None:
    merged = [costs(arms={"mode": "merge"}).job("arm", {**ARM, "arm": arm}) for arm in ("A1+", "A1-", "N0")]
    assert merged[0].disk_gb - merged[1].disk_gb == pytest.approx(2 * 72.7)
    assert merged[2].disk_gb == merged[1].disk_gb
    assert merged[0].hours > costs().job("arm", ARM).hours


def test_weights_are_fetched_and_stored_once_per_revision() -> None:
    models: dict[str, Any] = Study().model_dump(include={"models"})["models"]
    twice = {"first": models["qwen-2.5-72b"], "second": models["qwen-2.5-72b"], "other": models["qwq-32b"]}
    planned = costs(models=twice, screen={"keep": "auto"}, steering={"models": None})
    disks = [planned.job("hub_model", {"model": model}).disk_gb for model in twice]
    assert disks == pytest.approx([2 * 72.7, 0, 2 * 32.8])


def test_weights_of_a_writer_that_is_no_subject_count_once() -> None:
    others = {"qwq-32b": Study().models["qwq-32b"].model_dump()}
    planned = costs(models=others, screen={"keep": "auto"}, steering={"models": None})
    first, second = (planned.job("corpus", {"corpus": corpus}).disk_gb for corpus in ("organism", "A1+"))
    assert first - second == pytest.approx(2 * 72.7)
    assert costs().job("corpus", {"corpus": "organism"}).disk_gb == pytest.approx(second)


def test_models_on_the_cpu_take_no_gpu() -> None:
    tiny = {"m": {"truth": "both", "size": "tiny"}}
    plain = {"sdf": {"attention": "sdpa"}}
    planned = costs(
        models=tiny, tiny={}, organisms=plain, arms=plain, screen={"keep": "auto"}, steering={"models": None}
    )
    for rule, wildcards in (("organism", {"model": "m", "seed": "0"}), ("beliefs", {"model": "m", "seed": "0"})):
        job = planned.job(rule, wildcards)
        assert (job.gpus, job.gpu_hours, job.memory_gib) == (0, 0, None)


# Assumptions


def test_an_assumption_is_replaced_and_the_others_stay() -> None:
    changed = ASSUMED.replaced("gpu_memory_gib", "79")
    assert changed == replace(ASSUMED, gpu_memory_gib=79.0)
    assert ASSUMED.replaced("load_gbs", "5").load_gbs == 5


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("gpu_memory", "79", "known are gpu_memory_gib"),
        ("start_minutes", "soon", "a number above 0"),
        ("share_one", "0", "a number above 0"),
        ("share_one", "nan", "a number above 0"),
    ],
)
def test_assumptions_that_make_no_sense_are_refused(key: str, value: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ASSUMED.replaced(key, value)


def test_every_assumption_says_what_it_is() -> None:
    assert all(each.metadata["meaning"] for each, _ in ASSUMED)
