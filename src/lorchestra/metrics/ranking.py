"""Scores by which answers are ranked, and which of them ranks best. NumPy only; the fit is scikit-learn's.

Higher means more confident. Which rows are automated depends on the order alone, so a score needs no calibration.

Axes: `M` member, `E` example, `C` choice, `F` feature, `R` resample.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike

from lorchestra.metrics.certificates import check_scored
from lorchestra.metrics.intervals import MIN_OF_EACH
from lorchestra.metrics.predictive import FloatArray, confidence, entropy, mutual_information
from lorchestra.metrics.scores import CHUNK_CELLS
from lorchestra.metrics.selective import resampled_aurc
from lorchestra.types import Json, plain_values

Score = Literal["max_prob", "margin", "entropy", "mutual_information", "agreement", "combined"]

SIMPLE: tuple[Score, ...] = get_args(Score)[:-1]
"""Scores without parameters, the default first."""

_TINY = 1e-12
"""Probabilities are clipped this far from 0 and 1 before their logit is taken."""


@dataclass(frozen=True, slots=True)
class CombinedScore:
    """A logistic model of the simple scores: the probability that the answer is right.

    Its features are the simple scores, the probability as its logit, each minus its mean and divided by its scale. All
    fields are plain numbers, which JSON can hold.
    """

    means: tuple[float, ...]
    scales: tuple[float, ...]
    weights: tuple[float, ...]
    intercept: float
    num_rows: int

    def apply(self, scores: Mapping[str, FloatArray]) -> FloatArray:
        """The combined score `[E]` of rows with these simple scores."""
        features_EF = (_features(scores) - np.array(self.means)) / np.array(self.scales)
        logits_E = features_EF @ np.array(self.weights) + self.intercept
        return np.asarray(0.5 * (1 + np.tanh(0.5 * logits_E)))

    def to_dict(self) -> Json:
        """The fields, as JSON holds them."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Json) -> CombinedScore:
        """Read what `to_dict` returned."""
        return cls(
            means=tuple(values["means"]),
            scales=tuple(values["scales"]),
            weights=tuple(values["weights"]),
            intercept=values["intercept"],
            num_rows=values["num_rows"],
        )


@dataclass(frozen=True, slots=True)
class ScoreChoice:
    """Which score ranks best.

    Attributes:
        score: the chosen one.
        aurc: cross-validated area under the risk-coverage curve by score; lower is better.
        gain: paired interval of the AURC of `max_prob` minus that of each other score, all at once with 95 %;
            positive means that the other one is better. Empty where errors or right answers are too few.
        reason: why this score was chosen.
    """

    score: Score
    aurc: Mapping[str, float]
    gain: Mapping[str, tuple[float, float]]
    reason: str

    def to_dict(self) -> Json:
        """The fields, as JSON holds them."""
        fields: Json = plain_values(asdict(self))
        return fields

    @classmethod
    def from_dict(cls, values: Json) -> ScoreChoice:
        """Read what `to_dict` returned."""
        return cls(**{**values, "gain": {name: (ends[0], ends[1]) for name, ends in values["gain"].items()}})


def simple_scores(
    log_probs_MEC: FloatArray, log_probs_EC: FloatArray, information_E: FloatArray | None = None
) -> dict[str, FloatArray]:
    """The scores of `SIMPLE` by name, each `[E]`.

    Args:
        log_probs_MEC: of the members, -inf past a row's choices.
        log_probs_EC: of the calibrated mixture, whose most probable choice is the answer.
        information_E: mutual information as a distilled run predicts it; None for that of the members.

    Raises:
        ValueError: the shapes do not match, or a log-probability is NaN.
    """
    if log_probs_MEC.ndim != 3 or log_probs_MEC.shape[1:] != log_probs_EC.shape:
        raise ValueError(f"members have shape {log_probs_MEC.shape} and their mixture {log_probs_EC.shape}")
    if np.isnan(log_probs_MEC).any() or np.isnan(log_probs_EC).any():
        raise ValueError("a log-probability is NaN")
    if information_E is None:
        information_E = mutual_information(log_probs_MEC)
    # a choice of probability 0 is added, so that rows with a single choice have a second one
    second_E, first_E = np.sort(np.pad(np.exp(log_probs_EC), ((0, 0), (1, 0))), axis=1)[:, -2:].T
    agrees_ME = log_probs_MEC.argmax(axis=-1) == log_probs_EC.argmax(axis=-1)
    # 0.0 - x: no negative zeros
    return {
        "max_prob": confidence(log_probs_EC),
        "margin": np.asarray(first_E - second_E),
        "entropy": 0.0 - entropy(log_probs_EC),
        "mutual_information": 0.0 - information_E,
        "agreement": np.asarray(agrees_ME.mean(axis=0)),
    }


def fit_combined(scores: Mapping[str, FloatArray], correct_E: ArrayLike, C: float = 1.0) -> CombinedScore:
    """Fit the combined score on rows that are used for nothing else; `C` is the inverse strength of its L2 penalty.

    Raises:
        ValueError: rows are not both right and wrong, lengths differ, or a score is not finite.
    """
    from sklearn.linear_model import LogisticRegression

    features_EF = _features(scores)
    for column in features_EF.T:
        _, wrong_E = check_scored(column, correct_E)
    if wrong_E.all() or not wrong_E.any():
        raise ValueError(f"all {len(wrong_E)} answers are {'wrong' if wrong_E.all() else 'right'}: nothing to fit")
    means_F, scales_F = features_EF.mean(axis=0), features_EF.std(axis=0)
    scales_F = np.where(scales_F > _TINY, scales_F, 1.0)
    model = LogisticRegression(C=C, max_iter=1000).fit((features_EF - means_F) / scales_F, ~wrong_E)
    return CombinedScore(
        means=tuple(means_F.tolist()),
        scales=tuple(scales_F.tolist()),
        weights=tuple(model.coef_[0].tolist()),
        intercept=float(model.intercept_[0]),
        num_rows=len(wrong_E),
    )


def choose_score(
    scores: Mapping[str, FloatArray],
    correct_E: ArrayLike,
    *,
    seed: int,
    num_folds: int = 5,
    resamples: int = 1000,
    confidence: float = 0.95,
) -> ScoreChoice:
    """The score of the lowest cross-validated AURC, if it is clearly lower than that of the largest probability.

    A score is clearly better if the paired interval of the difference, corrected for the number of other scores, is
    above zero. Otherwise the largest probability stays: the best of six is better by chance on the rows that chose it,
    and a threshold on a probability can be explained. Of several that are clearly better, the lowest AURC wins. A wrong
    choice costs coverage, never the guarantee, which is made on other rows.

    Simple scores have no parameters, so their cross-validated AURC is that of all rows. The combined one ranks each row
    by the model of the other folds.

    Args:
        scores: of `simple_scores`.
        correct_E: whether each answer is right.
        seed: of folds and resamples.
        num_folds: for the combined score.
        resamples: for the intervals.
        confidence: of all intervals together.

    Raises:
        ValueError: lengths differ, or a score is not finite.
    """
    ranked: dict[str, FloatArray] = {}
    for name in SIMPLE:
        ranked[name], wrong_E = check_scored(scores[name], correct_E)
    correct = (~wrong_E).astype(np.float64)
    least = int(min(wrong_E.sum(), len(wrong_E) - wrong_E.sum()))
    if least >= max(MIN_OF_EACH, num_folds):
        ranked["combined"] = _held_out(scores, wrong_E, num_folds, seed)
    once = np.ones((1, len(correct)))
    aurc = {name: float(resampled_aurc(values, correct, once)[0]) for name, values in ranked.items()}
    if least < MIN_OF_EACH:
        few = f"{int(wrong_E.sum())} wrong and {int(correct.sum())} right rows are too few to compare scores"
        return ScoreChoice("max_prob", aurc, {}, few)
    draws = _paired_draws(ranked, correct, resamples, seed)
    level = (1 - confidence) / (len(ranked) - 1)
    gain = {name: _ends(draws["max_prob"] - draws[name], level) for name in ranked if name != "max_prob"}
    better: list[Score] = [name for name in get_args(Score) if name in gain and gain[name][0] > 0]
    if not better:
        return ScoreChoice("max_prob", aurc, gain, "no other score is clearly better than the largest probability")
    best = min(better, key=lambda name: aurc[name])
    reason = f"its AURC, {aurc[best]:.4f}, is clearly below the {aurc['max_prob']:.4f} of the largest probability"
    return ScoreChoice(best, aurc, gain, reason)


def _features(scores: Mapping[str, FloatArray]) -> FloatArray:
    """The simple scores as features `[E, F]`, the probability as its logit."""
    probability_E = np.clip(scores["max_prob"], _TINY, 1 - _TINY)
    logit_E = np.log(probability_E) - np.log1p(-probability_E)
    return np.stack([logit_E, *(scores[name] for name in SIMPLE[1:])], axis=1)


def _held_out(scores: Mapping[str, FloatArray], wrong_E: ArrayLike, num_folds: int, seed: int) -> FloatArray:
    """The combined score of each row by a model of the other folds, `[E]`; folds have equal shares of wrong rows."""
    wrong_E = np.asarray(wrong_E)
    shuffled_E = np.random.default_rng(seed).permutation(len(wrong_E))
    order_E = shuffled_E[np.argsort(wrong_E[shuffled_E], kind="stable")]
    fold_E = np.empty(len(wrong_E), dtype=np.int64)
    fold_E[order_E] = np.arange(len(wrong_E)) % num_folds
    values_E = np.empty(len(wrong_E))
    for fold in range(num_folds):
        inside = fold_E == fold
        model = fit_combined({name: scores[name][~inside] for name in SIMPLE}, ~wrong_E[~inside])
        values_E[inside] = model.apply({name: scores[name][inside] for name in SIMPLE})
    return values_E


def _paired_draws(
    ranked: Mapping[str, FloatArray], correct_E: FloatArray, resamples: int, seed: int
) -> dict[str, FloatArray]:
    """The AURC of every score on the same resamples, `[R]`."""
    generator, num_rows = np.random.default_rng(seed), len(correct_E)
    draws: dict[str, list[FloatArray]] = {name: [] for name in ranked}
    size = max(1, CHUNK_CELLS // num_rows)
    for start in range(0, resamples, size):
        drawn_R = min(size, resamples - start)
        counts_RE = generator.multinomial(num_rows, np.full(num_rows, 1 / num_rows), size=drawn_R).astype(np.float64)
        for name, values_E in ranked.items():
            draws[name].append(resampled_aurc(values_E, correct_E, counts_RE))
    return {name: np.concatenate(parts) for name, parts in draws.items()}


def _ends(draws_R: FloatArray, level: float) -> tuple[float, float]:
    """Percentile interval with half of `level` outside on each side."""
    low, high = np.quantile(draws_R, [level / 2, 1 - level / 2])
    return float(low), float(high)


def chosen_scores(score: Score, scores: Mapping[str, FloatArray], combined: CombinedScore | None = None) -> FloatArray:
    """The values of the chosen score, `[E]`.

    Raises:
        ValueError: the combined score is asked for without its model, or there is no such score.
    """
    if score == "combined":
        if combined is None:
            raise ValueError("the combined score needs its fitted model")
        return combined.apply(scores)
    if score not in scores:
        raise ValueError(f"score is {score!r}, not one of {', '.join(get_args(Score))}")
    return scores[score]
