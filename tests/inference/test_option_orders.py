"""Answers by letters, averaged over orders of the options."""

from __future__ import annotations

import numpy as np
import pytest

from lorchestra.config.data import DataConfig, PromptConfig, check_data
from lorchestra.errors import ConfigError
from lorchestra.inference.option_orders import average, count_flips, option_orders, reordered
from lorchestra.inference.predict import member_passes
from lorchestra.questions import Question
from lorchestra.runs.build import build_pipeline
from lorchestra.types import Example

CHOICES = ("red", "green", "blue", "grey")
ROWS = [
    Example(f"r{e}", f"the colour of {word}", CHOICES[: 2 + e], e % 2) for e, word in enumerate(("it", "sky", "sea"))
]
TYPED = Question("colour", "choice", "Which colour?", CHOICES, ("like blood", None, "like the sky", None))


@pytest.fixture(scope="module")
def pipelines(tiny_base):
    """Pipelines with letters, by the number of orders."""
    from lorchestra.config.adapt import AdaptConfig, BaseConfig
    from lorchestra.config.run import RunConfig

    def build(number):
        data = DataConfig(train="rows.csv", scoring="letter", prompt=PromptConfig(option_orders=number))
        config = RunConfig(
            base=BaseConfig(name=str(tiny_base), dtype="float64"), adapt=AdaptConfig(members=2, r=2), data=data
        )
        return build_pipeline(config, "colours", None, ROWS)[0]

    return {number: build(number) for number in (1, 2, 4)}


def test_orders_are_rotations_far_apart():
    row = ROWS[2]
    assert option_orders(row, 1) == [(0, 1, 2, 3)]
    assert option_orders(row, 2) == [(0, 1, 2, 3), (2, 3, 0, 1)]
    # with as many orders as options, each is once in every position
    assert sorted(zip(*option_orders(row, 4), strict=True)) == sorted(option_orders(row, 4))
    assert option_orders(ROWS[0], 26) == [(0, 1), (1, 0)]


def test_levels_and_truth_values_keep_their_order():
    for kind, options in (("score", CHOICES), ("predicate", ("false", "true"))):
        asked = Question("q", kind, "How?", options)
        assert option_orders(Example("r", "state", options, 0, "", asked), 4) == [tuple(range(len(options)))]


def test_an_option_moves_with_its_description_and_answer():
    row = Example("r", "state", CHOICES, 2, "", TYPED)
    moved = reordered(row, (2, 3, 0, 1))
    assert moved.choices == moved.asked.options == ("blue", "grey", "red", "green")
    assert moved.asked.descriptions == ("like the sky", None, "like blood", None)
    assert moved.answer == 0


@pytest.mark.parametrize("number", [2, 4])
def test_equals_the_mean_over_reordered_rows(pipelines, number):
    passes = member_passes(range(2))
    averaged = pipelines[number].predict(ROWS, passes, "val").log_probs_MEC
    for e, row in enumerate(ROWS):
        probs = []
        for order in option_orders(row, number):
            one = pipelines[1].predict([reordered(row, order)], passes, "val").log_probs_MEC[:, 0]
            probs.append(np.exp(one)[:, np.argsort(order)])
        expected = np.log(np.mean(probs, axis=0))
        np.testing.assert_allclose(averaged[:, e, : len(row.choices)], expected, rtol=0, atol=1e-12)
        assert (averaged[:, e, len(row.choices) :] == -np.inf).all()


@pytest.mark.parametrize("asked", [None, TYPED], ids=["choices", "typed"])
def test_all_rotations_make_an_answer_independent_of_the_rotation(pipelines, asked):
    row = Example("r", "the colour of the sky", CHOICES, None, "", asked)
    for pipeline, equal in ((pipelines[4], True), (pipelines[1], False)):
        first = pipeline.predict([row], member_passes(range(2)), "val").log_probs_MEC[:, 0]
        order = (1, 2, 3, 0)
        second = pipeline.predict([reordered(row, order)], member_passes(range(2)), "val").log_probs_MEC[:, 0]
        assert np.allclose(first, second[:, np.argsort(order)], rtol=0, atol=1e-12) == equal


def test_flips_are_counted_by_hand():
    """Three orders of four rows: always the same answer, another in the second, another in an order it lacks, one."""
    best_KE = np.array([[0, 0, 0, 1], [0, 1, 0, 0], [0, 0, 1, 0]])
    log_probs_KMEC = np.log(np.where(np.arange(2) == best_KE[:, None, :, None], 0.8, 0.2))
    present_KE = np.array([[True] * 4, [True, True, True, False], [True, True, False, False]])
    flips = count_flips(log_probs_KMEC, present_KE)
    assert (flips.rows, flips.flipped) == (3, 1)
    assert flips.sentence() == "1 of 3 answers (33.3 %) change with the order of the options"
    mean = np.exp(average(log_probs_KMEC, present_KE))
    np.testing.assert_allclose(mean[0], [[0.8, 0.2], [0.6, 0.4], [0.8, 0.2], [0.2, 0.8]])


def test_the_pipeline_counts_flips_of_its_predictions(pipelines):
    pipeline = pipelines[4]
    before = pipeline.order_flips.rows
    pipeline.predict(ROWS, member_passes(range(2)), "val")
    assert pipeline.order_flips.rows == before + 3
    assert pipelines[1].order_flips.sentence() is None


@pytest.mark.parametrize("number", [0, 27])
def test_a_number_of_orders_out_of_range(number):
    with pytest.raises(ConfigError, match=f"data.prompt.option_orders: {number} is not between 1 and 26"):
        check_data(DataConfig(train="rows.csv", prompt=PromptConfig(option_orders=number)))
