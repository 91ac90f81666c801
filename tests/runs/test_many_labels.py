"""Many labels of several words, scored as a tree, in whole runs."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
from stop_after import StopAfter

from lorchestra.config.data import DataConfig, PromptConfig, check_data
from lorchestra.config.mappings import read_recipe
from lorchestra.config.run import RunConfig
from lorchestra.errors import ConfigError
from lorchestra.methods.registry import parse_name
from lorchestra.runs.build import build_module
from lorchestra.runs.compare import method_context
from lorchestra.runs.ensemble import Ensemble, load_run
from lorchestra.runs.evaluate import evaluate_run
from lorchestra.runs.import_peft import import_run
from lorchestra.runs.rows import read_rows
from lorchestra.runs.train import train_run
from lorchestra.training.callbacks import Interrupted

SUBJECTS, STATES = ("the long film", "the long play", "a very fine song"), ("was good", "was bad", "is dull")
LABELS = (*(f"{subject} {state}" for subject in SUBJECTS for state in STATES), "a", "the film", "the film was long")


@pytest.fixture
def labels_csv(tmp_path):
    """Writes rows whose first word, one per label, decides the label; returns the path."""

    def build(name="labels.csv", number=120, underscores=False):
        words = [f"w{n}x" for n in range(len(LABELS))]
        with (tmp_path / name).open("w", newline="", encoding="utf-8") as file:
            rows = [(f"{words[i % 12]} number {i}", LABELS[i % 12]) for i in range(number)]
            if underscores:
                rows = [(text, label.replace(" ", "_")) for text, label in rows]
            csv.writer(file).writerows([("text", "label"), *rows])
        return tmp_path / name

    return build


def weights_of(root):
    return [file.read_bytes() for file in sorted((root / "members").glob("member_*/adapter_model.safetensors"))]


@pytest.fixture
def messages(on_log):
    logged = []
    on_log(logged.append)
    return logged


def test_auto_takes_the_tree_for_many_labels_and_says_why(run_config, labels_csv, texts_csv, messages, tmp_path):
    config = run_config(labels_csv(), data={"scoring": "auto"}, adapt={"members": 1}, train={"epochs": 1})
    run = train_run(config, tmp_path / "run").run
    (message,) = [text for text in messages if text.startswith("scoring answers by")]
    trained = load_run(run.root)
    row = trained.pipeline.encode(trained.read(labels_csv("one.csv", 1), require_answer=True)).rows[0]
    as_texts, as_tree = sum(len(choice) - 1 for choice in row.choices), len(row.tree.tokens)
    assert message.startswith("scoring answers by tree: ")
    assert message.endswith(f"; 12 labels add {as_texts} tokens per row as texts, {as_tree} as a tree")
    assert as_texts > 1.5 * as_tree > 0
    assert trained.pipeline.scoring == read_recipe(run.config, RunConfig).data.scoring == "tree"
    assert json.loads((run.root / "ensemble.json").read_text())["scoring"] == "tree"
    few = train_run(run_config(texts_csv(), data={"scoring": "auto"}), tmp_path / "few").run
    assert load_run(few.root).pipeline.scoring in ("letter", "text")
    assert "tree" not in messages[-1]


def test_auto_keeps_texts_where_their_lengths_are_divided_out(run_config, labels_csv, tmp_path):
    data = {"scoring": "auto", "normalize": "token"}
    run = train_run(run_config(labels_csv(), data=data, adapt={"members": 1}, train={"epochs": 1}), tmp_path / "run")
    assert load_run(run.run.root).pipeline.scoring == "text"


def test_labels_are_learned_and_probabilities_sum_to_one(run_config, labels_csv, tmp_path):
    path = labels_csv()
    adapt, train = {"members": 2, "r": 8}, {"epochs": 12, "lr": 0.03}
    run = train_run(run_config(path, data={"scoring": "tree"}, adapt=adapt, train=train), tmp_path / "run").run
    trained = load_run(run.root)
    answers = list(trained.predict(path))
    assert np.mean([answer.prediction == LABELS[i % 12] for i, answer in enumerate(answers)]) > 0.9
    for answer in answers:
        assert sum(answer.probs) == pytest.approx(1, abs=1e-6)
        assert len(answer.probs) == 12
    early = list(trained.predict(path, early_exit="exact"))
    assert [answer.prediction for answer in early] == [answer.prediction for answer in answers]
    assert evaluate_run(trained)["ensemble"]["accuracy"] > 0.8


SETTINGS = {
    "plain": {},
    "trunk, dropout, KL": {"adapt": {"layers": "last:1", "dropout": 0.2}, "regularize": {"kl_beta": 0.5}},
    "KL over the vocabulary, smoothing": {
        "regularize": {"kl_beta": 0.5, "kl_over": "vocabulary", "label_smoothing": 0.1},
        "train": {"token_budget": 150},
    },
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_an_interrupted_run_ends_with_the_same_bytes(run_config, labels_csv, tmp_path, settings):
    config = run_config(labels_csv(number=60), **settings, data={"scoring": "tree"})
    whole = train_run(config, tmp_path / "whole").run.root
    for number, asked in enumerate((0, 4, 10_000)):
        try:
            how = "resume" if number else "fail"
            train_run(config, tmp_path / "pieces", if_exists=how, callbacks=[StopAfter(asked)])
        except Interrupted:
            assert number < 2
    assert weights_of(tmp_path / "pieces") == weights_of(whole)


def test_imported_members_answer_with_the_same_bits(run_config, labels_csv, tmp_path):
    config = run_config(labels_csv(number=60), data={"scoring": "tree"})
    root = train_run(config, tmp_path / "run").run.root
    again = import_run(sorted((root / "members").iterdir()), tmp_path / "again", data=config.data)
    new = labels_csv("new.csv", 6)
    assert list(load_run(root).predict(new, raw=True)) == list(load_run(again.root).predict(new, raw=True))


def test_a_module_and_its_loss(run_config, labels_csv):
    config = run_config(labels_csv(number=60), data={"scoring": "tree"})
    task = read_rows(config.data, 0).task
    module = build_module(config, task)
    log_probs = module(task.splits["val"])
    torch.testing.assert_close(log_probs.exp().sum(dim=2), torch.ones_like(log_probs[..., 0]))
    log_probs[..., 0].mean().neg().backward()
    assert module.pipeline.model.adapters.grad.abs().max() > 0


@pytest.mark.parametrize("name", ["zero_shot+contextual", "few_shot", "laplace+temperature", "last_layer"])
def test_methods_score_a_tree(run_config, labels_csv, name):
    config = run_config(
        labels_csv(number=60),
        data={"scoring": "tree"},
        adapt={"layers": "last:2", "dropout": 0.0, "members": 2},
        train={"token_budget": 400, "epochs": 1},
    )
    task = read_rows(config.data, config.train.seed).task
    context = method_context(config, task)
    named = parse_name(name)
    predictions = named.wrap(context, named.fit(context)).predict(task.splits["test"], "test")
    np.testing.assert_allclose(np.exp(predictions.log_probs_MEC).sum(axis=2), 1.0, rtol=1e-5)


@pytest.mark.parametrize("underscores", [True, False])
def test_a_hint_where_underscores_cost_tokens(run_config, labels_csv, messages, underscores):
    config = run_config(labels_csv(underscores=underscores), data={"scoring": "tree"})
    build_module(config, read_rows(config.data, 0).task)
    hints = [text for text in messages if "spaces instead of underscores" in text]
    assert len(hints) == int(underscores)
    if hints:
        assert "tokens per row; rename them with --data.label-names" in hints[0]


def test_a_tree_needs_ends(run_config, labels_csv, tmp_path):
    data = {"scoring": "tree", "prompt": PromptConfig(version=1)}
    with pytest.raises(ConfigError, match=r"a tree needs an end .* data\.prompt\.version 1"):
        Ensemble.train(run_config(labels_csv(), data=data), tmp_path / "run")


def test_a_tree_is_not_divided_by_length():
    with pytest.raises(
        ConfigError, match=r"data\.normalize: token divides .* a tree has none; use data\.scoring: text"
    ):
        check_data(DataConfig(train="x.csv", scoring="tree", normalize="token"))
