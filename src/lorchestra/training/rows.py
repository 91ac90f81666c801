"""Tokenization and weighting of training examples."""

from __future__ import annotations

from collections.abc import Sequence

from lorchestra.data.encode import EncodedSplit, class_weights
from lorchestra.errors import ConfigError
from lorchestra.inference.pipeline import Pipeline
from lorchestra.training.precompute import TrainingRows
from lorchestra.types import Example


def row_weights(
    pipeline: Pipeline, train: Sequence[Example], encoded: EncodedSplit, labels: tuple[str, ...] | None
) -> list[float] | None:
    """One weight per encoded training row with `data.class_weights`; None without.

    Raises:
        ConfigError: `data.class_weights` is set, but rows have different choices.
    """
    if not pipeline.data.class_weights:
        return None
    if labels is None:
        raise ConfigError("data.class_weights: only texts with labels have classes; remove it for questions")
    kept = [train[index] for index in encoded.kept]
    by_label = class_weights(kept, len(labels))
    return [by_label[example.answer] for example in kept if example.answer is not None]


def training_rows(
    pipeline: Pipeline, train: Sequence[Example], val: Sequence[Example], labels: tuple[str, ...] | None
) -> TrainingRows:
    """Tokenize training and validation examples, and compute the weights that the configuration sets."""
    encoded = pipeline.encode(train)
    return TrainingRows(encoded.rows, pipeline.encode(val).rows, row_weights(pipeline, train, encoded, labels))
