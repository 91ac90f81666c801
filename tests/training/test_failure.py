"""When a member has failed: bounds by known values, and trainings in which each condition occurs."""

from __future__ import annotations

import json
import math

import pytest
import torch

import lorchestra.training.trainer
from lorchestra.training.callbacks import Interrupted
from lorchestra.training.checkpoint import TrainState
from lorchestra.training.failure import (
    GRADIENT_BOUND,
    LOSS_FACTOR,
    PARAMETER_BOUND,
    epoch_failure,
    gradient_failure,
    parameter_failures,
    step_failure,
    validation_failure,
)

FLOAT32 = torch.finfo(torch.float32).max


def test_bounds_are_the_limits_of_float32():
    """A norm at its bound can be squared, as can the product of three parameters; at twice the bound they overflow."""
    for factor, finite in ((1.0, True), (2.0, False)):
        norm = torch.tensor(factor * GRADIENT_BOUND, dtype=torch.float64)
        product = torch.tensor(factor * PARAMETER_BOUND, dtype=torch.float64) ** 3
        assert bool(norm.square() <= FLOAT32 * (1 + 1e-9)) is finite
        assert bool(product.square() <= FLOAT32 * (1 + 1e-9)) is finite


def test_a_step_fails_by_any_term_or_by_its_gradient():
    assert step_failure({"loss": 900.0, "kl_to_base": 3.0}, 0.99 * GRADIENT_BOUND) is None
    assert step_failure({"loss": 0.7}, 1.01 * GRADIENT_BOUND) == "loss 0.7, gradient norm 1.86312e+19"
    assert step_failure({"loss": 0.7}, math.inf) == "loss 0.7, gradient norm inf"
    assert step_failure({"loss": math.nan}, 0.1) == "loss nan, gradient norm 0.1"
    assert step_failure({"loss": 0.7, "kl_to_base": math.inf}, 0.1) == "loss 0.7, kl_to_base inf, gradient norm 0.1"
    assert gradient_failure(math.nan) == "gradient norm nan"
    assert gradient_failure(1e6) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_parameters_fail_by_the_largest(dtype):
    """Not by their norm: that of member 4 is above the bound, but none of its parameters is."""
    values = torch.zeros(6, 10, dtype=dtype)
    values[0, 3], values[1, 2], values[2, 4], values[3, 9] = 2e6, math.nan, -math.inf, -1e29
    values[4] = 2e6
    assert parameter_failures(values) == {
        1: "largest parameter nan, bound 2.6e+06",
        2: "largest parameter inf, bound 2.6e+06",
        3: "largest parameter 1e+29, bound 2.6e+06",
    }


def test_an_epoch_fails_well_above_the_first_loss_and_guessing():
    two = math.log(2)
    assert epoch_failure(LOSS_FACTOR * two, 0.01, two) is None
    assert epoch_failure(1.01 * LOSS_FACTOR * two, 0.01, two) is not None
    assert epoch_failure(1.01 * LOSS_FACTOR * two, 3.0, two) is None  # a base with a high initial loss
    assert epoch_failure(30.1, 3.0, two) == (
        "mean training loss 30.1 over an epoch, more than 10 times that of the first step (3) and of guessing (0.693)"
    )
    assert epoch_failure(0.0, 0.0, 0.0) is None  # rows with one choice


def test_a_validation_nll_fails_only_if_it_is_not_finite():
    assert validation_failure(1e6) is None
    assert validation_failure(math.nan) == "validation NLL nan"
    assert validation_failure(math.inf) == "validation NLL inf"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rate", [1e9, 1e30])
def test_an_absurd_rate_is_a_failure_in_every_number_format(make_trainer, train, dtype, rate):
    """Adam's first step changes B by the rate, whatever the rounding of kernels; no further step is computed."""
    trainer = train(make_trainer(dtype=dtype, train={"lr": rate, "warmup": 0.0, "clip_norm": 0.0}))
    assert trainer.state.step == 1
    for member in trainer.state.members:
        assert (member.status, member.failed_step) == ("failed", 1)
        assert member.reason.startswith("diverged: largest parameter 1e+")
        assert member.reason.endswith("(step 1)")


def test_a_gradient_whose_square_overflows_is_not_applied(make_trainer, train, monkeypatch):
    original, calls = lorchestra.training.trainer.clip_gradients, []

    def huge(grad, max_norms):
        norms = original(grad, max_norms)
        calls.append(0)
        return norms.index_fill(0, torch.tensor([1]), 1e20) if len(calls) == 2 else norms

    monkeypatch.setattr(lorchestra.training.trainer, "clip_gradients", huge)
    trainer = train(make_trainer())
    failed = trainer.state.members[1]
    assert (failed.status, failed.failed_step) == ("failed", 2)
    assert failed.reason.endswith("gradient norm 1e+20 (step 2)")
    values = trainer.callback.values
    assert torch.equal(values[1][1], values[0][1])
    assert [member.status for member in trainer.state.members] == ["finished", "failed", "finished"]


@pytest.mark.parametrize("value", [3e6, -3e6, math.nan, math.inf])
def test_a_parameter_out_of_bounds_fails_its_member_in_the_step_that_made_it(make_trainer, train, value):
    """Its best copy, from an earlier step, is kept."""
    trainer = make_trainer()
    plain = trainer.optimizer.step

    def step(grad, lrs, members):
        plain(grad, lrs, members)
        if trainer.state.step == trainer.steps_per_epoch:
            trainer.model.adapters.values[1, 3] = value

    trainer.optimizer.step = step
    train(trainer)
    failed = trainer.state.members[1]
    assert (failed.status, failed.failed_step) == ("failed", trainer.steps_per_epoch + 1)
    assert "largest parameter" in failed.reason
    assert failed.best_step == trainer.steps_per_epoch
    assert trainer.best[1].abs().max() < 10
    assert [member.status for member in trainer.state.members] == ["finished", "failed", "finished"]


def add_to_losses(trainer, amount, member, steps):
    """Adds a constant to one member's losses in some steps, after the backward pass, so nothing else changes."""
    plain = trainer._fail_before_update

    def raised(terms):
        if trainer.state.step in steps:
            terms["loss"][member] += amount
        plain(terms)

    trainer._fail_before_update = raised
    return trainer


def test_a_loss_well_above_guessing_for_an_epoch_is_a_failure(make_trainer, train):
    """The others are bit-equal up to that step."""
    plain = train(make_trainer(train={"epochs": 3}))
    trainer = make_trainer(train={"epochs": 3})
    add_to_losses(trainer, 1000.0, member=1, steps=range(trainer.steps_per_epoch, 99))
    train(trainer)
    failed, end = trainer.state.members[1], 2 * trainer.steps_per_epoch
    assert (failed.status, failed.failed_step) == ("failed", end)
    assert failed.reason.startswith("diverged: mean training loss 1")
    assert failed.best_step == trainer.steps_per_epoch
    assert trainer.state.history[1]["val_nll"][1] is None
    for step in range(end):
        assert torch.equal(trainer.callback.values[step], plain.callback.values[step])
    for m in (0, 2):
        assert trainer.state.members[m].status == "finished"
        torch.testing.assert_close(trainer.best[m], plain.best[m], rtol=0, atol=1e-9)


@pytest.mark.parametrize("steps", [range(99), [1], [4]], ids=str)
def test_a_loss_high_from_the_start_or_in_one_step_is_not_a_failure(make_trainer, train, steps):
    """A base may have a high initial loss, and a single step above the bound is noise if the epoch's mean is not."""
    trainer = make_trainer()
    assert trainer.steps_per_epoch == 3
    amount = 1000.0 if steps == range(99) else 1.5 * LOSS_FACTOR * trainer.log_choices[1]
    train(add_to_losses(trainer, amount, member=1, steps=steps))
    assert [member.status for member in trainer.state.members] == ["finished"] * 3


def test_an_over_fitted_member_has_not_failed(make_trainer, train, script_validation):
    """Its validation NLL may be arbitrarily high while its training loss is low."""
    script_validation([[0.5, 0.5, 0.5], [0.5, 40.0, 0.5], [0.5, 49.0, 0.5]])
    trainer = train(make_trainer(train={"epochs": 3}))
    assert [member.status for member in trainer.state.members] == ["finished"] * 3
    assert trainer.state.members[1].best_step == trainer.steps_per_epoch


def test_the_loss_of_guessing_is_that_of_the_members_rows(make_trainer, make_rows):
    rows = make_rows(12, num_choices=(2, 2)), make_rows(7, seed=1)
    assert make_trainer(rows=rows).log_choices == pytest.approx([math.log(2)] * 3)
    trainer = make_trainer(order="bootstrap")
    for m, member in enumerate(trainer.settings):
        log_choices = [math.log(len(trainer.rows.train[e].choices)) for e in member.rows]
        assert trainer.log_choices[m] == pytest.approx(sum(log_choices) / len(log_choices))


@pytest.mark.parametrize("stop", [1, 2, 3, 4, 5])
def test_the_losses_of_an_epoch_survive_an_interruption(make_trainer, train, stop):
    """The resumed run fails the same member in the same step for the same reason, digit by digit."""

    def build():
        return add_to_losses(make_trainer(train={"epochs": 3}), 1000.0, member=1, steps=range(1, 99))

    whole = train(build())
    assert whole.state.members[1].failed_step == whole.steps_per_epoch
    first, saved = build(), []

    def save():
        tensors = {name: tensor.clone() for name, tensor in first.tensors().items()}
        saved.append((json.dumps(first.state.to_json()), tensors))

    first.callback.should_stop = lambda: first.state.step == stop
    with pytest.raises(Interrupted):
        first.run(save)
    text, tensors = saved[-1]
    resumed = build()
    resumed.restore(TrainState.from_json(json.loads(text)), tensors)
    train(resumed)
    assert {**resumed.state.to_json(), "train_s": 0} == {**whole.state.to_json(), "train_s": 0}


def test_only_missing_fields_of_earlier_versions_are_completed():
    values = TrainState(step=4).to_json() | {"members": [{"status": "running"}, "damaged"]}
    TrainState.complete(values)
    added = {"first_loss": None, "epoch_loss": 0.0, "epoch_steps": 0, "mean_loss": None, "best_score": None}
    assert values["members"][0] == {"status": "running", **added}
    assert values["members"][1] == "damaged"
    for damaged in ([], None, {"members": 3}, {}):
        TrainState.complete(damaged)
