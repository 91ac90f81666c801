"""Several runs of one task on one page."""

from __future__ import annotations

import re

import numpy as np
import pytest

from lorchestra.config.adapt import AdaptConfig
from lorchestra.config.run import RegularizeConfig, RunConfig
from lorchestra.report.html import compare
from lorchestra.report.html.course import arrow_figure
from lorchestra.report.html.page import write_report
from lorchestra.report.html.source import read_runs
from lorchestra.report.html.tables import comparison_rows, method_cost


@pytest.fixture
def runs(make_run):
    """Three runs on the same rows: plain, much sharper, and with other settings."""

    def sharper(rows):
        log_probs = 4 * rows.log_probs_MEC
        log_probs = log_probs - np.log(np.exp(log_probs).sum(axis=-1, keepdims=True))
        return type(rows)(log_probs, rows.labels, rows.ids, rows.options, rows.task, rows.split, rows.texts)

    decayed = RunConfig(adapt=AdaptConfig(members=3, r=16), regularize=RegularizeConfig(weight_decay_b=100.0))
    return read_runs([make_run("plain"), make_run("sharp", change=sharper), make_run("decayed", config=decayed)])


def test_ensembles_are_paired_row_by_row(runs):
    best, sharp, same = compare.ensembles_against(runs, 0)
    assert best is None
    nll = runs[1].entry.ensemble.metrics["nll"] - runs[0].entry.ensemble.metrics["nll"]
    assert (sharp[1].value, sharp[1].judged) == (f"+{nll:.3f}", "worse")
    # the third has the same predictions: the paired difference is exactly 0
    shown = [(cell.value.strip("0."), cell.judged, set(cell.ends or ())) for cell in same]
    unclear, not_judged = ("", "unclear", {0.0}), ("", "unknown", set())
    assert shown == [unclear, unclear, not_judged, unclear, unclear]  # differences of ECEs have no interval


def test_the_sentence_names_what_is_clear_and_what_is_not(runs):
    context = compare.comparison(runs)
    assert context["best"] == 0
    assert not context["decided"]
    value = runs[0].entry.ensemble.metrics["nll"]
    assert context["sentence"] == (
        f"plain has the lowest NLL ({value:.3f} nats). That is clearly lower than in sharp."
        " There is no clear difference to decayed."
    )
    assert compare.comparison(runs[:2])["decided"]


def test_settings_that_differ_are_listed(runs):
    assert compare.settings(runs) == [
        ("adapt.r", ["8", "8", "16"]),
        ("regularize.weight_decay_b", ["0.0", "0.0", "100.0"]),
    ]


def test_costs_are_those_of_the_method(runs):
    run = runs[0]
    assert method_cost(run, "ensemble") == ("9.0", "30 k", "12", "768", "3")
    assert method_cost(run, "best_member_scaled") == ("9.0", "30 k", "12", "768", "1")
    assert method_cost(run, "base_few_shot") == ("0", "0", "0", "0", "1")
    unknown = "\N{EN DASH}"
    assert method_cost(run, "member_mean") == (unknown, "10 k", unknown, "256", "1")
    assert method_cost(run, "mc_dropout") == (unknown, "10 k", unknown, "256", "3")


def test_equal_baselines_are_listed_once(runs):
    groups = comparison_rows(runs)
    baselines = [[row.key for row in rows if row.key in ("majority", "base_few_shot")] for _, rows in groups]
    assert baselines == [["majority", "base_few_shot"], [], []]
    assert all("ensemble" in [row.key for row in rows] for _, rows in groups)


def test_each_run_has_its_arrow(runs):
    figure = arrow_figure(runs)
    assert [key.name for key in figure.keys] == ["1 plain", "2 sharp", "3 decayed"]
    (panel,) = figure.panels
    assert len(re.findall(r"<title>(?:plain|sharp|decayed): accuracy", panel)) >= 3 * 2
    alone = arrow_figure(runs[:1])
    assert alone.keys[-1].name == "to the ensemble"


def test_runs_of_one_member_have_no_arrow(make_run):
    assert arrow_figure(read_runs([make_run(members=1)])) is None


def test_a_page_of_several_runs(runs, read_page, tmp_path):
    out = tmp_path / "all.html"
    write_report([run.run.root for run in runs], out, examples=2)
    page = read_page(out)
    assert "No clear winner" in page.text
    assert page.row("plain", 0)[2] == "the reference: lowest NLL"
    assert page.row("adapt.r") == ["adapt.r", "8", "8", "16"]
    ensembles = [row for row in page.tables[2] if row[0] == "ensemble"]
    assert [row[-5:] for row in ensembles] == [["9.0", "30 k", "12", "768", "3"]] * 3
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {"r0", "r1", "r2", "comparison"} <= set(ids)
    assert len([1 for _, attributes in page.tags if "data-curve" in attributes]) == 3
