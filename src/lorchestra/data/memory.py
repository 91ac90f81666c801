"""Texts that come from Python objects and not from files."""

from __future__ import annotations

from typing import Any

from lorchestra.errors import InputError


def texts_of(X: Any) -> list[str]:
    """X, a list, array or Series of strings, as a list of them.

    Raises:
        InputError: it is one string, has two axes, or an entry is no text.
    """
    if isinstance(X, str | bytes):
        raise InputError("X is one string; give a list of texts")
    if getattr(X, "ndim", 1) != 1:
        raise InputError(f"X has shape {tuple(X.shape)}; give one axis of texts: a list, an array or a column")
    try:
        texts = list(X)
    except TypeError as error:
        raise InputError(f"X is a {type(X).__name__}; give a list of texts") from error
    if not texts:
        raise InputError("Found array with 0 sample(s): X holds no texts; a minimum of 1 is required")
    for i, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            raise InputError(f"X[{i}] is {text!r:.60}, which is no text; give non-empty strings")
    return [str(text) for text in texts]
