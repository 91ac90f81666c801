"""`lorchestra plan`: memory and time of a training, estimated before running it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from lorchestra.cli.arguments import parse_with_recipe
from lorchestra.config.run import RunConfig
from lorchestra.errors import ConfigError


@dataclass(frozen=True)
class PlanArguments(RunConfig):
    """Estimate memory, disk space and time of a training before running it.

    Takes the same recipe and options as train:

        lorchestra plan recipes/quick.yaml --data.train reviews.csv

    Rows are read and the base is loaded as for training, and a few seconds of training passes measure the speed of this
    machine and the memory they need. So the base itself must fit into memory. The time covers all epochs, without early
    stopping, loading the base, and the evaluation on test rows. If the training does not fit, settings that would help
    are listed, and the exit code is 1.

    Before there is a base or a machine, arithmetic gives the same figures for bases from 135M to 70B parameters, 1 to
    20 members and 1 to 64 devices:

        lorchestra plan recipes/quick.yaml --what-if
        lorchestra plan --what-if --base.device cuda --device-gb 80 --device-tflops 500 --device-gb-per-s 2000
    """

    out: str = field(default=".", kw_only=True)
    """Where the run directory would be: its disk is checked for space."""
    seconds: float = field(default=10.0, kw_only=True)
    """Duration of the measurement; a longer one is more accurate on a busy machine."""
    json: bool = field(default=False, kw_only=True)
    """Print JSON instead of a table."""
    what_if: bool = field(default=False, kw_only=True)
    """Instead, tables for other bases, numbers of members and devices, by arithmetic: no base is loaded, and without
    --data.train rows are assumed."""
    bases: tuple[str, ...] = field(default=(), kw_only=True)
    """With --what-if: smollm2-135m, llama-3.2-1b, llama-3.1-8b, llama-3.1-70b (default: all), or the config.json or
    directory of a Llama, Mistral or Qwen2."""
    members: tuple[int, ...] = field(default=(), kw_only=True)
    """With --what-if: numbers of members (default: 1 2 5 10 20)."""
    devices: tuple[int, ...] = field(default=(), kw_only=True)
    """With --what-if: numbers of devices that the members are split over (default: 1 2 4 8 16 32 64)."""
    device_gb: float | None = field(default=None, kw_only=True)
    """With --what-if: memory of a device in GB; default: what is free here."""
    device_tflops: float | None = field(default=None, kw_only=True)
    """With --what-if: TFLOP/s that a device reaches in matrix products, which is less than its data sheet says;
    default: measured on this processor."""
    device_gb_per_s: float | None = field(default=None, kw_only=True)
    """With --what-if: GB/s that a device reaches in element-wise operations; default: 12 per thread."""


def run(arguments: Sequence[str]) -> int:
    """Run the command."""
    parsed, config = parse_with_recipe(PlanArguments, arguments, "plan")
    if not 0 < parsed.seconds < 3600:
        raise ConfigError(f"--seconds: {parsed.seconds} is not a number of seconds above 0 and below 3600")
    if parsed.what_if:
        return _tabulate(parsed, config)
    for name in _WHAT_IF:
        if getattr(parsed, name) not in ((), None):
            raise ConfigError(f"--{name.replace('_', '-')}: is for --what-if; add that, or leave it out")

    from lorchestra.cli.output import messages, print_json, results
    from lorchestra.cli.progress import PlanProgress
    from lorchestra.report.plan import plan_tables
    from lorchestra.runs.plan import plan_run

    console = messages()
    with console.status("") as status:
        record = plan_run(config, parsed.out, seconds=parsed.seconds, callbacks=[PlanProgress(status)])
    if parsed.json:
        print_json(record)
    else:
        for part in plan_tables(record):
            results().print(part, highlight=False)
    return 0 if record["bytes"]["fits"] and record["disk_bytes"]["fits"] else 1


_WHAT_IF = ("bases", "members", "devices", "device_gb", "device_tflops", "device_gb_per_s")


def _tabulate(parsed: PlanArguments, config: RunConfig) -> int:
    """Print the tables of `--what-if`."""
    from lorchestra.cli.output import messages, print_json, results
    from lorchestra.cli.progress import PlanProgress
    from lorchestra.report.what_if import what_if_tables
    from lorchestra.runs.what_if import DEVICES, MEMBERS, WhatIf, what_if

    question = WhatIf(
        parsed.bases or WhatIf.bases,
        parsed.members or MEMBERS,
        parsed.devices or DEVICES,
        parsed.device_gb,
        parsed.device_tflops,
        parsed.device_gb_per_s,
    )
    console = messages()
    with console.status("") as status:
        record = what_if(config, question, [PlanProgress(status)])
    if parsed.json:
        print_json(record)
    else:
        for part in what_if_tables(record):
            results().print(part, highlight=False)
    return 0
