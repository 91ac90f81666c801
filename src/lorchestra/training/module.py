"""An ensemble as a `torch.nn.Module`, for custom training loops.

Its parameters are the members' adapters; the frozen base is not part of it. Passes are packed as everywhere in
lorchestra, so one call computes all members.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lorchestra.errors import ConfigError, RequestError, TrainingError
from lorchestra.inference.packed import run_packed
from lorchestra.inference.pipeline import Pipeline
from lorchestra.inference.trunk import TrunkCache
from lorchestra.metrics.calibrator import Calibration
from lorchestra.models.peft_files import HEAD, save_members
from lorchestra.nn.packing import Item
from lorchestra.nn.seeding import derive_seed
from lorchestra.store.workspace import Workspace
from lorchestra.training.failure import parameter_failures
from lorchestra.types import EncodedExample, Example


class EnsembleModule(nn.Module):
    """The members of a pipeline, differentiable.

    Parameters are named `members.<m>.<module>.lora_A.weight` `[R, I]` and `.lora_B.weight` `[O, R]`, and with
    `data.scoring: head` `members.<m>.score.weight` `[C, D]` (see `nn.head` for its scale). The pipeline
    predicts with the same tensors, so its predictions change with an optimizer step. `train` and `eval` have no effect:
    dropout is on in passes with a `dropout_seed`.

    Args:
        pipeline: base, members, prompt and scoring, from a finished run (`Ensemble.as_module`) or new
            (`build_pipeline`).
        calibration: of the mixture, from the same run. It fits the members as they were: after further training, set
            `module.calibration = None`.

    Raises:
        ConfigError: a new pipeline with PiSSA. That of a finished run has plain LoRA of twice the rank.
    """

    def __init__(self, pipeline: Pipeline, calibration: Calibration | None = None) -> None:
        super().__init__()
        self.pipeline, self.calibration = pipeline, calibration
        adapters = pipeline.model.adapters
        if adapters.frozen:
            raise ConfigError(
                "adapt.init_lora_weights: pissa freezes half of each adapter, which lorchestra's trainer supports but"
                " other optimizers do not; train a run and load it, or use another initialization"
            )
        for piece in adapters.slices:
            for which, leaves in zip(("A", "B"), adapters.parameters[piece.name], strict=True):
                for m, leaf in enumerate(leaves):
                    _register(self, f"members.{m}.{piece.name}.lora_{which}.weight", leaf)
        for m, leaf in enumerate(adapters.heads):
            _register(self, f"members.{m}.{HEAD}.weight", leaf)

    @property
    def num_members(self) -> int:
        """M."""
        return self.pipeline.model.num_members

    def member_parameters(self, member: int) -> list[nn.Parameter]:
        """The parameters of one member, for a separate optimizer or gradient clipping."""
        return list(self.get_submodule(f"members.{member}").parameters())

    def encode(self, examples: Sequence[Example]) -> tuple[EncodedExample, ...]:
        """Tokenize examples, once for rows that are used repeatedly.

        Raises:
            RequestError: a row is too long; dropping it would misalign rows and results.
        """
        split = self.pipeline.encode(examples)
        if split.dropped:
            first = examples[split.dropped[0]]
            raise RequestError(
                f"{first.where or first.id}: the row has more than {self.pipeline.max_length} tokens; remove it, or"
                " use data.too_long: truncate"
            )
        return split.rows

    def forward(
        self,
        rows: Sequence[Example] | Sequence[EncodedExample],
        members: Sequence[int] | None = None,
        dropout_seed: int | None = None,
    ) -> Tensor:
        """Log-probabilities of every row's choices under every member, `[M, E, C]`, in nats.

        Normalized over the choices of each row; -inf past a row's number of choices.

        Args:
            rows: examples, or rows from `encode`.
            members: indices of members, by default all; `nn.packing.BASE` is the base without adapter.
            dropout_seed: turns on the members' dropout; each seed gives other masks.
        """
        encoded = self._encoded(rows)
        chosen = range(self.num_members) if members is None else members
        log_probs = self.log_probs([(m, row) for m in chosen for row in encoded], dropout_seed)
        return log_probs.unflatten(0, (len(chosen), len(encoded)))

    def mixture(
        self,
        rows: Sequence[Example] | Sequence[EncodedExample],
        dropout_seed: int | None = None,
        *,
        raw: bool = False,
    ) -> Tensor:
        """Log-probabilities of the ensemble, `[E, C]`: the log of the members' mean *probabilities*, calibrated.

        Its gradient couples the members; train on `forward` to keep them independent. With `raw` or without a
        `calibration`, the mean as it is.
        """
        log_probs_MEC = self(rows, dropout_seed=dropout_seed)
        absent = log_probs_MEC.isneginf().all(dim=0)
        # an absent choice is -inf under every member, where logsumexp has no gradient
        mixed = log_probs_MEC.masked_fill(absent, 0.0).logsumexp(dim=0) - math.log(len(log_probs_MEC))
        mixed = mixed.masked_fill(absent, float("-inf"))
        return mixed if raw or self.calibration is None else _calibrated(mixed, self.calibration)

    def log_probs(self, pairs: Sequence[tuple[int, EncodedExample]], dropout_seed: int | None = None) -> Tensor:
        """Log-probabilities of (member, row) pairs, `[B, C]`; members may have different rows."""
        pipeline, model = self.pipeline, self.pipeline.model
        rows: dict[int, EncodedExample] = {}
        for _, row in pairs:
            rows.setdefault(id(row), replace(row, row=len(rows)))
        items = []
        for index, (m, row) in enumerate(pairs):
            seed = None if dropout_seed is None else derive_seed(dropout_seed, m, row.row)
            items.append(Item(m, rows[id(row)], seed, index))
        trunk = TrunkCache(model, list(rows.values()), pipeline.token_budget) if model.trunk_layers > 0 else None
        num_choices = max((len(row.choices) for row in rows.values()), default=0)
        parts, indices = [model.adapters.values.new_zeros(0, num_choices)], []
        for batch, log_probs in run_packed(model, items, pipeline.token_budget, trunk=trunk):
            parts.append(F.pad(log_probs, (0, num_choices - log_probs.shape[1]), value=float("-inf")))
            indices += [item.index for item in batch.items]
        order = torch.tensor(indices, dtype=torch.int64, device=model.device).argsort()
        return torch.cat(parts)[order]

    def failed_members(self) -> dict[int, str]:
        """Members with parameters that are not finite or out of bounds, with a description (see `training.failure`).

        Checking losses and gradients is up to the training loop.
        """
        return parameter_failures(self.pipeline.model.adapters.values)

    def save_pretrained(self, directory: str | os.PathLike[str], members: Sequence[int] | None = None) -> None:
        """Write members as PEFT folders `member_00`, ... into a new directory, atomically.

        `lorchestra import` makes a run of them.

        Args:
            directory: the new directory.
            members: indices of the members to write, numbered in this order; by default all.

        Raises:
            CheckpointError: the directory exists, or cannot be written.
            TrainingError: a member to write has failed.
        """
        model, failed = self.pipeline.model, self.failed_members()
        chosen = list(range(self.num_members) if members is None else members)
        for m in chosen:
            if m in failed:
                good = [other for other in range(self.num_members) if other not in failed]
                raise TrainingError(f"member {m} diverged: {failed[m]}; leave it out: save_pretrained(..., {good})")
        with Workspace.new(Path(directory)) as workspace, workspace.create() as folder:
            save_members(folder, model, model.adapters.values, self.pipeline.base.path_for_peft, chosen)

    def _encoded(self, rows: Sequence[Example] | Sequence[EncodedExample]) -> Sequence[EncodedExample]:
        if rows and isinstance(rows[0], Example):
            return self.encode(cast(Sequence[Example], rows))
        return cast(Sequence[EncodedExample], rows)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Called by `to`, `cuda`, `half`, ...: refuses to move the adapters away from their base."""
        before = self.pipeline.model.adapters.values[:0]
        after = fn(before)
        if (after.device, after.dtype) != (before.device, before.dtype):
            raise ConfigError(
                f"the ensemble is on {before.device} in {before.dtype}, like its base, and cannot be moved to"
                f" {after.device}, {after.dtype}; set base.device and base.dtype when loading it"
            )
        return self


def _calibrated(log_probs_EC: Tensor, calibration: Calibration) -> Tensor:
    """`Calibration.apply` for tensors, `[E, C]` to `[E, C]`.

    The gradient passes through a temperature and vector scaling; isotonic regression, which is flat nearly everywhere,
    counts as a constant shift of each log-probability.
    """
    if calibration.is_identity:
        return log_probs_EC
    absent = log_probs_EC.isneginf()
    finite_EC = log_probs_EC.masked_fill(absent, 0.0)
    if calibration.kind == "isotonic":
        result = calibration.apply(log_probs_EC.detach().double().cpu().numpy())
        result_EC = torch.as_tensor(result, dtype=log_probs_EC.dtype, device=log_probs_EC.device)
        shift_EC = result_EC.masked_fill(absent, 0.0) - finite_EC.detach()
        return (finite_EC + shift_EC).masked_fill(absent, float("-inf"))
    if calibration.temperature is not None:
        scores_EC = finite_EC / calibration.temperature
    else:
        scores_EC = finite_EC * finite_EC.new_tensor(calibration.scale) + finite_EC.new_tensor(calibration.bias)
    return scores_EC.masked_fill(absent, float("-inf")).log_softmax(dim=-1)


def _register(root: nn.Module, name: str, parameter: nn.Parameter) -> None:
    """Register a parameter under a dotted name, with a submodule for each part."""
    *parents, leaf = name.split(".")
    for part in parents:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = root.get_submodule(part)
    root.register_parameter(leaf, parameter)
