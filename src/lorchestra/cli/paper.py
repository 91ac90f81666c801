"""`lorchestra paper`: reproduce the paper's figures and ablations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from lorchestra.cli.arguments import check_figure_argument, parse
from lorchestra.config.run import RunConfig
from lorchestra.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from lorchestra.paper.run import FigurePlan

ALL = "all"
_DEFAULT_PROFILE = "smoke"


@dataclass(frozen=True)
class PaperArguments(RunConfig):
    """Reproduce figures of the paper (arXiv 2310.00035), its ablations, and some figures beyond it.

    lorchestra paper, without arguments, lists them. Make one, several or all of them with

        lorchestra paper fig2 fig3 --out paper
        lorchestra paper all --profile small --data-dir DATA --out paper-small

    Every figure gets a folder in OUT with the picture (PNG and SVG), its data (data.csv) and a sentence on what it
    shows. Trainings that several figures need run once. Run the same command again to resume after an interruption.
    Options override the settings of the profile; the defaults below are those of the profile smoke.
    """

    out: str = field(kw_only=True)
    """The directory of the figures; it belongs to one profile and one set of options."""
    profile: str = field(default=_DEFAULT_PROFILE, kw_only=True)
    """The scale: 7b, small, or smoke (about an hour for all figures on the embedded base; needs no data)."""
    ood: tuple[str, ...] = field(default=(), kw_only=True)
    """For fig5 and ood: out-of-distribution rows (named tasks or files) instead of the profile's."""
    most_members: int = field(default=100, kw_only=True)
    """Maximum number of members in one packed pass; fewer need less memory."""


def run(arguments: Sequence[str]) -> int:
    """Run the command."""
    from lorchestra.paper.recipes import read_profile

    if not arguments:
        return _list()
    rest = list(arguments)
    names: list[str] = []
    while rest and not rest[0].startswith("-"):
        names.append(rest.pop(0))
    settings = [field.name for field in fields(RunConfig)]
    profile = read_profile(_profile_name(rest))
    defaults = {name: getattr(profile.settings, name) for name in settings}
    # parsed before the names are checked: --help needs no figure
    default = PaperArguments(**defaults, out=tyro.MISSING, profile=profile.name)
    parsed = parse(PaperArguments, rest, "paper", default=default)
    return _make(_figures(names), parsed, RunConfig(**{name: getattr(parsed, name) for name in settings}))


def _list() -> int:
    """Print the figures, one line each."""
    from lorchestra.paper.recipes import profile_names, read_figure, read_profile
    from lorchestra.paper.registry import FIGURES

    print("Figures (lorchestra paper FIGURE ... --out DIR, or all):\n")
    for name in FIGURES:
        print(f"  {name:<20}{read_figure(name).title}")
    print("\nProfiles (--profile):\n")
    for name in profile_names():
        print(f"  {name:<20}{read_profile(name).summary}")
    return 0


def _profile_name(arguments: Sequence[str]) -> str:
    """The value of --profile, needed before parsing: the profile has the defaults of the other options."""
    for index, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name == "--profile":
            if equals:
                return value
            return arguments[index + 1] if index + 1 < len(arguments) else _DEFAULT_PROFILE
    return _DEFAULT_PROFILE


def _figures(names: Sequence[str]) -> list[str]:
    """The figures to make.

    Raises:
        ConfigError: none is given, or one does not exist.
    """
    from lorchestra.paper.registry import FIGURES

    if not names:
        raise ConfigError(f"paper: name a figure, or {ALL}: {', '.join(FIGURES)}")
    for name in names:
        check_figure_argument(name)
        if name not in (*FIGURES, ALL):
            raise ConfigError(f"paper {name}: no such figure; {did_you_mean(name, [*FIGURES, ALL])}")
    return list(FIGURES) if ALL in names else list(dict.fromkeys(names))


def _make(names: Sequence[str], parsed: PaperArguments, config: RunConfig) -> int:
    from lorchestra.cli.output import messages
    from lorchestra.store.lock import directory_lock

    if parsed.most_members < 1:
        raise ConfigError(f"--most-members: {parsed.most_members} is less than 1")
    messages()  # prints what the lock logs
    with directory_lock(parsed.out):
        return _train_and_draw(names, parsed, config)


def _train_and_draw(names: Sequence[str], parsed: PaperArguments, config: RunConfig) -> int:
    from lorchestra.cli.output import messages, printer
    from lorchestra.cli.progress import SweepProgress
    from lorchestra.cli.stopping import GracefulStop
    from lorchestra.paper.run import plan_figures
    from lorchestra.runs.compare import compare_methods
    from lorchestra.training.callbacks import Interrupted

    plans, trainings = plan_figures(names, parsed.profile, config, parsed.out, parsed.ood)
    console = messages()
    say = printer(console)
    failed: dict[str, Path] = {}
    results: dict[str, list[dict[str, object]]] = {}
    try:
        for training in trainings:
            with SweepProgress(console, training.points) as progress, GracefulStop() as stop:
                names_failed = training.run(most_members=parsed.most_members, callbacks=[progress, stop])
                failed |= {name: training.root / "failed.json" for name in names_failed}
        for plan in plans:
            if plan.recipe.methods:
                with GracefulStop() as stop:
                    config, out = plan.points[0].config, plan.folders[0].root
                    results[plan.name] = compare_methods(config, plan.recipe.methods, out, callbacks=[stop])
    except Interrupted:
        say("stopped; run the same command again to resume")
        return 130
    for name, path in failed.items():
        say(f"warning: {name} failed; {path} has the reason")
    for plan in plans:
        _draw(plan, parsed, results.get(plan.name))
    return 1 if failed else 0


def _draw(plan: FigurePlan, parsed: PaperArguments, results: list[dict[str, object]] | None) -> None:
    """Write a figure's folder and print its sentence; `results` are those of methods, if the figure compares them."""
    from lorchestra.cli.output import results as stdout
    from lorchestra.errors import TrainingError
    from lorchestra.paper.page import caption, write_page
    from lorchestra.paper.registry import FIGURES
    from lorchestra.paper.results import FinishedRun
    from lorchestra.store.safe_paths import inside

    finished = plan.finished() if results is None else zip(plan.points, plan.folders, strict=False)
    runs = [FinishedRun(point.settings, point.config, run) for point, run in finished]
    rows = FIGURES[plan.name].table(runs if results is None else results) if runs else []
    if not rows:
        raise TrainingError(f"{plan.name}: there is no run to draw it from; all members of all runs failed")
    settings = caption(runs, parsed.profile, None if results is None else str(rows[0]["task"]))
    folder = inside(parsed.out, plan.name)
    sentence = write_page(FIGURES[plan.name], rows, folder, plan.name, settings)
    text = f"{plan.name}: {sentence}\n{settings}\n{folder / (plan.name + '.png')}\n"
    stdout().print(text, highlight=False, markup=False, soft_wrap=True)
