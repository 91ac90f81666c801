"""Mix a run's linear probe into its members' answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lorchestra.data.tokenizer import TextTokenizer
from lorchestra.inference.features import encode_texts, mean_states
from lorchestra.metrics.linear_probe import LinearProbe
from lorchestra.metrics.predictive import FloatArray
from lorchestra.models.ensemble import EnsembleModel
from lorchestra.types import Example

NO_EARLY_EXIT = "early exit: not with a linear probe, which has a part in every answer; leave it out"
"""Why a run with a probe does not stop before its last member."""
Features = Callable[[Sequence[Example], Sequence[int]], FloatArray]
"""The features `[E, F]` of texts, given the layers whose states they are."""


def text_states(
    model: EnsembleModel,
    tokens: TextTokenizer,
    max_length: int,
    token_budget: int,
    examples: Sequence[Example],
    layers: Sequence[int],
    progress: Callable[[int], None] | None = None,
) -> FloatArray:
    """The base's mean hidden states of the texts alone, `[E, F]`; see `features`."""
    return mean_states(model, encode_texts(tokens, examples, max_length), layers, token_budget, progress)


def mix_probe_in(
    probe: LinearProbe | None,
    features: Features,
    examples: Sequence[Example],
    log_probs_MEC: FloatArray,
    of_members: Sequence[int],
) -> FloatArray:
    """The log-probabilities with the probe mixed into those of members; other passes stay as they are.

    Args:
        probe: the probe; with None, nothing changes.
        features: computes its features.
        examples: texts with the run's labels as choices.
        log_probs_MEC: of several passes, of members or the base.
        of_members: indices of the members' passes.
    """
    if probe is None or not of_members or not examples:
        return log_probs_MEC
    mixed_MEC, members = log_probs_MEC.copy(), list(of_members)
    mixed_MEC[members] = probe.mixed_into(log_probs_MEC[members], features(examples, probe.layers))
    return mixed_MEC
