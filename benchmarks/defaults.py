"""A recipe's ensemble against classifiers that cost less, on real sets: is the default good?

Each set is trained with `lorchestra train RECIPE --data.train FILE` and nothing else, and evaluated on its test rows
next to TF-IDF and frozen hidden states with logistic regression. For texts with labels, PEFT's classification head is
trained at several rates, and the best by validation is taken. All are scaled with what the validation rows fit.
Finished runs and predictions are not repeated, interrupted ones are resumed.

    python benchmarks/defaults.py --data-dir DIR                  about an hour per set on two cores
    python benchmarks/defaults.py --sets headlines --no-peft-head
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from bench.peft_head import PeftHead
from bench.real_sets import SETS, write_set
from bench.setting import hardware, log, processor
from bench.steps import Steps

from lorchestra.config.adapt import BaseConfig
from lorchestra.config.mappings import read_recipe
from lorchestra.config.run import RunConfig
from lorchestra.inference.pipeline import CPU_TOKEN_BUDGET
from lorchestra.metrics.calibrator import pooled
from lorchestra.metrics.intervals import Ends, difference_intervals, judge
from lorchestra.metrics.predictive import FloatArray, apply_temperature, fit_temperature, mixture_log_probs
from lorchestra.metrics.scores import all_metrics, bootstrap, score_rows
from lorchestra.models.loading import load_base
from lorchestra.models.number_format import automatic_dtype, with_dtype
from lorchestra.models.patching import parse_layers
from lorchestra.runs.ensemble import Ensemble, load_run
from lorchestra.runs.evaluate import evaluate_run
from lorchestra.runs.train import train_run
from lorchestra.store.atomic import atomic_write_text
from lorchestra.store.run import Run
from lorchestra.types import Example

BESIDE = Path(__file__).parents[2] / "shared" / "data"
RESULTS = Path(__file__).parent / "results"
RECIPES = Path(__file__).parents[1] / "recipes"
SHOWN = ("accuracy", "nll", "aurc")
RESAMPLES = 1000
PEFT_HEADS = {"last third": (5e-4, 1e-3, 2e-3), "all layers": (5e-4,)}
"""Rates of PEFT's head by adapted layers."""
ENSEMBLE, ONE = "ensemble", "one LoRA + T"


def ensemble_run(name: str, files: dict[str, Path], args: argparse.Namespace) -> Run:
    """The finished, evaluated run of the recipe on a set."""
    config = read_recipe(args.recipe, RunConfig)
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, **{split: str(path) for split, path in files.items()}),
        evaluate=dataclasses.replace(config.evaluate, few_shot=0, resamples=0, mc_dropout=False),
    )
    out = args.runs / f"{name}-{args.recipe.stem}"
    run = train_run(config, out, if_exists="resume", callbacks=[Steps(name)]).run
    if not run.metrics.is_file():
        log(f"{name}: evaluating")
        evaluate_run(load_run(run.root))
    return run


def of_run(run: Run, trained: Ensemble) -> tuple[dict[str, FloatArray], np.ndarray, tuple[str, ...]]:
    """Log-probabilities `[E, C]` of the ensemble, one LoRA and the baselines, with labels and texts of the rows."""
    task = run.read_ensemble().task
    members = run.load_predictions(task, "test", answered=True)
    record = run.read_calibration(run.read_ensemble())
    ways = {ENSEMBLE: pooled(members.log_probs_MEC, None if record is None else record.calibration)}
    validation = trained.pipeline.predict_members(trained.read(run.read_config().data.val, require_answer=True), "val")
    temperature = fit_temperature(validation.log_probs_MEC[0], validation.labels)
    ways[ONE] = apply_temperature(members.log_probs_MEC[0], temperature)
    for method, title in (("tfidf", "TF-IDF + LR + T"), ("frozen", "frozen states + LR + T")):
        if run.prediction(task, "test", method).is_file():
            ways[title] = mixture_log_probs(run.load_predictions(task, "test", method).log_probs_MEC)
    return ways, members.labels, members.texts


def peft_head(name: str, trained: Ensemble, run: Run, args: argparse.Namespace) -> FloatArray | None:
    """Log-probabilities of the test rows of PEFT's head at its best rate; None for questions with choices."""
    labels = trained.labels
    saved = args.runs / f"{name}-peft_head.npz"
    if labels is None:
        return None
    if saved.is_file():
        return np.asarray(np.load(saved)["log_probs"])
    data = run.read_config().data
    train, val, test = (trained.read(file, require_answer=True) for file in (data.train, data.val, data.test))
    plain = BaseConfig(name="smollm2-135m")
    base = load_base(with_dtype(plain, automatic_dtype(plain, CPU_TOKEN_BUDGET)[0]))
    num_layers = len(base.model.model.layers)
    scored: dict[str, tuple[float, FloatArray]] = {}
    for layers, rates in PEFT_HEADS.items():
        chosen = None if layers == "all layers" else parse_layers(f"last:{num_layers // 3}", num_layers)
        head = PeftHead(base.model, base.tokenizer, len(labels), chosen)
        for rate in rates:
            texts = [row.question for row in test]
            scored[f"{layers}, {rate:g}"] = head.fit(_rows(train), _rows(val), texts, rate)
    best = min(scored, key=lambda key: scored[key][0])
    log(f"{name}: PEFT's head is best with {best}")
    np.savez(saved, log_probs=scored[best][1], best=best)
    return scored[best][1]


def _rows(examples: Sequence[Example]) -> tuple[list[str], np.ndarray]:
    return [row.question for row in examples], np.array([row.answer for row in examples], dtype=np.int64)


def lines_of(name: str, run: Run, ways: dict[str, FloatArray], labels: np.ndarray) -> list[str]:
    """The table's lines of one set: every way, and the ensemble minus one LoRA and the best of the others by NLL."""
    points = {way: all_metrics(log_probs, labels) for way, log_probs in ways.items()}
    scores = {way: score_rows(log_probs, labels) for way, log_probs in ways.items()}
    draws = bootstrap(scores, RESAMPLES, 0)
    record, config = run.read_search(), run.read_config()
    seconds = (run.read_ensemble().cost or {}).get("train_s") or 0.0
    spent = seconds + (0.0 if record is None else record.seconds)
    how = f"{config.data.scoring}, lr {config.train.lr:g}, {config.train.epochs} epochs, {spent:,.0f} s"
    lines = []
    for way, values in points.items():
        cells = [f"{values[metric]:.3f}" for metric in SHOWN]
        lines.append(_cells(name, way, *cells, how if way == ENSEMBLE else ""))
    others = [way for way in ways if way not in (ENSEMBLE, ONE)]
    best = min(others, key=lambda way: points[way]["nll"], default=ONE)
    for other in dict.fromkeys((ONE, best)):
        ends = difference_intervals(judge(scores, draws, ENSEMBLE), judge(scores, draws, other))
        differences = [_difference(points[ENSEMBLE][m] - points[other][m], ends.get(m)) for m in SHOWN]
        lines.append(_cells(name, f"ensemble minus {other}", *differences, ""))
    return lines


def _difference(value: float, ends: Ends) -> str:
    return f"{value:+.3f}" + ("" if ends is None else f" ({ends[0]:+.3f} to {ends[1]:+.3f})")


def _cells(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def main(arguments: Sequence[str] | None = None) -> str:
    """Train, evaluate and compare; prints and writes the table, and returns it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ["headlines", *SETS]
    parser.add_argument("--sets", default=",".join(names), help=f"separated by commas, of {', '.join(names)}")
    parser.add_argument("--data-dir", type=Path, default=BESIDE)
    parser.add_argument("--recipe", type=Path, default=RECIPES / "quick.yaml")
    parser.add_argument("--no-peft-head", action="store_true", help="leave out PEFT's classification head")
    parser.add_argument("--runs", type=Path, default=Path("runs/defaults"), help="directory of rows and runs")
    parser.add_argument("--out", type=Path, help="another file for the table")
    args = parser.parse_args(arguments)
    lines: list[str] = []
    for name in args.sets.split(","):
        run = ensemble_run(name, write_set(name, args.data_dir, args.runs / "rows"), args)
        trained = load_run(run.root)
        ways, labels, _ = of_run(run, trained)
        head = None if args.no_peft_head else peft_head(name, trained, run, args)
        if head is not None:
            ways["PEFT head + T"] = head
        lines += lines_of(name, run, ways, labels)
        print("\n".join(lines), flush=True)
    sizes = "; ".join(f"{name}: {real.what}, {'/'.join(map(str, real.sizes))}" for name, real in SETS.items())
    text = "\n".join(
        [
            f"# A recipe's ensemble against classifiers that cost less: {processor()}",
            "",
            f"`lorchestra train {args.recipe.name} --data.train FILE`, {torch.get_num_threads()} threads, one seed."
            f" Rows are training/validation/test ({sizes}; headlines: satire or news, 400/100/500). Metrics on"
            " test rows; in brackets 95 % intervals of the differences, paired by row. Seconds are those of the"
            " training with its search, and depend on the machine's other load."
            f" {datetime.date.today().isoformat()}.",
            "",
            _cells("set", "way", *SHOWN, "trained"),
            "|" + "---|" * (len(SHOWN) + 3),
            *lines,
        ]
    )
    month = datetime.date.today().strftime("%Y-%m")
    atomic_write_text(args.out or RESULTS / f"defaults_{hardware()}_{month}.md", text + "\n")
    return text


if __name__ == "__main__":
    main()
