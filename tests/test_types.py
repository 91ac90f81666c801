"""Predictions as a table, and the message if pandas is not installed."""

from __future__ import annotations

import sys

import numpy as np
import pytest

import lorchestra
from lorchestra.errors import LorchestraError
from lorchestra.types import Predictions


@pytest.fixture
def predictions():
    """Two members, three examples with two, three and two choices; the last answer is unknown."""
    probs = np.array(
        [
            [[0.9, 0.1, 0.0], [0.2, 0.5, 0.3], [0.5, 0.5, 0.0]],
            [[0.3, 0.7, 0.0], [0.1, 0.0, 0.9], [0.25, 0.75, 0.0]],
        ]
    )
    with np.errstate(divide="ignore"):
        log_probs = np.log(probs)
    options = (("no", "yes"), ("x", "y", "z"), ("u", "v"))
    return Predictions(log_probs, np.array([0, 2, -1]), ("q1", "q2", "q3"), options, "task", "test")


def test_a_tidy_table(predictions):
    pandas = pytest.importorskip("pandas", reason="pandas is not installed (extra pandas)")
    table = predictions.to_pandas()
    assert list(table.columns) == ["member", "id", "label", "choice", "option", "log_prob", "prob"]
    assert len(table) == 2 * (2 + 3 + 2)
    row = table[(table["member"] == 1) & (table["id"] == "q2") & (table["option"] == "z")].iloc[0]
    assert (row["choice"], row["label"]) == (2, 2)
    assert row["prob"] == pytest.approx(0.9)
    assert row["log_prob"] == pytest.approx(np.log(0.9))
    excluded = table[(table["member"] == 1) & (table["id"] == "q2") & (table["option"] == "y")].iloc[0]
    assert (excluded["prob"], excluded["log_prob"]) == (0.0, -np.inf)  # a choice that is there, unlike padding
    assert table[table["id"] == "q3"]["label"].isna().all()
    mixture = table.groupby(["id", "choice"])["prob"].mean()
    assert mixture["q1", 0] == pytest.approx(0.6)
    np.testing.assert_allclose(table.groupby(["member", "id"])["prob"].sum(), 1.0)
    summary = pandas.DataFrame(answer.to_dict() for answer in lorchestra.answers_from(predictions))
    assert list(summary["prediction_text"]) == ["no", "z", "v"]


def test_a_missing_pandas_is_an_error(predictions, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(LorchestraError, match=r"pip install 'lorchestra\[pandas\]'"):
        predictions.to_pandas()


def test_a_missing_scikit_learn_is_an_error(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "sklearn"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.delitem(sys.modules, "lorchestra.sklearn", raising=False)
    with pytest.raises(LorchestraError, match=r"pip install scikit-learn"):
        import lorchestra.sklearn  # noqa: F401
