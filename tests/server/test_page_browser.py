"""The page in a browser: what a person sees and does."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from contextlib import contextmanager

import pytest
from live_server import KEY, FakeEngine, served, serving

from lorchestra.config.data import DataConfig
from lorchestra.data.row_writer import RowWriter
from lorchestra.questions import Question
from lorchestra.runs.ask import Asked
from lorchestra.runs.similar import SimilarRows
from lorchestra.types import Example

api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium in PATH")

NASTY = "<script>alert(1)</script> \"quotes\" & 'more' <img src=x onerror=alert(2)> 🙂"
LONG = "Donaudampfschifffahrtsgesellschaftskapitän" * 3
CERTIFICATE = {
    "guarantee": "At most 5 % of the automated rows are wrong.",
    "sentences": [],
    "certificates": [{"class": None, "threshold": 0.8, "coverage": 0.625, "num_rows": 1500}],
}


@pytest.fixture(scope="module")
def browser():
    with api.sync_playwright() as playwright:
        # Chromium has no sandbox for root, as in containers
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser):
    """Opens a server's page; at the end the console must have had no errors, of its policy or others."""
    problems, contexts = [], []

    def open_page(server, **options):
        context = browser.new_context(**options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("dialog", lambda dialog: (problems.append(dialog.message), dialog.dismiss()))
        page.goto(server.url)
        return page

    yield open_page
    for context in contexts:
        context.close()
    # which Chromium also writes for every response with an error's status
    assert [text for text in problems if "Failed to load resource" not in text] == []


@contextmanager
def page_server(engine, file=None, keys=()):
    index = SimilarRows([Example("1", f"A text with {NASTY}", ("no", "yes"), 1)], "label")
    writer = RowWriter(DataConfig(train="train.csv"), typed=False)
    run = dataclasses.replace(served(engine), writer=writer, similar=index, certificates={"label": CERTIFICATE})
    with serving([run], keys, corrections=None if file is None else str(file)) as server:
        yield server


@pytest.fixture
def server(engine, tmp_path):
    with page_server(engine, tmp_path / "corrections.jsonl") as server:
        yield server


def write_question(page, kind="choice", instructions="Which?", options=()):
    page.get_by_role("button", name="Write a question").click()
    editor = page.locator(".editor").last
    editor.get_by_label("Type").select_option(kind)
    editor.get_by_label("Instructions").fill(instructions)
    for number, option in enumerate(options, 1):
        if number > 2:
            editor.get_by_role("button", name="Add").click()
        editor.locator(".option").nth(number - 1).locator("input").first.fill(option)


def ask(page, state="A text."):
    page.get_by_label("State").fill(state)
    page.get_by_role("button", name="Ask").click()
    page.locator(".answer").first.wait_for()


def test_a_trained_question_shows_all_of_its_answer(opened, server, engine):
    page = opened(server)
    ask(page)
    card = page.get_by_role("article", name="label")
    members = [engine._probs(Asked("A text.", Question("label", "choice", "", ("no", "yes"))), m) for m in range(3)]
    means = {"no": sum(p[0] for p in members) / 3, "yes": sum(p[1] for p in members) / 3}
    best = max(means, key=means.get)
    assert card.locator(".prediction b").inner_text() == best
    widths = [rect.get_attribute("width") for rect in card.locator(".fill").all()]
    assert [float(width.rstrip("%")) for width in widths] == pytest.approx(
        sorted((100 * p for p in means.values()), reverse=True), abs=0.01
    )
    marks = [float(mark.get_attribute("x").rstrip("%")) for mark in card.locator("li").first.locator(".mark").all()]
    index = ("no", "yes").index(best)
    assert marks == pytest.approx([100 * p[index] for p in members], abs=0.01)
    text = card.inner_text()
    assert "Automate: above the certified threshold." in text
    assert "At most 5 % of the automated rows are wrong. 63 % of these 1,500 rows were automated." in text
    assert re.search(r"Prediction set\s+no", text)
    assert "0.100 nats" in text
    assert "not trained" not in text
    assert "not calibrated" not in card.locator(".flags").all_inner_texts()
    status = page.get_by_role("status").first
    assert status.get_attribute("aria-live") == "polite"
    assert f"label: {best}" in status.inner_text()


def test_a_written_question_is_flagged_and_its_texts_stay_texts(opened, server, engine):
    page = opened(server)
    write_question(page, instructions=NASTY, options=(NASTY, "__proto__", "10", "9"))
    ask(page, NASTY)
    card = page.get_by_role("article", name="Question 1")
    assert card.locator(".tag").all_inner_texts() == ["not trained on this question", "not calibrated"]
    assert card.locator(".instructions").inner_text() == NASTY
    assert "No decision" in card.locator(".decision").inner_text()
    question = Question("", "choice", NASTY, (NASTY, "__proto__", "10", "9"))
    members = [engine._probs(Asked(NASTY, question), member) for member in range(3)]
    shown = {row.locator(".name").inner_text(): row for row in card.locator(".bars li").all()}
    assert set(shown) == set(question.options)
    for index, option in enumerate(question.options):
        marks = [float(mark.get_attribute("x").rstrip("%")) for mark in shown[option].locator(".mark").all()]
        assert marks == pytest.approx([100 * member[index] for member in members], abs=0.01)
    assert engine.batches[-1][0] == NASTY
    assert page.get_by_role("region", name="Similar training rows").locator("blockquote").inner_text() == (
        f"A text with {NASTY}"
    )
    assert page.locator("#results script, #results img").count() == 0


def test_trained_questions_are_asked_exactly_as_they_were_trained(opened):
    class Recorder(FakeEngine):
        asked = ()

        def encode(self, asked):
            self.asked = (*self.asked, asked.question)
            return super().encode(asked)

    questions = (
        Question("genre", "choice", "Which?", ("10", "9", "film"), ("ten", None, NASTY)),
        Question("praised", "predicate", "It is praised.", ("false", "true"), (None, "good or fine")),
        Question("plain", "predicate", "It is long."),
        Question("length", "score", "How long?", ("2", "1", "0"), ("two", None, "none")),
        Question("__proto__", "score", "", ("low", "high")),
    )
    engine = Recorder()
    with serving([dataclasses.replace(served(engine), questions=questions)]) as server:
        page = opened(server)
        ask(page)
        assert page.locator(".answer h2").all_inner_texts() == [f"{one.name} {one.type}" for one in questions]
        assert engine.asked[-len(questions) :] == questions
        assert page.get_by_role("article", name="length").locator(".name").all_inner_texts() == ["2", "1", "0"]


def test_predicates_scores_and_many_options(opened, server):
    page = opened(server)
    write_question(page, "predicate", "It is about billing.")
    write_question(page, "score", "How angry?", ("calm", "annoyed", "furious"))
    write_question(page, options=[f"option {number}" for number in range(30)])
    ask(page)
    predicate, score, many = (page.get_by_role("article", name=f"Question {number}") for number in (1, 2, 3))
    assert set(predicate.locator(".bars .name").all_inner_texts()) == {"true", "false"}
    assert score.locator(".bars .name").all_inner_texts() == ["calm", "annoyed", "furious"]
    assert "from 0 to 2" in score.locator(".prediction").inner_text()
    assert many.locator(".bars li").count() == 8
    many.get_by_role("button", name="Show all 30 options").click()
    assert many.locator(".bars li").count() == 30
    many.get_by_text("Probabilities per member").click()
    assert (many.locator("tbody tr").count(), many.locator("thead th").count()) == (30, 1 + 3)


def test_json_is_sent_as_it_is_written(opened, server, engine):
    page = opened(server)
    ask(page, '{"id": 9007199254740993}')
    assert page.get_by_label("Send as JSON").is_checked()
    assert engine.batches[-1] == ['{"id": 9007199254740993}']
    ask(page, "[1] no JSON")
    assert not page.get_by_label("Send as JSON").is_visible()
    assert engine.batches[-1] == ["[1] no JSON"]


def test_a_right_answer_is_saved_to_the_file(opened, server, tmp_path):
    page = opened(server)
    write_question(page, options=("a", "b"))
    ask(page, NASTY)
    card = page.get_by_role("article", name="label")
    predicted = card.locator(".prediction b").inner_text()
    right = {"no": "yes", "yes": "no"}[predicted]
    card.get_by_label("Right answer").select_option(right)
    card.get_by_role("button", name="Save").click()
    card.get_by_text(f"Saved: {right}.").wait_for()
    (line,) = (tmp_path / "corrections.jsonl").read_text(encoding="utf-8").splitlines()
    row = json.loads(line)
    assert (row["text"], row["label"], row["correction"]["prediction"]) == (NASTY, right, predicted)
    assert page.get_by_role("article", name="Question 1").get_by_label("Right answer").count() == 0


def test_without_a_file_no_correction_is_offered(opened, live):
    page = opened(live)
    ask(page)
    assert page.get_by_role("button", name="Save").count() == 0
    assert page.get_by_text("Similar training rows").count() == 0


def test_the_keyboard_is_enough(opened, server, engine):
    page = opened(server)
    page.locator("#state:focus").wait_for()
    page.keyboard.type("A text.")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.type") == "checkbox"
    page.keyboard.press("Space")
    page.keyboard.press("Tab")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")  # Write a question
    for text in ("choice", "Which?", "left", "a description", "right"):
        page.keyboard.type(text)
        page.keyboard.press("Tab")
    page.keyboard.press("Control+Enter")
    card = page.get_by_role("article", name="Question 1")
    card.wait_for()
    assert sorted(card.locator(".bars .name").all_inner_texts()) == ["left", "right"]
    assert page.locator(".answer").count() == 1  # the trained question is not ticked any more
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    server.wait_until(lambda: engine.batches[-2:] == [["A text."]] * 2)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_have_contrast_in_both_schemes(opened, server, scheme):
    page = opened(server, color_scheme=scheme)
    write_question(page, options=("a", "b"))
    ask(page)

    def luminance(selector, name):
        color = page.locator(selector).first.evaluate("(element, name) => getComputedStyle(element)[name]", name)
        linear = [
            c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
            for c in (int(part) / 255 for part in re.findall(r"\d+", color)[:3])
        ]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    paper = luminance("body", "backgroundColor")
    assert (paper < 0.1) == (scheme == "dark")
    for selector in ("body", ".quiet", ".tag", ".decision.automate b", "button.plain"):
        light, dark = sorted((luminance(selector, "color"), paper), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, selector


def test_a_phone_needs_no_horizontal_scrolling(opened, server):
    page = opened(server, viewport={"width": 360, "height": 700}, reduced_motion="reduce")
    write_question(page, instructions=LONG, options=(LONG, *(f"{number} {LONG}" for number in range(9))))
    ask(page, LONG)
    page.get_by_text("Probabilities per member").last.click()
    page.get_by_role("button", name="Show all").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.locator("#results").evaluate("element => element.getBoundingClientRect().top") < 350


def test_the_key_is_asked_for_and_kept_nowhere(opened, engine):
    with page_server(engine, keys=[KEY]) as server:
        page = opened(server)
        field = page.get_by_label("This server needs a key")
        assert not page.get_by_label("State").is_visible()
        field.fill("a wrong key")
        field.press("Enter")
        page.get_by_text("is not one of this server's").first.wait_for()
        field.fill(KEY)
        field.press("Enter")
        ask(page)
        assert not field.is_visible()
        assert page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]") == [0, 0, ""]
        page.reload()
        field.wait_for()


def test_a_request_can_be_cancelled(opened, server, engine):
    page = opened(server)
    engine.gate.clear()
    try:
        page.get_by_label("State").fill("A text.")
        page.get_by_role("button", name="Ask").click()
        assert page.get_by_role("button", name="Ask").is_disabled()
        page.get_by_role("button", name="Cancel").click()
        page.get_by_text("Cancelled.").wait_for()
        server.wait_until(lambda: "lorchestra_disconnects_total 1.0" in server.get("/metrics").text)
    finally:
        engine.gate.set()
    ask(page)


def test_errors_are_shown_as_the_server_words_them(opened, server):
    page = opened(server)
    page.get_by_role("button", name="Ask").click()
    assert "Write a state" in page.get_by_role("alert").inner_text()
    write_question(page, instructions="unanswerable", options=("a", "b"))
    page.get_by_label("State").fill("A text.")
    page.get_by_role("button", name="Ask").click()
    page.get_by_text("the tokenizer cannot tell the options apart").wait_for()
    page.locator(".editor").get_by_label("Option 2", exact=True).fill("a")
    page.get_by_role("button", name="Ask").click()
    page.get_by_text("'a' occurs twice").wait_for()
    page.get_by_role("button", name="Remove the question").click()
    ask(page)
    assert not page.get_by_role("alert").is_visible()


def test_one_of_several_runs_is_chosen(opened):
    runs = [served(FakeEngine(2), "small"), served(FakeEngine(4), "large")]
    with serving(runs) as server:
        page = opened(server)
        page.get_by_label("Run").select_option("large")
        ask(page)
        assert page.locator("li").first.locator(".mark").count() == 4
        page.get_by_label("Run").select_option("small")
        assert page.locator(".answer").count() == 0
        ask(page)
        assert page.locator("li").first.locator(".mark").count() == 2
