"""`lorchestra predict --engine ray`: the answers as a directory of parts, made on a Ray cluster."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from lorchestra.cli.output import messages, printer
from lorchestra.cli.predict_arguments import PredictArguments, data_settings, made_with, sentences
from lorchestra.cli.progress import RowProgress
from lorchestra.data.readers.streams import STANDARD_INPUT
from lorchestra.errors import CheckpointError, ConfigError
from lorchestra.runs.cluster.answers import AnswerJob, AnswerSettings, answer_parts
from lorchestra.store.run import Run
from lorchestra.store.safe_paths import typed_path

if TYPE_CHECKING:
    from lorchestra.report.answers import AnswerFormat


def predict_parts(parsed: PredictArguments, form: AnswerFormat) -> int:
    """Answer all rows; returns the exit code.

    Raises:
        ConfigError: an option that a cluster has no use for.
        LorchestraError: see `answer_parts`.
    """
    out = _checked_out(parsed)
    run = Run.at(parsed.run)
    job = AnswerJob(
        run=str(run.root.absolute()),
        data=data_settings(parsed.reading, run.read_config().data),
        of=made_with(parsed, form),
        form=form,
        settings=AnswerSettings(
            base=_absolute(parsed.base),
            abstain_below=parsed.abstain_below,
            early_exit=parsed.early_exit,
            too_long=parsed.reading.too_long,
            raw=parsed.raw,
            decisions=parsed.decisions,
            on_error=parsed.on_error,
            top=parsed.top,
        ),
    )
    console = messages()
    say = printer(console)
    try:
        with RowProgress(console) as progress:
            outcome = answer_parts(
                job,
                parsed.data,
                out,
                address=parsed.where.address,
                workers=parsed.where.workers,
                overwrite=parsed.if_exists == "overwrite",
                callback=progress,
            )
    except KeyboardInterrupt:
        say(f"stopped; run the same command again to answer the rows that are not in the parts of {out}")
        raise
    counts = outcome.counts
    before = f", {outcome.num_finished_before} of them finished before" if outcome.num_finished_before else ""
    say(f"{counts.rows} rows: {outcome.num_parts} parts in {out}{before}")
    for sentence in sentences(counts, outcome.max_length):
        say(sentence)
    if counts.answered and form.early_exit:
        say(f"{counts.members_used / counts.answered:.2f} members per row")
    return 2 if counts.failed == counts.rows else 0


def _absolute(base: str | None) -> str | None:
    """A base's path as other processes can use it; a hub id stays."""
    return os.path.abspath(base) if base is not None and os.path.exists(base) else base


def _checked_out(parsed: PredictArguments) -> str:
    out = parsed.out
    if out is None or out == "-":
        raise ConfigError("--engine ray: needs a directory for the parts; give --out DIR")
    if "://" in out:
        raise ConfigError(f"--out {out}: is a URL; give a directory on a file system that all nodes see")
    if parsed.data == STANDARD_INPUT:
        raise ConfigError("--data -: workers on a cluster answer files; leave --engine ray out for standard input")
    if parsed.cascade:
        raise ConfigError("--cascade: not with --engine ray; leave one of the two out")
    path = typed_path(out)
    if os.path.isfile(path):
        raise CheckpointError(f"--out {out}: is a file; --engine ray writes a directory of parts")
    if parsed.if_exists == "fail" and os.path.exists(path):
        raise CheckpointError(f"--out {out}: exists already; choose another name, or --if-exists overwrite")
    return out
