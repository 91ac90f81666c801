"""PiSSA on a shared base: members start at the base, half of each is frozen, and steps equal PEFT's."""

import copy
import warnings

import peft
import pytest
import torch
import transformers

from lorchestra.config.adapt import AdaptConfig
from lorchestra.errors import ConfigError
from lorchestra.models.ensemble import EnsembleModel
from lorchestra.nn.packing import BASE, Item, pack

ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
PISSA = {"init_lora_weights": "pissa"}


def halves(adapters, values_P, piece):
    """A, A0, B, B0 of one module of a member with the full rank."""
    A, B = adapters.view(values_P, piece, "A"), adapters.view(values_P, piece, "B")
    r = piece.rank // 2
    return A[:r], A[r:], B[:, :r], -B[:, r:]


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True, "lora_alpha": 3.0}, {"r": 5}])
def test_a_member_starts_at_the_principal_part_of_each_weight(tiny_ensemble, tiny_model, settings):
    ensemble = tiny_ensemble(target_modules=ALL, **PISSA, **settings)
    base, adapt, adapters = tiny_model(), ensemble.adapt, ensemble.adapters
    for piece in adapters.slices:
        assert piece.rank == 2 * adapt.r
        weight = base.get_submodule(piece.name).weight
        U, S, V = torch.linalg.svd(weight, full_matrices=False)
        for member in range(3):
            A, A0, B, B0 = halves(adapters, adapters.values[member], piece)
            assert torch.equal(A, A0)
            assert torch.equal(B, B0)
            part = adapt.scaling * B0 @ A0
            torch.testing.assert_close(part, U[:, : adapt.r] * S[: adapt.r] @ V[: adapt.r], rtol=0, atol=1e-10)
            left_out = S[adapt.r :].square().sum().sqrt()
            torch.testing.assert_close(torch.linalg.matrix_norm(weight - part), left_out, rtol=1e-10, atol=0)
            torch.testing.assert_close(A0 @ A0.t(), B0.t() @ B0, rtol=0, atol=1e-10)  # equal singular values
        assert torch.equal(ensemble.model.get_submodule(piece.name).base.weight, weight)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_members_start_as_the_base(tiny_ensemble, make_rows, dropout):
    ensemble = tiny_ensemble(target_modules=ALL, dropout=dropout, **PISSA)
    for row in make_rows(6, "texts"):
        items = [Item(m, row, 17 + m if dropout else None) for m in (BASE, 0, 1, 2)]
        log_probs = ensemble.forward(pack(items))
        for m in range(3):
            torch.testing.assert_close(log_probs[1 + m], log_probs[0], rtol=0, atol=1e-9)
    ensemble.adapters.values[0, 0] += 0.5
    assert (ensemble.forward(pack([Item(0, row, None)]))[0] - log_probs[0]).abs().max() > 1e-3


def test_transposed_weights(make_rows):
    """GPT-2's linear layers have weights `[I, O]`."""
    config = transformers.GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=101, n_positions=64)
    model = transformers.GPT2LMHeadModel(config).double().eval()
    weight = model.transformer.h[0].attn.c_attn.weight.detach().clone()
    adapters = EnsembleModel(model, AdaptConfig(members=1, r=3, target_modules=("c_attn",), **PISSA), 0).adapters
    _, A0, _, B0 = halves(adapters, adapters.values[0], adapters.slices[0])
    S = torch.linalg.svdvals(weight)
    distance = torch.linalg.matrix_norm(weight.t() - 32 / 3 * B0 @ A0)
    torch.testing.assert_close(distance, S[3:].square().sum().sqrt(), rtol=1e-9, atol=0)


def test_the_frozen_half_keeps_every_bit(make_trainer, train):
    regularize = {"weight_decay_ba": 0.1, "kl_beta": 0.1}
    trainer = make_trainer(dropout=0.2, regularize=regularize, train={"lr": 0.05}, **PISSA)
    adapters = trainer.model.adapters
    start = adapters.values.clone()
    train(trainer)
    for m in range(3):
        for piece in adapters.slices:
            (A, A0, B, B0), (A_then, A0_then, B_then, B0_then) = (
                halves(adapters, v[m], piece) for v in (adapters.values, start)
            )
            assert torch.equal(A0, A0_then)
            assert torch.equal(B0, B0_then)
            for now, then in ((A, A_then), (B, B_then)):
                assert (now - then).abs().min() > 0
            for kept in halves(adapters, trainer.best[m], piece)[1::2]:
                assert any(torch.equal(kept, then) for then in (A0, B0))
    assert all((adapters.values[m] - adapters.values[0]).abs().max() > 0.01 for m in (1, 2))  # by data order


def test_the_gradient_norm_is_that_of_the_trained_half(make_trainer):
    """Reporting and clipping use the norm of A and B, without A0 and B0."""
    trainer = make_trainer(members=1, train={"clip_norm": 0.0}, **PISSA)
    trainer.prepare()
    trainer.step()
    adapters = trainer.model.adapters
    trained = [halves(adapters, adapters.grad[0], piece)[k] for piece in adapters.slices for k in (0, 2)]
    frozen_halves = [halves(adapters, adapters.grad[0], piece)[k] for piece in adapters.slices for k in (1, 3)]
    norm = torch.cat([part.flatten() for part in trained]).norm()
    assert trainer.callback.reports[0].grad_norm[0] == pytest.approx(norm.item(), rel=1e-12)
    assert norm > 0.1
    assert all((part == 0).all() for part in frozen_halves)


def test_decay_of_the_product_is_of_the_difference_to_the_base(make_trainer):
    """The penalty is zero at the start, where members equal the base, and later a norm of the difference."""
    trainer = make_trainer(regularize={"weight_decay_ba": 0.3}, **PISSA)
    trainer.prepare()
    trainer.step()
    adapters, scaling = trainer.model.adapters, trainer.model.adapt.scaling
    assert trainer.callback.reports[0].penalties["weight_decay_ba"] == pytest.approx([0.0] * 3, abs=1e-10)
    wanted = []
    for m in range(3):
        parts = [halves(adapters, adapters.values[m], piece) for piece in adapters.slices]
        added = [scaling * (B @ A - B0 @ A0) for A, A0, B, B0 in parts]
        wanted.append(0.5 * 0.3 * sum(part.square().sum().item() for part in added))
    trainer.step()
    assert min(wanted) > 1e-3
    assert trainer.callback.reports[1].penalties["weight_decay_ba"] == pytest.approx(wanted, rel=1e-9)


def peft_pissa(base, adapt):
    """PEFT's PiSSA model, initialized by PEFT in float32, the only format it supports."""
    config = peft.LoraConfig(
        r=adapt.r, lora_alpha=adapt.lora_alpha, target_modules=list(adapt.target_modules), init_lora_weights="pissa"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.get_peft_model(copy.deepcopy(base).float(), config, autocast_adapter_dtype=False).double().eval()


def mean_loss(model, rows):
    """Mean cross-entropy over the rows' choices, each in a separate pass."""
    losses = []
    for row in rows:
        scores = []
        for choice in row.choices:
            log_probs = model(torch.tensor([[*row.prefix, *choice]])).logits[0].log_softmax(dim=-1)
            scores.append(sum(log_probs[len(row.prefix) - 1 + j, token] for j, token in enumerate(choice)))
        losses.append(-torch.stack(scores).log_softmax(dim=0)[row.answer])
    return torch.stack(losses).mean()


def test_training_steps_equal_those_of_peft(make_trainer, make_rows, tiny_model):
    """The initialization to float32's precision, then gradients and the model after two steps in float64."""
    rows, steps, lr = make_rows(6, "texts"), 2, 0.01
    settings = {"batch_size": 6, "epochs": steps, "clip_norm": 0.0, "warmup": 0.0, "schedule": "constant", "lr": lr}
    trainer = make_trainer(members=1, rows=(rows, rows), train=settings, target_modules=ALL, r=3, **PISSA)
    adapters, adapt, base = trainer.model.adapters, trainer.model.adapt, tiny_model()
    theirs = peft_pissa(base, adapt)
    signs = {}
    for piece in adapters.slices:
        A, _, B, _ = halves(adapters, adapters.values[0], piece)
        layer = theirs.base_model.model.get_submodule(piece.name)
        weights = [getattr(layer, name)["default"].weight for name in ("lora_A", "lora_B")]
        sign = signs[piece.name] = (weights[0] * A).sum(dim=1).sign().detach()
        wanted = (sign[:, None] * A, B * sign, base.get_submodule(piece.name).weight - adapt.scaling * B @ A)
        for weight, exact in zip([*weights, layer.base_layer.weight], wanted, strict=True):
            torch.testing.assert_close(weight.detach(), exact.detach(), rtol=0, atol=2e-5)
            weight.data.copy_(exact)  # PEFT's initialization to float64's precision
    optimizer = torch.optim.AdamW([p for p in theirs.parameters() if p.requires_grad], lr=lr, weight_decay=0.0)
    trainer.prepare()
    for step in range(steps):
        optimizer.zero_grad()
        loss = mean_loss(theirs, rows)
        loss.backward()
        optimizer.step()
        trainer.step()
        assert trainer.callback.reports[step].loss[0] == pytest.approx(loss.item(), abs=1e-9)
        for piece in adapters.slices:
            layer = theirs.base_model.model.get_submodule(piece.name)
            grad_A, _, grad_B, _ = halves(adapters, adapters.grad[0], piece)
            sign = signs[piece.name]
            for grad, name in ((sign[:, None] * grad_A, "lora_A"), (grad_B * sign, "lora_B")):
                wanted = getattr(layer, name)["default"].weight.grad
                assert wanted.abs().max() > 1e-4
                torch.testing.assert_close(grad, wanted, rtol=0, atol=1e-9)
    with torch.no_grad():
        after = trainer.model.forward(pack([Item(0, row, None) for row in rows]))
        ours = torch.stack([-after[b, row.answer] for b, row in enumerate(rows)]).mean()
        assert ours.item() == pytest.approx(mean_loss(theirs, rows).item(), abs=1e-9)
        assert abs(ours.item() - mean_loss(base, rows).item()) > 1e-2


@pytest.mark.parametrize("name", ["weight_decay_a", "weight_decay_b"])
def test_decay_of_a_and_b_is_refused(make_trainer, make_settings, name):
    with pytest.raises(ConfigError, match=rf"regularize\.{name}: 2, but with adapt\.init_lora_weights: pissa"):
        make_trainer(regularize={name: 2.0}, **PISSA)
    plain = make_settings()
    decayed = make_settings(regularize={name: 2.0}, **PISSA)[:1]
    with pytest.raises(ConfigError, match=rf"member 3: regularize\.{name}"):
        make_trainer(settings=plain + decayed)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"init_scale": 2.0}, r"adapt\.init_scale: 2\.0, but adapt\.init_lora_weights: pissa is not random"),
        ({"init_std_b": 0.1}, r"adapt\.init_std_b: 0\.1, but adapt\.init_lora_weights: pissa is not random"),
        ({"r": 17}, r"pissa has no 17 singular values of model\.layers\.0\.self_attn\.v_proj, a map from 32 to 16"),
    ],
)
def test_settings_that_pissa_does_not_support_are_refused(tiny_ensemble, settings, message):
    with pytest.raises(ConfigError, match=message):
        tiny_ensemble(**PISSA, **settings)


def test_members_start_with_equal_values_whatever_their_seeds(make_trainer, make_settings):
    settings = make_settings(members=2, **PISSA) + make_settings(members=1, train={"seed": 5}, **PISSA)
    values = make_trainer(settings=settings).model.adapters.values
    assert torch.equal(values[0], values[1])
    assert torch.equal(values[0], values[2])
    assert AdaptConfig(**PISSA).shares_init
    assert not AdaptConfig().shares_init
