"""Configurations from and to YAML and plain mappings, with errors that name the file and the field.

Plain values are read by YAML 1.2's rules: yes, no, on and off are text, 010 is ten, 1:30 and 1_000 are text.
"""

from __future__ import annotations

import dataclasses
import math
import re
import reprlib
import types
import typing
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import yaml

from lorchestra.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from lorchestra.types import Json

T = TypeVar("T")
Differences = dict[str, tuple[Any, Any]]
"""Dotted fields with the values of two configurations."""

# Python reads and writes decimal integers of up to 4,300 digits, but hexadecimal ones of any length.
_MAX_BITS = 10_000
MAX_FLOAT = 1e30
"""Largest setting: float32 ends at 3.4e38, and settings are multiplied with computed values."""
_MAX_INT = 2**63
_FAULTS = (yaml.YAMLError, ValueError, RecursionError, LookupError, AttributeError)
"""Errors of reading YAML; PyYAML itself raises the last two, as for `!!int ''` and `!!timestamp x`."""
_REPR = reprlib.Repr()
_REPR.maxlong = _REPR.maxstring = _REPR.maxother = 60


def read_recipe(path: str | Path, cls: type[T], *, whole: bool = False) -> T:
    """A configuration from a YAML file, with defaults for missing settings.

    Args:
        path: the file.
        cls: a configuration dataclass.
        whole: require every group of settings, as in a file that a run saved: a truncated one must not be read as a run
            with default settings.

    Raises:
        ConfigError: the file is missing or not a YAML mapping, a field is unknown or of another type.
    """
    mapping = _read_yaml(path)
    if whole:
        for field in dataclasses.fields(cls):  # type: ignore[arg-type]
            name = field.name
            is_later = name in getattr(cls, "SAVED_WITHOUT_GROUPS", ())
            if not isinstance(mapping, dict) or (name not in mapping and not is_later):
                raise ConfigError(f"{path}: has no {name} settings; the file was truncated or changed")
    return from_mapping(cls, {} if mapping is None else mapping, str(path), saved=whole)


def parse_value(text: str, where: str) -> Any:
    """One value in the notation of recipes.

    Raises:
        ConfigError: it cannot be read; the message starts with `where`.
    """
    try:
        return yaml.load(text, _RecipeLoader)
    except _FAULTS as error:
        raise ConfigError(f"{where}: cannot be read ({' '.join(str(error).split())})") from error


def as_written(value: object) -> Any:
    """A value of `parse_value` with its numbers as text, in the notation of the file."""
    if isinstance(value, _Int | _Float):
        return value.written
    if isinstance(value, dict):
        return {as_written(key): as_written(entry) for key, entry in value.items()}
    return [as_written(entry) for entry in value] if isinstance(value, list) else value


def read_mapping(path: str | Path) -> dict[str, object]:
    """The mapping in a YAML file.

    Raises:
        ConfigError: the file is missing or not a YAML mapping.
    """
    mapping = _read_yaml(path)
    if not isinstance(mapping, dict):
        raise ConfigError(f"{path}: must be a mapping, not {_shown(mapping)}")
    return mapping


def to_yaml(config: DataclassInstance) -> str:
    """A configuration as YAML, in the order of its fields."""
    mapping = to_mapping(config)
    text = yaml.dump(mapping, Dumper=_RecipeDumper, sort_keys=False, allow_unicode=True)
    # PyYAML writes U+0085 unescaped, and reads it as a space
    if yaml.load(text, _RecipeLoader) == mapping:
        return text
    return yaml.dump(mapping, Dumper=_RecipeDumper, sort_keys=False)


def to_mapping(config: DataclassInstance) -> Json:
    """A configuration dataclass as nested plain values."""
    mapping: dict[str, object] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            value = to_mapping(value)
        mapping[field.name] = list(value) if isinstance(value, tuple) else value
    return mapping


def from_mapping(cls: type[T], mapping: object, where: str, path: str = "", *, saved: bool = False) -> T:
    """The inverse of `to_mapping`; missing fields keep their defaults. `ALIASES` of the class are accepted as names.

    Args:
        cls: a configuration dataclass.
        mapping: nested plain values.
        where: the source of `mapping`, for error messages.
        path: dotted path of `mapping` within the configuration.
        saved: whether a run saved it. Then a missing field did not exist at the time, and gets the class's value in
            `SAVED_WITHOUT` instead of its default.

    Raises:
        ConfigError: an unknown field (the nearest known one is suggested), a value of another type, or one field under
            two names.
    """
    if not isinstance(mapping, Mapping):
        raise ConfigError(f"{where}: {path or 'a recipe'} must be a mapping of settings, not {_shown(mapping)}")
    hints, refused, aliases = _hints(cls), refused_settings(cls), getattr(cls, "ALIASES", {})
    values: dict[str, object] = dict(getattr(cls, "SAVED_WITHOUT", {})) if saved else {}
    spelled: dict[str, str] = {}
    for key, value in mapping.items():
        full = f"{path}.{key}" if path else str(key)
        if key in refused:
            raise ConfigError(f"{where}: {full} is not offered: {refused[key]}")
        name = aliases.get(key, key)
        if name not in hints:
            others = dict(aliases) | _below(cls, path)
            raise ConfigError(f"{where}: {full} is not a setting; {did_you_mean(str(key), hints, others)}")
        if name in spelled:
            raise ConfigError(f"{where}: {spelled[name]} and {full} are the same setting; leave one of them out")
        spelled[name] = full
        values[name] = _convert(hints[name], value, where, full, saved=saved)
    return cls(**values)


def _below(cls: type, path: str) -> dict[str, str]:
    """Dotted names of all settings within the groups of a configuration class, by their last part (`lr`) or alias."""
    names: dict[str, str] = {}
    for name, hint in _hints(cls).items():
        full = f"{path}.{name}" if path else name
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            names |= {field.name: f"{full}.{field.name}" for field in dataclasses.fields(hint)}
            names |= {alias: f"{full}.{ours}" for alias, ours in getattr(hint, "ALIASES", {}).items()}
            names |= _below(hint, full)
    return names


def check_magnitudes(config: object, path: str) -> None:
    """Refuse finite numbers that are too large for computations in float32, or for a 64-bit integer.

    Infinities and NaN are left to the checks of each setting.

    Args:
        config: a configuration dataclass; nested ones are checked too.
        path: its dotted name.

    Raises:
        ConfigError: names the field and its value.
    """
    assert dataclasses.is_dataclass(config)
    for field in dataclasses.fields(config):
        full, value = f"{path}.{field.name}" if path else field.name, getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            check_magnitudes(value, full)
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float) and MAX_FLOAT < abs(number) < math.inf:
                raise ConfigError(f"{full}: {number:g} is more than {MAX_FLOAT:g}, too large for float32 computations")
            if isinstance(number, int) and abs(number) >= _MAX_INT:
                raise ConfigError(f"{full}: {_shown(number)} is more than {_MAX_INT:.3g}; choose a smaller number")


def check_types(config: object, cls: type, path: str = "") -> None:
    """Refuse a configuration from Python in which a value has another type than its setting.

    A list may stand for a tuple, and an integer for a float.

    Args:
        config: what was passed as a `cls`; nested configurations are checked too.
        cls: a configuration dataclass.
        path: its dotted name.

    Raises:
        ConfigError: names the field and its value.
    """
    if not isinstance(config, cls):
        where = f"{path} is {_shown(config)}" if path else f"the configuration is of type {type(config).__name__}"
        raise ConfigError(f"{where}; pass a lorchestra.{cls.__name__}")
    for name, hint in _hints(cls).items():
        full, value = f"{path}.{name}" if path else name, getattr(config, name)
        if dataclasses.is_dataclass(hint):
            check_types(value, typing.cast(type, hint), full)
            continue
        converted = _convert(hint, value, cls.__name__, full)
        listed = list(value) if isinstance(value, tuple) else value
        same = converted == value or (isinstance(converted, tuple) and list(converted) == listed) or value != value
        if not same or isinstance(value, str) != isinstance(converted, str):
            kind = type(converted).__name__
            raise ConfigError(f"{cls.__name__}: {full} is {_shown(value)}; it must be {kind}: {_shown(converted)}")


def differences(one: DataclassInstance, other: DataclassInstance, path: str = "") -> Differences:
    """Dotted fields in which two configurations of the same class differ, with both values."""
    differing: Differences = {}
    for field in dataclasses.fields(one):
        full = f"{path}.{field.name}" if path else field.name
        value, other_value = getattr(one, field.name), getattr(other, field.name)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            differing |= differences(value, other_value, full)
        elif value != other_value:
            differing[full] = (value, other_value)
    return differing


def refused_settings(cls: type, path: str = "") -> dict[str, str]:
    """Dotted settings that are known but refused (`REFUSED` in a configuration class and its groups), with reasons."""
    refused = {path + name: reason for name, reason in getattr(cls, "REFUSED", {}).items()}
    for name, hint in _hints(cls).items():
        if dataclasses.is_dataclass(hint):
            refused |= refused_settings(typing.cast(type, hint), f"{path}{name}.")
    return refused


def setting_aliases(cls: type, path: str = "") -> dict[str, str]:
    """Dotted settings by their dotted aliases (`ALIASES` in a configuration class and its groups)."""
    aliases = {path + alias: path + name for alias, name in getattr(cls, "ALIASES", {}).items()}
    for name, hint in _hints(cls).items():
        if dataclasses.is_dataclass(hint):
            aliases |= setting_aliases(typing.cast(type, hint), f"{path}{name}.")
    return aliases


def _read_yaml(path: str | Path) -> object:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as a recipe ({error})") from error
    try:
        return yaml.load(text, _RecipeLoader)
    except _FAULTS as error:
        raise ConfigError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from error


def _hints(cls: type) -> dict[str, object]:
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


class _Int(int):
    """An integer with its notation, in case it is the value of a text setting."""

    written: str


class _Float(float):
    """A number with its notation."""

    written: str


class _RecipeLoader(yaml.SafeLoader):
    """Loads plain values, each field once, and no references: a few of these can expand to billions of values."""

    yaml_implicit_resolvers = {}  # noqa: RUF012, none of YAML 1.1's; those of 1.2 are added below

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            raise yaml.MarkedYAMLError(None, None, f"*{event.anchor}: write out the value instead", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, object]:
        seen = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.MarkedYAMLError(None, None, f"{key.value} is set twice", key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_number(self, node: yaml.ScalarNode) -> _Int | _Float:
        """An integer or decimal number of YAML 1.2's core schema."""
        text = node.value
        number: _Int | _Float
        if node.tag.endswith(":int"):
            digits = text.removeprefix("0o") if text.startswith("0o") else text
            number = _Int(digits, 8 if digits != text else 16 if text.startswith("0x") else 10)
        else:
            number = _Float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        number.written = text
        return number


class _RecipeDumper(yaml.SafeDumper):
    """Quotes text that YAML 1.1 or 1.2 would read as another type."""


_CORE = (
    ("null", r"~|null|Null|NULL|", "~nN\0"),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+0123456789.",
    ),
)
"""The plain values of YAML 1.2's core schema: type, pattern, first characters."""
for _kind, _form, _first in _CORE:
    for _class in (_RecipeLoader, _RecipeDumper):
        _letters = [letter.replace("\0", "") for letter in _first]
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(f"^(?:{_form})$"), _letters)
for _kind in ("int", "float"):
    _RecipeLoader.add_constructor(f"tag:yaml.org,2002:{_kind}", _RecipeLoader.construct_number)


def _is_tuple(hint: object) -> bool:
    return typing.get_origin(hint) is tuple


def _convert(hint: object, value: object, where: str, path: str, *, saved: bool = False) -> object:
    """A plain value as one of type `hint`."""
    if dataclasses.is_dataclass(hint):
        return from_mapping(typing.cast(type, hint), value, where, path, saved=saved)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        kinds = [a for a in arguments if a is not type(None)]
        if isinstance(value, list | tuple):  # of text or a list
            kinds.sort(key=_is_tuple, reverse=True)
        words = typing.get_args(kinds[-1]) if kinds[0] in (int, float) else ()  # a number, or the word auto
        if isinstance(value, str) and value in words:
            return value
        try:
            return _convert(kinds[0], value, where, path)
        except ConfigError as error:
            raise ConfigError(f"{error}{''.join(f', or {word}' for word in words)}") from error
    if isinstance(value, int) and value.bit_length() > _MAX_BITS:
        raise ConfigError(f"{where}: {path} is a number of {value.bit_length():,} bits; choose a smaller number")
    if origin is Literal:
        for known in arguments:
            if value == known and isinstance(value, type(known)) and isinstance(value, bool) == isinstance(known, bool):
                return known
        raise ConfigError(f"{where}: {path} is {_shown(value)}; it must be one of {', '.join(map(str, arguments))}")
    if origin is tuple:
        if isinstance(value, list | tuple):
            return tuple(_convert(arguments[0], item, where, path) for item in value)
    elif hint is float:
        # YAML 1.1 reads 1e-4 (no dot) as a string
        if isinstance(value, int | float | str) and not isinstance(value, bool):
            try:
                return float(value)
            except (ValueError, OverflowError):
                pass
    elif hint is str:
        # `layers: [0, 5]` is text
        layers = isinstance(value, list) and all(isinstance(item, int) for item in value)
        if isinstance(value, _Int | _Float):
            return value.written
        if (isinstance(value, str | int) and not isinstance(value, bool)) or layers:
            return str(value)
    elif isinstance(value, typing.cast(type, hint)) and not (hint is int and isinstance(value, bool)):
        return int(value) if isinstance(value, int) and hint is int else value
    name = getattr(hint, "__name__", "")
    kind = "a list" if origin is tuple else {"str": "text", "bool": "true or false"}.get(name, name)
    raise ConfigError(f"{where}: {path} is {_shown(value)}; it must be {kind}{_plainer(hint, value)}")


def _plainer(hint: object, value: object) -> str:
    """The end of a message: how to write a value that YAML 1.1 reads as a number, boolean or text, and 1.2 does not."""
    if hint is bool and isinstance(value, str) and value.lower() in ("yes", "no", "on", "off", "y", "n"):
        return f", written {str(value.lower() in ('yes', 'on', 'y')).lower()}"
    if hint in (int, float) and isinstance(value, str) and re.fullmatch(r"[-+]?[0-9][0-9_,']*(\.[0-9_]*)?", value):
        digits = re.sub("[_,']", "", value)
        return f", written {digits}"
    if hint is str and isinstance(value, bool):
        return ", in quotes"
    return ""


def _shown(value: object) -> str:
    text = _REPR.repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
