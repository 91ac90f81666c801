"""What the base's answers to the evaluated rows cost, estimated from the training's cost before they are made.

A token of a training step costs a forward and a backward pass of the adapted layers, and the backward pass as much as
the forward one, since only the adapters have gradients of weights. So the training's tokens and seconds give the
seconds of one forward pass of the whole base per token.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lorchestra.inference.pipeline import Pipeline
from lorchestra.types import EncodedExample

logger = logging.getLogger(__name__)

SHARE = 0.25
"""Largest share of the training's time that the base's answers may take by default."""
MIN_S = 10.0
"""Seconds that are always acceptable."""


@dataclass(frozen=True)
class CostLimit:
    """Decides whether the base answers rows; without the cost of a training, as of imported members, it always does.

    `train_s` is in seconds, `token_s` in seconds per token of a forward pass of the whole base.
    """

    train_s: float | None = None
    token_s: float = 0.0
    full: bool = False
    """Whether the base answers whatever it costs."""

    @classmethod
    def of(cls, pipeline: Pipeline, cost: Mapping[str, float | None] | None, *, full: bool) -> CostLimit:
        """The limit by the cost of a training, as its record has it."""
        train_s, tokens = (None if cost is None else cost.get(name) for name in ("train_s", "tokens"))
        if not train_s or not tokens:
            return cls(full=full)
        return cls(train_s, train_s / (2 * top_share(pipeline) * tokens), full)

    def seconds(self, tokens: float) -> float | None:
        """Estimated seconds of a forward pass of the whole base; None if unknown."""
        return None if self.train_s is None else tokens * self.token_s

    def reason(self, name: str, tokens: float) -> str | None:
        """Why these tokens are too many; None if they are not. The estimate is logged."""
        seconds = self.seconds(tokens)
        if seconds is None or self.train_s is None:
            return None
        logger.info(
            f"{name} takes about {seconds:.0f} s ({tokens:,.0f} tokens through all layers); the training took"
            f" {self.train_s:.0f} s"
        )
        if self.full or seconds <= max(MIN_S, SHARE * self.train_s):
            return None
        return (
            f"it would take about {seconds:.0f} s, more than a quarter of the training's {self.train_s:.0f} s; include"
            " it with lorchestra evaluate --full, or with --evaluate.full when training"
        )


NO_LIMIT = CostLimit()


def top_share(pipeline: Pipeline) -> float:
    """Share of the layers from the first adapted one up."""
    return 1 - pipeline.model.trunk_layers / pipeline.model.num_layers


def num_tokens(rows: Sequence[EncodedExample]) -> int:
    """Tokens of one pass over the rows. Like those in a training's record they include, per row, first tokens that all
    rows share, which both compute once."""
    return sum(row.num_tokens for row in rows)
