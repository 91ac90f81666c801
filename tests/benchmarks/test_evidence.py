"""The evidence's arms, differences and page, from simulated members."""

import csv

import numpy as np
import pytest
from bench.evidence import statistics
from bench.evidence.arms import Arm, arms_of, blended, greedy, groups, joined, some
from bench.evidence.page import Results, write_results
from bench.evidence.trainings import POOL, Cell, Experiment, Members

from lorchestra.metrics.predictive import log_softmax


def simulated(seed, members=1, quality=1.0, rows=80, val_rows=60, choices=3):
    """Members with a common signal and member-specific noise, on rows that depend on `choices` and `rows` alone."""
    labels = np.random.default_rng(7).integers(choices, size=rows + val_rows)
    noise = np.random.default_rng(seed).normal(size=(members, rows + val_rows, choices))
    scores = noise + quality * np.eye(choices)[labels]
    log_probs = log_softmax(scores.reshape(-1, choices)).reshape(scores.shape)
    val, test = log_probs[:, :val_rows], log_probs[:, val_rows:]
    return Members(val, test, labels[:val_rows], labels[val_rows:], (("a", "b", "c"),) * val_rows)


@pytest.fixture
def experiment(tmp_path, monkeypatch):
    """Two tasks, one with two seeds; nothing but plain members, one regularized ensemble and TF-IDF."""
    parts = {("plain", "pool"): (POOL, 1.0), ("regularized", "decay10"): (5, 1.5), ("methods", "tfidf"): (1, 0.5)}
    cells = [Cell("headlines", 200, 0), Cell("headlines", 200, 1), Cell("sst2", 200, 0)]

    def read(self, cell, stage, name):
        if (stage, name) not in parts or cell not in cells:
            return None
        members, quality = parts[stage, name]
        return simulated([cells.index(cell), len(name)], members, quality)

    monkeypatch.setattr(Experiment, "read", read)
    monkeypatch.setattr(Experiment, "finished", lambda self: cells)
    monkeypatch.setattr(statistics, "RESAMPLES", 50)
    return Experiment(tmp_path, tmp_path, "float32", 1)


def test_a_cell_is_read_from_its_name():
    assert Cell.parse("arc_easy-1000-2") == Cell("arc_easy", 1000, 2)
    assert str(Cell("arc_easy", 1000, 2)) == "arc_easy-1000-2"
    with pytest.raises(SystemExit, match="weather-200-0"):
        Cell.parse("weather-200-0")


def test_groups_are_disjoint_and_joined_members_keep_their_order():
    pool = simulated(0, members=7)
    parts = groups(pool, 3)
    assert [len(part.test) for part in parts] == [3, 3]
    np.testing.assert_array_equal(joined(*parts).test, pool.test[:6])
    np.testing.assert_array_equal(some(pool, [2, 2, 0]).val, pool.val[[2, 2, 0]])


def test_greedy_selection_starts_with_the_best_and_leaves_out_the_useless():
    good, useless = simulated(1, quality=3.0), simulated(2, members=4, quality=0.0)
    chosen = greedy(joined(useless, good), 3)
    assert len(chosen.val) == 3
    assert (chosen.val == good.val).all()


def test_a_blend_is_the_weighted_mean_of_both_mixtures():
    members, other = simulated(1, members=3), simulated(2)
    for split in ("val", "test"):
        ours, others = (np.exp(getattr(one, split)).mean(axis=0) for one in (members, other))
        expected = 0.75 * ours + 0.25 * others
        np.testing.assert_allclose(np.exp(getattr(blended(members, other, 0.25), split)[0]), expected)
    np.testing.assert_allclose(np.exp(blended(members, other, 0.0).val[0]), np.exp(members.val).mean(axis=0))


def test_the_mean_over_tasks_is_of_each_tasks_mean_over_seeds(experiment):
    results = Results(experiment)
    values = {cell: metrics.values for cell, metrics in results.cells.items()}
    by_cell = {cell: arms["ensemble5"]["nll"] - arms["one"]["nll"] for cell, arms in values.items()}
    headlines = (by_cell[Cell("headlines", 200, 0)] + by_cell[Cell("headlines", 200, 1)]) / 2
    one = results.minus("ensemble5", "one", "nll", 200)
    assert one is not None
    assert one.value == pytest.approx((headlines + by_cell[Cell("sst2", 200, 0)]) / 2)
    assert one.low <= one.value <= one.high
    assert one.num_cells == 3
    assert one.value < 0  # averaging independent noise helps
    assert results.minus("ensemble5", "soup", "nll", 200) is None


def test_an_arm_minus_itself_is_zero_in_every_resample(experiment):
    results = Results(experiment)
    one = results.minus("decay10", "decay10", "aurc", 200)
    assert one is not None
    assert (one.value, one.low, one.high) == (0.0, 0.0, 0.0)


def test_seeds_widen_the_interval(experiment):
    """Two seeds that differ much: the interval covers both, however many rows there are."""
    cells = {
        Cell("headlines", 200, seed): simulated(3, members=1, quality=quality) for seed, quality in ((0, 0), (1, 4))
    }
    plain = Arm("one", "one", 1, 1, (simulated(4, quality=1.0),))
    measured = {cell: statistics.measure(cell, [plain, Arm("x", "x", 1, 1, (m,))]) for cell, m in cells.items()}
    ends = statistics.difference(measured, "x", "one", "accuracy", ["headlines"], 200)
    alone = [statistics.difference({c: m}, "x", "one", "accuracy", ["headlines"], 200) for c, m in measured.items()]
    assert ends.low < min(one.value for one in alone) + 0.05
    assert ends.high > max(one.value for one in alone) - 0.05


def test_the_page_has_every_arm_and_its_files(experiment, tmp_path):
    text = write_results(experiment, tmp_path / "results")
    assert "| ensemble, decay of B 10 | 5 | 5 | 2 |" in text
    assert "BatchEnsemble" not in text
    assert (tmp_path / "results" / "evidence_200.png").stat().st_size > 1000
    with (tmp_path / "results" / "evidence_cells.csv").open() as file:
        rows = list(csv.DictReader(file))
    keys = {arm.key for arm in arms_of(experiment, Cell("sst2", 200, 0))}
    assert {row["arm"] for row in rows} == keys
    assert len(rows) == 3 * len(keys)
    with (tmp_path / "results" / "evidence_differences.csv").open() as file:
        assert {row["seeds"] for row in csv.DictReader(file) if row["task"] == "headlines"} == {"2"}
