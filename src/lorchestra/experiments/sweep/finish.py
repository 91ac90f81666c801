"""From a trained pass to one finished and evaluated run directory a point."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lorchestra.core.evaluation import evaluate_predictions, ood_scores
from lorchestra.core.packing import BASE
from lorchestra.core.seeding import derive_seed
from lorchestra.engine.config import RunConfig
from lorchestra.engine.predict import Pass, member_passes
from lorchestra.experiments.record import ensemble_record, trained_members, write_description
from lorchestra.experiments.sweep.points import Point
from lorchestra.experiments.sweep.training import TrainedPack
from lorchestra.methods import mc_dropout, prompting
from lorchestra.models.adapters import save_members
from lorchestra.store.atomic import atomic_directory, atomic_write_json, atomic_write_text
from lorchestra.store.predictions import load_predictions, save_predictions
from lorchestra.store.run_dir import RunDir, write_ensemble
from lorchestra.types import Example, Predictions

Tell = Callable[[str, int, int], None]


def finish_pack(
    trained: TrainedPack,
    runs: Path,
    *,
    evaluate: bool,
    ood: Mapping[str, Sequence[Example]],
    tell: Tell,
) -> list[Point]:
    """Write the runs of all points that are not there yet; each directory appears whole, evaluation included.

    All members of the pass predict together, so the layers below the adapters and the zero-shot base run once.

    Args:
        trained: the pass.
        runs: the directory of the runs.
        evaluate: whether to evaluate on the test rows.
        ood: rows unlike the training rows, by name.
        tell: hears of progress.

    Returns:
        The points of which every member failed; they get no run.
    """
    pack = trained.pack
    missing = [point for point in pack.points if not (runs / point.name).exists()]
    failed = [point for point in missing if not trained.good_members(point)]
    missing = [point for point in missing if point not in failed]
    if not missing:
        return failed
    splits = pack.rows.task.splits
    found: dict[str, Predictions] = {}
    if evaluate:
        wanted = {"test": splits["test"], "val": splits["val"]} | {f"ood_{name}": rows for name, rows in ood.items()}
        found = {split: _predict(trained, missing, rows, split, tell) for split, rows in wanted.items()}
    few_shot: dict[tuple[int, int], Predictions] = {}
    for point in missing:
        with atomic_directory(runs / point.name) as directory:
            run = RunDir(directory)
            _write_run(trained, point, run)
            if evaluate:
                _write_evaluation(trained, point, run, found, few_shot, tell)
    return failed


def _predict(
    trained: TrainedPack, points: Sequence[Point], rows: Sequence[Example], split: str, tell: Tell
) -> Predictions:
    """Predictions of every good member of some points, in their order, and of the base, which comes last."""
    members = [m for point in points for m in trained.good_members(point)]
    number = len(rows)
    return trained.session.predict(
        rows,
        [*member_passes(members), Pass(BASE)],
        split,
        progress=lambda done: tell(f"{len(members)} members on {split}", done, number),
    )


def _write_run(trained: TrainedPack, point: Point, run: RunDir) -> None:
    """All files of a finished run but its evaluation."""
    session, trainer, members = trained.session, trained.trainer, trained.pack.members_of(point)
    config = trained.config_of(point)
    write_description(run, config, trained.pack.rows, session)
    run.members.mkdir()
    values, base_path = trainer.final_values(), session.base.path_for_peft
    written = save_members(run.members, session.model, values, base_path, members, config.adapt)
    records = trained_members(trainer, written, members, config.adapt)
    write_ensemble(run, ensemble_record(session, trained.pack.rows, records, _cost(trained, point)))
    lines = [json.dumps(_own_part(event, members)) for event in _events(trained.directory.events)]
    atomic_write_text(run.events, "".join(line + "\n" for line in lines))
    for path in sorted(trained.directory.predictions.glob("epoch_*.safetensors")):
        every = load_predictions(path)
        own = dataclasses.replace(every, log_probs_MEC=every.log_probs_MEC[trained.good_members(point)])
        save_predictions(run.predictions, own, f"{own.task}.{own.split}.{path.stem}")


def _write_evaluation(
    trained: TrainedPack,
    point: Point,
    run: RunDir,
    found: Mapping[str, Predictions],
    few_shot: dict[tuple[int, int], Predictions],
    tell: Tell,
) -> None:
    """Predictions, and `metrics.json`, as `evaluate_run` writes them."""
    own = {split: _own_predictions(trained, point, every, found["test"]) for split, every in found.items()}
    test, config = own["test"], point.config
    baselines = {"base_zero_shot": dataclasses.replace(test, log_probs_MEC=found["test"].log_probs_MEC[-1:])}
    baselines |= _other_baselines(trained, point, few_shot, tell)
    baselines = {name: one for name, one in baselines.items() if one.ids == test.ids}
    entry = evaluate_predictions(
        test,
        validation=own["val"],
        train_labels=[row.answer for row in trained.pack.rows.task.splits["train"] if row.answer is not None],
        baselines=baselines,
        temperature=config.evaluate.temperature,
        resamples=config.evaluate.resamples,
        seed=config.train.seed,
    )
    entry["ood"] = {
        split.removeprefix("ood_"): ood_scores(test, far) for split, far in own.items() if split.startswith("ood_")
    }
    for one in own.values():
        save_predictions(run.predictions, one)
    for name, one in baselines.items():
        save_predictions(run.predictions, one, f"{one.task}.{one.split}.{name}")
    atomic_write_json(run.metrics, {"evaluations": [entry], "cost": _cost(trained, point)})


def _own_predictions(trained: TrainedPack, point: Point, every: Predictions, test: Predictions) -> Predictions:
    """A point's members among those that `_predict` has asked: all good ones of the points that were missing."""
    asked = [p for p in trained.pack.points if p.name in trained.asked]
    start = 0
    for other in asked:
        stop = start + len(trained.good_members(other))
        if other is point:
            return dataclasses.replace(every, log_probs_MEC=every.log_probs_MEC[start:stop])
        start = stop
    raise ValueError(point.name)


def _other_baselines(
    trained: TrainedPack, point: Point, few_shot: dict[tuple[int, int], Predictions], tell: Tell
) -> dict[str, Predictions]:
    raise NotImplementedError


def _cost(trained: TrainedPack, point: Point) -> dict[str, Any]:
    raise NotImplementedError


def _events(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _own_part(event: dict[str, Any], members: range) -> dict[str, Any]:
    """An event of the pass as an event of one point: lists over members cut to its own."""
    raise NotImplementedError
