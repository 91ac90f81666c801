"""How far evaluated and OOD rows are from the training rows, by the hidden states of the base without adapters."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np

from lorchestra.inference.features import middle_layers
from lorchestra.inference.linear_probe import text_states
from lorchestra.inference.pipeline import Pipeline
from lorchestra.methods.few_shot import excluding
from lorchestra.metrics.distance import Gaussian
from lorchestra.metrics.predictive import FloatArray
from lorchestra.nn.seeding import derive_seed, permutation
from lorchestra.training.callbacks import Callback, progress
from lorchestra.types import Example

logger = logging.getLogger(__name__)

MAX_TRAINING_ROWS = 2_000
"""Most training rows that the distance is measured from; of more, a random part."""
_WITHOUT = "without the distance of OOD rows from the training rows"


def distances_to_training(
    pipeline: Pipeline,
    train: Sequence[Example],
    examples: Sequence[Example],
    ood: Mapping[str, Sequence[Example]],
    seed: int,
    callback: Callback,
) -> dict[str, tuple[FloatArray, FloatArray]]:
    """The distances of the evaluated rows and of each OOD set's rows, by the set's name.

    A row's features are the mean hidden state of its text at about two thirds of the base's depth, as in the baseline
    `frozen`. Rows that are dropped for their length are left out, as in predictions. Evaluated rows are not among the
    training rows that they are compared with. Empty without OOD sets, with too few training rows, and where states are
    not finite.
    """
    if not ood:
        return {}
    others = excluding(train, examples)
    order = permutation(len(others), derive_seed(seed, "distance"))[:MAX_TRAINING_ROWS]
    answered = [[rows[index] for index in pipeline.kept(rows)] for rows in (examples, *ood.values())]
    sides = [[others[index] for index in sorted(order)], *answered]
    rows = [row for side in sides for row in side]
    layers = middle_layers(pipeline.model.num_layers)[-1:]
    report = progress(callback, "distance from the training rows", len(rows))
    budgets = pipeline.max_length, pipeline.token_budget
    states_ED = text_states(pipeline.model, pipeline.tokens, *budgets, rows, layers, report)
    if not np.isfinite(states_ED).all():
        logger.info(f"{_WITHOUT} (hidden states of the base are not finite)")
        return {}
    train_ED, *rest = np.split(states_ED, np.cumsum([len(side) for side in sides])[:-1])
    try:
        gaussian = Gaussian.fit(train_ED)
    except ValueError as error:
        logger.info(f"{_WITHOUT} ({error})")
        return {}
    inside_E, *outside = [gaussian.distance(states) for states in rest]
    return {name: (inside_E, outside_E) for name, outside_E in zip(ood, outside, strict=True)}
