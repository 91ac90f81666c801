"""Methods by name, and wrappers that calibrate any of them: `lora_ensemble`, `one_lora+temperature`.

A name may include settings: `mc_dropout:dropout=0.2`, `laplace:layers=last:structure=full+temperature:of=members`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorchestra.config.mappings import check_magnitudes, from_mapping, parse_value
from lorchestra.errors import ConfigError, did_you_mean
from lorchestra.methods import (
    batch_ensemble,
    blob,
    contextual,
    few_shot,
    frozen,
    high_rank,
    laplace,
    last_layer,
    long_training,
    lora_ensemble,
    mc_dropout,
    one_lora,
    snapshot,
    soup,
    swag,
    temperature,
    tfidf,
    zero_shot,
)
from lorchestra.methods.contract import Fitted, MethodContext

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


@dataclass(frozen=True)
class Method:
    """A method: its one-line summary, settings and fit."""

    summary: str
    Config: type[DataclassInstance]
    fit: Callable[..., Fitted]
    """`fit(context, config)`."""


@dataclass(frozen=True)
class Wrapper:
    """A calibration on top of a fitted method: its one-line summary, settings and function."""

    summary: str
    Config: type[DataclassInstance]
    wrap: Callable[..., Fitted]
    """`wrap(context, fitted, config)`."""


METHODS: dict[str, Method] = {
    "zero_shot": Method("the base alone", zero_shot.Config, zero_shot.fit),
    "few_shot": Method(
        "the base with answered training rows before the question, other rows in each draw",
        few_shot.Config,
        few_shot.fit,
    ),
    "tfidf": Method("no language model: TF-IDF of words and logistic regression", tfidf.Config, tfidf.fit),
    "frozen": Method("logistic regression on the base's hidden states", frozen.Config, frozen.fit),
    "one_lora": Method("one LoRA, trained with the budget of one member", one_lora.Config, one_lora.fit),
    "lora_ensemble": Method("M LoRA members, their probabilities averaged", lora_ensemble.Config, lora_ensemble.fit),
    "mc_dropout": Method("LoRA with dropout in prediction, M passes", mc_dropout.Config, mc_dropout.fit),
    "high_rank": Method("one LoRA with M times the rank", high_rank.Config, high_rank.fit),
    "long_training": Method("one LoRA trained M times as long", long_training.Config, long_training.fit),
    "soup": Method("one adapter: the weight average of M trained members", soup.Config, soup.fit),
    "snapshot": Method("one LoRA on a cyclic schedule, M snapshots of it", snapshot.Config, snapshot.fit),
    "last_layer": Method("M members that share all adapters but the last layer's", last_layer.Config, last_layer.fit),
    "swag": Method("M draws from a Gaussian fitted to the iterates of one LoRA", swag.Config, swag.fit),
    "laplace": Method("draws from a Laplace approximation around one LoRA", laplace.Config, laplace.fit),
    "blob": Method("draws from a Gaussian over A, trained by variational inference (BLoB)", blob.Config, blob.fit),
    "batch_ensemble": Method(
        "M members that share one adapter up to rank-1 fast weights", batch_ensemble.Config, batch_ensemble.fit
    ),
}
"""All methods, in the order of the tables."""

WRAPPERS: dict[str, Wrapper] = {
    "temperature": Wrapper("one temperature, fitted on validation rows", temperature.Config, temperature.wrap),
    "contextual": Wrapper(
        "probabilities divided by those after a content-free input", contextual.Config, contextual.wrap
    ),
}
"""Wrappers, applicable to any method."""


@dataclass(frozen=True)
class NamedMethod:
    """A parsed name, such as `laplace:layers=last+temperature`."""

    name: str
    below: str
    """The name up to the wrappers: the method with its settings."""
    method: str
    config: DataclassInstance
    """The method's settings: the defaults with those in the name."""
    wrappers: tuple[tuple[str, DataclassInstance], ...]
    """The wrappers in order, with their settings."""

    @property
    def summary(self) -> str:
        """One-line summary."""
        return "; ".join([METHODS[self.method].summary, *(WRAPPERS[wrapper].summary for wrapper, _ in self.wrappers)])

    def fit(self, context: MethodContext) -> Fitted:
        """Fit the method, without its wrappers."""
        return METHODS[self.method].fit(context, self.config)

    def wrap(self, context: MethodContext, fitted: Fitted) -> Fitted:
        """Apply the wrappers to the fitted method, in order."""
        for wrapper, config in self.wrappers:
            fitted = WRAPPERS[wrapper].wrap(context, fitted, config)
        return fitted


def parse_name(name: str) -> NamedMethod:
    """Parse a method's name: `METHOD[:FIELD=VALUE...][+WRAPPER[:FIELD=VALUE...]...]`.

    Raises:
        ConfigError: an unknown method, wrapper or setting, or a value of the wrong type.
    """
    first, *rest = name.split("+")
    method, config = _with_settings(first, METHODS, name, "method")
    wrappers = tuple(_with_settings(part, WRAPPERS, name, "wrapper") for part in rest)
    return NamedMethod(name, first, method, config, wrappers)


def _with_settings(
    part: str, known: Mapping[str, Method] | Mapping[str, Wrapper], whole: str, kind: str
) -> tuple[str, DataclassInstance]:
    """A method or wrapper, and its settings."""
    first, *settings = part.split(":")
    if first not in known:
        where = "" if first == whole else f"method {whole!r}: "
        raise ConfigError(f"{where}{kind} {first!r} is unknown; {did_you_mean(first, known)}")
    values: dict[str, object] = {}
    for text in settings:
        field, equals, value = text.partition("=")
        if not (equals and value.strip()) or field in values:
            raise ConfigError(f"method {whole!r}: {text!r} must be FIELD=VALUE, each field once")
        values[field] = parse_value(value, f"method {whole!r}: {field}: {value!r}")
    config = from_mapping(known[first].Config, values, f"method {whole!r}", first)
    check_magnitudes(config, first)
    return first, config
