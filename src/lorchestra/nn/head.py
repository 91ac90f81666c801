"""A linear classification head per member, on the hidden states that a packed pass reads."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor, nn

from lorchestra.nn.packing import BASE

STEP_SCALE = 1 / 16
"""A stored parameter times this is a weight of the head.

AdamW changes every parameter by about the learning rate. A logit is a sum over all D hidden features, an output of an
adapter one over its few ranks; so at an adapter's rate an unscaled head alone would decide the first steps.
"""


class MemberHead(nn.Module):
    """Logits of labels under each row's member: `STEP_SCALE * H_m x`, without a bias.

    Args:
        parameters: H_m `[C, D]`, one per member.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        super().__init__()
        self.weights = nn.ParameterList(parameters)

    @property
    def num_labels(self) -> int:
        """C."""
        return len(self.weights[0])

    def forward(self, states_BD: Tensor, members: Sequence[int]) -> Tensor:
        """Logits `[B, C]` of the states of rows whose members are in groups, in the adapters' number format.

        Raises:
            ValueError: a row is the base's, which has no head.
        """
        if BASE in members:
            raise ValueError("the base has no classification head; score its answers by text")
        parts, start = [], 0
        for member, group in groupby(members):
            stop = start + len(list(group))
            weight = self.weights[member]
            parts.append(states_BD[start:stop].to(weight.dtype) @ weight.t())
            start = stop
        return torch.cat(parts) * STEP_SCALE
