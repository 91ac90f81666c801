"""Per-row gradients from packed batches equal those from separate passes."""

from __future__ import annotations

import pytest
import torch

from lorchestra.inference.trunk import TrunkCache
from lorchestra.methods.posterior import row_gradients
from lorchestra.nn.packing import Item, pack


def alone(model, row, c):
    """Log-probability of one choice and its gradient, from a pass with this row only."""
    model.adapters.zero_grad()
    log_probs = model.forward(pack([Item(0, row)]))
    log_probs[0, c].backward()
    return log_probs[0, c].item(), model.adapters.grad[0].clone()


@pytest.mark.parametrize("kind", ["letters", "texts", "trees"])
@pytest.mark.parametrize("layers", ["all", "last:1"])
@pytest.mark.parametrize("cached", [True, False])
def test_gradients_of_packed_rows_equal_those_of_each_row_alone(tiny_ensemble, make_rows, kind, layers, cached):
    model = tiny_ensemble(members=3, layers=layers, spread=0.3)
    model.adapters.values.copy_(model.adapters.values[:1].expand(3, -1).clone())
    rows = make_rows(8, kind)
    trunk = TrunkCache(model, rows, 40) if cached and layers != "all" else None
    columns = torch.ones_like(model.adapters.is_B)
    columns[::3] = False
    seen = []
    for batch in row_gradients(model, rows, 40, columns, trunk):
        assert 1 <= len(batch.rows) <= 3
        assert sum(row.num_tokens for row in batch.rows) <= 40
        for b, row in enumerate(batch.rows):
            seen.append(row.row)
            for c in range(batch.log_probs.shape[1]):
                if c >= len(row.choices):
                    assert batch.log_probs[b, c] == -torch.inf
                    assert not batch.gradients[b, c].any()
                    continue
                log_prob, gradient = alone(model, row, c)
                assert batch.log_probs[b, c].item() == pytest.approx(log_prob, abs=1e-10)
                torch.testing.assert_close(batch.gradients[b, c], gradient[columns], rtol=1e-8, atol=1e-10)
    assert seen == [row.row for row in rows]
    model.adapters.zero_grad()


def test_mean_gradient_of_log_probabilities_is_zero(tiny_ensemble, make_rows):
    """A normalized distribution's score has mean zero."""
    model = tiny_ensemble(members=2, spread=0.3)
    model.adapters.values.copy_(model.adapters.values[:1].expand(2, -1).clone())
    for batch in row_gradients(model, make_rows(5), 60, torch.ones_like(model.adapters.is_B)):
        mean = (batch.log_probs.exp()[..., None] * batch.gradients).sum(dim=1)
        torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-10)
