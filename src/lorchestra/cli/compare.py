"""`lorchestra compare`: methods at equal budget on one configuration's rows."""

from __future__ import annotations

import json as jsonlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lorchestra.cli.arguments import parse_with_recipe
from lorchestra.engine.config import RunConfig

if TYPE_CHECKING:
    from rich.console import Console

    from lorchestra.engine.observer import StepReport
    from lorchestra.engine.state import TrainState


@dataclass(frozen=True)
class CompareArguments(RunConfig):
    """Compare methods at equal budget: fit them on the same rows, and tell quality and cost of each.

    Takes the same recipe and options as train: adapt.members is M, the number of members, draws or passes that a method
    may use, and train the budget of one member:

        lorchestra compare recipes/quick.yaml --data.train reviews.csv --out comparisons/reviews

    Methods: zero_shot, few_shot, one_lora, lora_ensemble, mc_dropout, high_rank (one LoRA of M times the rank),
    long_training (one LoRA trained M times as long), soup, snapshot, last_layer, swag, laplace, batch_ensemble. Behind
    each may stand +temperature or +contextual: one_lora+temperature. Wrappers share the fit of the method below them.
    A method that cannot do the task is left out, with the reason. Intervals are of the paired difference to
    lora_ensemble. The same command goes on after an interruption, and with more methods adds them. lorchestra report
    makes a page of the directory.
    """

    out: str = field(kw_only=True)
    """The directory of the comparison."""
    methods: str = field(
        default="zero_shot,few_shot,one_lora,one_lora+temperature,lora_ensemble,lora_ensemble+temperature,high_rank,"
        "long_training",
        kw_only=True,
    )
    """Methods, parted by commas; all: every method, and one_lora and lora_ensemble also with temperature."""
    json: bool = field(default=False, kw_only=True)
    """Print the results as JSON instead of a table."""


def run(arguments: Sequence[str]) -> int:
    """Run the command."""
    parsed, config = parse_with_recipe(CompareArguments, arguments, "compare", required=["out"])

    from lorchestra.cli.output import messages, results, speaker
    from lorchestra.cli.train import GracefulStop
    from lorchestra.engine.observer import Interrupted
    from lorchestra.experiments.compare import compare_methods
    from lorchestra.methods.registry import METHODS
    from lorchestra.report.methods import methods_table

    names = [name.strip() for name in parsed.methods.split(",") if name.strip()]
    if names == ["all"]:
        names = [n for name in METHODS for n in (name, f"{name}+temperature") if n == name or name in _CALIBRATED]
    console = messages()
    say = speaker(console)
    try:
        with CompareProgress(console) as progress, GracefulStop() as stop:
            found = compare_methods(config, names, parsed.out, say=say, observe=progress.attach, should_stop=stop)
    except Interrupted:
        say("stopped; the same command goes on")
        return 130
    if parsed.json:
        print(jsonlib.dumps({"methods": found}, ensure_ascii=False))
    else:
        results().print(methods_table(found))
    say(f"predictions and results: {parsed.out}; as a page: lorchestra report {parsed.out}")
    return 0 if any("entry" in one for one in found) else 1


_CALIBRATED = ("one_lora", "lora_ensemble")


class CompareProgress:
    """Shows which method is at what: one line rewritten in a terminal, a line now and then elsewhere."""

    def __init__(self, console: Console) -> None:
        from lorchestra.cli.progress import PLAIN_EVERY_S

        self.console = console
        self._every_s = PLAIN_EVERY_S
        self._status = console.status("") if console.is_terminal else None
        self._name = ""
        self._last_line = time.monotonic()

    def attach(self, name: str) -> CompareProgress:
        """Follow this method from now on."""
        self._name = name
        return self

    def __enter__(self) -> CompareProgress:
        """Start."""
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(self, *unused: object) -> None:
        """Clear the line."""
        if self._status is not None:
            self._status.stop()

    def on_step(self, report: StepReport, state: TrainState) -> None:
        """Show how far the training is."""
        self._show(f"epoch {report.epoch + 1}, step {state.step}, {report.tokens / report.seconds:,.0f} tokens/s")

    def on_evaluation(self, entry: dict[str, Any], state: TrainState) -> None:
        """Show the validation NLL, the mean over members."""
        known = [nll for nll in entry["val_nll"] if nll is not None]
        if known:
            self._show(f"epoch {entry['epoch']}, validation NLL {sum(known) / len(known):.3f}")

    def on_phase(self, text: str, done: int, total: int) -> None:
        """Show work that is no training step."""
        self._show(f"{text}: {done} of {total} rows")

    def _show(self, text: str) -> None:
        if self._status is not None:
            self._status.update(f"{self._name}: {text}")
        elif time.monotonic() - self._last_line > self._every_s:
            self._last_line = time.monotonic()
            self.console.print(f"{self._name}: {text}", highlight=False, markup=False, soft_wrap=True)
