"""The scikit-learn classifier: it learns, follows scikit-learn's conventions, and refuses invalid input.

`SKLEARN_CHECKS` are scikit-learn's estimator checks that work without a numeric X. All others fit on random matrices;
scikit-learn skips them for estimators with these tags. Their properties that apply to texts are tested below on texts.
Not applicable: sparse input, dtypes and memory layout of X, n_features_in_. Not supported: sample weights, partial_fit,
array API, decision_function, a single class.
"""

from __future__ import annotations

import copy
import gc
import pickle
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="scikit-learn is not installed (extra sklearn)")

from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, DataConversionWarning, NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils import estimator_checks

import lorchestra.training.trainer
from lorchestra.config.data import DataConfig
from lorchestra.config.run import RunConfig
from lorchestra.errors import ConfigError, InputError, LorchestraError
from lorchestra.metrics import predictive
from lorchestra.metrics.calibrator import Calibration, pooled
from lorchestra.questions import Question
from lorchestra.runs.ensemble import load_run
from lorchestra.runs.evaluate import evaluate_run
from lorchestra.sklearn import LoRAEnsembleClassifier

WORDS = ("good", "bad")
TEXTS = [f"the film number {i} was {WORDS[i % 2]} and {'long' if i % 3 else 'dull'}" for i in range(60)]
LABELS = ["yes" if i % 2 == 0 else "no" for i in range(60)]
NEW = ["a play that was good", "a song that was bad", "rather good", "very bad", "good"]


@pytest.fixture(scope="module")
def classifier(tiny_base):
    """Returns a function that builds a classifier on the tiny base, which fits in about a second."""

    def build(**parameters):
        defaults = {"base": str(tiny_base), "members": 2, "r": 2, "epochs": 2, "lr": 0.02, "scoring": "text"}
        return LoRAEnsembleClassifier(**(defaults | parameters))

    return build


@pytest.fixture(scope="module")
def fitted(classifier):
    """A fitted classifier, shared: do not modify."""
    return classifier(epochs=4).fit(TEXTS, LABELS)


SKLEARN_CHECKS = (
    "check_estimator_cloneable",
    "check_estimator_tags_renamed",
    "check_valid_tag_types",
    "check_estimator_repr",
    "check_no_attributes_set_in_init",
    "check_do_not_raise_errors_in_init_or_set_params",
    "check_mixin_order",
    "check_parameters_default_constructible",
    "check_get_params_invariance",
    "check_set_params",
)


@pytest.mark.parametrize("name", SKLEARN_CHECKS)
def test_estimator_checks_without_a_matrix(classifier, name):
    getattr(estimator_checks, name)("LoRAEnsembleClassifier", classifier())


def test_scikit_learn_skips_matrix_checks(classifier):
    with pytest.warns(Warning, match="Can't test estimator"):
        results = estimator_checks.check_estimator(classifier())
    assert [result["status"] for result in results if result["status"] == "failed"] == []


def test_it_learns_and_its_probabilities_match_the_run(fitted):
    assert list(fitted.classes_) == ["no", "yes"]
    probabilities = fitted.predict_proba(NEW)
    assert probabilities.shape == (5, 2)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0, atol=1e-12)
    assert list(fitted.predict(NEW)) == [fitted.classes_[i] for i in probabilities.argmax(axis=1)]
    assert fitted.score(TEXTS, LABELS) > 0.9
    rows = [row.probs for row in load_run(fitted.run_dir_).predict(examples_of(fitted, NEW))]
    np.testing.assert_array_equal(probabilities, rows)


def examples_of(fitted, texts):
    from lorchestra.types import Example

    return [Example(str(i), text, fitted.ensemble().labels, None) for i, text in enumerate(texts)]


def test_uncertainty_of_members(fitted):
    scores = fitted.uncertainty(NEW)
    log_probs = fitted.ensemble().pipeline.predict_members(examples_of(fitted, NEW), "x").log_probs_MEC
    assert log_probs.shape[0] == 2
    calibrated = pooled(log_probs, fitted.ensemble().calibration)
    np.testing.assert_allclose(scores["entropy"], predictive.entropy(calibrated), atol=1e-15)
    raw = fitted.uncertainty(NEW, raw=True)
    np.testing.assert_allclose(raw["entropy"], predictive.total_entropy(log_probs), atol=1e-15)
    np.testing.assert_array_equal(raw["mutual_information"], scores["mutual_information"])
    np.testing.assert_allclose(scores["mutual_information"], predictive.mutual_information(log_probs), atol=1e-15)
    np.testing.assert_allclose(scores["disagreement"], predictive.disagreement(log_probs), atol=1e-15)
    assert (scores["mutual_information"] > 0).any()


def test_probabilities_are_calibrated(fitted, monkeypatch):
    """Also where the classes are in another order than the run's labels, and a calibration differs between them."""
    calibration = Calibration("vector", "by hand", scale=(1.2, 0.6), bias=(0.3, -0.4))
    for columns in ([0, 1], [1, 0]):
        estimator = copy.copy(fitted)
        estimator.__dict__ |= {"_trained": copy.copy(fitted.ensemble()), "_columns": columns}
        estimator._trained.__dict__["calibration"] = calibration
        raw = np.log(estimator.predict_proba(NEW, raw=True)[:, columns])
        np.testing.assert_allclose(estimator.predict_proba(NEW)[:, columns], np.exp(calibration.apply(raw)), rtol=1e-9)


LABEL_KINDS = {
    "strings": (np.array(["b", "a"]), None),
    "integers of two digits": (np.array([2, 10]), None),
    "booleans": (np.array([False, True]), None),
    "named integers": (np.array([0, 1]), {0: "positive", 1: "negative"}),
}


@pytest.mark.parametrize(("kinds", "names"), LABEL_KINDS.values(), ids=LABEL_KINDS.keys())
def test_predicted_labels_have_the_type_of_y(classifier, kinds, names):
    """Also if the order of labels and of their names differs."""
    y = kinds[[i % 2 for i in range(60)]]
    fitted = classifier(label_names=names, epochs=4).fit(TEXTS, y)
    np.testing.assert_array_equal(fitted.classes_, np.unique(y))
    predicted = fitted.predict(TEXTS)
    assert predicted.dtype == y.dtype
    assert (predicted == y).mean() > 0.9
    if names is not None:
        assert fitted.ensemble().labels == ("negative", "positive")


def test_input_may_be_a_list_an_array_or_a_series(fitted):
    expected = fitted.predict_proba(NEW)
    np.testing.assert_array_equal(fitted.predict_proba(np.array(NEW)), expected)
    np.testing.assert_array_equal(fitted.predict_proba(np.array(NEW, dtype=object)), expected)
    np.testing.assert_array_equal(fitted.predict_proba(tuple(NEW)), expected)
    pandas = pytest.importorskip("pandas", reason="pandas is not installed (extra pandas)")
    np.testing.assert_array_equal(fitted.predict_proba(pandas.Series(NEW, index=range(7, 12))), expected)


def test_fit_on_a_series_is_fit_on_its_values(classifier, fitted):
    pandas = pytest.importorskip("pandas", reason="pandas is not installed (extra pandas)")
    frame = pandas.DataFrame({"text": TEXTS, "label": LABELS}, index=range(100, 160))
    other = classifier(epochs=4).fit(frame["text"], frame["label"])
    np.testing.assert_array_equal(other.predict_proba(NEW), fitted.predict_proba(NEW))


def test_predictions_are_independent_of_the_other_texts(fitted):
    whole = fitted.predict_proba(NEW)
    np.testing.assert_allclose(fitted.predict_proba(NEW[::-1])[::-1], whole, atol=1e-5)
    np.testing.assert_allclose(np.concatenate([fitted.predict_proba([t]) for t in NEW]), whole, atol=1e-5)


def test_fit_returns_self_and_changes_no_parameter_and_no_data(classifier):
    estimator, texts, labels = classifier(), list(TEXTS), list(LABELS)
    before = estimator.get_params()
    assert estimator.fit(texts, labels) is estimator
    assert estimator.get_params() == before
    assert (texts, labels) == (TEXTS, LABELS)
    state = {name for name in vars(estimator) if not name.startswith("_") and not name.endswith("_")}
    assert state == set(before)
    known = dict(vars(estimator))
    estimator.predict(NEW)
    assert {name: value for name, value in vars(estimator).items() if not name.startswith("_")} == {
        name: value for name, value in known.items() if not name.startswith("_")
    }


def test_fit_is_repeatable_and_depends_on_the_seed(classifier, fitted):
    again = classifier(epochs=4).fit(TEXTS, LABELS)
    np.testing.assert_array_equal(again.predict_proba(NEW), fitted.predict_proba(NEW))
    again.fit(TEXTS, LABELS)
    np.testing.assert_array_equal(again.predict_proba(NEW), fitted.predict_proba(NEW))
    other = classifier(epochs=4, random_state=np.random.RandomState(4)).fit(TEXTS, LABELS)
    assert not np.array_equal(other.predict_proba(NEW), fitted.predict_proba(NEW))


def test_pickle_copy_and_clone(fitted):
    expected = fitted.predict_proba(NEW)
    restored = pickle.loads(pickle.dumps(fitted))
    assert restored.run_dir_ != fitted.run_dir_
    np.testing.assert_array_equal(restored.predict_proba(NEW), expected)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(restored)).predict_proba(NEW), expected)
    np.testing.assert_array_equal(copy.deepcopy(fitted).predict_proba(NEW), expected)
    cloned = clone(fitted)
    assert cloned.get_params() == fitted.get_params()
    with pytest.raises(NotFittedError):
        cloned.predict(NEW)


def test_failed_member_is_left_out_with_a_warning(classifier, monkeypatch):
    original, calls = lorchestra.training.trainer.step_failure, iter(range(10_000))
    monkeypatch.setattr(
        lorchestra.training.trainer, "step_failure", lambda *a: "loss 99" if next(calls) == 1 else original(*a)
    )
    with pytest.warns(ConvergenceWarning, match=r"member 1 failed and is left out: diverged: loss 99 \(step 1\)"):
        fitted = classifier().fit(TEXTS, LABELS)
    assert fitted.ensemble().members == (0,)


def test_cross_validation_grid_search_and_pipeline(classifier):
    scores = cross_val_score(classifier(epochs=3), TEXTS, LABELS, cv=2)
    assert len(scores) == 2
    search = GridSearchCV(classifier(), {"lr": np.logspace(-4, -2, 2), "r": [np.int64(1)]}, cv=2, refit=False)
    assert search.fit(TEXTS, LABELS).best_params_["r"] == 1
    pipe = make_pipeline(FunctionTransformer(lambda texts: [t.upper() for t in texts]), classifier())
    assert pipe.fit(TEXTS, LABELS).predict(NEW).shape == (5,)


def test_temporary_run_is_deleted_with_its_classifier(classifier):
    estimator = classifier(epochs=1).fit(TEXTS, LABELS)
    first = Path(estimator.run_dir_)
    assert first.is_dir()
    second = Path(estimator.fit(TEXTS, LABELS).run_dir_)
    assert (first.parent.exists(), second.is_dir()) == (False, True)
    del estimator
    gc.collect()
    assert not second.parent.exists()


def test_run_can_be_kept(classifier, tmp_path):
    kept = classifier(out=tmp_path / "run", label_names={"yes": "good", "no": "bad"}).fit(TEXTS, LABELS)
    (tmp_path / "new.csv").write_text("text\nrather good\n")
    (row,) = load_run(tmp_path / "run").predict(tmp_path / "new.csv")
    assert row.choices == ("bad", "good")
    with pytest.raises(LorchestraError, match="not a run that this classifier has fitted"):
        clone(kept).fit(TEXTS, LABELS)
    with pytest.raises(ConfigError, match=r"rows that came from Python"):
        evaluate_run(load_run(tmp_path / "run"))


def test_config_gives_all_other_settings(classifier, tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("train: {epochs: 1, schedule: constant}\ndata: {normalize: token, train: other.csv}\n")
    fitted = classifier(config=recipe, epochs=None, verbose=True).fit(TEXTS, LABELS)
    config = fitted.ensemble().config
    assert (config.train.epochs, config.train.schedule, config.data.normalize) == (1, "constant", "token")
    assert config.data.train is None
    assert config.adapt.members == 2
    assert capsys.readouterr().out == ""


def test_long_texts_are_truncated_by_default_and_never_dropped(classifier, fitted):
    long = "good " * 400
    assert fitted.predict_proba([long]).shape == (1, 2)
    dropping = classifier(config=RunConfig(data=DataConfig(too_long="drop"))).fit(TEXTS, LABELS)
    with pytest.raises(InputError, match="1 texts have more than 256 tokens"):
        dropping.predict([*NEW, long])


BAD = {
    "one string": ("a text", LABELS, "X is one string"),
    "two axes": (np.array([TEXTS]), LABELS, r"X has shape \(1, 60\)"),
    "numbers": (list(range(60)), LABELS, r"X\[0\] is 0, which is not text"),
    "a matrix": (np.zeros((60, 2)), LABELS, r"X has shape \(60, 2\)"),
    "None": (None, LABELS, "X is of type NoneType"),
    "an empty text": (["x", " "], ["a", "b"], r"X\[1\] is ' '"),
    "no texts": ([], [], "Found array with 0 sample"),
    "lengths": (TEXTS, LABELS[:-1], "inconsistent numbers of samples"),
    "no y": (TEXTS, None, "requires y to be passed, but the target y is None"),
    "one class": (TEXTS, ["a"] * 60, r"y holds 1 class only \('a'\)"),
    "two columns of y": (TEXTS, np.zeros((60, 2)), "y should be a 1d array"),
    "regression": (TEXTS, np.linspace(0, 1, 60), "Unknown label type: continuous"),
    "NaN": (TEXTS, [float("nan"), *[1.0] * 59], r"y\[0\] is missing"),
    "a missing label": (TEXTS, np.array([None, *LABELS[1:]], dtype=object), r"y\[0\] is missing"),
    "too few": (TEXTS[:4], LABELS[:4], "4 texts of 2 classes are too few"),
}


@pytest.mark.parametrize(("X", "y", "message"), BAD.values(), ids=BAD.keys())
def test_invalid_input_is_a_value_error(classifier, X, y, message):
    with pytest.raises(ValueError, match=message):
        classifier().fit(X, y)


def test_column_of_labels_is_flattened_with_a_warning(classifier):
    with pytest.warns(DataConversionWarning, match="column-vector"):
        classifier(epochs=1).fit(TEXTS, np.array(LABELS)[:, None])


PARAMETERS = {
    "r": ({"r": 0}, r"adapt\.r: 0"),
    "members": ({"members": 0}, r"adapt\.members: 0"),
    "one module": ({"target_modules": "q_proj"}, "target_modules: 'q_proj' is one string"),
    "module": ({"target_modules": ["q_porj"]}, "did you mean 'q_proj'"),
    "names": ({"label_names": {"yes": "good"}}, "label_names: 'no' has None"),
    "equal names": ({"label_names": {"yes": "good", "no": "good"}}, "two labels share a name"),
    "recipe": ({"config": "none.yaml"}, "none.yaml: cannot be read as a recipe"),
}


@pytest.mark.parametrize(("parameters", "message"), PARAMETERS.values(), ids=PARAMETERS.keys())
def test_invalid_parameters_are_named_at_fit(classifier, parameters, message):
    estimator = classifier(**parameters)
    with pytest.raises(LorchestraError, match=message):
        estimator.fit(TEXTS, LABELS)


@pytest.mark.parametrize("method", ["predict", "predict_proba", "uncertainty", "ensemble"])
def test_not_fitted_error(classifier, method):
    arguments = () if method == "ensemble" else (NEW,)
    with pytest.raises(NotFittedError):
        getattr(classifier(), method)(*arguments)


def test_invalid_texts_at_prediction(fitted):
    with pytest.raises(InputError, match="X is one string"):
        fitted.predict("a text")
    with pytest.raises(InputError, match="0 sample"):
        fitted.predict_proba([])


def pandas_labels():
    pandas = pytest.importorskip("pandas", reason="pandas is not installed (extra pandas)")
    whole = [i % 2 for i in range(60)]
    return {
        "Int64": (pandas.Series(whole, dtype="Int64"), [0, 1], ("0", "1")),
        "Int64 array": (pandas.array(whole, dtype="Int64"), [0, 1], ("0", "1")),
        "boolean": (pandas.Series(whole, dtype="boolean"), [False, True], ("False", "True")),
        "string": (pandas.Series(LABELS, dtype="string"), ["no", "yes"], ("no", "yes")),
        "category": (pandas.Series(whole, dtype="category"), [0, 1], ("0", "1")),
        "words": (pandas.Series(LABELS, dtype="category"), ["no", "yes"], ("no", "yes")),
    }


@pytest.mark.parametrize("kind", ["Int64", "Int64 array", "boolean", "string", "category", "words"])
def test_labels_of_pandas_types_are_kept(classifier, kind):
    y, classes, names = pandas_labels()[kind]
    fitted = classifier(epochs=1).fit(TEXTS, y)
    assert fitted.classes_.tolist() == classes
    assert fitted.ensemble().labels == names


def test_missing_labels_of_pandas_are_named(classifier):
    pandas = pytest.importorskip("pandas", reason="pandas is not installed (extra pandas)")
    for kind, labels in (("string", LABELS), ("Int64", [i % 2 for i in range(60)]), ("category", LABELS)):
        y = pandas.Series([*labels[:3], None, *labels[4:]], dtype=kind)
        with pytest.raises(InputError, match=r"y\[3\] is missing"):
            classifier().fit(TEXTS, y)
    with pytest.raises(InputError, match="y mixes int and str"):
        classifier().fit(TEXTS, [1, *LABELS[1:]])


def test_fitting_again_replaces_the_kept_run(classifier, tmp_path):
    fitted = classifier(out=tmp_path / "run", epochs=1).fit(TEXTS, LABELS)
    first = fitted.predict_proba(NEW)
    fitted.set_params(random_state=5).fit(TEXTS, LABELS)
    second = fitted.predict_proba(NEW)
    assert (first != second).any()
    assert next(load_run(tmp_path / "run").predict(NEW)).probs == tuple(second[0].tolist())
    with pytest.raises(ConfigError, match=r"adapt\.r: 0"):
        fitted.set_params(r=0).fit(TEXTS, LABELS)
    np.testing.assert_array_equal(next(load_run(tmp_path / "run").predict(NEW)).probs, second[0])
    assert [entry.name for entry in tmp_path.iterdir()] == ["run"]
    with pytest.raises(ConfigError, match=r"not empty, and not a run that this classifier has fitted"):
        classifier(out=tmp_path / "run").fit(TEXTS, LABELS)


@pytest.mark.parametrize(
    ("question", "labels"),
    [
        (Question("kind", "choice", "What is it?", ("film", "book", "song"), ("on a screen", None, None)), None),
        (Question("good", "predicate", "It is good."), [i % 2 == 0 for i in range(60)]),
        (Question("stars", "score", "How good?", ("bad", "fair", "good")), [i % 3 for i in range(60)]),
    ],
    ids=["choice", "predicate", "score"],
)
def test_a_typed_question(classifier, question, labels):
    labels = labels or [("song", "film", "book")[i % 3] for i in range(60)]
    fitted = classifier(question=question, scoring="tree").fit(TEXTS, labels)
    assert fitted.classes_.tolist() == sorted(set(labels))
    probs = fitted.predict_proba(NEW)
    np.testing.assert_allclose(probs.sum(axis=1), 1, rtol=0, atol=1e-6)
    ensemble = fitted.ensemble()
    assert ensemble.record.questions == (question,)
    expected = [[answer.probs for answer in of_text] for of_text in ensemble.ask(NEW, [question])]
    order = [int(label) if not isinstance(label, str) else question.options.index(label) for label in fitted.classes_]
    np.testing.assert_allclose(probs, np.array(expected)[:, 0][:, order], rtol=0, atol=1e-5)
    copied = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(copied.predict(NEW), fitted.predict(NEW))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["film", "book"] * 30, "y: no row has 'song'"),
        (["film", "book", "play"] * 20, "y: 'play' is none of the question's options"),
        (["film", "book", " song", "song"] * 15, "y: 'song' is the same option as another label"),
    ],
)
def test_labels_that_are_not_the_questions(classifier, labels, message):
    question = Question("kind", "choice", "What is it?", ("film", "book", "song"))
    with pytest.raises(InputError, match=message):
        classifier(question=question, scoring="tree").fit(TEXTS, labels)
    with pytest.raises(ConfigError, match=r"question: .kind. is not a lorchestra\.Question"):
        classifier(question="kind").fit(TEXTS, labels)
