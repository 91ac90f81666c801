"""Texts from Python: what is taken, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from lorchestra.data.memory import texts_of
from lorchestra.errors import DataError, InputError


@pytest.mark.parametrize("kind", [list, tuple, np.array, iter], ids=["list", "tuple", "array", "iterator"])
def test_any_sequence_of_strings_is_a_list_of_them(kind):
    found = texts_of(kind(["a b", "ü"]))
    assert found == ["a b", "ü"]
    assert {type(text) for text in found} == {str}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("text", "X is one string"),
        (b"text", "X is one string"),
        (None, "X is a NoneType"),
        (3, "X is a int"),
        ([], "0 sample"),
        (np.array([["a"]]), r"X has shape \(1, 1\); give one axis"),
        (["a", ""], r"X\[1\] is ''"),
        (["a", None], r"X\[1\] is None"),
        ([b"a"], r"X\[0\] is b'a'"),
        (["a", "x" * 5, 4], r"X\[2\] is 4, which is no text"),
    ],
)
def test_refusals_name_the_place(value, message):
    with pytest.raises(InputError, match=message) as caught:
        texts_of(value)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, DataError)
