"""Mixing a probe into members, and the choice of its weight."""

import numpy as np
import pytest

from lorchestra.metrics.linear_probe import WEIGHTS, LinearProbe, choose_weight, mix
from lorchestra.metrics.predictive import log_softmax, mixture_log_probs


def drawn(seed, *shape):
    return log_softmax(np.random.default_rng(seed).normal(size=shape).reshape(-1, shape[-1])).reshape(shape)


def test_the_members_mean_has_the_probe_with_its_weight():
    members, probe = drawn(0, 4, 6, 3), drawn(1, 6, 3)
    mixed = mix(members, probe, 0.25)
    np.testing.assert_allclose(np.exp(mixed).sum(axis=-1), 1)
    expected = 0.75 * np.exp(members).mean(axis=0) + 0.25 * np.exp(probe)
    np.testing.assert_allclose(np.exp(mixture_log_probs(mixed)), expected)
    np.testing.assert_allclose(mix(members, probe, 0.0), members)
    np.testing.assert_allclose(mix(members, probe, 1.0), np.broadcast_to(probe, members.shape))


def test_a_useful_probe_gets_weight_and_a_useless_one_none():
    labels = np.random.default_rng(2).integers(3, size=400)
    signal = np.eye(3)[labels]
    noise = np.random.default_rng(3).normal(size=(2, 400, 3))
    members = log_softmax(1.5 * signal + noise[0])[None]
    useful, useless = log_softmax(1.5 * signal + noise[1]), drawn(4, 400, 3)
    weight, mixed, alone = choose_weight(members, useful, labels)
    assert weight in WEIGHTS[1:]
    assert mixed < alone
    assert choose_weight(members, useless, labels)[0] == 0.0


def test_a_label_without_rows_keeps_its_probability():
    probe = LinearProbe(
        (1,), np.zeros(2), np.ones(2), np.array([[0.0, 0.0], [1.0, -1.0]]), np.zeros(2), np.array([0, 2]), 3, 0.1, 0.5
    )
    probs = np.exp(probe.log_probs(np.array([[3.0, 1.0], [0.0, 0.0]])))
    np.testing.assert_allclose(probs.sum(axis=1), 1)
    np.testing.assert_allclose(probs[:, 1], 0.1)
    odds = probs[0, 2] / probs[0, 0]
    assert odds == pytest.approx(np.exp(2.0))
