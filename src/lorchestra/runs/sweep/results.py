"""The results of a sweep as one table: settings, metrics and cost of every point."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from lorchestra.metrics.table import ON_PAGE
from lorchestra.runs.sweep.points import Point
from lorchestra.store.atomic import atomic_write_json, atomic_write_text
from lorchestra.store.run import Run
from lorchestra.store.safe_paths import inside
from lorchestra.types import Json

METRICS = tuple(metric.key for metric in sorted(ON_PAGE, key=lambda metric: not metric.direction))


def collect_results(root: Path, points: Sequence[Point], failed: Sequence[str]) -> list[Json]:
    """One dictionary per point, in order: `name`, `settings`, `state` (finished, failed or waiting), and numbers.

    Finished points have `cost` and `val_nll` (the mean over members), evaluated ones also `ensemble` and `member_mean`.
    """
    results = []
    for point in points:
        run = Run(inside(root, "runs", point.name))
        state = "finished" if run.ensemble.exists() else "failed" if point.name in failed else "waiting"
        result: Json = {"name": point.name, "settings": dict(point.settings), "state": state}
        if state == "finished":
            record = run.read_ensemble()
            nlls = [member.val_nll for member in record.members if member.val_nll is not None]
            result |= {"val_nll": sum(nlls) / len(nlls) if nlls else None, "cost": record.cost or {}}
            entries, _ = run.read_evaluations()
            if entries:
                result |= {
                    name: {metric: entries[-1][name].get(metric) for metric in METRICS}
                    for name in ("ensemble", "member_mean")
                }
        results.append(result)
    return results


def write_results(root: Path, points: Sequence[Point], failed: Sequence[str]) -> None:
    """Write `results.json` and `results.csv`."""
    results = collect_results(root, points, failed)
    atomic_write_json(inside(root, "results.json"), {"points": results})
    settings = list(dict.fromkeys(field for point in points for field in point.settings))
    columns = [f"{name}.{metric}" for name in ("ensemble", "member_mean") for metric in METRICS]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["point", *settings, "state", "val_nll", *columns, "train_s", "tokens", "base_passes"])
    for one in results:
        cost = one.get("cost", {})
        row = [one["name"], *(one["settings"].get(field) for field in settings), one["state"], one.get("val_nll")]
        row += [one.get(name, {}).get(metric) for name in ("ensemble", "member_mean") for metric in METRICS]
        writer.writerow([*row, *(cost.get(name) for name in ("train_s", "tokens", "base_passes"))])
    atomic_write_text(inside(root, "results.csv"), text.getvalue())
