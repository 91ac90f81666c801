"""How much more the ensemble can automate at 5 % error than one LoRA with a temperature, in a sentence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lorchestra.metrics.result import Evaluation, MethodScores, finite_ends
from lorchestra.metrics.table import BY_KEY, MAIN_TARGET
from lorchestra.report.differences import Method, judged, size_text

_METRIC = BY_KEY[MAIN_TARGET]
_WORDS = {"better": "clearly more", "worse": "clearly less", "unclear": "not clearly more"}
_EQUAL_TRAINING = ("long_training", "long_training+temperature")
_SCALED = "one_lora+temperature"


def automation_text(evaluation: Evaluation, controls: Sequence[Method] = ()) -> str | None:
    """The share automated against one LoRA and a temperature, and methods of equal cost.

    None without them: in evaluations of earlier versions, and without validation rows for the temperature.

    Args:
        evaluation: of the ensemble.
        controls: methods on the same rows, by the keys of `compare`.
    """
    if MAIN_TARGET not in evaluation.ensemble.metrics:
        return None
    references = [(name, scores) for name, scores in _references(evaluation, controls) if MAIN_TARGET in scores.metrics]
    if not references:
        return None
    share = _METRIC.number(evaluation.ensemble.metrics[MAIN_TARGET])
    compared = "; and ".join(_compared(evaluation, name, scores) for name, scores in references)
    return f"At {_METRIC.condition}, the ensemble could automate {share} % of these rows. That is {compared}."


def _references(evaluation: Evaluation, controls: Sequence[Method]) -> Iterator[tuple[str, MethodScores]]:
    """The methods to compare with, each with what it costs."""
    by_key = {control.key: control.scores for control in controls}
    passes = f"which answers in one pass in place of {evaluation.num_members}"
    if evaluation.member_mean_scaled is not None and evaluation.member_mean_scaled.metrics:
        yield f"one LoRA with a temperature, the mean of the members, {passes}", evaluation.member_mean_scaled
    elif _SCALED in by_key:
        yield f"one LoRA with a temperature, {passes}", by_key[_SCALED]
    else:
        return
    for key in _EQUAL_TRAINING:
        if key in by_key:
            scaled = ", with a temperature" if key.endswith("+temperature") else ""
            yield f"one LoRA trained {evaluation.num_members} times as long{scaled} (equal training cost)", by_key[key]
    if "mc_dropout" in evaluation.baselines:
        yield "MC dropout with as many passes (equal serving cost)", evaluation.baselines["mc_dropout"]


def _compared(evaluation: Evaluation, name: str, scores: MethodScores) -> str:
    """Clearly more (+6.0 points; +2.0 to +10.0) than one LoRA with a temperature."""
    value, ends = evaluation.ensemble.minus(scores, MAIN_TARGET), finite_ends(scores.ensemble_minus.get(MAIN_TARGET))
    assert value is not None  # a share is always finite
    if ends is None:
        return f"{_METRIC.number(value, signed=True)} points, which these rows cannot judge, from {name}"
    return f"{_WORDS[judged(_METRIC, ends)]} ({size_text(_METRIC, value, ends)}) than {name}"
