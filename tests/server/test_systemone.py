"""POST /v1/systemone: every form of question, and the errors of requests that are not valid."""

from __future__ import annotations

import pytest
from live_server import TRAINED, noul


def ask(live, question, state="A text."):
    response = live.post("/v1/systemone", {"model": "jev-latest", "state": state, "questions": {"q": question}})
    assert response.status_code == 200, response.text
    return response.json()["answers"]["q"]


@pytest.mark.parametrize(
    "criteria", [None, {}, {"true": "yes"}, {"false": ["a", {"b": 1}]}, {"true": "x", "false": {}}]
)
def test_a_noul_has_a_probability(live, criteria):
    answer = ask(live, {"type": "noul", "instructions": "Is it?", "criteria": criteria})
    assert answer["type"] == "noul"
    assert 0 < answer["noul"] < 1
    assert answer["noul"] == pytest.approx(sum(answer["x_members"]) / 3)
    assert (answer["x_trained"], answer["x_decision"], answer["x_prediction_set"]) == (False, None, None)


def test_sides_of_a_noul_reach_the_model(live):
    plain = ask(live, {"type": "noul", "instructions": "Is it?"})
    described = ask(live, {"type": "noul", "instructions": "Is it?", "criteria": {"true": "a refund"}})
    swapped = ask(live, {"type": "noul", "instructions": "Is it?", "criteria": {"false": "a refund"}})
    assert len({plain["noul"], described["noul"], swapped["noul"]}) == 3


def test_a_choice_has_the_reference_confidence(live):
    names = ["Billing", "환불", "🙂"]
    answer = ask(live, {"type": "choice", "criteria": {names[0]: None, names[1]: {"owns": ["refunds"]}, names[2]: "x"}})
    assert list(answer["probabilities"]) == names
    top = max(answer["probabilities"].values())
    assert answer["probabilities"][answer["choice"]] == top
    assert answer["confidence"] == pytest.approx((top - 1 / 3) / (2 / 3))
    assert [len(member) for member in answer["x_members"]] == [3, 3, 3]


def test_a_score_is_the_expectation_and_keeps_its_levels(live):
    levels = ["calm", {"label": "angry", "signals": ["threats"]}, ["very", "angry"], "furious"]
    answer = ask(live, {"type": "score", "instructions": ["How", "angry?"], "criteria": levels})
    assert answer["legend"] == {str(i): level for i, level in enumerate(levels)}
    p = list(answer["probabilities"].values())
    assert answer["score"] == pytest.approx(p[1] + 2 * p[2] + 3 * p[3])
    mode = p.index(max(p))
    spread = sum(q * abs(i - mode) for i, q in enumerate(p))
    assert answer["confidence"] == pytest.approx(max(0, 1 - spread / 1.0))  # |i - 1.5| is 1 on average


def test_a_trained_question_is_calibrated_and_decided(live):
    answer = ask(live, {"type": "choice", "criteria": dict.fromkeys(TRAINED.options)})
    assert (answer["x_trained"], answer["x_calibrated"], answer["x_decision"]) == (True, True, "automate")
    assert answer["x_prediction_set"] == ["no"]


def test_a_member_and_the_base_answer_alone(live):
    ensemble = live.post("/v1/systemone", noul(model="fake")).json()
    member = live.post("/v1/systemone", noul(model="fake/member_01")).json()
    base = live.post("/v1/systemone", noul(model="fake/base")).json()
    assert [one["model"] for one in (ensemble, member, base)] == ["fake", "fake/member_01", "fake/base"]
    assert member["answers"]["q"]["noul"] == ensemble["answers"]["q"]["x_members"][1]
    assert base["answers"]["q"]["noul"] not in ensemble["answers"]["q"]["x_members"]


QUESTION = {"type": "noul", "instructions": "Is it?"}


@pytest.mark.parametrize(
    ("change", "location"),
    [
        ({"state": None}, ["state"]),
        ({"state": 3}, ["state"]),
        ({"model": 3}, ["model"]),
        ({"questions": []}, ["questions"]),
        ({"questions": {}}, ["questions"]),
        ({"questions": {" ": QUESTION}}, ["questions", " "]),
        ({"questions": {"q": "text"}}, ["questions", "q"]),
        ({"questions": {"q": {}}}, ["questions", "q", "type"]),
        ({"questions": {"q": {"type": "boolean"}}}, ["questions", "q", "type"]),
        ({"questions": {"q": {"type": "noul"}}}, ["questions", "q"]),
        ({"questions": {"q": {"type": "noul", "instructions": 1}}}, ["questions", "q", "instructions"]),
        ({"questions": {"q": QUESTION | {"criteria": {"maybe": "x"}}}}, ["questions", "q", "criteria"]),
        ({"questions": {"q": QUESTION | {"criteria": {"true": 1}}}}, ["questions", "q", "criteria", "true"]),
        ({"questions": {"q": {"type": "choice"}}}, ["questions", "q", "criteria"]),
        ({"questions": {"q": {"type": "choice", "criteria": {"a": None}}}}, ["questions", "q", "criteria"]),
        (
            {"questions": {"q": {"type": "choice", "criteria": {"a": 1, "b": None}}}},
            ["questions", "q", "criteria", "a"],
        ),
        ({"questions": {"q": {"type": "score", "criteria": {"0": "a", "1": "b"}}}}, ["questions", "q", "criteria"]),
        ({"questions": {"q": {"type": "score", "criteria": ["a", None]}}}, ["questions", "q", "criteria", 1]),
        ({"questions": {"q": {"type": "score", "criteria": list("abcdefghijk")}}}, ["questions", "q", "criteria"]),
        ({"questions": {"q": {"type": "noul", "instructions": "unanswerable"}}}, ["questions", "q"]),
        ({"x_deadline_ms": 0}, ["x_deadline_ms"]),
        ({"x_deadline_ms": True}, ["x_deadline_ms"]),
        ({"x_early_exit": True}, ["x_early_exit"]),
        ({"x_early_exit": 0}, ["x_early_exit"]),
        ({"x_early_exit": "soon"}, ["x_early_exit"]),
        ({"x_early_exit": [0.9]}, ["x_early_exit"]),
    ],
)
def test_invalid_values_are_located(live, change, location):
    response = live.post("/v1/systemone", noul() | change)
    assert response.status_code == 422
    (fault,) = response.json()["detail"]
    assert fault["loc"] == ["body", *location]
    assert fault["type"] == "value_error"
    assert len(fault["msg"]) > 10


@pytest.mark.parametrize("missing", ["model", "state", "questions"])
def test_missing_fields_are_named(live, missing):
    body = noul()
    del body[missing]
    assert live.post("/v1/systemone", body).json()["detail"][0]["loc"] == ["body", missing]


def test_images_and_unknown_models_have_other_statuses(live):
    image = live.post("/v1/systemone", noul(assets={"a": {"type": "image"}}))
    message = live.post("/v1/systemone", noul([{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]))
    multipart = live.post("/v1/systemone", b"--x--", headers={"content-type": "multipart/form-data; boundary=x"})
    for response in (image, message, multipart):
        assert response.status_code == 415
        assert "text only" in response.json()["detail"]["message"]
    unknown = live.post("/v1/systemone", noul(model="fake/member_9"))
    assert unknown.status_code == 404
    assert unknown.json()["detail"]["error_type"] == "not_found_error"
    assert "did you mean 'fake/member_0" in unknown.json()["detail"]["message"]


def test_unknown_fields_are_ignored_and_order_and_names_do_not_matter(live):
    one = live.post("/v1/systemone", noul(x_trace="1", seed=7)).json()["answers"]["q"]
    questions = {"z": {"type": "choice", "criteria": {"a": None, "b": None}}, "other name": noul()["questions"]["q"]}
    two = live.post("/v1/systemone", noul() | {"questions": questions}).json()
    assert two["answers"]["other name"] == one
    assert list(two["answers"]) == list(questions)
    assert two["usage"] == {"input_tokens": 2, "output_tokens": 2}


@pytest.mark.parametrize("rule", ["exact", 0.5])
def test_early_exit_on_request(tiny_live, rule):
    """A tiny run with two members: exact needs both, a confidence of one half at most two."""
    response = tiny_live.post("/v1/systemone", noul("a film") | {"model": "jev-latest", "x_early_exit": rule})
    assert response.status_code == 200
    (answer,) = response.json()["answers"].values()
    assert answer["x_members_used"] == len(answer["x_members"]) == 2
    assert answer["x_decision"] is None
    whole = tiny_live.post("/v1/systemone", noul("a film") | {"model": "jev-latest"}).json()
    assert "x_members_used" not in next(iter(whole["answers"].values()))
