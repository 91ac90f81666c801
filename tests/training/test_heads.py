"""Classification heads: their arithmetic, their start from logistic regression, and the folders that PEFT loads."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import transformers
from peft import PeftModel
from training_fixtures import NUM_LABELS

from lorchestra.errors import CheckpointError
from lorchestra.inference.packed import run_packed
from lorchestra.inference.predict import MemberPass, member_passes, predict_rows
from lorchestra.models.peft_files import load_member, save_members
from lorchestra.nn.head import STEP_SCALE, MemberHead
from lorchestra.nn.packing import BASE, Item, pack
from lorchestra.nn.seeding import derive_seed
from lorchestra.training.heads import STRENGTHS, answer_states, init_heads


def heads_of(trainer):
    """Each member's head as saved, `[M, C, D]`."""
    return trainer.model.adapters.head(trainer.model.adapters.values) * STEP_SCALE


def test_logits_are_of_each_rows_member():
    weights = [torch.nn.Parameter(torch.randn(3, 5, dtype=torch.float64)) for _ in range(2)]
    head, states = MemberHead(weights), torch.randn(4, 5, dtype=torch.float64)
    logits = head(states, [0, 1, 1, 1])
    for row, m in enumerate((0, 1, 1, 1)):
        torch.testing.assert_close(logits[row], STEP_SCALE * weights[m] @ states[row])
    with pytest.raises(ValueError, match="the base has no classification head"):
        head(states, [BASE, 0, 0, 0])


def test_rows_of_both_kinds_are_not_scored_in_one_batch(make_rows):
    items = [Item(0, make_rows(1, kind)[0], None, i) for i, kind in enumerate(("heads", "letters"))]
    with pytest.raises(ValueError, match="with and without a classification head"):
        _ = pack(items).scoring


def test_rows_by_head_need_a_model_with_heads(tiny_ensemble, make_rows):
    batch = pack([Item(0, make_rows(1, "heads")[0])])
    with pytest.raises(ValueError, match="without classification heads; see num_labels"):
        tiny_ensemble().forward(batch)
    with pytest.raises(ValueError, match="no logits over the vocabulary"):
        tiny_ensemble(num_labels=NUM_LABELS).forward(batch, "logits")


@pytest.mark.parametrize("layers", ["all", "last:1"])
def test_heads_read_the_input_of_the_output_head(make_trainer, layers):
    trainer = make_trainer(kind="heads", depth=3, layers=layers)
    trainer.prepare()
    model, rows = trainer.model, trainer.rows.train
    assert torch.equal(trainer.best, model.adapters.values)
    states = answer_states(model, rows, 50, trainer.precomputed.train, 0, lambda done: None)
    for item, row in enumerate(rows):
        text = dataclasses.replace(row, choices=((5,), (7,)), by_head=False)
        logits = model.forward(pack([Item(BASE, text)]), "logits")[0]
        torch.testing.assert_close(model.model.lm_head.weight @ torch.tensor(states[item]), logits)
        of_base = model.forward(pack([Item(0, row)]))  # B is zero, so that a member's states are the base's
        expected = (heads_of(trainer)[0] @ torch.tensor(states[item])).log_softmax(dim=0)
        torch.testing.assert_close(of_base[0], expected)


def test_members_start_at_regressions_weighted_by_their_seeds(make_trainer, make_rows):
    """The known solution: where the penalty's gradient balances that of the weighted loss."""
    draw = np.random.default_rng(0)
    states = draw.normal(size=(80, 32)) * draw.uniform(0.1, 30, size=32) + draw.normal(size=32)
    truth = draw.normal(size=(NUM_LABELS, 32)) / states.std(axis=0)
    labels = (states @ truth.T).argmax(axis=1)
    rows = [
        dataclasses.replace(row, answer=int(label)) for row, label in zip(make_rows(80, "heads"), labels, strict=True)
    ]
    trainer = make_trainer(rows=(rows[:60], rows[60:]), order="bootstrap")
    init_heads(trainer.model, trainer.rows, trainer.settings, (states[:60], states[60:]))
    heads = heads_of(trainer).numpy()
    scale = states[:60].std(axis=0)
    for m, head in enumerate(heads):
        chosen = np.array(trainer.settings[m].rows)
        weights = np.random.default_rng(derive_seed(trainer.settings[m].adapter.seed, "head")).exponential(size=60)
        inputs = states[chosen] / scale
        logits = states[chosen] @ head.T
        probs = np.exp(logits - logits.max(axis=1, keepdims=True))
        probs /= probs.sum(axis=1, keepdims=True)
        pull = (weights[:, None] * (np.eye(NUM_LABELS)[labels[chosen]] - probs)).T @ inputs
        ratios = (pull * (head * scale)).sum() / np.square(head * scale).sum()
        np.testing.assert_allclose(pull, ratios * head * scale, atol=0.02 * np.abs(pull).max())
        assert min(abs(np.log(1 / (C * ratios))) for C in STRENGTHS) < 0.01
        assert ((states[60:] @ head.T).argmax(axis=1) == labels[60:]).mean() > 0.5
    assert np.abs(heads[0] - heads[1]).max() > 0.01 * np.abs(heads).max()


def test_a_label_without_rows_and_two_labels(make_trainer, make_rows):
    rows = [dataclasses.replace(row, answer=1 + row.row % 2) for row in make_rows(12, "heads")]
    trainer = make_trainer(rows=(rows, rows[:5]))
    trainer.prepare()
    heads = heads_of(trainer)
    assert heads[:, 2].abs().amax() > 1e-3
    assert not heads[:, [0, 1, 3]].any()  # the second of two labels has the log-odds, as in scikit-learn
    one = [dataclasses.replace(row, answer=2) for row in rows]
    trainer = make_trainer(rows=(one, one[:5]))
    trainer.prepare()
    assert not heads_of(trainer).any()


def test_heads_and_adapters_are_both_trained(make_trainer, train):
    trainer = make_trainer(kind="heads")
    trainer.prepare()
    start = trainer.model.adapters.values.clone()
    train(trainer)
    moved = (trainer.model.adapters.values - start).abs()
    assert trainer.model.adapters.head(moved).amax(dim=(1, 2)).min() > 1e-3
    for piece in trainer.model.adapters.slices:
        assert trainer.model.adapters.view(moved, piece, "B").amax(dim=(1, 2)).min() > 1e-3


def test_gradients_equal_finite_differences(make_trainer):
    trainer = make_trainer(kind="heads", spread=0.3, members=2)
    model, rows = trainer.model, trainer.rows.train[:3]
    trainer.prepare()
    values = model.adapters.values
    items = [Item(m, row, None, m * 3 + e) for m in range(2) for e, row in enumerate(rows)]

    def loss():
        return sum(outputs[:, 0].sum() for _, outputs in run_packed(model, items, 40))

    model.adapters.zero_grad()
    loss().backward()
    draw = np.random.default_rng(0)
    start = model.adapters.slices[-1].stop
    columns = [*draw.integers(0, start, 10), *draw.integers(start, values.shape[1], 10)]
    for column in columns:
        for m in range(2):
            before, step = values[m, column].item(), 1e-6
            with torch.no_grad():
                values[m, column] = before + step
                high = loss().item()
                values[m, column] = before - step
                low = loss().item()
                values[m, column] = before
            expected = (high - low) / (2 * step)
            assert model.adapters.grad[m, column].item() == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_predictions_and_the_base(make_trainer, train):
    trainer = train(make_trainer(kind="heads", depth=3, layers="last:1"))
    rows = trainer.rows.val
    log_probs = predict_rows(trainer.model, rows, member_passes(range(3)), 60)
    np.testing.assert_allclose(np.exp(log_probs).sum(axis=2), 1.0)
    with pytest.raises(ValueError, match="the base has no classification head"):
        predict_rows(trainer.model, rows, [MemberPass(BASE)], 60)


def test_peft_and_transformers_load_the_folders(make_trainer, train, tiny_model, tmp_path):
    """The logits of `AutoModelForSequenceClassification` with PEFT are the member's, in float64."""
    trainer = train(make_trainer(kind="heads", train={"lr": 0.03}))
    model, base = trainer.model, tiny_model()
    base.save_pretrained(tmp_path / "base")
    members = tmp_path / "members"
    members.mkdir()
    save_members(members, model, model.adapters.values, str(tmp_path / "base"))
    log_probs = predict_rows(model, trainer.rows.val, member_passes(range(3)), 60)
    for m in range(3):
        classifier = transformers.AutoModelForSequenceClassification.from_pretrained(
            tmp_path / "base", num_labels=NUM_LABELS, dtype=torch.float64, pad_token_id=0
        )
        loaded = PeftModel.from_pretrained(classifier, members / f"member_{m:02d}").eval()
        for e, row in enumerate(trainer.rows.val):
            ids = torch.tensor([[1 + token % 100 if token == 0 else token for token in row.prefix]])
            if 0 in row.prefix:
                continue  # the padding token
            with torch.no_grad():
                logits = loaded(input_ids=ids).logits[0]
            expected = torch.tensor(log_probs[m, e])
            torch.testing.assert_close(logits.log_softmax(dim=-1), expected, rtol=1e-5, atol=1e-5)
    adapters = make_trainer(kind="heads", train={"seed": 5}).model.adapters
    for m in range(3):
        load_member(adapters, m, members / f"member_{m:02d}")
    assert torch.equal(adapters.values, model.adapters.values)


def test_a_folder_without_the_head_or_of_other_labels_is_refused(make_trainer, tiny_ensemble, tmp_path):
    def saved(trainer, name):
        (tmp_path / name).mkdir()
        save_members(tmp_path / name, trainer.model, trainer.model.adapters.values, "base")
        return tmp_path / name / "member_00"

    with_head, without = saved(make_trainer(kind="heads"), "heads"), saved(make_trainer(), "plain")
    with pytest.raises(CheckpointError, match=r"score\.weight is missing"):
        load_member(make_trainer(kind="heads").model.adapters, 0, without)
    with pytest.raises(CheckpointError, match=r"score\.weight has shape \[4, 32\], not \[5, 32\]"):
        load_member(tiny_ensemble(num_labels=5).adapters, 0, with_head)
    with pytest.raises(
        CheckpointError, match=r"tensors that config\.yaml does not name, such as base_model\.model\.score"
    ):
        load_member(make_trainer().model.adapters, 0, with_head)
