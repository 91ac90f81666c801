"""The record of a plan as tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from lorchestra.report.fitted_table import FittedTable
from lorchestra.store.disk import readable_bytes
from lorchestra.types import Json

_LONG_S = 3600.0
"""Seconds of a training from which the plan says what would shorten it."""


def plan_tables(record: Json) -> Iterator[RenderableType]:
    """The training, its memory, disk and time, and settings that help if it does not fit."""
    yield _facts("Training", _what(record))
    yield Text()
    yield _facts("Memory", _memory(record))
    yield Text()
    yield _facts("Disk", _disk(record))
    yield Text()
    yield _facts("Time", _time(record))
    yield Text()
    yield Text(_verdict(record), style="bold" if _fits(record) else "bold red")
    if record["remedies"]:
        yield _remedies(record)


def readable_seconds(seconds: float) -> str:
    """`4 s`, `3 min 20 s`, `2 h 05 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60:,} h {minutes % 60:02d} min"


def _facts(title: str, rows: list[tuple[str, str, str]]) -> FittedTable:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column(title, no_wrap=True, min_width=30)
    table.add_column("", justify="right", no_wrap=True, min_width=14)
    table.add_column("", style="dim")
    for row in rows:
        table.add_row(*map(Text, row))
    return FittedTable(table)


def _what(record: Json) -> list[tuple[str, str, str]]:
    rows, layers, work, parameters = (record[name] for name in ("rows", "layers", "work", "parameters"))
    budget = record["token_budget"]
    below = f", {layers['below']} below computed once" if layers["below"] else ""
    stored = f", maps stored as {record['quantization']}" if record["quantization"] != "none" else ""
    return [
        ("parameters of the base", f"{parameters['base']:,}", f"{record['base']}, {record['dtype']}{stored}, frozen"),
        (
            "parameters of a member",
            f"{parameters['member']:,}",
            f"on {layers['adapted']} of {layers['all']} layers{below}",
        ),
        ("parameters of all members", f"{parameters['members']:,}", f"{record['members']} members"),
        (
            "rows",
            f"{rows['train']:,}",
            f"and {rows['val']:,} for validation; the longest has {rows['longest_tokens']:,} tokens",
        ),
        ("optimizer steps", f"{work['steps']:,}", f"in {work['micro_batches']:,} micro-batches"),
        ("token budget", f"{budget['value']:,}", "" if budget["given"] else "chosen by device and memory"),
        ("tokens per epoch", f"{work['tokens_per_epoch']:,}", "of all members"),
        ("tokens in total", f"{work['tokens']:,}", _epochs(work)),
        ("base passes", f"{work['base_passes']:g}", "forward work in passes of the whole base over the rows"),
    ]


def _epochs(work: Json) -> str:
    return f"{work['epochs']} epochs" + ("" if work["epochs_given"] else ", a usual number; the search chooses it")


def _memory(record: Json) -> list[tuple[str, str, str]]:
    sizes, layers = record["bytes"], record["layers"]
    parts = [
        ("base", "base", ""),
        ("adapters", "adapters", ""),
        ("training state", "training", "gradients, both moments, best copies"),
        ("activations", "activations", f"at {record['work']['largest_micro_batch']:,} tokens, the largest micro-batch"),
        ("cached layers below", "trunk", "" if layers["below"] else "none: the first layer is adapted"),
        ("Python and libraries", "process", ""),
    ]
    rows = [(title, readable_bytes(sizes[key]), note) for title, key, note in parts]
    steady = sum(sizes[key] for _, key, _ in parts)
    limit = "" if sizes["limit"] is None else f"of {readable_bytes(sizes['limit'])} available"
    note = limit if sizes["peak"] == steady else f"reached while the base is loaded; {limit}"
    return [*rows, ("predicted peak", readable_bytes(sizes["peak"]), note)]


def _disk(record: Json) -> list[tuple[str, str, str]]:
    sizes = record["disk_bytes"]
    rows = [("members and checkpoints", readable_bytes(sizes["run"]), "")]
    if sizes["trunk"]:
        rows.append(
            (
                "cached layers below",
                readable_bytes(sizes["trunk"]),
                "in a file: of a search, or more than adapt.trunk_memory_gb",
            )
        )
    return [*rows, ("free", "unknown" if sizes["free"] is None else readable_bytes(sizes["free"]), "")]


def _time(record: Json) -> list[tuple[str, str, str]]:
    times, calibration = record["time_s"], record["calibration"]
    rows = [("training", readable_seconds(times["training"]), "")]
    if times["search"]:
        rows.append(("  of which the search", readable_seconds(times["search"]), "of learning rate and epochs"))
    if times["trunk"]:
        rows.append(("  of which layers below", readable_seconds(times["trunk"]), "once"))
    if times["base"]:
        rows.append(("  of which the base's answers", readable_seconds(times["base"]), "once, for the KL term"))
    count = calibration["micro_batches"]
    rows.append(("evaluation on validation rows", readable_seconds(times["evaluation"]), "after each epoch"))
    if times["calibration"]:
        rows.append(("calibration", readable_seconds(times["calibration"]), "the members' answers to validation rows"))
    measured = f"from {readable_seconds(calibration['seconds'])} of measurement, {count} micro-batches"
    rows.append(("total", readable_seconds(times["total"]), measured))
    if times["frozen_states"]:
        rows.append(
            (
                "then, of the evaluation",
                readable_seconds(times["frozen_states"]),
                "hidden states of the baseline without adapters, not in the total",
            )
        )
    return rows


def _fits(record: Json) -> bool:
    return bool(record["bytes"]["fits"] and record["disk_bytes"]["fits"])


def _verdict(record: Json) -> str:
    sizes, disk = record["bytes"], record["disk_bytes"]
    sentences = []
    if sizes["limit"] is None:
        sentences.append("The free memory of this machine is unknown.")
    elif sizes["fits"]:
        sentences.append("It fits into memory.")
    else:
        sentences.append(f"It does not fit into memory: {readable_bytes(sizes['peak'] - sizes['limit'])} too much.")
    sentences += _if_slow(record)
    if not disk["fits"]:
        missing = readable_bytes(disk["run"] + disk["trunk"] - disk["free"])
        advice = "choose another --out, or use fewer members"
        if disk["trunk"]:
            advice = (
                "choose another --out, or raise adapt.trunk_memory_gb if memory allows; without space for the cached"
                " layers, training computes them in every step"
            )
        sentences.append(f"The disk lacks {missing}: {advice}.")
    return " ".join(sentences)


def _if_slow(record: Json) -> list[str]:
    """What would help if the time is the obstacle."""
    seconds, layers, scoring = record["time_s"]["total"], record["layers"], record["scoring"]
    if seconds < _LONG_S:
        return []
    helps = []
    if not layers["below"] and layers["all"] > 2:
        helps.append(f"--adapt.layers last:{-(-layers['all'] // 3)}, which computes the layers below once")
    if scoring["kind"] == "text" and scoring["choice_tokens"] > 0.5:
        share = f"{100 * scoring['choice_tokens']:.0f} %"
        helps.append(f"--data.scoring tree, as {share} of the tokens are texts of choices")
    helps.append("fewer rows, epochs or members")
    return [f"It takes {readable_seconds(seconds)}. What would help: {'; '.join(helps)}."]


def _remedies(record: Json) -> FittedTable:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("Settings that help", no_wrap=True)
    table.add_column("peak", justify="right", no_wrap=True)
    table.add_column("")
    for remedy in record["remedies"]:
        option = f"--{remedy['option'].replace('_', '-')} {remedy['value']}" if remedy["value"] else remedy["option"]
        table.add_row(Text(option), readable_bytes(remedy["peak"]), "fits" if remedy["fits"] else "still too much")
    return FittedTable(table)
