"""An evaluation question by question, as a table for the terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from lorchestra.metrics.result import Evaluation, MethodScores, QuestionScores
from lorchestra.metrics.table import BY_KEY, MAIN_TARGET
from lorchestra.report.fitted_table import FittedTable
from lorchestra.types import Json

_METRICS = ("accuracy", MAIN_TARGET, "nll", "ece", "aurc")
_ORDINAL = {"level_mae": "MAE\nlevels", "rps": "RPS", "quadratic_kappa": "Kappa"}
_CAPTION = "One LoRA: mean of the members, each with its temperature where validation rows determine one."
_ORDINAL_CAPTION = (
    " MAE: mean distance of the most probable level from the answer. RPS: ranked probability score, lower is better."
    " Kappa: quadratic-weighted. Members without temperature in these."
)


def question_table(entry: Evaluation | Json) -> FittedTable | None:
    """Two rows per typed question, of the ensemble and of one LoRA; None for rows without typed questions."""
    questions = Evaluation.of(entry).questions
    if not questions:
        return None
    ordered = any(question.ordinal for question in questions.values())
    table = Table(
        title=Text("By question"),
        caption=_CAPTION + (_ORDINAL_CAPTION if ordered else ""),
        title_justify="left",
        caption_justify="left",
        box=SIMPLE_HEAD,
    )
    table.add_column("Question", overflow="fold", min_width=10)
    table.add_column("Method", no_wrap=True)
    for heading in (*(BY_KEY[key].heading.replace(" (", "\n(") for key in _METRICS), *_ORDINAL.values()):
        if ordered or heading not in _ORDINAL.values():
            table.add_column(heading, justify="right", no_wrap=True)
    for name, question in questions.items():
        for cells in _rows(name, question, ordered=ordered):
            table.add_row(*cells)
    return FittedTable(table)


def _rows(name: str, question: QuestionScores, *, ordered: bool) -> Iterator[list[Text]]:
    """The cells of a question's rows."""
    evaluation = question.evaluation
    scaled = evaluation.member_mean_scaled
    one = scaled if scaled is not None and scaled.metrics else evaluation.member_mean
    about = f"{name}\n{question.type}, {evaluation.num_examples} rows"
    for index, (title, key, scores) in enumerate(
        (("ensemble", "ensemble", evaluation.ensemble), ("one LoRA", "member_mean", one))
    ):
        style = "bold" if index == 0 else ""
        first = Text(about.split("\n")[index], style="" if index == 0 else "dim")
        cells = [first, Text(title, style), *(Text(text, style) for text in _numbers(scores))]
        if ordered:
            levels = question.ordinal.get(key, {})
            numbers = [levels.get(metric) for metric in _ORDINAL]
            cells += [Text("" if number is None else f"{number:.3f}", style) for number in numbers]
        yield cells


def _numbers(scores: MethodScores) -> Iterator[str]:
    for key in _METRICS:
        yield scores.number(BY_KEY[key])
