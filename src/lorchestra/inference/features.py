"""Features of texts from the frozen base: mean hidden states of a text's tokens, in packed passes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from lorchestra.data.tokenizer import TextTokenizer, front_tokens
from lorchestra.inference.packed import run_packed
from lorchestra.models.ensemble import EnsembleModel, LayerInputs
from lorchestra.nn.packing import BASE, Item, forward_budget
from lorchestra.types import EncodedExample, Example


def middle_layers(num_layers: int) -> tuple[int, ...]:
    """The layers at about one and two thirds of the depth: of 30 layers, 10 and 20.

    The input of layer k is the hidden state after k layers; a model of one layer has its embeddings only.
    """
    depths = {round(num_layers / 3), round(2 * num_layers / 3)}
    return tuple(sorted({min(max(depth, 1), num_layers - 1) for depth in depths}))


def encode_texts(tokens: TextTokenizer, examples: Sequence[Example], max_length: int) -> list[EncodedExample]:
    """The examples' texts alone, without prompt and choices, cut at the longest allowed row.

    Special tokens that the tokenizer adds in front are included. A text may have no tokens.
    """
    front = front_tokens(tokens.tokenizer)
    texts = [("", row.question, "") for row in examples]
    ids, _ = tokens.ids(texts, [row.where for row in examples]) if texts else ([], {})
    return [EncodedExample(index, (*front, *row)[:max_length], (), None) for index, row in enumerate(ids)]


@torch.no_grad()
def mean_states(
    model: EnsembleModel,
    rows: Sequence[EncodedExample],
    layers: Sequence[int],
    token_budget: int,
    progress: Callable[[int], None] | None = None,
) -> NDArray[np.float64]:
    """The base's hidden states before some layers, mean over the tokens of each row's prefix.

    Args:
        model: the ensemble; its members are not used.
        rows: rows without choices; one without tokens has zeros.
        layers: decoder layers, ascending.
        token_budget: most tokens in a training step's micro-batch; see `forward_budget`.
        progress: called with the number of rows done after each pass.

    Returns:
        float64 `[E, L D]`: the states of the first layer, then those of the next.
    """
    features = np.zeros((len(rows), len(layers) * model.hidden_size))
    items = [Item(BASE, row, None, index) for index, row in enumerate(rows) if row.prefix]
    done = len(rows) - len(items)
    for batch, states in run_packed(
        model, items, forward_budget(token_budget, model.device), LayerInputs(tuple(layers))
    ):
        means = [
            states[:, last + 1 - len(item.example.prefix) : last + 1].double().mean(dim=1).flatten()
            for item, last in zip(batch.items, batch.last_positions, strict=True)
        ]
        features[[item.index for item in batch.items]] = torch.stack(means).cpu().numpy()
        done += len(batch.items)
        if progress is not None:
            progress(done)
    return features
