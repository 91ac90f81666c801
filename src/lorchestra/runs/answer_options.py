"""How the rows of a stream are answered: calibration, decisions, early exit, and what they exclude."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING

from lorchestra.errors import ConfigError
from lorchestra.inference.pipeline import TooLong
from lorchestra.metrics.calibrator import RAW, Calibration
from lorchestra.metrics.decisions import Decisions
from lorchestra.metrics.early_exit import ExitRule, StopRule

if TYPE_CHECKING:
    from lorchestra.runs.ensemble import Ensemble


@dataclass(frozen=True)
class QuestionOptions:
    """How the mixture's answers to a typed question are calibrated, and which of them are automated."""

    calibration: Calibration = RAW
    decisions: Decisions | None = None


@dataclass(frozen=True)
class AnswerOptions:
    """How rows are answered: the calibrated confidence below which to abstain, early exit, what to do with long rows,
    how the mixture is calibrated, and which answers are automated; the last two by name for typed questions.

    Raises:
        ConfigError: decisions together with early exit or another threshold.
    """

    abstain_below: float | None = None
    rule: ExitRule | None = None
    too_long: TooLong = "error"
    calibration: Calibration = RAW
    decisions: Decisions | None = None
    questions: Mapping[str, QuestionOptions] = field(default_factory=lambda: MappingProxyType({}))

    def __post_init__(self) -> None:
        """Refuse what contradicts the decisions of the run."""
        for decisions in (self.decisions, *(question.decisions for question in self.questions.values())):
            if decisions is not None:
                self._check(decisions)

    def _check(self, decisions: Decisions) -> None:
        off = "leave the run's decisions out: --no-decisions (in Python, decisions=False)"
        if self.rule is not None and decisions.stages is not None:
            raise ConfigError(
                "--early-exit: the run has a certified cascade, which decides how many members answer a row; leave"
                f" --early-exit out, or {off}"
            )
        if self.rule is not None and (decisions.has_threshold or decisions.sets is not None):
            raise ConfigError(
                "--early-exit: the run's threshold and prediction sets are certified for the answers of all members,"
                f" not of the first few; leave --early-exit out, or {off}"
            )
        if self.abstain_below is not None and decisions.has_threshold:
            raise ConfigError(
                f"--abstain-below {self.abstain_below:g}: the run has a certified threshold, which decides; leave"
                f" --abstain-below out, or {off}"
            )

    @property
    def stop_rule(self) -> StopRule | None:
        """When a row needs no more members: early exit, or the run's cascade; None where all members answer."""
        cascade = None if self.decisions is None else self.decisions.stages
        return self.rule if cascade is None else cascade.rule(self.calibration)


def options_of(
    ensemble: Ensemble,
    abstain_below: float | None = None,
    rule: ExitRule | None = None,
    too_long: TooLong | None = None,
    *,
    raw: bool = False,
    decisions: bool = True,
) -> AnswerOptions:
    """How rows are answered with these settings (see `Ensemble.predict`) and a run's calibration and decisions.

    Raises:
        ConfigError: they contradict each other.
        CheckpointError: see `Ensemble.calibration`.
    """
    calibration = RAW if raw else ensemble.calibration
    questions: dict[str, QuestionOptions] = {}
    if not raw:
        decided = ensemble.decisions_by_question if decisions else {}
        questions = {name: QuestionOptions(one, decided.get(name)) for name, one in ensemble.calibrations.items()}
    if rule is not None:
        for one in (calibration, *(question.calibration for question in questions.values())):
            rule.check_calibration(one)
    return AnswerOptions(
        abstain_below,
        rule,
        too_long or ensemble.config.data.too_long,
        calibration,
        ensemble.decisions if decisions and not raw else None,
        questions,
    )
