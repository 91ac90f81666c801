"""Quality of adapters on the last third of the layers against adapters on all layers, on three real tasks.

The same recipe trains both, with the same seed and rows: `adapt.layers` is `all` in one run and `last:K` in the other.
Both predict the same test rows; differences are paired. Finished runs and evaluations are not repeated, interrupted
ones are resumed.

    python benchmarks/last_third.py --data-dir DIR                    about 45 minutes on two cores
    python benchmarks/last_third.py --tasks sst2 --rows 40 --test-rows 40 --epochs 1
"""

from __future__ import annotations

import argparse
import datetime
import json
from collections.abc import Sequence
from pathlib import Path

from bench.setting import hardware, log, processor
from bench.steps import Steps

from lorchestra.config.adapt import AdaptConfig, BaseConfig
from lorchestra.config.data import DataConfig, PromptConfig
from lorchestra.config.run import EvaluateConfig, RunConfig, TrainConfig
from lorchestra.data.encode import encode
from lorchestra.data.prompts import PromptTemplate
from lorchestra.data.tasks.load import load_task
from lorchestra.metrics.intervals import Ends, difference_intervals, judge
from lorchestra.metrics.predictive import FloatArray, mixture_log_probs
from lorchestra.metrics.scores import all_metrics, bootstrap, score_rows
from lorchestra.models.loading import load_tokenizer
from lorchestra.nn.seeding import permutation
from lorchestra.runs.ensemble import load_run
from lorchestra.runs.evaluate import evaluate_run
from lorchestra.runs.train import train_run
from lorchestra.store.atomic import atomic_write_text
from lorchestra.store.predictions import load_predictions
from lorchestra.store.run import Run
from lorchestra.types import Example, Predictions

TASKS = ("sst2", "ag_news_10k", "arc_easy")
BESIDE = Path(__file__).parents[2] / "shared" / "data"
RESULTS = Path(__file__).parent / "results"
SHOWN = ("accuracy", "nll", "ece")
RESAMPLES = 1000


def write_rows(task: str, args: argparse.Namespace, folder: Path) -> DataConfig:
    """Draw short rows of a task with a fixed seed, and write the files of both runs."""
    loaded = load_task(task, args.data_dir)
    tokenizer = load_tokenizer(BaseConfig(name=args.base))
    template = PromptTemplate(kind=loaded.spec.template)
    counts = {"train": args.rows, "val": max(10, args.rows // 5), "test": args.test_rows}
    paths = {}
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in counts.items():
        rows = loaded.task.splits[split]
        drawn = [rows[e] for e in permutation(len(rows), 0, "last_third", task, split)[: 20 * count]]
        kept = encode(drawn, template, tokenizer, scoring="text", max_length=args.max_tokens, too_long="drop").kept
        # the task is named after the train file, up to the first dot
        path = folder / f"{task}.{split}.jsonl"
        atomic_write_text(path, "".join(_line(drawn[index]) for index in kept[:count]))
        paths[split] = str(path)
    prompt = PromptConfig(template=template.text("text"))
    return DataConfig(**paths, scoring="text", prompt=prompt)  # type: ignore[arg-type]


def _line(row: Example) -> str:
    values = {"id": row.id, "question": row.question, "choices": row.choices, "answer": row.answer}
    return json.dumps(values, ensure_ascii=False) + "\n"


def train_and_predict(task: str, layers: str, data: DataConfig, args: argparse.Namespace) -> Run:
    """A finished, evaluated run of the recipe on these layers; skips what is finished."""
    config = RunConfig(
        base=BaseConfig(name=args.base, dtype="float32"),
        adapt=AdaptConfig(members=args.members, layers=layers),
        data=data,
        train=TrainConfig(epochs=args.epochs),
        evaluate=EvaluateConfig(few_shot=0, resamples=0),
    )
    name = f"{task}, layers {layers}"
    out = args.runs / f"{task}-{layers.replace(':', '-')}"

    run = train_run(config, out, if_exists="resume", callbacks=[Steps(name, every=10)]).run
    if not run.metrics.is_file():
        log(f"{name}: evaluating")
        evaluate_run(load_run(run.root))
    return run


def saved_predictions(run: Run, task: str, which: str = "") -> Predictions:
    """Saved predictions of the test rows: the members', or a baseline's (`which`)."""
    return load_predictions(run.predictions / f"{task}.test{which}.safetensors")


def compare(task: str, runs: dict[str, Run]) -> list[str]:
    """The table's lines for one task: base, all layers, last third, and their paired difference."""
    predictions = {layers: saved_predictions(run, task) for layers, run in runs.items()}
    base = saved_predictions(runs["all"], task, ".base_zero_shot")
    whole, third = predictions.values()
    if not whole.ids == third.ids == base.ids:
        raise SystemExit(f"{task}: the runs were evaluated on different rows; delete them, and train again")
    mixtures: dict[str, FloatArray] = {"base, zero-shot": mixture_log_probs(base.log_probs_MEC)}
    mixtures |= {layers: mixture_log_probs(saved.log_probs_MEC) for layers, saved in predictions.items()}
    points = {name: all_metrics(mixture, whole.labels) for name, mixture in mixtures.items()}
    scores = {name: score_rows(mixture, whole.labels) for name, mixture in mixtures.items()}
    draws = bootstrap(scores, RESAMPLES, 0)
    lines = []
    for name, values in points.items():
        cost = json.loads(runs[name].ensemble.read_text(encoding="utf-8"))["cost"] if name in runs else None
        seconds = "" if cost is None else f"{cost['train_s']:,.0f}"
        lines.append(_cells(task, name, *(f"{values[metric]:.3f}" for metric in SHOWN), seconds))
    first, second = runs
    ends = difference_intervals(judge(scores, draws, second), judge(scores, draws, first))
    differences = [_difference(points[second][m] - points[first][m], ends.get(m)) for m in SHOWN]
    lines.append(_cells(task, f"{second} minus {first}", *differences, ""))
    return lines


def _difference(value: float, ends: Ends) -> str:
    """Second minus first, with the paired interval if there is one."""
    return f"{value:+.3f}" + ("" if ends is None else f" ({ends[0]:+.3f} to {ends[1]:+.3f})")


def _cells(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def report(args: argparse.Namespace, lines: Sequence[str], num_layers: int) -> str:
    """The table and its conditions."""
    train = TrainConfig()
    head = [
        f"# All layers against the last third: {processor()}",
        "",
        f"{Path(args.base).name}, {num_layers} layers, {args.members} members, r = 8 on q_proj and v_proj,"
        f" lr {train.lr:g}, {train.batch_size} rows per step, {args.epochs} epochs, the same for both and tuned"
        f" for neither; one seed; {args.rows} training, {max(10, args.rows // 5)} validation and at most"
        f" {args.test_rows} test rows of at most {args.max_tokens} tokens per choice, scored by"
        " text. Metrics of the ensemble; in brackets 95 % intervals of the differences, paired by test row."
        f" Training seconds depend on the machine's other load. {datetime.date.today().isoformat()}.",
        "",
        _cells("task", "layers", *(metric.upper() if metric != "accuracy" else metric for metric in SHOWN), "train, s"),
        "|" + "---|" * (len(SHOWN) + 3),
    ]
    return "\n".join([*head, *lines]) + "\n"


def main(arguments: Sequence[str] | None = None) -> str:
    """Train, evaluate and compare; prints and writes the table, and returns it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default=",".join(TASKS), help="named tasks, separated by commas")
    parser.add_argument("--data-dir", default=str(BESIDE) if BESIDE.is_dir() else None, help="as lorchestra's data.dir")
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--rows", type=int, default=240, help="training rows; a fifth as many for validation")
    parser.add_argument("--test-rows", type=int, default=500)
    parser.add_argument("--max-tokens", type=int, default=60, help="longest row")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--members", type=int, default=5)
    parser.add_argument("--runs", type=Path, default=Path("runs/last_third"), help="directory of rows and runs")
    parser.add_argument("--out", type=Path, help="another file for the table")
    args = parser.parse_args(arguments)
    lines, num_layers = [], 0
    for task in args.tasks.split(","):
        data = write_rows(task, args, args.runs / "rows")
        runs = {"all": train_and_predict(task, "all", data, args)}
        num_layers = load_run(runs["all"].root).pipeline.model.num_layers
        third = f"last:{max(1, num_layers // 3)}"
        runs[third] = train_and_predict(task, third, data, args)
        lines += compare(task, runs)
        print("\n".join(lines[-4:]), flush=True)
    text = report(args, lines, num_layers)
    print("\n" + text)
    month = datetime.date.today().strftime("%Y-%m")
    path = args.out or RESULTS / f"last_third_{hardware()}_{month}.md"
    atomic_write_text(path, text)
    return text


if __name__ == "__main__":
    main()
