"""Every table at common terminal widths: nothing is cut, and each row keeps its name."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.table import Table

from lorchestra.cli.progress import TrainingProgress
from lorchestra.report.comparisons import methods_table, sweep_table
from lorchestra.report.fitted_table import FittedTable
from lorchestra.report.plan import plan_tables
from lorchestra.report.table import evaluation_table, ood_table

WIDTHS = (40, 60, 72, 80, 100, 120)
INTERVALS = {"accuracy": [0.61, 0.83], "nll": [0.41, 0.83], "ece": [0.05, 0.17], "brier": [0.3, 0.6]}
VALUES = {"accuracy": 0.75, "nll": 0.612, "ece": 0.08, "automated_5": 0.321, "signed_gap": -0.021, "brier": 0.41}
METHODS = {
    "majority": VALUES,
    "baselines": {"base_zero_shot": VALUES, "base_few_shot": VALUES, "mc_dropout": VALUES},
    "member_mean": VALUES | {"std": dict.fromkeys(VALUES, 0.052)},
    "best_member": VALUES,
    "mean_of_logits": VALUES,
    "ensemble": VALUES,
}
NAMES = (
    *("majority", "base, zero-shot", "base, few-shot", "one LoRA (mean of 5)", "one LoRA (best on val)"),
    *("MC dropout", "mean of logits", "ensemble"),
)


def lines(table, width):
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(table, highlight=False)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def check(table, width, names, header):
    """Nothing is cut, and below each header every name starts a line."""
    shown = lines(table, width)
    text = "\n".join(shown)
    assert max(map(len, shown)) <= width, text
    assert "…" not in text, text
    starts = [number for number, line in enumerate(shown) if line.strip().startswith(header)]
    assert starts, text
    for start, end in zip(starts, [*starts[1:], len(shown)], strict=True):
        for name in names:
            assert any(line.strip().startswith(name) for line in shown[start:end]), f"{name}\n{text}"
    return text, len(starts)


@pytest.mark.parametrize("width", WIDTHS)
def test_the_evaluation(width):
    levels = {name: INTERVALS | {"signed_gap": [-0.12, 0.04]} for name in ("ensemble", "member_mean", "best_member")}
    entry = METHODS | {"task": "reviews", "split": "test", "num_examples": 120, "num_members": 5}
    text, _ = check(evaluation_table(entry | {"intervals": levels | {"level": 0.95}}), width, NAMES, "Method")
    for value in ("75.0", "0.612 ±0.052", "[61.0,83.0]", "32.1 ±5.2", "0.410"):
        assert value in text


@pytest.mark.parametrize("width", WIDTHS)
def test_out_of_distribution(width):
    aurocs = {"max_prob": 0.91, "entropy": 0.92, "mutual_information": 0.93}
    side = {"auroc": aurocs, "mean_confidence": {"in_dist": 0.81, "ood": 0.66}}
    scores = side | {"num_examples": {"ood": 500}, "member_mean": side | {"std": dict.fromkeys(aurocs, 0.011)}}
    scores["auroc"] = aurocs | {"distance": 0.94}
    entry = METHODS | {"task": "reviews", "split": "test", "num_examples": 120, "num_members": 5}
    table = ood_table(entry | {"intervals": {"level": 0.95}, "ood": {"headlines": scores}})
    text, _ = check(table, width, ["headlines", "500 rows"], "OOD set")
    for value in ("0.910 ±0.011", "0.930", "0.940", "81.0 / 66.0"):
        assert value in text


@pytest.mark.parametrize("width", WIDTHS)
def test_compared_methods(width):
    cost = {
        "fit_base_passes": 3.14,
        "predict_base_passes": 1.8,
        "tokens": 123456789,
        "fit_s": 12345.4,
        "peak_bytes": 1.5e10,
        "parameters": 2304000,
    }
    names = ("zero_shot", "one_lora", "lora_ensemble", "laplace")
    results = [{"name": n, "cost": cost, "entry": {"ensemble": VALUES}, "ensemble_minus": INTERVALS} for n in names]
    results.append({"name": "swag", "left_out": "it cannot"})
    text, _ = check(methods_table(results), width, [*names, "swag"], "Method")
    for value in ("75.0", "[+61.0,+83.0]", "0.612", "12345", "15.00", "left out"):
        assert value in text


@pytest.mark.parametrize("width", WIDTHS)
def test_a_sweep(width):
    done = {"state": "finished", "ensemble": VALUES, "member_mean": VALUES, "val_nll": 0.5, "cost": {"train_s": 61.2}}
    results = [{"settings": {"train.lr": lr, "adapt.r": 8}, **done} for lr in (1e-4, 3e-4)]
    results.append({"settings": {"train.lr": 1.0, "adapt.r": 8}, "state": "failed"})
    text, _ = check(sweep_table(results), width, ["0.0001", "0.0003", "1.0"], "lr")
    for value in ("75.0 (75.0)", "0.612 (0.612)", "0.500", "61", "failed"):
        assert value in text


def plan_record():
    sizes = dict.fromkeys(("base", "adapters", "training", "activations", "trunk", "process"), 123_456_789)
    return {
        "rows": {"train": 1_234_567, "val": 1234, "longest_tokens": 512},
        "layers": {"adapted": 6, "all": 30, "below": 24},
        "scoring": {"kind": "text", "choice_tokens": 0.4},
        "work": {
            **{"steps": 12345, "micro_batches": 23456, "tokens_per_epoch": 1234567, "tokens": 12345678},
            **{"epochs": 10, "epochs_given": False},
            **{"base_passes": 123.4, "largest_micro_batch": 640},
        },
        "parameters": {"base": 134_515_008, "member": 92_160, "members": 460_800},
        **{
            "base": "smollm2-135m",
            "dtype": "float32",
            "quantization": "none",
            "members": 5,
            "token_budget": {"value": 640, "given": False},
        },
        "bytes": sizes | {"peak": 900_000_000, "limit": 800_000_000, "fits": False},
        "disk_bytes": {"run": 1234, "trunk": 5678, "free": 10**12, "fits": True},
        "time_s": {
            **{"training": 1234.0, "search": 321.0, "trunk": 56.0, "base": 7.0, "evaluation": 8.0, "total": 1305.0},
            **{"calibration": 9.0, "frozen_states": 12.0},
        },
        "calibration": {"micro_batches": 9, "seconds": 10.2},
        "remedies": [{"option": "train.gradient_checkpointing", "value": "True", "peak": 500_000_000, "fits": True}],
    }


@pytest.mark.parametrize("width", WIDTHS)
def test_a_plan(width):
    shown = [line for part in plan_tables(plan_record()) for line in lines(part, width)]
    text = "\n".join(shown)
    assert max(map(len, shown)) <= width, text
    assert "…" not in text, text
    for name in ("parameters of the base", "optimizer steps", "predicted peak", "free", "training", "total"):
        assert any(line.startswith(name) for line in shown), text
    for value in ("134,515,008", "900.0 MB", "20 min 34 s", "500.0 MB", "1.0 TB"):
        assert value in text
    assert "--train.gradient-checkpointing" in text.replace("\n", "") or width < 60


@pytest.mark.parametrize("width", WIDTHS)
def test_tasks(width, monkeypatch, capsys):
    from lorchestra.cli import main as cli
    from lorchestra.cli import output
    from lorchestra.data.tasks.table import TASKS

    monkeypatch.setattr(output, "_TABLE_WIDTH", width)
    monkeypatch.delenv("COLUMNS", raising=False)
    assert cli.main(["tasks"]) == 0
    shown = capsys.readouterr().out.split("\ndirectory:")[0]
    assert max(len(line.rstrip()) for line in shown.splitlines()) <= width, shown
    assert "…" not in shown
    for name in TASKS:
        assert any(line.strip().startswith(name) for line in shown.splitlines()), shown


@pytest.mark.parametrize("width", WIDTHS)
def test_the_live_table_of_a_training(width):
    from types import SimpleNamespace

    member = SimpleNamespace(best_step=120, best_nll=0.5, status="running")
    state = SimpleNamespace(members=[member] * 3, history=[], step=3, train_s=3.0)
    progress = TrainingProgress(Console(file=io.StringIO(), width=width))
    progress._trainer = SimpleNamespace(num_steps=9)
    progress._losses = [0.612] * 3
    check(progress._render(state), width, ["0", "1", "2"], "member")


def test_a_table_that_fits_is_unchanged():
    table = Table()
    table.add_column("name")
    table.add_column("value")
    table.add_row("a", "1")
    assert lines(FittedTable(table), 40) == lines(table, 40)
