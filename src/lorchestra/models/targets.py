"""Which linear maps get adapters: `adapt.target_modules` with PEFT's meaning, within the layers of `adapt.layers`.

Source: PEFT's `target_modules`: a list has names or ends of names; a string is a regular expression for the whole
name, or `all-linear`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias, TypeGuard

from torch import nn
from transformers.pytorch_utils import Conv1D

from lorchestra.errors import ConfigError, did_you_mean
from lorchestra.nn.lora import MemberLoRALinear

LinearMap: TypeAlias = nn.Linear | Conv1D
ALL_LINEAR = "all-linear"
_FIELD = "adapt.target_modules"


def find_targets(
    model: nn.Module, layers: nn.ModuleList, adapted: Sequence[int], targets: str | Sequence[str]
) -> list[tuple[str, LinearMap]]:
    """`(name in the model, module)` of every linear map to adapt, in the model's order.

    Matches outside the adapted decoder layers are ignored: of a composite model only the text part is adapted.

    Raises:
        ConfigError: a target that matches nothing, the output head, or a module that is not a linear map.
    """
    prefix = next(name for name, module in model.named_modules() if module is layers)
    inside = {
        f"{prefix}.{index}.{name}": module
        for index in adapted
        for name, module in layers[index].named_modules()
        if name
    }
    linear: dict[str, LinearMap] = {name: module for name, module in inside.items() if is_linear_map(module)}
    known = sorted({name.rsplit(".", 1)[-1] for name in linear})
    if (isinstance(targets, str) and not targets.strip()) or not targets:
        raise ConfigError(f"{_FIELD}: name at least one linear map; known here: {', '.join(known)}")
    if is_all_linear(targets):
        return list(linear.items())
    chosen: set[str] = set()
    for target, matches in _matchers(targets, inside):
        names = [name for name in inside if matches(name)]
        wrong = next((name for name in names if name not in linear), None)
        if wrong is not None:
            raise ConfigError(
                f"{_FIELD}: {target!r} names {wrong!r}, which is a {type(inside[wrong]).__name__}, not a linear map;"
                f" {did_you_mean(target, known)}"
            )
        head = next((name for name in _heads(model) if matches(name)), None)
        if head is not None:
            raise ConfigError(
                f"{_FIELD}: {target!r} names {head!r}, the output head, which is not adapted; name linear maps of the"
                f" decoder layers: {', '.join(known)}"
            )
        if not names:
            raise ConfigError(_no_match(model, target, matches, isinstance(targets, str), known))
        chosen.update(names)
    return [(name, module) for name, module in linear.items() if name in chosen]


def is_all_linear(targets: str | Sequence[str]) -> bool:
    """Whether the setting is `all-linear`, as a string or as a list of one."""
    single = targets if isinstance(targets, str) else targets[0] if len(targets) == 1 else ""
    return single.lower() == ALL_LINEAR


def is_linear_map(module: nn.Module) -> TypeGuard[LinearMap]:
    """Whether a module can be adapted.

    Not if the model's code overrides what it computes, as in a router of experts. Overrides by other packages, for
    quantized weights, are fine.
    """
    kind = type(module)
    is_override = kind.forward not in (nn.Linear.forward, Conv1D.forward)
    return isinstance(module, LinearMap) and not (is_override and kind.__module__.startswith("transformers.models."))


def features(linear: LinearMap) -> tuple[int, int]:
    """`(in_features, out_features)`."""
    if isinstance(linear, Conv1D):
        return linear.nx, linear.nf
    return linear.in_features, linear.out_features


def is_transposed(linear: object) -> bool:
    """Whether a linear map's weight is stored `[I, O]`: PEFT's `fan_in_fan_out`."""
    return isinstance(linear, Conv1D)


def base_names(model: nn.Module) -> Iterator[str]:
    """The names of a model's modules before members were added."""
    hidden: tuple[str, ...] = ()
    for name, module in model.named_modules():
        if name.startswith(hidden):
            continue
        if isinstance(module, MemberLoRALinear):
            hidden = (*hidden, name + ".")
        yield name


def _matchers(targets: str | Sequence[str], inside: dict[str, nn.Module]) -> list[tuple[str, Callable[[str], bool]]]:
    """Each target with a predicate of a module's whole name."""
    if not isinstance(targets, str):
        return [(target, _ends_with(target)) for target in targets]
    try:
        pattern = re.compile(targets)
    except re.error as error:
        raise ConfigError(f"{_FIELD}: {targets!r} is not a regular expression ({error})") from error
    if not any(pattern.fullmatch(name) for name in inside) and re.fullmatch(r"[\w.]+", targets):
        return [(targets, _ends_with(targets))]  # a plain name, as on a command line
    return [(targets, lambda name: pattern.fullmatch(name) is not None)]


def _ends_with(target: str) -> Callable[[str], bool]:
    return lambda name: name == target or name.endswith("." + target)


def _heads(model: nn.Module) -> list[str]:
    get_head = getattr(model, "get_output_embeddings", None)
    head = None if get_head is None else get_head()
    return [name for name, module in model.named_modules() if head is not None and module is head]


def _no_match(
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
