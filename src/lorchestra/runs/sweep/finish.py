"""From a trained pass to one finished and evaluated run directory a point."""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lorchestra.inference.predict import MemberPass, member_passes
from lorchestra.metrics.evaluation import ood_scores
from lorchestra.models.peft_files import save_members
from lorchestra.nn.packing import BASE
from lorchestra.planning.estimate import training_base_passes
from lorchestra.runs.baselines import comparable, few_shot_base, mc_dropout_of, save_all, score
from lorchestra.runs.record import ensemble_record, trained_members, write_description
from lorchestra.runs.sweep.points import Point
from lorchestra.runs.sweep.train import TrainedPack
from lorchestra.store.atomic import atomic_directory, atomic_write_json, atomic_write_text
from lorchestra.store.predictions import load_predictions, save_predictions
from lorchestra.store.records import read_events
from lorchestra.store.run_dir import RunDir, write_ensemble
from lorchestra.store.safe_paths import inside
from lorchestra.training.callbacks import Callback, progress
from lorchestra.types import Example, Predictions

logger = logging.getLogger(__name__)


def finish_pack(
    trained: TrainedPack,
    runs: Path,
    *,
    evaluate: bool,
    ood: Mapping[str, Sequence[Example]],
    callback: Callback,
) -> list[Point]:
    """Write the runs of all points that are not there yet; each directory appears whole, evaluation included.

    All members of the pass predict together, so the layers below the adapters and the zero-shot base run once.

    Args:
        trained: the pass.
        runs: the directory of the runs.
        evaluate: whether to evaluate on the test rows.
        ood: rows unlike the training rows, by name.
        callback: reports progress; where it asks to stop, `Interrupted` is raised.

    Returns:
        The points of which every member failed; they get no run.
    """
    pack = trained.pack
    missing = [point for point in pack.points if not inside(runs, point.name).exists()]
    failed = [point for point in missing if not trained.good_members(point)]
    missing = [point for point in missing if point not in failed]
    if not missing:
        return failed
    splits = pack.rows.task.splits
    found: dict[str, Predictions] = {}
    if evaluate:
        wanted = {"test": splits["test"], "val": splits["val"]} | {f"ood_{name}": rows for name, rows in ood.items()}
        found = {split: _predict(trained, missing, rows, split, callback) for split, rows in wanted.items()}
    places = _places(trained, missing)
    few_shot: dict[tuple[int, int], dict[str, Predictions | str]] = {}
    said: set[str] = set()
    for point in missing:
        with atomic_directory(inside(runs, point.name)) as directory:
            run = RunDir(directory)
            cost = _cost(trained, point)
            _write_run(trained, point, run, cost)
            if evaluate:
                own = {
                    split: dataclasses.replace(every, log_probs_MEC=every.log_probs_MEC[places[point.name]])
                    for split, every in found.items()
                }
                base = dataclasses.replace(found["test"], log_probs_MEC=found["test"].log_probs_MEC[-1:])
                left_out = _write_evaluation(trained, point, run, own, base, few_shot, cost, callback)
                for text in [f"{name} is left out: {reason}" for name, reason in left_out.items()]:
                    if text not in said:  # most points have the same
                        logger.info(text)
                        said.add(text)
    return failed


def _predict(
    trained: TrainedPack, points: Sequence[Point], rows: Sequence[Example], split: str, callback: Callback
) -> Predictions:
    """Predictions of every good member of some points, in their order, and of the base, which comes last."""
    members = [m for point in points for m in trained.good_members(point)]
    return trained.pipeline.predict(
        rows,
        [*member_passes(members), MemberPass(BASE)],
        split,
        progress=progress(callback, f"{len(members)} members on {split}", len(rows)),
    )


def _places(trained: TrainedPack, points: Sequence[Point]) -> dict[str, slice]:
    """Where each point's members lie in what `_predict` gives."""
    numbers = [len(trained.good_members(point)) for point in points]
    stops = list(itertools.accumulate(numbers))
    return {point.name: slice(stop - number, stop) for point, number, stop in zip(points, numbers, stops, strict=True)}


def _write_run(trained: TrainedPack, point: Point, run: RunDir, cost: dict[str, Any]) -> None:
    """All files of a finished run but its evaluation."""
    pipeline, trainer, members = trained.pipeline, trained.trainer, trained.pack.members_of(point)
    config = trained.config_of(point)
    write_description(run, config, trained.pack.rows, pipeline)
    run.members.mkdir()
    values, base_path = trainer.final_values(), pipeline.base.path_for_peft
    written = save_members(run.members, pipeline.model, values, base_path, members, config.adapt)
    records = trained_members(trainer, written, members, config.adapt)
    write_ensemble(run, ensemble_record(pipeline, trained.pack.rows, records, cost))
    events = read_events(trained.directory.events, len(trainer.settings))
    own = (_own_part(event, members) for event in events)
    atomic_write_text(run.events, "".join(json.dumps(event) + "\n" for event in own if event is not None))
    for path in sorted(trained.directory.predictions.glob("epoch_*.safetensors")):
        every = load_predictions(path)
        found = dataclasses.replace(every, log_probs_MEC=every.log_probs_MEC[trained.good_members(point)])
        save_predictions(run.predictions, found, f"{found.task}.{found.split}.{path.stem}")


def _write_evaluation(
    trained: TrainedPack,
    point: Point,
    run: RunDir,
    own: Mapping[str, Predictions],
    base: Predictions,
    few_shot: dict[tuple[int, int], dict[str, Predictions | str]],
    cost: dict[str, Any],
    callback: Callback,
) -> dict[str, str]:
    """Predictions and `metrics.json`, as `evaluate_run` writes them; returns baselines left out, with the reason.

    `few_shot` keeps the few-shot base's predictions by number of shots and seed: most points have them in common.
    """
    pipeline, config, test = trained.pipeline, point.config, own["test"]
    splits = trained.pack.rows.task.splits
    key = (config.evaluate.few_shot, config.train.seed)
    if key not in few_shot:
        few_shot[key] = few_shot_base(pipeline, config, splits["test"], "test", splits["train"], callback)
    first, number = trained.good_members(point)[0], test.num_members
    candidates: dict[str, Predictions | str] = {
        "base_zero_shot": base,
        **few_shot[key],
        **mc_dropout_of(pipeline, config, splits["test"], "test", callback, member=first, passes=number),
    }
    baselines, left_out = comparable(candidates, test, pipeline)
    entry = score(test, own["val"], baselines, left_out, splits["test"], splits, config.evaluate, config.train.seed)
    entry["ood"] = {
        split.removeprefix("ood_"): ood_scores(test, far) for split, far in own.items() if split.startswith("ood_")
    }
    save_all(run.predictions, list(own.values()), baselines)
    atomic_write_json(run.metrics, {"evaluations": [entry], "cost": cost})
    return left_out


def _cost(trained: TrainedPack, point: Point) -> dict[str, Any]:
    """As of a run by itself; of the pass's time and passes of the base it has its share by tokens."""
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


def _own_part(event: dict[str, Any], members: range) -> dict[str, Any] | None:
    """An event of the pass as an event of one point: lists over members are cut to its own; None is another's."""

    def cut(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: cut(part) for name, part in value.items()}
        return value[members.start : members.stop] if isinstance(value, list) else value

    if event["event"] == "member_failed":
        return event | {"member": event["member"] - members.start} if event["member"] in members else None
    if event["event"] in ("step", "evaluation"):
        return {name: cut(value) for name, value in event.items()}
    return event
