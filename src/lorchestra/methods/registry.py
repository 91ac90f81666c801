"""The methods by name, and wrappers that calibrate any of them: `lora_ensemble`, `one_lora+temperature`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

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
from lorchestra.methods.contract import Fitted, Setting


@dataclass(frozen=True)
class Method:
    """A method: what it is in one line, its settings, and its fit."""

    summary: str
    Config: type
    fit: Callable[[Setting, Any], Fitted]


@dataclass(frozen=True)
class Wrapper:
    """What is put on top of a fitted method; `wrap` gives another one."""

    summary: str
    Config: type
    wrap: Callable[[Setting, Fitted, Any], Fitted]


METHODS: dict[str, Method] = {
    "zero_shot": Method("the base alone", zero_shot.Config, zero_shot.fit),
    "few_shot": Method(
        "the base with answered training rows before the question, one draw a choice of rows",
        few_shot.Config,
        few_shot.fit,
    ),
    "one_lora": Method("one LoRA, trained with the budget of one member", one_lora.Config, one_lora.fit),
    "lora_ensemble": Method("M LoRA members, their probabilities averaged", lora_ensemble.Config, lora_ensemble.fit),
    "mc_dropout": Method("one LoRA with dropout kept on, M passes", mc_dropout.Config, mc_dropout.fit),
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


def split_name(name: str) -> tuple[str, list[str]]:
    """The method that a name begins with, and the wrappers on it, in order.

    Raises:
        ConfigError: one of them is unknown.
    """
    first, *wrappers = name.split("+")
    if first not in METHODS:
        raise ConfigError(f"method {first!r} is unknown; {did_you_mean(first, METHODS)}")
    for wrapper in wrappers:
        if wrapper not in WRAPPERS:
            raise ConfigError(f"method {name!r}: wrapper {wrapper!r} is unknown; {did_you_mean(wrapper, WRAPPERS)}")
    return first, wrappers


def wrap_method(setting: Setting, fitted: Fitted, wrappers: Sequence[str]) -> Fitted:
    """A fitted method with wrappers of default settings put on it, in order; without any, itself."""
    for wrapper in wrappers:
        fitted = WRAPPERS[wrapper].wrap(setting, fitted, WRAPPERS[wrapper].Config())
    return fitted


def fit_method(setting: Setting, name: str, config: Any = None) -> Fitted:
    """Fit a method by name, with wrappers named after it: `lora_ensemble+temperature`.

    Args:
        setting: what all methods of a comparison have in common.
        name: the method, and wrappers in the order in which they are put on it, parted by `+`.
        config: the method's own settings; None for its defaults. Wrappers have their defaults.

    Raises:
        ConfigError: an unknown name, settings of another method, or a method that cannot do this task.
    """
    first, wrappers = split_name(name)
    method = METHODS[first]
    if config is not None and not isinstance(config, method.Config):
        raise ConfigError(f"method {first!r}: its settings are a {type(config).__module__}.Config, not its own")
    fitted = method.fit(setting, method.Config() if config is None else config)
    return wrap_method(setting, fitted, wrappers)
