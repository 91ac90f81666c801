"""The methods by name, and wrappers that calibrate any of them: `lora_ensemble`, `one_lora+temperature`.

A name may carry settings: `mc_dropout:dropout=0.2`, `laplace:layers=last:structure=full+temperature:of=members`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lorchestra.config.mappings import check_magnitudes, from_mapping, parse_value
from lorchestra.errors import ConfigError, did_you_mean
from lorchestra.methods import (
    batch_ensemble,
    contextual,
    few_shot,
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
    zero_shot,
)
from lorchestra.methods.contract import Fitted, MethodContext


@dataclass(frozen=True)
class Method:
    """A method: what it is in one line, its settings, and its fit."""

    summary: str
    Config: type
    fit: Callable[[MethodContext, Any], Fitted]


@dataclass(frozen=True)
class Wrapper:
    """What is put on top of a fitted method; `wrap` gives another one."""

    summary: str
    Config: type
    wrap: Callable[[MethodContext, Fitted, Any], Fitted]


METHODS: dict[str, Method] = {
    "zero_shot": Method("the base alone", zero_shot.Config, zero_shot.fit),
    "few_shot": Method(
        "the base with answered training rows before the question, one draw a choice of rows",
        few_shot.Config,
        few_shot.fit,
    ),
    "one_lora": Method("one LoRA, trained with the budget of one member", one_lora.Config, one_lora.fit),
    "lora_ensemble": Method("M LoRA members, their probabilities averaged", lora_ensemble.Config, lora_ensemble.fit),
    "mc_dropout": Method("LoRA with dropout kept on in prediction, M passes", mc_dropout.Config, mc_dropout.fit),
    "high_rank": Method("one LoRA with M times the rank", high_rank.Config, high_rank.fit),
    "long_training": Method("one LoRA trained M times as long", long_training.Config, long_training.fit),
    "soup": Method("one adapter: the weight average of M trained members", soup.Config, soup.fit),
    "snapshot": Method("one LoRA on a cyclic schedule, M points on its path", snapshot.Config, snapshot.fit),
    "last_layer": Method("M members that share all adapters but the last layer's", last_layer.Config, last_layer.fit),
    "swag": Method("M draws from a Gaussian fitted to the iterates of one LoRA", swag.Config, swag.fit),
    "laplace": Method("draws from Laplace's approximation around one LoRA", laplace.Config, laplace.fit),
    "batch_ensemble": Method(
        "M members that share one adapter up to rank-1 fast weights", batch_ensemble.Config, batch_ensemble.fit
    ),
}
"""Every method, in the order in which a table shows them."""

WRAPPERS: dict[str, Wrapper] = {
    "temperature": Wrapper("one temperature, fitted on validation rows", temperature.Config, temperature.wrap),
    "contextual": Wrapper(
        "probabilities divided by those after an input without content", contextual.Config, contextual.wrap
    ),
}
"""What can be put on top of any method."""


@dataclass(frozen=True)
class NamedMethod:
    """What a name such as `laplace:layers=last+temperature` stands for."""

    name: str
    below: str
    """The method with its settings, without what is put on it."""
    method: str
    config: Any
    """The method's own settings: those in the name, else its defaults."""
    wrappers: tuple[tuple[str, Any], ...]
    """What is put on it, in order, each with its settings."""

    @property
    def summary(self) -> str:
        """What it is, in one line."""
        return "; ".join([METHODS[self.method].summary, *(WRAPPERS[wrapper].summary for wrapper, _ in self.wrappers)])

    def wrap(self, context: MethodContext, fitted: Fitted) -> Fitted:
        """The fitted method with its wrappers put on it, in order; without any, itself."""
        for wrapper, config in self.wrappers:
            fitted = WRAPPERS[wrapper].wrap(context, fitted, config)
        return fitted


def parse_name(name: str) -> NamedMethod:
    """Read a method's name: settings of its own behind colons, wrappers behind plus signs, and theirs behind colons.

    Raises:
        ConfigError: a method, a wrapper or a setting is unknown, or a value is of another type.
    """
    first, *rest = name.split("+")
    method, config = _with_settings(first, METHODS, name, "method")
    wrappers = tuple(_with_settings(part, WRAPPERS, name, "wrapper") for part in rest)
    return NamedMethod(name, first, method, config, wrappers)


def _with_settings(
    part: str, known: Mapping[str, Method] | Mapping[str, Wrapper], whole: str, what: str
) -> tuple[str, Any]:
    """A method or wrapper, and its settings."""
    first, *settings = part.split(":")
    if first not in known:
        place = "" if first == whole else f"method {whole!r}: "
        raise ConfigError(f"{place}{what} {first!r} is unknown; {did_you_mean(first, known)}")
    values: dict[str, Any] = {}
    for text in settings:
        field, equals, value = text.partition("=")
        if not (equals and value.strip()) or field in values:
            raise ConfigError(f"method {whole!r}: {text!r} must be FIELD=VALUE, each field once")
        values[field] = parse_value(value, f"method {whole!r}: {field}: {value!r}")
    config: Any = from_mapping(known[first].Config, values, f"method {whole!r}", first)
    check_magnitudes(config, first)
    return first, config


def fit_method(context: MethodContext, name: str, config: Any = None) -> Fitted:
    """Fit a method by name, with wrappers named after it: `lora_ensemble+temperature`.

    Args:
        setting: what all methods of a comparison have in common.
        name: see `parse_name`.
        config: the method's own settings, in place of those in its name.

    Raises:
        ConfigError: an unknown name, settings of another method, or a method that cannot do this task.
    """
    named = parse_name(name)
    method = METHODS[named.method]
    if config is not None and not isinstance(config, method.Config):
        raise ConfigError(f"method {named.method!r}: its settings are a {type(config).__module__}.Config, not its own")
    own = named.config if config is None else config
    check_magnitudes(own, named.method)
    return named.wrap(context, method.fit(context, own))
