"""Confidence, decisions and drift of trained questions in `/metrics`."""

from __future__ import annotations

import math

import numpy as np
import pytest
from live_server import FakeEngine, served
from prometheus_client import CollectorRegistry

from lorchestra.metrics.drift import shift_of_numbers
from lorchestra.runs.ask import Reply
from lorchestra.runs.predict import Answer
from lorchestra.server.question_metrics import QuestionMetrics


def reply(confidence, question="queue", decision="automate"):
    answer = Answer("", 1, confidence=confidence, decision=decision, question="a name of the client")
    return Reply(answer, 10, question=question)


@pytest.fixture
def counted():
    """Metrics of a run that was certified on confidences from 0.5 to 1, and a function that reads a value."""
    registry = CollectorRegistry()
    reference = tuple(np.linspace(0.5, 1, 101))
    metrics = QuestionMetrics(registry, [served(FakeEngine(), references={"queue": reference})])

    def value(name, question="queue", **labels):
        return registry.get_sample_value(f"lorchestra_{name}", {"run": "fake", "question": question, **labels})

    return metrics, value, reference


def test_decisions_and_confidences_by_question(counted):
    metrics, value, _ = counted
    for confidence, decision in ((0.97, "automate"), (0.52, "abstain"), (0.93, "automate"), (0.3, None)):
        metrics.count("fake", reply(confidence, decision=decision))
    assert value("decisions_total", decision="automate") == 2
    assert value("decisions_total", decision="abstain") == value("decisions_total", decision="none") == 1
    assert value("confidence_count") == 4
    assert value("confidence_bucket", le="0.55") == 2
    assert value("confidence_bucket", le="0.95") == 3


def test_questions_that_were_not_trained_are_not_named(counted):
    metrics, value, _ = counted
    metrics.count("fake", reply(0.9, question=None))
    assert value("confidence_count") is None
    assert value("confidence_count", "a name of the client") is None


def test_drift_is_the_stability_index_of_recent_answers(counted):
    metrics, value, reference = counted
    assert math.isnan(value("confidence_drift"))
    same = [0.5 + 0.5 * (k % 100) / 100 for k in range(200)]
    for confidence in same:
        metrics.count("fake", reply(confidence))
    assert value("confidence_drift") == shift_of_numbers(np.array(reference), np.array(same)).psi < 0.05
    lower = [0.4 + 0.2 * (k % 100) / 100 for k in range(1000)]
    for confidence in lower:
        metrics.count("fake", reply(confidence))
    # the first answers are forgotten
    assert value("confidence_drift") == shift_of_numbers(np.array(reference), np.array(lower)).psi > 0.25


def test_a_certified_run_reports_its_question(tiny_live):
    question = tiny_live.get("/v1/x_runs").json()["runs"][0]["questions"]
    (name, entry) = next(iter(question.items()))
    asked = {"type": "choice", "instructions": "x", "criteria": dict.fromkeys(entry["order"])}
    for k in range(3):
        tiny_live.post("/v1/systemone", {"model": "jev-latest", "state": f"a film {k}", "questions": {"q": asked}})
    text = tiny_live.get("/metrics").text
    assert f'question="{name}"' in text
    lines = [line for line in text.splitlines() if line.startswith("lorchestra_decisions_total")]
    assert sum(float(line.split()[-1]) for line in lines) >= 3
    assert any(line.startswith("lorchestra_confidence_drift") for line in text.splitlines())
