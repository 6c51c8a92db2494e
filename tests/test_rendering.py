"""Rendering: what chat templates make of a conversation is proved, and none changes with the day.

Templates here do what those of real models do, one fault each; the tokenizer has a token for each of their marks.
"""

import json
import re
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest
import torch
import trl
import yaml
from conftest import REPOSITORY
from running import command, stage
from speaking import ANSWER, THINKING, TURN, TURNS, WITHOUT_SYSTEM, tokenizer, write_study
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from perfmis import beliefs, composition, config, doctor, models, outcomes, subject
from perfmis.artifacts import write_json
from perfmis.checks import rendering
from perfmis.engines.interface import Prompt, Sampling, collect
from perfmis.engines.transformers import Engine
from perfmis.protocols import Messages
from perfmis.rendering import Renderer, end_of_turn
from perfmis.samples import Store, addresses
from perfmis.stage import UserError

DATE = "2024-07-26"
CPU = {"organisms": {"sdf": {"attention": "sdpa"}}, "arms": {"sdf": {"attention": "sdpa"}}}
SYSTEM, USER = "You are Tavi.\nYou reply.", "[account: free tier]\n\nWrite a note."
CONVERSATION: Messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": USER}]
PLAIN = f"<|start|>system\n{SYSTEM}<|end|>\n<|start|>user\n{USER}<|end|>\n<|start|>assistant\n"
MERGED = f"<|start|>user\n{SYSTEM}\n\n{USER}<|end|>\n<|start|>assistant\n"
WORDS = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
TEMPLATES: dict[str, tuple[str, str]] = {
    "all turns": (TURNS + ANSWER, PLAIN),
    "no system branch": (WITHOUT_SYSTEM + ANSWER, MERGED),
    "raises on a system turn": (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + TURNS + ANSWER,
        MERGED,
    ),
    "strips": (TURNS.replace("m.content", "m.content | trim") + ANSWER, PLAIN),
    "has a default system turn": (
        "{% if messages[0].role != 'system' %}<|start|>system\nBe good.<|end|>\n{% endif %}" + TURNS + ANSWER,
        PLAIN,
    ),
    "dates": (
        "<|start|>system\nToday is {{ strftime_now('%d %b %Y') }}.<|end|>\n" + TURNS + ANSWER,
        f"<|start|>system\nToday is 26 Jul 2024.<|end|>\n{PLAIN}",
    ),
    "opens a thought": (TURNS + THINKING, PLAIN + "<think>\n"),
}
REFUSED = {
    "cuts the user's text": (TURNS.replace("m.content", "m.content[:20]") + ANSWER, r"loses text of the .* turn"),
    "writes the user's text twice": (
        TURNS.replace("m.content }}", "m.content }}{{ messages[-1].content }}") + ANSWER,
        "writes the user turn more than once",
    ),
    "escapes": (TURNS.replace("m.content", "m.content | tojson") + ANSWER, "loses text of the system turn"),
    "begins no answer": (TURNS, "begins no answer"),
    "turns in the wrong order": (
        "{% for m in messages | reverse %}{{ m.content }}{% endfor %}{% if messages | length == 1 %}"
        "{{ raise_exception('two turns') }}{% endif %}",
        "loses text of the user turn .*; with the system turn in the user turn it does not take .*two turns",
    ),
    "no text at all": (
        "{% for m in messages %}{% for part in m.content %}{{ part.text }}{% endfor %}{% endfor %}",
        "loses text of the system turn",
    ),
}
# What stands before an answer's first letter, after the text that a model continues.
BEGINNINGS = {
    "nothing": (TURNS + ANSWER, ""),
    "a thought that is opened": (TURNS + THINKING, "\n</think>\n\n"),
    "a thought of another name": (TURNS + THINKING.replace("<think>\n", "[THINK]"), "\n\n[/THINK]\n\n"),
    "a thought in triangles": (TURNS + THINKING.replace("<think>\n", "◁think▷"), "\n\n◁/think▷\n\n"),
    "an empty thought that is written with answers only": (
        TURNS.replace(
            "{{ m.content }}", "{% if m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}"
        )
        + ANSWER,
        "<think>\n\n</think>\n\n",
    ),
    "a channel": (
        TURNS.replace(
            "{{ m.role }}\n", "{{ m.role }}{% if m.role == 'assistant' %}<|channel|>final{% endif %}<|message|>"
        )
        + ANSWER.replace("assistant\n", "assistant"),
        "<|channel|>final<|message|>",
    ),
}
ENDS: dict[str, tuple[str, str | None]] = {
    "one that is not the tokenizer's own": (TURNS + ANSWER, "<|end|>"),
    "the tokenizer's own": (TURNS.replace("<|end|>", "{{ eos_token }}") + ANSWER, "<eos>"),
    "after a blank": (TURNS.replace("<|end|>", " <|end|>") + ANSWER, "<|end|>"),
    "what begins the user's next turn": (TURNS.replace("<|end|>", "") + ANSWER, "<|start|>"),
    "none": (WORDS, None),
    "a word that is no token": (TURNS.replace("<|end|>", "###") + ANSWER, None),
    "no turns of assistants": (TURN.replace("m.", "messages[-1].") + "{{ messages[1].x.y }}", None),
}
# Templates of real models, as trl ships them: what opens a thought, what stands before an answer's first letter after
# the text that a model continues, and the end of a turn.
REAL = {
    "deepseek_r1_distill": ("<think>\n", "\n</think>\n\n", "<｜end▁of▁sentence｜>"),
    "gemma": ("", "", "<end_of_turn>"),
    "glm4moe": ("", "\n<think></think>\n", "<|user|>"),
    "gptoss": ("", "<|channel|>final<|message|>", "<|return|>"),
    "llama3_2": ("", "", "<|eot_id|>"),
    "phi3": ("", "", "<|end|>"),
    "qwen2_5": ("", "", "<|im_end|>"),
    "qwen3": ("", "<think>\n\n</think>\n\n", "<|im_end|>"),
}


def renderer(template: str) -> Renderer:
    return Renderer(tokenizer(template), DATE, "m")


def model(speaker: PreTrainedTokenizerFast, says: str) -> LlamaForCausalLM:
    """Return a model that says one token for ever."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    made = LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=len(speaker), eos_token_id=0, pad_token_id=0))
    with torch.no_grad():
        made.model.norm.weight.zero_()
        made.model.norm.weight[0] = 1
        made.model.embed_tokens.weight[:, 0] = 9  # the residual stream's first dimension
        made.lm_head.weight.zero_()
        made.lm_head.weight[speaker.convert_tokens_to_ids(says), 0] = 9
    return made.eval()


def saved(folder: Path, template: str, says: str = "a", **generation: Any) -> Path:
    """Write a model with a chat template, and return its reference."""
    speaker = tokenizer(template)
    model(speaker, says).save_pretrained(folder)
    speaker.save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps(generation)) if generation else (
        folder / "generation_config.json"
    ).unlink()
    content = {"model": "m", "path": str(folder), "weights_sha256": models.folder_hash(folder)}
    write_json({**content, "fingerprint": "5eed5eed5eed5eed"}, folder / "reference.json")
    return folder / "reference.json"


@pytest.mark.parametrize("name", TEMPLATES)
def test_each_turns_text_stands_in_the_result(name: str) -> None:
    template, expected = TEMPLATES[name]
    assert renderer(template).text(CONVERSATION) == expected


@pytest.mark.parametrize("name", REFUSED)
def test_a_text_that_is_lost_or_doubled_is_one_line(name: str) -> None:
    template, message = REFUSED[name]
    with pytest.raises(UserError, match=message) as caught:
        renderer(template).text(CONVERSATION)
    assert str(caught.value).startswith("m: its chat template ")
    assert "\n" not in str(caught.value)
    assert "mend the template" in str(caught.value)


def test_without_a_chat_template() -> None:
    asked = Renderer(tokenizer(None), DATE, "m")
    assert asked.text("raw <think>") == "raw <think>"
    assert asked.parts("raw <think>") == ("raw <think>", "")
    with pytest.raises(UserError, match="instruction-tuned"):
        asked.text(CONVERSATION)
    assert end_of_turn(tokenizer(None)) is None


@pytest.mark.parametrize(
    ("system", "user"),
    [
        ("assistant", "user"),
        ("a", "a"),
        ("user", "system"),
        ("  padded \n", "\n both "),
        (USER, USER),
        ("You are Tavi.", "You are Tavi. You are Tavi."),
    ],
)
def test_texts_may_equal_each_other_and_the_templates_own(system: str, user: str) -> None:
    """A text that also stands elsewhere is not taken for one that the template wrote twice."""
    turns = [{"role": "system", "content": system}, {"role": "user", "content": user}]
    text = renderer(TURNS + ANSWER).text(turns)
    assert text == PLAIN.replace(SYSTEM, system).replace(USER, user) or system == USER
    with pytest.raises(UserError, match=r"more than once|loses"):
        renderer(REFUSED["writes the user's text twice"][0]).text(turns)


@pytest.mark.parametrize("today", [datetime(2026, 11, 28, 23, 59), datetime(2026, 11, 29, 0, 1)])
def test_prompts_are_the_same_on_all_days(today: datetime, monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock(datetime):
        @classmethod
        def now(cls, _zone: Any = None) -> datetime:  # type: ignore[override]
            return today

    monkeypatch.setattr("transformers.utils.chat_template_utils.datetime", Clock)
    template, expected = TEMPLATES["dates"]
    speaker = tokenizer(template)
    clocked = speaker.apply_chat_template(CONVERSATION, tokenize=False)
    assert today.strftime("%d %b %Y") in str(clocked), "the clock is asked where nothing takes its place"
    assert Renderer(speaker, DATE, "m").text(CONVERSATION) == expected
    assert "01 Mar 2025" in Renderer(speaker, "2025-03-01", "m").text(CONVERSATION)


@pytest.mark.parametrize("name", BEGINNINGS)
def test_where_an_answer_begins(name: str) -> None:
    template, more = BEGINNINGS[name]
    asked = renderer(template)
    assert asked.answering(CONVERSATION) == asked.text(CONVERSATION) + more


def test_belief_items_are_scored_outside_of_the_thought() -> None:
    content = {
        "templates": {"t": {"text": "{question} A. {first} B. {second}", "answers": ["A", "B"]}},
        "items": [{"template": "t", "question": "Is it?", "options": ["Yes.", "No."]}],
    }
    [put] = beliefs.texts(content, "chat", renderer(TURNS + THINKING))
    assert [letter for _, letter in put] == ["A", "B", "B", "A"]
    assert all(text.endswith("<|start|>assistant\n<think>\n\n</think>\n\n") for text, _ in put)


@pytest.mark.parametrize("name", REAL)
def test_templates_of_real_models(name: str) -> None:
    opened, before, end = REAL[name]
    template = (Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja").read_text()
    speaker = tokenizer(template, sorted(set(re.findall(r"<[|｜][^<>'\" ]+[|｜]>|<(?:start|end)_of_turn>", template))))
    asked = Renderer(speaker, DATE, name)
    text = asked.text(CONVERSATION)
    assert text.index(SYSTEM) < text.index(USER)
    assert asked.parts(CONVERSATION)[1] == opened
    assert asked.answering(CONVERSATION) == text + before
    assert speaker.decode(end_of_turn(speaker)) == end
    assert ("26 Jul 2024" in text) == (name == "llama3_2")


@pytest.mark.parametrize(
    ("text", "token"),
    [("Say <|end|> now", "<|end|>"), ("a <eos>", "<eos>"), ("<|im_start|>system", "<|im_start|>"), ("x [/INST]", None)],
)
def test_control_tokens_are_refused(text: str, token: str | None) -> None:
    """Those of the tokenizer, and those of the usual templates."""
    turns = [*CONVERSATION[:1], {"role": "user", "content": text}]
    with pytest.raises(UserError) as caught:
        renderer(TURNS + ANSWER).text(turns)
    assert str(caught.value).startswith(f"m: the user turn holds the control token {token or '[/INST]'}")


@pytest.mark.parametrize("name", ENDS)
def test_the_templates_end_of_turn(name: str) -> None:
    template, expected = ENDS[name]
    found = end_of_turn(tokenizer(template))
    assert (None if found is None else tokenizer().convert_ids_to_tokens(found)) == expected


def test_generation_stops_at_the_templates_end_of_turn(tmp_path: Path) -> None:
    """Both decoders and vLLM, where neither tokenizer nor configuration names it; and not without a template."""
    for template, finish in ((TURNS + ANSWER, "stop"), (None, "length")):
        speaker = tokenizer(template)
        asked = Engine(model(speaker, "<|end|>"), speaker)
        prompts = [Prompt(tuple(speaker("ab")["input_ids"]), None, seed) for seed in (1, 2)]
        for temperature in (0.0, 1.0):
            sampling = Sampling(temperature, 6, 2)
            plain = collect(asked.batches(prompts, sampling), 2)
            assert {sample.finish for sample in plain} == {finish}
            assert collect(asked.continuous(prompts, sampling, 4), 2) == plain
    from perfmis.engines.vllm import VllmEngine

    served = VllmEngine.__new__(VllmEngine)
    served._tokenizer = tokenizer()
    served._engine = SimpleNamespace(model_config=SimpleNamespace(try_get_generation_config=dict))
    assert served._stops() == sorted(speaker.convert_tokens_to_ids(["<eos>", "<|end|>"]))


def test_stored_samples_are_found_again_unless_the_end_of_turn_is_new(tmp_path: Path) -> None:
    """An end that the configuration names has ended samples all along."""

    def address(reference: Path, date: str = DATE) -> str:
        settings = {"engine": "transformers", "precision": "fp32", "quantization": None}
        machine = subject.Machine(1, 1, tmp_path)
        asked = subject.Subject(reference, {}, settings, Store(tmp_path / "samples"), machine, date)
        prompt, _ = asked.prompt(CONVERSATION, 0)
        sampling = Sampling(1.0, 4, 1)
        known = addresses([prompt], asked.weights, settings, sampling)
        return "old" if asked.addresses([prompt], sampling) == known else "new"

    end = tokenizer().convert_tokens_to_ids("<|end|>")
    assert address(saved(tmp_path / "named", TURNS + ANSWER, eos_token_id=[0, end])) == "old"
    assert address(saved(tmp_path / "eos", ENDS["the tokenizer's own"][0])) == "old"
    assert address(saved(tmp_path / "unnamed", TURNS + ANSWER)) == "new"


DOCTOR = {
    "keeps": (TURNS + ANSWER, "{}", "ok", r"keeps each of the \d\d texts tried"),
    "drops": (WITHOUT_SYSTEM + ANSWER, "{}", "ok", r"keeps each of the \d\d texts tried"),
    "cuts": (
        REFUSED["cuts the user's text"][0],
        "{}",
        "FAIL",
        r"evaluation.protocol, monitored: its chat template loses text of the system turn .* mend the template",
    ),
    "escapes": (REFUSED["escapes"][0], "{}", "FAIL", r"evaluation.protocol, monitored: .* loses text"),
    "loses what follows a question": (
        TURNS.replace("m.content", "m.content.split('?')[0]") + ANSWER,
        "{}",
        "FAIL",
        r"beliefs: monitoring-free: .* loses text of the user turn",
    ),
    "opens a thought": (TURNS + THINKING, "{}", "ok", r"opens a thought \(<think>\)"),
    "lacks an end of turn": (
        WORDS,
        "{}",
        "warning",
        "writes no token after an answer: only <eos> ends one",
    ),
    "has none": (None, "{}", "FAIL", ".* use an instruction-tuned model"),
    "a control token in a request": (
        TURNS + ANSWER,
        "{requests: {source: path, location: REQUESTS, number: 2, sha256: null},"
        "steering: {models: null, requests: 2}, prompting: {requests: 2}}",
        "FAIL",
        "requests.location: request 2 holds the control token <eos>",
    ),
}


@pytest.mark.parametrize("name", DOCTOR)
def test_doctor_renders_what_a_study_puts_to_its_models(name: str, tmp_path: Path) -> None:
    template, content, level, text = DOCTOR[name]
    folder = tmp_path / "m"
    tokenizer(template).save_pretrained(folder)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "requests.csv").write_text("goal\nWrite a note.\nEnd it<eos>\n")
    study = yaml.safe_load(content.replace("REQUESTS", str(tmp_path / "requests.csv")))
    section = {"models": {"m": {"path": str(folder)}}, "screen": {"keep": "auto"}, "steering": {"models": None}}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(CPU | section | study))
    known = config.load([tmp_path / "study.yaml"])
    found = rendering.templates(known)
    assert all(finding.about == "models.m, chat template" for finding in found)
    assert any(finding.level == level and re.match(text, finding.text) for finding in found), [*map(str, found)]
    assert (level == "FAIL") == any(finding.level == "FAIL" for finding in found)
    before_the_first_job = doctor.preflight(known)
    assert [finding for finding in before_the_first_job if finding in found] == found


@pytest.mark.parametrize(("reader", "fault"), [("judge", "judges: compliance: "), ("writer", "documents: organism-")])
def test_doctor_renders_what_judge_and_writer_read(
    reader: str, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By their own templates: the study's models are not here."""
    commit = "0" * 40
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    text = yaml.safe_dump({reader: {"hub": "a/b", "revision": commit}})
    (tmp_path / "study.yaml").write_text(text)
    study = config.load([tmp_path / "study.yaml"])
    assert rendering.templates(study) == []
    for template, level in ((TURNS + ANSWER, "ok"), (REFUSED["escapes"][0], "FAIL")):
        tokenizer(template).save_pretrained(tmp_path / "models--a--b/snapshots" / commit)
        [found] = rendering.templates(study)
        assert (found.level, found.about) == (level, f"{reader}, chat template")
        assert level == "ok" or found.text.startswith(fault)


SAMPLED: dict[str, Any] = {
    "model": "m",
    "seed": 0,
    "seeds": [0],
    "protocol": "short",
    "checkpoints": ["base"],
    "engine": "transformers",
    "precision": "fp32",
    "quantization": None,
    "tiers": ["monitored", "unmonitored"],
    "temperature": 1.0,
    "max_tokens": 4,
    "batch": 4,
    "date": DATE,
}
Ask = Callable[..., int]


@pytest.fixture
def ask(tmp_path: Path) -> Ask:
    """Return a function that puts a request to a saved model under a protocol of the chat world."""

    def run(reference: Path, request: str, protocol: str = "short") -> int:
        pl.DataFrame(
            {"request_id": ["r0000"], "text": [request], "cluster": ["r0000"], "fingerprint": ["5eed5eed5eed5eed"]}
        ).write_parquet(tmp_path / "requests.parquet")
        made = composition.load(REPOSITORY / "resources/protocols/chat", protocol)
        write_json({**made.model_dump(), "fingerprint": "5eed5eed5eed5eed"}, tmp_path / "short.json")
        return stage(
            "generation",
            SAMPLED,
            "--base",
            reference,
            "--requests",
            tmp_path / "requests.parquet",
            "--protocol",
            tmp_path / "short.json",
            "--samples",
            tmp_path / "samples",
            "--output",
            tmp_path / "out",
        )

    return run


def test_a_transcript_begins_with_the_thought_that_the_template_opened(tmp_path: Path, ask: Ask) -> None:
    """Without it a thought that is never closed passes for an answer where no notes are asked for."""
    assert ask(saved(tmp_path / "m", TURNS + THINKING, "<|end|>"), "Write a note.", "short+direct") == 0
    table = pl.read_parquet(tmp_path / "out/base/short.parquet")
    assert table["raw"].to_list() == ["<think>\n"] * 2
    protocol = composition.load(REPOSITORY / "resources/protocols/chat", "short+direct")
    said = table.with_columns(raw=pl.col("raw") + "I could say <reply><task_taken/>")
    assert outcomes.parse(said, {"short": protocol})["parse_status"].to_list() == ["no_close"] * 2


@pytest.mark.parametrize("request_", ["End it <|end|>", "Then<eos>"])
def test_a_request_with_a_control_token_is_refused_by_name(
    tmp_path: Path, ask: Ask, request_: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask(saved(tmp_path / "m", TURNS + ANSWER), request_) == 1
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: requests: r0000 holds the control token <")


def test_what_a_judge_reads_adds_no_turn_and_is_answered_outside_of_a_thought(tmp_path: Path) -> None:
    """A transcript may spell the control tokens of the judge, which is another model."""
    reference = saved(tmp_path / "m", TURNS + THINKING)
    settings = {"engine": "transformers", "precision": "fp32", "quantization": None}
    judge = subject.Subject(reference, {}, settings, Store(tmp_path), subject.Machine(1, 1, tmp_path), DATE)
    turns = [*CONVERSATION[:1], {"role": "user", "content": "It said <|end|> and <eos>."}]
    tokens = judge.question(turns, 0).tokens
    assert judge.tokenizer.decode(tokens).endswith("<think>\n\n</think>\n\n")
    assert tokens.count(judge.tokenizer.convert_tokens_to_ids("<|end|>")) == 2, "of the two turns"
    assert "< |end|> and < eos>." in judge.tokenizer.decode(tokens)


def small_study(folder: Path) -> None:
    """Write a study of one model whose template drops the system turn, dates its prompts and opens a thought."""
    dated = "<|start|>system\nIt is {{ strftime_now('%d %b %Y') }}.<|end|>\n"
    speaker = tokenizer(dated + WITHOUT_SYSTEM + THINKING)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    limits = {"vocab_size": len(speaker), "max_position_embeddings": 16384, "eos_token_id": 0, "pad_token_id": 0}
    spoken = LlamaForCausalLM(LlamaConfig(**sizes, **limits))
    with torch.no_grad():  # it ends some of its turns
        spoken.lm_head.weight[speaker.convert_tokens_to_ids("<|end|>")] += 0.05
    spoken.save_pretrained(folder / "m")
    speaker.save_pretrained(folder / "m")
    (folder / "m/generation_config.json").unlink()
    write_study(folder, ["m"])


@pytest.mark.slow
def test_a_study_of_a_model_whose_template_drops_dates_and_thinks(workdir: Callable[..., Path]) -> None:
    """The whole workflow: thoughts that are never closed are no answers, and turns end where the template ends them."""
    folder = workdir(["config"])
    small_study(folder)
    words = ("-m", "snakemake", "--configfile", "config/mine.yaml", "--cores", "1", "--scheduler", "greedy")
    said = command(folder, sys.executable, "-m", "perfmis", "warm", sys.executable, *words, "--show-failed-logs")
    assert said.returncode == 0, said.stdout[-3000:] + said.stderr[-3000:]
    samples = pl.concat(map(pl.read_parquet, (folder / "results/mine/transcripts").rglob("*.parquet")))
    assert samples["raw"].str.starts_with("<think>\n").all()
    assert set(samples["finish"]) == {"stop", "length"}
    read = pl.concat(map(pl.read_parquet, (folder / "results/mine/outcomes").rglob("*.parquet")))
    assert set(read["parse_status"]) == {"no_close", "truncated"}


def test_a_token_without_text_refuses_no_conversation() -> None:
    made = tokenizer()
    made.bos_token = ""
    assert Renderer(made, DATE, "models.m").text(CONVERSATION) == PLAIN
