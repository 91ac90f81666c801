"""`lorchestra calibrate`: which answers can be automated at a guaranteed error."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from lorchestra.cli.arguments import check_run_argument, parse
from lorchestra.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

if TYPE_CHECKING:
    from lorchestra.metrics.decisions import Decisions
    from lorchestra.runs.ensemble import Ensemble
    from lorchestra.training.callbacks import Callback


@dataclass(frozen=True)
class CalibrateArguments:
    """Certify a threshold: which answers can be automated so that at most a given share of them is wrong, with a given
    confidence; or say how many more labelled rows that takes.

    The rows that certify must be labelled, a sample of the rows to be answered later, and new to the run: rows that
    trained or validated it are refused. The threshold is saved in the run, and predict then decides by it ("decision"
    in a line). The same command replaces it. docs/decisions.md explains what is guaranteed and what is not. The exit
    code is 1 where no threshold is certified.
    """

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run directory."""
    second_run: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[RUN_LARGE]")] = None
    """Directory of a second, more expensive run with the same labels: certify a cascade in which RUN answers where it
    is sure, RUN_LARGE the other rows, and a person the rest. It is saved in RUN; predict RUN RUN_LARGE --cascade uses
    it."""
    data: str | None = None
    """File with labelled rows that the run has never seen. Default: the run's test rows."""
    target_error: float | None = None
    """Highest share of wrong answers among automated ones, in (0, 1). Default: 0.05."""
    confidence: float = 0.95
    """Probability that the guarantee holds, over the draw of the certifying rows, in (0, 1)."""
    max_errors_per_1000: float | None = None
    """Instead of --target-error: highest number of automated and wrong answers among 1,000 rows, automated or not."""
    per_class: bool = False
    """A separate threshold per predicted class (texts with labels); all guarantees hold together."""
    score: Literal["auto", "max_prob", "margin", "entropy", "mutual_information", "agreement", "combined"] = "auto"
    """By which score answers are ranked: the largest probability, its margin, (minus) entropy, (minus) mutual
    information, the share of agreeing members, or a logistic model of these. auto: the largest probability, unless
    another one is clearly better on the validation rows."""
    sets: float | None = None
    """Also fit prediction sets that have the right answer with this probability, in (0, 1): 0.9. predict then writes
    "prediction_set"."""
    sets_method: Literal["lac", "aps", "raps"] = "lac"
    """lac: the smallest sets, which may be empty. aps: never empty, larger where the row is hard. raps: aps without
    long tails."""
    sets_by_class: bool = False
    """The sets have the right answer with this probability in each class (texts with labels)."""
    cascade: int | None = None
    """So many members answer first, and all members only the rows of which the first are not sure; what is left is for
    a person. The pair of thresholds is certified end to end, and predict answers by it, with fewer member passes."""
    question: str | None = None
    """Of a run with typed questions, certify only this one. Default: all, each with its threshold; their guarantees
    hold each on its own, not together."""
    costs: str | None = None
    """YAML file with the cost of each confusion and of asking a person (docs/decisions.md): what deciding by cost would
    cost per 1,000 rows, next to automating all and asking always."""
    data_dir: str | None = None
    """Directory with data sets, searched first for named tasks. Default: the run's."""
    base: str | None = None
    """The run's base, if it has moved: hub id, directory or .gguf file with the same weights."""
    data_train: Annotated[str | None, tyro.conf.arg(name="data.train")] = None
    """The training file, if it has moved; its rows must be the same."""
    data_val: Annotated[str | None, tyro.conf.arg(name="data.val")] = None
    """The validation file, if it has moved."""
    data_test: Annotated[str | None, tyro.conf.arg(name="data.test")] = None
    """The test file, if it has moved."""
    json: bool = False
    """Print the result as JSON instead of tables."""


def run(arguments: Sequence[str]) -> int:
    """Run the command."""
    parsed = parse(CalibrateArguments, arguments, "calibrate")
    check_run_argument(parsed.run, "calibrate")
    if parsed.target_error is not None and parsed.max_errors_per_1000 is not None:
        raise ConfigError(
            "--target-error and --max-errors-per-1000: errors among automated answers, or among all rows; give one"
        )

    from lorchestra.cli.output import messages, print_json
    from lorchestra.cli.progress import RowProgress
    from lorchestra.runs.ensemble import load_run

    if parsed.second_run is not None:
        return _run_two(parsed, parsed.second_run)
    with RowProgress(messages()) as progress:
        trained = load_run(parsed.run, base=parsed.base)
        names = [question.name for question in trained.record.questions] if parsed.question is None else []
        if names:
            certified = _each(parsed, trained, names, progress)
        else:
            certified = {"": _certified(parsed, trained, parsed.question, progress)}
    if parsed.json:
        print_json(certified[""].to_dict() if "" in certified else {n: one.to_dict() for n, one in certified.items()})
    else:
        for name, decisions in certified.items():
            _show(decisions, name)
    return 0 if any(decisions.has_threshold for decisions in certified.values()) else 1


def _each(
    parsed: CalibrateArguments, trained: Ensemble, names: Sequence[str], progress: Callback
) -> dict[str, Decisions]:
    """Certify each typed question that has enough rows.

    Raises:
        DataError: none has.
    """
    certified, faults = {}, []
    for name in names:
        try:
            certified[name] = _certified(parsed, trained, name, progress)
        except DataError as error:
            faults.append(f"question {name}: {error}")
    if not certified:
        raise DataError(faults[0])
    for fault in faults:
        logger.warning(fault)
    return certified


def _certified(parsed: CalibrateArguments, trained: Ensemble, question: str | None, progress: Callback) -> Decisions:
    return trained.calibrate(
        parsed.data,
        target_error=0.05 if parsed.target_error is None else parsed.target_error,
        confidence=parsed.confidence,
        max_errors_per_1000=parsed.max_errors_per_1000,
        per_class=parsed.per_class,
        score=parsed.score,
        sets=parsed.sets,
        sets_method=parsed.sets_method,
        sets_by_class=parsed.sets_by_class,
        cascade=parsed.cascade,
        costs=parsed.costs,
        question=question,
        data_dir=parsed.data_dir,
        files={"train": parsed.data_train, "val": parsed.data_val, "test": parsed.data_test},
        callbacks=[progress],
    )


def _run_two(parsed: CalibrateArguments, second_run: str) -> int:
    """Certify a cascade of two runs."""
    check_run_argument(second_run, "calibrate", first=False)
    default = CalibrateArguments(parsed.run)
    for name in (
        "question",
        "max_errors_per_1000",
        "per_class",
        "score",
        "sets",
        "sets_method",
        "sets_by_class",
        "cascade",
        "costs",
    ):
        if getattr(parsed, name) != getattr(default, name):
            raise ConfigError(f"--{name.replace('_', '-')}: not available with two runs; leave it out")
    if parsed.data is None:
        raise ConfigError("two runs: give labelled rows that are new to both with --data FILE")

    from lorchestra.cli.output import messages, print_json, results
    from lorchestra.cli.progress import RowProgress
    from lorchestra.report.decisions import run_cascade_sentences, run_cascade_table
    from lorchestra.runs.ensemble import load_run
    from lorchestra.runs.run_cascade import calibrate_runs

    with RowProgress(messages()) as progress:
        cascade = calibrate_runs(
            load_run(parsed.run, base=parsed.base),
            load_run(second_run),
            parsed.data,
            target_error=0.05 if parsed.target_error is None else parsed.target_error,
            confidence=parsed.confidence,
            data_dir=parsed.data_dir,
            files={"train": parsed.data_train, "val": parsed.data_val, "test": parsed.data_test},
            callbacks=[progress],
        )
    if parsed.json:
        print_json(cascade.to_dict())
    else:
        if cascade.has_threshold:
            results().print(run_cascade_table(cascade))
        for sentence in run_cascade_sentences(cascade):
            results().print(sentence, highlight=False, markup=False)
    return 0 if cascade.has_threshold else 1


def _show(decisions: Decisions, question: str) -> None:
    """Print the tables, and the guarantee last; of a typed question, under its name."""
    from lorchestra.cli.output import results
    from lorchestra.report.decisions import certificate_table, cost_table, score_table, sentences

    console = results()
    if question:
        console.print(f"\nQuestion {question}", highlight=False, markup=False, style="bold")
    console.print(score_table(decisions))
    console.print(certificate_table(decisions))
    if (costs := cost_table(decisions)) is not None:
        console.print(costs)
    for sentence in sentences(decisions):
        console.print(sentence, highlight=False, markup=False)
