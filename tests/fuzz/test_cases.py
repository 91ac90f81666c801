"""Some hundreds of the cases that `benchmarks/fuzz.py` runs by the thousand."""

from __future__ import annotations

import pytest
from fuzzing.harness import RefusedError, ViolationError, judge, run_case
from fuzzing.recipes import Recipes
from fuzzing.records import Records
from fuzzing.runs import Runs
from fuzzing.task_files import TaskFiles

from lorchestra.errors import DataError, TrainingError

SEED = 7
# They cost seconds each and are left to the long run.
SLOW = ("very many choices", "very long texts")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return Runs(tmp_path_factory.mktemp("runs"))


def cases(surface, rounds):
    """Numbers of cases that go through all kinds `rounds` times."""
    kinds = len(surface.kinds)
    return [case for case in range(rounds * kinds) if surface.kinds[case % kinds] not in SLOW]


def violations(surface, numbers):
    outcomes = [run_case(surface, SEED, case) for case in numbers]
    assert {"result"} < {outcome.ended for outcome in outcomes}  # neither all refused nor all let through
    return [outcome for outcome in outcomes if outcome.ended == "violation"]


def test_task_files():
    assert violations(TaskFiles(), cases(TaskFiles(), 15)) == []


def test_recipes():
    assert violations(Recipes(), cases(Recipes(), 12)) == []


@pytest.mark.parametrize("half", [0, 1])
def test_run_directories(runs, half):
    assert violations(runs, cases(runs, 4)[half::2]) == []


def test_records(tmp_path_factory):
    records = Records(tmp_path_factory.mktemp("records"))
    assert violations(records, cases(records, 2)) == []


def fails(error):
    def work():
        raise error

    return work


def test_the_judge_knows_each_violation(tmp_path):
    """Nothing above could fail if these did not."""
    assert judge(lambda: None, tmp_path) == ("result", "")
    assert judge(fails(DataError("rows.csv:3: no")), tmp_path) == ("DataError", "rows.csv:3: no")
    assert judge(fails(RefusedError("no")), tmp_path) == ("RefusedError", "no")
    for error in (ValueError("x"), KeyError("x"), RecursionError(), SystemExit(2), ViolationError("x"), MemoryError()):
        assert judge(fails(error), tmp_path)[0] == "violation"
    assert "exit code 1" in judge(fails(TrainingError("x")), tmp_path)[1]
    assert "no terminal" in judge(fails(DataError("")), tmp_path)[1]
    assert "not done after 0.1 s" in judge(lambda: [None for _ in iter(int, 1)], tmp_path, limit_s=0.1)[1]


def test_the_judge_looks_at_what_is_left(tmp_path):
    def writes_and_fails():
        (tmp_path / "x").write_text("half")
        raise DataError("no")

    assert "yet changed x" in judge(writes_and_fails, tmp_path)[1]
    (tmp_path / "x").unlink()
    assert judge(writes_and_fails, tmp_path, keeps=False)[0] == "DataError"
    assert "half-written" in judge(lambda: (tmp_path / ".x.tmp").write_text("half"), tmp_path)[1]


def test_the_judge_sees_a_pickle(tmp_path):
    import pickle

    from fuzzing.damage import pickled

    data = pickled(tmp_path / "canary")
    assert "a pickle was loaded" in judge(lambda: pickle.loads(data), tmp_path)[1]
