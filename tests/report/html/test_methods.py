"""Compared methods on the page: their numbers, their part in the verdict, and what is refused."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import yaml

from lorchestra.config.adapt import AdaptConfig, BaseConfig
from lorchestra.config.run import EvaluateConfig, RunConfig, TrainConfig
from lorchestra.errors import CheckpointError, ConfigError, DataError
from lorchestra.metrics.evaluation import evaluate, evaluate_predictions
from lorchestra.report.html.methods import budget_figure, foreign_settings, method_name, read_comparison
from lorchestra.report.html.page import write_report
from lorchestra.report.html.source import expand_sweeps, read_run
from lorchestra.report.html.tables import headline
from lorchestra.report.table import verdict
from lorchestra.store.predictions import load_predictions


@pytest.fixture
def report(read_page, tmp_path):
    """Writes a page; returns it and its text."""

    def build(*roots, **options):
        out = tmp_path / "page.html"
        write_report(roots, out, **options)
        return read_page(out), out.read_text(encoding="utf-8")

    return build


def result_of(root, key):
    return json.loads((root / "methods" / key / "result.json").read_text())


def predictions_of(root, key):
    return load_predictions(root / "methods" / key / "predictions/toy.test.safetensors")


def test_the_section_holds_the_right_numbers(make_run, make_comparison, report):
    run, root = make_run(), make_comparison()
    page, _ = report(run, methods=root)
    named = [
        [cell.strip() for cell in row] for rows in page.tables for row in rows if row[0].strip()[:2] in ("6 ", "3 ")
    ]
    (scaled, long), (shares, _), (scaled_cost, long_cost) = named[:2], named[2:4], named[4:]
    result = result_of(root, "long_training")
    (low, high), values = result["entry"]["intervals"]["ensemble"]["nll"], result["entry"]["ensemble"]
    assert " ".join(long[0].split()) == "6 one LoRA trained M times as long"
    assert " ".join(scaled[0].split()) == "3 one LoRA with temperature scaling"
    assert long[2].split() == [f"{values['nll']:.3f}", f"{low:.3f}", "to", f"{high:.3f}"]
    assert long_cost[1:6] == ["12.50", "1.00", "60 k", "15 s", "1.00 GiB"]
    scaled_values = result_of(root, "one_lora+temperature")["entry"]["ensemble"]
    keys = ("automated_1", "automated_2", "automated_5", "automated_10")
    assert shares[1:5] == [f"{100 * scaled_values[key]:.1f}" for key in keys]
    assert scaled_cost[-1] == "temperature 1.23"


def test_differences_are_paired_row_by_row(make_run, make_comparison, report):
    """The interval is that of an evaluation of the ensemble with the method as a baseline."""
    root = make_comparison()
    page, _ = report(root)
    ensemble, other = predictions_of(root, "lora_ensemble"), predictions_of(root, "high_rank")
    entry = evaluate_predictions(ensemble, baselines={"it": other}, resamples=60)
    low, high = entry["baselines"]["it"]["ensemble_minus"]["nll"]
    (table,) = [table for table in page.tables if table[0][0] == "minus"]
    assert table[1][0] == "the mean member"
    (row,) = [row for row in table if row[0] == "one LoRA of M times the rank"]
    shown = re.findall(r"[+\N{MINUS SIGN}]?\d+\.\d+", row[2])
    value = entry["ensemble"]["nll"] - entry["baselines"]["it"]["nll"]
    assert shown == [f"{x:+.3f}".replace("-", "\N{MINUS SIGN}") for x in (value, low, high)]


def test_the_verdict_includes_the_controls(make_run, make_comparison, report):
    run, root = make_run(), make_comparison()
    page, _ = report(run, root)
    for words in (
        "Against one LoRA with temperature scaling, it",
        "Against one LoRA of M times the rank, it",
        "Against one LoRA trained M times as long, it",
    ):
        assert words in page.text
        assert page.row(words.removeprefix("Against ").removesuffix(", it"))
    start = page.text.index("Did the ensemble help?")
    assert start < page.text.index("trained M times as long") < page.text.index("All methods at equal budget")
    alone, _ = report(run)
    assert "Not judged here: one LoRA of M times the rank, one LoRA trained M times as long." in alone.text
    assert "Not judged here" not in page.text


def test_controls_can_change_the_answer(make_comparison):
    """An ensemble that beats its members, but not one LoRA trained as long, has helped only in part."""
    comparison = read_comparison(make_comparison(methods=("lora_ensemble", "high_rank", "long_training")))
    ensemble, strong = comparison.results["lora_ensemble"], comparison.results["long_training"]
    better = {"accuracy": [0.01, 0.03], "nll": [-0.2, -0.1], "ece": [-0.05, -0.01], "brier": [-0.1, -0.05]}
    entry = replace(
        ensemble.entry,
        member_mean=replace(ensemble.entry.member_mean, ensemble_minus=better),
        best_member=replace(ensemble.entry.best_member, ensemble_minus=better),
    )
    assert headline(entry)[0] == "yes"
    labels = strong.predictions.labels
    answers = np.where(np.arange(len(labels)) < 6, (labels + 1) % 2, labels)  # without an error there is no interval
    right = np.log(np.where(np.arange(4) == answers[:, None], 0.97, 0.01))
    certain = replace(strong.predictions, log_probs_MEC=right[None])
    sure = replace(strong, predictions=certain, entry=evaluate(certain, resamples=60))
    results = {"long_training": sure}
    controls = replace(comparison, results=results).controls(entry, ensemble.predictions)
    tone, sentence = headline(entry, controls)
    assert tone == "mixed"
    assert "clearly worse in accuracy, NLL" in sentence
    assert "than one LoRA trained M times as long" in sentence
    assert "Against one LoRA trained M times as long, it is worse in accuracy" in verdict(entry, controls)


def test_a_page_about_methods_alone(make_comparison, report):
    page, text = report(make_comparison(left_out={"swag": "it cannot"}))
    assert "Did the ensemble help?" in page.text
    assert "guaranteed by convexity" in page.text
    assert "swag (it cannot)" in page.text
    assert "Configuration" in page.text
    assert "nan" not in re.findall(r' d="([^"]*)"', text)
    ids = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    assert {attributes["href"] for tag, attributes in page.tags if tag == "a"} <= {f"#{name}" for name in ids}


def test_without_the_ensemble_nothing_is_judged(make_comparison, report):
    page, _ = report(make_comparison(methods=("zero_shot", "high_rank"), resamples=0))
    assert "lora_ensemble is not among the methods" in page.text
    assert "Not compared: one_lora+temperature, long_training" in page.text
    assert "The LoRA ensemble minus" not in page.text


def test_other_budgets_are_named_and_do_not_judge(make_run, make_comparison, report):
    """Settings that change no number are ignored; others count, and so do the training rows."""
    root = make_comparison(config=RunConfig(adapt=AdaptConfig(members=3), train=TrainConfig(epochs=9)))
    page, _ = report(make_run(), root)
    assert "differ in train.epochs, so its verdict leaves them out" in page.text
    assert "Against one LoRA trained M times as long" not in page.text
    free = RunConfig(
        base=BaseConfig(threads=7),
        adapt=AdaptConfig(members=3),
        train=TrainConfig(token_budget=123),
        evaluate=EvaluateConfig(few_shot=0),
    )
    same, run = read_comparison(make_comparison("free", config=free)), read_run(make_run("other"))
    assert foreign_settings(run, same) == []
    run.run.splits.write_text(json.dumps({"train": {"digest": "other"}}))
    assert foreign_settings(run, same) == ["the training rows"]
    run.run.splits.write_text(json.dumps({"train": {"digest": "d"}}))
    assert foreign_settings(run, same) == []


def test_runs_and_comparisons_of_earlier_versions_have_the_same_settings(make_run, make_comparison):
    """In both, a missing setting means the rules of the version that saved it."""
    root, run = make_comparison(), make_run()
    record = json.loads((root / "compare.json").read_text())
    config = yaml.safe_load((run / "config.yaml").read_text())
    for data in (record["resolved"]["data"], config["data"]):
        del data["read"], data["prompt"]["version"]
    (root / "compare.json").write_text(json.dumps(record))
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    assert foreign_settings(read_run(run), read_comparison(root)) == []


def test_methods_of_other_rows_are_refused(make_run, make_comparison, tmp_path):
    run, out = make_run(evaluations=("val", "test")), tmp_path / "page.html"
    with pytest.raises(DataError, match=r"its methods are of the task 'quiz' and .*run of 'toy'"):
        write_report([run], out, methods=make_comparison("a", task="quiz"))
    with pytest.raises(DataError, match=r"its methods are of the split 'test' and .*run of 'val'"):
        write_report([run], out, methods=make_comparison("b"), split="val")
    with pytest.raises(DataError, match="were evaluated on other rows of toy test"):
        write_report([run], out, methods=make_comparison("c", rows=50))
    with pytest.raises(CheckpointError, match="not a directory of compared methods"):
        write_report([run], out, methods=run)
    for path in (tmp_path / "c/methods").iterdir():
        shutil.rmtree(path)
    with pytest.raises(CheckpointError, match="no method is finished in it; the same lorchestra compare command"):
        write_report([], out, methods=tmp_path / "c")
    (tmp_path / "c/left_out.json").write_text('{"swag": "too few steps"}')
    with pytest.raises(CheckpointError, match=r"all were left out \(swag: too few steps\)"):
        write_report([], out, methods=tmp_path / "c")
    with pytest.raises(ConfigError, match="takes one directory of compared methods"):
        write_report([run, tmp_path / "b", tmp_path / "c"], out)
    assert not out.exists()


def test_damaged_results_are_refused(make_comparison):
    root = make_comparison()
    path = root / "methods/one_lora/result.json"
    whole = json.loads(path.read_text())

    def written(**changes):
        path.write_text(json.dumps(whole | changes))
        return root

    with pytest.raises(CheckpointError, match=r"cost\.tokens is 'many', not a number"):
        read_comparison(written(cost=whole["cost"] | {"tokens": "many"}))
    lacking = {key: value for key, value in whole["entry"]["ensemble"].items() if key != "nll"}
    with pytest.raises(CheckpointError, match=r"result\.json: entry has no ensemble\.nll"):
        read_comparison(written(entry=whole["entry"] | {"ensemble": lacking}))
    other = whole["entry"]["ensemble"] | {"accuracy": 0.123}
    with pytest.raises(CheckpointError, match="in the predictions; remove the"):
        read_comparison(written(entry=whole["entry"] | {"ensemble": other}))
    written()
    (root / "methods/one_lora/predictions/toy.test.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"toy\.test\.safetensors: cannot be read"):
        read_comparison(root)
    empty = make_comparison("empty", methods=())
    with pytest.raises(CheckpointError, match="no method is finished in it"):
        read_comparison(empty)


NASTY = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&{{ 7 * 7 }}"


def test_everything_from_data_stays_text(make_comparison, report):
    root = make_comparison("<img src=x onerror=alert(3)>", task="<script>", left_out={NASTY: NASTY})
    for key in ("high_rank", "one_lora"):
        path = root / "methods" / key / "result.json"
        changes = {"name": key + NASTY, "summary": NASTY, "chosen": {NASTY: 1.5}}
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    page, text = report(root)
    tags = [tag for tag, _ in page.tags]
    assert tags.count("script") == 1
    assert "img" not in tags
    assert not [key for _, attributes in page.tags for key in attributes if key.startswith("on")]
    assert "alert(1)</script>" not in text
    assert page.text.count("{{ 7 * 7 }}") > 5


def test_points_do_not_overlap_and_are_inside(make_comparison):
    """Methods of equal passes are drawn side by side, without overlap and inside the frame."""
    keys = [f"m{n}" for n in range(9)]
    results = list(read_comparison(make_comparison(methods=("lora_ensemble", *keys))).results.values())
    same = [
        replace(result, cost=result.cost | {"fit_base_passes": 1.0, "predict_base_passes": 0.5}) for result in results
    ]
    for panel in budget_figure(same).panels:
        squares = re.findall(r'class="marker" d="M([\d.]+) ([\d.]+)h8', panel)
        positions = sorted(float(x) for x, _ in squares)
        assert len(positions) == 9
        assert min(b - a for a, b in itertools.pairwise(positions)) > 8
        assert positions[0] > 62
        assert positions[-1] + 8 < 380


def test_a_base_beyond_the_scale_is_drawn_on_the_edge(make_comparison):
    results = list(read_comparison(make_comparison(resamples=0)).results.values())
    scores = results[0].entry.ensemble
    scores = replace(scores, metrics={**scores.metrics, "nll": 50.0, "ece": None})
    ood = replace(results[0], entry=replace(results[0].entry, ensemble=scores))
    assert results[0].key == "zero_shot"
    assert "NLL nats 50.000" in "".join(budget_figure([ood, *results[1:]]).panels)
    assert "50" not in re.findall(r'class="tick"[^>]*>([\d.]+)<', "".join(budget_figure([ood, *results[1:]]).panels))


def test_names():
    assert (
        method_name("one_lora+contextual+temperature") == "one LoRA with contextual calibration and temperature scaling"
    )
    assert method_name("mine+other") == "mine with other"


def test_the_order_is_that_of_the_methods_and_not_of_the_directory(make_comparison):
    comparison = read_comparison(
        make_comparison(methods=("zz", "aa", "soup", "lora_ensemble+temperature", "zero_shot"))
    )
    assert list(comparison.results) == ["zero_shot", "lora_ensemble+temperature", "soup", "aa", "zz"]


def test_a_sweep_stands_for_its_finished_runs(make_run, report, tmp_path):
    points = [f"lr={n}" for n in range(8)]
    for number, point in enumerate(points[:7]):
        config = RunConfig(adapt=AdaptConfig(members=3), train=TrainConfig(lr=0.001 * (1 + number)))
        make_run(f"sweep/runs/{point}", config=config, seed=0)
    record = {"format_version": 1, "points": [{"name": point, "settings": {}, "config": {}} for point in points]}
    (tmp_path / "sweep/sweep.json").write_text(json.dumps(record))
    assert expand_sweeps([tmp_path / "sweep"]) == [tmp_path / "sweep/runs" / point for point in points[:7]]
    page, _ = report(tmp_path / "sweep")
    assert "Which run is best?" in page.text
    assert "Of 7 runs, the best is shown in full below" in page.text
    assert page.text.count("Did the ensemble help?") == 1
    # all have the same predictions, so the first is the reference and paired differences are 0
    assert page.row("lr=6")[2].split() == ["0.0", "unclear", "0.0", "to", "0.0"]
    assert [row[1] for rows in page.tables for row in rows if row[0] == "lr=4" and len(row) == 2] == ["0.005"]
    for point in points[:7]:
        (tmp_path / "sweep/runs" / point / "ensemble.json").unlink()
    with pytest.raises(CheckpointError, match="no run of this sweep is finished"):
        report(tmp_path / "sweep")


def test_several_runs_and_methods_on_one_page(make_run, make_comparison, report):
    page, _ = report(make_run("a"), make_run("b"), make_comparison())
    assert page.text.index("Which run is best?") < page.text.index("All methods at equal budget")
    assert page.text.count("Against one LoRA trained M times as long") == 2
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {attributes["href"] for tag, attributes in page.tags if tag == "a"} <= {f"#{name}" for name in ids}


def test_no_model_library_is_loaded(make_run, make_comparison, tmp_path):
    root, run = make_comparison(), make_run()
    code = (
        "import sys\n"
        "from lorchestra.report.html.page import write_report\n"
        f"write_report([{str(run)!r}], {str(tmp_path / 'page.html')!r}, methods={str(root)!r})\n"
        "print('loaded', sorted({'torch', 'transformers', 'peft'} & set(sys.modules)))\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.endswith("loaded []\n")
