"""`lorchestra paper`: the paper's figures on one's own base and data, one command each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from lorchestra.cli.arguments import parse
from lorchestra.errors import ConfigError


@dataclass(frozen=True)
class PaperArguments:
    """Rerun figures of the paper, and those that its readers asked for.

    Without a figure all are listed; `all` makes them all. Each trains what it needs as one sweep, skips what is
    finished, goes on where it was stopped, and writes a picture (PNG, SVG), its data (CSV) and a sentence:

        lorchestra paper fig2 fig3 --profile small --out paper
        lorchestra paper fig2 --profile small --set data.task=sst2 --set adapt.members=10 --out paper-sst2

    Profiles: smoke takes minutes and only shows that all works; small takes hours on two CPU cores with the embedded
    base and the demo's headlines; 7b is for those who have the machine.
    """

    figures: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[FIGURE ...]")] = ()
    """fig1 ... fig5, ablation-..., regularizers, ood, baselines, cost, or all."""
    out: str = "paper"
    """Directory; every figure has one of its own in it."""
    profile: Literal["smoke", "small", "7b"] = "small"
    """The scale."""
    set: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = field(default=())
    """A setting of every run, as in data.task=sst2; once for each."""
    data_dir: str | None = None
    """Directory with data sets, where tasks by name are looked for first."""


def run(arguments: Sequence[str]) -> int:
    """Run the command."""
    parsed = parse(PaperArguments, arguments, "paper")

    from lorchestra.experiments.paper.recipe import figure_names, read_figure, titles

    if not parsed.figures:
        for name, title in titles().items():
            print(f"{name:<20} {title}")
        return 0
    names = figure_names() if parsed.figures == ("all",) else list(dict.fromkeys(parsed.figures))
    overrides = _overrides(parsed.set) | ({} if parsed.data_dir is None else {"data.dir": parsed.data_dir})
    recipes = {name: read_figure(name, parsed.profile) for name in names}
    for name in names:
        code = _make(name, recipes[name], Path(parsed.out) / name, overrides)
        if code:
            return code
    return 0


def _overrides(texts: Sequence[str]) -> dict[str, Any]:
    from lorchestra.experiments.sweep.points import parse_axis

    found = {}
    for text in texts:
        name, values = parse_axis(text, "--set")
        if len(values) != 1:
            raise ConfigError(f"--set {text}: give one value; a list stands in brackets")
        found[name] = values[0]
    return found


def _make(name: str, recipe: Any, out: Path, overrides: dict[str, Any]) -> int:
    """Train what a figure needs, draw it, and print its sentence."""
    from lorchestra.cli.output import messages, speaker
    from lorchestra.cli.sweep_progress import SweepProgress
    from lorchestra.cli.train import GracefulStop
    from lorchestra.engine.observer import Interrupted
    from lorchestra.experiments.paper.study import run_study
    from lorchestra.report.paper.dots import draw_baselines
    from lorchestra.report.paper.figures import DRAW
    from lorchestra.report.paper.page import write_page
    from lorchestra.report.paper.runs import read_study

    console = messages()
    say = speaker(console)
    say(f"{name}: {recipe.title}")
    progress = SweepProgress(console, [])
    try:
        with progress, GracefulStop() as stop:
            study = run_study(recipe, out, overrides, say=say, observer=progress.follow, should_stop=stop)
    except Interrupted:
        say("stopped; the same command goes on")
        return 130
    page = draw_baselines(study.results) if study.results else DRAW[name](read_study(study.runs, study.points))
    write_page(page, out, name, study.caption)
    print(f"{name}: {page.sentence}")
    say(f"picture: {out / name}.png")
    return 0
