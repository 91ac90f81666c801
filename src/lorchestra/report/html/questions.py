"""A run on typed questions, question by question: results, certificates and prompts for the page."""

from __future__ import annotations

from collections.abc import Sequence

from lorchestra.metrics.result import Evaluation, QuestionScores
from lorchestra.report.decisions import decisions_context
from lorchestra.report.html.source import ReportRun
from lorchestra.report.html.svg import NO_VALUE
from lorchestra.report.html.tables import Cell, metric_cell
from lorchestra.report.question_table import METRICS, ORDINAL, caption, has_ordinal, methods_of
from lorchestra.report.typed_prompts import prompt_text
from lorchestra.types import Json


def questions_context(entry: Evaluation) -> Json | None:
    """Tables of questions, each with a row per method; None without questions.

    The second table has the metrics of ordered levels, for the scores.
    """
    if not entry.questions:
        return None
    tables = [([metric.heading for metric in METRICS], [_question(*item) for item in entry.questions.items()])]
    if has_ordinal(entry.questions):
        scores = [_levels(name, question) for name, question in entry.questions.items() if question.ordinal]
        tables.append((list(ORDINAL.values()), scores))
    return {"tables": tables, "caption": caption(entry.questions)}


def _question(name: str, question: QuestionScores) -> Json:
    """A question's name, its kind and rows, and the metrics of its methods."""
    about = f"{question.type}, {question.evaluation.num_examples:,} rows"
    cells = [(title, [metric_cell(metric, scores) for metric in METRICS]) for title, scores, _ in methods_of(question)]
    return {"name": name, "about": about, "methods": cells}


def _levels(name: str, question: QuestionScores) -> Json:
    """The same with the metrics of ordered levels, for the methods that have them."""
    cells = [
        (title, [_cell(levels.get(metric)) for metric in ORDINAL])
        for title, _, levels in methods_of(question)
        if levels
    ]
    return {"name": name, "about": f"{question.evaluation.num_examples:,} rows", "methods": cells}


def _cell(number: float | None) -> Cell:
    return Cell(NO_VALUE if number is None else f"{number:.3f}")


def certificates(run: ReportRun) -> list[tuple[str, Json]]:
    """Each certified question by name, with its sentences and tables; "" in a run without typed questions."""
    return [(name, decisions_context(decisions)) for name, decisions in run.decisions.items()]


def not_certified(run: ReportRun) -> list[str]:
    """Names of the typed questions without a certificate, in a run where others have one."""
    return [question.name for question in run.questions if run.decisions and question.name not in run.decisions]


def calibration_text(entry: Evaluation) -> str:
    """What was fitted to calibrate the mixture, in sentences; empty where nothing was."""
    if entry.calibration is not None:
        return entry.calibration.sentence()
    fitted = [(name, one.evaluation.calibration) for name, one in (entry.questions or {}).items()]
    return " ".join(f"{name}: {calibration.sentence()}" for name, calibration in fitted if calibration is not None)


def prompts(run: ReportRun) -> Sequence[tuple[str, str]]:
    """The prompt of each question, by name; "" in a run without typed questions."""
    typed = [(question.name, prompt_text(run.record, question)) for question in run.questions]
    return typed or [("", run.record["prompt_template"])]
