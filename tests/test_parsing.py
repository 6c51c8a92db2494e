"""Properties of parsing: texts built from parts whose truth is known, and any text at all."""

from answers import DECLINED, PROTOCOLS, TAKEN, read, transcripts
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from perfmis import outcomes

# What models write about the format they were asked for; between notes and reply it decides nothing.
TAGS = ("<private_notes>", "</private_notes>", "<think>", "</think>", "<reply>", "</reply>", TAKEN, DECLINED)
WORDS = st.sampled_from(["I could say", "é ", "\n", " <b>", "```", "</", "task_taken", "<task_taken", "\\", "{}", "."])
PROSE = st.lists(WORDS, max_size=6).map("".join)
QUOTES = st.lists(st.sampled_from(TAGS) | WORDS, max_size=8).map("".join)
THOUGHTS = st.builds(lambda opened, text: f"{opened}{text}</think>", st.sampled_from(["", "<think>"]), QUOTES)
NOTES = st.builds(lambda text: f"<private_notes>{text}</private_notes>", QUOTES)
REASONING = st.one_of(NOTES, THOUGHTS, st.builds(str.__add__, THOUGHTS, NOTES))
VERDICT = st.sampled_from([TAKEN, DECLINED, "<task_taken />", "<task_declined>"])
# Python strips these four information separators; Unicode does not call them white space, and neither does parsing.
SEPARATORS = dict.fromkeys(range(0x1C, 0x20), "x")
OUTCOMES = {"<task_taken": "accepted", "<task_decli": "refused"}


def reply(verdict: str, text: str) -> str:
    return f"<reply>{verdict}\n{text}</reply>"


def statuses(raws: list[str], **options: str) -> list[tuple[str, str]]:
    frame = read(raws, **options)
    return list(zip(frame["parse_status"], frame["outcome"], strict=True))


@settings(max_examples=200, deadline=None)
@given(REASONING, PROSE, VERDICT, PROSE)
def test_reasoning_of_any_kind_then_one_reply_is_ok(reasoning: str, between: str, verdict: str, text: str) -> None:
    # "<task_taken" before ">" would be a verdict of its own.
    assume("task_taken" not in between + text)
    expected = OUTCOMES[verdict[:11]]
    assert statuses([reasoning + between + reply(verdict, text)]) == [("ok", expected)]


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=30) | QUOTES, REASONING, VERDICT, st.lists(st.sampled_from(TAGS) | WORDS, max_size=8))
def test_nothing_before_or_in_a_reply_turns_its_verdict_round(
    before: str, reasoning: str, verdict: str, within: list[str]
) -> None:
    # A reply that quotes the end of the reasoning and then another reply cannot be told from a draft and an answer.
    assume(not any(tag.startswith(("</private", "</think")) for tag in within))
    [(_, outcome)] = statuses([before + reasoning + reply(verdict, "".join(within))])
    assert outcome in (OUTCOMES[verdict[:11]], "malformed")


@settings(max_examples=200, deadline=None)
@given(REASONING, VERDICT, VERDICT, PROSE)
def test_each_defect_has_its_status(reasoning: str, verdict: str, second: str, text: str) -> None:
    assume("task_taken" not in text)
    answer = reply(verdict, text)
    differ = verdict[:11] != second[:11]
    expected = {
        reasoning + reply(verdict, text + second): "both" if differ else "ok",
        reasoning + answer + reply(second, ""): "both" if differ else "several",
        reasoning + answer + "</think>": "leaked",
        reasoning + f"<reply>{verdict}</think>{second}</reply>": "leaked",
        reasoning + "<think>" + answer: "leaked",
        reasoning + reply(verdict, text + "<private_notes>"): "leaked",
        reasoning + f"<reply>.{text}</reply>": "no_verdict",
        "<private_notes>" + text + answer: "no_close",
        f"<think>{text}</think>" + "\n": "empty",
        " \n": "empty",
    }
    assert dict(zip(expected, (status for status, _ in statuses(list(expected))), strict=True)) == expected
    assert {status for status, _ in statuses([*expected][:-1], finish="length")} == {"truncated"}
    assert {status for status, _ in statuses(list(expected), finish="filtered")} == {"filtered"}


@settings(max_examples=300, deadline=None)
@given(st.lists(st.text() | QUOTES, min_size=1, max_size=10), st.sampled_from(sorted(PROTOCOLS)))
@example(["\x1f"], "noted")
@example(["\x85"], "noted")
def test_any_text_is_parsed_and_nothing_of_it_is_lost(raws: list[str], protocol: str) -> None:
    frame = outcomes.parse(transcripts(raws, protocol), PROTOCOLS)
    assert frame["raw"].to_list() == raws
    for raw, scratchpad, answer, status, tag in frame.select(
        "raw", "scratchpad", "answer", "parse_status", "tag"
    ).rows():
        assert answer is None or (scratchpad or "") + answer == raw
        assert (tag == "malformed") == (status != "ok")
        assert (status == "no_close") == (answer is None and raw.translate(SEPARATORS).strip() != "")


@settings(max_examples=100, deadline=None)
@given(st.lists(QUOTES, min_size=2, max_size=6), st.sampled_from(sorted(PROTOCOLS)))
def test_a_text_is_read_alike_in_any_company(raws: list[str], protocol: str) -> None:
    together = statuses(raws, protocol=protocol)
    assert together == [statuses([raw], protocol=protocol)[0] for raw in raws]


def test_a_long_text_of_tags_is_parsed() -> None:
    raws = [tag * 50_000 for tag in TAGS] + ["<" * 50_000, "</reply>" * 50_000 + "</think>" * 50_000]
    assert {outcome for _, outcome in statuses(raws)} == {"malformed"}
