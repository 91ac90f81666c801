"""M LoRA members on one frozen base, run together in packed passes."""

from __future__ import annotations

import dataclasses
import itertools
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from lorchestra.config.adapt import AdaptConfig, check_adapt
from lorchestra.errors import ConfigError
from lorchestra.models.init import AdapterSettings, check_adapter_settings, init_adapters, make_adapter_settings
from lorchestra.models.patching import (
    decoder_layers,
    gate_layers,
    parse_layers,
    replace_module,
    restrict_head,
    restrict_last_mlp,
    slim_gated_mlps,
    text_config,
)
from lorchestra.models.support import check_architecture, set_attention
from lorchestra.models.targets import features, find_targets
from lorchestra.nn.adapters import StackedAdapters
from lorchestra.nn.attention import make_attention
from lorchestra.nn.context import ContextSlot, ForwardContext
from lorchestra.nn.head import MemberHead
from lorchestra.nn.kv_cache import PrefixCache
from lorchestra.nn.lora import MemberLoRALinear
from lorchestra.nn.packing import BASE, PackedBatch, pack_prefix
from lorchestra.nn.scoring import choice_log_probs

_instances = itertools.count()


@dataclass(frozen=True, slots=True)
class LayerInputs:
    """An output kind: the inputs of these decoder layers, ascending. Layers from the last of them on are skipped."""

    layers: tuple[int, ...]


OutputKind = Literal["log_probs", "logits", "head_states", "trunk"] | LayerInputs
"""What a forward pass returns; see `EnsembleModel.forward`."""


class EnsembleModel:
    """A frozen causal language model with M LoRA members.

    Args:
        model: a transformers causal language model; it is frozen and patched in place (see `models.patching`).
        adapt: number and shape of the adapters, and the modules to adapt.
        seed: run seed; see `make_adapter_settings`.
        adapter_settings: rank, scaling and initialization per member, if members differ in more than their seeds. Their
            number replaces `adapt.members`; the highest of their ranks is that of the stacked adapters.
        num_labels: number of labels of a classification head per member, for rows that are `by_head`. It is zero until
            something is loaded or it is trained.

    Raises:
        ConfigError: the architecture cannot be packed, layers or target modules are unknown, M or a member's settings
            are out of range, or the adapters do not fit into memory.
    """

    def __init__(
        self,
        model: nn.Module,
        adapt: AdaptConfig,
        seed: int,
        adapter_settings: Sequence[AdapterSettings] | None = None,
        num_labels: int | None = None,
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
        self.slot = ContextSlot()
        self.gradient_checkpointing = False
        layers = decoder_layers(model)
        self.num_layers = len(layers)
        self.layers = parse_layers(adapt.layers, self.num_layers)
        self.trunk_layers = self.layers[0]
        self.stock_attention: str = model.config._attn_implementation  # type: ignore[union-attr,assignment]
        set_attention(model, _register_attention(self))
        self.adapters = self._insert_members(layers, num_labels)
        self.head = None if num_labels is None else MemberHead(self.adapters.heads)
        slim_gated_mlps(layers)
        gate_layers(layers, self.slot)
        restrict_last_mlp(layers[-1], self.slot)
        restrict_head(model.get_output_embeddings(), self.slot)  # type: ignore[operator]

    def _insert_members(self, layers: nn.ModuleList, num_labels: int | None) -> StackedAdapters:
        adapt = self.adapt
        targets = find_targets(self.model, layers, self.layers, adapt.target_modules)
        weight = targets[0][1].weight
        rank = max(settings.r for settings in self.adapter_settings)
        try:
            adapters = StackedAdapters(
                adapt.members,
                rank,
                [(name, *features(linear)) for name, linear in targets],
                dtype=torch.promote_types(weight.dtype, torch.float32),
                device=weight.device,
                head_shape=None if num_labels is None else (num_labels, self.hidden_size),
            )
        except (RuntimeError, MemoryError) as error:  # torch has no exception class for a full memory on a CPU
            raise ConfigError(
                f"adapt.members: {adapt.members} members of rank {rank} do not fit into the memory of"
                f" {weight.device}; use fewer members or a smaller adapt.r"
            ) from error
        init_adapters(adapters, targets, self.adapter_settings)
        for name, linear in targets:
            lora = MemberLoRALinear(
                linear,
                *adapters.parameters[name],
                scaling=[settings.scaling for settings in self.adapter_settings],
                dropout=[settings.dropout for settings in self.adapter_settings],
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
        """The device of base and adapters."""
        return self.adapters.values.device

    @property
    def dtype(self) -> torch.dtype:
        """Number format of the base and its hidden states; adapters are float32 or wider."""
        return next(self.model.parameters()).dtype

    @property
    def hidden_size(self) -> int:
        """D."""
        return text_config(self.model).hidden_size

    def forward(
        self,
        batch: PackedBatch,
        outputs: OutputKind = "log_probs",
        *,
        hidden: Tensor | None = None,
        head_states: Tensor | None = None,
    ) -> Tensor:
        """Run a packed batch through the model and return one kind of output.

        Each member's adapters apply to the tokens of its items, and none to items of `BASE`. Gradients are recorded as
        usual, for "log_probs" and "logits" only. Nothing else in lorchestra calls the transformers model.

        Args:
            batch: packed items, see `pack`.
            outputs: what to return:

                - log_probs: normalized log-probabilities of each item's choices, `[B, C]`, by the output head or, for
                  rows that are `by_head`, by the members' classification heads;
                - logits: logits over the vocabulary `[K, V]` at the positions `batch.scoring.keep`, or, if an item has
                  no choices, at the last prefix token of each item;
                - head_states: the input of the output head at these positions, `[K, D]`;
                - trunk: hidden states below the first adapted layer, `[1, N, D]`, the same for all members;
                - LayerInputs: hidden states before each of its layers, `[L, N, D]`.
            hidden: the batch's trunk, `[1, N, D]`: the layers below the first adapted one are skipped.
            head_states: input of the head, without gradient. All layers are skipped, but the model still runs, so that
                a cap or scale after the head is applied. With "logits" `[B, D]`: any batch will do, and the result is
                `[B, V]`. With "log_probs" `[K, D]`: what "head_states" returned for this batch.

        Raises:
            ValueError: "log_probs" of items without choices; of the base, or "logits", for rows that are `by_head`.
        """
        if outputs == "log_probs" and head_states is not None and batch.scoring.by_head:
            return self._head_log_probs(batch, head_states)
        context = self._context(batch, outputs, hidden, head_states)
        with_gradient = outputs in ("log_probs", "logits") and head_states is None
        with torch.set_grad_enabled(with_gradient and torch.is_grad_enabled()), self.slot.use(context):
            result = self.model(
                input_ids=batch.packing.input_ids,
                position_ids=batch.packing.position_ids,
                use_cache=False,
                logits_to_keep=context.keep,
            )
        if outputs == "trunk" or isinstance(outputs, LayerInputs):
            return torch.cat(context.captured)
        if outputs == "head_states":
            return context.captured[0][0]
        if context.capture_head:  # outside of the model, whose caps and scales are for logits over the vocabulary
            return self._head_log_probs(batch, context.captured[0][0])
        if outputs == "logits":
            return result.logits[0]
        return choice_log_probs(result.logits[0], batch.scoring)

    def _head_log_probs(self, batch: PackedBatch, states_BD: Tensor) -> Tensor:
        if self.head is None:
            raise ValueError("the model was made without classification heads; see num_labels")
        logits_BC = self.head(states_BD, [item.member for item in batch.items])
        return choice_log_probs(logits_BC, batch.scoring)

    def _context(
        self, batch: PackedBatch, outputs: OutputKind, hidden: Tensor | None, head_states: Tensor | None
    ) -> ForwardContext:
        captured = () if isinstance(outputs, str) else outputs.layers
        if outputs == "trunk":
            captured = (self.trunk_layers,)
        captures_head = outputs == "head_states"
        reads_choices = not captured and head_states is None and all(i.example.choices for i in batch.items)
        keep = batch.scoring.keep if reads_choices else torch.tensor(batch.last_positions, device=self.device)
        first_layer = 0 if hidden is None else self.trunk_layers
        option_ids = None
        if outputs == "log_probs":
            option_ids, captures_head = batch.scoring.option_ids, batch.scoring.by_head
        elif outputs == "logits" and reads_choices and batch.scoring.by_head:
            raise ValueError("rows that are scored by a classification head have no logits over the vocabulary")
        if captures_head:
            option_ids = keep.new_zeros(1)  # a single token, since the logits are not read
        if head_states is not None:
            first_layer = self.num_layers
        return ForwardContext(
            packing=batch.packing,
            keep=keep[:1] if captured or head_states is not None else keep,
            first_layer=first_layer,
            last_layer=max(captured, default=None),
            capture_inputs=frozenset(captured),
            hidden=hidden,
            option_ids=option_ids,
            head_states=head_states,
            capture_head=captures_head,
            checkpointing=self.gradient_checkpointing,
        )

    @torch.no_grad()
    def prefill(self, tokens: tuple[int, ...], members: Sequence[int], token_budget: int) -> PrefixCache:
        """Run a prefix that rows share once per member, and cache its keys and values.

        Args:
            tokens: the prefix.
            members: ascending; `BASE` is the first where it is included.
            token_budget: most tokens in one pass, unless a single prefix has more.
        """
        prefix = PrefixCache(tokens)
        trunk = None
        if self.trunk_layers > 0:  # the layers below the first adapted one run once, as the base
            trunk = self.forward(pack_prefix(prefix, [BASE], self.device), "trunk")
        num_at_once = max(1, token_budget // len(tokens))
        for start in range(0, len(members), num_at_once):
            batch = pack_prefix(prefix, members[start : start + num_at_once], self.device)
            hidden = None if trunk is None else trunk.repeat(1, len(batch.items), 1)
            self.forward(batch, "head_states", hidden=hidden)
        return prefix


def _register_attention(ensemble: EnsembleModel) -> str:
    """Register this model's attention function under a unique name, for the lifetime of the model.

    One name per model: the function reads this model's packing, and not every architecture passes extra arguments
    through to its attention.
    """
    name = f"lorchestra_{next(_instances)}"
    AttentionInterface.register(name, make_attention(ensemble.slot))
    weakref.finalize(ensemble, AttentionInterface._global_mapping.pop, name, None)
    return name
