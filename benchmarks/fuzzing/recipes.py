"""Hostile recipes, through reading and every check before a base is loaded."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import random
import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import yaml

from fuzzing.damage import STRANGE_NUMBERS, STRANGE_TEXTS, damage_bytes, other_encoding, strange_value
from fuzzing.harness import RefusedError, ViolationError, Work
from fuzzing.task_files import jsonl, valid_rows
from lorchestra.cli.main import main
from lorchestra.config.mappings import from_mapping, read_recipe, to_mapping, to_yaml
from lorchestra.config.run import RunConfig
from lorchestra.errors import LorchestraError
from lorchestra.runs.train import train_run

_SCALARS = (
    "!!int ''",
    "!!int x",
    "!!float ''",
    "!!bool maybe",
    "!!timestamp x",
    "!!binary x",
    "!!null x",
    "!!python/object/apply:os.system ['echo x']",
    "!!python/name:os.system",
    "!!python/tuple [1, 2]",
    "!!set {a, b}",
    "!!omap [a: 1]",
    "!!pairs [a: 1, a: 2]",
    "!!map [1]",
    "!!seq {a: 1}",
    "!!str [a]",
    "!unknown x",
    "!<tag:yaml.org,2002:int> 3",
    "2001-01-01",
    "2001-99-99",
    "2001-01-01T25:61:61Z",
    ".nan",
    ".inf",
    "-.inf",
    "0x1F",
    "0b11",
    "0o17",
    "017",
    "1_000",
    "_",
    "0x",
    "0b",
    "190:20:30",
    "1e3",
    "1.e+3",
    "1e400",
    "-1e400",
    "yes",
    "NO",
    "~",
    "",
    "? [a, b]",
    "{? {a: 1} : 2}",
    "[1, [2, [3]]]",
    "|\n    text",
    ">+\n    text\n\n",
    "'it''s'",
    '"\\ud800"',
    '"\\x00"',
    '"\\U0010ffff"',
    '"\\xZZ"',
    "*none",
    "&a",
    "&a &b x",
    "%TAG",
    "@x",
    "`x`",
    "- x",
    "- - - x",
    ": x",
    "? x",
    "9" * 5000,
    "-" + "9" * 400,
    "'" + "x" * 3000 + "'",
)


class Reached(BaseException):
    """The base was about to be loaded: the recipe passed every check."""


class Recipes:
    """A recipe and a run directory, read and checked as in `lorchestra train`."""

    name = "recipes"
    kinds: ClassVar[Sequence[str]] = (
        "valid",
        "damaged bytes",
        "encodings",
        "strange values",
        "strange YAML",
        "several strange values",
        "unknown fields",
        "repeated fields",
        "aliases and cycles",
        "billion laughs",
        "deep nesting",
        "other documents",
        "command line",
    )

    def prepare(self, kind: str, draw: random.Random, folder: Path) -> Work:
        """Write the rows and the recipe of one case."""
        rows = folder / "rows.jsonl"
        rows.write_bytes(jsonl(valid_rows(draw)))
        recipe = folder / draw.choice(("recipe.yaml", "recipe.yaml", "r.yml", "[x] recipe.yaml", "recipe"))
        tree = _tree(draw, str(rows))
        data = _WRITERS[kind](draw, tree)
        recipe.write_bytes(data)
        if kind == "command line":
            return _CommandLine(recipe, folder / "out", draw)
        return _Work(recipe, folder / "out", must_work=kind == "valid")


class _Work:
    def __init__(self, recipe: Path, out: Path, must_work: bool) -> None:
        self.recipe, self.out, self.must_work = recipe, out, must_work

    def __call__(self) -> object:
        try:
            config = read_recipe(self.recipe, RunConfig)
            again = from_mapping(RunConfig, yaml.safe_load(to_yaml(config)), "again")
            if repr(again) != repr(config):
                raise ViolationError(f"a configuration changes when it is saved and read: {again} is not {config}")
            # train_run must stop before it loads a base
            with mock.patch("lorchestra.runs.training.build_pipeline", side_effect=Reached):
                train_run(config, self.out)
        except Reached:
            return config
        except LorchestraError as error:
            if self.must_work:
                raise ViolationError(f"a valid recipe was refused: {error}") from error
            raise
        raise ViolationError("training without a base")


class _CommandLine:
    """The same through the command line, with options: exit code 2, one error on stderr, nothing on stdout."""

    def __init__(self, recipe: Path, out: Path, draw: random.Random) -> None:
        values = [draw.choice(STRANGE_TEXTS), str(draw.choice(STRANGE_NUMBERS[:9])), "nan", "1e999", "5", "text"]
        names = [f"--{group}.{name}" for group, fields in _FIELDS.items() for name in fields]
        self.arguments = ["train", str(recipe), "--out", str(out)]
        for _ in range(draw.randrange(3)):
            self.arguments += [draw.choice([*names, "--data.trian", "--", "-"]).replace("_", "-"), draw.choice(values)]

    def __call__(self) -> object:
        out, err = io.StringIO(), io.StringIO()
        try:
            with (
                contextlib.redirect_stdout(out),
                contextlib.redirect_stderr(err),
                mock.patch("lorchestra.runs.training.build_pipeline", side_effect=Reached),
            ):
                code: Any = main(self.arguments)
        except Reached:
            return None
        except SystemExit as stop:
            code = stop.code
        stderr = err.getvalue()
        if code != 2 or out.getvalue() or "Traceback" in stderr or not stderr.strip() or "\x1b" in stderr:
            raise ViolationError(f"{self.arguments[4:]} ended with {code}: {out.getvalue()[:100]!r} {stderr[:400]!r}")
        if stderr.startswith("error:") and stderr.count("\n") != 1:
            raise ViolationError(f"more than one line: {stderr[:400]!r}")
        raise RefusedError(stderr.splitlines()[0])


def _field_names(cls: Any) -> dict[str, list[str]]:
    return {
        group.name: [field.name for field in dataclasses.fields(type(getattr(cls(), group.name)))]
        for group in dataclasses.fields(cls)
    }


_FIELDS = _field_names(RunConfig)


def _tree(draw: random.Random, train: str) -> dict[str, Any]:
    """A valid recipe: some fields of some groups, with valid values."""
    default = to_mapping(RunConfig())
    tree: dict[str, Any] = {"data": {"train": train}}
    for group in draw.sample(list(_FIELDS), draw.randrange(len(_FIELDS) + 1)):
        for name in draw.sample(_FIELDS[group], draw.randrange(min(4, len(_FIELDS[group]) + 1))):
            if (group, name) != ("data", "train") and default[group][name] is not None:
                tree.setdefault(group, {})[name] = default[group][name]
    return tree


def _dump(tree: Any) -> bytes:
    return yaml.safe_dump(tree, allow_unicode=False).encode()


def _location(draw: random.Random, tree: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """A field of the recipe, present or not."""
    group = draw.choice(list(_FIELDS))
    if draw.random() < 0.1:
        return tree, group
    if group == "data" and draw.random() < 0.2:
        return tree["data"].setdefault("fields", {}), draw.choice(("question", "text", "label", "answer", "id"))
    return tree.setdefault(group, {}), draw.choice(_FIELDS[group])


def _set(draw: random.Random, tree: dict[str, Any]) -> None:
    holder, name = _location(draw, tree)
    if name != "train" or holder is not tree["data"] or draw.random() < 0.3:
        numbers = tuple(number for number in STRANGE_NUMBERS if number != 10**4000)
        holder[name] = draw.choice((_without_huge(strange_value(draw)), draw.choice(numbers), draw.choice(numbers)))


def _without_huge(value: Any) -> Any:
    """Replace integers that Python (from 4,300 digits) or YAML's writer cannot format."""
    if isinstance(value, list):
        return [_without_huge(item) for item in value]
    if isinstance(value, dict):
        return {key: _without_huge(item) for key, item in value.items()}
    return 10**300 if isinstance(value, int) and abs(value) > 10**300 else value


def _strange_values(draw: random.Random, tree: dict[str, Any]) -> bytes:
    _set(draw, tree)
    return _dump(tree)


def _several_strange_values(draw: random.Random, tree: dict[str, Any]) -> bytes:
    for _ in range(draw.randrange(2, 6)):
        with contextlib.suppress(TypeError, AttributeError):  # the group may have become another type
            _set(draw, tree)
    return _dump(tree)


def _strange_yaml(draw: random.Random, tree: dict[str, Any]) -> bytes:
    """One of YAML's unusual scalars, as a value or as the whole recipe."""
    scalar = draw.choice(_SCALARS)
    way = draw.randrange(6)
    if way == 0:
        return scalar.encode()
    if way == 1:
        return f"train:\n  {scalar}: 1\n".encode()
    placeholder = "".join(draw.choices(string.ascii_lowercase, k=12))
    holder, name = _location(draw, tree)
    holder[name] = placeholder
    return _dump(tree).replace(placeholder.encode(), scalar.encode())


def _unknown(draw: random.Random, tree: dict[str, Any]) -> bytes:
    holder, name = _location(draw, tree)
    typo = draw.choice((name[1:] + name[:1], name.upper(), name + "s", draw.choice(STRANGE_TEXTS), 5, None, 1.5, True))
    holder[typo] = strange_value(draw, 2) if draw.random() < 0.5 else 1
    return yaml.safe_dump(tree, allow_unicode=False, sort_keys=False).encode()


def _repeated(draw: random.Random, tree: dict[str, Any]) -> bytes:
    text = _dump(tree).decode()
    lines = text.splitlines()
    lines.insert(draw.randrange(len(lines) + 1), draw.choice(lines))
    return ("\n".join(lines) + "\n" + draw.choice(("", text))).encode()


def _aliases(draw: random.Random, tree: dict[str, Any]) -> bytes:
    cases = (
        "a: &a [*a]\n",
        "train: &a\n  lr: *a\n",
        "train: &t {epochs: 2}\nadapt: *t\n",
        "&a [*a, *a]\n",
        "&a {train: *a}\n",
        "data: &d\n  fields: *d\n",
        "adapt:\n  target_modules: &t [q_proj, *t]\n",
        "adapt:\n  layers: &t [0, *t]\n",
        "train: &t\n  <<: *t\n  epochs: 3\n",
        "train:\n  <<: {epochs: 2}\n  lr: 0.1\n",
        "train:\n  <<: [1, 2]\n",
        "train: &a {epochs: &e 2, batch_size: *e}\n",
        "&k train: {epochs: 1}\nadapt: {r: *k}\n",
    )
    return draw.choice(cases).encode() + (b"" if draw.random() < 0.5 else _dump({"evaluate": {"few_shot": 1}}))


def _laughs(draw: random.Random, tree: dict[str, Any]) -> bytes:
    """References to references: small on disk, huge when expanded."""
    depth, width = draw.choice((3, 9, 25)), draw.choice((2, 10))
    kind = draw.choice(("list", "map", "merge"))
    lines = ["- &a0 [lol, lol]" if kind == "list" else "- &a0 {lol: lol}"]
    for level in range(1, depth + 1):
        names = ", ".join(f"*a{level - 1}" for _ in range(width))
        if kind == "list":
            lines.append(f"- &a{level} [{names}]")
        elif kind == "map":
            keys = ", ".join(f"k{i}: *a{level - 1}" for i in range(width))
            lines.append(f"- &a{level} {{{keys}}}")
        else:
            lines.append(f"- &a{level} {{<<: [{names}]}}")
    prefix = draw.choice(
        ("adapt:\n  target_modules:\n", "adapt:\n  layers:\n", "train:\n  lr:\n", "data:\n  prompt:\n", "x:\n")
    )
    return (prefix + "\n".join(f"    {line}" for line in lines) + "\n").encode()


def _deep(draw: random.Random, tree: dict[str, Any]) -> bytes:
    depth = draw.choice((50, 300, 1_000, 20_000))
    opening, closing = draw.choice((("[", "]"), ("{a: ", "}"), ("- ", "")))
    return b"adapt:\n  target_modules: " + (opening * depth + "x" + closing * depth).encode()


def _documents(draw: random.Random, tree: dict[str, Any]) -> bytes:
    text = _dump(tree)
    return draw.choice(
        (
            b"",
            b"---\n",
            b"...\n",
            b"---\n---\n",
            text + b"---\n" + text,
            b"%YAML 9.9\n---\n" + text,
            b"%TAG ! tag:x,2000:\n---\n" + text,
            b"# only a comment\n",
            b"- " + text.replace(b"\n", b"\n  "),
            b'"' + text + b'"',
            text.replace(b"  ", b"\t"),
            text + b"\x00",
            text + b"\x85\xe2\x80\xa8",
        )
    )


_WRITERS = {
    "valid": lambda draw, tree: _dump(tree),
    "damaged bytes": lambda draw, tree: damage_bytes(_dump(tree), draw),
    "encodings": lambda draw, tree: other_encoding(_dump(tree).decode(), draw),
    "strange values": _strange_values,
    "strange YAML": _strange_yaml,
    "several strange values": _several_strange_values,
    "unknown fields": _unknown,
    "repeated fields": _repeated,
    "aliases and cycles": _aliases,
    "billion laughs": _laughs,
    "deep nesting": _deep,
    "other documents": _documents,
    "command line": lambda draw, tree: draw.choice((_dump, lambda t: _strange_values(draw, t)))(tree),
}
