"""Fits methods by name, for tests of several rooms."""

from lorchestra.methods.registry import parse_name


def fit_method(context, name):
    """Fit a method with its wrappers: `lora_ensemble+temperature`."""
    named = parse_name(name)
    return named.wrap(context, named.fit(context))
