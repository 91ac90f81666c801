"""SWAG and Laplace on the tiny base: draws, linearization, and selection of the precision."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from named_methods import fit_method

from lorchestra.errors import ConfigError
from lorchestra.methods import laplace, one_lora, swag, training
from lorchestra.metrics.predictive import mixture_log_probs
from lorchestra.metrics.scores import nll


@pytest.fixture
def last_training(monkeypatch):
    """Returns a function that gives the last training that was started."""
    last = {}
    original = training.start_training

    def start(*args, **options):
        last["training"] = original(*args, **options)
        return last["training"]

    monkeypatch.setattr(training, "start_training", start)
    monkeypatch.setattr(swag, "start_training", start)
    return lambda: last["training"]


@pytest.mark.parametrize(
    ("first", "num_steps", "number", "expected"),
    [(6, 12, 3, {8, 10, 12}), (6, 12, 20, {7, 8, 9, 10, 11, 12}), (0, 10, 2, {5, 10}), (3, 10, 3, {5, 7, 10})],
)
def test_steps_at_which_iterates_are_collected(first, num_steps, number, expected):
    assert swag._collected(first, num_steps, number) == expected


def test_without_covariance_swag_is_the_mean_of_the_iterates(make_context, last_training):
    context, test = make_context(dtype="float64")
    fitted = swag.fit(context, swag.Config(scale=0.0, iterates=3, start=0.5))
    values = last_training().values
    assert torch.equal(values, values[:1].expand_as(values))
    usual = context.config.train
    path = []
    other = training.start_training(context, training.Meter(), context.config)
    training.only_first_members(other)
    plain = other.trainer.schedules[0]
    other.trainer.schedules = (lambda step: plain(step) if step < 6 else usual.lr * 0.5, *other.trainer.schedules[1:])
    training.train_steps(context, other, lambda step: path.append(other.values[0].clone()))
    mean = torch.stack([path[7], path[9], path[11]]).mean(dim=0)
    torch.testing.assert_close(values[0], mean, rtol=1e-12, atol=1e-12)
    log_probs = fitted.predict(test, "test").log_probs_MEC
    np.testing.assert_allclose(log_probs[0], log_probs[1], rtol=0, atol=1e-9)  # other rows of the same matmul


def test_swag_stores_mean_variance_and_deviations(make_context):
    context, _ = make_context()
    one = fit_method(context, "one_lora").cost
    cost = swag.fit(context, swag.Config(iterates=6, rank=4)).cost
    assert cost.parameters == (2 + 4) * one.parameters
    assert (cost.tokens, cost.fit_base_passes) == (one.tokens, one.fit_base_passes)


VARIANTS = [
    laplace.Config(structure=structure, layers=layers, predictive=predictive, prior=prior, draws=20)
    for structure in ("diagonal", "full")
    for layers in ("all", "last")
    for predictive in ("linearized", "draws")
    for prior in ("validation", "marginal_likelihood")
]


@pytest.mark.parametrize("config", VARIANTS, ids=lambda c: f"{c.structure}-{c.layers}-{c.predictive}-{c.prior}")
def test_every_laplace(make_context, config):
    context, test = make_context("questions")
    fitted = laplace.fit(context, config)
    predictions = fitted.predict(test, "test")
    assert predictions.num_members == (20 if config.predictive == "linearized" else 3)
    np.testing.assert_allclose(np.exp(predictions.log_probs_MEC).sum(axis=-1), 1, rtol=0, atol=1e-6)
    assert len({draw.tobytes() for draw in predictions.log_probs_MEC}) == predictions.num_members
    precision = fitted.chosen["prior_precision"]
    assert precision in config.precisions or config.prior == "marginal_likelihood"
    assert 1e-4 < precision < 1e8


@pytest.mark.parametrize("predictive", ["linearized", "draws"])
def test_under_a_narrow_prior_laplace_is_the_one_lora(make_context, predictive):
    context, test = make_context(dtype="float64")
    one = one_lora.fit(context, one_lora.Config()).predict(test, "test").log_probs_MEC
    gaps = []
    for precision in (1e6, 1e8, 1e10):
        fitted = laplace.fit(context, laplace.Config(predictive=predictive, precisions=(precision,), draws=5))
        gaps.append(np.abs(fitted.predict(test, "test").log_probs_MEC - one).max())
    assert gaps[0] > 1e-4
    # first order in the draws' size, which decreases tenfold each time
    np.testing.assert_allclose([gaps[0] / gaps[1], gaps[1] / gaps[2]], 10, rtol=0.05)


def test_linearized_model_is_the_tangent(make_context):
    """Doubling a small step quadruples the difference between the linearized model and the model."""
    context, test = make_context("questions", dtype="float64")
    trained = training.train_first_member(context, training.Meter(), context.config)
    columns = torch.ones_like(trained.pipeline.model.adapters.is_B)
    start = trained.values.clone()
    noise = torch.randn(1, start.shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rows = trained.pipeline.encode(test).rows
    curved = []
    before = trained.pipeline.predict_members(test, "test").log_probs_MEC[0]
    present = np.isfinite(before)
    for size in (2e-4, 4e-4):
        flat = laplace.DiagonalLaplace(torch.zeros(start.shape[1], dtype=torch.float64))
        state = laplace._Linearized(trained.pipeline, columns, flat, noise)
        linear = state.log_probs(rows, [1 / size**2])[0, 0]
        trained.values.copy_(start + size * noise)
        real = trained.pipeline.predict_members(test, "test").log_probs_MEC[0]
        trained.values.copy_(start)
        curved.append(np.abs(real[present] - linear[present]).max())
        assert curved[-1] < 0.05 * np.abs(real[present] - before[present]).max()
    assert curved[1] / curved[0] == pytest.approx(4, rel=0.1)


def test_validation_chooses_the_precision_with_the_lowest_nll(make_context):
    context, _ = make_context("questions")
    precisions = (1.0, 100.0, 1e4, 1e6)
    config = laplace.Config(precisions=precisions, draws=20)
    scores = {}
    for precision in precisions:
        only = laplace.fit(context, dataclasses.replace(config, precisions=(precision,)))
        predictions = only.predict(context.val, "val")
        scores[precision] = nll(mixture_log_probs(predictions.log_probs_MEC), predictions.labels)
    fitted = laplace.fit(context, config)
    assert fitted.chosen["prior_precision"] == min(scores, key=scores.get)
    assert bool(fitted.notes) == (fitted.chosen["prior_precision"] in (1.0, 1e6))


def test_precision_at_a_bound_is_noted():
    config = laplace.Config()
    assert laplace._at_bound(1e3, config) == []
    (note,) = laplace._at_bound(1e6, config)
    assert note == (
        "the prior's precision, 1e+06, is the largest of laplace.precisions; a wider range may include a better one"
    )
    assert "is the smallest of" in laplace._at_bound(1e-1, config)[0]
    assert laplace._at_bound(1.0, laplace.Config(precisions=(1.0,))) == []
    evidence = laplace.Config(prior="marginal_likelihood")
    assert laplace._at_bound(1e3, evidence) == []
    assert "largest allowed value" in laplace._at_bound(1e8, evidence)[0]


def test_draws_over_the_last_layer_do_not_change_lower_layers(make_context, last_training):
    context, _ = make_context()
    laplace.fit(context, laplace.Config(layers="last", predictive="draws"))
    trained = last_training()
    columns = training.last_layer_columns(trained.pipeline.model)
    assert torch.equal(trained.values[:, ~columns], trained.values[:1, ~columns].expand(3, -1))
    assert len({row.numpy().tobytes() for row in trained.values[:, columns]}) == 3


def test_refusals(make_context, monkeypatch):
    context, _ = make_context()
    with pytest.raises(ConfigError, match=r"swag\.start: 1\.0 is not in \[0, 1\)"):
        swag.fit(context, swag.Config(start=1.0))
    with pytest.raises(ConfigError, match=r"swag: 1 optimizer steps after swag\.start 0\.95 are too few"):
        swag.fit(context, swag.Config(start=0.95))
    with pytest.raises(ConfigError, match=r"swag\.rank: 1 is less than 2"):
        swag.fit(context, swag.Config(rank=1))
    with pytest.raises(ConfigError, match=r"laplace\.draws: 0 is less than 1"):
        laplace.fit(context, laplace.Config(draws=0))
    with pytest.raises(ConfigError, match=r"laplace\.precisions: \(0\.0,\)"):
        laplace.fit(context, laplace.Config(precisions=(0.0,)))
    monkeypatch.setattr(laplace, "MAX_NUMBERS", 1000)
    with pytest.raises(ConfigError, match=r"laplace\.structure: the full curvature of 48 training rows"):
        laplace.fit(context, laplace.Config(structure="full"))
