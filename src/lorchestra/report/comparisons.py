"""Compared methods as a table for the terminal.

The results of a sweep as a table for the terminal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from lorchestra.report.fitted_table import FittedTable
from lorchestra.report.html.tables import count
from lorchestra.report.table import COLUMNS, JUDGED, Column, calibrated, reference_text

_SHOWN = [column for column in COLUMNS if column.key in ("accuracy", "nll", "ece")]
_COST = ("Passes", "Tokens", "Sec.", "Peak", "Params")


def methods_table(results: Sequence[Mapping[str, Any]]) -> FittedTable:
    """One row a method: metrics with the paired interval of `lora_ensemble` minus it, and cost; fits 100 columns.

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
    for column in _SHOWN:
        table.add_column(column.title, no_wrap=True)
    for title in _COST:
        table.add_column(title, justify="right", no_wrap=True)
    for one in results:
        name = Text(
            one["name"].replace("+", "\n+").replace(":", "\n:"), style="bold" if one["name"] == "lora_ensemble" else ""
        )
        if "left_out" in one:
            table.add_row(name, Text("left out", style="dim"))
            continue
        apart = one.get("ensemble_minus") or {}
        cells = [_cell(column, one["entry"], apart) for column in _SHOWN]
        table.add_row(name, *cells, *_costs(one["cost"]))
    return FittedTable(table)


def _cell(column: Column, entry: Mapping[str, Any], apart: Mapping[str, Any]) -> Text:
    text = Text(column.number(entry["ensemble"][column.key], absent="inf"))
    ends = apart.get(column.key) if column.key in JUDGED else None
    if ends is not None:
        signed = Column(column.key, "", column.factor, column.digits, signed=True)
        text.append(f"\n[{','.join(signed.number(end, absent='inf') for end in ends)}]", style="dim")
    reference = calibrated(entry.get("intervals", {}).get("ensemble") or {}) if column.key == "ece" else None
    if reference is not None:
        text.append(f"\n{reference_text(column, reference)}", style="dim")
    return text


def _costs(cost: Mapping[str, Any]) -> list[str]:
    return [
        f"{cost['fit_base_passes']:.2f}\n{cost['predict_base_passes']:.2f}",
        count(cost["tokens"]),
        f"{cost['fit_s']:.0f}",
        f"{cost['peak_bytes'] / 1e9:.2f}",
        count(cost["parameters"]),
    ]


def sweep_table(results: Sequence[Mapping[str, Any]]) -> FittedTable:
    """One row a point: its settings, the ensemble's metrics with the mean member's in brackets, and seconds.

    Args:
        results: see `runs.sweep.results.collect_results`.
    """
    table = Table(
        box=SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 2, 0, 0),
        caption="In brackets: one LoRA (mean of the members). Seconds: share of the packed pass, by tokens.",
        caption_justify="left",
    )
    fields = list(dict.fromkeys(field for one in results for field in one["settings"]))
    for field in fields:
        table.add_column(field.rpartition(".")[2], justify="right", overflow="fold")
    for column in _SHOWN:
        table.add_column(column.title, no_wrap=True)
    table.add_column("validation NLL", justify="right")
    table.add_column("seconds", justify="right")
    for one in results:
        cells = [str(one["settings"].get(field, "")) for field in fields]
        for column in _SHOWN:
            ensemble, single = (one.get(name, {}).get(column.key) for name in ("ensemble", "member_mean"))
            cells.append("" if "ensemble" not in one else f"{column.number(ensemble)} ({column.number(single)})")
        if one["state"] != "finished":
            cells[len(fields)] = one["state"]
        nll, train_s = one.get("val_nll"), (one.get("cost") or {}).get("train_s")
        cells += ["" if nll is None else f"{nll:.3f}", "" if train_s is None else f"{train_s:.0f}"]
        table.add_row(*cells)
    return FittedTable(table, num_names=len(fields))
