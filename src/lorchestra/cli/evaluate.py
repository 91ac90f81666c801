"""`lorchestra evaluate`: the ensemble against its baselines."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated

import tyro

from lorchestra.cli.arguments import check_run_argument, parse

if TYPE_CHECKING:
    from lorchestra.store.run import Run
    from lorchestra.types import Json


@dataclass(frozen=True)
class EvaluateArguments:
    """Measure a trained ensemble: accuracy, NLL, calibration and OOD detection, against one LoRA, the base, and
    classifiers without adapters.

    By default on the run's test rows; --data and --task evaluate on others. Predictions, metrics.json and a picture
    are written to the run directory.
    """

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run directory."""
    task: str | None = None
    """Another named task (`lorchestra tasks` lists them)."""
    data: str | None = None
    """Another file with labelled rows."""
    split: str = "test"
    """Split of the run's task, or of --task: train, val or test."""
    ood: tuple[str, ...] = field(default=())
    """Out-of-distribution rows (named tasks or files): how well do uncertainty and the distance from the training rows
    separate them from the test rows?"""
    data_dir: str | None = None
    """Directory with data sets, searched first for named tasks. Default: the run's."""
    base: str | None = None
    """The run's base, if it has moved: hub id, directory or .gguf file with the same weights."""
    data_train: Annotated[str | None, tyro.conf.arg(name="data.train")] = None
    """The training file, if it has moved; its rows must be the same. Not needed with --data."""
    data_val: Annotated[str | None, tyro.conf.arg(name="data.val")] = None
    """The validation file, if it has moved."""
    data_test: Annotated[str | None, tyro.conf.arg(name="data.test")] = None
    """The test file, if it has moved."""
    early_exit: str | None = None
    """Also report what early exit, one member after the other, would save and change: exact, or a confidence in (0, 1],
    as in predict."""
    raw: bool = False
    """Evaluate the mixture of the members as it is, without the run's calibration."""
    full: bool = False
    """Include the zero-shot and few-shot base where one takes more than a quarter of the training's time."""
    save: bool = True
    """Write predictions, metrics.json and a picture to the run directory."""
    json: bool = False
    """Print the metrics as JSON instead of tables."""


def run(arguments: Sequence[str]) -> int:
    """Run the command."""
    parsed = parse(EvaluateArguments, arguments, "evaluate")
    check_run_argument(parsed.run, "evaluate")
    evaluate_and_show(
        parsed.run,
        data=parsed.data,
        task=parsed.task,
        split=parsed.split,
        ood=parsed.ood,
        data_dir=parsed.data_dir,
        early_exit=parsed.early_exit,
        as_json=parsed.json,
        base=parsed.base,
        files={"train": parsed.data_train, "val": parsed.data_val, "test": parsed.data_test},
        full=parsed.full,
        raw=parsed.raw,
        save=parsed.save,
    )
    return 0


def evaluate_and_show(
    root: str | Path,
    *,
    data: str | None = None,
    task: str | None = None,
    split: str = "test",
    ood: Sequence[str | Path] = (),
    data_dir: str | None = None,
    early_exit: str | None = None,
    as_json: bool = False,
    base: str | None = None,
    files: Mapping[str, str | None] = MappingProxyType({}),
    full: bool = False,
    raw: bool = False,
    save: bool = True,
) -> None:
    """Evaluate a run with progress on stderr; print tables and a verdict, or JSON.

    Raises:
        UnsavedEvaluationError: the evaluation was printed, but could not be saved.
    """
    from lorchestra.metrics.early_exit import ExitRule

    rule = None if early_exit is None else ExitRule.parse(early_exit)

    from lorchestra.cli.output import messages, print_json, printer
    from lorchestra.cli.progress import RowProgress
    from lorchestra.runs.ensemble import load_run
    from lorchestra.runs.evaluate import UnsavedEvaluationError, evaluate_run

    errors = messages()
    say = printer(errors)
    with RowProgress(errors) as progress:
        trained = load_run(root, base=base)
        unsaved: UnsavedEvaluationError | None = None
        try:
            entry = evaluate_run(
                trained,
                data=data,
                task=task,
                split=split,
                ood=ood,
                data_dir=data_dir,
                files=files,
                early_exit=rule,
                full=full,
                raw=raw,
                save=save,
                callbacks=[progress],
            )
        except UnsavedEvaluationError as error:
            entry, unsaved = error.entry, error
    if as_json:
        print_json(entry)
    else:
        _show(entry)
    if unsaved is not None:
        raise unsaved
    if save and not as_json:
        _draw(trained.run, entry, say)


def _show(entry: Json) -> None:
    """Print the tables and the verdict."""
    from lorchestra.cli.output import results
    from lorchestra.report.question_table import question_table
    from lorchestra.report.table import class_table, early_exit_text, evaluation_table, ood_table, verdict

    console = results()
    console.print(evaluation_table(entry))
    for table in (question_table(entry), ood_table(entry), class_table(entry)):
        if table is not None:
            console.print(table)
    console.print(verdict(entry), highlight=False)
    if "early_exit" in entry:
        console.print(early_exit_text(entry), highlight=False)


def _draw(run: Run, entry: Json, say: Callable[[str], None]) -> None:
    """Write the reliability diagram to the run directory."""
    from lorchestra.metrics.question_scores import calibration_of
    from lorchestra.metrics.result import Evaluation
    from lorchestra.report.figure import reliability_figure

    name = f"{entry['task']}.{entry['split']}"
    picture = run.inside(f"reliability.{name}.png")
    predictions = run.load_predictions(entry["task"], entry["split"])
    calibration = calibration_of(Evaluation.from_dict(entry), predictions)
    reliability_figure(predictions, picture, calibration)
    say(f"picture: {picture}")
