"""An evaluation question by question, as a table for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from lorchestra.metrics.result import Evaluation, MethodScores, QuestionScores
from lorchestra.metrics.table import BY_KEY, MAIN_TARGET
from lorchestra.report.fitted_table import FittedTable
from lorchestra.types import Json

METRICS = tuple(BY_KEY[key] for key in ("accuracy", MAIN_TARGET, "nll", "ece", "aurc"))
"""What is shown of every question."""
ORDINAL = {"level_mae": "MAE levels", "rps": "RPS", "quadratic_kappa": "Kappa"}
"""What is shown of scores in addition, with headings."""
METHODS = {"ensemble": "ensemble", "one LoRA": "member_mean"}
"""The rows of a question by title, with the keys of their metrics of ordered levels."""
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
    ordered = has_ordinal(questions)
    table = Table(
        title=Text("By question"),
        caption=caption(ordered=ordered),
        title_justify="left",
        caption_justify="left",
        box=SIMPLE_HEAD,
    )
    table.add_column("Question", overflow="fold", min_width=10)
    table.add_column("Method", no_wrap=True)
    headings = [metric.heading.replace(" (", "\n(") for metric in METRICS]
    for heading in (*headings, *(ORDINAL.values() if ordered else ())):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, question in questions.items():
        for cells in _rows(name, question, ordered=ordered):
            table.add_row(*cells)
    # metrics of scores stay together where the columns do not all fit
    return FittedTable(table, num_names=2, break_before=2 + len(METRICS) if ordered else None)


def has_ordinal(questions: Mapping[str, QuestionScores]) -> bool:
    """Whether one of the questions is a score, which has further metrics."""
    return any(question.ordinal for question in questions.values())


def caption(*, ordered: bool) -> str:
    """What the table's words mean; `ordered` where it has metrics of scores."""
    return _CAPTION + (_ORDINAL_CAPTION if ordered else "")


def one_lora(question: QuestionScores) -> MethodScores:
    """The mean member: with temperatures, if the evaluation has them."""
    scaled = question.evaluation.member_mean_scaled
    return scaled if scaled is not None and scaled.metrics else question.evaluation.member_mean


def _rows(name: str, question: QuestionScores, *, ordered: bool) -> Iterator[list[Text]]:
    """The cells of a question's rows."""
    evaluation = question.evaluation
    about = f"{name}\n{question.type}, {evaluation.num_examples} rows"
    for index, ((title, key), scores) in enumerate(
        zip(METHODS.items(), (evaluation.ensemble, one_lora(question)), strict=True)
    ):
        style = "bold" if index == 0 else ""
        first = Text(about.split("\n")[index], style="" if index == 0 else "dim")
        cells = [first, Text(title, style), *(Text(scores.number(metric), style) for metric in METRICS)]
        if ordered:
            levels = question.ordinal.get(key, {})
            numbers = [levels.get(metric) for metric in ORDINAL]
            cells += [Text("" if number is None else f"{number:.3f}", style) for number in numbers]
        yield cells
