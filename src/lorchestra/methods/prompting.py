"""The base alone, zero-shot and few-shot: the reference that needs no training."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lorchestra.core.packing import BASE
from lorchestra.core.seeding import permutation
from lorchestra.data.sampling import draw_even
from lorchestra.engine.predict import Pass
from lorchestra.engine.session import Session
from lorchestra.types import Example, Predictions


def zero_shot(
    session: Session, examples: Sequence[Example], split: str, progress: Callable[[int], None] | None = None
) -> Predictions:
    """The base's predictions, one pass."""
    return session.predict(examples, [Pass(BASE)], split, progress=progress)


def few_shot(
    session: Session,
    examples: Sequence[Example],
    split: str,
    train: Sequence[Example],
    num_shots: int,
    seed: int,
    progress: Callable[[int], None] | None = None,
) -> Predictions:
    """The base's predictions with `num_shots` answered training rows, drawn by the seed, before every question."""
    return session.predict(examples, [Pass(BASE)], split, shots=draw_shots(train, num_shots, seed), progress=progress)


def draw_shots(train: Sequence[Example], num_shots: int, seed: int) -> list[Example]:
    """The training rows shown: drawn by the seed, with the answers as even as their number allows.

    Shots that all have one answer teach a small model to repeat it.
    """
    shots = draw_even(train, num_shots, seed, "few_shot")
    return [shots[i] for i in permutation(len(shots), seed, "few_shot_order")]
