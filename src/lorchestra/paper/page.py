"""One page of output a figure: the picture, its data, and one sentence that says what it shows here."""

from __future__ import annotations

import csv
import io
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorchestra.errors import LorchestraError
from lorchestra.metrics.table import BY_KEY
from lorchestra.paper.results import METRICS, tasks_of
from lorchestra.report.figure import ENSEMBLE_COLOR, SINGLE_COLOR
from lorchestra.store.atomic import atomic_path, atomic_write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = dict[str, Any]
Rows = Sequence[Mapping[str, Any]]

BASE_COLOR, THIRD_COLOR = "#555555", "#009E73"
"""Gray for the base, bluish green for what stands beside one LoRA (vermilion) and the ensemble (blue)."""
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's colors, apart for every kind of color vision."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
TITLES = {key: BY_KEY[key].axis_label for key in METRICS}
"""Metrics as axes name them; accuracy and ECE are drawn in percent."""
_CAPTION_WIDTH = 18.0
"""Letters of the caption to an inch of the picture."""

__all__ = ["ENSEMBLE_COLOR", "SINGLE_COLOR"]


@dataclass(frozen=True)
class PaperFigure:
    """A figure: its data from finished runs, and picture and sentence from the data alone."""

    table: Callable[[Sequence[Any]], list[Row]]
    """From finished runs (`baselines`: from the results of a comparison)."""
    draw: Callable[[Figure, Rows], None]
    sentence: Callable[[Rows], str]


def write_page(figure: PaperFigure, rows: Rows, folder: Path, name: str, caption: str) -> str:
    """Write `NAME.png`, `NAME.svg`, `data.csv` and `sentence.txt`; returns the sentence.

    Args:
        figure: what to draw.
        rows: its data.
        folder: where to; made where it is missing.
        name: the figure's name.
        caption: what was trained; it stands below the picture and behind the sentence.

    Raises:
        LorchestraError: matplotlib is not installed.
        CheckpointError: a file cannot be written.
    """
    try:
        import matplotlib as mpl
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise LorchestraError("figures need matplotlib: pip install 'lorchestra[report]'") from error
    sentence = figure.sentence(rows)
    # text of an SVG as text, and no random ids in it: the same data give the same file
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "text.parse_math": False}):
        picture = Figure(dpi=150, layout="constrained")
        FigureCanvasAgg(picture)
        figure.draw(picture, rows)
        width = round(picture.get_figwidth() * _CAPTION_WIDTH)
        picture.supxlabel("\n".join(textwrap.wrap(caption, width)), fontsize=7.5, color="0.35", x=0.01, ha="left")
        for kind, metadata in (("png", None), ("svg", {"Date": None})):
            with atomic_path(folder / f"{name}.{kind}") as temporary:
                picture.savefig(temporary, format=kind, metadata=metadata)
            picture.set_layout_engine("none")  # it is laid out now; doing it again takes a third of the time
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    atomic_write_text(folder / "data.csv", text.getvalue())
    atomic_write_text(folder / "sentence.txt", f"{sentence}\n\n{caption}\n")
    return sentence


def scaled(metric: str, value: float) -> float:
    """A metric in the unit in which it is drawn."""
    return BY_KEY[metric].factor * value


def panels(figure: Figure, rows: Rows, columns: int, size: tuple[float, float] = (3.6, 3.1)) -> list[Any]:
    """One row of panels for each task, each of `size` in inches, with the task's rows: `(task, rows, panels)`."""
    tasks = tasks_of(rows)
    figure.set_size_inches(size[0] * columns, size[1] * len(tasks) + 1.0)
    grid = figure.subplots(len(tasks), columns, squeeze=False)
    return [(task, own, list(line)) for (task, own), line in zip(tasks.items(), grid, strict=True)]


def panels_of_metrics(
    figure: Figure, rows: Rows, xlabel: str, columns: int, draw: Callable[[Any, str, Rows, int, str], None]
) -> None:
    """A panel a metric for each task, over whole numbers, and one legend of so many columns.

    `draw(axes, metric, rows, i, name)` draws the rows of the i-th regularizer, of that name, into a panel.
    """
    names = list(dict.fromkeys(row["regularizer"] for row in rows))
    lines = panels(figure, rows, len(METRICS))
    for task, own, grid in lines:
        for axes, metric in zip(grid, METRICS, strict=True):
            for i, name in enumerate(names):
                draw(axes, metric, [row for row in own if row["regularizer"] == name], i, name)
            axes.set(xlabel=xlabel, title=f"{task}: {TITLES[metric]}")
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.grid(color="0.92")
    shared_legend(figure, lines[0][2][0], columns)


def shared_legend(figure: Figure, axes: Any, columns: int) -> None:
    """One legend above all panels, where it hides nothing."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside upper center",
        ncols=columns,
        frameon=False,
        fontsize="small",
        handlelength=2.8,  # a dashed line is seen to be one
    )


def plain_log_scale(axis: Any) -> None:
    """A logarithmic axis with ticks at powers of ten, written out."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    axis.set_major_formatter(FuncFormatter(lambda value, place: f"{value:,.0f}" if value >= 1 else f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def per_task(rows: Rows, say: Callable[[Rows], str]) -> str:
    """One sentence about each task, named where there are several."""
    tasks = tasks_of(rows)
    told = [(f"{task}: " if len(tasks) > 1 else "") + say(own) for task, own in tasks.items()]
    return "; ".join(told) + "."


def percent(value: float) -> str:
    """A share as a text."""
    return f"{100 * value:.1f} %"
