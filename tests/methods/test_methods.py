"""Properties of every method: normalized predictions, repeatable by seed, cost reported, test rows not read."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from named_methods import fit_method
from stopping import StopWhen

import lorchestra.methods.batch_ensemble
import lorchestra.methods.training
from lorchestra.errors import ConfigError, TrainingError
from lorchestra.methods import contextual, laplace, mc_dropout, swag, temperature, tfidf
from lorchestra.methods.registry import METHODS, WRAPPERS, parse_name
from lorchestra.training import linear
from lorchestra.training.callbacks import Callback, Interrupted


def fit(context, name):
    """Fit a method; with a dropout rate, which mc_dropout requires."""
    return fit_method(context, name.replace("mc_dropout", "mc_dropout:dropout=0.2"))


def check(predictions, examples):
    """The predictions are distributions over each row's choices."""
    log_probs_MEC = predictions.log_probs_MEC
    assert predictions.ids == tuple(row.id for row in examples)
    assert log_probs_MEC.shape[1:] == (len(examples), max(len(row.choices) for row in examples))
    present = np.arange(log_probs_MEC.shape[2]) < predictions.num_choices[:, None]
    assert np.isfinite(log_probs_MEC[:, present]).all()
    assert np.isneginf(log_probs_MEC[:, ~present]).all()
    np.testing.assert_allclose(np.exp(log_probs_MEC).sum(axis=-1), 1, rtol=0, atol=1e-6)


LINEAR = ("tfidf", "frozen")
"""Classifiers without adapters, for texts with labels only."""


@pytest.mark.parametrize("kind", ["texts", "questions"])
@pytest.mark.parametrize("name", METHODS)
def test_every_method(make_context, name, kind):
    """The context's splits raise if test rows are read (see conftest)."""
    context, test = make_context(kind)
    if name in LINEAR and kind == "questions":
        with pytest.raises(ConfigError, match=f"^{name}: a classifier needs texts with labels"):
            fit(context, name)
        return
    fitted = fit(context, name)
    predictions = fitted.predict(test, "test")
    check(predictions, test)
    assert (predictions.task, predictions.split) == ("reviews" if kind == "texts" else "questions", "test")
    again = fit(context, name).predict(test, "test")
    np.testing.assert_array_equal(again.log_probs_MEC, predictions.log_probs_MEC)
    np.testing.assert_array_equal(fitted.predict(test, "test").log_probs_MEC, predictions.log_probs_MEC)

    cost = fitted.cost
    assert cost.fit_s > 0
    assert cost.peak_bytes > 10e6
    assert (cost.predict_base_passes > 0) == (name != "tfidf")
    trained = name not in ("zero_shot", "few_shot")
    assert (cost.tokens > 0) == (trained and name not in LINEAR)
    assert (cost.fit_base_passes > 0) == (trained and name != "tfidf")
    assert (cost.parameters > 0) == trained
    other = dataclasses.replace(
        context,
        config=dataclasses.replace(context.config, train=dataclasses.replace(context.config.train, seed=5)),
    )
    differs = not np.array_equal(fit(other, name).predict(test, "test").log_probs_MEC, predictions.log_probs_MEC)
    assert differs == (name not in ("zero_shot", *LINEAR))


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("name", ["zero_shot", "few_shot", "lora_ensemble", "mc_dropout"])
def test_every_wrapper_on_top_of_every_kind_of_method(make_context, name, wrapper):
    context, test = make_context()
    plain = fit(context, name)
    fitted = fit(context, f"{name}+{wrapper}")
    predictions = fitted.predict(test, "test")
    check(predictions, test)
    assert not np.array_equal(predictions.log_probs_MEC, plain.predict(test, "test").log_probs_MEC)
    assert fitted.cost.parameters >= plain.cost.parameters
    again = fit(context, f"{name}+{wrapper}").predict(test, "test")
    np.testing.assert_array_equal(again.log_probs_MEC, predictions.log_probs_MEC)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_supports_pissa_or_refuses_it(make_context, name):
    """The cost counts all stored parameters, including the frozen half."""
    context, test = make_context(adapt={"init_lora_weights": "pissa", "r": 2})
    if name in ("batch_ensemble", "blob", "laplace"):
        message = rf"^{name}: .* adapt\.init_lora_weights: pissa .* choose another initialization"
        with pytest.raises(ConfigError, match=message):
            fit(context, name)
        return
    fitted = fit(context, name)
    check(fitted.predict(test, "test"), test)
    if name in ("lora_ensemble", "soup"):
        plain, _ = make_context(adapt={"r": 4})
        assert fitted.cost.parameters == fit(plain, name).cost.parameters


@pytest.mark.parametrize("name", [name for name in METHODS if name not in ("zero_shot", "few_shot", *LINEAR)])
def test_fit_stops_on_request(make_context, name):
    context, _ = make_context()
    calls = []

    def should_stop():
        calls.append(name)
        return len(calls) > 8

    with pytest.raises(Interrupted):
        fit(dataclasses.replace(context, callback=StopWhen(should_stop)), name)
    assert len(calls) == 9


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("laplace", "curvature, training rows"),
        ("laplace", "prior precision, validation rows"),
        ("last_layer", "validation"),
        ("blob", "validation"),
        ("one_lora+temperature", "temperature, validation rows"),
        ("frozen", "frozen, train rows"),
        ("tfidf", "tfidf, choosing the penalty: fit"),
    ],
)
def test_other_work_than_training_reports_progress_and_stops_on_request(make_context, name, what):
    context, _ = make_context()
    phases = []

    class Recorder(Callback):
        def on_progress(self, text, done, total):
            phases.append((text, done, total))

        def should_stop(self):
            return bool(phases) and phases[-1][0] == what

    stop = dataclasses.replace(context, callback=Recorder())
    with pytest.raises(Interrupted):
        fit(stop, name)
    text, done, total = phases[-1]
    assert text == what
    fits = 2 * len(tfidf.Config().strengths) * linear.NUM_FOLDS
    rows = len(context.train if "train" in what else context.val)
    assert 0 < done <= total == (fits if "penalty" in what else rows)


def test_wrappers_can_be_combined(make_context):
    context, test = make_context()
    both = fit(context, "zero_shot+contextual+temperature")
    check(both.predict(test, "test"), test)
    assert both.chosen["temperature"] != fit(context, "zero_shot+temperature").chosen["temperature"]


def test_number_of_members_draws_and_passes(make_context):
    context, test = make_context()
    numbers = {name: fit(context, name).predict(test, "test").num_members for name in METHODS if name != "laplace"}
    ones = {"zero_shot", *LINEAR, "one_lora", "high_rank", "long_training", "soup"}
    assert {name for name, number in numbers.items() if number == 1} == ones & set(numbers)
    assert {number for name, number in numbers.items() if name not in ones} == {3}


def test_first_member_of_the_ensemble_is_one_lora(make_context):
    context, test = make_context(dtype="float64")
    alone = fit(context, "one_lora").predict(test, "test").log_probs_MEC[0]
    members = fit(context, "lora_ensemble").predict(test, "test").log_probs_MEC
    np.testing.assert_allclose(members[0], alone, rtol=0, atol=1e-6)
    assert np.abs(members[1] - alone).max() > 1e-3


def test_one_lora_sees_all_rows_where_members_leave_out_folds(make_context):
    """In a stack of M, too."""
    own, _ = make_context()
    folds, _ = make_context(adapt={"order": "folds"})
    whole = fit(own, "one_lora").cost.tokens
    for name in ("one_lora", "snapshot", "swag", "laplace", "blob"):
        assert fit(folds, name).cost.tokens == whole
    assert 0 < fit(folds, "lora_ensemble").cost.tokens < 2.1 * whole


def test_failed_training_is_an_error(make_context):
    """The first optimizer step moves parameters by the rate, out of bounds on any hardware."""
    context, _ = make_context(train={"lr": 1e30, "clip_norm": 0.0})
    for name in ("one_lora", "lora_ensemble", "soup"):
        with pytest.raises(TrainingError, match="every member failed"):
            fit(context, name)
    for name in ("snapshot", "swag", "laplace", "last_layer", "blob", "batch_ensemble"):
        with pytest.raises(TrainingError, match=r"(member 0|the adapter) failed \(diverged: largest parameter \S+e\+"):
            fit(context, name)


@pytest.mark.parametrize("name", ["last_layer", "blob", "batch_ensemble"])
def test_nan_validation_nll_fails_members_that_train_together(make_context, monkeypatch, name):
    original = lorchestra.methods.training.predict_rows

    def predict_rows(*arguments, **options):
        log_probs = original(*arguments, **options)
        log_probs[1, 0] = np.nan
        return log_probs

    monkeypatch.setattr(lorchestra.methods.training, "predict_rows", predict_rows)
    context, _ = make_context()
    with pytest.raises(TrainingError, match=r"member 1 failed \(diverged: validation NLL nan \(step \d+\)\)"):
        fit(context, name)


def test_overflowing_gradient_of_shared_weights_is_an_error(make_context, monkeypatch):
    """Clipping would turn it into zeros and the fit would continue."""
    monkeypatch.setattr(lorchestra.methods.batch_ensemble, "clip_gradients", lambda grad, bounds: grad.sum(1) + 1e20)
    context, _ = make_context()
    with pytest.raises(TrainingError, match=r"shared and fast weights failed \(diverged: gradient norm 1e\+20\)"):
        fit(context, "batch_ensemble")


def test_laplace_skips_precisions_with_nan_draws(make_context, monkeypatch):
    """Their NLL would be NaN, which numpy's argmin treats as the minimum."""
    plain = laplace.DiagonalLaplace.draws

    def draws(posterior, noise, precision):
        return plain(posterior, noise, precision) * (np.nan if precision == 1.0 else 1.0)

    monkeypatch.setattr(laplace.DiagonalLaplace, "draws", draws)
    context, _ = make_context()
    for predictive in ("linearized", "draws"):
        fitted = laplace.fit(context, laplace.Config(predictive=predictive, precisions=(1.0, 1e4), draws=5))
        assert fitted.chosen == {"prior_precision": 1e4}
        with pytest.raises(TrainingError, match=r"the draws' validation NLL is finite with none of \(1\.0,\)"):
            laplace.fit(context, laplace.Config(predictive=predictive, precisions=(1.0,), draws=5))


def test_mc_dropout_distributes_passes_over_members(make_context):
    """The first member is the one LoRA, and a pass's masks depend on its index only."""
    context, test = make_context(adapt={"members": 4}, dtype="float64")
    names = ("mc_dropout:dropout=0.2", "mc_dropout:dropout=0.2:members=2", "mc_dropout:dropout=0.2:members=2:passes=6")
    one, two, more = (fit_method(context, name) for name in names)
    of_one, of_two, of_more = (fitted.predict(test, "test").log_probs_MEC for fitted in (one, two, more))
    assert (len(of_two), len(of_more)) == (4, 6)
    np.testing.assert_allclose(of_two[::2], of_one[::2], rtol=0, atol=1e-9)
    assert np.abs(of_two[1::2] - of_one[1::2]).max() > 1e-3
    np.testing.assert_allclose(of_more[:4], of_two, rtol=0, atol=1e-9)
    every = fit_method(context, "mc_dropout:dropout=0.2:members=null").cost
    assert every.tokens == 4 * one.cost.tokens
    assert two.cost.tokens == 2 * one.cost.tokens
    assert two.cost.parameters == 2 * one.cost.parameters
    assert two.cost.predict_base_passes == one.cost.predict_base_passes < more.cost.predict_base_passes


def test_refusals(make_context):
    context, _ = make_context()
    with pytest.raises(ConfigError, match=r"mc_dropout: the dropout rate is 0"):
        fit_method(context, "mc_dropout")
    message = r"mc_dropout\.passes: 3 is not a multiple of its 2 members.*members=2:passes=4"
    with pytest.raises(ConfigError, match=message):
        fit_method(context, "mc_dropout:dropout=0.1:members=2:passes=3")
    for passes in (0, -2):
        with pytest.raises(ConfigError, match=rf"mc_dropout\.passes: {passes} "):
            fit_method(context, f"mc_dropout:dropout=0.1:members=2:passes={passes}")
    with pytest.raises(ConfigError, match=r"mc_dropout\.members: 0 is less than 1"):
        fit_method(context, "mc_dropout:dropout=0.1:members=0")
    with pytest.raises(ConfigError, match=r"few_shot\.num_shots: 1000 is more than the \d+ training rows"):
        fit_method(context, "few_shot:num_shots=1000")
    for name, message in {
        "swag:scale=.inf": r"swag\.scale: inf",
        "swag:lr_factor=.nan": r"swag\.lr_factor: nan",
        "snapshot:lr_factor=.inf": r"snapshot\.lr_factor: inf",
        "batch_ensemble:spread=.inf": r"batch_ensemble\.spread: inf",
        "laplace:precisions=[.inf]": r"laplace\.precisions: \(inf,\)",
    }.items():
        with pytest.raises(ConfigError, match=message):
            fit_method(context, name)
    with pytest.raises(ConfigError, match=r"method 'lora_ensembel' is unknown; did you mean 'lora_ensemble'\?"):
        fit_method(context, "lora_ensembel")
    with pytest.raises(ConfigError, match=r"wrapper 'temprature' is unknown"):
        fit_method(context, "one_lora+temprature")


@pytest.mark.parametrize("method", ["snapshot", "swag"])
def test_rate_at_which_decay_overshoots_is_refused(make_context, method):
    context, _ = make_context(regularize={"weight_decay_b": 50.0}, train={"lr": 0.01})
    with pytest.raises(ConfigError, match=rf"{method}\.lr_factor: with train\.lr times 3, .* must be below 1"):
        fit_method(context, f"{method}:lr_factor=3")


def test_non_finite_adapters_are_an_error(make_context, monkeypatch):
    """As drawn from a posterior that is too wide for the number format."""
    context, _ = make_context()
    draws = swag.SwagMoments.draws
    monkeypatch.setattr(swag.SwagMoments, "draws", lambda *arguments: draws(*arguments) * float("inf"))
    with pytest.raises(TrainingError, match=r"adapter 0 after the fit: diverged: largest parameter (nan|inf)"):
        fit_method(context, "swag")


@pytest.mark.parametrize("name", ["swag:scale=1e300", "batch_ensemble:spread=1e38", "laplace:precisions=[1,1e300]"])
def test_settings_beyond_float32_are_refused(make_context, name):
    context, _ = make_context()
    with pytest.raises(ConfigError, match=r"\+\d+ is more than 1e\+30, too large for float32"):
        fit_method(context, name)


def test_name_includes_settings_of_the_method_and_of_its_wrappers():
    named = parse_name("laplace:layers=last:draws=7+temperature:of=members+contextual")
    assert (named.below, named.method) == ("laplace:layers=last:draws=7", "laplace")
    assert named.config == laplace.Config(layers="last", draws=7)
    assert named.wrappers == (("temperature", temperature.Config(of="members")), ("contextual", contextual.Config()))
    assert named.summary.count("; ") == 2
    plain = parse_name("mc_dropout")
    assert (plain.below, plain.config, plain.wrappers) == ("mc_dropout", mc_dropout.Config(), ())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mc_dropout:droput=0.2", r"mc_dropout\.droput is not a setting; did you mean 'dropout'\?"),
        ("mc_dropout:dropout=much", r"method 'mc_dropout:dropout=much': mc_dropout\.dropout is 'much'"),
        ("mc_dropout:dropout", "'dropout' must be FIELD=VALUE"),
        ("mc_dropout:dropout=0.1:dropout=0.2", "each field once"),
        ("one_lora:rank=2", r"one_lora\.rank is not a setting"),
        ("laplace:layers=first", r"laplace\.layers is 'first'; it must be one of all, last"),
        ("one_lora+temperature:of=all", r"temperature\.of is 'all'"),
        ("mc_dropot:dropout=0.1", r"'mc_dropot' is unknown; did you mean 'mc_dropout'\?"),
        ("mc_dropout:dropout=[", r"mc_dropout:dropout=\[': dropout: '\[': cannot be read"),
        ("mc_dropout:dropout=2026-13-45", "it must be float"),
        ("mc_dropout:dropout=!!int", "cannot be read"),
        ("mc_dropout:dropout=", "must be FIELD=VALUE"),
    ],
)
def test_invalid_settings_in_a_name_are_refused(name, message):
    with pytest.raises(ConfigError, match=message):
        parse_name(name)
