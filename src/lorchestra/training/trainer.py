"""Lockstep training: all members take their optimizer steps together, in packed micro-batches.

Members share only the computation of the base. Data order, loss, gradient, clipping, optimizer state, schedule, best
copy and early stopping are per member, so training M members equals training each alone, up to rounding.

With several processes (`lorchestra.distributed`) each trains a block of the members, which are those of its model. The
state of all members is the same in all processes: each computes it from the same numbers, which are gathered.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from lorchestra.config.run import RunConfig, TrainConfig
from lorchestra.distributed import ALONE, Group
from lorchestra.inference.packed import run_packed
from lorchestra.inference.trunk import TrunkFiles
from lorchestra.models.ensemble import EnsembleModel
from lorchestra.nn.optimizer import MemberAdamW, clip_gradients
from lorchestra.nn.packing import Item, PackedBatch, shareable_prefix
from lorchestra.nn.schedules import Schedule
from lorchestra.training.callbacks import Callback, Interrupted, StepReport, progress
from lorchestra.training.checkpoint import MemberState, TrainState, check_fits, state_tensors
from lorchestra.training.early_stopping import update_early_stopping, validate_members
from lorchestra.training.failure import epoch_failure, parameter_failures, step_failure
from lorchestra.training.heads import answer_states, init_heads
from lorchestra.training.joint import JointStop, as_lists, over_members
from lorchestra.training.members import MemberSettings, check_members, member_settings
from lorchestra.training.objective import (
    RowOutputs,
    add_parameter_terms,
    decay_penalties,
    read_outputs,
    row_terms,
    vocabulary_rows,
)
from lorchestra.training.precompute import Precomputed, TrainingRows, precompute
from lorchestra.training.sampler import MemberSampler, unit_sizes
from lorchestra.types import EncodedExample

MakeOptimizer = Callable[[EnsembleModel, Sequence[MemberSettings]], MemberAdamW]
"""Makes the optimizer of a model's members from their settings."""
MakeSchedules = Callable[[Sequence[MemberSettings], int], Sequence[Schedule]]
"""Makes one learning-rate schedule per member from their settings and the number of steps."""


_NORM = "gradient norm"


class Trainer:
    """Trains all members of an ensemble: `run` from the start, or after `restore` from a checkpoint.

    Args:
        model: the ensemble, with its initial parameters; its members are this process's block of all.
        rows: training and validation rows.
        config: the shared settings: epochs, batch size, token budget (which must be resolved), checkpoints, and whether
            the best or the last parameters are kept. Settings that members may have separately are not read.
        settings: one per member of all processes; those of this process have the adapters that the model was made with
            (see `member_settings`).
        callback: receives steps, evaluations and progress; may request a stop.
        files: where trunks go that are too large for memory; None keeps them in memory.
        make_optimizer: makes the optimizer of the members' parameters; by default AdamW with their settings.
        make_schedules: makes one learning-rate schedule per member; by default from their settings.
        num_steps: optimizer steps of the training, by default those of all epochs.
        evaluate_every: number of steps between evaluations on the validation rows; by default an epoch.
        group: the processes that the members are split over.

    Raises:
        ConfigError: a setting is out of range, such as `lr * weight_decay_b >= 1`, or members have different numbers of
            steps.
    """

    def __init__(
        self,
        model: EnsembleModel,
        rows: TrainingRows,
        config: TrainConfig,
        settings: Sequence[MemberSettings],
        callback: Callback,
        *,
        files: TrunkFiles | None = None,
        make_optimizer: MakeOptimizer | None = None,
        make_schedules: MakeSchedules | None = None,
        num_steps: int | None = None,
        evaluate_every: int | None = None,
        group: Group = ALONE,
    ) -> None:
        assert config.token_budget is not None
        self.group, self.block = group, group.block(len(settings))
        self.block_settings = tuple(settings[m] for m in self.block)
        if [member.adapter for member in self.block_settings] != list(model.adapter_settings):
            raise ValueError("the members' settings do not have the adapters that the model was made with")
        check_members(config, settings, len(rows.train))
        self.model, self.rows, self.config, self.callback, self.files = model, rows, config, callback, files
        self.settings = tuple(settings)
        self.token_budget = config.token_budget
        self.sampler = MemberSampler(self.settings, rows.train, config.batch_size)
        self.log_choices = [_log_choices(member, rows.train) for member in self.settings]
        self.steps_per_epoch = self.sampler.steps_per_epoch
        self.num_steps = num_steps or self.steps_per_epoch * config.num_epochs
        self.evaluate_every = evaluate_every or self.steps_per_epoch
        self.schedules = tuple((make_schedules or member_schedules)(self.settings, self.num_steps))
        self.optimizer = (make_optimizer or member_optimizer)(model, self.block_settings)
        self.best = model.adapters.values.clone()
        num_members = len(self.settings)
        self.state = TrainState(members=[MemberState() for _ in range(num_members)], num_updates=[0] * num_members)
        self.shared = shareable_prefix(rows.train, dropout=self.sampler.dropout)
        self.precomputed = Precomputed()
        model.gradient_checkpointing = config.gradient_checkpointing

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of a checkpoint, of this process's members, not copied."""
        return state_tensors(self.model.adapters, self.optimizer, self.best)

    def gathered_tensors(self) -> dict[str, Tensor]:
        """The tensors of a checkpoint; in the first process, of all members. All processes must call this."""
        return {name: self.group.rows_to_first(tensor) for name, tensor in self.tensors().items()}

    @torch.no_grad()
    def restore(self, state: TrainState, tensors: dict[str, Tensor]) -> None:
        """Continue from a checkpoint, which has all members, whatever processes wrote it.

        Raises:
            CheckpointError: the checkpoint does not fit this run.
        """
        check_fits(state, tensors, self.tensors(), len(self.settings), self.num_steps)
        block = slice(self.block.start, self.block.stop)
        for name, live in self.tensors().items():
            live.copy_(tensors[name][block])
        self.state = state
        self.optimizer.num_steps = list(state.num_updates[block])

    def run(self, checkpoint: Callable[[], None]) -> TrainState:
        """Train to the end; `checkpoint` is called when a checkpoint is due.

        Raises:
            Interrupted: the callback requested a stop, and not to finish; `checkpoint` was called before.
        """
        try:
            self.prepare()
        except Interrupted:
            checkpoint()
            raise
        last_checkpoint = time.monotonic()
        while self.state.step < self.num_steps and self.state.with_status("running"):
            if not self.step():
                if self.state.step and self.group.any(self.callback.should_finish()):
                    break
                checkpoint()
                raise Interrupted
            if self.state.step % self.evaluate_every == 0 and self.state.with_status("running"):
                self._evaluate()
            if self.group.any(time.monotonic() - last_checkpoint >= self.config.checkpoint_every_s):
                checkpoint()
                last_checkpoint = time.monotonic()
        self.finish()
        checkpoint()
        return self.state

    def finish(self) -> None:
        """End the training of all members now; parameters that were not evaluated yet may become a member's best."""
        last = self.state.history[-1]["step"] if self.state.history else 0
        if last < self.state.step and self.state.with_status("running"):
            self._evaluate()
        for m in self.state.with_status("running"):
            self.state.members[m].status = "finished"

    def final_values(self) -> Tensor:
        """The resulting parameters of this process's members, `[M, P]`: each one's best or last, as configured."""
        return self.best if self.config.keep == "best" else self.model.adapters.values

    def prepare(self) -> None:
        """Compute trunks and outputs of the base, which are constant during training.

        Raises:
            Interrupted: the callback requested a stop; the results are dropped.
        """
        self.callback.on_train_begin(self)
        callback = JointStop(self.callback, self.group)  # all processes do this work with the same questions
        kl_over = {member.regularize.kl_over for member in self.settings if member.regularize.kl_beta > 0}
        self.precomputed = precompute(
            self.model,
            self.rows,
            self.token_budget,
            shared=self.shared,
            with_base="options" in kl_over,
            with_vocabulary="vocabulary" in kl_over,
            files=self.files,
            callback=callback,
            group=self.group,
        )
        if self.model.head is not None and self.state.step == 0:
            self._init_heads(callback)

    def _init_heads(self, callback: Callback) -> None:
        """Set the members' classification heads from the base's states of the rows that have an answer."""
        known = self.rows
        if self.rows.targets is not None:
            known = TrainingRows([row for row in self.rows.train if row.answer is not None], self.rows.val)
        train, val = (
            answer_states(
                self.model,
                rows,
                self.token_budget,
                trunk,
                shareable_prefix(rows, dropout=False) if trunk is None else trunk.shared,
                progress(callback, f"states for the heads, {name} rows", len(rows)),
            )
            for name, rows, trunk in (
                ("training", known.train, self.precomputed.train),
                ("validation", known.val, self.precomputed.val),
            )
        )
        init_heads(self.model, known, self.block_settings, (train, val))
        self.best.copy_(self.model.adapters.values)

    def step_items(self, step: int) -> list[Item]:
        """Rows of this process's running members in one optimizer step."""
        return self.sampler.items(self._running(), step, self.block.start)

    def _running(self) -> list[int]:
        """This process's running members, by their index among all members."""
        return [m for m in self.state.with_status("running") if m in self.block]

    def member_tokens(self, member: int) -> int:
        """Number of tokens that one member was trained on so far."""
        steps = range(self.state.num_updates[member])
        return sum(row.num_tokens for step in steps for row in self.sampler.rows(member, step))

    def step(self) -> bool:
        """Take one optimizer step with all running members.

        Each member sees its batch of rows, all of them in packed micro-batches of at most the token budget. Gradients
        accumulate over micro-batches, one row of `adapters.grad` per member. Then each member is clipped, checked for
        divergence and updated with its own learning rate; stopped and failed members keep their parameters.

        Returns:
            False if the callback requested a stop between micro-batches, in any process; parameters and state are then
            unchanged.
        """
        started = time.perf_counter()
        state, adapters = self.state, self.model.adapters

        # 1. Losses and gradients, accumulated over micro-batches. A member's rows may be spread over several, so each
        # row's share of its member's loss is computed first.
        items = self.step_items(state.step)
        weights = self._item_weights(items)
        sums: dict[str, Tensor] = {}
        is_stopped = False
        adapters.zero_grad()
        passes = run_packed(
            self.model,
            items,
            self.token_budget,
            lambda batch: "logits" if vocabulary_rows(batch, self.block_settings) else "log_probs",
            shared=self.shared,
            trunk=self.precomputed.train,
        )
        for batch, outputs in passes:
            if is_stopped := self.callback.should_stop():
                break
            read = read_outputs(batch, outputs, self.block_settings, self.precomputed, self.rows.targets)
            self._accumulate(read, batch, weights, sums)
            del outputs, read  # frees its graph before the next forward pass
        sums |= add_parameter_terms(adapters, self.block_settings)

        # 2. Per member: clip, fail on bad gradients before the update, update.
        adapters.zero_frozen_grad()
        sums[_NORM] = clip_gradients(adapters.grad, [member.clip_norm for member in self.block_settings])
        parts = self.group.gather((is_stopped, sum(item.example.num_tokens for item in items), as_lists(sums)))
        if any(stopped for stopped, _, _ in parts):
            return False
        terms = over_members([values for _, _, values in parts], self.group.blocks(len(self.settings)))
        self._fail_before_update(terms)
        lrs = [schedule(state.step) for schedule in self.schedules]
        first = self.block.start
        self.optimizer.step(adapters.grad, lrs[first : self.block.stop], [m - first for m in self._running()])
        state.step += 1

        # 3. Fail on bad parameters after the update; checkpoint state and callbacks.
        terms |= self._after_update(terms["loss"])
        tokens, seconds = sum(number for _, number, _ in parts), time.perf_counter() - started
        state.tokens += tokens
        state.train_s += seconds
        self.callback.on_step(self._report(terms, lrs, tokens, seconds), state)
        return True

    def _report(
        self, terms: Mapping[str, Sequence[float]], lrs: Sequence[float], tokens: int, seconds: float
    ) -> StepReport:
        running = self.state.with_status("running")

        def of_running(values: Sequence[float]) -> list[float | None]:
            return [value if m in running else None for m, value in enumerate(values)]

        by_member = {name: of_running(values) for name, values in terms.items()}
        return StepReport(
            step=self.state.step,
            epoch=(self.state.step - 1) // self.steps_per_epoch,
            loss=by_member.pop("loss"),
            grad_norm=by_member.pop(_NORM),
            penalties=by_member,
            lr=of_running(lrs),
            tokens=tokens,
            seconds=seconds,
        )

    def _item_weights(self, items: Sequence[Item]) -> dict[int, float]:
        """Each item's share of its member's loss, by item index: its weight over the member's total in this step."""
        totals: dict[int, float] = {}
        for item in items:
            totals[item.member] = totals.get(item.member, 0.0) + self._row_weight(item.example.row)
        return {item.index: self._row_weight(item.example.row) / totals[item.member] for item in items}

    def _row_weight(self, row: int) -> float:
        return 1.0 if self.rows.weights is None else self.rows.weights[row]

    def _accumulate(
        self, outputs: RowOutputs, batch: PackedBatch, weights: Mapping[int, float], sums: dict[str, Tensor]
    ) -> None:
        """Run the backward pass of one micro-batch and add the members' losses and penalties to `sums`."""
        shares = outputs.log_probs.new_tensor([weights[item.index] for item in batch.items])
        terms = {
            name: values * shares for name, values in row_terms(self.block_settings, outputs, self.rows.targets).items()
        }
        torch.stack(list(terms.values())).sum().backward()
        members = torch.tensor(outputs.members)
        for name, values in terms.items():
            totals = sums.setdefault(name, torch.zeros(self.model.num_members, dtype=torch.float64))
            for m in members.unique().tolist():
                totals[m] += values.detach().cpu().double()[members == m].sum()

    def _fail_before_update(self, terms: Mapping[str, Sequence[float]]) -> None:
        """Fail members with bad losses or gradients, which must not be updated."""
        for m in self.state.with_status("running"):
            values = {name: values_M[m] for name, values_M in terms.items()}
            norm = values.pop(_NORM)
            if failure := step_failure(values, norm):
                self.state.fail(m, self.state.step + 1, failure)

    def _after_update(self, losses: Sequence[float]) -> dict[str, list[float]]:
        """Fail members and count updates; returns the penalties of decoupled decays, by member."""
        bad = parameter_failures(self.model.adapters.values)
        failures = [bad.get(index) for index in range(len(self.block))]
        decays = as_lists(decay_penalties(self.model.adapters, self.block_settings))
        parts = self.group.gather((failures, self.optimizer.num_steps, decays))
        self._fail_after_update(losses, [failure for part, _, _ in parts for failure in part])
        self.state.num_updates = [number for _, part, _ in parts for number in part]
        return over_members([part for _, _, part in parts], self.group.blocks(len(self.settings)))

    def _fail_after_update(self, losses: Sequence[float], failures: Sequence[str | None]) -> None:
        """Fail members with parameters out of bounds, or whose epoch ended with a loss much higher than guessing."""
        state = self.state
        for m in state.with_status("running"):
            if (failure := failures[m]) is not None:
                state.fail(m, state.step, failure)
                continue
            member = state.members[m]
            first = member.add_loss(losses[m])
            if state.step % self.steps_per_epoch:
                continue
            if failure := epoch_failure(member.end_epoch(), first, self.log_choices[m]):
                state.fail(m, state.step, failure)

    def _evaluate(self) -> None:
        """Evaluate all running members on the validation rows; copy the best parameters, stop or fail members."""
        state, rows = self.state, self.rows.val
        running = state.with_status("running")
        result = validate_members(
            self.model,
            rows,
            running,
            self.token_budget,
            self.precomputed.val,
            lambda done: self.callback.on_progress("validation", done, len(rows)),
            self.block,
            self.group,
        )
        for m in running:
            score = (result.scaled_nll if self.config.criterion == "scaled_nll" else result.nll)[m]
            is_best = update_early_stopping(state, m, result.nll[m], score, self.settings[m].patience)
            if is_best and m in self.block:
                index = m - self.block.start
                self.best[index].copy_(self.model.adapters.values[index])
        members = range(len(self.settings))
        entry: dict[str, object] = {
            "step": state.step,
            "epoch": state.step // self.steps_per_epoch,
            "val_nll": [result.nll.get(m) for m in members],
            "val_scaled_nll": [result.scaled_nll.get(m) for m in members],
            "val_accuracy": [result.accuracy.get(m) for m in members],
            "val_spread": [result.spread.get(m) for m in members],
            "train_nll": [state.members[m].mean_loss if m in result.nll else None for m in members],
        }
        state.history.append(entry)
        self.callback.on_evaluation(entry, state)


def make_trainer(
    model: EnsembleModel,
    rows: TrainingRows,
    config: RunConfig,
    callback: Callback,
    *,
    files: TrunkFiles | None = None,
    make_optimizer: MakeOptimizer | None = None,
    make_schedules: MakeSchedules | None = None,
    group: Group = ALONE,
) -> Trainer:
    """A trainer for one ensemble, whose members have the settings of `config` and differ by their seeds.

    `train` and every method that trains adapters start here; see `Trainer` for the arguments.
    """
    adapters = model.adapter_settings if group.size == 1 else None
    settings = member_settings(config, len(rows.train), adapters, unit_sizes=unit_sizes(rows.train))
    return Trainer(
        model,
        rows,
        config.train,
        settings,
        callback,
        files=files,
        make_optimizer=make_optimizer,
        make_schedules=make_schedules,
        group=group,
    )


def member_schedules(settings: Sequence[MemberSettings], num_steps: int) -> list[Schedule]:
    """The learning-rate schedules set by the members' settings."""
    return [Schedule(member.lr, num_steps, member.schedule, member.warmup) for member in settings]


def member_optimizer(model: EnsembleModel, settings: Sequence[MemberSettings]) -> MemberAdamW:
    """AdamW with the weight decays set by the members' settings."""
    return MemberAdamW(
        model.adapters.values,
        model.adapters.is_B,
        weight_decay_b=[member.regularize.weight_decay_b for member in settings],
        weight_decay_a=[member.regularize.weight_decay_a for member in settings],
    )


def _log_choices(settings: MemberSettings, rows: Sequence[EncodedExample]) -> float:
    """The loss of guessing on a member's training rows, in nats."""
    member_rows = rows if settings.rows is None else [rows[e] for e in settings.rows]
    return sum(math.log(len(row.choices)) for row in member_rows) / len(member_rows)
