"""Features of texts: those of the plain model row by row, whatever the batches."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from lorchestra.inference.features import encode_texts, mean_states, middle_layers
from lorchestra.runs.build import build_pipeline
from lorchestra.types import EncodedExample, Example


@pytest.fixture
def rows(make_rows):
    return [dataclasses.replace(row, choices=(), answer=None) for row in make_rows(9)]


def test_middle_layers_are_at_one_and_two_thirds():
    expected = {30: (10, 20), 24: (8, 16), 12: (4, 8), 4: (1, 3), 3: (1, 2), 2: (1,), 1: (0,)}
    assert {depth: middle_layers(depth) for depth in expected} == expected


def test_features_are_those_of_the_plain_model(tiny_model, tiny_ensemble, rows):
    """In float64, with members far from the base, which they must not use."""
    plain, model = tiny_model(depth=4), tiny_ensemble(depth=4, spread=0.5)
    features = mean_states(model, rows, (1, 3), 20)
    for row, mine in zip(rows, features, strict=True):
        with torch.no_grad():
            states = plain(input_ids=torch.tensor([row.prefix]), output_hidden_states=True).hidden_states
        expected = torch.cat([states[layer][0].mean(dim=0) for layer in (1, 3)])
        np.testing.assert_allclose(mine, expected.numpy(), rtol=0, atol=1e-12)


def test_features_do_not_depend_on_batches(tiny_ensemble, rows):
    model = tiny_ensemble(depth=4)
    counts = []
    alone = mean_states(model, rows, (1, 3), 1, counts.append)
    assert counts == list(range(1, 10))
    for budget in (12, 30, 1000):
        np.testing.assert_allclose(mean_states(model, rows, (1, 3), budget), alone, rtol=0, atol=1e-12)
    order = [4, 0, 8, 2]
    some = mean_states(model, [rows[i] for i in order], (1, 3), 30)
    np.testing.assert_allclose(some, alone[order], rtol=0, atol=1e-12)


def test_layers_above_the_last_do_not_run(tiny_ensemble, rows):
    model = tiny_ensemble(depth=4)
    ran = []
    for index, layer in enumerate(model.model.model.layers):
        layer.mlp.register_forward_hook(lambda module, args, output, index=index: ran.append(index))
    mean_states(model, rows[:1], (0, 2), 100)
    assert ran == [0, 1]


def test_a_text_without_tokens_has_zeros(tiny_ensemble, rows):
    empty = EncodedExample(0, (), (), None)
    features = mean_states(tiny_ensemble(depth=2), [rows[0], empty], (1,), 100)
    assert features[0].any()
    assert not features[1].any()


def test_texts_are_encoded_without_prompt_and_cut_at_the_longest_row(run_config, texts_csv):
    config = run_config(texts_csv(), data={"max_length": 60})
    pipeline, _ = build_pipeline(config, "reviews", ("no", "yes"), ())
    examples = [Example("a", "the film </s>", ("no", "yes"), 0, "here"), Example("b", "long " * 90, ("no", "yes"), 1)]
    short, long = encode_texts(pipeline.tokens, examples, pipeline.max_length)
    assert pipeline.base.tokenizer.decode(short.prefix) == "the film </s>"
    assert 1 not in short.prefix  # the name of a control token is plain text
    assert len(long.prefix) == 60
    assert encode_texts(pipeline.tokens, [], pipeline.max_length) == []
