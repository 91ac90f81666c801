"""`lorchestra evaluate`: the ensemble beside what one would use without it."""

from __future__ import annotations

import json as jsonlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from lorchestra.cli.arguments import check_run_argument, parse


@dataclass(frozen=True)
class EvaluateArguments:
    """Measure a trained ensemble: accuracy, NLL, calibration, OOD detection, beside one LoRA and the base.

    Without --task and --data the run's own test rows are taken. Predictions, metrics.json and a picture go into the run
    directory.
    """

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run directory."""
    task: str | None = None
    """Another task by name (`lorchestra tasks` lists them)."""
    data: str | None = None
    """A file with other labelled rows."""
    split: str = "test"
    """Which split of the run's own task, or of --task: train, val or test."""
    ood: tuple[str, ...] = field(default=())
    """Tasks by name or files with rows unlike the training rows; how well does uncertainty tell them apart?"""
    data_dir: str | None = None
    """Directory with data sets, where tasks by name are looked for first; the default is the run's."""
    early_exit: str | None = None
    """Also tell what asking members one after the other would save and change: exact, or a confidence in (0, 1] (as in
    predict)."""
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
) -> None:
    """Evaluate a run with progress on stderr; print tables and a verdict, or JSON."""
    from lorchestra.core.early_exit import ExitRule

    rule = None if early_exit is None else ExitRule.parse(early_exit)

    from lorchestra.cli.output import messages, results, speaker
    from lorchestra.cli.progress import RowProgress
    from lorchestra.experiments.evaluate import evaluate_run
    from lorchestra.experiments.load import load_run
    from lorchestra.report.figure import reliability_figure
    from lorchestra.report.table import early_exit_text, evaluation_table, ood_table, verdict
    from lorchestra.store.predictions import load_predictions

    errors = messages()
    say = speaker(errors)
    with RowProgress(errors) as progress:
        trained = load_run(root, say)
        entry = evaluate_run(
            trained,
            data=data,
            task=task,
            split=split,
            ood=ood,
            data_dir=data_dir,
            early_exit=rule,
            progress=progress,
        )
    name = f"{entry['task']}.{entry['split']}"
    if as_json:
        print(jsonlib.dumps(entry, ensure_ascii=False))
        return
    console = results()
    console.print(evaluation_table(entry))
    if (table := ood_table(entry)) is not None:
        console.print(table)
    console.print(verdict(entry), highlight=False)
    if "early_exit" in entry:
        console.print(early_exit_text(entry), highlight=False)
    picture = trained.run.root / f"reliability.{name}.png"
    reliability_figure(load_predictions(trained.run.predictions / f"{name}.safetensors"), picture)
    say(f"picture: {picture}")
