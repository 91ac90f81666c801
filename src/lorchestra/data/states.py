"""A state as text: strings as they are, everything else by one rule that depends on the state alone."""

from __future__ import annotations

import json


def state_text(state: object) -> str:
    """The text of a state that was given as JSON: a string as it is, other values as compact JSON in their order."""
    if isinstance(state, str):
        return state
    return json.dumps(state, ensure_ascii=False)
