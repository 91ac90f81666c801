"""Evaluations without the times that they took, for tests that compare them."""


def untimed(entry):
    """An entry of `metrics.json` without the seconds of its baselines."""
    return {name: value for name, value in entry.items() if name != "seconds"}
