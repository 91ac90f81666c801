"""One page of output per figure: the picture, its data, a sentence that summarizes them, and a caption."""

from __future__ import annotations

import csv
import io
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lorchestra.errors import LorchestraError
from lorchestra.metrics.table import BY_KEY
from lorchestra.paper.results import ENSEMBLE, METRICS, ONE, REGULARIZERS, FinishedRun, Row, Rows, by_task
from lorchestra.report.figure import ENSEMBLE_COLOR, SINGLE_COLOR
from lorchestra.store.atomic import atomic_path, atomic_write_text
from lorchestra.store.schema import read_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import XAxis, YAxis
    from matplotlib.figure import Figure

BASE_COLOR, THIRD_COLOR = "#555555", "#009E73"
"""Gray for the base; bluish green for a third method next to one LoRA (vermilion) and the ensemble (blue)."""
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette, distinguishable with any color vision."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
STYLES = {"one": (SINGLE_COLOR, "s", ONE), "ensemble": (ENSEMBLE_COLOR, "o", ENSEMBLE)}
"""Color, marker and label of the methods, by prefix of their columns."""
TITLES = {key: BY_KEY[key].axis_label for key in METRICS}
"""Axis titles of metrics; accuracy and ECE are drawn in percent."""
_CAPTION_WIDTH = 18.0
"""Letters of the caption per inch of the picture."""
_PAPER = {"adapt.members": 5, "adapt.r": 8}
"""Settings known from arXiv 2310.00035, whose strengths of the decay on B are 1e2 and 1e3."""


@dataclass(frozen=True)
class PaperFigure:
    """How a figure is made: its data from finished runs, then picture and sentence from the data alone."""

    table: Callable[..., list[Row]]
    """From finished runs (`baselines`: from the results of a comparison)."""
    draw: Callable[[Figure, Rows], None]
    sentence: Callable[[Rows], str]


def write_page(figure: PaperFigure, rows: Rows, folder: Path, name: str, caption: str) -> str:
    """Write `NAME.png`, `NAME.svg`, `data.csv` and `sentence.txt`; returns the sentence.

    Args:
        figure: the figure to draw.
        rows: its data.
        folder: output directory, created if missing.
        name: the figure's name.
        caption: description of the training, shown below the picture and after the sentence.

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
    # SVG with real text and without random ids: the same data give the same file
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "text.parse_math": False}):
        picture = Figure(dpi=150, layout="constrained")
        FigureCanvasAgg(picture)
        figure.draw(picture, rows)
        width = round(picture.get_figwidth() * _CAPTION_WIDTH)
        picture.supxlabel("\n".join(textwrap.wrap(caption, width)), fontsize=7.5, color="0.35", x=0.01, ha="left")
        for kind, metadata in (("png", None), ("svg", {"Date": None})):
            with atomic_path(folder / f"{name}.{kind}") as temporary:
                picture.savefig(temporary, format=kind, metadata=metadata)
            picture.set_layout_engine("none")  # the layout is done; repeating it takes a third of the time
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    atomic_write_text(folder / "data.csv", text.getvalue())
    atomic_write_text(folder / "sentence.txt", f"{sentence}\n\n{caption}\n")
    return sentence


def caption(runs: Sequence[FinishedRun], profile: str, compared_task: str | None = None) -> str:
    """The settings that all of a figure's runs share: the paper's values, then this project's.

    Args:
        runs: the figure's runs; what varies between them is in its data.
        profile: the profile they were trained with.
        compared_task: the task, if `runs` holds the directory of a comparison of methods.
    """
    config, varied = runs[0].config, {field for run in runs for field in run.settings}
    adapt, train = config.adapt, config.train
    values = {"adapt.members": ("M", adapt.members), "adapt.r": ("r", adapt.r)}
    shared = [(*values[field], value) for field, value in _PAPER.items() if field not in varied]
    paper = [f"{name} = {value}" for name, value, paper_value in shared if value == paper_value]
    ours = [f"{name} = {value} (paper: {paper_value})" for name, value, paper_value in shared if value != paper_value]
    sizes = []
    for task, run in {compared_task or run.task: run for run in runs}.items():
        splits = run.run.read_splits("train", "test")
        sizes.append(f"{task} ({splits['train']['num_examples']} training, {splits['test']['num_examples']} test rows)")
    epochs = "epoch" if train.epochs == 1 else "epochs"
    modules = adapt.target_modules if isinstance(adapt.target_modules, str) else ", ".join(adapt.target_modules)
    alpha = "" if "adapt.lora_alpha" in varied else f"alpha {adapt.lora_alpha:g} on "
    ours += [
        f"{config.base.name.rstrip('/').rpartition('/')[2]} (paper: LLaMA-13b)",
        "; ".join(sizes),
        f"{alpha}{modules}, layers {adapt.layers}",
        f"AdamW, lr {train.lr:g} {train.schedule}, {train.epochs} {epochs} of batches of {train.batch_size}",
        f"{_scoring(runs[0], compared_task)} scoring, few-shot base with {config.evaluate.few_shot} rows,"
        f" seed {train.seed}",
    ]
    if compared_task is None:
        prompts = dict.fromkeys(str(run.record["prompt_template"]) for run in runs)
        ours.append("prompt " + ", ".join('"' + prompt.replace("\n", " / ") + '"' for prompt in prompts))
    if varied & REGULARIZERS.keys():
        ours.append("strengths of the regularizers, except 100 and 1000 of the decay on B")
    as_in_paper = f"As in the paper: {', '.join(paper)}. " if paper else ""
    return f"{as_in_paper}This project's setting (profile {profile}): {'; '.join(ours)}."


def _scoring(run: FinishedRun, compared_task: str | None) -> str:
    """The resolved scoring of a run or of a comparison."""
    if compared_task is None:
        return str(run.record["scoring"])
    path = run.run.inside("compare.json")
    record = read_json(path, {"resolved": {"data": {"scoring": str}}})
    return str(record["resolved"]["data"]["scoring"])


def scaled(metric: str, value: float) -> float:
    """A metric in the unit in which it is drawn."""
    return BY_KEY[metric].factor * value


def panels(
    figure: Figure, rows: Rows, columns: int, size: tuple[float, float] = (3.6, 3.1)
) -> list[tuple[str, Rows, list[Axes]]]:
    """One row of panels per task, each panel of `size` inches: `(task, its rows, its panels)`."""
    tasks = by_task(rows)
    figure.set_size_inches(size[0] * columns, size[1] * len(tasks) + 1.0)
    grid = figure.subplots(len(tasks), columns, squeeze=False)
    return [(task, of_task, list(line)) for (task, of_task), line in zip(tasks.items(), grid, strict=True)]


def shared_legend(axes: Axes, columns: int) -> None:
    """One legend above all panels, made from the labels of one of them."""
    handles, labels = axes.get_legend_handles_labels()
    axes.figure.legend(
        handles,
        labels,
        loc="outside upper center",
        ncols=columns,
        frameon=False,
        fontsize="small",
        handlelength=2.8,  # long enough to show dashes
    )


def plain_log_scale(axis: XAxis | YAxis) -> None:
    """A logarithmic axis with plain numbers at the powers of ten."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def per_task(rows: Rows, sentence: Callable[[Rows], str]) -> str:
    """One sentence per task, with the task's name if there are several."""
    tasks = by_task(rows)
    parts = [(f"{task}: " if len(tasks) > 1 else "") + sentence(of_task) for task, of_task in tasks.items()]
    return "; ".join(parts) + "."


def percent(value: float) -> str:
    """A share as text."""
    return f"{100 * value:.1f} %"
