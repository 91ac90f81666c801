"""Methods at equal budget: the directory that `lorchestra compare` wrote, and its section and figure on the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lorchestra.config.mappings import differences, from_mapping, to_mapping
from lorchestra.config.run import RunConfig
from lorchestra.errors import CheckpointError, DataError
from lorchestra.metrics.evaluation import ensemble_minus
from lorchestra.metrics.question_scores import calibration_of
from lorchestra.metrics.result import Evaluation, finite_ends
from lorchestra.metrics.table import DECISIONS, ON_PAGE, SUMMARY, WITH_DIRECTION, Metric
from lorchestra.report.differences import Method
from lorchestra.report.html import tables
from lorchestra.report.html.figures import padded_range
from lorchestra.report.html.glyphs import rows_with_glyphs
from lorchestra.report.html.source import ReportRun, accuracy_differs, same_rows
from lorchestra.report.html.svg import NO_VALUE, Axis, Figure, Key, Panel, percent, plain, typeset
from lorchestra.report.table import listed, verdict
from lorchestra.store.evaluations import check_entry
from lorchestra.store.predictions import load_predictions, tensors_path
from lorchestra.store.safe_paths import inside
from lorchestra.store.schema import Each, Number, check_shape, read_json
from lorchestra.types import Json, Predictions

ENSEMBLE = "lora_ensemble"

NAMES = {
    "zero_shot": "base, zero-shot",
    "few_shot": "base, few-shot",
    "tfidf": "TF-IDF, logistic regression",
    "frozen": "frozen base, logistic regression",
    "one_lora": "one LoRA",
    ENSEMBLE: "LoRA ensemble",
    "mc_dropout": "MC dropout",
    "high_rank": "one LoRA of M times the rank",
    "long_training": "one LoRA trained M times as long",
    "soup": "soup, the members' weight average",
    "snapshot": "snapshots of one LoRA",
    "last_layer": "members that share all but the last layer",
    "swag": "SWAG",
    "laplace": "Laplace",
    "blob": "BLoB, variational LoRA",
    "batch_ensemble": "BatchEnsemble",
}
"""Names of methods for people, in the order of the page; others follow by name."""

_WRAPPERS = {"temperature": "temperature scaling", "contextual": "contextual calibration"}

CONTROLS = ("one_lora+temperature", "high_rank", "long_training")
"""What the verdict compares the ensemble with: one LoRA with calibration, and with as much compute or parameters."""

_FREE = ("base.threads", "data.dir", "data.train", "data.val", "data.test", "adapt.trunk_memory_gb")
_FREE_TRAIN = ("train.token_budget", "train.gradient_checkpointing", "train.checkpoint_every_s", "train.calibration")
"""Settings that change no number of a method except by rounding; rows are compared by their digests."""

_COST = ("fit_base_passes", "predict_base_passes", "tokens", "fit_s", "peak_bytes", "parameters")
_RESULT: Json = {
    "name": str,
    "summary": str,
    "cost": dict.fromkeys(_COST, Number()),
    "chosen": Each((Number(), None)),
}
_SPLITS = {"train": {"digest": str}}


@dataclass(frozen=True)
class MethodResult:
    """One finished method."""

    key: str
    """Its name in the registry."""
    name: str
    """Its name for people."""
    summary: str
    cost: Mapping[str, float]
    chosen: Mapping[str, float]
    entry: Evaluation
    predictions: Predictions
    notes: tuple[str, ...] = ()
    """What a reader must know about its fit."""


@dataclass(frozen=True)
class MethodComparison:
    """Finished methods on the same rows, by key; `left_out` has the reasons of the others."""

    root: Path
    config: RunConfig
    train_digest: str
    results: dict[str, MethodResult]
    left_out: dict[str, str]

    @property
    def first(self) -> MethodResult:
        """One of them: task, split and rows are the same in all."""
        return next(iter(self.results.values()))

    def controls(self, entry: Evaluation, predictions: Predictions) -> list[Method]:
        """The controls with the paired intervals of an ensemble minus each."""
        return paired(entry, predictions, [self.results[key] for key in CONTROLS if key in self.results])


def paired(entry: Evaluation, predictions: Predictions, results: Sequence[MethodResult]) -> list[Method]:
    """Methods with the intervals of an ensemble minus each, resampled as in the ensemble's evaluation."""
    intervals = ensemble_minus(
        predictions,
        {result.key: result.predictions for result in results},
        calibration=calibration_of(entry, predictions),
        resamples=entry.resamples,
        seed=entry.seed,
    )
    return [
        Method(result.key, result.name, replace(result.entry.ensemble, ensemble_minus=intervals[result.key]))
        for result in results
    ]


def is_comparison(root: Path) -> bool:
    """Whether a directory holds compared methods."""
    return inside(root, "compare.json").is_file()


def read_comparison(root: str | Path) -> MethodComparison:
    """Read the finished methods.

    Raises:
        CheckpointError: no such directory, nothing finished in it, or damaged files.
    """
    root = Path(root)
    if not is_comparison(root):
        raise CheckpointError(
            f"{root}: not a directory of compared methods (no compare.json); make one by: lorchestra compare --out DIR"
        )
    record_path, splits_path = inside(root, "compare.json"), inside(root, "splits.json")
    record = read_json(record_path)
    check_shape(record, {"resolved": dict}, record_path)
    splits = read_json(splits_path)
    check_shape(splits, _SPLITS, splits_path)
    names = [path.parent.name for path in inside(root, "methods").glob("[!.]*/result.json")]
    results = [_read_result(inside(root, "methods", name)) for name in names]
    if not results:
        raise CheckpointError(_nothing_finished(root))
    results.sort(key=lambda result: _order(result.key))
    for result in results[1:]:
        if not same_rows(result.predictions, results[0].predictions):
            raise CheckpointError(
                f"{root}: {result.key} was evaluated on other rows than {results[0].key}; remove its directory and"
                " compare again"
            )
    return MethodComparison(
        root=root,
        config=from_mapping(RunConfig, record["resolved"], str(record_path), saved=True),
        train_digest=splits["train"]["digest"],
        results={result.key: result for result in results},
        left_out=_left_out(root),
    )


def _left_out(root: Path) -> dict[str, str]:
    path = inside(root, "left_out.json")
    return {str(key): str(reason) for key, reason in read_json(path).items()} if path.exists() else {}


def _nothing_finished(root: Path) -> str:
    reasons = _left_out(root)
    if not reasons:
        return f"{root}: no method is finished in it; the same lorchestra compare command resumes it"
    listing = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    return f"{root}: no method is finished in it, all were left out ({listing})"


def check_belongs(run: ReportRun, comparison: MethodComparison) -> None:
    """Refuse methods of another task, split or rows than a run's.

    Raises:
        DataError: names both and what differs.
    """
    theirs, mine = comparison.first.entry, run.entry
    for what, their, our in (("task", theirs.task, mine.task), ("split", theirs.split, mine.split)):
        if their != our:
            raise DataError(
                f"{comparison.root}: its methods are of the {what} {their!r} and {run.run.root} of"
                f" {our!r}: numbers of different rows do not belong in one table; make a page for each"
            )
    if not same_rows(comparison.first.predictions, run.predictions):
        raise DataError(
            f"{comparison.root}: its methods were evaluated on other rows of {theirs.task} {theirs.split} than"
            f" {run.run.root}; compare and train with the same files and seed, or make a page for each"
        )


def foreign_settings(run: ReportRun, comparison: MethodComparison) -> list[str]:
    """Settings in which a run and the methods differ so that their budgets are not equal."""
    free = {*_FREE, *_FREE_TRAIN}
    fields = [
        field
        for field in differences(run.config, comparison.config)
        if field not in free and not field.startswith("evaluate.")
    ]
    if run.run.splits.exists():
        splits = read_json(run.run.splits)
        check_shape(splits, _SPLITS, run.run.splits)
        if splits["train"]["digest"] != comparison.train_digest:
            fields.append("the training rows")
    return fields


def method_name(key: str) -> str:
    """A method's name for people, with its settings and the wrappers around it."""
    first, *wrappers = key.split("+")
    name = _with_settings(first, NAMES)
    return f"{name} with {listed([_with_settings(wrapper, _WRAPPERS) for wrapper in wrappers])}" if wrappers else name


def _with_settings(part: str, names: Mapping[str, str]) -> str:
    first, *settings = part.split(":")
    name = names.get(first, first)
    return f"{name} ({', '.join(settings)})" if settings else name


def method_of(key: str) -> str:
    """The method below wrappers, without its settings."""
    return key.split("+")[0].split(":")[0]


def _order(key: str) -> tuple[int, str]:
    known, first = list(NAMES), method_of(key)
    return (known.index(first) if first in known else len(known), key)


def _read_result(folder: Path) -> MethodResult:
    path = inside(folder, "result.json")
    result = read_json(path)
    check_shape(result, _RESULT, path)
    check_entry(result.get("entry"), path, "entry", "remove the method's directory")
    entry = Evaluation.from_dict(result["entry"])
    saved = tensors_path(inside(folder, "predictions"), f"{entry.task}.{entry.split}")
    predictions = load_predictions(saved, answered=True)
    if (differs := accuracy_differs(entry, predictions)) is not None:
        raise CheckpointError(f"{path}: {differs}; remove the method's directory and compare again")
    key = result["name"]
    return MethodResult(
        key,
        method_name(key),
        result["summary"],
        result["cost"],
        result["chosen"],
        entry,
        predictions,
        tuple(map(str, result.get("notes") or ())),
    )


COST_COLUMNS = ("Base passes, fit", "Base passes, one answer", "Tokens", "Seconds", "Peak", "Parameters")

_COLORS = {"zero_shot": "base", "few_shot": "base", "one_lora": "one", ENSEMBLE: "ens"}
_CONTROL_COLOR, _OTHER_COLOR = "purple", "orange"
_AXES = (("fit_base_passes", "base passes of the fit"), ("predict_base_passes", "base passes of one answer"))
_DODGE, _GROUP = 13.0, 90.0
"""Distance of points of equal passes, and the largest width of a group of them, in user units."""


def methods_context(comparison: MethodComparison, foreign: dict[str, list[str]], alone: bool) -> Json:
    """Everything the templates show of compared methods.

    Args:
        comparison: the methods.
        foreign: settings in which the runs of the page differ from the methods, by the run's name.
        alone: whether the page shows nothing else.
    """
    results = list(comparison.results.values())
    ensemble = comparison.results.get(ENSEMBLE)
    tone, sentence, words = "none", "It cannot be judged: lora_ensemble is not among the methods.", ""
    if ensemble is not None:
        controls = comparison.controls(ensemble.entry, ensemble.predictions)
        tone, sentence = tables.headline(ensemble.entry, controls)
        words = typeset(verdict(ensemble.entry, controls))
    entry = comparison.first.entry
    return {
        "root": str(comparison.root),
        "alone": alone,
        "tone": tone,
        "headline": sentence,
        "verdict": words,
        "missing_controls": [key for key in CONTROLS if key not in comparison.results],
        "entry": entry,
        "base": comparison.config.base.name,
        "members": comparison.config.adapt.members,
        "level": f"{100 * entry.level:g} %",
        "metric_columns": ON_PAGE,
        "decision_columns": DECISIONS,
        "cost_columns": COST_COLUMNS,
        "rows": [_row(number, result) for number, result in enumerate(results, start=1)],
        "difference_columns": WITH_DIRECTION,
        "differences": [] if ensemble is None else _differences(ensemble, results, alone),
        "left_out": comparison.left_out,
        "notes": [(result.name, note) for result in results for note in result.notes],
        "foreign": {name: fields for name, fields in foreign.items() if fields},
        "figure": budget_figure(results),
        "config": to_mapping(comparison.config),
    }


def _row(number: int, result: MethodResult) -> Json:
    cost = result.cost
    return {
        "number": number,
        "key": result.key,
        "name": result.name,
        "summary": result.summary,
        "passes": result.entry.num_members,
        "chosen": ", ".join(f"{name} {plain(float(f'{value:.3g}'))}" for name, value in result.chosen.items()),
        "metrics": [tables.metric_cell(metric, result.entry.ensemble) for metric in ON_PAGE],
        "decisions": [tables.metric_cell(metric, result.entry.ensemble) for metric in DECISIONS],
        "cost": [
            f"{cost['fit_base_passes']:.2f}",
            f"{cost['predict_base_passes']:.2f}",
            tables.count(cost["tokens"]),
            f"{cost['fit_s']:.0f} s",
            f"{cost['peak_bytes'] / 2**30:.2f} GiB",
            tables.count(cost["parameters"]),
        ],
    }


def _differences(ensemble: MethodResult, results: Sequence[MethodResult], with_members: bool) -> list[Json]:
    """The ensemble minus every other method, with glyphs on one scale per column: that of the trained methods.

    `with_members` starts with the references that are made of the ensemble's members.
    """
    members = tables.references(ensemble.entry) if with_members else []
    rows = [row for row in members if row.key in tables.MEMBERS]
    others = [result for result in results if result.key != ensemble.key]
    for method in paired(ensemble.entry, ensemble.predictions, others):
        cells = (tables.difference(metric, ensemble.entry.ensemble, method.scores) for metric in WITH_DIRECTION)
        rows.append(tables.Reference(method.key, method.name, tuple(cells)))
    return rows_with_glyphs(rows, lambda row: not _is_base(row.key))


def budget_figure(results: Sequence[MethodResult]) -> Figure:
    """The metrics of `SUMMARY` against the base passes of the fit and of one answer, one numbered point per method."""
    panels = [_panel(results, cost, metric) for cost in _AXES for metric in SUMMARY if _in_all(results, metric)]
    keys = [
        Key(f"{number} {result.name}", _color(result.key), "", _marker(result), line=False)
        for number, result in enumerate(results, start=1)
    ]
    return Figure(
        "What does it cost?",
        [panel.svg() for panel in panels],
        "Upper row: forward work of the fit, in passes of the whole base over the training rows; lower row: of one"
        " answer. Lines: 95 % intervals. Circles answer by several members, draws or passes, squares by one, rings are"
        " calibrated. Points of equal passes are side by side around the dotted line at their true position. The axes"
        " are those of the trained methods; a base outside their range is drawn on the edge.",
        keys,
        "three",
    )


def _in_all(results: Sequence[MethodResult], metric: Metric) -> bool:
    """Whether all methods have a metric; results of earlier versions lack some."""
    return all(metric.key in result.entry.ensemble.metrics for result in results)


def _panel(results: Sequence[MethodResult], cost: tuple[str, str], metric: Metric) -> Panel:
    key = metric.key
    label, text = (metric.name, percent) if metric.unit == "%" else (metric.axis_label, plain)
    xs = [float(result.cost[cost[0]]) for result in results]
    scale = [result for result in results if not _is_base(result.key)] or list(results)
    shown = [result.entry.ensemble.metrics[key] for result in scale]
    shown += [end for result in scale for end in finite_ends(result.entry.ensemble.interval(key)) or ()]
    low, high = padded_range(shown, 1.0 if text is percent else float("inf"))
    right = max(xs) or 1.0
    panel = Panel(
        Axis(-0.06 * right, 1.12 * right, cost[1]),
        Axis(low, high, label, text, 6),
        f"{label} against {cost[1]}, one point per method",
        width=380,
        height=300,
        left=62,
    )
    positions, centers = _side_by_side(panel, xs)
    for center in centers:
        panel.line([center, center], [low, high], "muted", "dot")
    ys = [result.entry.ensemble.metrics[key] for result in results]
    for result, x, y in zip(results, positions, ys, strict=True):
        ends = finite_ends(result.entry.ensemble.interval(key))
        if ends is not None and y is not None:
            inside = [min(max(end, low), high) for end in ends]
            if inside[0] < inside[1]:
                panel.line([x, x], inside, _color(result.key), "thin")
    taken = [(panel.px(x), panel.py(_clamped(y, low, high))) for x, y in zip(positions, ys, strict=True)]
    for number, (result, x, y) in enumerate(zip(results, positions, ys, strict=True), start=1):
        value = _clamped(y, low, high)
        tip = f"{result.name}: {_value(metric, y)}, {plain(result.cost[cost[0]])} {cost[1]}"
        panel.point(x, value, _color(result.key), _marker(result), tip, 4)
        _label(panel, x, value, str(number), _color(result.key), taken)
    return panel


def _side_by_side(panel: Panel, xs: Sequence[float]) -> tuple[list[float], list[float]]:
    """The values, with those of one spot spread around it in order; and the spots with several."""
    unit = (panel.x.high - panel.x.low) / (panel.width - panel.left - panel.right)
    groups: dict[int, list[int]] = {}
    for index, x in enumerate(xs):
        groups.setdefault(round(panel.px(x) / _DODGE), []).append(index)
    positions, centers = list(xs), []
    for group in groups.values():
        middle = (len(group) - 1) / 2
        step = min(_DODGE, _GROUP / len(group))
        # within the frame: a group at its left or right end grows inwards
        half = middle * step + 4
        center = sum(panel.px(xs[index]) for index in group) / len(group)
        if len(group) > 1:
            centers.append(panel.x.low + (center - panel.left) * unit)
        inside = min(max(center, panel.left + half), panel.width - panel.right - half)
        for rank, index in enumerate(group):
            positions[index] = panel.x.low + (inside + (rank - middle) * step - panel.left) * unit
    return positions, centers


def _label(panel: Panel, x: float, y: float, text: str, color: str, taken: list[tuple[float, float]]) -> None:
    """A number next to its point, away from other numbers and points if possible."""
    px, py = panel.px(x), panel.py(y)
    candidates = [(dx, dy) for dy in (0, -13, 13, -24, 24) for dx in (10, -10, 0) if dx or dy]

    def free(offset: tuple[int, int]) -> bool:
        cx, cy = px + offset[0], py + offset[1]
        inside = panel.left < cx < panel.width and panel.top - 6 < cy < panel.height - panel.bottom
        return inside and all(abs(cx - tx) >= 9 or abs(cy - ty) >= 10 for tx, ty in taken)

    dx, dy = next((offset for offset in candidates if free(offset)), candidates[0])
    taken.append((px + dx, py + dy))
    panel.text(x, y, text, color, "middle", dx, dy + 4)


def _clamped(value: float | None, low: float, high: float) -> float:
    return high if value is None else min(max(value, low), high)


def _value(metric: Metric, value: float | None) -> str:
    shown = NO_VALUE if value is None and not metric.infinite else tables.number(metric, value)
    return f"{metric.heading} {shown}"


def _is_base(key: str) -> bool:
    return method_of(key) in ("zero_shot", "few_shot")


def _color(key: str) -> str:
    first = method_of(key)
    return _CONTROL_COLOR if first in CONTROLS else _COLORS.get(first, _OTHER_COLOR)


def _marker(result: MethodResult) -> str:
    if "+" in result.key:
        return "ring"
    return "circle" if result.entry.num_members > 1 else "square"
