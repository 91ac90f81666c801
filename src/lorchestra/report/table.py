"""An evaluation as tables for the terminal, and as a verdict in plain sentences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from lorchestra.metrics.result import CalibratedReference, Ends, Evaluation, MethodScores, Numbers, finite_ends
from lorchestra.metrics.table import AGAINST_BASELINES, BY_KEY, DECISIVE, IN_TABLES, MAIN_TARGET, Metric
from lorchestra.report.automation import automation_text
from lorchestra.report.differences import ROUNDING, Method, covers_zero, judged, size_text
from lorchestra.report.fitted_table import FittedTable
from lorchestra.types import Json

Entry = Evaluation | Json
"""An evaluation, or its entry of `metrics.json`."""


BASELINES = {
    "base_zero_shot": "base, zero-shot",
    "base_few_shot": "base, few-shot",
    "tfidf": "TF-IDF + LR",
    "frozen": "frozen base + LR",
    "mc_dropout": "MC dropout",
}
WITHOUT_ADAPTERS = ("tfidf", "frozen")
"""Baselines that are fitted on the training rows, without an adapter."""
_OOD_COLUMNS = {
    "max_prob": "Max prob.",
    "entropy": "Entropy",
    "mutual_information": "Mutual inf.",
    "distance": "Distance",
}
_FEW_ROWS = 100


def evaluation_table(entry: Entry) -> FittedTable:
    """One row per method, one column per metric; each cell holds the value and below it its interval.

    Below the interval of the ECE: mean and range of what perfectly calibrated confidences would show on as many rows.
    Values of the mean member are followed by their standard deviation over members. Methods without metrics have no
    row. Fits 100 columns. Metrics that an evaluation of an earlier version lacks have no column.
    """
    evaluation = Evaluation.of(entry)
    level = f"{100 * evaluation.level:g} %"
    shown = list(methods(evaluation))
    columns = table_columns(IN_TABLES, [method.scores for method in shown])
    caption = f"In brackets: {level} interval. ±: spread of members."
    if BY_KEY[MAIN_TARGET] in columns:
        caption += " Automated: largest share of rows, most confident first, with at most that error."
    if any(method.scores.ece_if_calibrated for method in shown):
        caption += f" In parentheses: ECE of a perfectly calibrated model on as many rows, mean and {level} range."
    if evaluation.calibration is not None:
        # captions are markup, and the reason comes from a file
        caption += f" Ensemble calibrated: {escape(evaluation.calibration.sentence())}"
    elif evaluation.is_calibrated:
        caption += " Ensemble calibrated per question."
    if any(method.key in WITHOUT_ADAPTERS for method in shown):
        per_question = " per question" if evaluation.questions else ""
        caption += f" LR: logistic regression{per_question}, with one temperature (T)."
    if evaluation.seconds:
        caption += f" Seconds spent: {seconds_text(evaluation.seconds)}."
    table = _bare_table(_title(evaluation), caption)
    table.add_column("Method", overflow="fold")
    for metric in columns:
        table.add_column(column_heading(metric), no_wrap=True)
    widths = [max(len(method.scores.number(metric)) for method in shown) for metric in columns]
    for method in shown:
        style = "bold" if method.key == "ensemble" else ""
        cells = (_cell(metric, method.scores, w, style) for metric, w in zip(columns, widths, strict=True))
        table.add_row(_method_name(method, style), *cells)
    return FittedTable(table)


def table_columns(metrics: Sequence[Metric], methods: Sequence[MethodScores]) -> list[Metric]:
    """The metrics that a method has, the share automated second: in narrow terminals the first columns are together."""
    present = [metric for metric in metrics if any(metric.key in scores.metrics for scores in methods)]
    main = [metric for metric in present if metric.key == MAIN_TARGET]
    others = [metric for metric in present if metric.key != MAIN_TARGET]
    return [*others[:1], *main, *others[1:]]


def column_heading(metric: Metric) -> str:
    """The heading of a column of a terminal, its condition on a second line."""
    return metric.heading.replace(" (", "\n(")


def _method_name(method: Method, style: str) -> Text:
    text = Text(method.name, style=style)
    if method.key in WITHOUT_ADAPTERS and method.scores.temperature is not None:
        text.append(f"\n  T = {method.scores.temperature:.2f}", style="dim")
    return text


def seconds_text(seconds: Mapping[str, float]) -> str:
    """The time of each baseline: TF-IDF + LR 2, MC dropout 31."""
    return "; ".join(f"{BASELINES.get(name, name)} {value:.0f}" for name, value in seconds.items())


def class_table(entry: Entry) -> FittedTable | None:
    """Recall by label, of the ensemble and the best baseline without adapters; None where labels are balanced.

    The last row has the macro F1.
    """
    evaluation = Evaluation.of(entry)
    classes = evaluation.classes
    if classes is None:
        return None
    best = best_baseline(evaluation)
    methods = [Method("ensemble", "ensemble", evaluation.ensemble), *(() if best is None else (best,))]
    table = _bare_table(
        Text("Recall by label: share of a label's rows that are predicted as such, %"),
        "The labels of the training rows are unbalanced. Macro F1: mean over labels.",
    )
    table.add_column("Label", min_width=14, overflow="fold")
    for title in ("Training rows", "Rows", *(method.name for method in methods)):
        table.add_column(title, justify="right", no_wrap=True)
    for index, label in enumerate(classes.labels):
        recalls = (classes.recall.get(method.key) or () for method in methods)
        values = (recall[index] if index < len(recall) else None for recall in recalls)
        table.add_row(
            Text(label),
            *(str(counts[index]) if index < len(counts) else "-" for counts in (classes.train_rows, classes.rows)),
            *("-" if value is None else f"{100 * value:.1f}" for value in values),
        )
    macro_f1 = BY_KEY["macro_f1"]
    table.add_row("macro F1", "", "", *(macro_f1.number(method.scores.metrics.get("macro_f1")) for method in methods))
    return FittedTable(table)


def imbalance_text(evaluation: Evaluation) -> str | None:
    """One sentence on unbalanced labels; None where they are balanced, or weighted already."""
    classes = evaluation.classes
    if classes is None or classes.weighted or not classes.train_rows:
        return None
    least, most = min(classes.train_rows), max(classes.train_rows)
    return (
        f"The training labels are unbalanced ({least} to {most} rows): --data.class-weights would weigh each label"
        " alike in training, for a higher recall of the rare ones."
    )


def ood_table(entry: Entry) -> FittedTable | None:
    """AUROC of the scores that separate OOD rows, for the ensemble and the mean of its members; None without sets."""
    evaluation = Evaluation.of(entry)
    if not evaluation.ood:
        return None
    shown = [name for name in _OOD_COLUMNS if name != "distance" or has_distance(evaluation)]
    caption = "One LoRA: mean of members ± their spread. Confidence: mean, % (in-distribution / OOD)."
    if "distance" in shown:
        caption += "\nDistance: from the training rows, by the hidden states of the base without adapters."
    table = _bare_table(
        Text(f"Out of distribution, against {evaluation.task} {evaluation.split}: AUROC (0.5 is chance)"), caption
    )
    table.add_column("OOD set", min_width=14, overflow="fold")
    for title in ("Method", *(_OOD_COLUMNS[name] for name in shown), "Confidence"):
        table.add_column(title, no_wrap=True)
    for name, scores in evaluation.ood.items():
        single = scores.member_mean
        pairs = zip(_aurocs(shown, scores.auroc, {}), _aurocs(shown, single.auroc, single.std), strict=True)
        table.add_row(
            Text(f"{name}\n{scores.num_examples['ood']} rows"),
            "ensemble\none LoRA",
            *("\n".join(pair) for pair in pairs),
            f"{_confidences(scores.mean_confidence)}\n{_confidences(single.mean_confidence)}",
        )
    return FittedTable(table, num_names=2)


def _bare_table(title: Text, caption: str) -> Table:
    return Table(
        title=title,
        caption=caption,
        box=SIMPLE_HEAD,
        title_justify="left",
        caption_justify="left",
        show_edge=False,
        padding=(0, 1, 0, 0),
    )


def verdict(entry: Entry, controls: Sequence[Method] = ()) -> str:
    """What the paired intervals say of the ensemble, in plain sentences.

    A difference counts only where its interval excludes 0. `controls` are methods of equal compute and the like, on
    the same rows.
    """
    evaluation = Evaluation.of(entry)
    differences = evaluation.member_mean.ensemble_minus
    sentences, judging = list(evaluation.notes), True
    if evaluation.num_members == 1:
        changed = ", calibrated" if evaluation.ensemble_raw is not None else ""
        sentences.append(f"There is one member only, so the ensemble is that member{changed}.")
    elif not differences:
        sentences.append("No bootstrap intervals were computed, so no difference can be judged.")
    elif not (judging := any(differences.values())):
        sentences.append("So no difference from another method can be judged.")
    else:
        sentences += [text for text in (automation_text(evaluation, controls),) if text is not None]
        sentences += _comparisons(evaluation, controls)
    sentences += [text for text in (baseline_text(evaluation),) if text is not None]
    sentences += _calibration(evaluation)
    sentences += [text for text in (imbalance_text(evaluation),) if text is not None]
    if judging and evaluation.num_examples < _FEW_ROWS:
        sentences.append(f"This is based on {evaluation.num_examples} rows, which can only show large differences.")
    return " ".join(sentences)


def best_baseline(evaluation: Evaluation) -> Method | None:
    """The baseline without adapters with the lowest validation NLL, where all have one, or else NLL; None without."""
    scored = {key: evaluation.baselines[key] for key in WITHOUT_ADAPTERS if key in evaluation.baselines}
    scored = {key: scores for key, scores in scored.items() if scores.metrics}
    if not scored:
        return None
    by_validation = all(scores.validation_nll is not None for scores in scored.values())
    key = min(
        scored, key=lambda key: (scored[key].validation_nll or 0.0) if by_validation else scored[key].value("nll")
    )
    return Method(key, BASELINES[key], scored[key])


def baseline_text(evaluation: Evaluation) -> str | None:
    """Whether the run is clearly better than the best baseline without adapters, as a sentence; None without one.

    It is where the paired intervals of accuracy, NLL and AURC show a gain in one of them and a loss in none.
    """
    best = best_baseline(evaluation)
    if best is None or not any(best.scores.ensemble_minus.values()):
        return None
    words: dict[str, list[str]] = {"better": [], "worse": [], "unclear": []}
    for metric in AGAINST_BASELINES:
        value = evaluation.ensemble.minus(best.scores, metric.key)
        ends = finite_ends(best.scores.ensemble_minus.get(metric.key))
        if value is not None and ends is not None:
            words[judged(metric, ends)].append(f"{metric.name} ({size_text(metric, value, ends)})")
    better, worse, unclear = words.values()
    name = f"{best.name}, the best baseline without adapters"
    if better and worse:
        return f"Against {name}, the run is clearly better in {listed(better)}, but clearly worse in {listed(worse)}."
    if better:
        rest = f"; no clear difference in {listed(unclear)}" if unclear else ""
        return f"The run is clearly better than {name}, in {listed(better)}{rest}."
    if worse:
        return f"The run is not better than {name}: it is clearly worse in {listed(worse)}."
    return f"The run is not clearly better than {name}: {listed(unclear)}." if unclear else None


def early_exit_text(entry: Entry) -> str:
    """What asking members one after the other would save and change, of an entry that has "early_exit"."""
    evaluation = Evaluation.of(entry)
    early, rows = evaluation.early_exit, evaluation.num_examples
    assert early is not None
    shares = ", ".join(f"{k}: {100 * n / rows:.1f} %" for k, n in enumerate(early.histogram, start=1) if n)
    accuracy, nll = (BY_KEY[key].number(early.metrics[key], absent="inf") for key in ("accuracy", "nll"))
    return (
        f"With early exit ({early.rule}) a row uses {early.mean_members:.2f} of {evaluation.num_members} members on"
        f" average ({shares}); {100 * early.agreement:.1f} % of rows have the answer of all members; accuracy"
        f" {accuracy} %, NLL {nll}."
    )


def _comparisons(evaluation: Evaluation, controls: Sequence[Method]) -> Iterator[str]:
    """The ensemble against its members, the controls and the majority answer."""
    if evaluation.is_calibrated:
        remark = "; the members are not calibrated, so differences in NLL and Brier include what calibration gains."
    else:
        remark = "; the gain over the mean member in NLL and Brier is guaranteed by convexity."
    yield (
        f"Against the mean of its {evaluation.num_members} members, the ensemble"
        f" {_judge(evaluation, evaluation.member_mean)} (differences with their {100 * evaluation.level:g} %"
        f" intervals){remark}"
    )
    if evaluation.best_member.ensemble_minus:
        yield f"Against the best member on validation, it {_judge(evaluation, evaluation.best_member)}."
    if (mean := evaluation.member_mean_scaled) is not None and mean.ensemble_minus:
        yield f"Against the mean of its members after temperature scaling, it {_judge(evaluation, mean)}."
    scaled = evaluation.best_member_scaled
    if scaled is not None and scaled.ensemble_minus:
        yield f"Against that member after temperature scaling, it {_judge(evaluation, scaled)}."
    for control in controls:
        yield f"Against {control.name}, it {_judge(evaluation, control.scores)}."
    accuracy, majority = BY_KEY["accuracy"], evaluation.majority or MethodScores()
    value, ends = evaluation.ensemble.minus(majority, "accuracy"), finite_ends(majority.ensemble_minus.get("accuracy"))
    if value is not None and ends is not None and judged(accuracy, ends) != "better":
        size = size_text(accuracy, value, ends)
        yield f"It is not clearly more accurate than always giving the majority answer ({size})."


def _calibration(evaluation: Evaluation) -> Iterator[str]:
    """Over- or under-confidence, and the ensemble's ECE against that of calibrated confidences on these rows."""
    ensemble = evaluation.ensemble
    gap, ends = ensemble.metrics["signed_gap"], finite_ends(ensemble.interval("signed_gap"))
    if gap is not None and ends is not None and not covers_zero(ends):
        side, where = ("under", "below") if gap < 0 else ("over", "above")
        distance = f"{abs(100 * gap):.1f} points {where} its accuracy"
        yield f"The ensemble is {side}-confident: its mean confidence is {distance}."
    reference, metric = ensemble.ece_if_calibrated, BY_KEY["ece"]
    value = ensemble.metrics["ece"]
    if value is None or reference is None or reference.interval is None or ensemble.interval("ece") is None:
        return
    low, high = reference.interval
    shown = f"{metric.number(low)} to {metric.number(high)} %"
    subject = f"Its ECE of {metric.number(value)} %"
    if value > high + ROUNDING:
        yield f"{subject} is more than a perfectly calibrated model would show on as many rows ({shown})."
    else:
        yield (
            f"{subject} is no evidence of miscalibration: a perfectly calibrated model would show {shown} on as many"
            " rows."
        )


def _title(evaluation: Evaluation) -> Text:
    sizes = f"examples: {evaluation.num_examples}, members: {evaluation.num_members}"
    return Text(f"{evaluation.task} {evaluation.split} ({sizes})")


def methods(evaluation: Evaluation) -> Iterator[Method]:
    """Each method that has metrics, in the order of the table."""
    others = sorted((name for name in evaluation.baselines if name != "mc_dropout"), key=_baseline_order)
    candidates = [
        ("majority", "majority", evaluation.majority),
        *((name, BASELINES.get(name, name), evaluation.baselines[name]) for name in others),
        ("member_mean", f"one LoRA (mean of {evaluation.num_members})", evaluation.member_mean),
        ("member_mean_scaled", "  + temperature", evaluation.member_mean_scaled),
        ("best_member", "one LoRA (best on val)", evaluation.best_member),
        ("best_member_scaled", "  + temperature", evaluation.best_member_scaled),
        ("mc_dropout", BASELINES["mc_dropout"], evaluation.baselines.get("mc_dropout")),
        ("mean_of_logits", "mean of logits", evaluation.mean_of_logits),
        ("ensemble_raw", "ensemble, raw", evaluation.ensemble_raw),
        ("ensemble", "ensemble", evaluation.ensemble),
        ("ensemble_scaled", "  + temperature", evaluation.ensemble_scaled),
    ]
    for key, name, scores in candidates:
        if scores is not None and scores.metrics:
            yield Method(key, name, scores)


def _baseline_order(name: str) -> tuple[int, str]:
    known = list(BASELINES)
    return (known.index(name) if name in known else len(known), name)


def _cell(metric: Metric, scores: MethodScores, width: int, style: str) -> Text:
    text = Text(f"{scores.number(metric):>{width}}", style=style)
    if (spread := scores.std.get(metric.key)) is not None:
        text.append(f" ±{metric.number(spread, signed=False)}", style="dim")
    if (ends := scores.interval(metric.key)) is not None:
        text.append(f"\n[{','.join(metric.number(end, absent='inf') for end in ends)}]", style="dim")
    if metric.key == "ece" and scores.ece_if_calibrated is not None:
        text.append(f"\n{reference_text(scores.ece_if_calibrated)}", style="dim")
    return text


def reference_text(reference: CalibratedReference, between: str = "-") -> str:
    """The ECE of calibrated confidences: (3.9: 1.8-6.4)."""
    ece, ends = BY_KEY["ece"], reference.interval
    spread = "" if ends is None else f": {between.join(ece.number(end) for end in ends)}"
    return f"({ece.number(reference.mean)}{spread})"


def shown_interval(key: str, intervals: Json) -> Ends:
    """The interval of a metric among those of an entry: see `MethodScores.interval`."""
    return MethodScores().with_intervals(intervals, {}).interval(key)


def has_distance(evaluation: Evaluation) -> bool:
    """Whether OOD rows were also compared with the training rows."""
    return any("distance" in scores.auroc for scores in (evaluation.ood or {}).values())


def _aurocs(shown: Sequence[str], aurocs: Numbers, std: Numbers) -> list[str]:
    cells = []
    for name in shown:
        value, spread = aurocs.get(name), std.get(name)
        cells.append("-" if value is None else f"{value:.3f}" + ("" if spread is None else f" ±{spread:.3f}"))
    return cells


def _confidences(confidences: Mapping[str, float]) -> str:
    return " / ".join(f"{100 * confidences[side]:.1f}" for side in ("in_dist", "ood"))


def _judge(evaluation: Evaluation, other: MethodScores) -> str:
    """A predicate ("is better in ... and shows no clear difference in ...") from the intervals of ensemble - other."""
    relations = {"better": "is better in", "worse": "is worse in", "unclear": "shows no clear difference in"}
    groups: dict[str, list[str]] = {word: [] for word in relations}
    undefined, too_few = [], []
    both = {*evaluation.ensemble.metrics} & {*other.metrics}
    for metric in (metric for metric in DECISIVE if metric.key in both or not metric.later):
        value = evaluation.ensemble.minus(other, metric.key)
        if value is not None and (ends := finite_ends(other.ensemble_minus.get(metric.key))) is not None:
            word = judged(metric, ends)
            size = f" ({size_text(metric, value, ends)})"
            groups[word].append(metric.name if word == "unclear" else metric.name + size)
        elif value is not None and other.ensemble_minus.get(metric.key) is None:
            too_few.append(metric.name)
        else:
            undefined.append(metric.name)
    parts = [f"{relations[word]} {listed(names)}" for word, names in groups.items() if names]
    if undefined:
        parts.append(f"cannot be compared in {listed(undefined)} (an answer got probability zero)")
    if too_few:
        parts.append(f"cannot be judged in {listed(too_few)} (too few right or wrong rows)")
    return listed(parts)


def listed(names: Sequence[str], last: str = " and ") -> str:
    """Names as in a sentence: a, b and c."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])}{last}{names[-1]}"
