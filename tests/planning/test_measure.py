import gc
import weakref

import pytest
import torch

from lorchestra.nn.packing import Item, pack
from lorchestra.planning.estimate import ALLOCATION
from lorchestra.planning.measure import calibrate, saved_bytes, token_bytes
from lorchestra.planning.workload import PlannedRun, plan_workload
from lorchestra.training.callbacks import Callback
from lorchestra.types import EncodedExample


def batch_of(number):
    rows = [EncodedExample(i, (1, 2, 3, 4, 5, 6, 7, 8), ((1,), (2,)), 0) for i in range(number)]
    return pack([Item(0, row) for row in rows])


def test_saved_bytes_grow_by_the_token_and_with_the_adapted_layers(tiny_ensemble):
    one, two = tiny_ensemble(depth=2, layers="all"), tiny_ensemble(depth=4, layers="all")
    sizes = [saved_bytes(one, batch_of(number), None) for number in (2, 4, 6)]
    assert sizes[1] - sizes[0] == sizes[2] - sizes[1] > 0
    twice = [saved_bytes(two, batch_of(number), None) for number in (2, 4)]
    assert 1.5 < (twice[1] - twice[0]) / (sizes[1] - sizes[0]) < 2.5


def test_saved_bytes_are_at_least_the_minimum(tiny_ensemble):
    """The minimum: q, k, v of attention, inputs of two adapted maps, gate and up of the MLP (except the last MLP's)."""
    depth, tokens, width, inner = 4, 16, 32, 48
    needed = tokens * 8 * (depth * (3 * width + 2 * width) + (depth - 1) * 2 * inner)
    assert needed < saved_bytes(tiny_ensemble(depth=depth), batch_of(2), None) < 6 * needed


def test_checkpointing_is_restored_and_not_counted(tiny_ensemble):
    model = tiny_ensemble(depth=4)
    plain = saved_bytes(model, batch_of(3), None)
    model.gradient_checkpointing = True
    assert saved_bytes(model, batch_of(3), None) == plain
    assert model.gradient_checkpointing is True


def test_measured_pass_is_garbage_collected(tiny_ensemble):
    """A node that holds its saved output would be a cycle through C++, which the gc cannot find."""
    model = tiny_ensemble(depth=2)
    saved_bytes(model, batch_of(3), None)
    gone = weakref.ref(model.adapters.parameters[next(iter(model.adapters.parameters))][0][0])
    weight = weakref.ref(next(model.model.parameters()))
    del model
    gc.collect()
    assert gone() is None
    assert weight() is None


def test_bytes_per_token(tiny_ensemble):
    rows = [item.example for item in batch_of(40).items]
    model = tiny_ensemble(depth=4, dropout=0.1)  # dropout: no shared prefix
    saved = saved_bytes(model, batch_of(16), None) / 128
    assert token_bytes(model, rows, checkpointing=False) == pytest.approx(ALLOCATION * saved)
    assert token_bytes(model, rows, checkpointing=True) == pytest.approx(ALLOCATION * (4 * 32 * 8 + saved / 4))
    assert token_bytes(tiny_ensemble(depth=4, layers="last:1"), rows, False) < ALLOCATION * saved / 2


@pytest.mark.parametrize("layers", ["all", "last:1"])
@pytest.mark.parametrize("members", [3, 7])
def test_calibration_changes_no_member_and_measures_every_rate(make_trainer, layers, members):
    """Also with more members planned than the model has: spans are assigned to existing members."""
    trainer = make_trainer(layers=layers, dtype=torch.float32)
    before = trainer.model.adapters.values.clone()
    planned = plan_workload(PlannedRun.of(trainer), members, 60)
    phases = []

    class Recorder(Callback):
        def on_progress(self, what, done, total):
            phases.append(what)

    measured = calibrate(trainer, planned.largest, planned.batches, 60, 0.05, None, Recorder())
    assert torch.equal(trainer.model.adapters.values, before)
    rates = measured.rates
    assert min(rates.train_s, rates.evaluate_s, rates.update_s) > 0
    assert (rates.trunk_s > 0) == (layers == "last:1")
    assert measured.micro_batches >= 1
    assert measured.activation_tokens == pack(planned.largest, shared=planned.shared).packing.num_tokens
    assert measured.activation_bytes == round(ALLOCATION * measured.saved_bytes)  # memory before was unknown
    assert phases == ["a micro-batch of the largest size", "training steps", "evaluation"]
