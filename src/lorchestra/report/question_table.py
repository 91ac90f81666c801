"""An evaluation question by question, as a table for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from lorchestra.metrics.result import Evaluation, MethodScores, Numbers, QuestionScores
from lorchestra.metrics.table import BY_KEY, MAIN_TARGET
from lorchestra.report.fitted_table import FittedTable
from lorchestra.report.table import best_baseline
from lorchestra.types import Json

METRICS = tuple(BY_KEY[key] for key in ("accuracy", MAIN_TARGET, "nll", "ece", "aurc"))
"""What is shown of every question."""
ORDINAL = {"level_mae": "MAE levels", "rps": "RPS", "quadratic_kappa": "Kappa"}
"""What is shown of scores in addition, with headings."""
_CAPTION = "One LoRA: mean of the members, each with its temperature where validation rows determine one."
_ORDINAL_CAPTION = (
    " MAE: mean distance of the most probable level from the answer. RPS: ranked probability score, lower is better."
    " Kappa: quadratic-weighted. Members without temperature in these."
)
_BASELINE_CAPTION = " LR: logistic regression per question, without adapters; of two, the one with the lower NLL here."


def question_table(entry: Evaluation | Json) -> FittedTable | None:
    """A row per typed question and method (`methods_of`); None for rows without typed questions."""
    questions = Evaluation.of(entry).questions
    if not questions:
        return None
    ordered = has_ordinal(questions)
    table = Table(
        title=Text("By question"),
        caption=caption(questions),
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


def caption(questions: Mapping[str, QuestionScores]) -> str:
    """What the table's words mean."""
    has_baseline = any(best_baseline(question.evaluation) is not None for question in questions.values())
    text = _CAPTION + (_BASELINE_CAPTION if has_baseline else "")
    return text + (_ORDINAL_CAPTION if has_ordinal(questions) else "")


def methods_of(question: QuestionScores) -> list[tuple[str, MethodScores, Numbers]]:
    """Title, metrics and metrics of ordered levels: of the ensemble, one LoRA, and the best baseline without adapters.

    One LoRA is the mean member: with temperatures, if the evaluation has them.
    """
    evaluation, ordinal = question.evaluation, question.ordinal
    scaled = evaluation.member_mean_scaled
    one = scaled if scaled is not None and scaled.metrics else evaluation.member_mean
    best = best_baseline(evaluation)
    return [
        ("ensemble", evaluation.ensemble, ordinal.get("ensemble", {})),
        ("one LoRA", one, ordinal.get("member_mean", {})),
        *([] if best is None else [(best.name, best.scores, {})]),
    ]


def _rows(name: str, question: QuestionScores, *, ordered: bool) -> Iterator[list[Text]]:
    """The cells of a question's rows."""
    about = f"{question.type}, {question.evaluation.num_examples} rows"
    names = (Text(name), Text(about, "dim"), Text())
    for first, (title, scores, levels) in zip(names, methods_of(question), strict=False):
        style = "bold" if title == "ensemble" else ""
        cells = [first, Text(title, style), *(Text(scores.number(metric), style) for metric in METRICS)]
        if ordered:
            numbers = [levels.get(metric) for metric in ORDINAL]
            cells += [Text("" if number is None else f"{number:.3f}", style) for number in numbers]
        yield cells
