"""Compared methods, and the points of a sweep, as tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from lorchestra.metrics.result import MethodScores
from lorchestra.metrics.table import DECISIVE, SUMMARY, Metric
from lorchestra.report.fitted_table import FittedTable
from lorchestra.report.html.tables import count
from lorchestra.report.table import column_heading, reference_text, table_columns
from lorchestra.types import Json

_COST = ("Passes", "Tokens", "Sec.", "Peak", "Params")


def methods_table(results: Sequence[Json]) -> FittedTable:
    """One row per method: metrics, the paired interval of `lora_ensemble` minus the method, cost; fits 100 columns.

    Args:
        results: see `runs.compare.compare_methods`.
    """
    table = Table(
        box=SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),
        caption=Text(
            "In brackets: lora_ensemble minus the method, 95 % interval of the paired difference. In parentheses: ECE"
            " of a perfectly calibrated model on as many rows, mean and 95 % range. Passes of the base: in the fit, and"
            " below in one prediction. Tokens trained on; seconds and peak GB of the fit; parameters stored."
            + "".join(f"\n{one['name']}: {note}." for one in results for note in one.get("notes") or ())
        ),
        caption_justify="left",
    )
    table.add_column("Method", no_wrap=True)
    fitted = [MethodScores.from_dict(one["entry"]["ensemble"]) for one in results if "left_out" not in one]
    columns = table_columns(SUMMARY, fitted)
    for metric in columns:
        table.add_column(column_heading(metric), no_wrap=True)
    for title in _COST:
        table.add_column(title, justify="right", no_wrap=True)
    for one in results:
        name = Text(
            one["name"].replace("+", "\n+").replace(":", "\n:"), style="bold" if one["name"] == "lora_ensemble" else ""
        )
        if "left_out" in one:
            table.add_row(name, Text("left out", style="dim"))
            continue
        intervals = (one["entry"].get("intervals") or {}).get("ensemble") or {}
        scores = MethodScores.from_dict(one["entry"]["ensemble"])
        scores = scores.with_intervals(intervals, one.get("ensemble_minus") or {})
        table.add_row(name, *(_cell(metric, scores) for metric in columns), *_costs(one["cost"]))
    return FittedTable(table, break_before=1 + len(columns))


def _cell(metric: Metric, scores: MethodScores) -> Text:
    text = Text(scores.number(metric))
    ends = scores.ensemble_minus.get(metric.key) if metric in DECISIVE else None
    if ends is not None:
        text.append(f"\n[{','.join(metric.number(end, 'inf', signed=True) for end in ends)}]", style="dim")
    if metric.key == "ece" and scores.ece_if_calibrated is not None:
        text.append(f"\n{reference_text(scores.ece_if_calibrated)}", style="dim")
    return text


def _costs(cost: Mapping[str, float]) -> list[str]:
    return [
        f"{cost['fit_base_passes']:.2f}\n{cost['predict_base_passes']:.2f}",
        count(cost["tokens"]),
        f"{cost['fit_s']:.0f}",
        f"{cost['peak_bytes'] / 1e9:.2f}",
        count(cost["parameters"]),
    ]


def sweep_table(results: Sequence[Json]) -> FittedTable:
    """One row per point: its settings, the ensemble's metrics with the mean member's in parentheses, and seconds.

    Args:
        results: see `runs.sweep.results.collect_results`.
    """
    table = Table(
        box=SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 2, 0, 0),
        caption="In parentheses: one LoRA (mean of the members). Seconds: share of the packed pass, by tokens.",
        caption_justify="left",
    )
    fields = list(dict.fromkeys(field for one in results for field in one["settings"]))
    for field in fields:
        table.add_column(field.rpartition(".")[2], justify="right", overflow="fold")
    points = [
        MethodScores.from_dict(one[name]) for one in results for name in ("ensemble", "member_mean") if name in one
    ]
    columns = table_columns(SUMMARY, points)
    for metric in columns:
        table.add_column(column_heading(metric), no_wrap=True)
    table.add_column("validation NLL", justify="right")
    table.add_column("seconds", justify="right")
    for one in results:
        cells = [str(one["settings"].get(field, "")) for field in fields]
        for metric in columns:
            ensemble, single = (one.get(name, {}).get(metric.key) for name in ("ensemble", "member_mean"))
            cells.append("" if "ensemble" not in one else f"{metric.number(ensemble)} ({metric.number(single)})")
        if one["state"] != "finished":
            cells[len(fields)] = one["state"]
        nll, train_s = one.get("val_nll"), (one.get("cost") or {}).get("train_s")
        cells += ["" if nll is None else f"{nll:.3f}", "" if train_s is None else f"{train_s:.0f}"]
        table.add_row(*cells)
    return FittedTable(table, num_names=len(fields))
