"""`lorchestra compare`: methods at equal budget on one configuration's rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from lorchestra.cli.arguments import parse_with_recipe
from lorchestra.config.run import RunConfig


@dataclass(frozen=True)
class CompareArguments(RunConfig):
    """Compare methods at equal budget: fit them on the same rows, and report quality and cost of each.

    Takes the same recipe and options as train. adapt.members is M, the number of members, draws or passes that a method
    may use; the train settings are the budget of one member:

        lorchestra compare recipes/quick.yaml --data.train reviews.csv --out comparisons/reviews

    Methods: zero_shot, few_shot, tfidf and frozen (logistic regression on words, or on the base's hidden states),
    one_lora, lora_ensemble, mc_dropout, high_rank (one LoRA of M times the rank), long_training (one LoRA trained M
    times as long), soup, snapshot, last_layer, swag, laplace, blob (a Gaussian over A, by variational
    inference), batch_ensemble. Append +temperature or +contextual to
    calibrate one: one_lora+temperature. Wrappers share the fit of the method they wrap.
    Settings of a method (docs/design/methods.md) follow after colons, and a method may be listed several times:
    mc_dropout:dropout=0.2,laplace,laplace:layers=last:structure=full+temperature.
    A method that does not apply to the task is left out, with the reason. Intervals are those of the paired difference
    to lora_ensemble. Run the same command again to resume after an interruption, or with more methods to add them.
    lorchestra report turns the directory into a page.
    """

    out: str = field(kw_only=True)
    """The directory of the comparison."""
    methods: str = field(
        default="zero_shot,few_shot,one_lora,one_lora+temperature,lora_ensemble,lora_ensemble+temperature,high_rank,"
        "long_training",
        kw_only=True,
    )
    """Methods, separated by commas; all: every method, and one_lora and lora_ensemble also with temperature."""
    json: bool = field(default=False, kw_only=True)
    """Print the results as JSON instead of a table."""


def run(arguments: Sequence[str]) -> int:
    """Run the command."""
    parsed, config = parse_with_recipe(CompareArguments, arguments, "compare", required=["out"])

    from lorchestra.cli.output import messages, print_json, printer, results
    from lorchestra.cli.progress import CompareProgress
    from lorchestra.cli.stopping import GracefulStop
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
            methods = compare_methods(config, names, parsed.out, callbacks=[progress, stop])
    except Interrupted:
        say("stopped; run the same command again to resume")
        return 130
    if parsed.json:
        print_json({"methods": methods})
    else:
        results().print(methods_table(methods))
    say(f"predictions and results: {parsed.out}; for a page: lorchestra report {parsed.out}")
    return 0 if any("entry" in method for method in methods) else 1


_CALIBRATED = ("one_lora", "lora_ensemble")


def _names(text: str) -> list[str]:
    """Split at commas, except within brackets: the value of a method's setting may be a list."""
    names, depth = [""], 0
    for character in text:
        depth += (character == "[") - (character == "]")
        if character == "," and depth <= 0:
            names.append("")
        else:
            names[-1] += character
    return [name.strip() for name in names if name.strip()]
