"""An ensemble as a `torch.nn.Module`, for training loops of one's own.

Its parameters are the members' adapters, and nothing else: the base stays outside, frozen, and exists once. Passes are
packed as everywhere in lorchestra, so one call computes all members.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lorchestra.errors import ConfigError, RequestError, TrainingError
from lorchestra.inference.pipeline import Pipeline
from lorchestra.inference.trunk import TrunkCache
from lorchestra.models.peft_files import save_members
from lorchestra.nn.packing import Item, pack, plan_micro_batches
from lorchestra.nn.seeding import derive_seed
from lorchestra.store.workspace import Workspace
from lorchestra.training.failure import parameter_failures
from lorchestra.types import EncodedExample, Example


class EnsembleModule(nn.Module):
    """The members of a session, differentiable.

    Parameters are named `members.<m>.<module>.lora_A.weight` `[R, I]` and `.lora_B.weight` `[O, R]`. They are the very
    tensors that the session predicts with: after an optimizer step its predictions are the new ones. `train` and `eval`
    change nothing; dropout is on in the passes that are given a `dropout_seed`.

    Args:
        session: base, members, prompt and scoring, of a finished run (`Ensemble.as_module`) or a fresh one
            (`build_pipeline`).

    Raises:
        ConfigError: the session is a fresh one with PiSSA. A finished run with it has plain LoRA of twice the rank.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        super().__init__()
        self.pipeline = pipeline
        adapters = pipeline.model.adapters
        if adapters.frozen:
            raise ConfigError(
                "adapt.init_lora_weights: pissa freezes half of each adapter, which lorchestra's own training does and"
                " another optimizer would not; train a run and load it, or take another start"
            )
        for piece in adapters.slices:
            for which, leaves in zip(("A", "B"), adapters.parameters[piece.name], strict=True):
                for m, leaf in enumerate(leaves):
                    _register(self, f"members.{m}.{piece.name}.lora_{which}.weight", leaf)

    @property
    def num_members(self) -> int:
        """M."""
        return self.pipeline.model.num_members

    def member_parameters(self, member: int) -> list[nn.Parameter]:
        """One member's parameters, for an optimizer or a clip of its own."""
        return list(self.get_submodule(f"members.{member}").parameters())

    def encode(self, examples: Sequence[Example]) -> tuple[EncodedExample, ...]:
        """Examples as tokens: worth doing once where rows are used again and again.

        Raises:
            RequestError: a row is too long and would be left out, so rows and results would not match.
        """
        split = self.pipeline.encode(examples)
        if split.dropped:
            first = examples[split.dropped[0]]
            raise RequestError(
                f"{first.where or first.id}: the row has more than {self.pipeline.max_length} tokens; leave it out, or"
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

        Normalized over each row's own choices; -inf past a row's number of choices.

        Args:
            rows: examples, or rows from `encode`.
            members: which members, by default all; `nn.packing.BASE` is the base without adapter.
            dropout_seed: turns on the dropout that the members are configured with; another seed is another mask.
        """
        encoded = self._encoded(rows)
        wanted = range(self.num_members) if members is None else members
        found = self.log_probs([(m, row) for m in wanted for row in encoded], dropout_seed)
        return found.unflatten(0, (len(wanted), len(encoded)))

    def mixture(self, rows: Sequence[Example] | Sequence[EncodedExample], dropout_seed: int | None = None) -> Tensor:
        """Log-probabilities of the ensemble, `[E, C]`: the log of the members' mean *probabilities*.

        Its gradient ties the members together; train on `forward` to keep them independent.
        """
        log_probs_MEC = self(rows, dropout_seed=dropout_seed)
        absent = log_probs_MEC.isneginf().all(dim=0)
        # an absent choice is -inf under every member, where logsumexp has no gradient
        mixed = log_probs_MEC.masked_fill(absent, 0.0).logsumexp(dim=0) - math.log(len(log_probs_MEC))
        return mixed.masked_fill(absent, float("-inf"))

    def log_probs(self, pairs: Sequence[tuple[int, EncodedExample]], dropout_seed: int | None = None) -> Tensor:
        """Log-probabilities of (member, row) pairs, `[B, C]`: members may see different rows in one packed pass."""
        pipeline, model = self.pipeline, self.pipeline.model
        rows: dict[int, EncodedExample] = {}
        for _, row in pairs:
            rows.setdefault(id(row), replace(row, row=len(rows)))
        items = [
            Item(m, rows[id(row)], None if dropout_seed is None else derive_seed(dropout_seed, m, row.row))
            for m, row in pairs
        ]
        place = {id(item): b for b, item in enumerate(items)}
        trunk = TrunkCache(model, list(rows.values()), pipeline.token_budget) if model.trunk_layers > 0 else None
        num_choices = max((len(row.choices) for row in rows.values()), default=0)
        found, order = [model.adapters.values.new_zeros(0, num_choices)], []
        for micro_batch in plan_micro_batches(items, pipeline.token_budget):
            batch = pack(micro_batch, model.device)
            log_probs = model.log_probs(batch, None if trunk is None else trunk.gather(batch))
            found.append(F.pad(log_probs, (0, num_choices - log_probs.shape[1]), value=float("-inf")))
            order += [place[id(item)] for item in micro_batch]
        back = torch.tensor(order, dtype=torch.int64, device=model.device).argsort()
        return torch.cat(found)[back]

    def failed_members(self) -> dict[int, str]:
        """Members with parameters that are not finite or out of bounds, and what is wrong (see `training.failure`).

        Losses and gradients are the loop's to watch.
        """
        return parameter_failures(self.pipeline.model.adapters.values)

    def save_pretrained(self, directory: str | os.PathLike[str], members: Sequence[int] | None = None) -> None:
        """Write members as PEFT folders `member_00`, ... into a new directory, which appears whole.

        `lorchestra import` makes a run of them.

        Args:
            directory: the directory to make.
            members: which to write, numbered in this order; by default all.

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

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """What `to`, `cuda`, `half` and the like call: the adapters cannot leave their base."""
        before = self.pipeline.model.adapters.values[:0]
        after = fn(before)
        if (after.device, after.dtype) != (before.device, before.dtype):
            raise ConfigError(
                f"the ensemble lives on {before.device} in {before.dtype} with its base and cannot be moved to"
                f" {after.device}, {after.dtype}; set base.device and base.dtype where it is loaded"
            )
        return self


def _register(root: nn.Module, name: str, parameter: nn.Parameter) -> None:
    """Register a parameter under a dotted name, with a module for each part."""
    *parents, leaf = name.split(".")
    for part in parents:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = root.get_submodule(part)
    root.register_parameter(leaf, parameter)
