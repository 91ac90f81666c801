"""All methods on the demo's headlines with the embedded base: accuracy, NLL, ECE and cost, one line each.

    python benchmarks/methods.py --train 200 --test 200 --epochs 2

Small on purpose: it shows that every method does its work on a real base, and what it costs; it ranks nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lorchestra.core.metrics import accuracy, ece, nll
from lorchestra.core.predictive import mixture_log_probs
from lorchestra.data.config import DataConfig, PromptConfig
from lorchestra.data.demo import DEMO_PROMPT, DemoSizes, write_demo_data
from lorchestra.engine.config import RunConfig, TrainConfig
from lorchestra.engine.trunk_file import TrunkFiles
from lorchestra.experiments.rows import read_rows
from lorchestra.experiments.setting import method_setting
from lorchestra.methods import laplace, mc_dropout, soup
from lorchestra.methods.contract import Fitted, Predictor, Setting
from lorchestra.methods.registry import METHODS, WRAPPERS, fit_method
from lorchestra.models.config import AdaptConfig, BaseConfig
from lorchestra.types import Example, Predictions

WAYS: list[tuple[str, Any]] = [
    ("zero_shot", None),
    ("few_shot", None),
    ("one_lora", None),
    ("lora_ensemble", None),
    ("mc_dropout", mc_dropout.Config(dropout=0.1)),
    ("high_rank", None),
    ("long_training", None),
    ("soup", soup.Config(average="product")),
    ("soup", soup.Config(average="factors")),
    ("snapshot", None),
    ("last_layer", None),
    ("swag", None),
    ("laplace", laplace.Config(structure="diagonal")),
    ("laplace", laplace.Config(structure="full")),
    ("laplace", laplace.Config(structure="full", prior="marginal_likelihood")),
    ("batch_ensemble", None),
]
WRAPPED = ("zero_shot", "one_lora", "lora_ensemble")


class Remembered:
    """A predictor that predicts the same rows once: wrappers ask for what stands in the line above them."""

    def __init__(self, predict: Predictor) -> None:
        self.predict, self.found = predict, {}

    def __call__(self, examples: Sequence[Example], split: str, progress: Any = None) -> Predictions:
        key = split, tuple((row.id, row.question, row.choices) for row in examples)
        if key not in self.found:
            self.found[key] = self.predict(examples, split, progress)
        return self.found[key]


def line(name: str, fitted: Fitted, test: Sequence[Example]) -> None:
    started = time.process_time()
    found = fitted.predict(test, "test")
    seconds = time.process_time() - started
    mixture, cost = mixture_log_probs(found.log_probs_MEC), fitted.cost
    chosen = ", ".join(f"{key} {value:.3g}" for key, value in fitted.chosen.items())
    quality = f"{100 * accuracy(mixture, found.labels):.1f} | {nll(mixture, found.labels):.3f}"
    print(
        f"| {name} | {found.num_members} | {quality} | {100 * ece(mixture, found.labels):.1f}"
        f" | {cost.fit_base_passes:.2f} | {cost.tokens} | {cost.fit_s:.1f} | {cost.peak_bytes / 1e9:.2f}"
        f" | {cost.parameters} | {cost.predict_base_passes:.2f} | {seconds:.1f} | {chosen} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=int, default=200)
    parser.add_argument("--val", type=int, default=100)
    parser.add_argument("--test", type=int, default=200)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--members", type=int, default=5)
    parser.add_argument("--layers", default="last:6")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="only methods whose names begin so")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as cache:
        compare(arguments, Path(folder), Path(cache))


def one(setting: Setting, test: Sequence[Example], name: str, settings: Any) -> None:
    # in a function of its own, so that this method's base is gone before the next one's peak is measured
    fitted = fit_method(setting, name, settings)
    fitted = dataclasses.replace(fitted, predict=Remembered(fitted.predict))
    own = vars(settings) if settings is not None else {}
    plain = vars(METHODS[name].Config())
    shown = ", ".join(f"{key} {value}" for key, value in own.items() if value != plain[key])
    line(f"{name} ({shown})" if shown else name, fitted, test)
    for wrapper in WRAPPERS if name in WRAPPED else ():
        wrapped = WRAPPERS[wrapper].wrap(setting, fitted, WRAPPERS[wrapper].Config())
        line(f"{name}+{wrapper}", wrapped, test)


def compare(arguments: argparse.Namespace, folder: Path, cache: Path) -> None:
    sizes = DemoSizes(train=arguments.train, val=arguments.val, test=arguments.test, ood=1)
    data = write_demo_data(folder, sizes, arguments.seed)
    config = RunConfig(
        base=BaseConfig(threads=arguments.threads),
        adapt=AdaptConfig(members=arguments.members, layers=arguments.layers),
        data=DataConfig(
            train=str(data.train),
            val=str(data.val),
            test=str(data.test),
            scoring="text",
            prompt=PromptConfig(template=DEMO_PROMPT),
        ),
        train=TrainConfig(epochs=arguments.epochs, lr=arguments.lr, seed=arguments.seed),
    )
    task = read_rows(config.data, arguments.seed).task
    setting, test = method_setting(config, task), task.splits["test"]
    # layers below the adapters are computed once for all methods: the first that trains has them in its seconds
    digest = setting.open_session(setting.config).base.digest
    setting = dataclasses.replace(setting, files=TrunkFiles(cache, digest, 0))
    print("| method | M | accuracy % | NLL | ECE % | base passes | tokens | fit s | peak GB | parameters |", end="")
    print(" passes a prediction | predict CPU s | chosen |")
    print("|---|" + "---|" * 12)
    for name, settings in WAYS:
        if not name.startswith(arguments.only):
            continue
        one(setting, test, name, settings)
    labels = np.array([row.answer for row in test])
    print(f"\n{len(setting.train)} training, {len(setting.val)} validation, {len(test)} test rows;", end=" ")
    print(f"majority in the test rows {100 * max(labels.mean(), 1 - labels.mean()):.1f} %")


if __name__ == "__main__":
    main()
