"""`search.json`: learning rates that were tried before a training, and what was chosen."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path

from lorchestra.errors import CheckpointError
from lorchestra.store.schema import COUNT, NUMBER_OR_NULL, Each, Number, Shape, read_json
from lorchestra.types import Json

FORMAT_VERSION = 1

_TRIAL: Shape = {"lr": Number(0), "steps": [COUNT], "val_nll": [NUMBER_OR_NULL]}
_SHAPE: Shape = {
    "format_version": int,
    "lr": Number(0),
    "epochs": COUNT,
    "trials": [_TRIAL],
    "length": (_TRIAL, None),
    "steps_per_epoch": COUNT,
    "tokens": COUNT,
    "seconds": Number(0),
    "scoring?": (str, None),
    "other_scorings?": Each([_TRIAL]),
}


@dataclass(frozen=True)
class TrialRecord:
    """A candidate: its learning rate, and its validation NLL, in nats, after each of some numbers of steps.

    That of candidates for the rate is after scaling with one temperature, that of the length by `train.criterion`.
    """

    lr: float
    steps: tuple[int, ...]
    val_nll: tuple[float | None, ...]

    @property
    def best(self) -> float:
        """The lowest validation NLL; infinite for a candidate that failed."""
        return min((nll for nll in self.val_nll if nll is not None), default=math.inf)

    def text(self) -> str:
        """The lowest validation NLL, or that it failed."""
        return "failed" if math.isinf(self.best) else f"{self.best:.3f}"


@dataclass(frozen=True)
class SearchRecord:
    """What a search tried, what it chose, and its cost."""

    lr: float
    epochs: int
    trials: tuple[TrialRecord, ...]
    """Candidates for the learning rate, ascending; none if it was given."""
    length: TrialRecord | None
    """The member at half the rate that shows the number of epochs; None if it was given."""
    steps_per_epoch: int
    tokens: int
    """Tokens that all candidates were trained on."""
    seconds: float
    scoring: str | None = None
    """How answers are scored, if that was searched, too: the scoring of `trials` and `length`."""
    other_scorings: Mapping[str, tuple[TrialRecord, ...]] = field(default_factory=dict)
    """Candidates with the scorings that were not chosen."""

    def sentences(self) -> list[str]:
        """What was tried and chosen, in words."""
        parts = []
        if self.scoring is not None:
            by_scoring = {self.scoring: self.trials, **self.other_scorings}
            best = {name: min(trials, key=attrgetter("best")) for name, trials in by_scoring.items()}
            lowest = ", ".join(f"{name}: {trial.text()}" for name, trial in best.items())
            parts.append(
                f"answers scored by {self.scoring}, by the scaled validation NLL of short trainings ({lowest})"
            )
        if self.trials:
            steps = max(step for trial in self.trials for step in (*trial.steps, 0))
            tried = ", ".join(f"{trial.lr:g}: {trial.text()}" for trial in self.trials)
            basis = f"half of the best by the scaled validation NLL after {steps} steps ({tried})"
            parts.append(f"learning rate {self.lr:g}, {basis}")
        if self.length is not None:
            curve = zip(self.length.steps, self.length.val_nll, strict=True)
            nlls = ", ".join(f"{step}: {nll:.3f}" for step, nll in curve if nll is not None)
            parts.append(
                f"number of epochs {self.epochs}, by the validation criterion at half the rate by step ({nlls})"
            )
        return parts

    def to_dict(self) -> Json:
        """The record as `search.json` has it."""
        return {"format_version": FORMAT_VERSION, **dataclasses.asdict(self)}

    @classmethod
    def read(cls, path: Path) -> SearchRecord:
        """The record in a file.

        Raises:
            CheckpointError: it is missing, damaged or of another format version.
        """
        record = read_json(path, _SHAPE)
        if record["format_version"] != FORMAT_VERSION:
            raise CheckpointError(
                f"{path}: format_version is {record['format_version']}, this is {FORMAT_VERSION}; read it with the"
                " version of lorchestra that wrote it, or remove it"
            )
        return cls(
            lr=record["lr"],
            epochs=record["epochs"],
            trials=tuple(_trial(trial, path) for trial in record["trials"]),
            length=None if record["length"] is None else _trial(record["length"], path),
            steps_per_epoch=record["steps_per_epoch"],
            tokens=record["tokens"],
            seconds=record["seconds"],
            scoring=record.get("scoring"),
            other_scorings={
                name: tuple(_trial(trial, path) for trial in trials)
                for name, trials in record.get("other_scorings", {}).items()
            },
        )


def _trial(trial: Json, path: Path) -> TrialRecord:
    steps: Sequence[int] = trial["steps"]
    if len(steps) != len(trial["val_nll"]):
        raise CheckpointError(f"{path}: a trial has {len(steps)} steps and {len(trial['val_nll'])} values; remove it")
    return TrialRecord(trial["lr"], tuple(steps), tuple(trial["val_nll"]))
