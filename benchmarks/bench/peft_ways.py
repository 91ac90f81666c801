"""PEFT as commonly used for several adapters: one member after the other, with padded batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import Tensor

from bench.rows import OPTIONS, batches, padded
from bench.setting import LR
from lorchestra.config.adapt import AdaptConfig
from lorchestra.nn.adapters import StackedAdapters
from lorchestra.nn.packing import Item
from lorchestra.types import EncodedExample


def head_logits(model: Any, rows: Sequence[EncodedExample], all_positions: bool, **more: Any) -> Tensor:
    """The choices' logits at the answer position, `[B, C]`, by a plain or a PEFT model."""
    keep = 0 if all_positions else 1
    outputs = model(**padded(rows, model.device), use_cache=False, logits_to_keep=keep, **more)
    return outputs.logits[:, -1, OPTIONS]


class PeftMembers:
    """The first `members` members of an ensemble as adapters m0, m1, ... of one PEFT model.

    Training uses one `torch.optim.AdamW` per member, without decay, and clips gradient norms at 1.
    """

    def __init__(self, modules: Any, adapters: StackedAdapters, adapt: AdaptConfig, members: int) -> None:
        config = LoraConfig(
            r=adapt.r,
            lora_alpha=adapt.lora_alpha,  # type: ignore[arg-type]
            target_modules=[piece.name for piece in adapters.slices],
            task_type="CAUSAL_LM",
        )
        self.model = get_peft_model(modules, config, adapter_name="m0")
        for m in range(1, members):
            self.model.add_adapter(f"m{m}", config)
        self.model.eval()  # there is no dropout; adapter_names requires it
        self.adapters = [self._filled(adapters, m) for m in range(members)]
        self.optimizers = [torch.optim.AdamW(adapter, lr=LR, weight_decay=0.0) for adapter in self.adapters]

    @property
    def num_members(self) -> int:
        """M."""
        return len(self.adapters)

    @torch.no_grad()
    def _filled(self, adapters: StackedAdapters, m: int) -> list[torch.nn.Parameter]:
        """Adapter m's parameters, set to the ensemble's values."""
        parameters = []
        for piece in adapters.slices:
            module: Any = self.model.get_submodule(f"base_model.model.{piece.name}")
            for which in ("A", "B"):
                weight = getattr(module, f"lora_{which}")[f"m{m}"].weight
                weight.copy_(adapters.view(adapters.values[m], piece, which))
                parameters.append(weight)
        return parameters

    def train(self, items: Sequence[Item], way: str) -> list[float]:
        """One optimizer step of every member on its items; returns their losses."""
        losses = []
        for m, (adapter, optimizer) in enumerate(zip(self.adapters, self.optimizers, strict=True)):
            loss = self.loss(m, [item.example for item in items if item.member == m], way)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(adapter, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        return losses

    def loss(self, m: int, rows: Sequence[EncodedExample], way: str) -> Tensor:
        """Member m's mean cross-entropy over the choices."""
        self.model.set_adapter(f"m{m}")
        logits = head_logits(self.model, rows, all_positions=way == "a0")
        answers = torch.tensor([row.answer for row in rows], device=logits.device)
        return F.cross_entropy(logits.float(), answers)

    @torch.no_grad()
    def predict(self, rows: Sequence[EncodedExample], way: str, batch: int) -> np.ndarray:
        """Log-probabilities `[M, E, C]` of rows at their `row` index."""
        log_probs = np.empty((self.num_members, len(rows), len(OPTIONS)))
        cut = batches(rows, batch, by_length=way in ("b", "c"))
        if way == "c":
            for group in cut:
                names = [f"m{m}" for m in range(self.num_members) for _ in group]
                logits = head_logits(self.model, group * self.num_members, False, adapter_names=names)
                member_log_probs = logits.float().log_softmax(-1).unflatten(0, (self.num_members, len(group)))
                log_probs[:, [row.row for row in group]] = member_log_probs.numpy()
            return log_probs
        for m in range(self.num_members):
            self.model.set_adapter(f"m{m}")
            for group in cut:
                logits = head_logits(self.model, group, way == "a0")
                log_probs[m, [row.row for row in group]] = logits.float().log_softmax(-1).numpy()
        return log_probs
