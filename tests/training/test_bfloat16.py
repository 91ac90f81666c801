"""Training on a base in bfloat16: what stays in float32, and lockstep against each member alone."""

from __future__ import annotations

import torch

U = 2.0**-8
"""Unit roundoff of bfloat16's 8 significant bits."""


def test_adapters_gradients_optimizer_and_losses_are_float32(make_trainer, train):
    trainer = make_trainer(members=2, dtype=torch.bfloat16, regularize={"kl_beta": 0.1})
    assert trainer.model.dtype == torch.bfloat16
    start = trainer.model.adapters.values.clone()
    train(trainer)
    floating = {n: t.dtype for n, t in trainer.tensors().items() if t.is_floating_point()}
    assert {"values"} < floating.keys()
    assert not {torch.bfloat16, torch.float16} & set(floating.values())
    assert trainer.model.adapters.grad.dtype == torch.float32
    moved = trainer.model.adapters.values - start
    # far smaller steps than bfloat16 could add to a parameter are not lost
    assert (moved.abs() < U * start.abs())[start != 0].any()
    losses = [loss for report in trainer.callback.reports for loss in report.loss]
    assert any(loss != torch.tensor(loss).bfloat16().item() for loss in losses)


def test_lockstep_equals_each_alone_up_to_the_roundings_of_gradients(make_trainer, train, seed_as):
    """Distances relative to the length of the path.

    In float64 the two are equal (`test_members`). In bfloat16 a gradient is within 45 u of that (`tests/models`), and
    AdamW's step, a quotient of two averages of gradients, within twice as much; so two trainings are within 180 u of
    each other. They are the same bits where a product's rows do not depend on how many others it has.
    """
    bound, settings = 180 * U, {"dtype": torch.bfloat16, "kind": "texts"}
    together = make_trainer(members=3, **settings)
    start = together.model.adapters.values.clone()
    trained = train(together).model.adapters.values
    for m in range(3):
        seed_as({0: m})
        alone = train(make_trainer(members=1, train={"token_budget": (11, 45, 10_000)[m]}, **settings))
        moved = (alone.model.adapters.values[0] - start[m]).norm()
        distances = (alone.model.adapters.values[0] - trained).norm(dim=1) / moved
        assert moved > 0.1
        assert [bool(distance < bound) for distance in distances] == [k == m for k in range(3)]
