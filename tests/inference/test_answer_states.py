"""Hidden states at answer positions, read in the passes that predict: the same answers, and the right position."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lorchestra.inference.answer_states import predict_with_information, predict_with_states
from lorchestra.inference.predict import MemberPass, member_passes, predict_rows
from lorchestra.metrics.information import InformationHead
from lorchestra.nn.packing import BASE, Item, pack

BUDGET = 50


@pytest.fixture(params=["letters", "texts", "trees", "heads"])
def kind(request):
    return request.param


@pytest.mark.parametrize("adapt", [{}, {"depth": 3, "layers": "last:1"}], ids=["all layers", "last layer"])
def test_states_are_those_that_predict_the_first_token(tiny_ensemble, make_rows, kind, adapt):
    model = tiny_ensemble(spread=0.3, num_labels=4 if kind == "heads" else None, **adapt)
    rows = make_rows(11, kind, seed=3)
    passes = member_passes([2, 0] if kind == "heads" else [2, BASE, 0])
    log_probs, states = predict_with_states(model, rows, passes, BUDGET)
    np.testing.assert_allclose(log_probs, predict_rows(model, rows, passes, BUDGET), rtol=0, atol=1e-12)
    assert states.shape == (len(passes), 11, model.hidden_size)
    for index, one in enumerate(passes):
        for e, row in enumerate(rows):
            batch = pack([Item(one.member, row)])
            with torch.no_grad():
                alone = model.forward(batch, "head_states")[batch.scoring.prefix_rows[0]]
            np.testing.assert_allclose(states[index, e], alone.numpy(), rtol=0, atol=1e-6)
    if kind != "heads":  # the head applied to a state gives the distribution of the answer's first token
        batch = pack([Item(2, rows[0])])
        position = int((batch.scoring.keep == len(rows[0].prefix) - 1).nonzero())
        logits = model.forward(batch, "logits")[position].detach()
        applied = model.model.get_output_embeddings().weight @ torch.from_numpy(states[0, 0]).double()
        torch.testing.assert_close(applied, logits, rtol=0, atol=1e-5)


def test_information_is_of_the_only_member_and_none_of_other_passes(tiny_ensemble, make_rows):
    model, rows = tiny_ensemble(spread=0.3, members=1), make_rows(5, "texts")
    draw = np.random.default_rng(0)
    weights = draw.normal(size=model.hidden_size + 1)
    head = InformationHead(np.zeros(len(weights)), np.ones(len(weights)), weights, 0.1)
    (log_probs,), (states,) = predict_with_states(model, rows, member_passes([0]), BUDGET)
    expected = head.predict(states, log_probs)
    assert np.ptp(expected) > 0
    _, information = predict_with_information(head, model, rows, member_passes([0]), BUDGET)
    np.testing.assert_allclose(information, expected, rtol=1e-5)
    _, information = predict_with_information(head, model, rows, member_passes([BASE, 0]), BUDGET)
    np.testing.assert_allclose(information, expected, rtol=1e-5)
    for passes in ([MemberPass(BASE)], [MemberPass(0, 3), MemberPass(0, 4)]):
        assert predict_with_information(head, model, rows, passes, BUDGET)[1] is None
    assert predict_with_information(None, model, rows, member_passes([0]), BUDGET)[1] is None
