"""Fixtures for tests of inference and training: a tiny random Llama, ragged rows, and trainers that record reports."""

import pytest
import torch
import transformers
from torch import nn

import lorchestra.models.init
import lorchestra.training.early_stopping
import lorchestra.training.members
from lorchestra.choice_tree import choice_tree
from lorchestra.config.adapt import AdaptConfig
from lorchestra.config.run import RegularizeConfig, RunConfig, TrainConfig
from lorchestra.distributed import ALONE
from lorchestra.models.ensemble import EnsembleModel
from lorchestra.training.callbacks import Callback
from lorchestra.training.members import member_settings
from lorchestra.training.precompute import TrainingRows
from lorchestra.training.trainer import Trainer
from lorchestra.types import EncodedExample


@pytest.fixture(scope="session")
def tiny_model():
    """Builds a tiny random Llama; its weights are large enough that attention and every layer matter."""

    def build(dtype=torch.float64, depth=2):
        config = transformers.LlamaConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=depth,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=101,
            max_position_embeddings=64,
        )
        model = transformers.LlamaForCausalLM(config).to(dtype)
        source = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                noise = torch.randn(parameter.shape, generator=source)
                parameter.copy_(1 + 0.2 * noise if "norm" in name else 0.25 * noise)
        if dtype == torch.float64:
            _widen_norms(model)
        return model.eval()

    return build


def _widen_norms(model):
    """Replace the model's RMSNorm, which rounds to float32, by torch's."""
    for parent in list(model.modules()):
        for name, norm in list(parent.named_children()):
            if type(norm).__name__.endswith("RMSNorm"):
                wide = nn.RMSNorm(norm.weight.shape, eps=norm.variance_epsilon)
                wide.weight = norm.weight
                setattr(parent, name, wide)


@pytest.fixture(scope="session")
def tiny_ensemble(tiny_model):
    """Builds an ensemble on a tiny base; `spread` is the scale of noise added to the initial parameters."""

    def build(dtype=torch.float64, depth=2, seed=0, spread=0.0, adapter_settings=None, num_labels=None, **adapt):
        config = AdaptConfig(**{"members": 3, "r": 2} | adapt)
        ensemble = EnsembleModel(tiny_model(dtype, depth), config, seed, adapter_settings, num_labels)
        noise = torch.randn(ensemble.adapters.values.shape, generator=torch.Generator().manual_seed(seed + 1))
        ensemble.adapters.values.add_(spread * noise)
        return ensemble

    return build


@pytest.fixture(scope="session")
def make_rows():
    """Builds ragged rows, scored by letters (one token per choice), texts (one to three), trees (six) or heads."""

    def build(number, kind="letters", seed=0, num_choices=(2, 4)):
        draw = torch.Generator().manual_seed(seed)

        def between(low, high):
            return int(torch.randint(low, high + 1, (), generator=draw))

        def tokens(low, high):
            return tuple(torch.randint(0, 101, (between(low, high),), generator=draw).tolist())

        def choice():
            if kind == "trees":
                return (*(token % 5 for token in tokens(1, 3)), 100)
            return tokens(1, 1 if kind == "letters" else 3)

        rows = []
        for row in range(number):
            choices = tuple(choice() for _ in range(between(*num_choices)))
            if kind == "heads":
                choices = tuple((label,) for label in range(NUM_LABELS))
            tree = choice_tree(choices) if kind == "trees" else None
            prefix, answer = tokens(2, 8), between(0, len(choices) - 1)
            rows.append(EncodedExample(row, prefix, choices, answer, tree=tree, by_head=kind == "heads"))
        return rows

    return build


NUM_LABELS = 4
TRAIN = {"epochs": 2, "batch_size": 4, "lr": 0.01, "token_budget": 60, "warmup": 0.2}


class Recorder(Callback):
    """A callback that keeps every report, and the parameters after every step."""

    def __init__(self):
        self.reports, self.evaluations, self.phases, self.values = [], [], [], []
        self.on_each_step = lambda report, state: None
        self.should_stop = lambda: False
        self.trainer = None

    def on_step(self, report, state):
        self.reports.append(report)
        self.values.append(self.trainer.model.adapters.values.clone())
        self.on_each_step(report, state)

    def on_evaluation(self, entry, state):
        self.evaluations.append(entry)

    def on_progress(self, text, done, total):
        self.phases.append((text, done, total))


@pytest.fixture
def make_trainer(tiny_ensemble, make_rows):
    """Builds a trainer on twelve training and seven validation rows; `trainer.callback` records.

    `settings` are per member, by default those of an ensemble. With a `group`, the model has one process's members.
    """

    def build(
        *,
        train=None,
        regularize=None,
        rows=None,
        kind="letters",
        weights=None,
        dtype=torch.float64,
        depth=2,
        settings=None,
        group=ALONE,
        **adapt,
    ):
        config = TrainConfig(**TRAIN | (train or {}))
        regularizers = RegularizeConfig(**(regularize or {}))
        if group.size > 1 and settings is None:
            shape = AdaptConfig(**{"members": 3, "r": 2} | adapt)
            settings = member_settings(RunConfig(adapt=shape, train=config, regularize=regularizers), 12)
        block = group.block(len(settings or ()))
        adapter_settings = None if settings is None else [settings[m].adapter for m in block]
        train_rows, val_rows = rows or (make_rows(12, kind), make_rows(7, kind, seed=1))
        num_labels = NUM_LABELS if train_rows[0].by_head else None
        model = tiny_ensemble(
            dtype, depth, seed=config.seed, adapter_settings=adapter_settings, num_labels=num_labels, **adapt
        )
        run = RunConfig(adapt=model.adapt, train=config, regularize=regularizers)
        recorder = Recorder()
        recorder.trainer = Trainer(
            model,
            TrainingRows(train_rows, val_rows, weights),
            config,
            settings or member_settings(run, len(train_rows), model.adapter_settings),
            recorder,
            group=group,
        )
        return recorder.trainer

    return build


@pytest.fixture
def make_settings():
    """Builds the default settings of the members of `make_trainer`."""

    def build(*, train=None, regularize=None, num_rows=12, **adapt):
        return member_settings(
            RunConfig(
                adapt=AdaptConfig(**{"members": 3, "r": 2} | adapt),
                train=TrainConfig(**TRAIN | (train or {})),
                regularize=RegularizeConfig(**(regularize or {})),
            ),
            num_rows,
        )

    return build


@pytest.fixture
def train():
    """Runs a trainer to its end without checkpoints and returns it."""

    def run(trainer):
        trainer.run(lambda: None)
        return trainer

    return run


@pytest.fixture
def seed_as(monkeypatch):
    """Gives members the seeds of others: with `seed_as({0: 3})` member 0 has the draws of member 3."""
    original = lorchestra.models.init.member_seed

    def patch(stand_ins):
        def member_seed(seed, member):
            return original(seed, stand_ins.get(member, member))

        monkeypatch.setattr(lorchestra.models.init, "member_seed", member_seed)
        monkeypatch.setattr(lorchestra.training.members, "member_seed", member_seed)

    return patch


@pytest.fixture
def script_validation(monkeypatch):
    """Sets the validation NLL of every member in every evaluation: `nlls[evaluation][member]`."""

    def patch(nlls):
        script = iter(nlls)

        def predict_rows(model, rows, passes, *args, **kwargs):
            wanted = next(script)
            log_probs = torch.full((len(passes), len(rows), 4), -torch.inf, dtype=torch.float64)
            for index, member_pass in enumerate(passes):
                for e, row in enumerate(rows):
                    log_probs[index, e, : len(row.choices)] = -50.0
                    log_probs[index, e, row.answer] = -wanted[member_pass.member]
            return log_probs.numpy()

        monkeypatch.setattr(lorchestra.training.early_stopping, "predict_rows", predict_rows)

    return patch
