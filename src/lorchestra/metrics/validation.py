"""Notes on validation rows that decide little: they choose the kept adapters, the best member and temperatures."""

from __future__ import annotations

from collections.abc import Sequence

from lorchestra.metrics.predictive import IntArray

FEW_ROWS = 50
"""With fewer rows there is a note: the standard error of a mean NLL is then about a tenth of a nat."""


def only_answer(labels_E: IntArray | Sequence[int], options: Sequence[tuple[str, ...]]) -> str | None:
    """The one answer that all rows have, in quotes; None with several answers, or where choices differ by row.

    Where choices differ by row, an index is not a class, and equal indices mean nothing.
    """
    labels = {int(label) for label in labels_E}
    if len(labels) != 1 or len(set(options)) != 1 or len(options[0]) < 2:
        return None
    return repr(options[0][labels.pop()])


def weak_validation(labels_E: IntArray | Sequence[int], options: Sequence[tuple[str, ...]]) -> list[str]:
    """Sentences about validation rows that are few or have a single answer.

    Args:
        labels_E: answers, as indices of choices.
        options: each row's choices.
    """
    notes = []
    chosen = "The kept adapters, the best member and temperatures are chosen on"
    if len(options) < FEW_ROWS:
        rows = f"{len(options)} validation rows" if len(options) > 1 else "one validation row"
        notes.append(f"{chosen} {rows} only: with fewer than {FEW_ROWS}, chance decides much of it.")
    if (answer := only_answer(labels_E, options)) is not None:
        notes.append(
            f"All validation rows have the answer {answer}: they cannot tell whether other answers are learned; give"
            " rows of every label with --data.val."
        )
    return notes
