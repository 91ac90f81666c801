"""`lorchestra predict`: one JSON line a row, with uncertainty."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from lorchestra.cli.arguments import check_run_argument, parse
from lorchestra.errors import ConfigError


@dataclass(frozen=True)
class PredictArguments:
    """Answer every row of a file: one JSON line a row, with the ensemble's probabilities and uncertainty.

    The rows have the form the run was trained on; answers are not needed. Lines go to stdout, or to --out.
    """

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run directory."""
    data: str
    """The file with the rows."""
    out: str | None = None
    """File to write instead of stdout; it appears whole or not at all."""
    base: str | None = None
    """Where the run's base is now, if it has moved: hub id, directory or .gguf file with the same weights."""
    abstain_below: float | None = None
    """Mark rows whose confidence is below this, in [0, 1], as ones to leave to a person."""
    early_exit: str | None = None
    """Ask a row's members one after the other, and stop when its answer can no longer change (exact), or when the mean
    probability of two or more reaches this number in (0, 1]. Lines get members_used."""


def run(arguments: Sequence[str]) -> int:
    """Run the command."""
    parsed = parse(PredictArguments, arguments, "predict")
    check_run_argument(parsed.run, "predict")
    threshold = parsed.abstain_below
    if threshold is not None and not 0 <= threshold <= 1:
        raise ConfigError(f"--abstain-below: {threshold} is not in [0, 1]")

    from lorchestra.core.early_exit import ExitRule

    rule = None if parsed.early_exit is None else ExitRule.parse(parsed.early_exit)

    from lorchestra.cli.output import messages, speaker
    from lorchestra.cli.progress import RowProgress
    from lorchestra.experiments.load import early_exit_rows, load_run, prediction_rows
    from lorchestra.store.atomic import atomic_write_text

    errors = messages()
    say = speaker(errors)
    with RowProgress(errors) as progress:
        trained = load_run(parsed.run, say, base=parsed.base)
        examples = trained.read(parsed.data, require_answer=False)

        def tell(done: int) -> None:
            progress("predicting", done, len(examples))

        rows: Iterable[dict[str, Any]]
        if rule is None:
            rows = prediction_rows(trained.session.predict_members(examples, "predict", tell), threshold)
        else:
            early = trained.session.predict_early(examples, "predict", rule, tell)
            rows = early_exit_rows(early, threshold)
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    if parsed.out is None:
        sys.stdout.writelines(lines)
    else:
        atomic_write_text(parsed.out, "".join(lines))
        say(f"{len(lines)} rows: {parsed.out}")
    if rule is not None and lines:
        say(f"early exit ({rule}): {early.members_used.mean():.2f} of {early.num_members} members a row")
    return 0
