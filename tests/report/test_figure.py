"""The reliability figure: a whole PNG or none, and the numbers behind it."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from lorchestra.errors import LorchestraError
from lorchestra.metrics import scores as metrics
from lorchestra.metrics.predictive import mixture_log_probs
from lorchestra.report.figure import ENSEMBLE_COLOR, reliability, reliability_figure
from lorchestra.types import Predictions


def make_predictions(members: int = 3, seed: int = 0, signal: float = 1.2) -> Predictions:
    generator = np.random.default_rng(seed)
    labels = generator.integers(4, size=100)
    scores = 2 * generator.normal(size=(members, 100, 4))
    scores[:, np.arange(100), labels] += signal
    log_probs = scores - np.log(np.exp(scores).sum(axis=-1, keepdims=True))
    ids = tuple(str(row) for row in range(100))
    return Predictions(log_probs, labels, ids, (("a", "b", "c", "d"),) * 100, task=r"$\frac$", split="test")


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The saved figures, so that tests can inspect them."""
    figures: list[Figure] = []
    save = Figure.savefig

    def keep(figure: Figure, *args: object, **options: object) -> None:
        figures.append(figure)
        save(figure, *args, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    return figures


@pytest.mark.parametrize(("members", "signal"), [(1, 1.2), (3, 1.2), (12, 1.2), (3, 60.0), (2, -60.0)])
def test_a_whole_png_is_written(tmp_path: Path, members: int, signal: float) -> None:
    path = tmp_path / "reliability.png"
    path.write_bytes(b"the old figure")
    reliability_figure(make_predictions(members, signal=signal), path)
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG")
    assert content.endswith(b"IEND\xaeB`\x82")
    assert [entry.name for entry in tmp_path.iterdir()] == ["reliability.png"]


def test_a_failure_leaves_the_old_file_and_no_temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "reliability.png"
    path.write_bytes(b"the old figure")

    def fail(figure: Figure, target: Path, **options: object) -> None:
        Path(target).write_bytes(b"half")
        raise RuntimeError("cannot draw")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(RuntimeError, match="cannot draw"):
        reliability_figure(make_predictions(), path)
    assert path.read_bytes() == b"the old figure"
    assert [entry.name for entry in tmp_path.iterdir()] == ["reliability.png"]


def test_the_curve_is_the_one_behind_the_ece() -> None:
    predictions = make_predictions()
    mixture = mixture_log_probs(predictions.log_probs_MEC)
    confidence, accuracy, share = reliability(metrics.score_rows(mixture, predictions.labels))
    assert share.sum() == pytest.approx(1.0)
    assert (share == 0).any()
    assert np.isnan(accuracy[share == 0]).all()
    gaps = np.where(share > 0, np.abs(confidence - accuracy), 0.0)
    assert (share * gaps).sum() == pytest.approx(metrics.ece(mixture, predictions.labels))


def test_the_panels_hold_the_curves_and_the_wrong_predictions(tmp_path: Path, drawn: list[Figure]) -> None:
    predictions = make_predictions()
    reliability_figure(predictions, tmp_path / "figure.png")
    diagram, shares, wrong = drawn[0].axes
    mixture = mixture_log_probs(predictions.log_probs_MEC)
    labels = [line.get_label() for line in diagram.lines if not line.get_label().startswith("_")]
    assert labels == ["calibrated", "each member", "one LoRA (members pooled)", "ensemble"]
    assert len(diagram.lines) == 1 + 3 + 2
    confidence, accuracy, share = reliability(metrics.score_rows(mixture, predictions.labels))
    np.testing.assert_array_equal(diagram.lines[-1].get_xdata(), confidence[share > 0])
    np.testing.assert_array_equal(diagram.lines[-1].get_ydata(), accuracy[share > 0])
    heights = [bar.get_height() for bar in shares.patches]
    assert len(heights) == 2 * 15
    np.testing.assert_allclose(heights[15:], 100 * share)
    texts = [text.get_text() for text in wrong.get_legend().get_texts()]
    num_wrong = round(100 * (1 - metrics.accuracy(mixture, predictions.labels)))
    assert texts[1].startswith(f"ensemble: {num_wrong} wrong, mean 0.")
    pooled = sum(round(100 * (1 - metrics.accuracy(one, predictions.labels))) for one in predictions.log_probs_MEC)
    assert texts[0].startswith(f"one LoRA (members pooled): {pooled} wrong")


def test_one_member_is_drawn_once(tmp_path: Path, drawn: list[Figure]) -> None:
    reliability_figure(make_predictions(members=1), tmp_path / "figure.png")
    diagram = drawn[0].axes[0]
    assert [line.get_color() for line in diagram.lines[1:]] == [ENSEMBLE_COLOR]
    assert diagram.lines[1].get_label() == "one LoRA (one member)"


def test_without_wrong_predictions_the_panel_says_so(tmp_path: Path, drawn: list[Figure]) -> None:
    reliability_figure(make_predictions(signal=60.0), tmp_path / "figure.png")
    assert [text.get_text() for text in drawn[0].axes[2].texts] == ["no wrong predictions"]


def test_unknown_answers_are_refused(tmp_path: Path) -> None:
    predictions = make_predictions()
    with pytest.raises(ValueError, match="label -1"):
        reliability_figure(replace(predictions, labels=predictions.labels - 1), tmp_path / "figure.png")


def test_without_matplotlib_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    with pytest.raises(LorchestraError, match=r"pip install 'lorchestra\[report\]'"):
        reliability_figure(make_predictions(), tmp_path / "figure.png")
    assert not list(tmp_path.iterdir())
