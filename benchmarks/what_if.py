"""`lorchestra plan --what-if` against the measured cases of `benchmarks/results`: its arithmetic, not this machine.

Every case that states enough (shape, tokens, threads, number format, and seconds, tokens per second or peak memory) is
predicted, and compared with what was measured. With `--wide`, a few layers of wider bases are timed, too.

    python benchmarks/what_if.py                              half a minute
    python benchmarks/what_if.py --data-dir DIR               also the trainings on data sets next to the checkout
    python benchmarks/what_if.py --wide                       also layers of 1B and 8B bases, about four minutes
"""

from __future__ import annotations

import argparse
import datetime
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.measured_cases import (
    REFERENCE_FLOP_PER_S,
    RESULTS,
    Case,
    Checked,
    check,
    last_third,
    many_labels,
    number_formats,
    plan_accuracy,
    process_bytes,
    speed,
    vllm,
)
from bench.wide_layers import LAYERS, Wide, measure, table

from lorchestra.planning.what_if import ELEMENT_BYTES_PER_S
from lorchestra.report.what_if import CHECKED_WITHIN
from lorchestra.store.atomic import atomic_write_text

BESIDE = Path(__file__).parents[2] / "shared" / "data"
FITTED = "training, all layers, similar lengths, float32"
"""The case of the number formats that the reference core's bandwidth was fitted to."""
LOADED = (
    "wall time of one thread next to other jobs: the file says that its seconds depend on them, and with ten of thirty"
    " layers ag_news took longer than with all"
)
REASONS = {"last_third_2cpu_2026-11.md": LOADED}
NOT_CHECKED = {
    "serve_2cpu_amd-epyc_2026-11.md": "the questions' tokens are not stated, and HTTP is part of the times",
    "serve_soak_2cpu_2026-11.md": "waiting of 32 clients",
    "sweep_gain_2cpu_2026-11.md": "seconds of training, evaluation and baselines together",
    "defaults_2cpu_2026-11.md": "the number of steps of each search is not stated; other jobs ran at the same time",
    "stream_predict_2cpu_2026-11.md": "a random base of one layer, whose time is not in products",
    "sys1bench_2026-11.md": "one training time, of rows whose tokens are not stated",
    "distill_2cpu_2026-11.md": "no times",
    "quantized_2cpu_2026-11.md": "dequantization is not counted; the plain base is that of the other files",
    "coverage_2026-11.md": "no base",
    "crash_drill.md": "no times",
    "fuzz.md": "no times",
}


def check_all(data_dir: str | None, with_tokenizer: bool = True) -> list[Checked]:
    """Predict all cases; those on data sets only where these are."""
    process = process_bytes()
    sources: list[Callable[[], list[Case]]] = [
        lambda: number_formats(RESULTS / "number_formats_2cpu_amd-epyc_2026-11.md"),
        lambda: speed(RESULTS / "speed_2cpu_amd-epyc_2026-11.md", process),
        lambda: speed(RESULTS / "speed-memory_2cpu_amd-epyc_2026-11.md", process),
        lambda: vllm(RESULTS / "vllm_2cpu_amd-epyc_2026-11.md"),
    ]
    if with_tokenizer:
        sources.append(lambda: many_labels(RESULTS / "many_labels_2cpu_2026-11.md"))
    checked = [one for source in sources for one in check(source())]
    if data_dir is not None and with_tokenizer:
        with tempfile.TemporaryDirectory() as directory:
            checked += check(plan_accuracy(RESULTS / "plan_2cpu_2026-11.md", process, Path(directory), data_dir))
            checked += check(last_third(RESULTS / "last_third_2cpu_2026-11.md", Path(directory), data_dir))
    return checked


def is_test(one: Checked) -> bool:
    """Whether nothing was fitted to the case."""
    return not one.sets_machine and one.case.name != FITTED


def report(checked: Sequence[Checked], wide: Sequence[Wide] = ()) -> str:
    """The comparison as Markdown."""
    tests = [one for one in checked if is_test(one)]
    missed = [one for one in tests if abs(one.ratio - 1) > CHECKED_WITHIN]
    quiet = [one for one in tests if one.case.file not in REASONS]
    worst = max(abs(one.ratio - 1) for one in quiet)
    lines = [
        "# What `lorchestra plan --what-if` predicts for what was measured",
        "",
        f"`python benchmarks/what_if.py --data-dir DIR`, {datetime.date.today().isoformat()}. Of {len(tests)} measured"
        f" cases {len(tests) - len(missed)} are predicted within {100 * CHECKED_WITHIN:.0f} %; the {len(missed)} others"
        f" are of a loaded machine (reasons below). Without that machine's files the largest error is"
        f" {100 * worst:.0f} %. All cases are of SmolLM2-135M on AMD EPYC CPUs, with rows of up to 500 tokens: larger"
        " bases (but for the layers at the end), longer rows and GPUs are extrapolated.",
        "",
        "- Memory has no constant but `ALLOCATION`, which plans have, too. What the process has before it trains is"
        " measured where this runs.",
        f"- Times have two speeds. Element-wise operations: {ELEMENT_BYTES_PER_S / 1e9:.0f} GB/s per core everywhere,"
        " which solves one case (marked); it was chosen, as was the form with two speeds, with the cases of the number"
        " formats and of speed in view, so these are fits of one constant. The other files and the layers at the end"
        " were predicted with everything settled. Products: as the file states them (number formats:"
        f" {REFERENCE_FLOP_PER_S / 1e9:.0f} GFLOP/s per core in float32, 414 in bfloat16; speed: 154 of both cores). A"
        " file that states none has one factor on both speeds, set by its first case (marked): how fast its machine"
        " was that day.",
        "- Marked cases are not counted. Measured figures are as rounded in their files.",
        "",
        "| file | case | measured | predicted | ratio | |",
        "|---|---|---|---|---|---|",
    ]
    for one in checked:
        case, mark = one.case, "" if is_test(one) else "sets a speed"
        mark = "missed" if one in missed else mark
        figures = [
            f"{value:,.0f}" if case.measured >= 100 else f"{value:.2f}" for value in (case.measured, one.predicted)
        ]
        name = case.file.removesuffix(".md")
        lines.append(f"| {name} | {case.name} | {figures[0]} {case.unit} | {figures[1]} | {one.ratio:.2f} | {mark} |")
    lines += ["", "Missed, and why:", ""]
    lines += [
        f"- {file}: {reason}." for file, reason in REASONS.items() if any(one.case.file == file for one in missed)
    ]
    lines += ["", "Not checked, and why:", "", *(f"- {file}: {reason}." for file, reason in NOT_CHECKED.items())]
    if wide:
        lines += ["", "## Layers of wider bases", "", _ABOUT_WIDE, "", *table(list(wide))]
    return "\n".join(lines) + "\n"


_ABOUT_WIDE = (
    f"{LAYERS} layers with the widths of each base and adapters on q and v, one packed pass of eight rows (600 tokens),"
    " least CPU time of three, one thread, next to other jobs. The speed of products is measured before and after, as"
    " `--what-if` does by default; the bandwidth is that of above, so nothing here is fitted."
)


def main(arguments: Sequence[str] | None = None) -> list[Checked]:
    """Check, print the table, and write it with `--out`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", default=str(BESIDE) if BESIDE.is_dir() else None, help="as lorchestra's data.dir")
    parser.add_argument("--wide", action="store_true", help="also time layers of wider bases")
    parser.add_argument("--out", type=Path)
    parsed = parser.parse_args(arguments)
    wide = list(measure()) if parsed.wide else []
    checked = check_all(parsed.data_dir)
    text = report(checked, wide)
    print(text)
    if parsed.out is not None:
        atomic_write_text(parsed.out, text)
    return checked


if __name__ == "__main__":
    main()
