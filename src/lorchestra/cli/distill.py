"""`lorchestra distill`: from the run of an ensemble to a run of one member that it has taught."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

import tyro

from lorchestra.cli.arguments import check_run_argument, given_settings, parse
from lorchestra.config.adapt import AdaptConfig
from lorchestra.config.distill import DistillConfig, student_config
from lorchestra.config.run import RegularizeConfig, TrainConfig
from lorchestra.store.run import Run


@dataclass(frozen=True)
class DistillArguments:
    """Teach one LoRA the calibrated answers of an ensemble, and a small head the uncertainty of its members.

    RUN is the run of an ensemble on texts with labels or on questions with choices. The result is a run of one member,
    which answers at the cost of one: predict, serve, evaluate, calibrate, monitor and report take it. Its mutual
    information is predicted by the head, and its disagreement is 0.

        lorchestra distill runs/reviews --data unlabeled.csv --out runs/reviews-one

    It learns on the ensemble's training rows, and on further rows with --data, which need no answers: the more, the
    closer it comes to the ensemble. Settings are those of the ensemble's members unless given. It can be interrupted at
    any time; --if-exists resume continues it.
    """

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run directory of the ensemble."""
    out: str = field(kw_only=True)
    """The run directory to write."""
    data: str | None = field(default=None, kw_only=True)
    """File with further rows to learn from; answers are not needed. Rows that are among the run's are left out."""
    distill: DistillConfig = field(default_factory=DistillConfig, kw_only=True)
    adapt: AdaptConfig = field(default_factory=AdaptConfig, kw_only=True)
    train: TrainConfig = field(default_factory=TrainConfig, kw_only=True)
    regularize: RegularizeConfig = field(default_factory=RegularizeConfig, kw_only=True)
    if_exists: Literal["fail", "resume", "finish", "new"] = field(default="fail", kw_only=True)
    """If the run directory exists: stop with an error, resume its training, end it with the best adapter so far
    (finish), or use the next free name."""
    skip_evaluation: bool = field(default=False, kw_only=True)
    """Skip the evaluation on the test rows after training."""
    data_dir: str | None = field(default=None, kw_only=True)
    """Directory with data sets, searched first for named tasks. Default: the run's."""
    base: str | None = field(default=None, kw_only=True)
    """The run's base, if it has moved: hub id, directory or .gguf file with the same weights."""
    data_train: Annotated[str | None, tyro.conf.arg(name="data.train")] = field(default=None, kw_only=True)
    """The training file, if it has moved; its rows must be the same."""
    data_val: Annotated[str | None, tyro.conf.arg(name="data.val")] = field(default=None, kw_only=True)
    """The validation file, if it has moved."""
    data_test: Annotated[str | None, tyro.conf.arg(name="data.test")] = field(default=None, kw_only=True)
    """The test file, if it has moved."""
    json: bool = field(default=False, kw_only=True)
    """Print the metrics as JSON instead of a table."""


def run(arguments: Sequence[str]) -> int:
    """Run the command."""
    options = [argument for argument in arguments if argument.startswith("--")]
    parsed = parse(DistillArguments, arguments, "distill")
    check_run_argument(parsed.run, "distill")
    ensemble = Run.at(parsed.run)
    ensemble.read_ensemble()  # says what is wrong with a directory that is no finished run
    defaults = student_config(ensemble.read_config())
    sections = {name: getattr(defaults, name) for name in ("adapt", "train", "regularize")}
    parsed = parse(DistillArguments, arguments, "distill", default=replace(parsed, distill=DistillConfig(), **sections))

    from lorchestra.cli.output import messages, printer
    from lorchestra.cli.progress import TrainingProgress
    from lorchestra.cli.stopping import GracefulStop
    from lorchestra.cli.train import show_trained
    from lorchestra.runs.distill import distill_run
    from lorchestra.runs.train import TrainOutcome
    from lorchestra.training.callbacks import Interrupted

    console = messages()
    try:
        with TrainingProgress(console) as progress, GracefulStop(can_finish=True) as stop:
            trained = distill_run(
                parsed.run,
                parsed.out,
                data=parsed.data,
                distill=parsed.distill,
                adapt=parsed.adapt,
                train=parsed.train,
                regularize=parsed.regularize,
                if_exists=parsed.if_exists,
                files={"train": parsed.data_train, "val": parsed.data_val, "test": parsed.data_test},
                data_dir=parsed.data_dir,
                base=parsed.base,
                given=given_settings(options, distill=DistillConfig()),
                callbacks=[progress, stop],
            )
    except Interrupted:
        more = "" if parsed.data is None else f" --data {parsed.data}"
        printer(console)(
            f"stopped; resume with: lorchestra distill {parsed.run}{more} --out {parsed.out} --if-exists resume"
        )
        return 130
    return show_trained(
        TrainOutcome(trained, ()), evaluate=not parsed.skip_evaluation, as_json=parsed.json, what="distilled run"
    )
