"""A table of memory and time for other bases, numbers of members and devices, without loading a base."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lorchestra.config.run import RunConfig, check_run
from lorchestra.data.encode import encode
from lorchestra.data.prompts import PromptTemplate, ScoringMode
from lorchestra.data.tokenizer import TextTokenizer
from lorchestra.errors import ConfigError
from lorchestra.inference.pipeline import CPU_TOKEN_BUDGET, text_or_tree
from lorchestra.models.loading import load_tokenizer
from lorchestra.models.number_format import ProductRates, product_rates, product_shapes
from lorchestra.models.patching import parse_layers
from lorchestra.models.targets import is_all_linear
from lorchestra.nn.packing import shareable_prefix
from lorchestra.planning.budget import check_budget
from lorchestra.planning.memory import free_bytes, used_bytes
from lorchestra.planning.pass_cost import PassCost
from lorchestra.planning.shapes import PUBLIC_SHAPES, BaseShape, read_shape
from lorchestra.planning.what_if import ELEMENT_BYTES_PER_S, Cell, Device, Planner
from lorchestra.planning.workload import PlannedRun
from lorchestra.runs.build import torch_threads
from lorchestra.runs.rows import read_rows
from lorchestra.training.callbacks import Callback, CallbackList
from lorchestra.training.members import steps_per_epoch
from lorchestra.training.precompute import TrainingRows
from lorchestra.training.sampler import units_of
from lorchestra.training.search import expected_epochs
from lorchestra.types import EncodedExample, Json

logger = logging.getLogger(__name__)

MEMBERS = (1, 2, 5, 10, 20)
DEVICES = (1, 2, 4, 8, 16, 32, 64)
ASSUMED_ROWS, ASSUMED_TOKENS = (1000, 200), 100
"""Training and validation rows, and tokens of each, where no data are given; four choices of one token."""
_ANY_RATE = 1e-4
_ELEMENT_BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class WhatIf:
    """What to tabulate, and the devices as far as they are stated."""

    bases: tuple[str, ...] = tuple(PUBLIC_SHAPES)
    """Names of `PUBLIC_SHAPES`, directories of bases, or their `config.json`."""
    members: tuple[int, ...] = MEMBERS
    devices: tuple[int, ...] = DEVICES
    device_gb: float | None = None
    """Memory of a device in 1e9 bytes; None: what is free here."""
    tflops: float | None = None
    """Speed of a device's products in 1e12 operations per second; None: measured on this machine's processor."""
    gb_per_s: float | None = None
    """Speed of a device's element-wise operations in 1e9 bytes per second; None: that of the processor's cores."""


def check_what_if(question: WhatIf) -> None:
    """Check the ranges of a question.

    Raises:
        ConfigError: names the option and its value.
    """
    for name, values in (("bases", question.bases), ("members", question.members), ("devices", question.devices)):
        if not values:
            raise ConfigError(f"--{name}: give at least one")
    for name, numbers in (("members", question.members), ("devices", question.devices)):
        for number in numbers:
            if not 1 <= number <= 10_000:
                raise ConfigError(f"--{name}: {number} is not in [1, 10000]")
    stated = {"device-gb": question.device_gb, "device-tflops": question.tflops, "device-gb-per-s": question.gb_per_s}
    for option, value in stated.items():
        if value is not None and not 0 < value < float("inf"):
            raise ConfigError(f"--{option}: {value} is not a finite number above 0")


def what_if(config: RunConfig, question: WhatIf, callbacks: Sequence[Callback] = ()) -> Json:
    """Predict memory and time of the training that `config` describes, on other bases and devices.

    With `data.train` or `data.task` the rows are the configured ones, as the tokenizer of `base.name` splits them; else
    rows are assumed. No weights are read.

    Args:
        config: the run's configuration; of `base`, tokenizer, number format, device and threads count.
        question: bases, numbers of members and devices, and the devices' memory and speed.
        callbacks: report progress.

    Returns:
        The record that `lorchestra plan --what-if --json` prints.

    Raises:
        ConfigError, DataError, CheckpointError: bad input.
    """
    check_run(config)
    check_what_if(question)
    if config.base.quantization != "none":
        raise ConfigError(
            f"base.quantization: {config.base.quantization} is not counted by --what-if; leave it out: plain weights"
            " need more memory and a little less time"
        )
    if config.base.device == "cuda" and None in (question.device_gb, question.tflops, question.gb_per_s):
        raise ConfigError(
            "--what-if with base.device cuda: state the GPU with --device-gb, --device-tflops and --device-gb-per-s;"
            " only this machine's processor is measured"
        )
    callback = CallbackList(callbacks)
    callback.on_progress("rows", 0, 0)
    rows, scoring = _rows(config)
    on_gpu = config.base.device == "cuda"
    process = 0 if on_gpu else used_bytes() or 0  # a GPU's memory has no libraries
    free = free_bytes(torch.device("cpu"))
    memory = round(question.device_gb * 1e9) if question.device_gb else None if free is None else process + free
    with torch_threads(config.base.threads):
        shapes = [read_shape(name) for name in question.bases]
        planner = _planner(config, rows, scoring)
        bases = []
        for number, shape in enumerate(shapes):
            callback.on_progress(f"{shape.name}", number, len(shapes))
            bases.append(_base(config, question, shape, planner, (process, memory)))
        threads = torch.get_num_threads()
    return {
        "rows": {
            "train": len(rows.train),
            "val": len(rows.val),
            "mean_tokens": sum(row.num_tokens for row in rows.train) / len(rows.train),
            "scoring": scoring,
            "assumed": not _has_rows(config),
        },
        "epochs": planner.run.config.num_epochs,
        "epochs_given": config.train.epochs != "auto",
        "device": {"kind": planner.run.device.type, "threads": threads, "stated": question.tflops is not None},
        "bases": bases,
    }


def _base(
    config: RunConfig, question: WhatIf, shape: BaseShape, planner: Planner, memory: tuple[int, int | None]
) -> Json:
    """The figures of one base; `memory` is that of the process and of a device, in bytes."""
    dtype, device, rates = _device(config, question, shape, *memory)
    cost = _cost(config, shape, _ELEMENT_BYTES[dtype])
    cells = [
        planner.cell(cost, device, members, devices)
        for members in question.members
        for devices in question.devices
        if devices <= members
    ]
    least = {cell.members: cell.devices for cell in cells if cell.fits}
    lacking = [members for members in question.members if members not in least]
    return {
        "name": shape.name,
        "parameters": shape.num_parameters,
        "member_parameters": cost.parameters,
        "layers": {"adapted": len(cost.layers), "below": cost.trunk_layers, "all": shape.num_layers},
        "dtype": dtype,
        "flop_per_s": device.flop_per_s,
        "bytes_per_s": device.bytes_per_s,
        "limit": device.limit,
        "measured": None if rates is None else rates.to_dict(),
        "cells": [_cell_record(cell) for cell in cells],
        "bytes_with_one_member": _bytes(planner.cell(cost, device, 1, 1)),
        "least_devices": {str(members): planner.least_devices(cost, device, members) for members in lacking},
    }


def _cell_record(cell: Cell) -> Json:
    return {
        "members": cell.members,
        "devices": cell.devices,
        "members_per_device": cell.members_per_device,
        "token_budget": cell.token_budget,
        "tokens": cell.tokens,
        "bytes": _bytes(cell),
        "time_s": cell.duration.to_dict(),
    }


def _bytes(cell: Cell) -> Json:
    footprint = cell.footprint
    parts = {part.name: getattr(footprint, part.name) for part in dataclasses.fields(footprint)}
    return {**parts, "peak": footprint.peak, "limit": cell.limit, "fits": cell.fits}


def _device(
    config: RunConfig, question: WhatIf, shape: BaseShape, process: int, memory: int | None
) -> tuple[str, Device, ProductRates | None]:
    """The number format and the device, with the rates of this machine where they decide."""
    rates, threads = None, torch.get_num_threads()
    if question.tflops is None:
        shapes = product_shapes(shape.weight_shapes()) or {max(shape.weight_shapes().values()): 1}
        rates = product_rates(shapes, min(config.train.token_budget or CPU_TOKEN_BUDGET, CPU_TOKEN_BUDGET))
    dtype = str(config.base.dtype)
    if dtype == "auto":
        dtype = "bfloat16" if config.base.device == "cuda" else "float32" if rates is None else rates.fastest
    if dtype not in _ELEMENT_BYTES:
        raise ConfigError(f"base.dtype: {dtype} is not counted by --what-if; use auto, {' or '.join(_ELEMENT_BYTES)}")
    if question.tflops is not None:
        flop_per_s = question.tflops * 1e12
    else:
        assert rates is not None
        flop_per_s = threads * 1e9 * (rates.bfloat16 if dtype == "bfloat16" else rates.float32)
    bytes_per_s = threads * ELEMENT_BYTES_PER_S if question.gb_per_s is None else question.gb_per_s * 1e9
    return dtype, Device(memory, process, flop_per_s, bytes_per_s), rates


def _cost(config: RunConfig, shape: BaseShape, element_bytes: int) -> PassCost:
    """The base's passes with the configured adapters.

    Raises:
        ConfigError: layers or linear maps that the base does not have.
    """
    adapt, known = config.adapt, tuple(shape.maps)
    targets = adapt.target_modules
    names = known if is_all_linear(targets) else (targets,) if isinstance(targets, str) else tuple(targets)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ConfigError(
            f"adapt.target_modules: {unknown[0]!r} is not counted by --what-if; use all-linear or names among"
            f" {', '.join(known)}"
        )
    adapted = tuple(name for name in known if name in names)
    layers = tuple(parse_layers(adapt.layers, shape.num_layers))
    return PassCost(shape, adapted, layers, adapt.stored_r, element_bytes)


def _planner(config: RunConfig, rows: TrainingRows, scoring: ScoringMode) -> Planner:
    per_epoch = steps_per_epoch(config.train.batch_size, len(units_of(rows.train)))
    settled = config.train.filled(_ANY_RATE, expected_epochs(per_epoch))
    device = torch.device("cuda" if config.base.device == "cuda" else "cpu")
    longest = max(row.num_tokens for split in (rows.train, rows.val) for row in split)
    check_budget(settled.token_budget, longest)
    shared = shareable_prefix(rows.train, dropout=config.adapt.dropout > 0)
    run = PlannedRun(rows, settled, config.adapt, config.regularize, shared, False, device)
    return Planner(run, config.train, per_epoch, config.data.prompt.option_orders if scoring == "letter" else 1)


def _has_rows(config: RunConfig) -> bool:
    return config.data.train is not None or config.data.task is not None


def _rows(config: RunConfig) -> tuple[TrainingRows, ScoringMode]:
    """The configured rows as tokens, and how they are scored; or assumed ones."""
    if not _has_rows(config):
        num_train, num_val = ASSUMED_ROWS
        train = [_assumed_row(row) for row in range(num_train)]
        return TrainingRows(train, [_assumed_row(row) for row in range(num_val)]), "letter"
    data = config.data
    read = read_rows(data, config.train.seed)
    for note in read.notes:
        logger.info(note)
    examples, labels = read.task.splits, read.task.labels
    tokenizer = load_tokenizer(config.base)
    template = PromptTemplate.from_config(data, has_labels=labels is not None, tokenizer=tokenizer)
    tokens = TextTokenizer(tokenizer, data.keep_tokens if data.prompt.version > 1 else None)
    scoring = data.scoring
    if scoring == "head":
        raise ConfigError("data.scoring: head is not counted by --what-if; use text or tree, which need more time")
    if scoring == "auto" and read.task.questions:
        scoring = "tree"
    elif scoring == "auto":
        labeled = examples["train"][:1] if labels is not None else ()
        scoring, _ = text_or_tree(template, tokens, data, labeled, "")
    encoded = {
        split: encode(
            examples[split],
            template,
            tokens,
            scoring=scoring,
            normalize=data.normalize,
            max_length=data.max_length,
            too_long=data.too_long,
        ).rows
        for split in ("train", "val")
    }
    return TrainingRows(encoded["train"], encoded["val"]), scoring


def _assumed_row(row: int) -> EncodedExample:
    """A row whose first token is its index, so that rows share no prefix."""
    return EncodedExample(row, (row, *range(1, ASSUMED_TOKENS)), ((1,), (2,), (3,), (4,)), row % 4)
