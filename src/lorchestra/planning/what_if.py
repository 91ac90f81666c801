"""Memory and time of trainings on bases and devices that are not at hand, by arithmetic.

The terms are those of a plan: micro-batches as the trainer packs them (`planning.workload`), a `Footprint`, and a
`Duration` that is work times `Rates`. Here the rates and the saved bytes follow from a base's shape
(`planning.pass_cost`) and from how fast a device is, where a plan measures them. Members are split over devices as
`torchrun` splits them over processes: each device holds the whole base.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field

from lorchestra.config.run import TrainConfig
from lorchestra.inference.pipeline import default_token_budget
from lorchestra.nn.packing import Item, forward_budget, pack, plan_micro_batches, shareable_prefix
from lorchestra.planning.estimate import (
    ALLOCATION,
    COPIES_OF_LOGITS,
    SHARE,
    AdapterCounts,
    Duration,
    Footprint,
    Rates,
    checkpointed_bytes,
    duration,
    evaluation_tokens,
    fitting_budget,
    split_trunk,
)
from lorchestra.planning.pass_cost import FULL_BYTES, BatchCounts, PassCost, count_batch, sum_counts
from lorchestra.planning.workload import PlannedRun, Workload, plan_workload, with_search

ELEMENT_BYTES_PER_S = 12e9
"""Bytes that element-wise operations read and write per second of one CPU core.

Far below what a core can copy: small operations, cold caches and new memory are part of it. Solves one case of
`benchmarks/results/number_formats_2cpu_amd-epyc_2026-11.md`, and was chosen with the others of that file and of
`speed.py`'s in view; `benchmarks/what_if.py` compares it with all measured cases.
"""
_COUNTED_BATCHES = 48
"""Micro-batches whose layout is counted; those between them are like them."""
_COUNTED_ROWS, _COUNTED_MEMBERS = 200, 8


@dataclass(frozen=True)
class Device:
    """What a training runs on; one process has one."""

    memory_bytes: int | None
    """All that a process can have; None if unknown."""
    process_bytes: int
    """Python, its libraries and the rows."""
    flop_per_s: float
    """Speed of products in the base's number format, at the base's shapes."""
    bytes_per_s: float
    """Speed of element-wise operations, in bytes read and written."""

    @property
    def limit(self) -> int | None:
        """Largest allowed peak: the process, and a share of what is left; None if unknown."""
        if self.memory_bytes is None:
            return None
        return self.process_bytes + max(0, int(SHARE * (self.memory_bytes - self.process_bytes)))


@dataclass(frozen=True)
class Cell:
    """A training of `members` on `devices`: figures of the device with most of the members."""

    members: int
    devices: int
    members_per_device: int
    token_budget: int
    tokens: int
    """Of all members' rows in all epochs; tokens that rows share count once per row."""
    footprint: Footprint
    limit: int | None
    """Largest allowed peak; None if unknown."""
    duration: Duration

    @property
    def fits(self) -> bool:
        """Whether the peak is allowed."""
        return self.limit is None or self.footprint.peak <= self.limit


@dataclass(frozen=True)
class _Counted:
    """A workload, with the layouts of a sample of its passes."""

    workload: Workload
    train: BatchCounts
    largest: BatchCounts
    evaluate: BatchCounts


@dataclass
class Planner:
    """Predicts trainings with the same rows and settings; workloads that bases share are planned once.

    Args:
        run: rows and settings; its `has_trunk` is replaced by that of each base.
        searched: the training as configured, with what a search settles.
        per_epoch: optimizer steps per epoch.
        option_orders: orders of the options over which answers are averaged.
    """

    run: PlannedRun
    searched: TrainConfig
    per_epoch: int
    option_orders: int = 1
    _counted: dict[tuple[int, int, bool], _Counted] = field(default_factory=dict)

    def cell(self, cost: PassCost, device: Device, members: int, devices: int) -> Cell:
        """Predict a training.

        Args:
            cost: of the base's passes.
            device: each of the devices.
            members: M.
            devices: number of processes, at most M.
        """
        mine = -(-members // devices)
        counted = self._count(mine, self._default_budget, cost.trunk_layers > 0)
        budget = self._budget(cost, device, mine, counted)
        counted = self._count(mine, budget, cost.trunk_layers > 0)
        work = counted.workload.work
        work = dataclasses.replace(work, trunk_tokens=-(-work.trunk_tokens // devices))  # computed in turns
        return Cell(
            members=members,
            devices=devices,
            members_per_device=mine,
            token_budget=budget,
            tokens=round(counted.workload.tokens_per_epoch * members / mine) * self.run.config.num_epochs,
            footprint=self._footprint(cost, device, mine, counted),
            limit=device.limit,
            duration=duration(work, self._rates(cost, device, counted)),
        )

    def least_devices(self, cost: PassCost, device: Device, members: int) -> int | None:
        """The fewest devices on which the members fit; None if a single member does not."""
        tried = {-(-members // devices): devices for devices in range(members, 0, -1)}
        return min(
            (devices for devices in tried.values() if self.cell(cost, device, members, devices).fits), default=None
        )

    @property
    def _default_budget(self) -> int:
        configured = self.run.config.token_budget
        return max(configured or default_token_budget(self.run.device.type, self.run.shared), self._longest)

    @property
    def _longest(self) -> int:
        rows = self.run.rows
        return max(row.num_tokens for split in (rows.train, rows.val) for row in split)

    def _budget(self, cost: PassCost, device: Device, members: int, counted: _Counted) -> int:
        """The token budget, reduced as for a training if memory is short."""
        default = self._default_budget
        if self.run.config.token_budget is not None or device.limit is None:
            return default
        free = round(max(0, device.limit - device.process_bytes - cost.base_bytes) / SHARE)
        per_token = self._activations(cost, counted) / counted.largest.tokens
        counts = _adapter_counts(cost, members)
        other = counts.adapter_bytes + counts.training_bytes + self._trunk(cost)
        return fitting_budget(default, self._longest, per_token, other, free)

    def _footprint(self, cost: PassCost, device: Device, members: int, counted: _Counted) -> Footprint:
        counts = _adapter_counts(cost, members)
        return Footprint(
            process=device.process_bytes,
            base=cost.base_bytes,
            adapters=counts.adapter_bytes,
            training=counts.training_bytes,
            activations=round(self._activations(cost, counted)),
            trunk=self._trunk(cost),
        )

    def _activations(self, cost: PassCost, counted: _Counted) -> float:
        """Growth of the process in the largest micro-batch, or (if more) in an evaluation's logits."""
        largest, shape = counted.largest, cost.shape
        saved: float = cost.saved_bytes(largest)
        if self.run.config.gradient_checkpointing:
            hidden = largest.tokens * shape.hidden_size * cost.element_bytes
            saved = checkpointed_bytes(saved, shape.num_layers - cost.trunk_layers, hidden)
        evaluate = counted.evaluate
        logits = 0 if evaluate.options is not None else evaluate.logits(shape.vocab_size) / evaluate.batches
        return max(ALLOCATION * saved, COPIES_OF_LOGITS * logits * cost.element_bytes)

    def _trunk(self, cost: PassCost) -> int:
        """Bytes of the cached layers below the adapters in memory; a search keeps them in files."""
        if cost.trunk_layers == 0 or self.searched.is_auto:
            return 0
        size = cost.shape.hidden_size * cost.element_bytes
        rows, val_shared = self.run.rows, shareable_prefix(self.run.rows.val, dropout=False)
        tokens = [evaluation_tokens(rows.train, 1, self.run.shared), evaluation_tokens(rows.val, 1, val_shared)]
        return split_trunk([size * number for number in tokens], round(self.run.adapt.trunk_memory_gb * 1e9))[0]

    def _rates(self, cost: PassCost, device: Device, counted: _Counted) -> Rates:
        """Seconds per token of each kind of pass."""
        train, evaluate = counted.train, counted.evaluate
        checkpointing = self.run.config.gradient_checkpointing
        work = {
            "train_s": (cost.training(train, checkpointing=checkpointing), train.tokens),
            "trunk_s": (cost.trunk(train), train.tokens),
            "evaluate_s": (cost.forward(evaluate), evaluate.tokens),
            "update_s": (cost.update(), 1),
        }
        return Rates(
            **{k: w.seconds(device.flop_per_s, device.bytes_per_s) / tokens for k, (w, tokens) in work.items()}
        )

    def _count(self, members: int, budget: int, has_trunk: bool) -> _Counted:
        """Plan the workload of some members, and count its passes."""
        key = (members, budget, has_trunk)
        if key not in self._counted:
            run = dataclasses.replace(self.run, has_trunk=has_trunk)
            workload = plan_workload(run, members, budget, self.option_orders)
            workload = with_search(workload, self.searched, run.config, self.per_epoch, members, 1)
            step = -(-len(workload.batches) // _COUNTED_BATCHES)
            self._counted[key] = _Counted(
                workload,
                _counts(workload.batches[::step], run.shared),
                _counts([workload.largest], run.shared),
                self._evaluation(members, budget),
            )
        return self._counted[key]

    def _evaluation(self, members: int, budget: int) -> BatchCounts:
        """Counts of some micro-batches of an evaluation on validation rows."""
        rows = self.run.rows.val[:_COUNTED_ROWS]
        shared = shareable_prefix(self.run.rows.val, dropout=False)
        room = forward_budget(budget, self.run.device)
        items = [Item(m, row) for m in range(min(members, _COUNTED_MEMBERS)) for row in rows]
        return _counts(plan_micro_batches(items, room, shared)[:_COUNTED_BATCHES], shared)


def _counts(batches: Sequence[Sequence[Item]], shared: int) -> BatchCounts:
    return sum_counts(count_batch(pack(batch, "cpu", shared)) for batch in batches)


def _adapter_counts(cost: PassCost, members: int) -> AdapterCounts:
    return AdapterCounts(members, cost.parameters, 2 * len(cost.adapted) * len(cost.layers), FULL_BYTES)
