"""Short measurement of a run's actual passes: its rates and activation memory on this machine."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from lorchestra.inference.features import middle_layers
from lorchestra.models.ensemble import EnsembleModel, LayerInputs
from lorchestra.models.patching import text_config
from lorchestra.models.quantized import plain_parameters
from lorchestra.nn.optimizer import clip_gradients
from lorchestra.nn.packing import BASE, Item, PackedBatch, forward_budget, pack, plan_micro_batches, shareable_prefix
from lorchestra.planning.estimate import ALLOCATION, COPIES_OF_LOGITS, Rates, checkpointed_bytes
from lorchestra.planning.memory import peak_bytes, restart_peak
from lorchestra.training.callbacks import Callback
from lorchestra.training.objective import cross_entropy
from lorchestra.training.trainer import Trainer
from lorchestra.types import EncodedExample

_TRIED_TOKENS = 128
_EVALUATION_SHARE = 0.2
_STATES_SHARE = 0.05
T = TypeVar("T")


@dataclass(frozen=True)
class Calibration:
    """Measured rates and memory."""

    rates: Rates
    activation_bytes: int
    """Growth of the process above its resident state, in the largest micro-batch or (if more) in evaluation."""
    activation_tokens: int
    """Tokens of that micro-batch."""
    saved_bytes: int
    """Bytes its forward pass saves for the backward pass, without checkpointing."""
    micro_batches: int
    seconds: float


def saved_bytes(model: EnsembleModel, batch: PackedBatch, hidden: Tensor | None) -> int:
    """Bytes, weights excluded, that a forward pass of the batch saves for its backward pass.

    Measured without gradient checkpointing, whatever the model's setting.
    """
    weights = {p.untyped_storage().data_ptr() for p in plain_parameters(model.model)}  # no pass saves quantized ones
    storages: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # a node that holds its output is a reference cycle that Python's gc cannot see

    before, model.gradient_checkpointing = model.gradient_checkpointing, False
    try:
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            output = model.forward(batch, hidden=hidden)  # kept alive: freed storages would be reused, and counted once
    finally:
        model.gradient_checkpointing = before
    del output
    return sum(storages.values())


def token_bytes(model: EnsembleModel, rows: Sequence[EncodedExample], checkpointing: bool) -> float:
    """Activation bytes per token of the budget, measured on the first rows (about a hundred tokens, or one row).

    The larger of what a training step saves for its backward pass, and the logits of a prediction, which cover the
    vocabulary if choices have several tokens.
    """
    shared = shareable_prefix(rows, dropout=any(member.dropout > 0 for member in model.adapter_settings))
    items = plan_micro_batches([Item(0, row) for row in rows[:_TRIED_TOKENS]], _TRIED_TOKENS, shared)[0]
    batch = pack(items, model.device, shared)
    hidden = None
    if model.trunk_layers > 0:
        width = text_config(model.model).hidden_size
        weight = next(model.model.parameters())
        hidden = weight.new_zeros(1, batch.packing.num_tokens, width)
    tokens = batch.packing.num_tokens
    saved = saved_bytes(model, batch, hidden) / tokens
    training = ALLOCATION * (with_checkpointing(model, saved, 1) if checkpointing else saved)
    if batch.scoring.option_ids is not None:
        return training
    scored = len(batch.scoring.keep) / tokens * forward_budget(tokens, model.device) / tokens
    logits = scored * text_config(model.model).vocab_size * next(model.model.parameters()).element_size()
    return max(training, COPIES_OF_LOGITS * logits)


def with_checkpointing(model: EnsembleModel, saved: float, tokens: int) -> float:
    """Saved bytes of a number of tokens under gradient checkpointing."""
    width = text_config(model.model).hidden_size * next(model.model.parameters()).element_size()
    return checkpointed_bytes(saved, model.num_layers - model.trunk_layers, width * tokens)


def calibrate(
    trainer: Trainer,
    largest: Sequence[Item],
    batches: Sequence[Sequence[Item]],
    token_budget: int,
    seconds: float,
    resident_before: int | None,
    callback: Callback,
    texts: Sequence[EncodedExample] = (),
) -> Calibration:
    """Run the largest micro-batch, then others in turn until the time is up, then an update and an evaluation.

    Args:
        trainer: its model may have fewer members than the items; spans are then assigned to existing members.
        largest: the micro-batch to run first, for memory and warm-up.
        batches: micro-batches of the run, in order.
        token_budget: token budget of evaluation passes.
        seconds: approximate total time; each kind of pass runs at least once.
        resident_before: bytes used before `trainer` was created; None if unknown.
        callback: reports the current phase.
        texts: rows without choices, whose hidden states a baseline will read; last, a few passes of them are timed.
    """
    clock = _Clock(trainer)
    started = time.perf_counter()
    can_measure = restart_peak() and resident_before is not None
    callback.on_progress("a micro-batch of the largest size", 0, 0)
    batch = clock.packed(largest)
    clock.train(batch)
    clock = _Clock(trainer)
    warm = time.perf_counter()
    number = 0
    callback.on_progress("training steps", 0, 0)
    while number == 0 or time.perf_counter() - warm < seconds * (1 - _EVALUATION_SHARE):
        clock.train(clock.packed(batches[number % len(batches)]))
        number += 1
    clock.update()
    callback.on_progress("evaluation", 0, 0)
    clock.evaluate(token_budget, seconds * _EVALUATION_SHARE)
    peak, tokens = peak_bytes(), batch.packing.num_tokens
    # measured last: a discarded graph fragments the heap in a way that training does not
    saved = saved_bytes(trainer.model, batch, clock.trunk(batch))
    if texts:
        callback.on_progress("hidden states of the base", 0, 0)
        clock.states(texts, token_budget, seconds * _STATES_SHARE)
    if can_measure:
        assert resident_before is not None
        state = sum(tensor.nbytes for name, tensor in trainer.tensors().items() if name != "values")
        growth = max(1, peak - resident_before - state - trainer.model.adapters.grad.nbytes)
    else:
        checkpointing = trainer.config.gradient_checkpointing
        growth = round(ALLOCATION * (with_checkpointing(trainer.model, saved, tokens) if checkpointing else saved))
    return Calibration(clock.rates(), growth, tokens, saved, number, time.perf_counter() - started)


class _Clock:
    """Accumulates the time and tokens of each kind of pass."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer, self.model = trainer, trainer.model
        self.spent: dict[str, float] = {}
        self.tokens: dict[str, int] = {}

    def packed(self, items: Sequence[Item], shared: int | None = None) -> PackedBatch:
        """A packed batch with its spans assigned to the model's members."""
        batch = pack(items, self.model.device, self.trainer.shared if shared is None else shared)
        spans = tuple(
            dataclasses.replace(span, member=span.member % self.model.num_members) for span in batch.packing.spans
        )
        return dataclasses.replace(batch, packing=dataclasses.replace(batch.packing, spans=spans))

    def trunk(self, batch: PackedBatch) -> Tensor | None:
        """The batch's hidden states below the adapters, timed."""
        if self.model.trunk_layers == 0:
            return None
        return self._timed("trunk", batch, lambda: self.model.forward(batch, "trunk"))

    def train(self, batch: PackedBatch) -> None:
        """Forward and backward pass."""
        hidden = self.trunk(batch)
        answers = torch.tensor([item.example.answer for item in batch.items], device=self.model.device)

        def forward_backward() -> None:
            cross_entropy(self.model.forward(batch, hidden=hidden), answers).sum().backward()

        self._timed("train", batch, forward_backward)

    def update(self) -> None:
        """Gradient clipping and optimizer step of all members; run twice, as the first call allocates memory."""
        trainer, grad = self.trainer, self.model.adapters.grad
        members = range(self.model.num_members)
        for _ in range(2):
            started = time.perf_counter()
            clip_gradients(grad, [trainer.config.clip_norm] * len(members))
            trainer.optimizer.step(grad, [0.0] * len(members), members)
            self._synchronize()
            self.spent["update"] = time.perf_counter() - started
        self.tokens["update"] = len(members)

    @torch.no_grad()
    def evaluate(self, token_budget: int, seconds: float) -> None:
        """Forward passes over validation rows."""
        rows = self.trainer.rows.val
        shared = shareable_prefix(rows, dropout=False)
        items = [Item(m, row) for row in rows[:200] for m in range(self.model.num_members)]
        started = time.perf_counter()
        room = forward_budget(token_budget, self.model.device)
        for number, planned in enumerate(plan_micro_batches(items, room, shared)):
            if number > 0 and time.perf_counter() - started > seconds:
                break
            batch = self.packed(planned, shared)
            hidden = self.trunk(batch)
            self._timed("evaluate", batch, lambda b=batch, h=hidden: self.model.forward(b, hidden=h))  # type: ignore[misc]

    @torch.no_grad()
    def states(self, texts: Sequence[EncodedExample], token_budget: int, seconds: float) -> None:
        """Passes of the base up to the last layer whose input a baseline reads."""
        outputs = LayerInputs(middle_layers(self.model.num_layers))
        room = forward_budget(token_budget, self.model.device)
        started = time.perf_counter()
        for number, planned in enumerate(plan_micro_batches([Item(BASE, row) for row in texts[:200]], room)):
            if number > 0 and time.perf_counter() - started > seconds:
                break
            batch = pack(planned, self.model.device)
            self._timed("states", batch, lambda b=batch: self.model.forward(b, outputs))  # type: ignore[misc]

    def rates(self) -> Rates:
        """Seconds per token, or per member update."""
        kinds = ("train", "trunk", "evaluate", "update", "states")
        return Rates(*(self.spent.get(kind, 0.0) / self.tokens.get(kind, 1) for kind in kinds))

    def _timed(self, kind: str, batch: PackedBatch, run: Callable[[], T]) -> T:
        started = time.perf_counter()
        result = run()
        self._synchronize()
        self.spent[kind] = self.spent.get(kind, 0.0) + time.perf_counter() - started
        self.tokens[kind] = self.tokens.get(kind, 0) + batch.packing.num_tokens
        return result

    def _synchronize(self) -> None:
        if self.model.device.type == "cuda":
            torch.cuda.synchronize()
