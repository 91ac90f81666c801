"""Arguments of a command from a dataclass, by tyro: the help comes from its docstrings."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo

from lorchestra.config.mappings import read_mapping, read_recipe, refused_settings, setting_aliases, to_mapping
from lorchestra.config.run import RunConfig
from lorchestra.errors import ConfigError
from lorchestra.store.safe_paths import typed_path

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
    """Parse a command's arguments; exits with 2 and a text where they do not fit."""
    for name, reason in refused_settings(cls).items():
        option = f"--{name}"
        if any(argument.split("=")[0].replace("-", "_") == option.replace("-", "_") for argument in arguments):
            raise ConfigError(f"{option.replace('_', '-')} is not offered: {reason}")
    aliases = setting_aliases(cls)
    typed = [_with_home(_without_alias(argument, aliases)) for argument in arguments]
    defaults: dict[str, Any] = {} if default is None else {"default": default}
    try:
        return tyro.cli(cls, args=typed, prog=f"lorchestra {command}", registry=_REGISTRY, **defaults)
    except SystemExit as stop:
        if stop.code and (hint := misplaced(arguments, command)) is not None:
            print(f"error: {hint}", file=sys.stderr)
        raise


def _without_alias(argument: str, aliases: Mapping[str, str]) -> str:
    """An option under our name for its setting: --train.lr for --train.learning-rate."""
    option, mark, value = argument.partition("=")
    name = aliases.get(option[2:].replace("-", "_")) if option.startswith("--") else None
    return argument if name is None else f"--{name.replace('_', '-')}{mark}{value}"


def _with_home(argument: str) -> str:
    """An argument that is a path below `~` as the path it stands for; shells leave it in `--out=~/run`."""
    option, mark, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
    return f"{option}{mark}{typed_path(value)}" if value == "~" or value.startswith("~/") else argument


def parse_with_recipe(
    cls: type[R], arguments: Sequence[str], command: str, required: Sequence[str] = ()
) -> tuple[R, RunConfig]:
    """Parse a command whose first argument may be a recipe; the options override it.

    Args:
        cls: the command's arguments: the settings of a run and some more.
        arguments: as typed.
        command: its name.
        required: fields of `cls` that have no default.

    Returns:
        The arguments, and the run's settings among them.
    """
    rest = list(arguments)
    recipe = rest.pop(0) if rest and not rest[0].startswith("-") else None
    if recipe is not None:
        _check_recipe(recipe, command)
    defaults = RunConfig() if recipe is None else read_recipe(typed_path(recipe), RunConfig)
    names = [field.name for field in dataclasses.fields(RunConfig)]
    missing: dict[str, Any] = dict.fromkeys(required, tyro.MISSING)
    parsed = parse(cls, rest, command, default=cls(**{name: getattr(defaults, name) for name in names}, **missing))
    return parsed, RunConfig(**{name: getattr(parsed, name) for name in names})


def given_settings(arguments: Sequence[str]) -> set[str]:
    """The dotted settings of a run that were given explicitly, as options or in the recipe, whatever their values.

    A recipe's null leaves a setting open, as if it were not there.
    """
    known = set(_leaves(to_mapping(RunConfig())))
    aliases = setting_aliases(RunConfig) | {"data_dir": "data.dir"}
    given = set()
    if arguments and not arguments[0].startswith("-"):
        settings = _leaves(read_mapping(arguments[0]))
        given = {aliases.get(name, name) for name, value in settings.items() if value is not None}
    for argument in arguments:
        if argument.startswith("--"):
            name = argument[2:].partition("=")[0].replace("-", "_")
            group, dot, last = name.rpartition(".")
            positive = f"{group}{dot}{last.removeprefix('no_')}"  # switches: --train.no-gradient-checkpointing
            given |= {aliases.get(name, name), positive}
    return given & known


def _leaves(mapping: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in mapping.items():
        full = f"{path}{key}"
        found |= _leaves(value, f"{full}.") if isinstance(value, dict) else {full: value}
    return found


def misplaced(arguments: Sequence[str], command: str) -> str | None:
    """What an argument that stands by itself was probably meant as; None where nothing is known of it."""
    before = ""
    alone = []
    for argument in arguments:
        if not argument.startswith("-") and (not before.startswith("--") or "=" in before):
            alone.append(argument)
        before = argument
    for number, argument in enumerate(alone):
        if _is_data_file(argument):
            return _data_hint(argument, command, first=number == 0)
    if command == "export" and len(alone) == 2:
        return f"{alone[1]}: give the directory to make as --out {alone[1]}"
    return None


def check_run_argument(run: str, command: str) -> None:
    """Refuse a data file where a run directory is expected.

    Raises:
        ConfigError: says how the file is given.
    """
    if _is_data_file(run) and not Path(run).is_dir():
        raise ConfigError(_data_hint(run, command))


_DATA_OPTIONS = {"import": "--task", "predict": "--data", "evaluate": "--data", "report": None, "export": None}
_WITH_RUN = ("predict", "evaluate", "report", "export")


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
    """Refuse a data file where a figure of the paper is expected.

    Raises:
        ConfigError: says how the file is given.
    """
    if _is_data_file(name):
        raise ConfigError(_data_hint(name, "paper"))


def _check_recipe(name: str, command: str) -> None:
    """Refuse what is plainly no recipe, and say which option takes it.

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
        raise ConfigError(f"{start}, and this is a directory; a base is given as --base.name {name}")
    if name.lower().endswith(".gguf"):
        raise ConfigError(f"{start}; give the base as --base.name {name}")
    if not path.exists():
        from lorchestra.data.tasks.table import TASKS

        if name in TASKS:
            raise ConfigError(f"{start}; give the task as --data.task {name}")
