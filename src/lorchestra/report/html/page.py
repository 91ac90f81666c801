"""The HTML page: figures, tables and sentences of one or several runs in the templates."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from lorchestra.config.mappings import to_mapping
from lorchestra.errors import ConfigError, LorchestraError, visible
from lorchestra.metrics.result import Evaluation, MethodScores
from lorchestra.metrics.table import DECISIONS, IN_TABLES, ON_PAGE, SUMMARY, WITH_DIRECTION, Metric
from lorchestra.report.differences import Method
from lorchestra.report.html import compare, course, figures, questions, tables
from lorchestra.report.html.examples import pick
from lorchestra.report.html.glyphs import member_glyph, rows_with_glyphs
from lorchestra.report.html.measures import Threshold, abstain
from lorchestra.report.html.methods import (
    CONTROLS,
    MethodComparison,
    check_belongs,
    foreign_settings,
    is_comparison,
    method_name,
    methods_context,
    read_comparison,
)
from lorchestra.report.html.source import ReportRun, expand_sweeps, read_runs
from lorchestra.report.html.svg import NO_VALUE, Figure, typeset
from lorchestra.report.table import (
    BASELINES,
    WITHOUT_ADAPTERS,
    baseline_text,
    best_baseline,
    has_distance,
    imbalance_text,
    seconds_text,
    verdict,
)
from lorchestra.store.atomic import atomic_write_text
from lorchestra.types import Json, Predictions

if TYPE_CHECKING:
    from jinja2 import Environment

THRESHOLDS = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
"""Confidences below which the table abstains."""

WORDS = {
    "yes": "Yes",
    "partly": "In part",
    "unclear": "Not clearly",
    "mixed": "Yes and no",
    "no": "No",
    "none": "Not judged",
}
"""The answer in one word, by tone of the headline."""

MAX_IN_FULL = 6
"""With more runs, as a sweep has, only the best one is shown in full."""


def write_report(
    roots: Sequence[str | Path],
    out: str | Path,
    *,
    split: str | None = None,
    examples: int = 8,
    methods: str | Path | None = None,
) -> list[ReportRun]:
    """Write one self-contained page about one run, or several of one task; returns the runs.

    Args:
        roots: run directories, finished and evaluated; a sweep's directory stands for its finished runs, and one of
            compared methods for `methods`. With methods, no run is needed.
        out: the HTML file; it appears whole or not at all.
        split: the evaluation to show; by default test, or the latest if test was not evaluated.
        examples: rows in each list of examples; 0 keeps all texts of the data out of the page.
        methods: a directory of compared methods (`lorchestra compare`), evaluated on the same rows.

    Raises:
        LorchestraError: jinja2 is not installed.
        CheckpointError, DataError: see `read_runs`; or the methods are of other rows; or the page cannot be written.
    """
    given = [Path(methods)] if methods is not None else []
    given += [Path(root) for root in roots if is_comparison(Path(root))]
    roots = [root for root in roots if not is_comparison(Path(root))]
    if not roots and not given:
        raise ConfigError("report: no run given; name at least one run directory")
    if len(given) > 1:
        raise ConfigError(f"--methods: {given[0]} and {given[1]}: a page takes one directory of compared methods")
    if examples < 0:
        raise ConfigError(f"--examples: {examples} is below 0; give how many rows each list shows")
    environment = _environment()
    runs = read_runs(expand_sweeps(roots), split) if roots else []
    compared = read_comparison(given[0]) if given else None
    if compared is not None:
        for run in runs:
            check_belongs(run, compared)
    atomic_write_text(out, render(environment, runs, examples, compared))
    return runs


def render(
    environment: Environment, runs: Sequence[ReportRun], examples: int, compared: MethodComparison | None = None
) -> str:
    """The page as text."""
    script, style = _template("page.js"), _template("page.css")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    foreign = {run.name: foreign_settings(run, compared) if compared else [] for run in runs}
    comparison = compare.comparison(runs) if len(runs) > 1 else None
    contexts = []
    for number, run in enumerate(runs):
        controls = compared.controls(run.entry, run.predictions) if compared and not foreign[run.name] else []
        in_full = comparison is None or len(runs) <= MAX_IN_FULL or number == comparison["best"]
        contexts.append(run_context(run, f"r{number}", examples if in_full else 0, len(runs) > 1, controls, in_full))
    methods = methods_context(compared, foreign, alone=not runs) if compared else None
    entry = runs[0].entry if runs or compared is None else compared.first.entry
    page = environment.get_template("page.html.j2").render(
        title=f"{entry.task}, {entry.split} rows",
        version=version("lorchestra"),
        style=style,
        script=script,
        script_digest=digest,
        words=WORDS,
        comparison=comparison,
        methods=None if methods is None else methods | {"config": _flat(methods["config"])},
        runs=contexts,
    )
    return visible(page)


def run_context(
    run: ReportRun,
    prefix: str,
    examples: int,
    among_others: bool,
    controls: Sequence[Method] = (),
    in_full: bool = True,
) -> Json:
    """Everything the templates show of one run.

    Args:
        run: the run.
        prefix: makes its element ids unique on the page.
        examples: rows in each list of examples.
        among_others: whether the page shows several runs.
        controls: methods that the verdict compares the ensemble with, in addition to its members.
        in_full: False for a run of which only the headline is shown.
    """
    entry = run.entry
    tone, sentence = tables.headline(entry, controls)
    shown = {"prefix": prefix, "name": run.name, "entry": entry, "headline": sentence, "in_full": in_full}
    if not in_full:
        return shown
    risk, slider = figures.risk_figure(run, f"{prefix}-probe")
    return shown | {
        "level": f"{100 * entry.level:g} %",
        "base": run.record["base"]["id"],
        "tone": tone,
        "verdict": typeset(verdict(entry, controls)),
        "missing_controls": [] if controls else [method_name(key) for key in CONTROLS if "+" not in key],
        "fitted_here": entry.split == "val",
        **_metric_tables(entry, controls),
        "baseline_verdict": typeset(baseline_text(entry) or ""),
        "classes": _classes(entry),
        "seconds": seconds_text(entry.seconds or {}),
        "has_classifiers": any(key in entry.baselines for key in WITHOUT_ADAPTERS),
        "left_out": [(BASELINES.get(name, name), reason) for name, reason in (entry.left_out or {}).items()],
        "temperature_rows": run.validation.num_examples if run.validation and entry.best_member_scaled else None,
        "calibration": questions.calibration_text(entry),
        "by_question": questions.questions_context(entry),
        **{"figures": _figures(run, risk, among_others), "slider": slider},
        "certified": questions.certificates(run),
        "not_certified": questions.not_certified(run),
        "thresholds": _thresholds(run),
        "ood": _ood_rows(entry, run.has_information),
        "has_information": run.has_information,
        "predicted_information": run.predicted_information,
        "has_distance": has_distance(entry),
        "uncertainty": _uncertainty(entry),
        "cost": tables.cost_rows(run),
        "members": _members(run),
        "examples": pick(run.predictions, run.mixture(run.predictions), examples),
        "examples_left_out": examples == 0,
        "config": _flat(to_mapping(run.config)),
        "prompts": questions.prompts(run),
        "facts": _facts(run),
        "environment": _flat(run.environment),
        "others": run.others,
    }


def _metric_tables(entry: Evaluation, controls: Sequence[Method]) -> Json:
    """The tables of metrics and their columns, without those that the evaluation, of an earlier version, lacks."""

    def columns(metrics: Sequence[Metric]) -> tuple[Metric, ...]:
        return tables.present(metrics, [entry])

    def differences(metrics: Sequence[Metric]) -> list[Json]:
        rows = tables.references(entry, controls, metrics)
        return rows_with_glyphs(rows, lambda row: not row.key.startswith(("base_", "majority")))

    compared, decisions = columns(WITH_DIRECTION), columns(DECISIONS)
    return {
        "difference_columns": compared,
        "references": differences(compared),
        "method_columns": columns(ON_PAGE),
        "table_columns": columns(IN_TABLES),
        "summary_columns": columns(SUMMARY),
        "methods": tables.method_rows(entry, columns(ON_PAGE)),
        "decision_columns": decisions,
        "decisions": tables.method_rows(entry, decisions),
        "decision_references": differences(decisions),
    }


def _environment() -> Environment:
    try:
        from jinja2 import Environment, FunctionLoader, StrictUndefined
    except ImportError as error:
        raise LorchestraError("reports need jinja2: pip install 'lorchestra[report]'") from error
    environment = Environment(
        loader=FunctionLoader(_template),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": lambda value, digits=1: f"{100 * value:.{digits}f} %"}
    environment.globals |= {"member_glyph": member_glyph, "shown": tables.shown}
    return environment


def _figures(run: ReportRun, risk: Figure, among_others: bool) -> dict[str, Figure | None]:
    return {
        "reliability": figures.reliability_figure(run),
        "wrong": figures.wrong_figure(run),
        "risk": risk,
        "arrow": None if among_others else course.arrow_figure([run]),
        "training": course.training_figure(run),
        "matrix": course.matrix_figure(run),
        "ood": course.ood_figure(run),
    }


def _template(name: str) -> str:
    return files("lorchestra.report.html").joinpath("templates", name).read_text(encoding="utf-8")


def _thresholds(run: ReportRun) -> list[Json]:
    """Coverage and risk at some thresholds, on the evaluated rows and on the validation rows."""

    def points(predictions: Predictions) -> list[Threshold]:
        return abstain(run.mixture(predictions), predictions.labels, THRESHOLDS)

    separate = run.validation is not None and run.entry.split != "val"
    validation = points(run.validation) if run.validation is not None and separate else [None] * len(THRESHOLDS)
    return [
        {"threshold": threshold, "here": here, "val": val}
        for threshold, here, val in zip(THRESHOLDS, points(run.predictions), validation, strict=True)
    ]


def _ood_rows(entry: Evaluation, has_information: bool) -> list[Json]:
    rows = []
    for name, scores in (entry.ood or {}).items():
        single = scores.member_mean
        cells = []
        for score in ("max_prob", "entropy", "mutual_information", *(["distance"] if has_distance(entry) else [])):
            mine, theirs = scores.auroc.get(score), single.auroc.get(score)
            if score == "mutual_information" and not has_information:
                mine = None  # equal for all rows, so its AUROC of 0.5 means nothing
            spread = single.std.get(score)
            one = NO_VALUE if theirs is None else f"{theirs:.3f}" + ("" if spread is None else f" ± {spread:.3f}")
            cells.append((NO_VALUE if mine is None else f"{mine:.3f}", one))
        confidence = (scores.mean_confidence, single.mean_confidence)
        rows.append({"name": name, "cells": cells, "num": scores.num_examples["ood"], "confidence": confidence})
    return rows


def _classes(entry: Evaluation) -> Json | None:
    """Recall by label of the ensemble and the best baseline without adapters, where labels are unbalanced."""
    classes = entry.classes
    if classes is None:
        return None
    best = best_baseline(entry)
    methods = [("ensemble", "ensemble", entry.ensemble)]
    methods += [] if best is None else [(best.key, best.name, best.scores)]
    columns = [classes.recall.get(key) or () for key, _, _ in methods]
    sizes = zip(classes.labels, classes.train_rows, classes.rows, strict=False)
    return {
        "names": [name for _, name, _ in methods],
        "rows": [(*row, [column[i] if i < len(column) else None for column in columns]) for i, row in enumerate(sizes)],
        "macro_f1": [scores.metrics.get("macro_f1") for _, _, scores in methods],
        "sentence": imbalance_text(entry) or "",
    }


def _uncertainty(entry: Evaluation) -> list[tuple[str, str]]:
    values = entry.uncertainty
    return [
        ("mean total entropy", f"{values['total_entropy']:.3f} nats"),
        ("of it within members (expected entropy)", f"{values['expected_entropy']:.3f} nats"),
        ("of it between members (mutual information)", f"{values['mutual_information']:.3f} nats"),
        ("disagreement, share of member pairs", f"{100 * values['disagreement']:.1f} %"),
    ]


def _members(run: ReportRun) -> list[Json]:
    """Each member of the run with its metrics; failed ones have none."""
    scores = dict(zip(run.members, run.entry.members, strict=False))
    return [
        {
            "number": m,
            "scores": scores.get(m, MethodScores()),
            **{key: member.get(key) for key in ("state", "reason", "best_step", "val_nll", "seed")},
        }
        for m, member in enumerate(run.record["members"])
    ]


def _facts(run: ReportRun) -> list[tuple[str, str]]:
    record = run.record
    labels = record.get("labels")
    typed = ", ".join(f"{question.name} ({question.type})" for question in run.questions)
    kind = (
        ("typed questions", typed)
        if typed
        else ("labels", ", ".join(map(str, labels)) if labels else "choices differ by row")
    )
    return [
        ("run directory", str(run.run.root)),
        ("base", f"{record['base']['id']}, revision {record['base'].get('revision') or 'not given'}"),
        ("digest of the base", str(record["base"].get("digest", NO_VALUE))),
        ("digest of the tokenizer", str(record["tokenizer_digest"])),
        ("answers scored by", f"{record['scoring']}, {record.get('normalize', 'sum')}"),
        kind,
        *([] if run.distillation is None else [("distilled", run.distillation.sentence())]),
        ("intervals", f"{run.entry.resamples} bootstrap resamples of examples"),
    ]


def _flat(mapping: Mapping[str, object], prefix: str = "") -> list[tuple[str, str]]:
    """Nested values as dotted names and texts."""
    rows: list[tuple[str, str]] = []
    for key, value in mapping.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(value, dict):
            rows += _flat(value, name)
        else:
            rows.append((name, ", ".join(map(str, value)) if isinstance(value, list) else str(value)))
    return rows
