"""The typed result of an evaluation: one entry of `metrics.json` as dataclasses, and as a tidy table.

Numbers are those of JSON, which holds no infinity and no NaN: an infinite NLL and an undefined value are None.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING

from lorchestra.errors import LorchestraError
from lorchestra.metrics.calibrator import Calibration
from lorchestra.metrics.table import BY_KEY, Metric
from lorchestra.types import Json

if TYPE_CHECKING:
    import pandas

Numbers = Mapping[str, float | None]
Ends = Sequence[float | None] | None
"""Low and high end of an interval; None without an interval."""


def finite_ends(ends: Ends) -> tuple[float, float] | None:
    """The ends of an interval; None without one, or where an end is infinite."""
    if ends is None:
        return None
    low, high = ends
    return None if low is None or high is None or not math.isfinite(high - low) else (low, high)


@dataclass(frozen=True, slots=True)
class CalibratedReference:
    """The ECE that perfectly calibrated confidences would show on as many rows; no interval for a mean of members."""

    mean: float
    interval: Sequence[float] | None


@dataclass(frozen=True, slots=True)
class QuestionScores:
    """The evaluation of one typed question.

    Attributes:
        type: choice, predicate or score.
        evaluation: of its rows.
        ordinal: of a score, the metrics of ordered levels (`metrics.ordinal`) of the "ensemble" and the "member_mean".
    """

    type: str
    evaluation: Evaluation
    ordinal: Mapping[str, Numbers] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, values: Json) -> QuestionScores:
        """Read the question's entry in an evaluation."""
        return cls(values["type"], Evaluation.from_dict(values), values.get("ordinal") or {})

    def to_dict(self) -> Json:
        """The question's entry in an evaluation, for JSON."""
        ordinal = {"ordinal": {name: dict(metrics) for name, metrics in self.ordinal.items()}} if self.ordinal else {}
        return {"type": self.type, **ordinal, **self.evaluation.to_dict()}


@dataclass(frozen=True, slots=True)
class MethodScores:
    """The metrics of one method on the evaluated rows, or the reason why it has none.

    Attributes:
        metrics: by `Metric.key`; empty where the method could not be evaluated.
        std: sample standard deviations over members, of a mean over members; None for a single member.
        intervals: of `metrics`; None where there are too few rows; empty without resamples.
        ece_if_calibrated: what to compare the ECE with.
        ensemble_minus: intervals of the ensemble minus this method on paired resamples.
        index: of the member; of the majority, the index of the answer.
        validation_nll: of the best member, which is chosen by it; of a baseline that was fitted, with its temperature.
        temperature: T, of a method with temperature scaling.
        num_rows: validation rows on which T was fitted.
        reason: why there are no metrics or no temperature.
        notes: what the temperature rests on.
    """

    metrics: Numbers = field(default_factory=dict)
    std: Numbers = field(default_factory=dict)
    intervals: Mapping[str, Ends] = field(default_factory=dict)
    ece_if_calibrated: CalibratedReference | None = None
    ensemble_minus: Mapping[str, Ends] = field(default_factory=dict)
    index: int | None = None
    validation_nll: float | None = None
    temperature: float | None = None
    num_rows: int | None = None
    reason: str | None = None
    notes: tuple[str, ...] = ()

    def with_intervals(self, intervals: Json, ensemble_minus: Mapping[str, Ends]) -> MethodScores:
        """These scores with intervals as `intervals.method_intervals` returns them and JSON holds them."""
        reference = intervals.get("ece_if_calibrated")
        return replace(
            self,
            intervals={key: ends for key, ends in intervals.items() if key != "ece_if_calibrated"},
            ece_if_calibrated=None if reference is None else CalibratedReference(**reference),
            ensemble_minus=ensemble_minus,
        )

    def interval(self, key: str) -> Ends:
        """The interval of a metric; None without one.

        Entries of earlier versions have percentile intervals of the ECE, which do not cover. They lack the calibrated
        reference and are ignored.
        """
        return None if key == "ece" and self.ece_if_calibrated is None else self.intervals.get(key)

    def number(self, metric: Metric, infinite: str = "inf", missing: str = "-", *, signed: bool | None = None) -> str:
        """A metric in its unit; `missing` where the evaluation, of an earlier version, does not have it.

        Of the metrics that are shown only the NLL can be null, where an answer of probability zero makes it infinite.
        """
        return (
            metric.number(self.metrics[metric.key], infinite, signed=signed) if metric.key in self.metrics else missing
        )

    def value(self, key: str) -> float:
        """A metric, infinite where it is None."""
        value = self.metrics[key]
        return math.inf if value is None else value

    def minus(self, other: MethodScores, key: str) -> float | None:
        """A metric minus another method's; None where one of them is undefined or missing."""
        mine, theirs = self.metrics.get(key), other.metrics.get(key)
        return None if mine is None or theirs is None else mine - theirs

    @classmethod
    def from_dict(cls, values: Json) -> MethodScores:
        """Read a method of an entry."""
        scores = cls(
            metrics={key: values[key] for key in BY_KEY if key in values},
            std=values.get("std") or {},
            index=values.get("index"),
            validation_nll=values.get("validation_nll"),
            temperature=values.get("T"),
            num_rows=values.get("num_rows"),
            reason=values.get("reason"),
            notes=tuple(values.get("notes") or ()),
        )
        return scores.with_intervals(values.get("intervals") or {}, values.get("ensemble_minus") or {})

    def to_dict(self, *nullable: str, with_intervals: bool = True) -> Json:
        """This method in an entry; the keys in `nullable` are also written where they are None."""
        described = {
            "index": self.index,
            "T": self.temperature,
            "num_rows": self.num_rows,
            "validation_nll": self.validation_nll,
            "reason": self.reason,
            "notes": list(self.notes) or None,
        }
        values: Json = {key: value for key, value in described.items() if value is not None or key in nullable}
        values |= self.metrics
        if self.std:
            values["std"] = dict(self.std)
        if self.metrics and with_intervals:
            values |= {"intervals": self.intervals_to_dict(), "ensemble_minus": dict(self.ensemble_minus)}
        return values

    def intervals_to_dict(self) -> Json:
        """The intervals and the calibrated reference as JSON holds them."""
        reference = {} if self.ece_if_calibrated is None else {"ece_if_calibrated": asdict(self.ece_if_calibrated)}
        return {**self.intervals, **reference}


@dataclass(frozen=True, slots=True)
class MemberOodScores:
    """OOD detection by single members: means over members, and standard deviations of the AUROCs."""

    auroc: Numbers
    std: Numbers
    mean_confidence: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class OodScores:
    """How well the ensemble's uncertainty separates OOD rows from in-distribution rows.

    `auroc` is by score: `max_prob`, `entropy`, `mutual_information`, and `distance`, which is of the frozen base and is
    missing where the training rows were not available, in sweeps, and in evaluations of earlier versions.
    `mean_confidence` and `num_examples` are by side: `in_dist` and `ood`.
    """

    auroc: Numbers
    mean_confidence: Mapping[str, float]
    num_examples: Mapping[str, int]
    member_mean: MemberOodScores

    @classmethod
    def from_dict(cls, values: Json) -> OodScores:
        """Read one OOD set of an entry."""
        auroc, std, mean_confidence = (values["member_mean"][key] for key in ("auroc", "std", "mean_confidence"))
        members = MemberOodScores(auroc, std, mean_confidence)
        return cls(values["auroc"], values["mean_confidence"], values["num_examples"], members)

    def to_dict(self) -> Json:
        """One OOD set in an entry."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class EarlyExitScores:
    """What stopping early would save and change.

    Attributes:
        rule: "exact" or a confidence.
        metrics: of the answers given, by `Metric.key`.
        mean_members: members asked, mean over rows.
        histogram: rows that stopped after 1, 2, ..., M members.
        agreement: share of rows with the answer of all members.
    """

    rule: str
    metrics: Numbers
    mean_members: float
    histogram: Sequence[int]
    agreement: float

    @classmethod
    def from_dict(cls, values: Json) -> EarlyExitScores:
        """Read the early exit of an entry."""
        metrics = {key: values[key] for key in BY_KEY if key in values}
        return cls(values["rule"], metrics, values["mean_members"], values["histogram"], values["agreement"])

    def to_dict(self) -> Json:
        """The early exit in an entry."""
        values = asdict(self)
        return {"rule": values.pop("rule"), **values.pop("metrics"), **values}


@dataclass(frozen=True, slots=True)
class ClassScores:
    """How well each label is recognized, where the labels of the training rows are unbalanced.

    Attributes:
        labels: the label set in order.
        train_rows, rows: training rows and evaluated rows of each.
        recall: share of a label's rows that are predicted as such, by method: "ensemble", or a baseline's name. None
            for a label without rows.
        weighted: whether the members were trained with `data.class_weights`.
    """

    labels: Sequence[str]
    train_rows: Sequence[int]
    rows: Sequence[int]
    recall: Mapping[str, Sequence[float | None]]
    weighted: bool = False

    @classmethod
    def from_dict(cls, values: Json) -> ClassScores:
        """Read the classes of an entry."""
        fields = ("labels", "train_rows", "rows", "recall", "weighted")
        return cls(**{name: values[name] for name in fields})

    def to_dict(self) -> Json:
        """The classes in an entry."""
        return asdict(self)


@dataclass(frozen=True)
class Evaluation:
    """One entry of the "evaluations" of `metrics.json`: an ensemble, its members and its baselines on the same rows.

    Attributes:
        task, split: of the rows.
        num_examples, num_members: E and M.
        ensemble: the mixture of the members, calibrated if there is a `calibration`.
        ensemble_raw: the mixture as it is; None where that is the ensemble.
        calibration: of the ensemble; None where it is the mixture as it is.
        member_mean: each metric's mean over members.
        best_member: the member with the lowest validation NLL.
        members: each member, without intervals.
        uncertainty: means over rows in nats (`disagreement`: share of pairs of members), of the members as they are.
        member_mean_scaled: each metric's mean over members, each with its temperature; None without validation rows.
        majority: training label frequencies.
        mean_of_logits: the members pooled by their mean log-probabilities.
        ensemble_scaled, best_member_scaled: with temperature scaling; None unless asked for. With a calibration there
            is the latter, and the former is not needed.
        baselines: other predictions of the same rows.
        level, resamples, seed: of all intervals.
        notes: sentences about what the numbers cannot carry.
        seen: how many of the rows are among the "train" and "val" rows of the run.
        left_out: baselines that are missing, with the reason.
        seconds: time spent on baselines, by name, where it was measured.
        classes: recall by label; only where the training labels are unbalanced.
        early_exit: what asking the members one after the other would save.
        ood: by name of the OOD set.
        questions: each typed question on its rows, by name.
    """

    task: str
    split: str
    num_examples: int
    num_members: int
    ensemble: MethodScores
    member_mean: MethodScores
    best_member: MethodScores
    members: tuple[MethodScores, ...]
    uncertainty: Mapping[str, float]
    majority: MethodScores | None
    mean_of_logits: MethodScores | None
    ensemble_scaled: MethodScores | None
    best_member_scaled: MethodScores | None
    baselines: Mapping[str, MethodScores]
    level: float
    resamples: int
    seed: int
    notes: tuple[str, ...] = ()
    seen: Mapping[str, int] | None = None
    left_out: Mapping[str, str] | None = None
    seconds: Mapping[str, float] | None = None
    classes: ClassScores | None = None
    early_exit: EarlyExitScores | None = None
    member_mean_scaled: MethodScores | None = None
    ood: Mapping[str, OodScores] | None = None
    ensemble_raw: MethodScores | None = None
    calibration: Calibration | None = None
    questions: Mapping[str, QuestionScores] | None = None

    @property
    def is_calibrated(self) -> bool:
        """Whether the ensemble's probabilities were calibrated on validation rows."""
        by_question = (self.questions or {}).values()
        return self.calibration is not None or any(one.evaluation.is_calibrated for one in by_question)

    @classmethod
    def of(cls, entry: Evaluation | Json) -> Evaluation:
        """The evaluation itself, or the one of an entry."""
        return entry if isinstance(entry, Evaluation) else cls.from_dict(entry)

    @classmethod
    def from_dict(cls, entry: Json) -> Evaluation:
        """Read an entry of any version; `store.evaluations.check_entry` checks those that come from a file.

        Raises:
            KeyError: the entry lacks its rows, its ensemble, its mean member or its intervals.
        """
        intervals = entry["intervals"]

        def optional(values: Json | None) -> MethodScores | None:
            return MethodScores.from_dict(values) if values else None

        def main(name: str) -> MethodScores:
            scores = MethodScores.from_dict(entry.get(name) or {})
            return scores.with_intervals(intervals.get(name) or {}, intervals.get(f"ensemble_minus_{name}") or {})

        scaled = entry.get("temperature") or {}
        ood, early_exit, classes, calibration, questions = (
            entry.get(name) for name in ("ood", "early_exit", "classes", "calibration", "questions")
        )
        return cls(
            task=entry["task"],
            split=entry["split"],
            num_examples=entry["num_examples"],
            num_members=entry["num_members"],
            ensemble=main("ensemble"),
            member_mean=main("member_mean"),
            best_member=main("best_member"),
            members=tuple(MethodScores.from_dict(values) for values in entry.get("members") or ()),
            uncertainty=entry.get("uncertainty") or {},
            majority=optional(entry.get("majority")),
            mean_of_logits=optional(entry.get("mean_of_logits")),
            ensemble_scaled=optional({name: value for name, value in scaled.items() if name != "best_member"}),
            best_member_scaled=optional(scaled.get("best_member")),
            baselines={name: MethodScores.from_dict(v) for name, v in (entry.get("baselines") or {}).items()},
            level=intervals["level"],
            resamples=intervals.get("resamples", 0),
            seed=intervals.get("seed", 0),
            notes=tuple(entry.get("notes") or ()),
            seen=entry.get("seen"),
            left_out=entry.get("left_out"),
            seconds=entry.get("seconds"),
            classes=None if classes is None else ClassScores.from_dict(classes),
            early_exit=None if early_exit is None else EarlyExitScores.from_dict(early_exit),
            member_mean_scaled=optional(entry.get("member_mean_scaled")),
            ood=None if ood is None else {name: OodScores.from_dict(values) for name, values in ood.items()},
            ensemble_raw=optional(entry.get("ensemble_raw")),
            calibration=None if calibration is None else Calibration.from_dict(calibration),
            questions=None if questions is None else {n: QuestionScores.from_dict(one) for n, one in questions.items()},
        )

    def to_dict(self) -> Json:
        """The entry, for JSON."""
        best = self.best_member
        scaled = None if self.ensemble_scaled is None else self.ensemble_scaled.to_dict("T")
        if self.best_member_scaled is not None:
            scaled = (scaled or {}) | {"best_member": self.best_member_scaled.to_dict("T")}
        entry: Json = {
            "task": self.task,
            "split": self.split,
            "num_examples": self.num_examples,
            "num_members": self.num_members,
            "ensemble": self.ensemble.to_dict(with_intervals=False),
            "member_mean": self.member_mean.to_dict(with_intervals=False),
            "best_member": best.to_dict("index", "" if best.index is None else "validation_nll", with_intervals=False),
            "members": [member.to_dict(with_intervals=False) for member in self.members],
            "uncertainty": dict(self.uncertainty),
            "majority": self.majority and self.majority.to_dict("index"),
            "mean_of_logits": self.mean_of_logits and self.mean_of_logits.to_dict(),
            "temperature": scaled,
            "baselines": {name: scores.to_dict() for name, scores in self.baselines.items()},
            "intervals": self._intervals_to_dict(),
            "notes": list(self.notes),
        }
        optional = {
            "ensemble_raw": self.ensemble_raw and self.ensemble_raw.to_dict(),
            "calibration": self.calibration and self.calibration.to_dict(),
            "classes": self.classes and self.classes.to_dict(),
            "member_mean_scaled": self.member_mean_scaled and self.member_mean_scaled.to_dict(),
            "seen": self.seen,
            "left_out": self.left_out,
            "seconds": self.seconds,
            "early_exit": self.early_exit and self.early_exit.to_dict(),
            "ood": None if self.ood is None else {name: scores.to_dict() for name, scores in self.ood.items()},
            "questions": None if self.questions is None else {n: one.to_dict() for n, one in self.questions.items()},
        }
        return entry | {key: value for key, value in optional.items() if value is not None}

    def _intervals_to_dict(self) -> Json:
        intervals: Json = {"level": self.level, "resamples": self.resamples, "seed": self.seed}
        main = {"ensemble": self.ensemble, "member_mean": self.member_mean, "best_member": self.best_member}
        for name, scores in main.items():
            if scores.intervals:
                intervals[name] = scores.intervals_to_dict()
            if scores.ensemble_minus:
                intervals[f"ensemble_minus_{name}"] = dict(scores.ensemble_minus)
        return intervals

    def methods(self) -> dict[str, MethodScores]:
        """Every method that has metrics, by key: baselines by their names, members as `member_0`, `member_1`, ..."""
        methods = {
            "ensemble": self.ensemble,
            "ensemble_raw": self.ensemble_raw,
            "ensemble_scaled": self.ensemble_scaled,
            "member_mean": self.member_mean,
            "member_mean_scaled": self.member_mean_scaled,
            "best_member": self.best_member,
            "best_member_scaled": self.best_member_scaled,
            "mean_of_logits": self.mean_of_logits,
            "majority": self.majority,
            **self.baselines,
            **{f"member_{index}": scores for index, scores in enumerate(self.members)},
        }
        return {key: scores for key, scores in methods.items() if scores is not None and scores.metrics}

    def to_pandas(self) -> pandas.DataFrame:
        """The metrics as a tidy table: one row per method and metric.

        Columns: `method` (a key of `methods`), `metric` (its key), `value`, `low` and `high` (the ends of its interval,
        missing without one). An infinite NLL is infinite here.

        Raises:
            LorchestraError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise LorchestraError("to_pandas needs pandas: pip install 'lorchestra[pandas]'") from error
        rows = []
        for method, scores in self.methods().items():
            for key, value in scores.metrics.items():
                null = float("inf") if BY_KEY[key].infinite else float("nan")
                ends = scores.interval(key)
                numbers = (value, *((float("nan"),) * 2 if ends is None else ends))
                rows.append((method, key, *(null if number is None else number for number in numbers)))
        return pandas.DataFrame(rows, columns=["method", "metric", "value", "low", "high"])
