"""Lockstep training: all members take their optimizer steps together, in packed micro-batches.

Members share the base's arithmetic and nothing else: each has its own data order, loss, gradient, clip, optimizer
state, schedule position, best copy and end. Training M members here equals training each alone, up to rounding.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from lorchestra.core.objective import cross_entropy, kl_to_base
from lorchestra.core.optim import MemberAdamW, Schedule, clip_gradients
from lorchestra.core.packing import Item, PackedBatch, pack, plan_micro_batches, shareable_prefix
from lorchestra.core.seeding import derive_seed, permutation
from lorchestra.engine.checkpoint import check_fits
from lorchestra.engine.config import RegularizeConfig, TrainConfig, check_training
from lorchestra.engine.frozen import Frozen, TrainingRows, compute_frozen
from lorchestra.engine.observer import Interrupted, Observer, StepReport
from lorchestra.engine.predict import member_passes, predict_rows
from lorchestra.engine.state import MemberState, TrainState, state_tensors
from lorchestra.engine.trunk_file import TrunkFiles
from lorchestra.models.ensemble import EnsembleModel, member_seed


class Trainer:
    """Trains all members of an ensemble; `run` may be called on a fresh or a restored state.

    Args:
        model: the ensemble, at its initial or restored parameters.
        rows: training and validation rows.
        config: the training settings; `token_budget` must be resolved.
        regularize: the regularizers' strengths.
        observer: hears of steps and evaluations.
        files: where trunks go that are too large for memory; without it they stay in memory.

    Raises:
        ConfigError: a setting out of range, such as `lr * weight_decay_b >= 1`.
    """

    def __init__(
        self,
        model: EnsembleModel,
        rows: TrainingRows,
        config: TrainConfig,
        regularize: RegularizeConfig,
        observer: Observer,
        files: TrunkFiles | None = None,
    ) -> None:
        check_training(config, regularize)
        assert config.token_budget is not None
        self.model, self.rows, self.config, self.regularize, self.observer = model, rows, config, regularize, observer
        self.files = files
        self.token_budget = config.token_budget
        self.steps_per_epoch = math.ceil(len(rows.train) / config.batch_size)
        self.num_steps = self.steps_per_epoch * config.epochs
        self.schedule = Schedule(config.lr, self.num_steps, config.schedule, config.warmup)
        self.optimizer = MemberAdamW(
            model.bank.values, model.bank.is_B, [regularize.weight_decay_b] * model.num_members
        )
        self.best = model.bank.values.clone()
        num_members = model.num_members
        self.state = TrainState(members=[MemberState() for _ in range(num_members)], num_updates=[0] * num_members)
        self.shared = shareable_prefix(rows.train, dropout=model.adapt.dropout > 0)
        self.frozen = Frozen()
        model.slot.checkpointing = config.gradient_checkpointing

    def tensors(self) -> dict[str, Tensor]:
        """The live tensors that, with `state`, make a checkpoint."""
        return state_tensors(self.model.bank, self.optimizer, self.best)

    @torch.no_grad()
    def restore(self, state: TrainState, tensors: dict[str, Tensor]) -> None:
        """Stand where a checkpoint stood.

        Raises:
            CheckpointError: it is of another run.
        """
        check_fits(state, tensors, self.tensors(), self.num_steps)
        for name, live in self.tensors().items():
            live.copy_(tensors[name])
        self.state = state
        # a member's optimizer steps end with its training, so its count is the step it was last updated at
        self.optimizer.num_steps = list(state.num_updates)

    def run(self, checkpoint: Callable[[], None], should_stop: Callable[[], bool] = lambda: False) -> TrainState:
        """Train to the end; `checkpoint` is called when one is due and before an interruption.

        Raises:
            Interrupted: `should_stop` returned true; the checkpoint is written.
        """
        try:
            self.prepare(should_stop)
        except Interrupted:
            checkpoint()
            raise
        last_checkpoint = time.monotonic()
        while self.state.step < self.num_steps and self.state.with_status("running"):
            if not self.step(should_stop):
                checkpoint()
                raise Interrupted
            if self.state.step % self.steps_per_epoch == 0:
                self._evaluate()
            if time.monotonic() - last_checkpoint >= self.config.checkpoint_every_s:
                checkpoint()
                last_checkpoint = time.monotonic()
        for m in self.state.with_status("running"):
            self.state.members[m].status = "finished"
        checkpoint()
        return self.state

    def final_values(self) -> Tensor:
        """The adapters to keep, `[M, P]`: each member's best or last, as configured."""
        return self.best if self.config.keep == "best" else self.model.bank.values

    def prepare(self, should_stop: Callable[[], bool] = lambda: False) -> None:
        """Compute once what never changes.

        Raises:
            Interrupted: `should_stop` returned true; what was computed is dropped.
        """

        def tell(what: str, done: int, total: int) -> None:
            self.observer.on_phase(what, done, total)
            if should_stop():
                raise Interrupted

        self.frozen = compute_frozen(
            self.model,
            self.rows,
            self.token_budget,
            shared=self.shared,
            with_base=self.regularize.kl_beta > 0,
            files=self.files,
            tell=tell,
        )

    def step_items(self, step: int) -> list[Item]:
        """The rows of every running member in one optimizer step; a function of the seed and the step alone."""
        epoch, place = divmod(step, self.steps_per_epoch)
        dropout = self.model.adapt.dropout > 0
        items = []
        for m in self.state.with_status("running"):
            seed = member_seed(self.config.seed, m)
            order_seed = member_seed(self.config.seed, 0) if self.model.adapt.same_order else seed
            order = permutation(len(self.rows.train), order_seed, "order", epoch)
            for e in order[place * self.config.batch_size : (place + 1) * self.config.batch_size]:
                row = self.rows.train[e]
                items.append(Item(m, row, derive_seed(seed, "dropout", step, row.row) if dropout else None))
        return items

    def step(self, should_stop: Callable[[], bool] = lambda: False) -> bool:
        """One optimizer step of all running members; False if it was interrupted, and then nothing has changed."""
        started = time.perf_counter()
        state, bank = self.state, self.model.bank
        running = state.with_status("running")
        items = self.step_items(state.step)
        weights = self._item_weights(items)
        sums: dict[str, Tensor] = {}
        bank.zero_grad()
        for micro_batch in plan_micro_batches(items, self.token_budget, self.shared):
            if should_stop():
                return False
            self._accumulate(pack(micro_batch, self.model.device, self.shared), weights, sums)
        norms = clip_gradients(bank.grad, [self.config.clip_norm] * self.model.num_members)
        self._mark_failed(running, sums["loss"], norms)
        running = state.with_status("running")
        lr = self.schedule(state.step)
        self.optimizer.step(bank.grad, [lr] * self.model.num_members, running)
        state.step += 1
        state.num_updates = list(self.optimizer.num_steps)
        tokens = sum(item.example.num_tokens for item in items)
        seconds = time.perf_counter() - started
        state.tokens += tokens
        state.train_s += seconds
        by_member = {
            name: [values[m].item() if m in running else None for m in range(len(values))]
            for name, values in sums.items()
        }
        report = StepReport(
            step=state.step,
            epoch=(state.step - 1) // self.steps_per_epoch,
            loss=by_member.pop("loss"),
            penalties=by_member | self._decay_penalty(running),
            grad_norm=[norms[m].item() if m in running else None for m in range(len(norms))],
            lr=lr,
            tokens=tokens,
            seconds=seconds,
        )
        self.observer.on_step(report, state)
        return True

    def _item_weights(self, items: Sequence[Item]) -> dict[tuple[int, int], float]:
        """Each item's share of its member's loss: its weight over the sum of its member's weights in this step."""
        raw = {(item.member, item.example.row): self._row_weight(item.example.row) for item in items}
        totals: dict[int, float] = {}
        for (member, _), weight in raw.items():
            totals[member] = totals.get(member, 0.0) + weight
        return {key: weight / totals[key[0]] for key, weight in raw.items()}

    def _row_weight(self, row: int) -> float:
        return 1.0 if self.rows.weights is None else self.rows.weights[row]

    def _accumulate(self, batch: PackedBatch, weights: dict[tuple[int, int], float], sums: dict[str, Tensor]) -> None:
        """Forward and backward of one micro-batch; adds the members' losses and penalties to `sums`."""
        trunk = self.frozen.train
        log_probs = self.model.log_probs(batch, None if trunk is None else trunk.gather(batch))
        device = log_probs.device
        answers = torch.tensor([item.example.answer for item in batch.items], device=device)
        share = log_probs.new_tensor([weights[item.member, item.example.row] for item in batch.items])
        terms = {"loss": cross_entropy(log_probs, answers) * share}
        if self.frozen.base_log_probs is not None:
            base = self.frozen.base_log_probs[[item.example.row for item in batch.items], : log_probs.shape[1]]
            penalty = kl_to_base(log_probs, base.to(log_probs.dtype), self.regularize.kl_direction)
            terms["kl_to_base"] = self.regularize.kl_beta * penalty * share
        torch.stack(list(terms.values())).sum().backward()
        members = torch.tensor([item.member for item in batch.items])
        for name, values in terms.items():
            totals = sums.setdefault(name, torch.zeros(self.model.num_members, dtype=torch.float64))
            for m in members.unique().tolist():
                totals[m] += values.detach().cpu().double()[members == m].sum()

    def _mark_failed(self, running: Sequence[int], losses: Tensor, norms: Tensor) -> None:
        for m in running:
            if not (math.isfinite(losses[m].item()) and math.isfinite(norms[m].item())):
                self._fail(m, self.state.step + 1, f"loss {losses[m].item()}, gradient norm {norms[m].item()}")

    def _fail(self, m: int, step: int, reason: str) -> None:
        member = self.state.members[m]
        member.status, member.failed_step, member.reason = "failed", step, reason

    def _decay_penalty(self, running: Sequence[int]) -> dict[str, list[float | None]]:
        strength = self.regularize.weight_decay_b
        if strength == 0:
            return {}
        squares = (self.model.bank.values * self.model.bank.is_B).square().sum(dim=1)
        return {
            "weight_decay_b": [
                0.5 * strength * squares[m].item() if m in running else None for m in range(len(squares))
            ]
        }

    def _evaluate(self) -> None:
        """Validation NLL and accuracy of every running member; keeps the best copies and stops who waited too long."""
        state, rows = self.state, self.rows.val
        running = state.with_status("running")
        found = predict_rows(
            self.model,
            rows,
            member_passes(running),
            self.token_budget,
            self.frozen.val,
            lambda n: self.observer.on_phase("validation", n, len(rows)),
        )
        answers = np.array([row.answer for row in rows])
        entry: dict[str, object] = {"step": state.step, "epoch": state.step // self.steps_per_epoch}
        nlls: list[float | None] = [None] * self.model.num_members
        accuracies: list[float | None] = [None] * self.model.num_members
        for index, m in enumerate(running):
            nlls[m] = float(-found[index, np.arange(len(rows)), answers].mean())
            accuracies[m] = float((found[index].argmax(axis=1) == answers).mean())
            self._judge(m, nlls[m])
        entry |= {"val_nll": nlls, "val_accuracy": accuracies}
        state.history.append(entry)
        self.observer.on_evaluation(entry, state)

    def _judge(self, m: int, nll: float | None) -> None:
        member = self.state.members[m]
        if nll is None or not math.isfinite(nll):
            self._fail(m, self.state.step, f"validation NLL {nll}")
        elif member.best_nll is None or nll < member.best_nll:
            member.best_nll, member.best_step, member.waited = nll, self.state.step, 0
            self.best[m].copy_(self.model.bank.values[m])
        else:
            member.waited += 1
            if 0 < self.config.patience <= member.waited:
                member.status = "stopped"
