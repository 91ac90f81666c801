"""One page of output a figure: the picture, its data, and a sentence that says what it shows here."""

from __future__ import annotations

import csv
import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorchestra.errors import LorchestraError
from lorchestra.store.atomic import atomic_path, atomic_write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SINGLE, ENSEMBLE, BASE = "#D55E00", "#0072B2", "#666666"
"""Vermilion, blue and gray: one LoRA, the ensemble and the base in every picture."""
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's colors, apart for every kind of color vision."""
_LETTERS_AN_INCH = 16
"""Of the caption, so that no line is wider than the picture."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


@dataclass(frozen=True)
class Page:
    """A figure before it is written; `rows` are its data under `header`."""

    figure: Figure
    header: Sequence[str]
    rows: Sequence[Sequence[Any]]
    sentence: str


def new_figure(width: float, height: float) -> Figure:
    """An empty matplotlib figure, in inches.

    Raises:
        LorchestraError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise LorchestraError("figures need matplotlib: pip install 'lorchestra[report]'") from error
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def write_page(page: Page, folder: Path, name: str, caption: str) -> None:
    """Write `NAME.png`, `NAME.svg`, `NAME.csv` and `NAME.txt` (the sentence, and what was trained).

    Args:
        page: what was drawn.
        folder: where to; made where it is missing.
        name: the figure's name.
        caption: what was trained, put below the picture.
    """
    width = int(_LETTERS_AN_INCH * page.figure.get_size_inches()[0])
    lines = [line for part in caption.splitlines() for line in textwrap.wrap(part, width)]
    page.figure.supxlabel("\n".join(lines), fontsize="x-small", color="0.35")
    for kind in ("png", "svg"):
        with atomic_path(folder / f"{name}.{kind}") as temporary:
            page.figure.savefig(temporary, format=kind, metadata={"Date": None} if kind == "svg" else None)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(page.header)
    writer.writerows(page.rows)
    atomic_write_text(folder / f"{name}.csv", text.getvalue())
    atomic_write_text(folder / f"{name}.txt", f"{page.sentence}\n\n{caption}\n")
