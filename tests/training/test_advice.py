"""What the course of a training suggests."""

from __future__ import annotations

import math

import pytest

from lorchestra.training.advice import advice
from lorchestra.training.checkpoint import MemberState, TrainState


def trained(*epochs, spread=0.1, train_nll=0.5, step=30):
    """A training with these validation NLLs by epoch and member (None where a member was not trained)."""
    history = [
        {
            "val_nll": list(nlls),
            "val_spread": [None if nll is None else spread for nll in nlls],
            "train_nll": [None if nll is None else train_nll for nll in nlls],
        }
        for nlls in epochs
    ]
    members = [
        MemberState(best_nll=min((nll for nll in nlls if nll is not None), default=None))
        for nlls in zip(*epochs, strict=True)
    ]
    return TrainState(step=step, members=members, history=history)


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (
            trained((1.0, 1.0), (0.9, 0.9), (0.8, 0.8)),
            ["still falling in the last epoch (from 0.900 to 0.800)", "epochs 6"],
        ),
        (trained((1.0, 1.0), (0.9, 0.9), (0.89, 0.89)), []),
        (trained((1.0, 1.0)), []),
        (TrainState(step=30), []),
        (trained((0.5, 0.9), (0.5, None)), []),  # the other one has stopped
        (trained((0.9, 0.9), (0.5, 0.5), step=20), []),  # ended early by the user
        (trained((1.0, 1.0), (1.0, 1.0), spread=0.002), ["members are nearly equal", "0.2 points"]),
        (trained((1.0, 1.0), (1.0, 1.0), spread=math.nan), []),
        (trained((0.5,), (0.5,), spread=0.0), []),  # one member alone
        (trained((0.5, 0.5), (0.8, 0.8), train_nll=0.01), ["rose from 0.500 to 0.800", "regularize"]),
        (trained((0.5, 0.5), (0.8, 0.8), train_nll=0.6), []),
        (trained((0.5, 0.5), (0.52, 0.52), train_nll=0.01), []),
        (TrainState(step=30, history=[{"val_nll": [0.5]}, {"val_nll": [0.5]}]), []),  # of an earlier version
        (trained((None, None)), []),
    ],
)
def test_each_sentence_has_its_sign(state, words):
    sentences = advice(state, 30, 3, math.log(2))
    assert len(sentences) == bool(words)
    for word in words:
        assert word in sentences[0]


def test_a_loss_near_zero_is_no_overfitting_where_it_is_not_the_nll_of_the_answers():
    """A distilled member's is the divergence from its ensemble, which is to be near zero."""
    assert advice(trained((0.5,), (0.8,), train_nll=0.01), 30, 3, None) == []
