"""Reading runs, and the errors of what is refused."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from lorchestra.errors import CheckpointError, DataError
from lorchestra.metrics.evaluation import evaluate_predictions
from lorchestra.report.html.source import read_run, read_runs
from lorchestra.store.predictions import load_predictions, save_predictions


def edit(path, change):
    value = json.loads(path.read_text())
    path.write_text(json.dumps(change(value) or value))


def test_a_run_is_read_whole(make_run):
    run = read_run(make_run(evaluations=("val", "test")))
    assert (run.name, run.entry.split, [other.split for other in run.others]) == ("run", "test", ["val"])
    assert (run.members, run.parameters) == ((0, 1, 2), 8 * 16 * 2)
    assert set(run.ood) == {"far"}
    assert set(run.baselines) == {"base_few_shot"}
    assert len(run.events) == 10
    assert run.cost["base_passes"] == 9.0


def test_test_is_shown_unless_another_split_is_given(make_run):
    root = make_run(evaluations=("test", "val"))
    assert read_run(root).entry.split == "test"
    assert read_run(root, "val").entry.split == "val"
    only = make_run("other", evaluations=("val",))
    assert read_run(only).entry.split == "val"


def test_temperature_is_fitted_where_the_evaluation_left_it_out(make_run):
    """It equals what the evaluation would have written, interval by interval."""
    without, asked = make_run("without", temperature=False), make_run("asked", temperature=True)
    assert json.loads((without / "metrics.json").read_text())["evaluations"][0]["temperature"] is None
    scaled, expected = read_run(without).entry, read_run(asked).entry
    assert scaled.ensemble_scaled == expected.ensemble_scaled
    assert scaled.best_member_scaled == expected.best_member_scaled
    assert scaled.best_member_scaled.ensemble_minus["nll"]


def test_an_unfinished_run_names_the_command(make_run):
    root = make_run()
    (root / "ensemble.json").unlink()
    with pytest.raises(CheckpointError, match=f"not finished.*lorchestra train --out {root} --if-exists resume"):
        read_run(root)
    with pytest.raises(CheckpointError, match="no such run directory"):
        read_run(root / "none")


def test_a_run_without_evaluation_names_the_command(make_run):
    root = make_run()
    (root / "metrics.json").unlink()
    with pytest.raises(CheckpointError, match=f"not evaluated yet.*lorchestra evaluate {root}$"):
        read_run(root)
    (root / "metrics.json").write_text('{"evaluations": []}')
    with pytest.raises(CheckpointError, match=f"holds no evaluation; evaluate the run: lorchestra evaluate {root}"):
        read_run(root)


def test_a_missing_evaluation_names_the_existing_ones(make_run):
    root = make_run(evaluations=("test", "val"))
    with pytest.raises(
        CheckpointError, match=f"--split tset: .*did you mean 'test'.*here: test, val; .*evaluate {root} --split"
    ):
        read_run(root, "tset")


DAMAGES = {
    "ensemble": (lambda e: e.pop("ensemble"), "has no ensemble.accuracy"),
    "a metric": (lambda e: e["ensemble"].pop("nll"), "has no ensemble.nll"),
    "a word": (lambda e: e["ensemble"].update(ece="low"), "has no ensemble.ece"),
    "null": (lambda e: e["ensemble"].update(accuracy=None), "has no ensemble.accuracy"),
    "a member": (lambda e: e["members"].pop(), "has 2 members, not num_members = 3"),
    "of a member": (lambda e: e["members"][1].pop("brier"), r"has no members\[1\].brier"),
    "baseline": (lambda e: e["baselines"]["base_few_shot"].pop("ece"), "has no baselines.base_few_shot.ece"),
    "level": (lambda e: e["intervals"].pop("level"), "has no intervals.level"),
    "uncertainty": (lambda e: e.pop("uncertainty"), "has no uncertainty.total_entropy"),
    "ood": (lambda e: e["ood"]["far"].pop("auroc"), "has no ood.far.auroc"),
    "ood confidence": (
        lambda e: e["ood"]["far"]["member_mean"].pop("mean_confidence"),
        "has no ood.far.member_mean.mean_conf",
    ),
    "task": (lambda e: e.update(task=3), "has no task"),
}


@pytest.mark.parametrize(("change", "message"), DAMAGES.values(), ids=DAMAGES.keys())
def test_damaged_metrics_are_named(make_run, change, message):
    root = make_run()

    def damage(metrics):
        change(metrics["evaluations"][0])

    edit(root / "metrics.json", damage)
    with pytest.raises(CheckpointError, match=rf"metrics.json: evaluations\[0\] {message}.*lorchestra evaluate"):
        read_run(root)


def test_truncated_files_are_named(make_run):
    root = make_run()
    for name, message in (("metrics.json", "metrics.json: cannot be read"), ("ensemble.json", "ensemble.json: cannot")):
        before = (root / name).read_bytes()
        (root / name).write_bytes(before[: len(before) // 2])
        with pytest.raises(CheckpointError, match=message):
            read_run(root)
        (root / name).write_bytes(before)
    (root / "metrics.json").write_text('{"evaluations": [3]}')
    with pytest.raises(CheckpointError, match=r"evaluations\[0\] is a int, not an object"):
        read_run(root)


@pytest.mark.parametrize(
    ("damage", "message"),
    [('{"event": "st', r"events.jsonl:11: no JSON"), ("[1]\n", "events.jsonl:11: a list, no JSON object")],
)
def test_a_damaged_line_of_the_log_is_named(make_run, damage, message):
    root = make_run()
    with (root / "events.jsonl").open("a") as file:
        file.write(damage)
    with pytest.raises(CheckpointError, match=message):
        read_run(root)


def test_a_missing_log_is_no_error(make_run):
    root = make_run()
    (root / "events.jsonl").unlink()
    assert read_run(root).events == ()


def test_predictions_of_another_evaluation_are_refused(make_run):
    root = make_run()
    path = root / "predictions/toy.test.safetensors"
    rows = load_predictions(path)
    turned = type(rows)(-np.sort(-rows.log_probs_MEC), rows.labels, rows.ids, rows.options, "toy", "test", rows.texts)
    save_predictions(root / "predictions", turned)
    with pytest.raises(CheckpointError, match=f"accuracy is .* different evaluations; .*lorchestra evaluate {root}"):
        read_run(root)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"toy\.test\.safetensors: missing, though metrics.json refers to it"):
        read_run(root)


def test_missing_ood_predictions_are_named(make_run):
    root = make_run()
    (root / "predictions/toy.ood_far.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"toy\.ood_far\.safetensors: missing"):
        read_run(root)


def test_runs_of_different_tasks_are_refused(make_run):
    one, other = make_run("one"), make_run("other", task="chess")
    with pytest.raises(DataError, match=r"other is of the task 'chess' and .*one of 'toy': numbers of different tasks"):
        read_runs([one, other])


def test_runs_on_different_rows_are_refused(make_run):
    one, other = make_run("one"), make_run("other", rows=50)
    with pytest.raises(
        DataError, match=r"other was evaluated on other rows \(test, 50 rows\) than .*\(test, 60 rows\)"
    ):
        read_runs([one, other])


@pytest.mark.parametrize("field", ["options", "texts"])
def test_rows_are_compared_by_more_than_numbers_and_answers(make_run, field):
    """Two files of one name have the same row numbers, and may have the same answers by chance."""

    def changed(predictions):
        values = getattr(predictions, field)
        other = tuple(f"{value}?" if field == "texts" else tuple(f"{o}?" for o in value) for value in values)
        return dataclasses.replace(predictions, **{field: other})

    one = make_run("one")
    assert getattr(read_run(one).predictions, field)
    with pytest.raises(DataError, match="was evaluated on other rows"):
        read_runs([one, make_run("other", change=changed)])


def test_runs_of_one_name_are_shown_by_their_paths(make_run):
    runs = read_runs([make_run("a/run"), make_run("b/run")])
    assert [run.name for run in runs] == [str(run.run.root) for run in runs]


def test_failed_members_keep_the_others_numbers(make_run):
    root = make_run()

    def fail(record):
        record["num_members"] = 4
        record["members"].insert(1, record["members"][0] | {"state": "failed", "best_step": None, "val_nll": None})

    edit(root / "ensemble.json", fail)
    (root / "events.jsonl").unlink()  # of a training of three members
    assert read_run(root).members == (0, 2, 3)


def test_an_entry_without_baselines_or_ood_is_whole(make_run):
    root = make_run()
    rows = load_predictions(root / "predictions/toy.test.safetensors")
    (root / "metrics.json").write_text(json.dumps({"evaluations": [evaluate_predictions(rows, resamples=0)]}))
    run = read_run(root)
    assert (run.ood, run.baselines) == ({}, {})
    assert run.cost["tokens"] == 30000  # from ensemble.json
