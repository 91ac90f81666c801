"""Tokenization and weighting of training examples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from lorchestra.data.encode import EncodedSplit, class_weights
from lorchestra.errors import ConfigError
from lorchestra.inference.pipeline import Pipeline
from lorchestra.training.precompute import TrainingRows
from lorchestra.types import Example


def row_weights(
    pipeline: Pipeline, train: Sequence[Example], encoded: EncodedSplit, labels: tuple[str, ...] | None
) -> list[float] | None:
    """One weight per encoded training row, with mean 1; None if all rows count equally.

    With `data.class_weights` each label counts equally, with typed questions and `data.read.question_weights` "even"
    each question.

    Raises:
        ConfigError: `data.class_weights` is set, but rows have different choices.
    """
    kept = [train[index] for index in encoded.kept]
    if kept and kept[0].asked is not None and pipeline.data.read.question_weights == "even":
        return question_weights(kept)
    if not pipeline.data.class_weights:
        return None
    if labels is None:
        raise ConfigError("data.class_weights: only texts with labels have classes; remove it for questions")
    by_label = class_weights(kept, len(labels))
    return [by_label[example.answer] for example in kept if example.answer is not None]


def question_weights(examples: Sequence[Example]) -> list[float]:
    """Weights with which each of Q typed questions counts equally: N / (Q N_q) for each of the N_q rows of one."""
    counts = Counter(example.asked for example in examples)
    return [len(examples) / (len(counts) * counts[example.asked]) for example in examples]


def training_rows(
    pipeline: Pipeline, train: Sequence[Example], val: Sequence[Example], labels: tuple[str, ...] | None
) -> TrainingRows:
    """Tokenize training and validation examples, and compute the weights that the configuration sets."""
    encoded = pipeline.encode(train)
    return TrainingRows(encoded.rows, pipeline.encode(val).rows, row_weights(pipeline, train, encoded, labels))
