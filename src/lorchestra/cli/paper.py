"""`lorchestra paper`: train and draw the paper's figures and ablations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from lorchestra.cli.arguments import check_figure_argument, parse
from lorchestra.config.run import RunConfig
from lorchestra.errors import ConfigError, did_you_mean

ALL = "all"
_DEFAULT_PROFILE = "smoke"


@dataclass(frozen=True)
class PaperArguments(RunConfig):
    """Train and draw figures of the paper (arXiv 2310.00035), its ablations and what its readers asked for.

    lorchestra paper lists them; one or more of them, or all, are made by

        lorchestra paper fig2 fig3 --out paper
        lorchestra paper all --profile small --data-dir DATA --out paper-small

    Every figure becomes a folder in OUT: the picture (PNG and SVG), its data (data.csv) and a sentence on what it shows
    here. What figures have in common is trained once; the same command goes on after an interruption and skips what is
    finished. Options replace the profile's settings; defaults are shown of the profile smoke.
    """

    out: str = field(kw_only=True)
    """The directory of the figures; one profile and one set of options each."""
    profile: str = field(default=_DEFAULT_PROFILE, kw_only=True)
    """The scale: 7b, small, or smoke (about an hour for all on the embedded base, no data needed)."""
    ood: tuple[str, ...] = field(default=(), kw_only=True)
    """For fig5 and ood: tasks by name, or files, with rows unlike the training rows, in place of the profile's."""
    most_members: int = field(default=100, kw_only=True)
    """Most members of one packed pass; fewer take less memory."""


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
    profile = read_profile(_asked_profile(rest))
    defaults: dict[str, Any] = {name: getattr(profile.settings, name) for name in settings}
    # before the figures are looked at, so that --help needs none
    parsed = parse(PaperArguments, rest, "paper", default=_with_missing_out(defaults, profile.name))
    return _make(_known(names), parsed, RunConfig(**{name: getattr(parsed, name) for name in settings}))


def _with_missing_out(defaults: dict[str, Any], profile: str) -> PaperArguments:
    import tyro

    return PaperArguments(**defaults, out=tyro.MISSING, profile=profile)


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


def _asked_profile(arguments: Sequence[str]) -> str:
    """The profile among arguments that are not parsed yet: it gives their defaults."""
    for place, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name == "--profile":
            if equals:
                return value
            return arguments[place + 1] if place + 1 < len(arguments) else _DEFAULT_PROFILE
    return _DEFAULT_PROFILE


def _known(names: Sequence[str]) -> list[str]:
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
    messages()  # what the lock logs is printed
    with directory_lock(parsed.out):
        return _train_and_draw(names, parsed, config)


def _train_and_draw(names: Sequence[str], parsed: PaperArguments, config: RunConfig) -> int:
    from lorchestra.cli.output import messages, printer
    from lorchestra.cli.progress import GracefulStop
    from lorchestra.cli.sweep_progress import SweepProgress
    from lorchestra.paper.run import plan_figures
    from lorchestra.runs.compare import compare_methods
    from lorchestra.training.callbacks import Interrupted

    plans, trainings = plan_figures(names, parsed.profile, config, parsed.out, parsed.ood)
    console = messages()
    say = printer(console)
    failed: dict[str, str] = {}
    results: dict[str, list[dict[str, Any]]] = {}
    try:
        for training in trainings:
            with SweepProgress(console, training.points) as progress, GracefulStop() as stop:
                lost = training.run(most_members=parsed.most_members, callbacks=[progress, stop])
                failed |= {name: str(training.root / "failed.json") for name in lost}
        for plan in plans:
            if plan.recipe.methods:
                with GracefulStop() as stop:
                    config, out = plan.points[0].config, plan.folders[0].root
                    results[plan.name] = compare_methods(config, plan.recipe.methods, out, callbacks=[stop])
    except Interrupted:
        say("stopped; the same command goes on")
        return 130
    for name, path in failed.items():
        say(f"warning: {name} failed; {path} has the reason")
    for plan in plans:
        _draw(plan, parsed, results.get(plan.name))
    return 1 if failed else 0


def _draw(plan: Any, parsed: PaperArguments, results: list[dict[str, Any]] | None) -> None:
    """Write a figure's page and print its sentence; `results` are those of methods, where the figure compares them."""

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
        raise TrainingError(f"{plan.name}: no run to draw it from; every member of each failed")
    told = caption(runs, parsed.profile, None if results is None else str(rows[0]["task"]))
    folder = inside(parsed.out, plan.name)
    sentence = write_page(FIGURES[plan.name], rows, folder, plan.name, told)
    text = f"{plan.name}: {sentence}\n{told}\n{folder / (plan.name + '.png')}\n"
    stdout().print(text, highlight=False, markup=False, soft_wrap=True)
