"""Peak resident memory of training, each way in a separate process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from bench.packed_ways import PackedTraining
from bench.peft_ways import PeftMembers
from bench.rows import make_rows
from bench.setting import Base, Setting, log
from bench.table import Row, Section
from bench.training import packed_way, peft_way
from lorchestra.planning.memory import peak_bytes

COPIES = 5
"""Float32 copies of a member's P parameters: values, gradient, two moments, best copy."""
STEPS = 2


def run_alone(way: str, members: int, setting: Setting, steps: int) -> None:
    """Run steps in this process; print its peak and the bytes of its adapters as JSON."""
    key, _, layers = way.partition(" ")
    base = Base(setting.base)
    examples = make_rows(8 * setting.batch, setting.mean, base.vocab_size)
    training = PackedTraining(base, setting, examples, members, "q+v", layers)
    adapters = training.trainer.model.adapters
    if key == "packed":
        timed = packed_way(members, training, layers, steps)
    else:
        peft = PeftMembers(base.modules(), adapters, training.trainer.model.adapt, members)
        timed = peft_way(key, peft, training, layers, setting, steps)
    for step in range(steps):
        timed.run(step)
    print(json.dumps({"peak": peak_bytes(), "adapters": adapters.values.nbytes}))


def _alone(way: str, members: int, setting: Setting, steps: int = STEPS) -> tuple[int, int]:
    """Peak bytes of a subprocess, and bytes of its adapters' values."""
    log(f"memory: {way} M={members}, {steps} steps")
    command = [
        sys.executable,
        str(Path(__file__).parents[1] / "speed.py"),
        "--memory-of",
        way,
        "--members",
        str(members),
        "--memory-steps",
        str(steps),
    ]
    command += ["--base", setting.base, "--mean", str(setting.mean), "--token-budget", str(setting.token_budget)]
    measured = json.loads(
        subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1]
    )
    return measured["peak"], measured["adapters"]


def measure_memory(setting: Setting) -> Section:
    """All-layer training of the members against one PEFT run, and of many members against few at the same budget."""
    few, many = setting.main, setting.members[-1]
    case = "peak memory, training, q+v"
    one_run = {key: _alone(f"{key} all layers", 1, setting)[0] for key in ("a0", "a1")}
    rows = [
        Row(
            f"{case}, all layers",
            key,
            "one run",
            _gigabytes(peak),
            {other: peak / one_run[other] for other in one_run},
        )
        for key, peak in one_run.items()
    ]
    peaks: dict[int, int] = {}
    adapter_bytes: dict[int, int] = {}
    for members in sorted({few, many}):
        peaks[members], adapter_bytes[members] = _alone("packed all layers", members, setting)
    third, _ = _alone("packed last third", setting.main, setting)
    packed = [("all layers", members, peak) for members, peak in peaks.items()] + [("last third", setting.main, third)]
    for layers, members, peak in packed:
        # PEFT is measured on all layers only
        ratios = {key: peak / other for key, other in one_run.items()} if layers == "all layers" else {}
        rows.append(Row(f"{case}, {layers}", "packed", str(members), _gigabytes(peak), ratios))
    note = (
        f"Peak memory: resident, each in a separate process that runs {STEPS} steps; PEFT with one member, lorchestra"
        " with all members."
    )
    if many == few:
        return Section(rows, [note])
    # the allocator's cache grows over tens of micro-batches, so both must run equally many
    steps = -(-STEPS * many // few)
    as_long, _ = _alone("packed all layers", few, setting, steps)
    more = peaks[many] - as_long
    explained = COPIES * (adapter_bytes[many] - adapter_bytes[few])
    note += (
        f" M = {many} against M = {few} at a token budget of {setting.token_budget} and after equally many"
        f" micro-batches ({STEPS} and {steps} steps, the latter with a peak of {_gigabytes(as_long)}):"
        f" {more / 1e6:+,.1f} MB, of which values, gradient, two moments and the best copy of {many - few} more"
        f" adapters are {explained / 1e6:,.1f} MB; residue {(more - explained) / 1e6:+,.1f} MB"
        f" ({(more - explained) / as_long:+.1%} of the peak at M = {few})."
    )
    return Section(rows, [note], {"memory residue": more - explained})


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
