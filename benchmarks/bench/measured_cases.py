"""Measured cases of `benchmarks/results`, read from the tables, with what the cost model predicts for each.

A machine is one number per file: the speed of products where the file states it, else one factor on the speeds of a
reference core, set by the file's first case (which then is no test). Memory needs none.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from many_labels import make_examples, make_labels

from bench.rows import batches, make_rows
from bench.setting import RANK
from lorchestra.config.adapt import AdaptConfig, BaseConfig
from lorchestra.config.data import DataConfig
from lorchestra.config.run import RunConfig, TrainConfig
from lorchestra.data.encode import encode
from lorchestra.data.prompts import PromptTemplate
from lorchestra.models.loading import load_tokenizer
from lorchestra.nn.packing import FORWARD_BUDGET_FACTOR, Item, pack, plan_micro_batches, shareable_prefix
from lorchestra.planning.estimate import ALLOCATION, AdapterCounts, Footprint
from lorchestra.planning.pass_cost import FULL_BYTES, BatchCounts, PassCost, count_batch, sum_counts
from lorchestra.planning.shapes import PUBLIC_SHAPES
from lorchestra.planning.what_if import ELEMENT_BYTES_PER_S
from lorchestra.runs.what_if import WhatIf, what_if
from lorchestra.types import EncodedExample

RESULTS = Path(__file__).parents[1] / "results"
SHAPE = PUBLIC_SHAPES["smollm2-135m"]
REFERENCE_FLOP_PER_S = 102e9
"""Float32 products of one core, as `number_formats_2cpu_amd-epyc_2026-11.md` states them."""
BUDGET, BATCH = 640, 8
ELEMENT_BYTES = {"float32": 4, "bfloat16": 2}
TARGETS = {"q+v": ("q_proj", "v_proj"), "all linear": tuple(SHAPE.maps)}
LAYERS = {"all layers": SHAPE.num_layers, "last third": SHAPE.num_layers // 3}


@dataclass(frozen=True)
class Machine:
    """Speeds of products and of element-wise operations, per second."""

    flop: float
    moved_bytes: float


@dataclass(frozen=True)
class Case:
    """A measured figure with its prediction on a machine; memory ignores the machine."""

    file: str
    name: str
    unit: str
    measured: float
    predict: Callable[[Machine], float]
    machine: Machine | None
    """As the file states it; None where the file's first case sets it."""
    reference: Machine
    """Threads times the reference core."""


@dataclass(frozen=True)
class Checked:
    """A case with its prediction."""

    case: Case
    predicted: float
    sets_machine: bool

    @property
    def ratio(self) -> float:
        """Predicted over measured."""
        return self.predicted / self.case.measured


def process_bytes() -> int:
    """What a process has that has imported the trainer."""
    program = (
        "import lorchestra.runs.train; from lorchestra.planning.memory import used_bytes; print(used_bytes() or 0)"
    )
    run = subprocess.run([sys.executable, "-c", program], check=True, stdout=subprocess.PIPE, text=True)
    return int(run.stdout.splitlines()[-1])


def check(cases: Sequence[Case]) -> list[Checked]:
    """Predict the cases of one file."""
    checked: list[Checked] = []
    factor: float | None = None
    for case in cases:
        if case.machine is not None or case.unit == "GB":
            checked.append(Checked(case, case.predict(case.machine or case.reference), False))
            continue
        sets, reference = factor is None, case.reference
        if factor is None:  # times are inversely proportional to both speeds together
            at_reference = case.predict(reference)
            is_rate = case.unit.endswith("/s")
            factor = case.measured / at_reference if is_rate else at_reference / case.measured
        machine = Machine(factor * reference.flop, factor * reference.moved_bytes)
        checked.append(Checked(case, case.predict(machine), sets))
    return checked


def tables(file: Path) -> Iterator[list[str]]:
    """The cells of each line of a Markdown file's tables, without headings."""
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.startswith("|") and not line.startswith(
            ("|---", "| case", "| task", "| labels", "| adapted", "| recipe")
        ):
            yield [cell.strip() for cell in line.strip().strip("|").split("|")]


def number(text: str) -> float:
    """The first number of a cell: 1,258 of `1,258 (1,240 to 1,300)`."""
    return float(re.match(r"[0-9.,]+", text)[0].replace(",", ""))


def reference_of(threads: int, flop: float = REFERENCE_FLOP_PER_S) -> Machine:
    """A machine of reference cores."""
    return Machine(threads * flop, threads * ELEMENT_BYTES_PER_S)


def pass_cost(targets: str, layers: str, dtype: str = "float32") -> PassCost:
    """Passes of the benchmarks' ensembles, by the tables' names."""
    count = LAYERS[layers]
    adapted = tuple(range(SHAPE.num_layers - count, SHAPE.num_layers))
    return PassCost(SHAPE, TARGETS[targets], adapted, RANK, ELEMENT_BYTES[dtype])


def counts_of(items: Sequence[Item], budget: int, shared: int) -> BatchCounts:
    """Layouts of a pass over items."""
    return sum_counts(count_batch(pack(b, "cpu", shared)) for b in plan_micro_batches(items, budget, shared))


def training_rate(
    cost: PassCost, rows: Sequence[EncodedExample], members: int, budget: int
) -> Callable[[Machine], float]:
    """Tokens per second of training steps of all members, trunks cached."""
    shared = shareable_prefix(rows, dropout=False)
    steps = [[Item(m, row) for m in range(members) for row in step] for step in batches(rows, BATCH)]
    counts = sum_counts(counts_of(items, budget, shared) for items in steps)
    tokens = members * sum(row.num_tokens for row in rows)

    def predict(machine: Machine) -> float:
        seconds = cost.training(counts).seconds(machine.flop, machine.moved_bytes)
        updates = len(steps) * members * cost.update().seconds(machine.flop, machine.moved_bytes)
        return tokens / (seconds + updates)

    return predict


def prediction_rate(
    cost: PassCost, rows: Sequence[EncodedExample], members: int, budget: int
) -> Callable[[Machine], float]:
    """Tokens per second of predictions of all members, the trunk computed once and a shared prefix once per member."""
    shared, room = shareable_prefix(rows, dropout=False), round(FORWARD_BUDGET_FACTOR * budget)
    work = cost.forward(_prefilled(rows, range(members), room, shared))
    if cost.trunk_layers:
        work += cost.trunk(_prefilled(rows, [0], room, shared))
    tokens = members * sum(row.num_tokens for row in rows)
    return lambda machine: tokens / work.seconds(machine.flop, machine.moved_bytes)


def _prefilled(rows: Sequence[EncodedExample], members: Sequence[int], room: int, shared: int) -> BatchCounts:
    """Counts where each member computes the shared prefix once, whatever the number of micro-batches."""
    per_member = [counts_of([Item(m, row) for row in rows], 10**9 if shared else room, shared) for m in members]
    return sum_counts(per_member)


def peak(cost: PassCost, rows: Sequence[EncodedExample], members: int, process: int) -> float:
    """Peak of a training in GB; the benchmark's trunk is of its rows."""
    shared = shareable_prefix(rows, dropout=False)
    planned = plan_micro_batches([Item(m, row) for m in range(members) for row in rows], BUDGET, shared)
    largest = max((count_batch(pack(batch, "cpu", shared)) for batch in planned), key=lambda counts: counts.tokens)
    adapters = AdapterCounts(members, cost.parameters, 2 * len(cost.adapted) * len(cost.layers), FULL_BYTES)
    trunk = sum(row.num_tokens for row in rows) * SHAPE.hidden_size * cost.element_bytes if cost.trunk_layers else 0
    footprint = Footprint(
        process=process,
        base=cost.base_bytes,
        adapters=adapters.adapter_bytes,
        training=adapters.training_bytes,
        activations=round(ALLOCATION * cost.saved_bytes(largest)),
        trunk=trunk,
    )
    return footprint.peak / 1e9


def number_formats(file: Path) -> list[Case]:
    """Training and prediction in both formats; the file states the speed of products."""
    text = file.read_text(encoding="utf-8")
    bfloat16, float32 = map(float, re.search(r"reach (\d+) GFLOP/s per core against (\d+) in float32", text).groups())
    threads = int(re.search(r"(\d+) threads?, torch", text)[1])
    mean = int(re.search(r"rows of random tokens \(mean (\d+)\)", text)[1])
    spreads = {"similar lengths": 0.1, "long-tailed lengths": 1.0}
    cases = []
    for case, way, dtype, figure, *_ in tables(file):
        if not way.startswith("lorchestra"):
            continue
        what, layers, lengths = case.split(", ")
        rows = make_rows(2 * BATCH, mean, SHAPE.vocab_size, spread=spreads[lengths])
        rate = training_rate if what == "training" else prediction_rate
        predict = rate(pass_cost("q+v", layers, dtype), rows, int(way.rpartition(" ")[2]), BUDGET)
        flop = 1e9 * (bfloat16 if dtype == "bfloat16" else float32)
        machine = reference_of(threads, flop)
        cases.append(Case(file.name, f"{case}, {dtype}", "tokens/s", number(figure), predict, machine, machine))
    return cases


def speed(file: Path, process: int) -> list[Case]:
    """The packed ways of `speed.py`; the file states the speed of products, if it has times."""
    lines, text = list(tables(file)), file.read_text(encoding="utf-8")
    threads = int(re.search(r"\((\d+) threads\)", text)[1])
    at_shapes = [number(figure) for _, way, _, figure, *_ in lines if way.startswith("torch.mm at the step's shapes")]
    machine = Machine(1e9 * at_shapes[0], threads * ELEMENT_BYTES_PER_S) if at_shapes else None
    cases = []
    for case, way, members, figure, *_ in lines:
        if way != "packed" or case.startswith("limit"):
            continue
        what, targets, *rest = case.removeprefix("peak memory, ").split(", ")
        layers, name = rest[-1], f"{case}, M = {members}"
        cost, M = pass_cost(targets, layers), int(members)
        if case.startswith("peak memory"):
            rows = make_rows(8 * BATCH, 75, SHAPE.vocab_size)
            gigabytes = peak(cost, rows, M, process)
            predict = lambda machine, gigabytes=gigabytes: gigabytes  # noqa: E731
            cases.append(Case(file.name, name, "GB", number(figure), predict, machine, reference_of(threads)))
            continue
        prefix = 400 if "shared prefix" in case else 0
        number_of_rows = BATCH * ((2 if prefix else 8) if what == "training" else (1 if prefix else 2))
        rows = make_rows(number_of_rows, 50 if prefix else 75, SHAPE.vocab_size, prefix)
        budget = BUDGET + (prefix if what == "training" else 0)
        rate = training_rate if what == "training" else prediction_rate
        predict = rate(cost, rows, M, budget)
        cases.append(Case(file.name, name, "tokens/s", number(figure), predict, machine, reference_of(threads)))
    return cases


def vllm(file: Path) -> list[Case]:
    """lorchestra's predictions next to vLLM's; the first case sets the machine."""
    rows = make_rows(2 * BATCH, 75, SHAPE.vocab_size)
    return [
        Case(
            file.name,
            f"inference, q+v, {layers}, M = 5",
            "tokens/s",
            number(figure),
            prediction_rate(pass_cost("q+v", layers), rows, 5, BUDGET),
            None,
            reference_of(2),
        )
        for layers, _, figure, *_ in tables(file)
    ]


def many_labels(file: Path) -> list[Case]:
    """Seconds per row with many labels, by text and as a tree; the first case sets the machine. Needs the tokenizer."""
    data = DataConfig(scoring="text")
    tokenizer = load_tokenizer(BaseConfig())
    template = PromptTemplate.from_config(data, has_labels=True, tokenizer=tokenizer)
    cost, members, reference = pass_cost("q+v", "last third"), 5, reference_of(1)
    cases = []
    for labels, scoring, tokens, _, train_s, _, predict_s, _ in tables(file):
        few = scoring == "text" and int(labels) > 4
        examples = make_examples(make_labels(int(labels)), 12, 10)
        rows = encode(examples, template, tokenizer, scoring=scoring).rows[: 2 if few else None]
        mean = sum(row.num_tokens for row in rows) / len(rows)
        assert round(mean) == int(tokens), f"{file.name}: rows of {mean:.0f} tokens, not {tokens}"
        items = [Item(m, row) for m in range(members) for row in rows]
        counts = counts_of(items, BUDGET, shareable_prefix(rows, dropout=False))
        rate, number_of_rows = prediction_rate(cost, rows, members, BUDGET), len(rows)

        def training(machine: Machine, counts=counts, number_of_rows=number_of_rows) -> float:
            whole = cost.training(counts).seconds(machine.flop, machine.moved_bytes)
            return (whole + members * cost.update().seconds(machine.flop, machine.moved_bytes)) / number_of_rows

        def prediction(machine: Machine, rate=rate, mean=mean) -> float:
            return members * mean / rate(machine)

        for what, figure, predict in (("training", train_s, training), ("prediction", predict_s, prediction)):
            name = f"{what}, {labels} labels by {scoring}"
            cases.append(Case(file.name, name, "s per row", number(figure), predict, None, reference))
    return cases


def plan_accuracy(file: Path, process: int, directory: Path, data_dir: str | None) -> list[Case]:
    """Peaks and times of real trainings on real rows; the first recipe's training sets the machine."""
    from plan_accuracy import recipes

    reference = reference_of(2)
    memory, times = [], []
    figures = {name: cells for name, *cells in tables(file)}
    for name, config in recipes(directory, data_dir, 1.0).items():
        peak_gb, _, training, evaluation, _ = (cell.split("/")[-1].strip() for cell in figures[name])
        predict = tabulated(config)
        memory.append(
            Case(
                file.name,
                f"peak, {name}",
                "GB",
                number(peak_gb),
                lambda m, p=predict: p(m)["peak"] + process / 1e9,
                None,
                reference,
            )
        )
        for part, figure in (("training", training), ("evaluation", evaluation)):
            timed = lambda machine, p=predict, part=part: p(machine)[part]  # noqa: E731
            times.append(Case(file.name, f"{part}, {name}", "s", number(figure), timed, None, reference))
    return memory + times


def last_third(file: Path, directory: Path, data_dir: str) -> list[Case]:
    """Training seconds on all layers and on the last third of real rows; the first case sets the machine."""
    import last_third as benchmark

    args = argparse.Namespace(data_dir=data_dir, base="smollm2-135m", rows=200, test_rows=16, max_tokens=60)
    data: dict[str, DataConfig] = {}
    cases = []
    for task, layers, *_, seconds in tables(file):
        if not seconds:
            continue
        if task not in data:
            data[task] = benchmark.write_rows(task, args, directory / "rows")
        config = RunConfig(
            base=BaseConfig(dtype="float32"),
            adapt=AdaptConfig(members=5, layers=layers),
            data=data[task],
            train=TrainConfig(epochs=2, lr=3e-4),
        )
        predict = tabulated(config)
        timed = lambda machine, p=predict: p(machine)["steps"]  # noqa: E731
        cases.append(Case(file.name, f"training, {task}, {layers}", "s", number(seconds), timed, None, reference_of(1)))
    return cases


def tabulated(config: RunConfig) -> Callable[[Machine], dict[str, float]]:
    """Peak without the process in GB, and seconds by part, as `lorchestra plan --what-if` has them for a recipe."""
    config = dataclasses.replace(config, base=dataclasses.replace(config.base, dtype="float32", threads=None))

    def predict(machine: Machine) -> dict[str, float]:
        members = (config.adapt.members,)
        stated = {"tflops": machine.flop / 1e12, "gb_per_s": machine.moved_bytes / 1e9}
        record = what_if(config, WhatIf((SHAPE.name,), members, (1,), **stated))
        (cell,) = record["bases"][0]["cells"]
        sizes = cell["bytes"]
        return {**cell["time_s"], "peak": (sizes["peak"] - sizes["process"]) / 1e9}

    return predict
