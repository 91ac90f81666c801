"""M LoRA members on one frozen base, evaluated together in packed passes."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from lorchestra.config.adapt import AdaptConfig, check_adapt
from lorchestra.errors import ConfigError
from lorchestra.models.init import AdapterSettings, check_adapter_settings, init_adapters, make_adapter_settings
from lorchestra.models.patching import (
    PassSlot,
    decoder_layers,
    gate_layers,
    parse_layers,
    replace_module,
    restrict_head,
    restrict_last_mlp,
    slim_gated_mlps,
)
from lorchestra.models.support import check_architecture, set_attention
from lorchestra.models.targets import features, find_targets
from lorchestra.nn.adapters import StackedAdapters
from lorchestra.nn.attention import make_attention
from lorchestra.nn.kv_cache import PrefixCache
from lorchestra.nn.lora import MemberLoRALinear
from lorchestra.nn.packing import BASE, PackedBatch, pack_prefix
from lorchestra.nn.scoring import choice_log_probs

_instances = itertools.count()


class EnsembleModel:
    """A frozen causal language model with M LoRA members.

    Args:
        model: a transformers causal language model; it is changed in place (see `surgery`) and frozen.
        adapt: number, shape and place of the adapters.
        seed: run seed; see `make_adapter_settings`.
        adapters: each member's own shape and start, where they differ by more than their seeds; their number takes the
            place of `adapt.members`, and the bank has the highest of their ranks.

    Raises:
        ConfigError: an architecture that cannot be packed, unknown layers or target modules, M or a member's settings
            out of range.
    """

    def __init__(
        self, model: nn.Module, adapt: AdaptConfig, seed: int, adapter_settings: Sequence[AdapterSettings] | None = None
    ) -> None:
        if adapter_settings is not None:
            adapt = dataclasses.replace(adapt, members=len(adapter_settings))
        check_adapt(adapt)
        check_architecture(model)
        self.model = model.eval().requires_grad_(False)
        self.adapt = adapt
        self.adapter_settings = (
            make_adapter_settings(adapt, seed) if adapter_settings is None else tuple(adapter_settings)
        )
        check_adapter_settings(adapt, self.adapter_settings)
        self.slot = PassSlot()
        layers = decoder_layers(model)
        self.num_layers = len(layers)
        self.layers = parse_layers(adapt.layers, self.num_layers)
        self.trunk_layers = self.layers[0]
        self.stock_attention: str = model.config._attn_implementation  # type: ignore[union-attr,assignment]
        set_attention(model, _register_attention(self))
        self.adapters = self._insert_members(layers)
        slim_gated_mlps(layers)
        gate_layers(layers, self.slot)
        restrict_last_mlp(layers[-1], self.slot)
        restrict_head(model.get_output_embeddings(), self.slot)  # type: ignore[operator]

    def _insert_members(self, layers: nn.ModuleList) -> StackedAdapters:
        adapt = self.adapt
        targets = find_targets(self.model, layers, self.layers, adapt.target_modules)
        weight = targets[0][1].weight
        rank = max(own.r for own in self.adapter_settings)
        try:
            adapters = StackedAdapters(
                adapt.members,
                rank,
                [(name, *features(linear)) for name, linear in targets],
                dtype=torch.promote_types(weight.dtype, torch.float32),
                device=weight.device,
            )
        except (RuntimeError, MemoryError) as error:  # torch has no class of its own for a full memory on a CPU
            raise ConfigError(
                f"adapt.members: {adapt.members} members of rank {rank} do not fit into the memory of"
                f" {weight.device}; take fewer members or a smaller adapt.r"
            ) from error
        init_adapters(adapters, targets, self.adapter_settings)
        for name, linear in targets:
            lora = MemberLoRALinear(
                linear,
                *adapters.parameters[name],
                scaling=[own.scaling for own in self.adapter_settings],
                dropout=[own.dropout for own in self.adapter_settings],
                slot=self.slot,
                name=name,
            )
            replace_module(self.model, name, lora)
        return adapters

    @property
    def num_members(self) -> int:
        """M."""
        return self.adapt.members

    @property
    def device(self) -> torch.device:
        """Where the base is."""
        return self.adapters.values.device

    def log_probs(self, batch: PackedBatch, hidden: Tensor | None = None) -> Tensor:
        """Normalized log-probabilities of every item's choices, `[B, C]`.

        Args:
            batch: packed items of any members.
            hidden: the batch's trunk `[1, N, D]` (see `trunk`), or None to run the whole model.
        """
        return choice_log_probs(self.logits(batch, hidden, batch.scoring.option_ids), batch.scoring)

    def logits(self, batch: PackedBatch, hidden: Tensor | None, option_ids: Tensor | None) -> Tensor:
        """The head's output at the kept positions, `[K, U]`: of the option ids, or `[K, V]` where they are None."""
        self.slot.option_ids = option_ids
        if hidden is not None:
            self.slot.first_layer, self.slot.hidden = self.trunk_layers, hidden
        try:
            return self._run(batch, keep=batch.scoring.keep).logits[0]
        finally:
            self.slot.option_ids = None
            self.slot.first_layer, self.slot.hidden = 0, None

    def with_vocabulary(self, batch: PackedBatch, hidden: Tensor | None, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """As `log_probs`, `[B, C]`, and normalized log-probabilities of every token where the answer begins.

        Args:
            batch: as for `log_probs`.
            hidden: as for `log_probs`.
            rows: places in the batch of the items whose distribution over the vocabulary is wanted, `[len(rows), V]`.
        """
        logits, scoring = self.logits(batch, hidden, None), batch.scoring
        first = logits[scoring.term_rows[list(rows), 0, 0]]
        options = logits if scoring.option_ids is None else logits[:, scoring.option_ids]
        return choice_log_probs(options, scoring), _log_softmax(first)

    @torch.no_grad()
    def base_states(self, batch: PackedBatch, hidden: Tensor | None = None) -> Tensor:
        """What the output head is given where each item's answer begins, `[B, D]`.

        Args:
            batch: packed items of the base, or of members that have the base's last hidden states.
            hidden: as for `log_probs`.
        """
        seen: list[Tensor] = []
        with self._at_head(lambda given: seen.append(given)):
            self.logits(batch, hidden, batch.scoring.keep.new_zeros(1))  # one token: the logits are not wanted
        return seen[0][0, batch.scoring.term_rows[:, 0, 0]]

    @torch.no_grad()
    def vocabulary_log_probs(self, batch: PackedBatch, states_BD: Tensor) -> Tensor:
        """The distribution over the vocabulary, `[B, V]`, that the head makes of what `base_states` gave.

        The model runs without its layers, so that whatever it does to its head's output (a cap, a scale) is done here,
        too. `batch` is any packed batch: some tokens have to go in.
        """
        self.slot.first_layer = self.num_layers
        try:
            with self._at_head(lambda given: (states_BD[None],)):
                return _log_softmax(self._run(batch, keep=batch.scoring.keep[:1]).logits[0])
        finally:
            self.slot.first_layer = 0

    @contextlib.contextmanager
    def _at_head(self, see: Callable[[Tensor], tuple[Tensor] | None]) -> Iterator[None]:
        """Let `see` look at what the output head is given, and put another tensor in its place."""
        head: nn.Module = self.model.get_output_embeddings()  # type: ignore[operator]
        hook = head.register_forward_pre_hook(lambda _, given: see(given[0]))
        try:
            yield
        finally:
            hook.remove()

    @torch.no_grad()
    def trunk(self, batch: PackedBatch) -> Tensor:
        """Hidden states below the first adapted layer, `[1, N, D]`: frozen, and equal for all members."""
        self.slot.last_layer = self.trunk_layers
        try:
            self._run(batch, keep=batch.scoring.keep[:1])
            captured = self.slot.captured
        finally:
            self.slot.last_layer = self.slot.captured = None
        assert captured is not None
        return captured

    @torch.no_grad()
    def prefill(self, tokens: tuple[int, ...], members: Sequence[int], token_budget: int) -> PrefixCache:
        """Run first tokens that rows have in common once for each member, and keep what attention needs of them.

        Args:
            tokens: the first tokens.
            members: members, ascending, and `BASE` first where it is wanted.
            token_budget: most tokens in one pass, or a single prefix where that has more.
        """
        prefix = PrefixCache(tokens)
        hidden = None
        if self.trunk_layers > 0:  # below the cut, the base stands for all members
            hidden = self.trunk(pack_prefix(prefix, [BASE], self.device))
        at_once = max(1, token_budget // len(tokens))
        for start in range(0, len(members), at_once):
            batch = pack_prefix(prefix, members[start : start + at_once], self.device)
            below = None if hidden is None else hidden.repeat(1, len(batch.items), 1)
            self.log_probs(batch, below)
        return prefix

    def _run(self, batch: PackedBatch, keep: Tensor) -> Any:
        """One pass over a packed batch; the head sees the positions `keep` only."""
        self.slot.packing, self.slot.keep = batch.packing, keep
        try:
            return self.model(
                input_ids=batch.packing.input_ids,
                position_ids=batch.packing.position_ids,
                use_cache=False,
                logits_to_keep=keep,
            )
        finally:
            self.slot.packing = self.slot.keep = None


def _log_softmax(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(dim=-1)


def _register_attention(ensemble: EnsembleModel) -> str:
    """Register this model's attention function under a name of its own, until the model is gone.

    A name a model, because the function must find this model's packing and not every architecture hands extra arguments
    down to its attention.
    """
    name = f"lorchestra_{next(_instances)}"
    AttentionInterface.register(name, make_attention(ensemble.slot))
    weakref.finalize(ensemble, AttentionInterface._global_mapping.pop, name, None)
    return name
