"""The base without adapters: logistic regression on its mean hidden states, for texts with labels.

Each text's features are the hidden states at about one and two thirds of the base's depth, averaged over its tokens,
standardized on the training rows.

Source: linear probes, Alain and Bengio, arXiv 1610.01644.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lorchestra.errors import ConfigError
from lorchestra.inference.features import encode_texts, mean_states, middle_layers
from lorchestra.methods.contract import Fitted, Meter, MethodContext, Progress
from lorchestra.methods.linear import TextClassifier, check_labels, fit_by_question
from lorchestra.methods.training import changed
from lorchestra.training.linear import Inputs, Sklearn
from lorchestra.types import Example

MAX_BYTES = 2_000_000_000
"""Most bytes of the training rows' states: scaling and fitting hold a few copies of them."""


@dataclass(frozen=True)
class Config:
    """Penalties to choose from."""

    strengths: tuple[float, ...] = (0.0001, 0.001, 0.01, 0.1, 1.0)
    """Values of C, the inverse strength of the L2 penalty."""


def fit(context: MethodContext, config: Config) -> Fitted:
    """Compute the training rows' features in packed passes, and fit the regression; `chosen` has C.

    Raises:
        ConfigError: rows have choices instead of a label set, or a strength is not above 0.
    """
    if context.labels is None and context.questions:
        return fit_by_question(context, lambda one: fit(one, config))
    check_labels(context, "frozen")
    meter = Meter()
    pipeline = meter.open(context, changed(context.config, adapt={"members": 1}))
    model = pipeline.model
    layers = middle_layers(model.num_layers)
    size = states_bytes(len(context.train), len(layers) * model.hidden_size)
    if size > MAX_BYTES:
        message = f"frozen: the states of {len(context.train):,} training rows take {size / 1e9:.1f} GB"
        raise ConfigError(f"{message}, over {MAX_BYTES / 1e9:.0f} GB; leave it out, or give fewer training rows")

    def features(examples: Sequence[Example], progress: Progress | None) -> Inputs:
        return mean_states(model, encode_texts(pipeline, examples), layers, pipeline.token_budget, progress)

    passes = max(layers) / model.num_layers
    classifier = TextClassifier("frozen", pipeline, features, {"states": _scaler}, config.strengths, passes)
    return classifier.fit(context, meter)


def states_bytes(num_rows: int, width: int) -> int:
    """Bytes of the states of some rows, float64 `[E, width]`."""
    return num_rows * width * 8


def _scaler() -> Sklearn:
    from sklearn.preprocessing import StandardScaler

    return StandardScaler()
