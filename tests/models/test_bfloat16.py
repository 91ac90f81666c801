"""Packed passes in bfloat16 against exact arithmetic, within bounds from a rounding analysis.

The bound of a log-probability is of first order: every output of a module may be off by the unit roundoff, all in the
worst direction: `u * sum |d log p / d h * h|`. It is computed in float64, on a base whose weights bfloat16 can hold, so
that only what is computed is rounded.
"""

from __future__ import annotations

import copy

import pytest
import torch

from lorchestra.nn.packing import Item, pack

U = 2.0**-8
"""Unit roundoff of bfloat16's 8 significant bits."""
MEMBERS = 3
SITES = ("Linear", "RMSNorm", "MLP", "DecoderLayer", "SiLU", "Attention", "MemberLoRALinear")


@pytest.fixture
def ensembles(tiny_model, tiny_ensemble):
    """The same members on the same weights, by number format of the base."""
    weights = {name: tensor.bfloat16() for name, tensor in tiny_model(dtype=torch.float32).state_dict().items()}
    made = {}
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        base = copy.deepcopy(tiny_model(dtype=dtype))
        base.load_state_dict(weights)
        made[dtype] = tiny_ensemble(base=base, members=MEMBERS)
    values = made[torch.float32].adapters.values
    for ensemble in made.values():
        ensemble.adapters.values.copy_(values)
    return made


def lockstep(rows):
    return pack([Item(m, row) for m in range(MEMBERS) for row in rows])


def with_bounds(ensemble, batch):
    """The exact log-probabilities, and how far bfloat16's may be from them."""
    outputs = []

    def record(module, inputs, output):
        output = output[0] if isinstance(output, tuple) else output
        if output.requires_grad:
            output.retain_grad()
            outputs.append(output)

    model = ensemble.model
    hooks = [m.register_forward_hook(record) for m in model.modules() if type(m).__name__.endswith(SITES)]
    hooks.append(model.get_input_embeddings().register_forward_hook(lambda module, i, o: o.requires_grad_()))
    exact = ensemble.forward(batch)
    for hook in hooks:
        hook.remove()
    bounds = torch.zeros_like(exact)
    for b, c in exact.detach().isfinite().nonzero().tolist():
        for output in outputs:
            output.grad = None
        exact[b, c].backward(retain_graph=True)
        bounds[b, c] = U * sum((o.grad * o).abs().sum() for o in outputs if o.grad is not None).detach()
    return exact.detach(), bounds


def differences(one, other):
    return (one - other).where(other.isfinite(), torch.zeros(())).abs()


@pytest.mark.parametrize("training", [True, False], ids=["training", "prediction"])
@pytest.mark.parametrize("kind", ["letters", "texts", "trees"])
def test_log_probabilities_are_within_the_rounding_bound(request, ensembles, kind, training):
    rows = request.getfixturevalue(kind)
    exact, bounds = with_bounds(ensembles[torch.float64], lockstep(rows))
    with torch.set_grad_enabled(training):
        half = ensembles[torch.bfloat16].forward(lockstep(rows))
        full = ensembles[torch.float32].forward(lockstep(rows))
    assert half.dtype == torch.float32
    assert (differences(half, exact) <= bounds).all()
    assert differences(full, exact).max() < 1e-4
    # a row that got another member would exceed it
    finite = exact[: len(rows)].isfinite()
    shifted = differences(half.roll(len(rows), 0), exact)[: len(rows)][finite]
    assert (shifted > bounds[: len(rows)][finite]).float().mean() > 0.3


@pytest.mark.parametrize("kind", ["letters", "texts", "trees"])
def test_members_in_lockstep_equal_each_alone_up_to_the_last_bit_of_hidden_states(request, ensembles, kind):
    """The size of a product decides how a library splits its float32 sums, and these differences of 1e-7 may round to
    the other of two neighbours, 2 u apart: twice the bound."""
    rows, half = request.getfixturevalue(kind), ensembles[torch.bfloat16]
    _, bounds = with_bounds(ensembles[torch.float64], lockstep(rows))
    together = half.forward(lockstep(rows))
    for m in range(MEMBERS):
        mine = slice(m * len(rows), (m + 1) * len(rows))
        for index, row in enumerate(rows):
            alone = half.forward(pack([Item(m, row)]))[0]
            expected = together[mine][index, : len(alone)]
            assert (differences(alone, expected) <= 2 * bounds[mine][index, : len(alone)]).all()


def gradient(ensemble, batch):
    """Per member, of the sum of the rows' losses."""
    ensemble.adapters.zero_grad()
    log_probs = ensemble.forward(batch)
    answers = torch.tensor([item.example.answer for item in batch.items])
    (-log_probs[torch.arange(len(answers)), answers]).sum().backward()
    return ensemble.adapters.grad.clone().double()


@pytest.mark.parametrize("kind", ["letters", "texts", "trees"])
def test_gradients_are_float32_within_the_roundings_on_their_way(request, ensembles, kind):
    """Some 10 roundings per layer and direction, and 5 outside of the layers: at most 45 u, relative to the norm."""
    rows, bound = request.getfixturevalue(kind), 45 * U
    half = ensembles[torch.bfloat16]
    exact = gradient(ensembles[torch.float64], lockstep(rows))
    assert half.adapters.grad.dtype == torch.float32
    together = gradient(half, lockstep(rows))
    alone = torch.stack([gradient(half, pack([Item(m, row) for row in rows]))[m] for m in range(MEMBERS)])
    for mine in (together, alone):
        assert ((mine - exact).norm(dim=1) < bound * exact.norm(dim=1)).all()
        # another member's gradient would exceed it
        assert ((mine.roll(1, 0) - exact).norm(dim=1) > 2 * bound * exact.norm(dim=1)).all()
