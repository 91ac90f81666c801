"""The demo: its configuration, and the predictions it shows at the end."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lorchestra.config.adapt import AdaptConfig
from lorchestra.config.data import DataConfig, PromptConfig
from lorchestra.config.run import EvaluateConfig, RunConfig, TrainConfig
from lorchestra.demo.data import DEMO_PROMPT, DemoData, DemoSizes, write_demo_data
from lorchestra.metrics import predictive
from lorchestra.metrics.calibrator import Calibration, pooled
from lorchestra.store.run import Run
from lorchestra.types import Predictions

SIZES = DemoSizes()
TASK = "headlines"
"""The task's name, from the names of the data files."""


def demo_config(data: DemoData, seed: int = 0) -> RunConfig:
    """The demo's settings: five members on the last fifth of the embedded base's layers, a few minutes on two cores.

    The learning rate is high enough for each member to overfit the few rows differently, the case the paper studies.
    docs/log.md lists the settings that were tried, and docs/results.md has the results.
    """
    return RunConfig(
        adapt=AdaptConfig(layers="last:6"),
        data=DataConfig(
            train=str(data.train),
            val=str(data.val),
            test=str(data.test),
            scoring="text",
            prompt=PromptConfig(template=DEMO_PROMPT),
        ),
        train=TrainConfig(epochs=5, lr=2e-3, seed=seed),
        evaluate=EvaluateConfig(few_shot=4, temperature=True),
    )


def prepare_demo(out: Path, seed: int = 0) -> tuple[RunConfig, DemoData]:
    """Write the demo's task files next to the run; returns its configuration and the files."""
    data = write_demo_data(out.with_name(out.name + "-data"), SIZES, seed)
    return demo_config(data, seed), data


@dataclass(frozen=True)
class Showcase:
    """One prediction to show; `title` says why it was selected."""

    title: str
    text: str
    truth: str
    probs: dict[str, float]
    member_probs: list[float]
    """Each member's probability of the ensemble's answer."""
    mutual_information: float

    def lines(self) -> tuple[str, str]:
        """The probabilities as two lines of text."""
        best = max(self.probs, key=self.probs.__getitem__)
        probs = ", ".join(f"{name} {p:.2f}" for name, p in self.probs.items())
        members = " ".join(f"{p:.2f}" for p in self.member_probs)
        return (
            f"ensemble: {probs}; truth: {self.truth}",
            f"members' probability of {best!r}: {members}; mutual information {self.mutual_information:.3f} nats",
        )


def pick_examples(run: Run, ood_name: str) -> list[Showcase]:
    """Three predictions: the most confident correct one, the least confident one, and the OOD one with the highest
    mutual information, on which members disagree although each may be confident."""
    test = run.load_predictions(TASK, "test")
    ood = run.load_predictions(TASK, f"ood_{ood_name}")
    record = run.read_calibration(run.read_ensemble())
    calibration = None if record is None else record.calibration
    mixture = pooled(test.log_probs_MEC, calibration)
    confidence = predictive.confidence(mixture)
    correct = mixture.argmax(axis=1) == test.labels
    information = predictive.mutual_information(ood.log_probs_MEC)
    return [
        _show("a confident answer that is right", test, int(np.where(correct, confidence, -1).argmax()), calibration),
        _show("one to abstain on: the least confident answer", test, int(confidence.argmin()), calibration),
        _show("out of distribution: the members disagree", ood, int(information.argmax()), calibration),
    ]


def _show(title: str, predictions: Predictions, e: int, calibration: Calibration | None) -> Showcase:
    mixture = np.exp(pooled(predictions.log_probs_MEC, calibration)[e])
    options = predictions.options[e]
    label = int(predictions.labels[e])
    return Showcase(
        title=title,
        text=predictions.texts[e],
        truth="not a headline" if label < 0 else options[label],
        probs=dict(zip(options, mixture.tolist(), strict=False)),
        member_probs=np.exp(predictions.log_probs_MEC[:, e, int(mixture.argmax())]).tolist(),
        mutual_information=float(predictive.mutual_information(predictions.log_probs_MEC)[e]),
    )
