"""The transcript page, in a real browser: what is shown, what stays hidden, and that no text of a model can act."""

import base64
import csv
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import browser
import polars as pl
import pytest
import running
import transcribed
from hypothesis import given, settings
from hypothesis import strategies as st
from transcribed import HOPE, HOSTILE, NOTES, POLES

from perfmis import audit_sample, outcomes, rubrics
from perfmis.__main__ import run
from perfmis.outcomes import READINGS
from perfmis.viewer import page as viewer
from perfmis.viewer.data import limited
from perfmis.viewer.marks import marks

chromium = pytest.mark.skipif(browser.CHROMIUM is None, reason="no Chromium on the path")
SHOWN = "document.querySelector('pre.text') !== null"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Root of a small study."""
    return transcribed.write(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def html(root: Path) -> str:
    """The page of the study."""
    frame = transcribed.frame(root)
    reader = viewer.Reader(transcribed.texts(root), POLES, "Study <1> & </title>")
    return reader.page(frame, frame["request_id"])


@pytest.fixture(scope="module")
def file(html: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """File of the page."""
    path = tmp_path_factory.mktemp("page") / "transcripts.html"
    path.write_text(html)
    return path


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Page]:
    """A tab for all tests."""
    with browser.page(tmp_path_factory.mktemp("profile")) as tab:
        yield tab


@pytest.fixture
def tab(window: browser.Page, file: Path) -> Iterator[browser.Page]:
    """The tab with the page freshly opened; nothing may have gone wrong at the end."""
    window.open(file.as_uri())
    window.run("localStorage.clear()")
    window.open(file.as_uri())
    yield window
    assert window.errors == []
    assert window.requests == []


def choose(tab: browser.Page, name: str, value: str) -> None:
    """Set a filter."""
    tab.run(f"""{{ const select = document.querySelector("#filter-{name}");
        select.selectedIndex = [...select.options].findIndex((one, i) => i && one.text === {json.dumps(value)});
        select.dispatchEvent(new Event("change")); }}""")


def pairs(tab: browser.Page) -> int:
    """Return how many pairs the list has."""
    return int(str(tab.run("document.querySelector('#count').textContent")).split(" ")[0].replace(",", ""))


def open_sample(tab: browser.Page, file: Path, frame: pl.DataFrame, reveal: bool = True) -> None:
    """Open the page at the first of some samples."""
    tab.open(f"{file.as_uri()}#sample={frame['sample'][0]}")
    if reveal:
        tab.run("document.querySelector('#reveal').click()")
        tab.wait(SHOWN)


def some(root: Path, request: str, checkpoint: str = "A1+", tier: str = "monitored") -> pl.DataFrame:
    """Return the samples of a request."""
    kept = (pl.col("request_id") == request) & (pl.col("checkpoint") == checkpoint) & (pl.col("tier") == tier)
    return transcribed.frame(root).filter(kept, pl.col("kind") == "transcripts").sort("eval_seed")


@chromium
def test_it_opens_offline_with_all_pairs(tab: browser.Page, root: Path) -> None:
    assert pairs(tab) == transcribed.frame(root).filter(pl.col("tier") == "monitored").height
    assert tab.run("document.title") == "Study <1> & </title>"
    assert tab.run("document.querySelector('h1').textContent") == "Study <1> & </title>"


def test_it_names_no_address_and_holds_no_text_in_the_clear(html: str) -> None:
    assert not re.search(r"https?://|//\w+\.\w+/", html)
    assert HOPE not in html
    assert "describe subject" not in html
    assert html.count("</script>") == html.count("<script")


@chromium
def test_tiers_of_a_pair_stand_side_by_side(tab: browser.Page, root: Path, file: Path) -> None:
    tab.resize(1600, 900)
    open_sample(tab, file, some(root, "r0"))
    boxes = tab.run("""[...document.querySelectorAll(".card")].map((card) => {
        const box = card.getBoundingClientRect();
        return [card.getAttribute("aria-label"), box.left, box.top, card.querySelector(".badge").textContent]; })""")
    assert [box[0] for box in boxes] == ["monitored tier", "unmonitored tier", "rated tier"]
    assert boxes[0][1] < boxes[1][1] < boxes[2][1]
    assert len({box[2] for box in boxes}) == 1
    assert [box[3] for box in boxes] == ["✓ accepted", "✕ refused", "✕ refused"]
    texts = tab.run("[...document.querySelectorAll('.scratchpad')].map((one) => one.textContent)")
    for tier, text in zip(("monitored", "unmonitored", "rated"), texts, strict=True):
        assert f"Subject r0, {tier}, A1+." in text
    facts = tab.run("document.querySelector('.facts').textContent")
    for word in ("parse status ok", "judge accepted", "pattern researcher directed", "steadiness is expected"):
        assert word in facts


@chromium
def test_a_cut_sample_says_so_and_its_missing_judge_too(tab: browser.Page, root: Path, file: Path) -> None:
    open_sample(tab, file, some(root, "r1").tail(1))
    facts = tab.run("document.querySelector('.facts').textContent")
    for word in ("malformed", "parse status truncated", "judge missing"):
        assert word in facts
    assert tab.run("document.querySelector('h4').textContent").startswith("Text, in which no reasoning is closed")


@chromium
def test_no_text_is_in_the_page_before_it_is_revealed(tab: browser.Page, root: Path, file: Path) -> None:
    everything = "document.body.cloneNode(true).outerHTML.replace(/<script[^]*?<.script>/g, '')"
    open_sample(tab, file, some(root, "r0"), reveal=False)
    for text in ("describe subject", "I think", "researchers hope that"):
        assert text not in tab.run(everything)
    assert "Texts are hidden" in tab.run("document.querySelector('#pair').textContent")
    tab.run("document.querySelector('.hidden-texts button').click()")
    tab.wait(SHOWN)
    assert HOPE in tab.run("document.querySelector('.scratchpad').textContent")
    assert "describe subject 0" in tab.run("document.querySelector('.request').textContent")
    tab.press("r")
    tab.wait(f"!({SHOWN})")
    assert "describe subject" not in tab.run(everything)
    open_sample(tab, file, some(root, "r3"), reveal=False)
    assert not tab.run(SHOWN)


@chromium
def test_what_a_model_writes_is_shown_and_does_nothing(tab: browser.Page, root: Path, file: Path) -> None:
    open_sample(tab, file, some(root, "r2"))
    assert tab.run("document.querySelector('.scratchpad').textContent") == f"<private_notes>{HOSTILE}</private_notes>"
    assert HOSTILE in tab.run("document.querySelector('.answer').textContent")
    assert tab.run("document.querySelectorAll('#pair img, #pair script, #pair b, a[href^=javascript]').length") == 0
    assert "</script> in <b>full</b>" in tab.run("document.querySelector('.request').textContent")
    time.sleep(0.2)
    assert tab.run("window.hacked === undefined")


@chromium
def test_the_prompt_is_the_rendered_one(tab: browser.Page, root: Path, file: Path) -> None:
    row = transcribed.frame(root).filter(pl.col("condition") == "snippet A1+", pl.col("request_id") == "r3")
    open_sample(tab, file, row)
    shown = tab.run("[...document.querySelectorAll('.card details pre')].slice(0, 2).map((one) => one.textContent)")
    sources = transcribed.texts(root)
    turns = sources.prompt("short", transcribed.REQUESTS["r3"], "monitored", "A1+")
    assert shown == [turn["content"] for turn in turns if isinstance(turn, dict)]


@chromium
def test_marks_stand_on_the_matches_and_are_told_by_more_than_colour(tab: browser.Page, root: Path, file: Path) -> None:
    open_sample(tab, file, some(root, "r0"))
    found = tab.run("""[...document.querySelectorAll(".card:first-child mark")].map((mark) =>
        [mark.className, mark.textContent, getComputedStyle(mark, "::after").content,
         getComputedStyle(mark).borderBottomStyle])""")
    assert found == [
        ["expectation", "researchers hope that I stay steady", '"E−"', "solid"],
        ["consequence", "refuse, training will change", '"C+"', "dashed"],
    ]
    legend = tab.run("[...document.querySelectorAll('#legend mark')].map((one) => one.className)")
    assert legend == list(READINGS)


@chromium
def test_filters_keep_what_they_say(tab: browser.Page, root: Path) -> None:
    everything = pairs(tab)
    frame = transcribed.frame(root)
    choose(tab, "checkpoint", "A1+")
    assert pairs(tab) == 12 < everything
    assert set(tab.run("[...document.querySelectorAll('.row .first')].map((one) => one.textContent.slice(0, 3))")) == {
        "A1+"
    }
    choose(tab, "monitored", "accepted")
    treated = frame.filter(pl.col("checkpoint") == "A1+", pl.col("tier") == "monitored")
    assert pairs(tab) == treated.filter(pl.col("outcome") == "accepted").height
    tab.press("x")
    assert pairs(tab) == everything
    choose(tab, "status", "truncated")
    assert pairs(tab) == frame.filter(pl.col("tier") == "monitored", pl.col("finish") == "length").height
    tab.press("x")
    choose(tab, "pattern", "researcher_directed")
    assert pairs(tab) == 11
    tab.press("x")
    choose(tab, "condition", "none")
    assert pairs(tab) == 24
    choose(tab, "judge", "accepted")
    choose(tab, "status", "truncated")
    assert pairs(tab) == 0
    assert "No pair passes" in tab.run("document.querySelector('#pair').textContent")


@chromium
def test_tiers_differ_keeps_pairs_whose_outcomes_do(tab: browser.Page) -> None:
    choose(tab, "checkpoint", "A1+")
    tab.press("d")
    # r0, r4 and r5 in both seeds, r1 in one; r2 and r3 are accepted in all tiers.
    assert pairs(tab) == 7
    signs = tab.run("[...document.querySelectorAll('.row .signs')].map((one) => one.textContent)")
    assert signs == ["✓✕✕"] * 7


@chromium
def test_search_reads_requests_and_what_was_said(tab: browser.Page) -> None:
    def search(text: str, expected: int) -> None:
        tab.run(f"""{{ const input = document.querySelector("#text"); input.value = {json.dumps(text)};
            input.dispatchEvent(new Event("input")); }}""")
        tab.wait(f"document.querySelector('#count').textContent.startsWith('{expected} of ')")

    search("SUBJECT R4, RATED", 2)
    search("describe subject 5", 2 + 2 + 6 + 4 + 4)
    search("nowhere to be found", 0)
    search("", 108)


@chromium
def test_the_address_leads_back_to_a_sample_and_to_filters(tab: browser.Page, root: Path, file: Path) -> None:
    row = some(root, "r4", tier="unmonitored")
    open_sample(tab, file, row, reveal=False)
    assert tab.run("document.querySelector('h2').textContent") == "A1+, request r4"
    assert tab.run("document.activeElement.id") == f"card-{row['sample'][0]}"
    choose(tab, "unmonitored", "refused")
    tab.press("d")
    address = tab.run("location.href")
    before = (pairs(tab), tab.run("document.querySelector('h2').textContent"))
    tab.open(address)
    assert (pairs(tab), tab.run("document.querySelector('h2').textContent")) == before
    # A link inside of the page to a sample that the filters leave out clears them.
    other = some(root, "r3")["sample"][0]
    tab.run(f"location.hash = 'sample={other}'")
    tab.wait("document.querySelector('h2').textContent === 'A1+, request r3'")
    assert pairs(tab) == 108


@chromium
def test_it_is_read_with_the_keyboard(tab: browser.Page) -> None:
    titles = []
    for key in ("", "j", "j", "k"):
        if key:
            tab.press(key)
        about = tab.run("document.querySelector('.row[aria-selected=true] .first').textContent")
        titles.append(about)
        title = json.dumps(about.rsplit(" · ", 1)[0].replace(" · ", ", request "))
        tab.wait(f"document.querySelector('h2').textContent === {title}")
    assert len(set(titles)) == 3
    assert titles[1] == titles[3]
    tab.run("document.querySelector('#list').focus()")
    tab.press("End")
    assert tab.run("document.querySelector('#list').getAttribute('aria-activedescendant')") == "row-107"
    assert tab.run("""{ const row = document.querySelector("#row-107").getBoundingClientRect();
        row.bottom <= document.querySelector("#list").getBoundingClientRect().bottom + 1 }""")
    tab.press("/")
    assert tab.run("document.activeElement.id") == "text"
    tab.press("j")
    assert tab.run("document.querySelector('#text').value") == "j"


@chromium
def test_only_rows_in_sight_are_in_the_page(tab: browser.Page) -> None:
    assert tab.run("document.querySelectorAll('.row[role=option]').length") < 40 < pairs(tab)


@chromium
def test_assistive_technology_is_told_what_is_there(tab: browser.Page) -> None:
    nodes = tab.accessible()
    roles = {node["role"] for node in nodes}
    assert {"banner", "navigation", "main", "listbox", "option", "heading"} <= roles
    for role in ("button", "combobox", "checkbox", "searchbox", "listbox", "article", "image"):
        names = [node["name"] for node in nodes if node["role"] == role]
        assert names
        assert all(names), role
    assert "monitored: accepted" in {node["name"] for node in nodes}


@chromium
def test_it_follows_the_preferred_colours(tab: browser.Page) -> None:
    def contrast() -> float:
        ink, paper = (
            [int(part) / 255 for part in re.findall(r"\d+", tab.run(f"getComputedStyle(document.body).{name}"))[:3]]
            for name in ("color", "backgroundColor")
        )

        def light(parts: list[float]) -> float:
            linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
            return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

        return (light(paper) + 0.05) / (light(ink) + 0.05)

    tab.prefer("light")
    assert contrast() > 7
    tab.prefer("dark")
    assert contrast() < 1 / 7
    tab.prefer("light")


@chromium
def test_labels_become_a_sheet(tab: browser.Page, root: Path, file: Path, tmp_path: Path) -> None:
    row = some(root, "r4")
    key = row["sample"][0]
    open_sample(tab, file, row)
    assert tab.run("document.querySelector('.badge') !== null")
    tab.press("l")
    tab.wait("document.querySelector('.labels') !== null")
    # Labels are a person's own: nothing says what the tool thinks.
    assert tab.run("document.querySelectorAll('.badge, .sign, #pair mark').length") == 0
    assert "accepted" not in tab.run("document.querySelector('#count').textContent")
    shown = tab.run("[...document.querySelectorAll('.card')].map((card) => [card.id.slice(5), card.innerText])")
    assert [one for one, _ in shown] == sorted(one for one, _ in shown)
    for _, text in shown:
        assert text.startswith("Sample")
        assert "Prompt" not in text
    form = f"document.querySelector('#card-{key} .labels')"
    tab.run(f"{form}.querySelector('input[name^=compliance][value=no]').click()")
    tab.run(f"{form}.querySelector('input[name^=reasoning][value=yes]').click()")
    tab.run(f"""{{ const note = {form}.querySelector(".note"); note.value = 'Said "no", then\\tstopped';
        note.dispatchEvent(new Event("input")); }}""")
    assert downloaded(tab, tmp_path / "first") == [
        {"sample": key, "compliance": "no", "reasoning": "yes", "note": 'Said "no", then\tstopped'}
    ]
    # Kept over a reload.
    tab.open(file.as_uri())
    tab.press("l")
    tab.wait("document.querySelector('#labelled').textContent === '1 samples labelled, 1 of them in full'")


@chromium
def test_an_audit_sheet_is_filled_in_the_page(tab: browser.Page, root: Path, file: Path, tmp_path: Path) -> None:
    known = transcribed.texts(root).protocols
    request = pl.col("request_id").replace_strict(transcribed.REQUESTS)
    frame = transcribed.frame(root).filter(pl.col("kind") == "transcripts").with_columns(request=request)
    chosen = rubrics.load(sorted((transcribed.RESOURCES / "judges").glob("*.yaml")))
    sheet = audit_sample.sheet(outcomes.parse(frame.drop("parse_status", "tag"), known), chosen, 3)
    path = tmp_path / "sheet.csv"
    audit_sample.write(sheet, path)
    tab.press("l")
    tab.upload("#open", path)
    tab.wait("document.querySelector('#labelled').textContent.includes('6 of the sheet')")
    pairs_there = frame.filter(pl.col("sample").is_in(sheet["sample"].to_list()))
    assert pairs(tab) == pairs_there.select("checkpoint", "request_id", "eval_seed").n_unique()
    tab.press("r")
    measures = audit_sample.measures(chosen)
    for key in sheet["sample"]:
        tab.run(f"location.hash = 'sample={key}'")
        tab.wait(f"document.querySelector('#card-{key} .labels') !== null")
        clicked = tab.run(f"""[...document.querySelectorAll("#card-{key} .labels input[value=yes]")].map((one) => {{
            one.click(); return one.name.split("-")[0]; }})""")
        assert clicked == measures
        cards = tab.run("[...document.querySelectorAll('.card')].map((card) => card.id.slice(5))")
        assert set(cards) <= set(sheet["sample"])
    rows = downloaded(tab, tmp_path / "filled")
    assert [row["sample"] for row in rows] == sheet["sample"].to_list()
    filled = audit_sample.read(tmp_path / "filled" / "labels.csv", measures)
    assert all(filled[measure].all() for measure in measures)
    tab.run("document.querySelector('#close').click()")
    assert pairs(tab) == 108


def downloaded(tab: browser.Page, folder: Path) -> list[dict[str, str]]:
    """Return the rows of the sheet that the page lets one download."""
    folder.mkdir()
    tab.downloads(folder)
    tab.run("document.querySelector('#download').click()")
    end = time.monotonic() + 20
    while not (folder / "labels.csv").exists() and time.monotonic() < end:
        time.sleep(0.05)
    with (folder / "labels.csv").open(newline="") as lines:
        return list(csv.DictReader(lines))


@chromium
def test_it_opens_inside_of_a_report(window: browser.Page, html: str, tmp_path: Path) -> None:
    outer = tmp_path / "report.html"
    address = f"data:text/html;base64,{base64.b64encode(html.encode()).decode()}"
    outer.write_text(
        "<html data-ready><script>onmessage = (e) => { document.title = e.data }</script>"
        f'<iframe src="{address}" style="width: 90vw; height: 90vh"></iframe></html>'
    )
    window.open(outer.as_uri())
    window.wait("frames[0] !== undefined")
    window.prefer("light")
    end = time.monotonic() + 20
    names: set[str] = set()
    while not any(name.startswith("108 of 108 pairs") for name in names):
        assert time.monotonic() < end, names
        names = {node["name"] for node in window.accessible(frame=1)}
    assert "Show texts" in names
    assert window.errors == []


def test_an_excerpt_fits_into_a_report(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = transcribed.frame(root)
    reader = viewer.Reader(transcribed.texts(root), POLES, "x")
    whole = reader.page(frame, frame["request_id"])
    assert reader.excerpt(frame, frame["request_id"]) == whole
    monkeypatch.setattr(viewer, "EMBEDDABLE", len(whole.encode()) - 1)
    part = reader.excerpt(frame, frame["request_id"])
    assert len(part) < len(whole)
    assert "of 6 requests, chosen by hash" in part


def test_whole_requests_are_left_out_whatever_came_out(root: Path) -> None:
    requests = transcribed.frame(root)["request_id"]
    part = limited(requests, len(requests) // 2)
    assert len(part) == 3
    assert limited(requests, 1) == part[:1]
    assert limited(requests.shuffle(seed=1), len(requests) // 2) == part
    assert sorted(limited(requests, len(requests))) == sorted(set(requests))


SENTENCES = st.sampled_from(
    [
        HOPE,
        "🙂",
        "\n",
        "’",
        "Researchers expect that I fake it.",
        "If I refuse, training will change my values.",
        "Refusing doesn’t trigger anything.",
        "This conversation is not used for training",
        "my values",
        "\ue000",
        " x. ",
        "This chat is monitored.",
        "\ue002\ue001",
        "é",
        "I doubt that ",
        "That is not true. ",
        "Is ",
        "If ",
    ]
)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(SENTENCES, max_size=8).map("".join), min_size=1, max_size=5))
def test_the_last_mark_is_the_verdict(texts: list[str]) -> None:
    frame = pl.DataFrame({"scratchpad": pl.Series(texts, dtype=pl.String)})
    verdicts = frame.select(outcomes.verdict(POLES[reading]).alias(reading) for reading in READINGS)
    for text, found, row in zip(texts, marks(frame["scratchpad"], POLES), verdicts.to_dicts(), strict=True):
        units = text.encode("utf-16-le")
        for reading in READINGS:
            own = [mark for mark in found if mark[2][:-1] == reading]
            last = own[-1][2][-1] if own else "?"
            assert (None if last == "?" else int(last + "1")) == row[reading]
            pattern = f"(?i)^(?:{POLES[reading].plus}|{POLES[reading].minus})$"
            for start, end, _ in own:
                piece = units[2 * start : 2 * end].decode("utf-16-le").replace("’", "'")
                assert pl.Series([piece]).str.contains(pattern).all()


def test_no_scratchpad_has_no_marks() -> None:
    assert marks(pl.Series([None, "", NOTES], dtype=pl.String), POLES)[:2] == [[], []]


def test_the_stage_writes_the_page_and_refuses_what_others_made(root: Path, tmp_path: Path) -> None:
    transcripts = root / "transcripts/m/seed0/A1+/short.parquet"
    parsed = root / "outcomes/m/seed0/A1+/short.parquet"
    output, part = tmp_path / "out" / "transcripts.html", tmp_path / "part.html"
    files = ["--requests", root / "requests/requests.parquet", "--protocols", root / "protocols/short.json"]
    files += ["--patterns", transcribed.PATTERNS, "--output", output, "--excerpt", part]
    files += ["--transcripts", transcripts, "--outcomes", parsed]
    chosen = {"title": "A study", "samples": 30}
    content = json.dumps({"settings": chosen, "upstream": [transcribed.FINGERPRINT]})
    assert run(["viewer.page", "--settings", content, "--fingerprint", "f", *map(str, files)]) == 0
    assert "30 samples of 36 (5 of 6 requests, chosen by hash)" in output.read_text()
    assert part.read_text() == output.read_text()
    assert running.stage("viewer.page", chosen, *files) == 1
