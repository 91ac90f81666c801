"""lorchestra's trainer and prediction, step by step."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from bench.setting import LR, Base, Setting
from lorchestra.config.run import RunConfig, TrainConfig
from lorchestra.models.ensemble import EnsembleModel
from lorchestra.nn.adapters import StackedAdapters
from lorchestra.nn.packing import pack, plan_micro_batches
from lorchestra.training.callbacks import Callback, StepReport
from lorchestra.training.checkpoint import TrainState
from lorchestra.training.members import member_settings
from lorchestra.training.precompute import Precomputed, TrainingRows
from lorchestra.training.trainer import Trainer
from lorchestra.types import EncodedExample


class LastReport(Callback):
    """Keeps the last step's report."""

    report: StepReport

    def on_step(self, report: StepReport, state: TrainState) -> None:
        """Keep the report."""
        self.report = report


def make_ensemble(base: Base, members: int, targets: str, layers: str) -> EnsembleModel:
    """An ensemble with non-zero adapters, so that members differ in answers and losses from the first step."""
    model = EnsembleModel(base.modules(), base.adapt(members, targets, layers), 0)
    scatter(model.adapters)
    return model


@torch.no_grad()
def scatter(adapters: StackedAdapters) -> None:
    """Draw every member's B from a narrow normal distribution; it does not depend on the number of members."""
    for m, values in enumerate(adapters.values):
        noise = torch.randn(values.shape, generator=torch.Generator().manual_seed(m))
        values.add_(0.01 * noise.to(values.device) * adapters.is_B)


class PackedTraining:
    """Training of all members on some rows, step by step."""

    def __init__(
        self,
        base: Base,
        setting: Setting,
        rows: Sequence[EncodedExample],
        members: int,
        targets: str,
        layers: str,
        precomputed: Precomputed | None = None,
    ) -> None:
        config = TrainConfig(
            epochs=1000,
            batch_size=setting.batch,
            lr=LR,
            schedule="constant",
            warmup=0.0,
            token_budget=setting.token_budget,
        )
        self.callback = LastReport()
        model = make_ensemble(base, members, targets, layers)
        settings = member_settings(RunConfig(adapt=model.adapt, train=config), len(rows), model.adapter_settings)
        self.trainer = Trainer(model, TrainingRows(rows, rows[:1]), config, settings, self.callback)
        self.trunk_rate: float | None = None
        """Tokens per second of computing the trunk; None if there is none, or it was given."""
        if precomputed is not None:  # the same for all numbers of members
            self.trainer.precomputed = precomputed
            return
        started = time.perf_counter()
        self.trainer.prepare()
        if self.trainer.precomputed.train is not None:
            tokens = sum(row.num_tokens for row in [*rows, rows[0]])
            self.trunk_rate = tokens / (time.perf_counter() - started)

    def warm_up(self) -> None:
        """Forward and backward of one micro-batch, without an optimizer step."""
        trainer, model = self.trainer, self.trainer.model
        first = plan_micro_batches(trainer.step_items(0), trainer.token_budget, trainer.shared)[0]
        batch = pack(first, model.device, trainer.shared)
        trunk = trainer.precomputed.train
        model.forward(batch, hidden=None if trunk is None else trunk.gather(batch)).sum().backward()
        model.adapters.zero_grad()

    def step(self) -> tuple[int, list[float | None]]:
        """One optimizer step of all members: tokens trained on, and the members' losses."""
        self.trainer.step()
        return self.callback.report.tokens, self.callback.report.loss
