"""Costs by label names: order of the matrix, defaults, and labels that look like other values."""

from __future__ import annotations

from pathlib import Path

import pytest

from lorchestra.config.costs import Costs, read_costs
from lorchestra.errors import ConfigError


def write(folder: Path, text: str) -> Path:
    path = folder / "costs.yaml"
    path.write_text(text)
    return path


def test_the_first_name_is_the_answer(tmp_path: Path) -> None:
    path = write(tmp_path, "ask: 1.5\nwrong: 7\ncosts:\n  b: {a: 3}\n  a: {a: 0.5}\n")
    assert read_costs(path, ("a", "b", "c")) == Costs(((0.5, 7, 7), (3, 0, 7), (7, 7, 0)), 1.5)


def test_labels_that_look_like_other_values(tmp_path: Path) -> None:
    path = write(tmp_path, "ask: 1\ncosts:\n  no: {yes: 1, 010: 2, true: 3}\nwrong: 4\n")
    assert read_costs(path, ("no", "yes", "010", "true")).matrix[0] == (0, 1, 2, 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1\n", "mapping"),
        ("wrong: 1\n", "ask is missing"),
        ("ask: -1\nwrong: 1\n", "ask is -1, not a number of at least 0"),
        ("ask: .inf\nwrong: 1\n", "ask is inf"),
        ("ask: 1\ncosts:\n  a: {b: much}\n  b: {a: 1}\n", r"costs\.a\.b is 'much'"),
        ("ask: 1\ncosts: {a: 3, b: {a: 1}}\n", r"costs\.a is 3, not costs by label"),
        ("ask: 1\ncosts: {a: {b: 1}, b: {a: 1, d: 2}}\n", r"costs\.b\.d: 'd' is not a label of the run"),
        ("ask: 1\ncosts: {a: {b: 1}}\n", r"costs\.b\.a is missing: what it costs to answer 'b' where 'a' is right"),
        (
            "ask: 1\ncosts: {a: {a: 4, b: 1}, b: {a: 1}}\n",
            "answering 'b' where 'a' is right costs 1, less than the right",
        ),
    ],
)
def test_what_is_no_cost_matrix_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_costs(write(tmp_path, text), ("a", "b"))
