"""BLoB on the tiny base: without variance it is one LoRA; samples, steps, draws and kept epochs as defined."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from named_methods import fit_method

import lorchestra.methods.blob
from lorchestra.errors import ConfigError
from lorchestra.methods import blob, one_lora
from lorchestra.methods.blob import Config, DealtSampler, PosteriorAdamW
from lorchestra.methods.mean_field import kl_gradients, kl_weight
from lorchestra.metrics.predictive import mixture_log_probs
from lorchestra.nn.optimizer import clip_gradients

PLAIN = Config(init_rho=0.0, kl_lr=0.0, samples=1, draws=0)
"""No variance, no KL divergence: one LoRA."""


@pytest.fixture
def last_optimizer(monkeypatch):
    """Returns a function that gives the optimizer of the last fit."""
    made = []
    original = PosteriorAdamW.__init__

    def init(self, *arguments):
        original(self, *arguments)
        made.append(self)

    monkeypatch.setattr(PosteriorAdamW, "__init__", init)
    return lambda: made[-1]


def log_probs(context, test, config):
    return blob.fit(context, config).predict(test, "test").log_probs_MEC


@pytest.mark.parametrize("kind", ["texts", "questions"])
def test_without_variance_it_is_one_lora_to_the_last_bit(make_context, kind):
    settings = {"train": {"keep": "last", "clip_norm": 0.0}, "regularize": {"weight_decay_b": 5.0, "kl_beta": 0.1}}
    context, test = make_context(kind, **settings)
    one = one_lora.fit(context, one_lora.Config())
    fitted = blob.fit(context, PLAIN)
    np.testing.assert_array_equal(
        fitted.predict(test, "test").log_probs_MEC, one.predict(test, "test").log_probs_MEC, strict=True
    )
    for name in ("tokens", "fit_base_passes", "predict_base_passes", "parameters"):
        assert getattr(fitted.cost, name) == getattr(one.cost, name)
    assert fitted.chosen == {"posterior_std": 0.0}


@pytest.mark.parametrize(("samples", "draws"), [(2, 0), (3, 2), (8, 1)])
def test_without_variance_dealing_rows_to_samples_changes_nothing(make_context, samples, draws):
    """With clipping, decay, a last batch of fewer rows than samples, and regularizers.

    The tolerance is that of float32, in which the base computes its norms.
    """
    settings = {
        "train": {"keep": "last", "clip_norm": 0.05, "batch_size": 9},
        "regularize": {"weight_decay_b": 5.0, "weight_decay_ba": 0.1, "label_smoothing": 0.1},
    }
    context, test = make_context(dtype="float64", **settings)
    assert len(context.train) % 9 == 3
    one = one_lora.fit(context, one_lora.Config()).predict(test, "test").log_probs_MEC
    several = log_probs(context, test, dataclasses.replace(PLAIN, samples=samples, draws=draws))
    np.testing.assert_allclose(several, np.broadcast_to(one, several.shape), rtol=0, atol=2e-6)


def test_a_batch_is_dealt_once_with_shares_by_weight(make_context):
    context, _ = make_context(train={"batch_size": 9})
    training = lorchestra.methods.blob.start_training(context, lorchestra.methods.blob.Meter(), context.config)
    trainer = training.trainer
    weights = [1.0 + (row.row % 4) for row in trainer.rows.train]
    trainer.rows = dataclasses.replace(trainer.rows, weights=weights)
    sampler = DealtSampler(trainer, 4)
    for step in (0, 5):  # a batch of nine rows, and the last of an epoch
        whole = trainer.sampler.rows(0, step)
        dealt = [sampler.rows(member, step) for member in range(4)]
        assert [row.row for rows in dealt for row in rows] == [row.row for k in range(4) for row in whole[k::4]]
        totals = [sum(weights[row.row] for row in rows) for rows in dealt]
        assert sampler.shares(step) == pytest.approx([total / sum(totals) for total in totals], rel=1e-12)


def test_steps_are_adamw_on_the_loss_then_descent_on_the_kl_divergence(make_context, monkeypatch, last_optimizer):
    """Replays every step of a fit from the members' gradients that it was given, with torch's AdamW."""
    context, _ = make_context(dtype="float64", train={"keep": "last", "clip_norm": 0.3, "schedule": "cosine"})
    config = Config(samples=3, gamma=4.0, kl_lr=0.003)
    given = []
    original = PosteriorAdamW.step

    def step(self, grad_MP, lrs, members):
        given.append((self.theta.clone(), self.values.clone(), grad_MP.clone(), lrs[0]))
        original(self, grad_MP, lrs, members)

    monkeypatch.setattr(PosteriorAdamW, "step", step)
    blob.fit(context, config)
    optimizer = last_optimizer()
    posterior, columns = optimizer.posterior, optimizer.posterior.columns
    theta = given[0][0][0].clone().requires_grad_()
    adamw = torch.optim.AdamW([theta], weight_decay=0.0)
    assert len(given) == 12
    assert optimizer.cycle == 6  # an epoch
    for number, (_, values, grads, lr) in enumerate(given):
        noise = torch.stack([posterior.noise(context.seed, number, k) for k in range(3)]).double()
        samples = posterior.samples(theta, noise)
        torch.testing.assert_close(samples.detach(), values[:3], rtol=1e-12, atol=1e-14)
        shares = torch.tensor([3.0, 3.0, 2.0], dtype=torch.float64)[:, None] / 8
        adamw.zero_grad()
        samples.backward(grads[:3] * shares)
        clip_gradients(theta.grad[None], [0.3])
        adamw.param_groups[0]["lr"] = lr
        adamw.step()
        with torch.no_grad():
            rate = 0.003 * kl_weight(number, 6) * lr / context.config.train.lr
            of_mean, of_rho = kl_gradients(theta[columns], posterior.rho(theta), config.prior_std)
            theta[columns] -= rate * of_mean
            posterior.rho(theta).sub_(rate * of_rho)
    torch.testing.assert_close(optimizer.theta[0], theta.detach(), rtol=1e-9, atol=1e-12)
    start = posterior.rho(given[0][0][0])
    assert (posterior.rho(theta.detach()) > start).all()  # towards the prior


def test_draws_are_the_mean_and_independent_noise_times_the_standard_deviations(make_context, last_optimizer):
    context, test = make_context(dtype="float64")
    first = log_probs(context, test, Config(draws=2))
    more = log_probs(context, test, Config(draws=5))
    optimizer = last_optimizer()
    assert len(more) == 5
    assert len({draw.tobytes() for draw in more}) == 5
    np.testing.assert_allclose(more[:2], first, rtol=0, atol=1e-9)
    posterior, theta = optimizer.posterior, optimizer.theta[0]
    deviations = optimizer.values[:5, posterior.columns] - theta[posterior.columns]
    noise = torch.stack([posterior.noise(context.seed, "draw", s) for s in range(5)]).double()
    torch.testing.assert_close(deviations, posterior.rho(theta).square() * noise, rtol=1e-9, atol=1e-12)
    is_B = optimizer.is_B
    assert torch.equal(optimizer.values[:5, is_B], theta[: len(is_B)][is_B].expand(5, -1))
    assert theta[: len(is_B)][is_B].any()


def test_the_mean_predicts_in_one_pass(make_context, last_optimizer):
    context, test = make_context(dtype="float64", train={"keep": "last"})
    fitted = blob.fit(context, Config(draws=0))
    mean = last_optimizer().posterior.mean(last_optimizer().theta[0])
    assert torch.equal(last_optimizer().values[0], mean)
    assert fitted.predict(test, "test").num_members == 1
    sampled = blob.fit(context, Config())
    assert torch.equal(last_optimizer().posterior.mean(last_optimizer().theta[0]), mean)
    one = fit_method(context, "one_lora").cost
    assert fitted.cost.parameters == one.parameters
    assert fitted.cost.predict_base_passes == one.predict_base_passes < sampled.cost.predict_base_passes
    # two layers, q and v of 32 inputs, rank 2
    assert sampled.cost.parameters == one.parameters + 2 * 2 * 2 * 32
    assert (sampled.cost.tokens, sampled.cost.fit_base_passes) == (one.tokens, one.fit_base_passes)


@pytest.mark.parametrize("draws", [0, 3])
def test_the_epoch_with_the_best_validation_nll_of_what_predicts_is_kept(
    make_context, monkeypatch, last_optimizer, draws
):
    """Evaluations do not change the training, either."""
    context, _ = make_context(dtype="float64", train={"epochs": 4})
    seen = []

    def scripted(log_probs_EC, labels_E):
        seen.append((log_probs_EC, labels_E, last_optimizer().theta.clone()))
        return [0.9, 0.3, 0.5, 0.7][len(seen) - 1]

    monkeypatch.setattr(lorchestra.methods.blob, "nll", scripted)
    fitted = blob.fit(context, Config(draws=draws))
    assert len(seen) == 4
    mixture_EC, labels_E, theta = seen[1]
    assert torch.equal(last_optimizer().theta, theta)
    assert not torch.equal(seen[3][2], theta)
    val = fitted.predict(context.val, "val")
    np.testing.assert_array_equal(val.labels, labels_E)
    np.testing.assert_allclose(mixture_log_probs(val.log_probs_MEC), mixture_EC, rtol=0, atol=1e-6)

    last = dataclasses.replace(context.config, train=dataclasses.replace(context.config.train, keep="last"))
    blob.fit(dataclasses.replace(context, config=last), Config(draws=draws))
    assert len(seen) == 4
    assert torch.equal(last_optimizer().theta, seen[3][2])


def test_a_strong_kl_term_ends_at_the_prior_with_a_note(make_context, last_optimizer):
    context, _ = make_context(train={"keep": "last", "schedule": "constant", "lr": 1e-4})
    fitted = blob.fit(context, Config(kl_lr=1e6, prior_std=0.3, gamma=1e9))
    assert last_optimizer().cycle == 6
    assert fitted.chosen["posterior_std"] == pytest.approx(0.3, rel=0.01)
    assert fitted.chosen["kl_nats"] < 1e-3
    (note,) = fitted.notes
    assert note.startswith(
        "the posterior's standard deviation, 0.3 on average, is about that of the prior, 0.3: the data"
    )
    assert blob.fit(context, Config()).notes == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("blob:samples=0", r"blob\.samples: 0 is not in \[1, 8\], the rows of a batch"),
        ("blob:samples=9", r"blob\.samples: 9 is not in"),
        ("blob:draws=-1", r"blob\.draws: -1 is not in \[0, 10,000\]"),
        ("blob:draws=10001", r"blob\.draws: 10001 is not in"),
        ("blob:prior_std=0", r"blob\.prior_std: 0\.0 is not a finite number above 0"),
        ("blob:gamma=.nan", r"blob\.gamma: nan is not a finite number above 0"),
        ("blob:kl_lr=-1", r"blob\.kl_lr: -1\.0 must be finite and at least 0"),
        ("blob:init_rho=.inf", r"blob\.init_rho: inf must be finite"),
        ("blob:init_rho=0", r"blob\.init_rho: at 0, .* set blob\.kl_lr to 0, too"),
    ],
)
def test_settings_out_of_range_are_refused(make_context, name, message):
    context, _ = make_context()
    with pytest.raises(ConfigError, match=message):
        fit_method(context, name)


def test_decay_of_a_is_refused(make_context):
    context, _ = make_context(regularize={"weight_decay_a": 0.1})
    with pytest.raises(ConfigError, match=r"blob: decay of A is not supported.*regularize\.weight_decay_a to 0"):
        fit_method(context, "blob")
