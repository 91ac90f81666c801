"""What every method has: a `Config`, `fit(context, config) -> Fitted`, and predictions with their cost.

A method is one file. A `MethodContext` holds training and validation rows only, never a test row. It trains on training
rows; validation rows serve early stopping, temperature and prior precision.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from lorchestra.config.run import RunConfig
from lorchestra.inference.pipeline import Pipeline
from lorchestra.inference.trunk import TrunkFiles
from lorchestra.planning.memory import peak_bytes, restart_peak
from lorchestra.questions import Question
from lorchestra.training.callbacks import Callback, progress
from lorchestra.types import Example, Predictions

MAX_DRAWS = 10_000
"""Draws or passes that a method may ask for in one prediction."""

Progress = Callable[[int], None]
"""Called with the number of rows done."""


@dataclass(frozen=True)
class MethodContext:
    """What all methods of a comparison have in common.

    `config` is resolved: scoring is not `auto`, so that all methods score answers alike. Its `adapt.members` is M, the
    number of members, draws or passes that a method may use; its `train` is the budget of one member.
    """

    config: RunConfig
    open_pipeline: Callable[[RunConfig], Pipeline]
    """A freshly loaded base with the adapters that the given configuration asks for: members change a base in place."""
    train: Sequence[Example]
    val: Sequence[Example]
    labels: tuple[str, ...] | None = None
    """The label set in order, None where every row brings its own choices."""
    callback: Callback = field(default_factory=Callback)
    """Reports progress; where it asks to stop, a fit ends with `Interrupted`."""
    files: TrunkFiles | None = None
    """Where trunks go that are too large for memory; without it they stay in memory."""

    @property
    def questions(self) -> tuple[Question, ...]:
        """The typed questions of the training rows; none in other tasks."""
        return tuple(dict.fromkeys(row.asked for row in self.train if row.asked is not None))

    @property
    def members(self) -> int:
        """M."""
        return self.config.adapt.members

    @property
    def seed(self) -> int:
        """The seed from which a fit derives everything that it draws."""
        return self.config.train.seed

    def progress(self, what: str, total: int) -> Progress:
        """Reports rows done; raises `Interrupted` where the callback asks to stop."""
        return progress(self.callback, what, total)


@dataclass(frozen=True)
class Cost:
    """What a method costs.

    Base passes are in units of one forward pass of the whole base over the rows: over the training rows in
    `fit_base_passes`, over the rows of one prediction in `predict_base_passes`. The backward passes of training are not
    in them; those that a method makes beside it (`laplace`) count as one each. Longer prompts do not count as more, and
    validation rows (early stopping, temperature, prior precision) and inputs without content do not count at all.
    """

    fit_base_passes: float
    tokens: int
    """Tokens trained on, all members together."""
    fit_s: float
    """Wall time of the fit, without loading the base."""
    peak_bytes: int
    """Most memory during the fit (of the process; on CUDA, of the GPU). Methods whose draws become members (`swag`,
    `snapshot`, `laplace`, `blob`) hold M adapters with their optimizer state from the start, though they train one."""
    parameters: int
    """Numbers stored beside the base."""
    predict_base_passes: float


class Predictor(Protocol):
    """Turns examples into predictions."""

    def __call__(self, examples: Sequence[Example], split: str, progress: Progress | None = None) -> Predictions:
        """`Predictions` of every member, draw or pass; `split` is the name of the examples' split."""


@dataclass(frozen=True)
class Fitted:
    """A method after its fit."""

    predict: Predictor
    cost: Cost
    chosen: Mapping[str, float] = field(default_factory=dict)
    """Numbers that the fit chose, by name, such as a temperature."""
    notes: list[str] = field(default_factory=list)
    """What a reader of the results must know of the fit, without a full stop; a prediction may add to it."""

    def note(self, text: str) -> None:
        """Add a note, once."""
        if text not in self.notes:
            self.notes.append(text)


class Meter:
    """Measures one fit: its time without loading the base, and the most memory in it."""

    def __init__(self) -> None:
        restart_peak()
        self._started = time.perf_counter()
        self._loading = 0.0

    def open(self, context: MethodContext, config: RunConfig) -> Pipeline:
        """A fresh session; the time that it takes does not count."""
        started = time.perf_counter()
        pipeline = context.open_pipeline(config)
        self._loading += time.perf_counter() - started
        return pipeline

    def cost(
        self, *, predict_base_passes: float, fit_base_passes: float = 0.0, tokens: int = 0, parameters: int = 0
    ) -> Cost:
        """The cost of the fit, which ends with this call."""
        return Cost(
            fit_base_passes=fit_base_passes,
            tokens=tokens,
            fit_s=time.perf_counter() - self._started - self._loading,
            peak_bytes=peak_bytes(),
            parameters=parameters,
            predict_base_passes=predict_base_passes,
        )
