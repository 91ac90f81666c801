"""The page of a run on typed questions: results, certificates, calibrations and prompts by question."""

from __future__ import annotations

import html

import pytest
from typed_rows import QUESTIONS, typed_config

from lorchestra.metrics.table import BY_KEY
from lorchestra.report.html.page import write_report
from lorchestra.runs.ensemble import Ensemble


@pytest.fixture(scope="module")
def evaluated(tiny_base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("typed")
    run = Ensemble.train(typed_config(folder, tiny_base), folder / "run")
    return run, run.evaluate()


def page_of(run, read_page):
    out = run.run.root / "report.html"
    write_report([run.run.root], out)
    return read_page(out), out.read_text(encoding="utf-8")


def test_every_question_has_its_results(evaluated, read_page):
    run, entry = evaluated
    page, _ = page_of(run, read_page)
    results, levels = page.tables[:2]
    for name, question in entry.questions.items():
        about = f"{name}{question.type}, {question.evaluation.num_examples} rows"
        (row,) = [row for row in results if row[0].replace(" ", "") == about.replace(" ", "")]
        assert row[1] == "ensemble"
        for cell, key in zip(row[2:], ("accuracy", "automated_5", "nll", "ece", "aurc"), strict=True):
            assert cell.split()[0] == question.evaluation.ensemble.number(BY_KEY[key])
    ordinal = entry.questions["length"].ordinal["ensemble"]
    assert [row[2:] for row in levels if row[1] == "ensemble"] == [
        [f"{ordinal[key]:.3f}" for key in ("level_mae", "rps", "quadratic_kappa")]
    ]


def test_it_has_calibrations_and_prompts_by_question(evaluated, read_page):
    run, _ = evaluated
    _, text = page_of(run, read_page)
    for name in QUESTIONS:
        assert f"{name}: {run.calibrations[name].sentence()}" in html.unescape(text)
        assert f"Prompt of <bdi>{name}</bdi>" in text
    assert "Question: It is praised.\nIs this true or false?" in text
    assert "{question}" not in text
    assert "genre (choice), praised (predicate), length (score)" in text


def test_each_certificate_names_its_question(evaluated, read_page):
    run, _ = evaluated
    _, text = page_of(run, read_page)
    assert "None yet" in text
    decisions = run.calibrate(question="praised", target_error=0.9)
    _, text = page_of(run, read_page)
    assert "<h4><bdi>praised</bdi></h4>" in text
    assert decisions.guarantee() in text
    assert "Not certified: <bdi>genre</bdi>, <bdi>length</bdi>." in text
    assert "None yet" not in text
