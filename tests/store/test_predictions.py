"""Saved predictions read again: each way in which numbers and words can be none."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lorchestra.errors import CheckpointError
from lorchestra.store.predictions import load_predictions, save_predictions
from lorchestra.types import Predictions

OPTIONS = (("no", "yes"), ("a", "b", "c"), ("no", "yes"))


@pytest.fixture
def saved(tmp_path):
    probs = np.array([[[0.5, 0.5, 0], [0.2, 0.3, 0.5], [1, 0, 0]], [[0.9, 0.1, 0], [0.1, 0.1, 0.8], [0.25, 0.75, 0]]])
    with np.errstate(divide="ignore"):
        log_probs = np.log(probs)
    rows = Predictions(log_probs, np.array([0, 2, -1]), ("x", "y", "z"), OPTIONS, "rows", "test", ("p", "q", "r"))
    return save_predictions(tmp_path, rows)


def test_they_are_read_as_they_were_saved(saved):
    loaded = load_predictions(saved)
    assert (loaded.ids, loaded.options, loaded.texts) == (("x", "y", "z"), OPTIONS, ("p", "q", "r"))
    assert loaded.labels.tolist() == [0, 2, -1]
    assert load_predictions(saved.with_suffix(".json")).log_probs_MEC.tolist() == loaded.log_probs_MEC.tolist()


WORDS = {
    "fewer texts": ({"texts": ["p"]}, "has 3 rows, but 1 texts"),
    "no text": ({"texts": ["p", "q", 3]}, r"texts\[2\] is 3, not text"),
    "fewer ids": ({"ids": ["x", "y"]}, "has 3 rows, but 2 ids"),
    "other options": ({"options": [["no", "yes"], ["a", "b"], ["no", "yes"]]}, "num_choices are not those"),
    "no options": ({"options": "no"}, "options is 'no', not a list"),
    "a path": ({"split": "../x"}, "split is '../x', which begins with a dot"),
    "no task": ({"task": None}, "task is None, not text"),
}


@pytest.mark.parametrize("name", WORDS)
def test_words_that_do_not_fit(saved, name):
    change, message = WORDS[name]
    path = saved.with_suffix(".json")
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=message):
        load_predictions(saved)


def put(name, index, value):
    def change(arrays):
        arrays[name][index] = value

    return change


NUMBERS = {
    "NaN": (put("log_probs", (0, 1, 2), np.nan), "log_probs holds NaN or numbers above 0"),
    "infinity": (put("log_probs", (0, 1, 2), np.inf), "log_probs holds NaN or numbers above 0"),
    "not normalized": (put("log_probs", (1, 0, 0), -5.0), "do not sum up to 1"),
    "beyond the options": (put("log_probs", (1, 0, 2), -5.0), "in columns past a row's options"),
    "label": (put("labels", 0, 2), "labels are not all among their rows' options"),
    "label -2": (put("labels", 0, -2), "labels are not all among their rows' options"),
    "choices": (put("num_choices", 0, 3), "num_choices are not those of the rows' options"),
    "one column": (lambda a: a.update(log_probs=np.zeros((2, 3, 1))), "has 1 columns, but rows have 2 to 3 options"),
    "no member": (lambda a: a.update(log_probs=a["log_probs"][:0]), "without a member or a row"),
    "fewer rows": (lambda a: a.update(labels=a["labels"][:2]), "has 3 rows, but 2 labels"),
    "two axes": (lambda a: a.update(log_probs=a["log_probs"][0]), "not float64 of 3 axes"),
    "float32": (lambda a: a.update(log_probs=a["log_probs"].astype(np.float32)), "log_probs is float32"),
    "missing": (lambda a: a.pop("labels"), "has no labels"),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_that_are_none_of_predictions(saved, name):
    change, message = NUMBERS[name]
    arrays = {key: array.copy() for key, array in load_file(saved).items()}
    change(arrays)
    save_file({key: np.ascontiguousarray(array) for key, array in arrays.items()}, saved)
    with pytest.raises(CheckpointError, match=message):
        load_predictions(saved)


def test_names_of_typed_questions_are_saved_and_other_files_do_not_have_them(saved, tmp_path):
    assert "questions" not in json.loads(saved.with_suffix(".json").read_text())
    plain = load_predictions(saved)
    assert plain.questions == ()
    path = save_predictions(tmp_path, replace(plain, questions=("q", "r", "q")), "typed")
    assert load_predictions(path).questions == ("q", "r", "q")
    texts = path.with_suffix(".json")
    texts.write_text(json.dumps(json.loads(texts.read_text()) | {"questions": ["q"]}))
    with pytest.raises(CheckpointError, match="has 3 rows, but 1 questions"):
        load_predictions(path)


def test_predicted_information_is_saved_and_other_files_do_not_have_it(saved, tmp_path):
    assert "predicted_information" not in load_file(saved)
    plain = load_predictions(saved)
    assert plain.predicted_information is None
    path = save_predictions(tmp_path, replace(plain, predicted_information=np.array([0.1, 0.0, 0.5])), "distilled")
    assert load_predictions(path).predicted_information.tolist() == [0.1, 0.0, 0.5]
    assert load_predictions(path).of_rows(np.array([2, 0])).predicted_information.tolist() == [0.5, 0.1]
    for values, message in (
        (np.array([0.1, -0.1, 0.0]), "numbers that are not finite, or below 0"),
        (np.array([0.1, np.nan, 0.0]), "numbers that are not finite, or below 0"),
        (np.zeros(2), "has 3 rows, but 2 predicted_information"),
        (np.zeros(3, dtype=np.float32), "predicted_information is float32"),
    ):
        save_file(load_file(path) | {"predicted_information": values}, path)
        with pytest.raises(CheckpointError, match=message):
            load_predictions(path)
