"""POST /v1/decisions: every form of question and input, refusals, and errors in OpenAI's shape."""

from __future__ import annotations

import pytest

PREDICATE = {"type": "predicate", "instructions": "Is it true?"}


def body(*questions, **fields):
    return {"model": "fake", "input": "A text.", "questions": list(questions) or [PREDICATE], **fields}


def ask(live, *questions, **fields):
    response = live.post("/v1/decisions", body(*questions, **fields))
    assert response.status_code == 200, response.text
    return response.json()


def test_answers_come_in_order_with_names_or_null(live):
    choice = {
        "type": "choice",
        "instructions": "Which?",
        "choices": [{"value": "a"}, {"value": "b", "description": "x"}],
    }
    score = {"type": "score", "name": "s", "instructions": "How?", "levels": [{"label": "low"}, {"label": "high"}]}
    data = ask(live, choice, PREDICATE | {"name": "p"}, score, PREDICATE)
    assert [(answer["type"], answer["name"]) for answer in data["answers"]] == [
        ("choice", None),
        ("predicate", "p"),
        ("score", "s"),
        ("predicate", None),
    ]
    assert data["answers"][1]["probability"] == data["answers"][3]["probability"]
    assert [p["value"] for p in data["answers"][2]["probabilities"]] == [0, 1]
    assert [p["label"] for p in data["answers"][2]["probabilities"]] == ["low", "high"]
    assert data["usage"]["total_tokens"] == data["usage"]["input_tokens"] + data["usage"]["output_tokens"]
    assert data["usage"]["output_tokens"] == 4


def test_true_and_its_text_are_different_choices(live, engine):
    values = [True, "true", False, "no", "true (boolean)"]
    question = {"type": "choice", "instructions": "Which?", "choices": [{"value": value} for value in values]}
    (answer,) = ask(live, question)["answers"]
    assert [p["value"] for p in answer["probabilities"]] == values
    assert len({p["probability"] for p in answer["probabilities"]}) == 5
    best = max(answer["probabilities"], key=lambda p: p["probability"])
    assert answer["choice"] is best["value"] or answer["choice"] == best["value"]
    assert isinstance(answer["choice"], type(best["value"]))


def test_a_question_that_cannot_be_answered_is_refused_alone(live):
    data = ask(live, PREDICATE | {"instructions": "unanswerable", "name": "n"}, PREDICATE)
    assert data["answers"][0]["type"] == "refusal"
    assert data["answers"][0]["name"] == "n"
    assert "apart" in data["answers"][0]["x_reason"]
    assert data["answers"][1] == ask(live)["answers"][0]
    assert [answer["type"] for answer in ask(live, PREDICATE | {"instructions": "unanswerable"})["answers"]] == [
        "refusal"
    ]


CALL = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
OUTPUT = {"type": "function_call_output", "call_id": "c", "output": "done"}
CUSTOM = {"type": "custom_tool_call", "call_id": "c", "name": "f", "input": "x"}
USER = {"role": "user", "content": "A text."}


def test_a_single_user_message_is_its_text(live):
    parts = [{"type": "input_text", "text": "A text."}]
    answers = [
        ask(live, input=given) for given in ("A text.", [USER], [{"type": "message", "role": "user", "content": parts}])
    ]
    assert answers[0] == answers[1] == answers[2]


def test_conversations_with_tools_are_answered(live, engine):
    ask(live, input=[{"role": "system", "content": "Be brief."}, USER, CALL, OUTPUT])
    ask(live, input=[USER, CUSTOM, OUTPUT | {"type": "custom_tool_call_output"}])
    ask(live, input=[{"role": "user", "content": [{"type": "input_json", "data": {"b": 1, "a": [2.0]}}]}])
    assert [states[0] for states in engine.batches[-3:]] == [
        "system: Be brief.\n\nuser: A text.\n\ncall 1, f: {}\n\nresult 1, f: done",
        "user: A text.\n\ncall 1, f: x\n\nresult 1, f: done",
        '{"a": [2], "b": 1}',
    ]


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"input": []}, "input"),
        ({"input": {}}, "input"),
        ({"input": [3]}, "input[0]"),
        ({"input": [{"role": "king", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"role": "system", "content": [{"type": "input_json", "data": {}}]}]}, "input[0].content[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input[0].content[0].text"),
        ({"input": [USER, OUTPUT]}, "input[1].call_id"),
        ({"input": [OUTPUT, CALL]}, "input[0].call_id"),
        ({"input": [CUSTOM, OUTPUT]}, "input[1].call_id"),
        ({"input": [CALL, CALL]}, "input[1].call_id"),
        ({"input": [{"type": "reasoning"}]}, "input[0].type"),
        ({"questions": {}}, "questions"),
        ({"questions": []}, "questions"),
        ({"questions": [PREDICATE] * 401}, "questions"),
        ({"questions": [{"type": "noul", "instructions": "x"}]}, "questions[0].type"),
        ({"questions": [PREDICATE, {"type": "predicate"}]}, "questions[1].instructions"),
        ({"questions": [PREDICATE | {"name": 3}]}, "questions[0].name"),
        ({"questions": [PREDICATE | {"type": "choice", "choices": [{"value": 1}]}]}, "questions[0].choices[0].value"),
        ({"questions": [PREDICATE | {"type": "choice", "choices": [{"value": "a"}] * 2}]}, "questions[0].choices"),
        ({"questions": [PREDICATE | {"type": "choice", "choices": [{"value": True}] * 2}]}, "questions[0].choices"),
        (
            {"questions": [PREDICATE | {"type": "score", "levels": [{"label": "a"}, {}]}]},
            "questions[0].levels[1].label",
        ),
        ({"prompt_cache_key": 3}, "prompt_cache_key"),
    ],
)
def test_invalid_values_are_located(live, change, param):
    response = live.post("/v1/decisions", body() | change)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    assert len(error["message"]) > 10


@pytest.mark.parametrize(
    "change",
    [
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "https://x/y.png"}]}]},
        {"questions": [PREDICATE | {"instructions": [{"type": "input_image", "image_url": "x"}]}]},
    ],
)
def test_images_are_refused_with_a_clear_text(live, change):
    response = live.post("/v1/decisions", body() | change)
    assert response.status_code == 415
    assert "text only" in response.json()["error"]["message"]


def test_an_unknown_model_is_not_found(live):
    response = live.post("/v1/decisions", body(model="gpt-6-luna"))
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"
    assert response.json()["error"]["param"] == "model"
