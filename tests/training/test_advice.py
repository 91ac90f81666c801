"""What the course of a training suggests."""

from __future__ import annotations

import math

import pytest

from lorchestra.training.advice import advice


def entries(val_nlls, spread=0.1, train_nll=0.5):
    return [
        {"val_nll": [nll, nll, None], "val_spread": [spread, spread, None], "train_nll": [train_nll, train_nll, None]}
        for nll in val_nlls
    ]


@pytest.mark.parametrize(
    ("history", "words"),
    [
        (entries([1.0, 0.9, 0.8]), ["still falling in the last epoch (from 0.900 to 0.800)", "--train.epochs 6"]),
        (entries([1.0, 0.9, 0.89]), []),
        (entries([1.0]), []),
        (entries([]), []),
        (entries([1.0, 1.0], spread=0.002), ["members are nearly equal", "0.2 points"]),
        (entries([0.5, 0.8], train_nll=0.01), ["rose from 0.500 to 0.800", "regularize"]),
        (entries([0.5, 0.8], train_nll=0.6), []),
        (entries([0.5, 0.52], train_nll=0.01), []),
        ([{"val_nll": [0.5]}, {"val_nll": [0.5]}], []),  # of an earlier version
        ([{"val_nll": [None]}], []),
        ([{"val_nll": [0.5], "val_spread": [0.0]}], []),  # one member alone
    ],
)
def test_each_sentence_has_its_sign(history, words):
    sentences = advice(history, 3, math.log(2))
    assert len(sentences) == bool(words)
    for word in words:
        assert word in sentences[0]
