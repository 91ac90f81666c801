"""`lorchestra train`: from a recipe and options to a run directory."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lorchestra.cli.arguments import given_settings, parse_with_recipe
from lorchestra.cli.processes import num_processes
from lorchestra.config.run import RunConfig

if TYPE_CHECKING:
    from lorchestra.distributed import Group
    from lorchestra.runs.train import TrainOutcome


@dataclass(frozen=True)
class TrainArguments(RunConfig):
    """Train an ensemble of LoRA adapters on one frozen base.

    Settings come from a recipe (a YAML file, the first argument) and from options, which override it. Everything but
    the data has a default:

        lorchestra train --data.train reviews.csv --out runs/reviews
        lorchestra train --data.task arc_easy --out runs/arc

    Files hold one example per row: {"text", "label"} or {"question", "choices", "answer"}. Training can be interrupted
    at any time; --if-exists resume continues it, and --if-exists finish ends it with the best adapters so far.

    The learning rate and the number of epochs are searched first on the validation rows, unless they are given.

    In several processes of one machine, each with some of the members (one per GPU, for example):

        torchrun --nproc-per-node 4 -m lorchestra train --data.train reviews.csv --out runs/reviews
    """

    out: str = field(kw_only=True)
    """The run directory to write."""
    if_exists: Literal["fail", "resume", "finish", "new"] = field(default="fail", kw_only=True)
    """If the run directory exists: stop with an error, resume its training, end it with the best adapters so far
    (finish), or use the next free name."""
    skip_evaluation: bool = field(default=False, kw_only=True)
    """Skip the evaluation on the test rows after training."""
    json: bool = field(default=False, kw_only=True)
    """Print the metrics as JSON instead of a table."""


def run(arguments: Sequence[str]) -> int:
    """Run the command."""
    with _processes() as group:
        parsed, config = parse_with_recipe(TrainArguments, arguments, "train", required=["out"])
        return train_and_show(
            config,
            parsed.out,
            parsed.if_exists,
            evaluate=not parsed.skip_evaluation,
            as_json=parsed.json,
            given=given_settings(arguments),
            group=group,
        )


@contextmanager
def _processes() -> Iterator[Group | None]:
    """The processes that torchrun has started; None without it, which needs no torch to parse arguments."""
    if num_processes() == 1:
        yield None
        return
    from lorchestra.distributed import process_group

    with process_group() as group:
        yield group


def train_and_show(
    config: RunConfig,
    out: str | Path,
    if_exists: Literal["fail", "resume", "finish", "new"],
    *,
    evaluate: bool = True,
    as_json: bool = False,
    ood: Sequence[str | Path] = (),
    resume_with: str | None = None,
    given: Collection[str] = (),
    group: Group | None = None,
) -> int:
    """Train with progress on stderr, evaluate, and print the table; returns the exit code.

    `resume_with` is the command that resumes the run after an interruption, if it is not `train`; `given` are the
    settings that were given explicitly (see `train_run`). The members are split over the processes of `group`; only the
    first one evaluates.
    """
    from lorchestra.cli.output import messages, printer
    from lorchestra.cli.progress import TrainingProgress
    from lorchestra.cli.stopping import GracefulStop
    from lorchestra.distributed import ALONE
    from lorchestra.runs.train import train_run
    from lorchestra.training.callbacks import Interrupted

    console = messages()
    say = printer(console)
    group = group or ALONE
    is_alone = group.size == 1
    try:
        # the live table is closed before other messages are printed
        with TrainingProgress(console) as progress, GracefulStop(can_finish=is_alone, quiet=not is_alone) as stop:
            outcome = train_run(config, out, if_exists=if_exists, callbacks=[progress, stop], given=given, group=group)
    except Interrupted:
        start = "lorchestra" if is_alone else f"torchrun --nproc-per-node {group.size} -m lorchestra"
        say(f"stopped; resume with: {resume_with or f'{start} train --out {out} --if-exists resume'}")
        return 130
    return show_trained(outcome, evaluate=evaluate, as_json=as_json, ood=ood, is_first=group.is_first)


def show_trained(
    outcome: TrainOutcome,
    *,
    evaluate: bool,
    as_json: bool,
    what: str = "ensemble",
    ood: Sequence[str | Path] = (),
    is_first: bool = True,
) -> int:
    """Report a finished training, evaluate it in the first of its processes, and print the table.

    Returns the exit code.
    """
    from lorchestra.cli.evaluate import evaluate_and_show
    from lorchestra.cli.output import messages, printer
    from lorchestra.runs.build import torch_threads

    say, root = printer(messages()), outcome.run.root
    say(f"trained {what}: {root}")
    code = 0
    if outcome.failed_members:
        names = ", ".join(map(str, outcome.failed_members))
        say(f"warning: member(s) {names} failed and are left out of the ensemble")
        if not evaluate:  # the evaluation prints the reasons
            for m, reason in zip(outcome.failed_members, outcome.reasons, strict=True):
                say(f"member {m}: {reason}")
        code = 1
    if not is_first:
        return 0  # with another code, torchrun would end the evaluation in the first process
    if evaluate:
        with torch_threads(outcome.run.read_config().base.threads):
            evaluate_and_show(root, ood=ood, as_json=as_json)
    elif not as_json:
        print(root)
    return code
