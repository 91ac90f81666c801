"""MC dropout of one LoRA: dropout kept on at test time, as many passes as there are members (arXiv 1506.02142)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lorchestra.core.seeding import derive_seed
from lorchestra.engine.predict import Pass
from lorchestra.engine.session import Session
from lorchestra.types import Example, Predictions


def predict(
    session: Session,
    examples: Sequence[Example],
    split: str,
    seed: int,
    member: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Predictions:
    """M passes of one member with different dropout masks; the passes run as members of one packed pass."""
    passes = [Pass(member, derive_seed(seed, "mc_dropout", draw)) for draw in range(session.model.num_members)]
    return session.predict(examples, passes, split, progress=progress)
