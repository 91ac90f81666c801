"""Command-line arguments from dataclasses, by tyro: field docstrings become the help."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import tyro
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo

from lorchestra.config.mappings import read_mapping, read_recipe, refused_settings, setting_aliases, to_mapping
from lorchestra.config.run import RunConfig
from lorchestra.errors import ConfigError
from lorchestra.store.safe_paths import typed_path

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from lorchestra.types import Json

T = TypeVar("T")
R = TypeVar("R", bound=RunConfig)

_REGISTRY = ConstructorRegistry()
_resolving: list[type] = []  # classes that the rule below is resolving: tyro's default reading is applied to them


@_REGISTRY.struct_rule
def _apply_cli_metadata(info: StructTypeInfo) -> StructConstructorSpec | None:
    """tyro's default reading of a dataclass, with the `cli` metadata of its fields as tyro annotations.

    Keys of `cli`: `hidden`, or the arguments of `tyro.conf.arg`. So the configuration classes need no tyro.
    """
    if not dataclasses.is_dataclass(info.type) or info.type in _resolving:
        return None
    _resolving.append(info.type)
    try:
        spec = ConstructorRegistry.get_struct_spec(info)
    finally:
        _resolving.pop()
    if not isinstance(spec, StructConstructorSpec):
        return None
    options = {field.name: field.metadata.get("cli", {}) for field in dataclasses.fields(info.type)}
    fields = tuple(_with_options(field, options[field.name]) for field in spec.fields)
    return dataclasses.replace(spec, fields=fields)


def _with_options(field: StructFieldSpec, options: Mapping[str, Any]) -> StructFieldSpec:
    if not options:
        return field
    hint: Any = Annotated[field.type, tyro.conf.Suppress if options.get("hidden") else tyro.conf.arg(**options)]
    return dataclasses.replace(field, type=hint)


def parse(cls: type[T], arguments: Sequence[str], command: str, default: T | None = None) -> T:
    """Parse a command's arguments; exits with code 2 and a message if they are invalid."""
    for name, reason in refused_settings(cls).items():
        option = f"--{name}"
        if any(argument.split("=")[0].replace("-", "_") == option.replace("-", "_") for argument in arguments):
            raise ConfigError(f"{option.replace('_', '-')} is not offered: {reason}")
    aliases = setting_aliases(cls)
    typed = [_expand_home(_without_alias(argument, aliases)) for argument in arguments]
    defaults: Json = {} if default is None else {"default": default}
    try:
        return tyro.cli(cls, args=typed, prog=f"lorchestra {command}", registry=_REGISTRY, **defaults)
    except SystemExit as stop:
        if stop.code and (hint := misplaced(arguments, command)) is not None:
            print(f"error: {hint}", file=sys.stderr)
        raise


def _without_alias(argument: str, aliases: Mapping[str, str]) -> str:
    """An option under our name for its setting: --train.lr for --train.learning-rate."""
    option, equals, value = argument.partition("=")
    name = aliases.get(option[2:].replace("-", "_")) if option.startswith("--") else None
    return argument if name is None else f"--{name.replace('_', '-')}{equals}{value}"


def _expand_home(argument: str) -> str:
    """Expand `~` in a path or in an option's value: shells do not do it in `--out=~/run`."""
    option, equals, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
    return f"{option}{equals}{typed_path(value)}" if value == "~" or value.startswith("~/") else argument


def parse_with_recipe(
    cls: type[R], arguments: Sequence[str], command: str, required: Sequence[str] = ()
) -> tuple[R, RunConfig]:
    """Parse a command whose first argument may be a recipe; options override its settings.

    Args:
        cls: the command's arguments: the settings of a run and the command's options.
        arguments: as typed.
        command: its name.
        required: fields of `cls` without a default.

    Returns:
        The arguments, and the settings of the run among them.
    """
    rest = list(arguments)
    recipe = rest.pop(0) if rest and not rest[0].startswith("-") else None
    if recipe is not None:
        _check_recipe(recipe, command)
    defaults = RunConfig() if recipe is None else read_recipe(typed_path(recipe), RunConfig)
    names = [field.name for field in dataclasses.fields(RunConfig)]
    missing: Json = dict.fromkeys(required, tyro.MISSING)
    parsed = parse(cls, rest, command, default=cls(**{name: getattr(defaults, name) for name in names}, **missing))
    return parsed, RunConfig(**{name: getattr(parsed, name) for name in names})


def given_settings(arguments: Sequence[str], **groups: DataclassInstance) -> set[str]:
    """Dotted names of the settings given explicitly, as options or in the recipe, even if equal to the default.

    A null in the recipe counts as not given. Settings are those of a run, and of further `groups` by name.
    """
    known = set(_flattened(to_mapping(RunConfig())))
    for group, defaults in groups.items():
        known |= {f"{group}.{name}" for name in _flattened(to_mapping(defaults))}
    aliases = setting_aliases(RunConfig) | {"data_dir": "data.dir"}
    given = set()
    if arguments and not arguments[0].startswith("-"):
        settings = _flattened(read_mapping(arguments[0]))
        given = {aliases.get(name, name) for name, value in settings.items() if value is not None}
    for argument in arguments:
        if argument.startswith("--"):
            name = argument[2:].partition("=")[0].replace("-", "_")
            group, dot, last = name.rpartition(".")
            positive = f"{group}{dot}{last.removeprefix('no_')}"  # switches: --train.no-gradient-checkpointing
            given |= {aliases.get(name, name), positive}
    return given & known


def _flattened(mapping: Mapping[str, object], path: str = "") -> dict[str, object]:
    """A nested mapping's leaves by dotted name."""
    leaves: dict[str, object] = {}
    for key, value in mapping.items():
        full = f"{path}{key}"
        leaves |= _flattened(value, f"{full}.") if isinstance(value, dict) else {full: value}
    return leaves


def misplaced(arguments: Sequence[str], command: str) -> str | None:
    """Which option a misplaced positional argument probably belongs to; None if unknown."""
    before = ""
    positional = []
    for argument in arguments:
        if not argument.startswith("-") and (not before.startswith("--") or "=" in before):
            positional.append(argument)
        before = argument
    for number, argument in enumerate(positional):
        if _is_data_file(argument):
            return _data_hint(argument, command, first=number == 0)
    if command == "export" and len(positional) == 2:
        return f"{positional[1]}: name the directory to create with --out {positional[1]}"
    return None


def check_run_argument(run: str, command: str, *, first: bool = True) -> None:
    """Refuse a data file in place of a run directory.

    Raises:
        ConfigError: names the option that takes the file.
    """
    if _is_data_file(run) and not Path(run).is_dir():
        raise ConfigError(_data_hint(run, command, first=first))


_DATA_OPTIONS = {
    "import": "--task",
    "predict": "--data",
    "evaluate": "--data",
    "calibrate": "--data",
    "distill": "--data",
    "monitor": "--data",
    "serve": None,
    "report": None,
    "export": None,
}
_WITH_RUN = ("predict", "evaluate", "distill", "calibrate", "monitor", "serve", "report", "export")


def _data_hint(path: str, command: str, *, first: bool = True) -> str:
    option = _DATA_OPTIONS.get(command, "--data.train")
    if command in _WITH_RUN and (first or option is None):
        start = f"{command} {path}: is a data file; the first argument is a run directory"
        return start if option is None else f"{start}: lorchestra {command} RUN {option} {path}"
    if command in ("demo", "tasks"):
        return f"{command} {path}: takes no data file; to train on it: lorchestra train --data.train {path} --out RUN"
    return f"{command} {path}: is a data file; give it as {option} {path}"


def _is_data_file(name: str) -> bool:
    from lorchestra.data.formats import SUFFIXES

    return name.lower().endswith(SUFFIXES)


def check_figure_argument(name: str) -> None:
    """Refuse a data file in place of a figure of the paper.

    Raises:
        ConfigError: names the option that takes the file.
    """
    if _is_data_file(name):
        raise ConfigError(_data_hint(name, "paper"))


def _check_recipe(name: str, command: str) -> None:
    """Refuse what is clearly not a recipe, and name the option that takes it.

    Raises:
        ConfigError: a data file, a run, a base or the name of a task.
    """
    if _is_data_file(name):
        raise ConfigError(_data_hint(name, command))
    start, path = f"{command} {name}: the first argument is a recipe (a YAML file)", Path(name)
    if path.is_dir():
        if (path / "config.yaml").is_file():
            raise ConfigError(
                f"{start}, and this is a run directory; to resume it: lorchestra train --out {name} --if-exists resume;"
                f" for another run with its settings: lorchestra {command} {path / 'config.yaml'}"
            )
        raise ConfigError(f"{start}, and this is a directory; give a base as --base.name {name}")
    if name.lower().endswith(".gguf"):
        raise ConfigError(f"{start}; give the base as --base.name {name}")
    if not path.exists():
        from lorchestra.data.tasks.table import TASKS

        if name in TASKS:
            raise ConfigError(f"{start}; give the task as --data.task {name}")
