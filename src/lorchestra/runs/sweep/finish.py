"""From a trained pass to one finished and evaluated run directory per point."""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lorchestra.inference.predict import MemberPass, member_passes
from lorchestra.metrics.calibrator import RAW
from lorchestra.metrics.evaluation import ood_scores
from lorchestra.models.peft_files import save_members
from lorchestra.nn.packing import BASE
from lorchestra.planning.estimate import training_base_passes
from lorchestra.runs.baselines import (
    Baseline,
    Candidates,
    comparable,
    few_shot_base,
    left_out_lines,
    linear_baselines,
    mc_dropout_of,
    save_all,
    score,
)
from lorchestra.runs.build import describe, ensemble_record
from lorchestra.runs.calibration import write_calibration
from lorchestra.runs.sweep.points import Point
from lorchestra.runs.sweep.train import TrainedPack
from lorchestra.runs.train import member_records
from lorchestra.store.atomic import atomic_directory
from lorchestra.store.ensemble_record import EnsembleRecord
from lorchestra.store.events import Event
from lorchestra.store.predictions import load_predictions
from lorchestra.store.run import Run
from lorchestra.store.safe_paths import inside
from lorchestra.training.callbacks import Callback, progress
from lorchestra.types import Example, Predictions

logger = logging.getLogger(__name__)

Cost = dict[str, float | None]


def finish_pack(
    trained: TrainedPack,
    runs: Path,
    *,
    evaluate: bool,
    ood: Mapping[str, Sequence[Example]],
    callback: Callback,
) -> list[Point]:
    """Write the missing runs of a pass; each directory appears complete, evaluation included.

    All members of the pass predict together, so the layers below the adapters and the zero-shot base run once.

    Args:
        trained: the pass.
        runs: the directory of the runs.
        evaluate: whether to evaluate on the test rows.
        ood: rows unlike the training rows, by name.
        callback: reports progress; when it asks to stop, `Interrupted` is raised.

    Returns:
        The points of which every member failed; they get no run.
    """
    missing = [point for point in trained.pack.points if not inside(runs, point.name).exists()]
    failed = [point for point in missing if not trained.good_members(point)]
    missing = [point for point in missing if point not in failed]
    if not missing:
        return failed
    predictions = _PackPredictions(trained, missing, ood, callback, evaluate=evaluate)
    evaluation = _Evaluation(trained, predictions, callback) if evaluate else None
    for point in missing:
        with atomic_directory(inside(runs, point.name)) as directory:
            run, cost = Run(directory), _cost(trained, point)
            record = _write_run(trained, point, run, cost)
            write_calibration(run, record, predictions.of(point, "val"), point.config.train.calibration)
            if evaluation is not None:
                evaluation.write(point, run, record)
    return failed


def _write_run(trained: TrainedPack, point: Point, run: Run, cost: Cost) -> EnsembleRecord:
    """Write all files of a finished run except its calibration and its evaluation."""
    pipeline, trainer, members = trained.pipeline, trained.trainer, trained.pack.members_of(point)
    config = trained.config_of(point)
    describe(run, config, trained.pack.rows, pipeline)
    with run.new_members() as directory:
        written = save_members(
            directory,
            pipeline.model,
            trainer.final_values(),
            pipeline.base.path_for_peft,
            members,
            config.adapt,
        )
    records = member_records(trainer, written, members, config.adapt)
    record = ensemble_record(pipeline, trained.pack.rows, records, cost)
    run.write_ensemble(record)
    events = (_event_of(event, members) for event in trained.directory.read_events(len(trainer.settings)))
    run.write_events(event for event in events if event is not None)
    for path in sorted(trained.directory.predictions.glob("epoch_*.safetensors")):
        every = load_predictions(path)
        predictions = dataclasses.replace(every, log_probs_MEC=every.log_probs_MEC[trained.good_members(point)])
        run.save_predictions(predictions, path.stem)
    return record


def _event_of(event: Event, members: range) -> Event | None:
    """An event of the pass as a point's event, with lists over the point's members only; None if it is another's."""

    def cut(value: object) -> Any:
        if isinstance(value, dict):
            return {name: cut(part) for name, part in value.items()}
        return value[members.start : members.stop] if isinstance(value, list) else value

    if event["event"] == "member_failed":
        return event | {"member": event["member"] - members.start} if event["member"] in members else None
    if event["event"] in ("step", "evaluation"):
        return {name: cut(value) for name, value in event.items()}
    return event


def _cost(trained: TrainedPack, point: Point) -> Cost:
    """As of a separate run, with a share by tokens of the pass's time and base passes."""
    trainer, members = trained.trainer, trained.pack.members_of(point)
    tokens = sum(trainer.member_tokens(m) for m in members)
    share = tokens / max(1, trainer.state.tokens)
    return {
        "train_s": round(trainer.state.train_s * share, 2),
        "tokens": tokens,
        "tokens_per_s": round(trainer.state.tokens / max(trainer.state.train_s, 1e-9), 1),
        "peak_bytes": trained.peak_bytes,
        "base_passes": round(training_base_passes(trainer) * share, 3),
        "members_in_pass": len(trainer.settings),
    }


class _PackPredictions:
    """Predictions of some points' good members and of the base, made together.

    Args:
        trained: the pass.
        points: the points.
        ood: rows unlike the training rows, by name.
        callback: reports progress.
        evaluate: whether to predict test and OOD rows too, and all rows with the base.
    """

    def __init__(
        self,
        trained: TrainedPack,
        points: Sequence[Point],
        ood: Mapping[str, Sequence[Example]],
        callback: Callback,
        *,
        evaluate: bool,
    ) -> None:
        members = [trained.good_members(point) for point in points]
        stops = itertools.accumulate(map(len, members))
        self._members = {
            point.name: slice(stop - len(good), stop) for point, good, stop in zip(points, members, stops, strict=True)
        }
        """The members of each point in the predictions; the base comes last."""
        splits = trained.pack.rows.task.splits
        rows: dict[str, Sequence[Example]] = {"test": splits["test"]} if evaluate else {}
        rows["val"] = splits["val"]
        rows |= {f"ood_{name}": examples for name, examples in ood.items() if evaluate}
        chosen = [m for good in members for m in good]
        passes = [*member_passes(chosen), *([MemberPass(BASE)] if evaluate else [])]
        self.by_split: dict[str, Predictions] = {}
        for split, examples in rows.items():
            report = progress(callback, f"{len(chosen)} members on {split}", len(examples))
            self.by_split[split] = trained.pipeline.predict(examples, passes, split, progress=report)

    def of(self, point: Point, split: str) -> Predictions:
        """Those of a point's members."""
        every = self.by_split[split]
        return dataclasses.replace(every, log_probs_MEC=every.log_probs_MEC[self._members[point.name]])


class _Evaluation:
    """Each point's evaluation, from predictions of all.

    Args:
        trained: the pass.
        predictions: of the points to evaluate.
        callback: reports progress.
    """

    def __init__(self, trained: TrainedPack, predictions: _PackPredictions, callback: Callback) -> None:
        self.trained, self.predictions, self.callback = trained, predictions, callback
        self.splits = trained.pack.rows.task.splits
        self.few_shot: dict[tuple[int, int], Candidates] = {}
        """The few-shot base by number of shots and seed, which most points have in common."""
        self.linear: Candidates = {}
        """The baselines without adapters, which depend on the rows alone."""
        self.logged: set[str] = set()

    def write(self, point: Point, run: Run, record: EnsembleRecord) -> None:
        """Write predictions and `metrics.json`, as `evaluate_run` does."""
        predictions = {split: self.predictions.of(point, split) for split in self.predictions.by_split}
        test, config = predictions["test"], point.config
        baselines, left_out = comparable(self._baselines(point, test), test, self.trained.pipeline)
        saved = run.read_calibration(record)
        calibration = {
            split: RAW if saved is None else saved.of_rows(one.questions) for split, one in predictions.items()
        }
        entry = score(
            test,
            predictions["val"],
            baselines,
            left_out,
            self.splits["test"],
            self.splits,
            config,
            calibration["test"],
            record.questions,
        )
        entry["ood"] = {
            split.removeprefix("ood_"): ood_scores(test, ood, calibration["test"], None, calibration[split])
            for split, ood in predictions.items()
            if split.startswith("ood_")
        }
        save_all(run, list(predictions.values()), baselines)
        run.write_evaluations([entry], record.cost)
        for text in left_out_lines(left_out):
            if text not in self.logged:  # most points have the same
                logger.info(text)
                self.logged.add(text)

    def _baselines(self, point: Point, test: Predictions) -> Candidates:
        pipeline, config, rows = self.trained.pipeline, point.config, self.splits["test"]
        key = (config.evaluate.few_shot, config.train.seed)
        if key not in self.few_shot:
            self.few_shot[key] = few_shot_base(pipeline, config, rows, "test", self.splits["train"], self.callback)
        task = self.trained.pack.rows.task
        self.linear |= linear_baselines(
            pipeline,
            config,
            task,
            rows,
            "test",
            self.callback,
            has_labels=task.labels is not None or bool(task.questions),
            earlier=self._fitted,
        )
        linear = {name: one for name, one in self.linear.items() if getattr(config.evaluate, name)}
        every = self.predictions.by_split["test"]
        first, number = self.trained.good_members(point)[0], test.num_members
        return {
            "base_zero_shot": Baseline(dataclasses.replace(every, log_probs_MEC=every.log_probs_MEC[-1:])),
            **self.few_shot[key],
            **linear,
            **mc_dropout_of(pipeline, config, rows, "test", self.callback, member=first, passes=number),
        }

    def _fitted(self, name: str) -> Baseline | None:
        """A baseline without adapters that another point has fitted."""
        fitted = self.linear.get(name)
        return fitted if isinstance(fitted, Baseline) else None
