"""The page of results, with its CSV files and figures."""

from __future__ import annotations

import csv
import datetime
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from lorchestra.metrics.table import BY_KEY
from lorchestra.report.figure import ENSEMBLE_COLOR, SINGLE_COLOR
from lorchestra.store.atomic import atomic_path, atomic_write_text

from ..setting import processor
from .arms import Arm, arms_of
from .statistics import SHOWN, CellMetrics, Difference, difference, measure
from .tasks import EPOCHS, TASKS, TEST_ROWS, VAL_ROWS
from .trainings import DEPTH_MEMBERS, LAYERS, LR, POOL, Cell, Experiment, M

ENSEMBLE = f"ensemble{M}"
SIZES = (2, M, 10, POOL)
_MIXED = (
    "bootstrap",
    "folds",
    "scaled-a",
    "random-b",
    "dropout",
    "ranks",
    "rates",
    "layers",
    "maps",
    "prompts",
    "everything",
    "greedy",
)


class Results:
    """The arms and metrics of all finished cells.

    Args:
        experiment: the trained cells.
    """

    def __init__(self, experiment: Experiment) -> None:
        self.arms: dict[Cell, list[Arm]] = {cell: arms_of(experiment, cell) for cell in experiment.finished()}
        self.cells: dict[Cell, CellMetrics] = {cell: measure(cell, arms) for cell, arms in self.arms.items()}

    @property
    def sizes(self) -> list[int]:
        """Numbers of training rows, ascending."""
        return sorted({cell.size for cell in self.cells})

    def tasks(self, size: int, *keys: str) -> list[str]:
        """The tasks with a cell of this size that has all of these arms, in the order of `TASKS`."""
        having = {c.task for c, m in self.cells.items() if c.size == size and all(key in m.values for key in keys)}
        return [task for task in TASKS if task in having]

    def known(self) -> dict[str, Arm]:
        """Arms by key, in the order of the tables."""
        return {arm.key: arm for arms in self.arms.values() for arm in arms}

    def minus(self, key: str, reference: str, metric: str, size: int, tasks: Sequence[str] = ()) -> Difference | None:
        """The arm minus the reference, mean over the tasks that have both (or over these tasks)."""
        tasks = tasks or self.tasks(size, key, reference)
        return difference(self.cells, key, reference, metric, tasks, size) if tasks else None


def write_results(experiment: Experiment, folder: Path) -> str:
    """Write `evidence.md`, `evidence_cells.csv`, `evidence_differences.csv` and the figures; returns the page."""
    results = Results(experiment)
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write_text(folder / "evidence_cells.csv", _cells_csv(results))
    atomic_write_text(folder / "evidence_differences.csv", _differences_csv(results))
    lines = _introduction(results)
    for size in results.sizes:
        lines += [f"## {size} training rows", "", *_size_tables(results, size)]
        _draw(results, size, folder / f"evidence_{size}.png")
        lines += ["", f"![Differences by task, {size} rows](evidence_{size}.png)", ""]
    text = "\n".join(lines)
    atomic_write_text(folder / "evidence.md", text)
    return text


def _introduction(results: Results) -> list[str]:
    cells = sorted(results.cells)
    listed = "; ".join(f"{name}: {TASKS[name].what}" for name in dict.fromkeys(cell.task for cell in cells))
    sizes = ", ".join(f"{size} ({VAL_ROWS[size]}, {EPOCHS[size]})" for size in results.sizes)
    return [
        "# What makes an ensemble worth its cost",
        "",
        f"`python benchmarks/evidence.py train --cells CELLS`, then `report`. {processor()},"
        f" {datetime.date.today().isoformat()}. SmolLM2-135M, {LAYERS} layers, rate {LR:g}, batches of 8; training rows"
        f" (validation rows, epochs): {sizes}; up to {TEST_ROWS:,} test rows. Tasks: {listed}.",
        "",
        f"Cells (task-rows-seed): {', '.join(map(str, cells))}.",
        "",
        "Every arm keeps each member's best epoch by validation NLL and has one temperature, fitted on the validation"
        f" rows. A plain arm is the mean over disjoint ensembles out of {POOL} members. In brackets 95 % intervals over"
        " test rows and seeds together, for these tasks; bold: the interval excludes 0. AURC in thousandths. Costs are"
        " trainings and passes of one LoRA. Values by cell:"
        " [evidence_cells.csv](evidence_cells.csv), differences by task:"
        " [evidence_differences.csv](evidence_differences.csv).",
        "",
    ]


def _size_tables(results: Results, size: int) -> list[str]:
    known = results.known()
    depths = [key for key in known if key.startswith("depth-")]
    against_one = [key for key in known if key not in ("one", *_MIXED, *depths)]
    tables = [
        ("Minus one LoRA, mean over tasks.", "one", against_one),
        (f"Members that differ in more than a seed, minus the plain ensemble of {M}.", ENSEMBLE, _MIXED),
        (f"Ensembles of {DEPTH_MEMBERS} by adapted layers, minus the last 6 (at {LR:g}).", "depth-last6", depths),
        (f"Other arms minus the plain ensemble of {M}.", ENSEMBLE, [key for key in against_one if key != ENSEMBLE]),
    ]
    lines: list[str] = []
    for title, reference, keys in tables:
        rows = [
            row
            for key in keys
            if key in known and key != reference and (row := _row(results, known[key], reference, size))
        ]
        if rows:
            heads = [_heading(metric) for metric in SHOWN]
            columns = ["arm", "trained", "served", "tasks", *heads]
            lines += [title, "", _cells(*columns), "|" + "---|" * len(columns), *rows, ""]
    return [*lines, *_values_table(results, size)]


def _heading(metric: str) -> str:
    return "AURC" if metric == "aurc" else BY_KEY[metric].difference_heading


def _row(results: Results, arm: Arm, reference: str, size: int) -> str | None:
    tasks = results.tasks(size, arm.key, reference)
    if not tasks:
        return None
    cells = [_shown(results.minus(arm.key, reference, metric, size), metric) for metric in SHOWN]
    return _cells(arm.title, f"{arm.trained:g}", f"{arm.served:g}", str(len(tasks)), *cells)


def _shown(one: Difference | None, metric: str) -> str:
    if one is None:
        return "-"
    values = [_number(value, metric) for value in (one.value, one.low, one.high)]
    text = f"{values[0]} ({values[1]} to {values[2]})"
    return f"**{text}**" if one.excludes_zero else text


def _number(value: float, metric: str) -> str:
    return f"{1000 * value:+.1f}" if metric == "aurc" else BY_KEY[metric].number(value, signed=True)


def _values_table(results: Results, size: int) -> list[str]:
    """AURC and accuracy by task, mean over seeds."""
    tasks = results.tasks(size)
    lines = ["Accuracy %, AURC in thousandths, by task.", ""]
    lines += [_cells("arm", *tasks), "|" + "---|" * (len(tasks) + 1)]
    for key, arm in results.known().items():
        cells = []
        for task in tasks:
            values = [
                m.values[key] for c, m in results.cells.items() if (c.task, c.size) == (task, size) and key in m.values
            ]
            accuracy, aurc = (
                sum(one[metric] for one in values) / max(1, len(values)) for metric in ("accuracy", "aurc")
            )
            cells.append(f"{100 * accuracy:.1f}, {1000 * aurc:.0f}" if values else "-")
        if any(cell != "-" for cell in cells):
            lines.append(_cells(arm.title, *cells))
    return lines


def _cells(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def _cells_csv(results: Results) -> str:
    rows = [
        [cell.task, cell.size, cell.seed, arm.key, arm.trained, arm.served, len(arm.replicates)]
        + [f"{results.cells[cell].values[arm.key][metric]:.6g}" for metric in SHOWN]
        for cell, arms in sorted(results.arms.items())
        for arm in arms
    ]
    return _csv(["task", "rows", "seed", "arm", "trained", "served", "replicates", *SHOWN], rows)


def _differences_csv(results: Results) -> str:
    rows: list[list[object]] = []
    for size in results.sizes:
        for reference in ("one", ENSEMBLE):
            for key in results.known():
                for task in results.tasks(size, key, reference) if key != reference else []:
                    for metric in SHOWN:
                        one = results.minus(key, reference, metric, size, [task])
                        assert one is not None
                        ends = [f"{value:.6g}" for value in (one.value, one.low, one.high)]
                        rows.append([task, size, key, reference, metric, *ends, one.num_cells])
    return _csv(["task", "rows", "arm", "minus", "metric", "difference", "low", "high", "seeds"], rows)


def _csv(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([header, *rows])
    return text.getvalue()


def _draw(results: Results, size: int, path: Path) -> None:
    """Per task, the ensemble minus one LoRA in each metric, and AURC by number of members."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    tasks = results.tasks(size)
    figure, axes = plt.subplots(1, len(SHOWN) + 1, figsize=(3 * (len(SHOWN) + 1), 1.2 + 0.5 * len(tasks)), sharey=False)
    for axis, metric in zip(axes, SHOWN, strict=False):
        factor = 1000 if metric == "aurc" else BY_KEY[metric].factor
        for row, task in enumerate([*tasks, ""]):
            one = results.minus(ENSEMBLE, "one", metric, size, [task] if task else tasks)
            assert one is not None
            low, value, high = (factor * x for x in (one.low, one.value, one.high))
            color = ENSEMBLE_COLOR if task else SINGLE_COLOR
            axis.errorbar(value, row, xerr=[[value - low], [high - value]], fmt="o", color=color, capsize=3)
        axis.axvline(0, color="0.6", linewidth=1)
        axis.set_yticks(range(len(tasks) + 1), [*tasks, "mean"] if axis is axes[0] else [""] * (len(tasks) + 1))
        axis.invert_yaxis()
        direction = "higher" if BY_KEY[metric].direction > 0 else "lower"
        axis.set_xlabel(
            f"{_heading(metric)}{' x 1000' if metric == 'aurc' else ''}\n({direction} is better)", fontsize=9
        )
    _draw_sizes(results, size, tasks, axes[-1])
    figure.suptitle(f"Ensemble of {M} minus one LoRA, both with a temperature; {size} training rows", fontsize=11)
    figure.tight_layout()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    plt.close(figure)


def _draw_sizes(results: Results, size: int, tasks: Sequence[str], axis: object) -> None:
    """AURC minus that of one LoRA by number of members, a line per task."""
    for task in tasks:
        ends: Mapping[int, Difference | None] = {
            number: results.minus(f"ensemble{number}", "one", "aurc", size, [task]) for number in SIZES
        }
        values = [0.0, *(1000 * one.value for one in ends.values() if one is not None)]
        axis.plot([1, *SIZES], values, marker="o", label=task)  # type: ignore[attr-defined]
    axis.set_xlabel("members\nAURC x 1000 minus one LoRA's", fontsize=9)  # type: ignore[attr-defined]
    axis.set_xscale("log")  # type: ignore[attr-defined]
    axis.set_xticks([1, *SIZES], [str(number) for number in (1, *SIZES)])  # type: ignore[attr-defined]
    axis.minorticks_off()  # type: ignore[attr-defined]
    axis.legend(fontsize=7)  # type: ignore[attr-defined]
