"""`lorchestra compare`: methods at equal budget on one configuration's rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from lorchestra.cli.arguments import parse_with_recipe
from lorchestra.config.run import RunConfig


@dataclass(frozen=True)
class CompareArguments(RunConfig):
    """Compare methods at equal budget: fit them on the same rows, and tell quality and cost of each.

    Takes the same recipe and options as train: adapt.members is M, the number of members, draws or passes that a method
    may use, and train the budget of one member:

        lorchestra compare recipes/quick.yaml --data.train reviews.csv --out comparisons/reviews

    Methods: zero_shot, few_shot, one_lora, lora_ensemble, mc_dropout, high_rank (one LoRA of M times the rank),
    long_training (one LoRA trained M times as long), soup, snapshot, last_layer, swag, laplace, batch_ensemble. Behind
    each may stand +temperature or +contextual: one_lora+temperature. Wrappers share the fit of the method below them.
    A method's own settings (docs/design/methods.md) stand behind colons, and so may a method come twice:
    mc_dropout:dropout=0.2,laplace,laplace:layers=last:structure=full+temperature.
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

    from lorchestra.cli.output import messages, print_json, printer, results
    from lorchestra.cli.progress import CompareProgress, GracefulStop
    from lorchestra.methods.registry import METHODS
    from lorchestra.report.comparisons import methods_table
    from lorchestra.runs.compare import compare_methods
    from lorchestra.training.callbacks import Interrupted

    names = _names(parsed.methods)
    if names == ["all"]:
        names = [n for name in METHODS for n in (name, f"{name}+temperature") if n == name or name in _CALIBRATED]
    console = messages()
    say = printer(console)
    try:
        with CompareProgress(console) as progress, GracefulStop() as stop:
            found = compare_methods(config, names, parsed.out, callbacks=[progress, stop])
    except Interrupted:
        say("stopped; the same command goes on")
        return 130
    if parsed.json:
        print_json({"methods": found})
    else:
        results().print(methods_table(found))
    say(f"predictions and results: {parsed.out}; as a page: lorchestra report {parsed.out}")
    return 0 if any("entry" in one for one in found) else 1


_CALIBRATED = ("one_lora", "lora_ensemble")


def _names(text: str) -> list[str]:
    """Names parted by commas, but for those in brackets: a list as a setting's value has commas of its own."""
    names, depth = [""], 0
    for letter in text:
        depth += (letter == "[") - (letter == "]")
        if letter == "," and depth <= 0:
            names.append("")
        else:
            names[-1] += letter
    return [name.strip() for name in names if name.strip()]
