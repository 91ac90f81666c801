"""The record of `lorchestra plan --what-if` as tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from lorchestra.report.fitted_table import FittedTable
from lorchestra.report.plan import readable_seconds
from lorchestra.store.disk import readable_bytes
from lorchestra.types import Json

CHECKED_WITHIN = 0.2
"""Largest error of the cases that `benchmarks/what_if.py` counts as predicted."""
LAYERS_WITHIN = 0.1
"""Largest error of its passes through layers of larger bases."""


def what_if_tables(record: Json) -> Iterator[RenderableType]:
    """The rows, a table per base, and the assumptions."""
    yield Text(_rows(record))
    for base in record["bases"]:
        yield Text()
        yield Text(_about(base, record["device"]), style="bold")
        if any(cell["bytes"]["fits"] for cell in base["cells"]):
            yield _table(base)
        yield from (Text(line) for line in _lacking(base))
    yield Text()
    yield Text(assumptions())


def assumptions() -> str:
    """What the figures rest on, and how far they were checked."""
    return (
        "Arithmetic, not a measurement: products at the device's speed, and element-wise operations at its bandwidth;"
        " all epochs, without loading the base and without communication. Members are split over devices by torchrun:"
        " each device holds the whole base, and memory and time are those of the device with most members. More"
        " devices than members are refused, and so left out. Of the measured cases of this project, of one base (135M"
        f" parameters) on CPUs, most are met within {100 * CHECKED_WITHIN:.0f} %, and layers of 1B and 8B bases within"
        f" {100 * LAYERS_WITHIN:.0f} % (benchmarks/results/what_if_2026-11.md). Whole trainings of larger bases, and"
        " GPUs, are extrapolated."
    )


def _rows(record: Json) -> str:
    rows, epochs = record["rows"], record["epochs"]
    what = "Assumed" if rows["assumed"] else "Given"
    usual = "" if record["epochs_given"] else " (a usual number; the search chooses it)"
    advice = "; give rows with --data.train" if rows["assumed"] else ""
    return (
        f"{what}: {rows['train']:,} training rows of {rows['mean_tokens']:.0f} tokens on average, {rows['val']:,} for"
        f" validation, scored by {rows['scoring']}, {epochs} epochs{usual}{advice}."
    )


def _about(base: Json, device: Json) -> str:
    layers, cells = base["layers"], base["cells"]
    below = f", {layers['below']} below computed once" if layers["below"] else ""
    where = "as stated" if device["stated"] else f"measured here, {device['threads']} thread(s)"
    lines = [
        f"{base['name']}: {base['parameters'] / 1e9:.3g}B parameters in {base['dtype']}, a member"
        f" {base['member_parameters']:,} on {layers['adapted']} of {layers['all']} layers{below}.",
        f"A device: {_figure(base['flop_per_s'] / 1e12)} TFLOP/s ({where}), {_figure(base['bytes_per_s'] / 1e9)} GB/s",
    ]
    if base["limit"] is not None:
        lines[-1] += f", {readable_bytes(base['limit'])} of memory to use"
    search = max((cell["time_s"]["search"] for cell in cells), default=0.0)
    if search and any(cell["bytes"]["fits"] for cell in cells):
        lines[-1] += f"; the search of rate and epochs takes {readable_seconds(search)} on one, part of the total"
    return "\n".join([lines[0], f"{lines[1]}."])


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _table(base: Json) -> FittedTable:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for title in ("members", "devices", "memory", "tokens", "training", "validation", "total"):
        table.add_column(title, justify="right", no_wrap=True)
    for cell in base["cells"]:
        table.add_row(*_cells(cell), style="" if cell["bytes"]["fits"] else "dim")
    return FittedTable(table, num_names=2)


def _cells(cell: Json) -> list[str]:
    sizes, times = cell["bytes"], cell["time_s"]
    counts = [str(cell["members"]), str(cell["devices"]), readable_bytes(sizes["peak"]), f"{cell['tokens']:,}"]
    if not sizes["fits"]:
        return [*counts, "does not fit", "", ""]
    seconds = (times["training"] - times["search"], times["evaluation"] + times["calibration"], times["total"])
    return [*counts, *map(readable_seconds, seconds)]


def _lacking(base: Json) -> Iterator[str]:
    """What would hold the members that fit on none of the numbers of devices."""
    least: dict[str, int | None] = base["least_devices"]
    for members, devices in least.items():
        if devices is not None:
            yield f"{members} member(s) fit on {devices} device(s) or more."
    if None in least.values():
        limit, weights = base["limit"], base["bytes_with_one_member"]["base"]
        filled = -(-weights // max(1, limit))
        yield (
            f"It does not fit: with one member the training takes"
            f" {readable_bytes(base['bytes_with_one_member']['peak'])} on each device, whatever their number, since the"
            f" base is not split over devices. Its weights alone ({readable_bytes(weights)}) fill"
            f" {filled} such {'device' if filled == 1 else 'devices'}; base.quantization nf4 stores them in 4 bits."
        )
