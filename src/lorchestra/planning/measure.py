"""Some seconds of a training's own passes, for its rates and its memory on this machine."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lorchestra.models.ensemble import EnsembleModel
from lorchestra.models.patching import text_config
from lorchestra.nn.optimizer import clip_gradients
from lorchestra.nn.packing import Item, PackedBatch, forward_budget, pack, plan_micro_batches, shareable_prefix
from lorchestra.planning.estimate import ALLOCATION, Rates, checkpointed_bytes
from lorchestra.planning.memory import peak_bytes, restart_peak
from lorchestra.training.callbacks import Callback
from lorchestra.training.objective import cross_entropy
from lorchestra.training.trainer import Trainer
from lorchestra.types import EncodedExample

_TRIED_TOKENS = 128
_EVALUATION_SHARE = 0.2
_COPIES_OF_LOGITS = 3
"""Logits, their log-probabilities, and what the one is made into the other with."""


@dataclass(frozen=True)
class Calibration:
    """What was measured."""

    rates: Rates
    activation_bytes: int
    """Growth of the process over what stays: at the largest micro-batch, or in evaluation where that took more."""
    activation_tokens: int
    """Tokens of that micro-batch."""
    saved_bytes: int
    """Bytes that its forward pass saved for the backward pass, without checkpointing."""
    micro_batches: int
    seconds: float


def saved_bytes(model: EnsembleModel, batch: PackedBatch, hidden: Tensor | None) -> int:
    """Bytes that a forward pass of these tokens keeps for its backward pass, beside the weights.

    Without gradient checkpointing, whatever the model is set to.
    """
    weights = {p.untyped_storage().data_ptr() for p in model.model.parameters()}
    found: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # a node that kept its own output would be a cycle that Python cannot see, nor collect

    before, model.gradient_checkpointing = model.gradient_checkpointing, False
    try:
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            kept = model.forward(batch, hidden=hidden)  # alive, or storages would be freed and their places used again
    finally:
        model.gradient_checkpointing = before
    del kept
    return sum(found.values())


def token_bytes(model: EnsembleModel, rows: Sequence[EncodedExample], checkpointing: bool) -> float:
    """Bytes of a run's passes for a token of its budget, from the first rows: some hundred tokens, or one row.

    What a step saves for its backward pass, or the logits of prediction where they are more: over the whole vocabulary,
    where choices of several tokens are scored, and with some copies.
    """
    shared = shareable_prefix(rows, dropout=any(own.dropout > 0 for own in model.adapter_settings))
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
    return max(training, _COPIES_OF_LOGITS * logits)


def with_checkpointing(model: EnsembleModel, saved: float, tokens: int) -> float:
    """Saved bytes of some tokens under gradient checkpointing."""
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
) -> Calibration:
    """Run the largest micro-batch, then others in turn until the time is up; then an update and an evaluation.

    Args:
        trainer: its model may have fewer members than the items: spans are then given to those it has.
        largest: the micro-batch that is run first, for memory and to warm up.
        batches: micro-batches of the run in its order.
        token_budget: of evaluation passes.
        seconds: roughly, for all of it; each kind of pass runs at least once.
        resident_before: bytes used before `trainer` was made; None where unknown.
        callback: reports what is under way.
    """
    clock = _Clock(trainer)
    begun = time.perf_counter()
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
    high, tokens = peak_bytes(), batch.packing.num_tokens
    # only now: a graph that is thrown away leaves the allocator with holes that a training has not
    saved = saved_bytes(trainer.model, batch, clock.trunk(batch))
    if can_measure:
        assert resident_before is not None
        kept = sum(tensor.nbytes for name, tensor in trainer.tensors().items() if name != "values")
        grown = max(1, high - resident_before - kept - trainer.model.adapters.grad.nbytes)
    else:
        checkpointing = trainer.config.gradient_checkpointing
        grown = round(ALLOCATION * (with_checkpointing(trainer.model, saved, tokens) if checkpointing else saved))
    return Calibration(clock.rates(), grown, tokens, saved, number, time.perf_counter() - begun)


class _Clock:
    """Times passes of each kind, with the tokens they had."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer, self.model = trainer, trainer.model
        self.spent: dict[str, float] = {}
        self.tokens: dict[str, int] = {}

    def packed(self, items: Sequence[Item], shared: int | None = None) -> PackedBatch:
        """A batch whose spans belong to the members that the model has."""
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

        def both() -> None:
            cross_entropy(self.model.forward(batch, hidden=hidden), answers).sum().backward()

        self._timed("train", batch, both)

    def update(self) -> None:
        """Clip and optimizer step of all members that the model has, twice: the first touches fresh memory."""
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

    def rates(self) -> Rates:
        """Seconds a token, or a member's update."""
        kinds = ("train", "trunk", "evaluate", "update")
        return Rates(*(self.spent.get(kind, 0.0) / self.tokens.get(kind, 1) for kind in kinds))

    def _timed(self, kind: str, batch: PackedBatch, run: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        result = run()
        self._synchronize()
        self.spent[kind] = self.spent.get(kind, 0.0) + time.perf_counter() - started
        self.tokens[kind] = self.tokens.get(kind, 0) + batch.packing.num_tokens
        return result

    def _synchronize(self) -> None:
        if self.model.device.type == "cuda":
            torch.cuda.synchronize()
