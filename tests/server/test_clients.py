"""On a tiny run: both official clients parse every kind of answer, and the conformance suite passes."""

from __future__ import annotations

import pytest
from live_server import KEY, FakeEngine, served, serving
from monitored_runs import certify
from tiny_base import save_tiny_base

from lorchestra.server.registry import ServedRun

STATE = "the film was rather good"


@pytest.fixture
def openai_client(tiny_live):
    openai = pytest.importorskip("openai", reason="openai is not installed")
    with openai.OpenAI(base_url=f"{tiny_live.url}/v1", api_key="unused", max_retries=0) as client:
        yield client


@pytest.fixture
def typesafe_client(tiny_live):
    sdk = pytest.importorskip("typesafe_sdk", reason="typesafe-sdk is not installed")
    with sdk.TypeSafeClient(api_key="unused", base_url=tiny_live.url, timeout=60) as client:
        yield client


def test_openais_client_parses_every_answer(openai_client):
    decision = openai_client.decisions.create(
        model="jev-latest",
        input=[{"role": "user", "content": STATE}],
        questions=[
            {"type": "predicate", "name": "good", "instructions": "Is it good?"},
            {
                "type": "choice",
                "instructions": "Which?",
                "choices": [{"value": True}, {"value": "true"}, {"value": "no"}],
            },
            {"type": "score", "name": "s", "instructions": "How?", "levels": [{"label": "low"}, {"label": "high"}]},
            {"type": "predicate", "name": "long", "instructions": "word " * 3000},
            {"type": "choice", "name": "t", "instructions": "", "choices": [{"value": "yes"}, {"value": "no"}]},
        ],
    )
    predicate, choice, score, refusal, trained = decision.answers
    assert (decision.model, predicate.name, choice.name) == ("run", "good", None)
    assert 0 < predicate.probability < 1
    assert [p.value for p in choice.probabilities] == [True, "true", "no"]
    assert sum(p.probability for p in choice.probabilities) == pytest.approx(1)
    assert score.score == pytest.approx(score.probabilities[1].probability)
    assert (refusal.type, refusal.name) == ("refusal", "long")
    assert (predicate.x_trained, trained.x_trained) == (False, True)
    assert trained.x_decision in ("automate", "abstain")
    assert len(predicate.x_members) == 2
    assert decision.usage.total_tokens == decision.usage.input_tokens + 4


def test_openais_client_reads_models_and_errors(openai_client):
    import openai

    assert [model.id for model in openai_client.models.list()] == [
        "run",
        "run/member_00",
        "run/member_01",
        "run/base",
        "jev-latest",
    ]
    assert openai_client.models.retrieve("run/base").id == "run/base"
    with pytest.raises(openai.NotFoundError):
        openai_client.models.retrieve("other")
    question = {"type": "predicate", "instructions": "Is it?"}
    with pytest.raises(openai.NotFoundError) as missing:
        openai_client.decisions.create(model="other", input="x", questions=[question])
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as bad:
        openai_client.decisions.create(model="run", input="x", questions=[question, {"type": "predicate"}])
    assert bad.value.param == "questions[1].instructions"


def test_typesafes_client_parses_every_answer(typesafe_client):
    from typesafe_sdk import Choice, Noul, Score

    response = typesafe_client.system_one(
        state={"subject": STATE, "lines": [1, 2]},
        questions={
            "n": Noul(instructions="Is it good?"),
            "c": Choice(instructions="Which?", criteria={"a": None, "b": "the second"}),
            "s": Score(instructions="How?", criteria=["low", {"label": "high"}]),
        },
    )
    assert response.model == "run"
    assert 0 < response.nouls["n"].noul < 1
    assert set(response.choices["c"].probabilities) == {"a", "b"}
    assert response.scores["s"].legend == {0: "low", 1: {"label": "high"}}
    assert response.usage.input_tokens > 0


def test_typesafes_client_reads_models_and_errors(typesafe_client):
    import typesafe_sdk

    names = [model.name for model in typesafe_client.models.list().models]
    assert names[0] == "run"
    assert "jev-latest" in names
    question = typesafe_sdk.Noul(instructions="Is it?")
    with pytest.raises(typesafe_sdk.TypeSafeError, match="no model is called 'other'"):
        typesafe_client.system_one(state="x", questions={"q": question}, model="other")


def suite(url, **options):
    """The suite's report; every requirement that applies must have passed."""
    runner = pytest.importorskip("jevcompat.runner", reason="jevcompat is not installed")
    report = runner.run(url, timeout=60.0, **options)
    assert report.aborted is None
    failed = {result.id: [str(finding) for finding in result.findings] for result in report.results if result.findings}
    assert failed == {}
    assert report.verdict == "conformant", (report.untested_musts, report.inconclusive, report.case_errors)
    return {result.id for result in report.results if result.status == "skip"}


@pytest.mark.slow
def test_the_conformance_suite_passes_on_a_run(tmp_path):
    """The base reads bytes, and the suite's 255 options are 30,000 of them."""
    pytest.importorskip("typesafe_sdk", reason="typesafe-sdk is not installed")
    root = certify(tmp_path, save_tiny_base(tmp_path / "base", max_length=32_768))
    with serving([ServedRun.load(str(root))], max_state_tokens=32_768) as live:
        assert suite(live.url) == {"auth.bearer", "auth.missing", "auth.invalid"}


def test_the_conformance_suite_passes_with_keys():
    pytest.importorskip("typesafe_sdk", reason="typesafe-sdk is not installed")
    with serving([served(FakeEngine())], keys=[KEY]) as live:
        assert suite(live.url, key=KEY) == {"auth.ignored-when-off"}


def test_answers_do_not_depend_on_what_else_is_asked(tiny_live):
    """Alone, with others, in another order, with another name, by another server: equal to rounding."""
    questions = {
        "n": {"type": "noul", "instructions": "Is it good?"},
        "c": {"type": "choice", "criteria": {"a": None, "bc": "second", "d": None}},
        "s": {"type": "score", "criteria": ["low", "middle", "high"]},
        "t": {"type": "choice", "criteria": {"yes": None, "no": None}},
    }

    def ask(server, chosen):
        body = {"model": "run", "state": STATE, "questions": chosen}
        return server.post("/v1/systemone", body).json()["answers"]

    def numbers(answer):
        return list(answer.get("probabilities", {"": answer.get("noul")}).values())

    together = ask(tiny_live, questions)
    backwards = ask(tiny_live, dict(reversed(questions.items())))
    with serving([ServedRun.load(str(tiny_run_of(tiny_live)))]) as second:
        elsewhere = ask(second, questions)
    for name, question in questions.items():
        alone = ask(tiny_live, {"renamed": question})["renamed"]
        for other in (together[name], backwards[name], elsewhere[name]):
            assert numbers(other) == pytest.approx(numbers(alone), abs=1e-5)


def tiny_run_of(live):
    """The directory of the run that a server serves."""
    return live.service.registry.runs[0].engine.ensemble.run.root
