"""Rows that share a long prefix, such as the examples of a few-shot prompt."""

from __future__ import annotations

from bench.inference import measure_prefix_inference
from bench.setting import Base, Setting
from bench.table import Section
from bench.training import measure_prefix_training


def measure_prefix(base: Base, setting: Setting) -> Section:
    """Training and inference on such rows; PEFT computes the prefix anew in every row."""
    train_rows, train_note, train_difference = measure_prefix_training(base, setting)
    rows, note, difference = measure_prefix_inference(base, setting)
    about = (
        f"Shared prefix: {setting.prefix} first tokens in common (an 8-shot prompt), {max(8, setting.prefix // 8)} more"
        f" of each row's own on average, {setting.batch} rows a member; tokens/s count every row's {setting.prefix}, as"
        " if each were computed. PEFT's loops compute them in every row; a loop that kept a key/value cache of the"
        " prefix at inference was not timed."
    )
    numbers = {"prefix training difference": train_difference, "prefix inference difference": difference}
    return Section([*train_rows, *rows], [about, train_note, note], numbers)
