"""Which linear maps get adapters: `adapt.target_modules` as PEFT reads it, within the decoder layers of `adapt.layers`.

Source: PEFT's `target_modules`: a list holds names or ends of names; one string is a regular expression for the whole
name, or `all-linear`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from lorchestra.errors import ConfigError, did_you_mean
from lorchestra.nn.lora import MemberLoRALinear

_LINEAR_MAPS = (nn.Linear, Conv1D)
ALL_LINEAR = "all-linear"
_FIELD = "adapt.target_modules"


def find_targets(
    model: nn.Module, layers: nn.ModuleList, adapted: Sequence[int], targets: str | Sequence[str]
) -> list[tuple[str, Any]]:
    """`(name in the model, module)` of every linear map to adapt, in the model's order.

    Matches outside the adapted decoder layers are left alone: `adapt.layers` bounds the choice, and of a composite
    model only the text part is adapted.

    Raises:
        ConfigError: a target that names nothing here, the output head, or a module that is no linear map.
    """
    prefix = next(name for name, module in model.named_modules() if module is layers)
    inside = {
        f"{prefix}.{index}.{name}": module
        for index in adapted
        for name, module in layers[index].named_modules()
        if name
    }
    linear = {name: module for name, module in inside.items() if is_linear_map(module)}
    known = sorted({name.rsplit(".", 1)[-1] for name in linear})
    if (isinstance(targets, str) and not targets.strip()) or not targets:
        raise ConfigError(f"{_FIELD}: name at least one linear map; known here: {', '.join(known)}")
    if is_all_linear(targets):
        return list(linear.items())
    found: dict[str, nn.Module] = {}
    for target, matches in _matchers(targets, inside):
        own = [name for name in inside if matches(name)]
        wrong = next((name for name in own if name not in linear), None)
        if wrong is not None:
            raise ConfigError(
                f"{_FIELD}: {target!r} names {wrong!r}, which is a {type(inside[wrong]).__name__}, not a linear map;"
                f" {did_you_mean(target, known)}"
            )
        head = next((name for name in _heads(model) if matches(name)), None)
        if head is not None:
            raise ConfigError(
                f"{_FIELD}: {target!r} names {head!r}, the output head, which stays as it is; name linear maps of the"
                f" decoder layers: {', '.join(known)}"
            )
        if not own:
            raise ConfigError(_nothing_found(model, target, matches, isinstance(targets, str), known))
        found |= {name: linear[name] for name in own}
    return [(name, module) for name, module in linear.items() if name in found]


def is_all_linear(targets: str | Sequence[str]) -> bool:
    """Whether `all-linear` is asked for, alone, as a string or as a list of one."""
    alone = targets if isinstance(targets, str) else targets[0] if len(targets) == 1 else ""
    return alone.lower() == ALL_LINEAR


def is_linear_map(module: nn.Module) -> bool:
    """Whether an adapter can stand beside a module.

    Not so a linear map to which a model's own code gives another output, as a router of experts; those that hold
    quantized weights are defined elsewhere.
    """
    kind = type(module)
    changed = kind.forward not in [linear.forward for linear in _LINEAR_MAPS]
    return isinstance(module, _LINEAR_MAPS) and not (changed and kind.__module__.startswith("transformers.models."))


def features(linear: Any) -> tuple[int, int]:
    """`(in_features, out_features)`."""
    if isinstance(linear, Conv1D):
        return linear.nx, linear.nf
    return linear.in_features, linear.out_features


def is_transposed(linear: Any) -> bool:
    """Whether a linear map's weight is stored `[I, O]`: PEFT's `fan_in_fan_out`."""
    return isinstance(linear, Conv1D)


def base_names(model: nn.Module) -> Iterator[str]:
    """The names of a model's modules as they were before members were put on it."""
    hidden: tuple[str, ...] = ()
    for name, module in model.named_modules():
        if name.startswith(hidden):
            continue
        if isinstance(module, MemberLoRALinear):
            hidden = (*hidden, name + ".")
        yield name


def _matchers(targets: str | Sequence[str], inside: dict[str, nn.Module]) -> list[tuple[str, Callable[[str], bool]]]:
    """What was asked for, each with the test of a module's whole name."""
    if not isinstance(targets, str):
        return [(target, _ends_with(target)) for target in targets]
    try:
        pattern = re.compile(targets)
    except re.error as error:
        raise ConfigError(f"{_FIELD}: {targets!r} is no regular expression ({error})") from error
    if not any(pattern.fullmatch(name) for name in inside) and re.fullmatch(r"[\w.]+", targets):
        return [(targets, _ends_with(targets))]  # one plain name, as on a command line
    return [(targets, lambda name: pattern.fullmatch(name) is not None)]


def _ends_with(target: str) -> Callable[[str], bool]:
    return lambda name: name == target or name.endswith("." + target)


def _heads(model: nn.Module) -> list[str]:
    get_head = getattr(model, "get_output_embeddings", None)
    head = None if get_head is None else get_head()
    return [name for name, module in model.named_modules() if head is not None and module is head]


def _nothing_found(
    model: nn.Module, target: str, matches: Callable[[str], bool], is_text: bool, known: Sequence[str]
) -> str:
    elsewhere = next((name for name in base_names(model) if name and matches(name)), None)
    if elsewhere is not None:
        return (
            f"{_FIELD}: {target!r} names {elsewhere!r}, which is outside the decoder layers that adapt.layers names;"
            f" {did_you_mean(target, known)}"
        )
    if is_text and not re.fullmatch(r"[\w.]+", target):
        return (
            f"{_FIELD}: the regular expression {target!r} matches no linear map's whole name, such as"
            f" {_example(model, known)!r}; known here: {', '.join(known)}"
        )
    return f"{_FIELD}: no linear map is named {target!r}; {did_you_mean(target, known)}"


def _example(model: nn.Module, known: Sequence[str]) -> str:
    return next((name for name in base_names(model) if name.rsplit(".", 1)[-1] in known), "")
