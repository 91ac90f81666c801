"""Early exit in packed passes: the results of the members used, and no work for the others."""

import dataclasses

import numpy as np
import pytest

from lorchestra.inference.predict import member_passes, predict_early, predict_rows
from lorchestra.metrics.early_exit import ExitRule
from lorchestra.metrics.member_cascade import CascadeRule
from lorchestra.metrics.predictive import mixture_log_probs

ADAPT = {"all layers": {}, "last layer": {"depth": 3, "layers": "last:1"}}
RULES = [ExitRule(), ExitRule(0.8), ExitRule(0.999)]


@pytest.fixture(params=ADAPT.values(), ids=ADAPT.keys())
def model(request, tiny_ensemble):
    """Five members that agree on some rows and contradict each other on others."""
    return tiny_ensemble(spread=0.2, members=5, **request.param)


@pytest.fixture
def rows(make_rows):
    return make_rows(40, "texts", seed=3, num_choices=(2, 4))


def full(model, rows):
    return predict_rows(model, rows, member_passes(range(model.num_members)), 10_000)


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("budget", [1, 40, 10_000])
def test_rows_equal_full_predictions_up_to_the_member_where_they_stop(model, rows, rule, budget):
    expected = full(model, rows)
    log_probs, used = predict_early(model, rows, rule, budget)
    np.testing.assert_array_equal(used, rule.members_used(expected))
    assert len(set(used.tolist())) > 1
    for e, number in enumerate(used):
        width = len(rows[e].choices)
        np.testing.assert_allclose(log_probs[:number, e, :width], expected[:number, e, :width], rtol=0, atol=1e-12)
        assert (log_probs[number:, e] == -np.inf).all()
        assert (log_probs[:, e, width:] == -np.inf).all()


@pytest.mark.parametrize("threshold", [0.0, 0.5, np.inf])
@pytest.mark.parametrize("first", [1, 3])
def test_the_stages_of_a_cascade(model, rows, first, threshold):
    """The first members answer where they are sure, and all five the other rows."""
    expected, rule = full(model, rows), CascadeRule(first, threshold, None)
    log_probs, used = predict_early(model, rows, rule, 40)
    sure = np.exp(mixture_log_probs(expected[:first])).max(axis=1) >= threshold
    np.testing.assert_array_equal(used, np.where(sure, first, 5))
    np.testing.assert_array_equal(used, rule.members_used(expected))
    for e, number in enumerate(used):
        np.testing.assert_allclose(np.exp(log_probs[:number, e]), np.exp(expected[:number, e]), rtol=0, atol=1e-12)
        assert (log_probs[number:, e] == -np.inf).all()


def test_a_prefix_that_all_rows_share_changes_nothing(model, rows):
    front = tuple(range(20, 40))
    rows = [dataclasses.replace(row, prefix=front + row.prefix) for row in rows]
    log_probs, used = predict_early(model, rows, ExitRule(), 100)
    expected = full(model, rows)
    np.testing.assert_array_equal(used, ExitRule().members_used(expected))
    np.testing.assert_allclose(np.exp(log_probs[:3]), np.exp(expected[:3]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_members_run_only_undecided_rows_and_the_trunk_runs_once(tiny_ensemble, rows, rule):
    model = tiny_ensemble(spread=0.2, members=5, **ADAPT["last layer"])
    tokens = [0] * 3
    for index, layer in enumerate(model.model.model.layers):

        def count(module, args, output, index=index):
            tokens[index] += args[0].shape[1]

        layer.mlp.register_forward_hook(count)
    used = predict_early(model, rows, rule, 50)[1]
    total = sum(row.num_tokens for row in rows)
    top = sum(number * row.num_tokens for number, row in zip(used, rows, strict=True))
    assert tokens == [total, total, top]
    assert top < 5 * total


def test_progress_counts_rows_to_the_last(model, rows):
    seen = []
    predict_early(model, rows, ExitRule(), 8, seen.append)
    assert len(seen) > 2
    assert seen == sorted(set(seen))
    assert seen[-1] == 40


def test_no_rows_give_empty_arrays(model):
    log_probs, used = predict_early(model, [], ExitRule(), 50)
    assert (log_probs.shape, used.shape) == ((5, 0, 0), (0,))
