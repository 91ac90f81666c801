"""A GPU computes the same predictions and the same training as the CPU."""

import numpy as np
import pytest
import torch

from lorchestra.config.adapt import AdaptConfig
from lorchestra.config.run import RegularizeConfig, RunConfig, TrainConfig
from lorchestra.inference.predict import member_passes, predict_rows
from lorchestra.models.ensemble import EnsembleModel
from lorchestra.training.callbacks import Callback
from lorchestra.training.members import member_settings
from lorchestra.training.precompute import TrainingRows
from lorchestra.training.trainer import Trainer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]


@pytest.fixture
def train_on(tiny_model, make_rows):
    """Trains three members on a device and returns the trainer."""

    def run(device, kind, dtype=torch.float64, **adapt):
        model = EnsembleModel(tiny_model(dtype).to(device), AdaptConfig(members=3, r=2, **adapt), 0)
        rows = TrainingRows(make_rows(12, kind), make_rows(7, kind, seed=1))
        config = TrainConfig(epochs=2, batch_size=4, lr=0.01, token_budget=60)
        regularize = RegularizeConfig(kl_beta=0.1, weight_decay_b=1.0)
        run = RunConfig(adapt=model.adapt, train=config, regularize=regularize)
        trainer = Trainer(model, rows, config, member_settings(run, 12), Callback())
        trainer.run(lambda: None)
        return trainer

    return run


@pytest.mark.parametrize("kind", ["letters", "texts", "trees"])
@pytest.mark.parametrize("adapt", [{}, {"layers": "last:1"}, {"dropout": 0.2}], ids=["all", "trunk", "dropout"])
def test_training_equals_the_cpu(kind, adapt, train_on, make_rows):
    trained = {device: train_on(device, kind, **adapt) for device in ("cpu", "cuda")}
    values = [trainer.final_values().cpu() for trainer in trained.values()]
    torch.testing.assert_close(values[1], values[0], rtol=0, atol=1e-8)
    rows = make_rows(9, kind, seed=2)
    log_probs = [predict_rows(t.model, rows, member_passes(range(3)), 60) for t in trained.values()]
    np.testing.assert_allclose(log_probs[1], log_probs[0], rtol=0, atol=1e-8)


def test_training_twice_gives_the_same_bits(train_on):
    """The backward of gathers and scatters must add in a fixed order."""
    first, second = (train_on("cuda", "texts", torch.float32) for _ in range(2))
    assert torch.equal(first.final_values(), second.final_values())


def test_half_precision_predictions_are_close_to_those_of_the_cpu(tiny_model, make_rows):
    """With the grouped and variable-length kernels and float32 adapters; texts have segments with contexts."""
    for kind in ("letters", "texts", "trees"):
        log_probs = []
        for device in ("cpu", "cuda"):
            model = EnsembleModel(tiny_model(torch.bfloat16).to(device), AdaptConfig(members=3, r=2), 0)
            log_probs.append(predict_rows(model, make_rows(9, kind, seed=2), member_passes(range(3)), 60))
        np.testing.assert_allclose(log_probs[1], log_probs[0], rtol=0, atol=0.1)
