"""The results of a sweep as a table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from lorchestra.report.fit import FittedTable
from lorchestra.report.table import COLUMNS

_SHOWN = [column for column in COLUMNS if column.key in ("accuracy", "nll", "ece")]


def sweep_table(results: Sequence[Mapping[str, Any]]) -> FittedTable:
    """One row a point: its settings, the ensemble's metrics with the mean member's in brackets, and seconds.

    Args:
        results: see `experiments.sweep.results.collect_results`.
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
