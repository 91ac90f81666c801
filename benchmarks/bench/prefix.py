"""Rows that share a long prefix, such as the examples of a few-shot prompt."""

from __future__ import annotations

from bench.inference import measure_prefix_inference
from bench.setting import Base, Setting
from bench.table import Section
from bench.training import measure_prefix_training


def measure_prefix(base: Base, setting: Setting) -> Section:
    """Training and inference on such rows; PEFT computes the prefix again in every row."""
    train_rows, train_note, train_difference = measure_prefix_training(base, setting)
    rows, note, difference = measure_prefix_inference(base, setting)
    about = (
        f"Shared prefix: {setting.prefix} common tokens first (an 8-shot prompt), then {max(8, setting.prefix // 8)}"
        f" per row on average, {setting.batch} rows per member; tokens/s count the {setting.prefix} tokens of every"
        " row, as if each computed them. PEFT's loops do; a loop with a key/value cache of the prefix at inference was"
        " not timed."
    )
    numbers = {"prefix training difference": train_difference, "prefix inference difference": difference}
    return Section([*train_rows, *rows], [about, train_note, note], numbers)
