"""A run on typed questions over HTTP: both formats ask the same question, and get the run's answer."""

from __future__ import annotations

import random

import pytest
from live_server import serving

from lorchestra.config.adapt import AdaptConfig, BaseConfig
from lorchestra.config.run import RunConfig, TrainConfig
from lorchestra.questions import Question
from lorchestra.runs.ask import Asked, Asker
from lorchestra.runs.ensemble import Ensemble
from lorchestra.server.registry import ServedRun
from lorchestra.types import Example, Task

COLOR = Question("color", "choice", "Which color?", ("red", "green", "blue"), ("like blood", None, None))
GOOD = Question("good", "predicate", "It is good.", descriptions=(None, "the writer likes it"))
LONG = Question("long", "score", "How long is it?", ("short", "medium", "long"))
QUESTIONS = (COLOR, GOOD, LONG)
STATE = "a fine film"

SYSTEMONE = {
    "any name": {
        "type": "choice",
        "instructions": "Which color?",
        "criteria": {"red": "like blood", "green": None, "blue": None},
    },
    "good": {"type": "noul", "instructions": "It is good.", "criteria": {"true": "the writer likes it"}},
    "long": {"type": "score", "instructions": "How long is it?", "criteria": ["short", "medium", "long"]},
}
DECISIONS = [
    {
        "type": "choice",
        "instructions": "Which color?",
        "choices": [{"value": "blue"}, {"value": "red", "description": "like blood"}, {"value": "green"}],
    },
    {
        "type": "score",
        "instructions": [{"type": "input_text", "text": "How long is it?"}],
        "levels": [{"label": "short"}, {"label": "medium"}, {"label": "long"}],
    },
]


@pytest.fixture(scope="module")
def trained(tiny_base, tmp_path_factory):
    draw = random.Random(0)
    splits = {
        split: tuple(
            Example(f"{split}-{i}/{q.name}", f"{split} {i}: film", q.options, draw.randrange(len(q.options)), "", q)
            for i in range(number)
            for q in QUESTIONS
        )
        for split, number in {"train": 16, "val": 40}.items()
    }
    config = RunConfig(
        base=BaseConfig(name=str(tiny_base)), adapt=AdaptConfig(members=2, r=2), train=TrainConfig(epochs=1, lr=0.05)
    )
    out = tmp_path_factory.mktemp("typed") / "run"
    return Ensemble.train(config, out, rows=Task("films", splits, questions=QUESTIONS))


@pytest.fixture(scope="module")
def live(trained):
    with serving([ServedRun.load(str(trained.run.root))]) as server:
        yield server


def test_both_formats_get_the_answers_of_the_run(trained, live):
    asker = Asker(trained)
    color, good, long = (asker.answer([asker.encode(Asked(STATE, question))])[0].answer for question in QUESTIONS)
    by_id = live.post("/v1/systemone", {"model": "run", "state": STATE, "questions": SYSTEMONE}).json()["answers"]
    choice, score = live.post("/v1/decisions", {"model": "run", "input": STATE, "questions": DECISIONS}).json()[
        "answers"
    ]
    expected = dict(zip(COLOR.options, color.probs, strict=True))
    assert by_id["any name"]["probabilities"] == pytest.approx(expected, abs=1e-5)
    assert {p["value"]: p["probability"] for p in choice["probabilities"]} == pytest.approx(expected, abs=1e-5)
    assert by_id["good"]["noul"] == pytest.approx(good.probs[1], abs=1e-5)
    assert by_id["long"]["score"] == pytest.approx(long.score, abs=1e-5)
    assert score["score"] == pytest.approx(long.score, abs=1e-5)
    for answer in (*by_id.values(), choice, score):
        assert answer["x_trained"] is True
        assert answer["x_calibrated"] is True


def test_another_question_is_not_taken_for_a_trained_one(live):
    questions = {
        "description": SYSTEMONE["any name"] | {"criteria": {"red": None, "green": None, "blue": None}},
        "good": SYSTEMONE["good"] | {"criteria": None},
        "long": SYSTEMONE["long"] | {"criteria": ["long", "medium", "short"]},
    }
    answers = live.post("/v1/systemone", {"model": "run", "state": STATE, "questions": questions}).json()["answers"]
    assert [(a["x_trained"], a["x_calibrated"]) for a in answers.values()] == [(False, False)] * 3


def test_the_page_has_every_question_with_its_descriptions(live):
    (run,) = live.get("/v1/x_runs").json()["runs"]
    assert (run["calibrated"], run["certified"]) == (True, False)
    assert {name: question["calibrated"] for name, question in run["questions"].items()} == {
        "color": True,
        "good": True,
        "long": True,
    }
    assert run["questions"]["color"]["options"] == {"red": "like blood", "green": None, "blue": None}
    assert run["questions"]["good"]["true"] == "the writer likes it"
    assert run["questions"]["long"]["levels"] == ["short", "medium", "long"]
