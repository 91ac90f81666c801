"""Every figure end to end on a tiny base and synthetic tasks: files, data, sentences; invalid input is refused."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import xml.etree.ElementTree as ElementTree
from types import SimpleNamespace

import numpy as np
import pytest

from lorchestra.cli import main as cli
from lorchestra.metrics import scores as metrics
from lorchestra.metrics.predictive import confidence, mixture_log_probs
from lorchestra.paper.registry import FIGURES
from lorchestra.store.predictions import load_predictions

METRICS = ("accuracy", "nll", "ece")
MEMBERS = 2

ROWS = {
    "fig1": 12 + MEMBERS * 12 + 12,
    "fig2": 1 + 2 + 2 + 2,
    "fig3": 2 * 2 * (1 + 2),
    "fig4": 2 * 3,
    "fig5": 2 * 2 * 2,
    "ablation-randomness": 8,
    "ablation-members": 2 * 10,
    "ablation-rank": 4,
    "ablation-init": 10,
    "regularizers": 1 + 2 + 2 + 2 + 2 + 2 + 2 + 2 + 2 + 2,
    "diversity": 1 + 2 + 2 + 2 + 2 + 2 + 2 + 2 + 3,
    "ood": 2 * (2 + 3),
    "cost": 4,
    "baselines": 6,
}


@pytest.fixture(scope="module")
def paper(make_shared_task, tiny_base, tmp_path_factory):
    """All figures, made once: the output directory, the command's output, and a function that runs it again."""
    task = make_shared_task(numbers=(24, 8, 12))
    make_shared_task("other", numbers=(24, 8, 10), first=1000)
    out = tmp_path_factory.mktemp("paper") / "out"
    options = ["--base.name", tiny_base, "--data.task", "quiz", "--data-dir", task.directory, "--data.scoring", "text"]
    options += ["--adapt.members", MEMBERS, "--adapt.layers", "all", "--train.epochs", 2, "--train.lr", 0.009]
    options += ["--evaluate.resamples", 50, "--evaluate.few-shot", 1, "--base.dtype", "float64", "--ood", "other"]

    def run(*figures, out=out, more=()):
        stdout, stderr = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
            try:
                code = cli.main([str(part) for part in ("paper", *figures, "--out", out, *options, *more)])
            except SystemExit as stop:
                code = stop.code
        return code, stdout.getvalue(), stderr.getvalue()

    code, output, errors = run("all")
    assert code == 0, errors
    return SimpleNamespace(out=out, output=output, errors=errors, run=run)


def table(paper, name):
    """A figure's data with numbers as numbers."""

    def value(text):
        if text == "":
            return None
        for kind in (int, float):
            with contextlib.suppress(ValueError):
                return kind(text)
        return text

    rows = csv.DictReader((paper.out / name / "data.csv").read_text().splitlines())
    return [{key: value(text) for key, text in row.items()} for row in rows]


def run_of(paper, name):
    """The only directory of a point that is not trained separately."""
    (run,) = paper.out.glob(f"trainings/*/runs/{name}")
    return run


def entry_of(paper, name):
    """The saved evaluation of a point."""
    return json.loads((run_of(paper, name) / "metrics.json").read_text())["evaluations"][0]


def predictions_of(paper, name, stem="quiz.test"):
    return load_predictions(run_of(paper, name) / "predictions" / f"{stem}.safetensors")


def assert_as_evaluated(row, entry):
    """`one_*` and `ensemble_*` of a row equal the saved evaluation."""
    for who, key in (("one", "member_mean"), ("ensemble", "ensemble")):
        for metric in METRICS:
            assert row[f"{who}_{metric}"] == pytest.approx(entry[key][metric], abs=1e-12)


@pytest.mark.parametrize("name", FIGURES)
def test_page_of_output(name, paper):
    folder = paper.out / name
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [f"{name}.png", f"{name}.svg", "data.csv", "sentence.txt"]
    )
    picture = (folder / f"{name}.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert picture.endswith(b"IEND\xaeB`\x82")
    texts = " ".join(ElementTree.parse(folder / f"{name}.svg").getroot().itertext())
    assert "This project's setting (profile smoke)" in texts
    assert "mathdefault" not in texts
    rows = table(paper, name)
    assert len(rows) == ROWS[name]
    sentence, caption = (folder / "sentence.txt").read_text().strip().split("\n\n")
    assert sentence == FIGURES[name].sentence(rows)
    assert "nan" not in sentence
    assert f"{name}: {sentence}\n{caption}\n" in paper.output
    assert "quiz (24 training, 12 test rows)" in caption
    assert ('; prompt "Question: {question} / Answer:"' in caption) == (name != "baselines")


def test_confidence_of_wrong_answers(paper):
    plain, decayed = (predictions_of(paper, name) for name in ("as-configured", "weight_decay_b=100.0"))
    pooled = np.concatenate([confidence(one)[one.argmax(axis=1) != plain.labels] for one in plain.log_probs_MEC])
    mixture = mixture_log_probs(decayed.log_probs_MEC)
    wrong = confidence(mixture)[mixture.argmax(axis=1) != decayed.labels]
    sentence = (paper.out / "fig1" / "sentence.txt").read_text()
    assert f"{pooled.mean():.2f} for one LoRA (members pooled) " in sentence
    accuracy = metrics.accuracy(mixture, decayed.labels)
    assert f"{wrong.mean():.2f} for ensemble, decay on B ({100 * accuracy:.1f} % right)" in sentence


def test_arrows_and_strengths_match_the_evaluations(paper):
    names = ["as-configured", "weight_decay_b=10.0", "weight_decay_b=100.0", "kl_beta=0.1", "kl_beta=1.0"]
    entries = [entry_of(paper, name) for name in [*names, "dropout=0.1", "dropout=0.3"]]
    for row, entry in zip(table(paper, "fig2"), entries, strict=True):
        assert_as_evaluated(row, entry)
        low, high = entry["intervals"]["ensemble_minus_member_mean"]["accuracy"] or (None, None)
        assert (row["gain_accuracy_low"], row["gain_accuracy_high"]) == (low, high)
        assert "gain_ece_low" not in row  # no interval of a difference of ECEs has correct coverage
    better = sum(
        entry["ensemble"]["accuracy"] > entry["member_mean"]["accuracy"]
        and entry["ensemble"]["ece"] < entry["member_mean"]["ece"]
        for entry in entries
    )
    sentence = (paper.out / "fig2" / "sentence.txt").read_text()
    assert sentence.startswith(f"{better} of 7 arrows point to higher accuracy and lower ECE")
    kinds = [(row["regularizer"], row["strength"]) for row in table(paper, "regularizers")]
    assert kinds[0] == ("none", 0)
    assert kinds[5:7] == [("reverse KL to base", 0.1), ("reverse KL to base", 1)]
    assert ("decay on B + decay on A", 10) in kinds
    assert sum("vocabulary" in kind for kind, _ in kinds) == 2
    lowest = min(row["ensemble_nll"] for row in table(paper, "regularizers"))
    assert f"({lowest:.3f})" in (paper.out / "regularizers" / "sentence.txt").read_text()


def test_epochs_start_with_the_base_and_end_with_the_run(paper):
    rows = table(paper, "fig3")
    for name, kind in (("as-configured", "no regularizer"), ("weight_decay_b=100.0", "decay on B 100")):
        entry = entry_of(paper, name)
        points = [row for row in rows if row["regularizer"] == kind]
        for method, key in (("one LoRA (mean of members)", "member_mean"), ("ensemble", "ensemble")):
            first, *_, last = (row for row in points if row["method"] == method)
            for metric in METRICS:
                assert first[metric] == pytest.approx(entry["baselines"]["base_zero_shot"][metric], abs=1e-12)
                assert last[metric] == pytest.approx(entry[key][metric], abs=1e-9)
        assert last["nll_lowest"] == last["nll_highest"] == last["nll"]
        of_members = [member["nll"] for member in entry["members"]]
        one = next(row for row in points if row["epoch"] == 2 and row["method"] != "ensemble")
        assert (one["nll_lowest"], one["nll_highest"]) == pytest.approx((min(of_members), max(of_members)), abs=1e-9)


def test_mc_dropout_has_as_many_passes(paper):
    for row in table(paper, "fig4"):
        entry = entry_of(paper, f"dropout={row['dropout']}")
        key = {"one LoRA": entry["members"][0], "ensemble": entry["ensemble"]}
        expected = key.get(row["method"], entry["baselines"]["mc_dropout"])
        assert row["passes"] == (1 if row["method"] == "one LoRA" else MEMBERS)
        for metric in METRICS:
            assert row[metric] == pytest.approx(expected[metric], abs=1e-12)
        assert (row["nll_low"], row["nll_high"]) == (None, None)  # twelve rows are too few for an interval


def test_ood_sets_keep_their_labels(paper):
    ood = predictions_of(paper, "as-configured", "quiz.ood_other")
    assert (ood.labels >= 0).all()
    (row,) = (
        row
        for row in table(paper, "fig5")
        if (row["rows_of"], row["regularizer"], row["method"]) == ("other", "no regularizer", "ensemble")
    )
    mixture = mixture_log_probs(ood.log_probs_MEC)
    assert row["examples"] == 10
    for metric in METRICS:
        assert row[metric] == pytest.approx(getattr(metrics, metric)(mixture, ood.labels), abs=1e-12)
    assert row["mean_confidence"] == pytest.approx(confidence(mixture).mean(), abs=1e-12)
    entry = entry_of(paper, "as-configured")["ood"]["other"]
    aurocs = {(row["method"], row["score"]): row["auroc"] for row in table(paper, "ood")[:5]}
    assert aurocs["ensemble", "mutual_information"] == entry["auroc"]["mutual_information"]
    assert aurocs["one LoRA (mean of members)", "max_prob"] == entry["member_mean"]["auroc"]["max_prob"]


def test_diversity_by_its_source(paper):
    rows = table(paper, "ablation-randomness")
    names = ["as-configured", "order=same", "same_init=true", "order=bootstrap"]
    names += [f"{name},weight_decay_b=100.0".removeprefix("as-configured,") for name in names]
    for row, name in zip(rows, names, strict=True):
        entry = entry_of(paper, name)
        assert_as_evaluated(row, entry)
        assert row["disagreement"] == pytest.approx(entry["uncertainty"]["disagreement"], abs=1e-12)
    assert [row["random"] for row in rows[:4]] == [
        "both",
        "initialization only",
        "shuffling only",
        "both and bootstrap",
    ]
    assert rows[2]["update_cosine"] > rows[0]["update_cosine"]  # one A for all members
    inits = [row["start"] for row in table(paper, "ablation-init")]
    random = ["uniform x 0.2", "uniform x 5", "gaussian", "orthogonal", "pissa", "uniform, B normal 0.02"]
    assert inits == ["uniform", *random, "uniform", "gaussian", "orthogonal"]
    points = table(paper, "diversity")
    assert {(row["random"], row["start"]) for row in points} >= {("shuffling only", "uniform"), ("both", "orthogonal")}
    assert f"over {len(points)} settings" in (paper.out / "diversity" / "sentence.txt").read_text()


def test_subsets_of_one_training(paper):
    rows = table(paper, "ablation-members")
    for name, kind in (("members=10", "no regularizer"), ("members=10,weight_decay_b=100.0", "decay on B 100")):
        entry = entry_of(paper, name)
        by_size = {row["members"]: row for row in rows if row["regularizer"] == kind}
        assert [row["subsets"] for row in by_size.values()] == [10, 45, *[50] * 5, 45, 10, 1]
        for metric in METRICS:
            assert by_size[1][metric] == pytest.approx(entry["member_mean"][metric], abs=1e-12)
            assert by_size[10][metric] == pytest.approx(entry["ensemble"][metric], abs=1e-12)
            assert by_size[10][f"{metric}_std"] == 0
        assert by_size[2]["nll"] <= by_size[1]["nll"]  # by convexity, over all pairs


def test_rank_and_cost(paper):
    # three layers, q 32 x 32 and v 32 x 16
    of_rank_one = 3 * ((32 + 32) + (32 + 16))
    ranks = table(paper, "ablation-rank")
    assert [(row["r"], row["parameters"]) for row in ranks] == [(r, r * of_rank_one) for r in (1, 4, 16, 64)]
    for row in ranks:
        assert_as_evaluated(row, entry_of(paper, f"lora_alpha={float(4 * row['r'])},r={row['r']}"))
    costs = table(paper, "cost")
    assert [(row["members"], row["parameters"]) for row in costs] == [(m, 8 * m * of_rank_one) for m in (1, 2, 5, 10)]
    assert [row["base_passes"] for row in costs] == [1, 2, 5, 10]
    assert [row["tokens"] for row in costs] == [m * costs[0]["tokens"] for m in (1, 2, 5, 10)]
    assert all(row["train_s"] > 0 and row["peak_bytes"] > 1e6 for row in costs)


def test_shared_points_are_trained_once_and_reused(paper):
    points = [run.parent.name for run in paper.out.glob("trainings/*/runs/*/ensemble.json")]
    assert len(points) == len(set(points)) == 1 + 2 + 2 + 2 + 2 + 2 + 2 + 2 + 2 + 2 + 2 + 2 + 2 + 2 + 2 + 2 + 3 + 5
    before = {path: path.stat().st_mtime_ns for path in paper.out.glob("trainings/**/*.safetensors")}
    pictures = {path: path.read_bytes() for path in (paper.out / "fig2").iterdir()}
    code, output, errors = paper.run("fig2", "fig3")
    assert code == 0
    assert "training" not in errors
    assert output.count("This project's setting") == 2
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert {path: path.read_bytes() for path in pictures} == pictures


@pytest.mark.parametrize(
    ("figures", "more", "message"),
    [
        (["fig22"], [], "paper fig22: no such figure; did you mean 'fig2'?"),
        (["fig2"], ["--profile", "smal"], "--profile smal: no such profile; did you mean 'small'?"),
        ([], [], "paper: name a figure, or all: fig1"),
        (["fig2"], ["--most-members", 0], "--most-members: 0 is less than 1"),
        (["ablation-rank"], ["--adapt.r", 4], "--adapt.r: set by ablation-rank (1, 4, 16, 64); remove the option"),
        (["fig2"], ["--train.lr", 0.5], "error: fig2, point weight_decay_b=10.0: regularize.weight_decay_b: train.lr"),
        (["fig2"], ["--train.lr", 0.003], "--train.lr: the figures in"),
        (["fig1"], ["--profile", "small"], "--profile: the figures in"),
    ],
)
def test_invalid_input_is_refused(figures, more, message, paper):
    code, output, errors = paper.run(*figures, more=more)
    assert (code, output) == (2, "")
    assert message in errors


def test_another_directory_is_refused_and_not_changed(paper, tmp_path):
    (tmp_path / "note.txt").write_text("mine")
    code, _, errors = paper.run("fig2", out=tmp_path)
    assert code == 2
    assert "exists and is not a directory of paper figures" in errors
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]


def test_without_arguments_the_figures_are_listed(lorchestra):
    code, output, _ = lorchestra("paper")
    assert code == 0
    listed = [line.split()[0] for line in output.splitlines() if line.startswith("  ")]
    assert listed == [*FIGURES, "7b", "small", "smoke"]
