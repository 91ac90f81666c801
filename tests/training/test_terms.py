"""Each regularizer in the trainer: its value by hand, its gradient by autograd, and its effect on a run."""

import pytest
import torch

from lorchestra.errors import ConfigError
from lorchestra.nn.packing import BASE, Item, pack
from lorchestra.training.precompute import BaseVocabulary


def vocabulary_by_hand(model, member, row):
    """Log-probabilities of the answer's first token over the vocabulary, from a separate pass."""
    batch = pack([Item(member, row)])
    first = int((batch.scoring.keep == len(row.prefix) - 1).nonzero())
    return model.forward(batch, "logits")[first].log_softmax(dim=-1)


def objective_by_hand(trainer, m):
    """Loss and penalties of one member's first step, from single rows and dense products."""
    model, regularize = trainer.model, trainer.settings[m].regularize
    rows = [item.example for item in trainer.step_items(0) if item.member == m]
    terms = dict.fromkeys(["loss", "kl_to_base", "label_smoothing", "weight_decay_ba"], 0.0)
    for row in rows:
        log_probs = model.forward(pack([Item(m, row)]))[0]
        terms["loss"] += -log_probs[row.answer] / len(rows)
        smoothed = torch.full_like(log_probs, regularize.label_smoothing / len(log_probs))
        smoothed[row.answer] += 1 - regularize.label_smoothing
        terms["label_smoothing"] += (-(smoothed * log_probs).sum() + log_probs[row.answer]) / len(rows)
        if regularize.kl_over == "vocabulary":
            mine = vocabulary_by_hand(model, m, row)
            base = vocabulary_by_hand(model, BASE, row).detach()
        else:
            mine, base = log_probs, model.forward(pack([Item(BASE, row)]))[0].detach()
        p, q = (mine, base) if regularize.kl_direction == "forward" else (base, mine)
        terms["kl_to_base"] += regularize.kl_beta * (p.exp() * (p - q)).sum() / len(rows)
    for A, B in model.adapters.parameters.values():
        scaled = model.adapter_settings[m].scaling * B[m] @ A[m]
        terms["weight_decay_ba"] += 0.5 * regularize.weight_decay_ba * scaled.square().sum()
    return terms


TERMS = {
    "decay of the product": {"weight_decay_ba": 0.2},
    "label smoothing": {"label_smoothing": 0.3},
    "KL over options": {"kl_beta": 0.7},
    "KL over the vocabulary": {"kl_beta": 0.7, "kl_over": "vocabulary"},
    "reverse KL over the vocabulary": {"kl_beta": 0.7, "kl_over": "vocabulary", "kl_direction": "reverse"},
    "all": {
        "weight_decay_ba": 0.2,
        "label_smoothing": 0.3,
        "kl_beta": 0.7,
        "kl_over": "vocabulary",
        "weight_decay_a": 1.0,
        "weight_decay_b": 2.0,
    },
}


@pytest.mark.parametrize("kind", ["letters", "texts", "trees"])
@pytest.mark.parametrize("trunk", [False, True], ids=["whole model", "trunk"])
@pytest.mark.parametrize("regularize", TERMS.values(), ids=TERMS.keys())
def test_values_and_gradients_equal_those_of_single_rows_and_dense_products(make_trainer, regularize, trunk, kind):
    adapt = {"depth": 3, "layers": "last:1"} if trunk else {}
    trainer = make_trainer(regularize=regularize, spread=0.3, kind=kind, train={"clip_norm": 0.0}, **adapt)
    adapters = trainer.model.adapters
    expected, grads = [], []
    for m in range(3):
        terms = objective_by_hand(trainer, m)
        expected.append({name: torch.as_tensor(value).detach().item() for name, value in terms.items()})
        leaves = [leaf[m] for pair in adapters.parameters.values() for leaf in pair]
        grads.append(torch.cat([g.flatten() for g in torch.autograd.grad(sum(terms.values()), leaves)]))
    trainer.prepare()
    trainer.step()
    (report,) = trainer.callback.reports
    active = {"weight_decay_ba", "label_smoothing", "kl_to_base"} & report.penalties.keys()
    assert active
    for m in range(3):
        assert report.loss[m] == pytest.approx(expected[m]["loss"], rel=1e-10)
        for name in active:
            assert report.penalties[name][m] == pytest.approx(expected[m][name], rel=1e-9)
            assert abs(expected[m][name]) > 1e-3
        torch.testing.assert_close(adapters.grad[m], grads[m], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_kl_over_the_vocabulary_starts_at_zero_and_is_no_less_than_over_single_tokens(make_trainer, direction):
    """Members start at the base; later, a distribution over few tokens may hide a difference."""
    trainer = make_trainer(regularize={"kl_beta": 1.0, "kl_over": "vocabulary", "kl_direction": direction})
    trainer.prepare()
    for _ in range(4):
        trainer.step()
    kl = [report.penalties["kl_to_base"] for report in trainer.callback.reports]
    assert kl[0] == pytest.approx([0.0] * 3, abs=1e-12)
    assert min(kl[-1]) > 1e-5


def test_decay_of_a_is_logged_and_pulls_members_together(make_trainer, train):
    runs = {
        decay: train(make_trainer(regularize={"weight_decay_a": decay}, train={"epochs": 6, "keep": "last"}))
        for decay in (0.0, 20.0)
    }
    norms = {}
    for decay, trainer in runs.items():
        values = trainer.model.adapters.values * ~trainer.model.adapters.is_B
        norms[decay] = values.norm(dim=1)
        if decay:
            logged = trainer.callback.reports[-1].penalties["weight_decay_a"]
            assert logged == pytest.approx((0.5 * decay * norms[decay] ** 2).tolist(), rel=1e-12)
    assert (norms[20.0] < 0.5 * norms[0.0]).all()


def test_decay_of_the_product_keeps_it_small(make_trainer, train):
    norms = {}
    for decay in (0.0, 3.0):
        settings = {"epochs": 6, "keep": "last"}
        trainer = train(make_trainer(regularize={"weight_decay_ba": decay}, train=settings))
        products = [
            torch.stack([b @ a for a, b in zip(A, B, strict=True)])
            for A, B in trainer.model.adapters.parameters.values()
        ]
        norms[decay] = sum(product.detach().square().sum(dim=(1, 2)) for product in products).sqrt()
    assert (norms[3.0] < 0.5 * norms[0.0]).all()


def test_label_smoothing_bounds_confidence(make_trainer, make_rows, train):
    """With a share of 0.4 the best confidence in a row of C choices is 0.6 + 0.4 / C, whatever the training."""
    rows = [row for row in make_rows(8) if len(set(row.choices)) == len(row.choices)]
    settings = {"epochs": 60, "lr": 0.02, "batch_size": 8, "keep": "last", "schedule": "constant"}
    trainer = train(make_trainer(rows=(rows, rows), train=settings, regularize={"label_smoothing": 0.4}, r=4))
    for row in rows:
        probability = trainer.model.forward(pack([Item(0, row)]))[0, row.answer].exp().item()
        assert probability == pytest.approx(0.6 + 0.4 / len(row.choices), abs=0.05)


def test_a_vocabulary_that_does_not_fit_into_memory_is_an_error(make_trainer, monkeypatch):
    trainer = make_trainer(regularize={"kl_beta": 1.0, "kl_over": "vocabulary"})

    def empty(*shape, dtype):
        raise RuntimeError("not enough memory")

    monkeypatch.setattr(torch, "empty", empty)
    with pytest.raises(ConfigError, match=r"kl_over: vocabulary needs 0\.0 GB .* for 12 training rows") as caught:
        BaseVocabulary(trainer.model, trainer.rows.train, 60, None, 0, lambda done: None)
    assert "kl_over: options" in str(caught.value)
