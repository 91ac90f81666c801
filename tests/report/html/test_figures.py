"""The figures against the predictions: tips, legends and positions."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from lorchestra.metrics.diversity import agreement
from lorchestra.metrics.predictive import mixture_log_probs
from lorchestra.metrics.scores import accuracy, score_rows
from lorchestra.report.figure import reliability
from lorchestra.report.html import course, figures
from lorchestra.report.html.examples import pick
from lorchestra.report.html.source import read_run


@pytest.fixture
def run(make_run):
    return read_run(make_run())


def titles(figure):
    return [tip for panel in figure.panels for tip in re.findall(r"<title>([^<]*)</title>", panel)]


def test_reliability_points_are_the_bins(run):
    rows = score_rows(mixture_log_probs(run.predictions.log_probs_MEC), run.predictions.labels)
    confidence, right, share = reliability(rows)
    figure = figures.reliability_figure(run)
    tips = [tip for tip in titles(figure) if re.match(r"ensemble: .* confident", tip)]
    assert len(tips) == (share > 0).sum()
    counts = [int(re.search(r"\((\d+) rows\)", tip)[1]) for tip in tips]
    assert counts == [round(60 * value) for value in share[share > 0]]
    first = np.flatnonzero(share)[0]
    assert tips[0].startswith(f"ensemble: {round(100 * confidence[first], 1):g}\u00a0% confident, ")
    assert f", {round(100 * right[first], 1):g}\u00a0% right" in tips[0]
    assert [key.name for key in figure.keys] == [
        "one LoRA (members pooled)",
        "ensemble",
        "each member",
        "confidence = accuracy",
    ]


def test_wrong_predictions_are_counted(run):
    mixture = mixture_log_probs(run.predictions.log_probs_MEC)
    wrong = mixture.argmax(axis=1) != run.predictions.labels
    mean = np.exp(mixture.max(axis=1))[wrong].mean()
    names = [key.name for key in figures.wrong_figure(run).keys]
    assert f"ensemble: {wrong.sum()} wrong of 60, mean confidence {round(100 * mean, 1):g}\u00a0%" in names
    assert names[0].startswith("base, few-shot: ")
    assert names[1].startswith("one LoRA (members pooled): ")
    assert " wrong of 180," in names[1]


def test_risk_ends_at_the_error_rate(run):
    mixture = mixture_log_probs(run.predictions.log_probs_MEC)
    figure, data = figures.risk_figure(run, "probe")
    error = 1 - accuracy(mixture, run.predictions.labels)
    last = re.findall(r'<g class="c-ens"><path class="line " d="[^"]*L([\d.]+) ([\d.]+)"', figure.panels[0])[0]
    assert float(last[0]) == data["right"]
    height = data["floor"] - (data["floor"] - data["top"]) * error / data["most"]
    assert float(last[1]) == pytest.approx(height, abs=0.1)
    assert data["answered"][0] == 60
    assert data["wrong"][0] == round(60 * error)


def test_rings_mark_the_adapters_that_were_kept(run):
    """All members kept step 8, the second of two evaluations: the last point of each line."""
    figure = course.training_figure(run)
    assert len(figure.panels) == 3
    for m, value in enumerate((0.5, 0.6, 0.7)):
        assert f"member {m}: {value:.3f}" in titles(figure)
    assert figure.panels[0].count('class="ring"') == 3
    assert figure.panels[2].count('class="ring"') == 0
    assert "ensemble of the kept adapters" in [key.name for key in figure.keys]


def test_no_events_no_curves(run):
    assert course.training_figure(replace(run, events=())) is None


def test_the_matrix_shows_agreement(run):
    same = agreement(run.predictions.log_probs_MEC)
    tips = [tip for tip in titles(course.matrix_figure(run)) if tip.startswith("members 0 and 2: ")]
    assert tips[0] == f"members 0 and 2: {100 * same[0, 2]:.0f}"


def test_each_ood_set_has_its_three_scores(make_run):
    run = read_run(make_run("several", ood=("far", "near")))
    figure = course.ood_figure(run)
    assert len(figure.panels) == 2 * 3
    assert course.ood_figure(replace(run, ood={})) is None
    assert len(course.ood_figure(read_run(make_run("alone", members=1))).panels) == 2


def test_axes_leave_room_and_hold_everything():
    assert figures.padded_range([0.5, 0.7, None, float("nan")]) == pytest.approx((0.488, 0.712))
    assert figures.padded_range([0.99, 1.0], most=1.0)[1] == 1.0
    assert figures.padded_range([0.0, 1.0])[0] == 0.0
    assert figures.padded_range([None]) == (0.0, 1.0)
    low, high = figures.padded_range([3.0, 3.0])
    assert low < 3.0 < high


def test_of_many_choices_the_probable_and_the_right_are_shown(run):
    probs = np.linspace(0.05, 0.95, 20)[None, None] / np.linspace(0.05, 0.95, 20).sum()
    rows = replace(
        run.predictions,
        log_probs_MEC=np.log(probs.repeat(2, axis=0)),
        labels=np.array([0]),
        ids=("x",),
        options=(tuple(f"c{c}" for c in range(20)),),
        texts=("w" * 1000,),
    )
    (mistakes,) = pick(rows, mixture_log_probs(rows.log_probs_MEC), 5)
    (row,) = mistakes.rows
    assert [option.text for option in row.options] == ["c0", *(f"c{c}" for c in range(12, 20))]
    assert (row.hidden, row.cut, len(row.text)) == (11, 300, 700)
    assert [option.text for option in row.options if option.predicted] == ["c19"]
    assert [option.text for option in row.options if option.right] == ["c0"]
