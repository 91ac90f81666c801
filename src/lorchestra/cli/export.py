"""`lorchestra export`: a run's members as PEFT folders or merged models, with a model card."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from lorchestra.cli.arguments import check_run_argument, parse


@dataclass(frozen=True)
class ExportArguments:
    """Write the members of a run as PEFT folders, with a model card (README.md) for the Hugging Face Hub.

    The folders, member_00, member_01, ..., can be loaded by PEFT and vLLM. Failed members are left out. The typed
    questions of a run, if it has some, are written to questions.json.
    """

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run directory."""
    out: str
    """The directory to create; it must not exist yet."""
    merge: bool = False
    """Also write each member as a full model (merged_00, ...), with the adapter merged into the base's weights."""
    base: str | None = None
    """The run's base, if it has moved: hub id, directory or .gguf file with the same weights."""
    base_name: str | None = None
    """Hub id of the base to write into adapters and card, if the run used a local copy that others do not have."""


def run(arguments: Sequence[str]) -> int:
    """Run the command."""
    parsed = parse(ExportArguments, arguments, "export")
    check_run_argument(parsed.run, "export")

    from lorchestra.cli.output import messages, printer
    from lorchestra.report.card import model_card
    from lorchestra.runs.export import export_run, exported_members
    from lorchestra.store.run import Run

    say = printer(messages())
    run_dir = Run.at(parsed.run)
    record = run_dir.read_ensemble()
    names, calibration = exported_members(parsed.run), run_dir.read_calibration(record)
    card = model_card(
        record.to_dict(),
        run_dir.read_config(),
        run_dir.read_splits(),
        {"evaluations": run_dir.read_evaluations()[0]},
        names,
        merged=parsed.merge,
        base_name=parsed.base_name,
        # those of a mixture with a probe do not fit the members alone
        calibrations={} if calibration is None or record.linear_probe else calibration.calibrations,
        questions=record.questions,
        distillation=run_dir.read_distillation(),
    )
    written = export_run(
        parsed.run, parsed.out, card=card, merge=parsed.merge, base_name=parsed.base_name, base=parsed.base
    )
    if parsed.base_name is None and record.base.revision is None:
        path = parsed.base or record.base.path
        say(f"the adapters refer to their base by its local path {path}; to share them, give --base-name")
    count = "one member" if len(names) == 1 else f"{len(names)} members"
    say(f"{count} and README.md, which explains how to use them; choose a license in it before you share them")
    print(written)
    return 0
