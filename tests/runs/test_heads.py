"""Classification heads in whole runs."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
import transformers
from peft import PeftModel
from stop_after import StopAfter

from lorchestra.errors import CheckpointError, ConfigError
from lorchestra.methods import last_layer
from lorchestra.methods.registry import parse_name
from lorchestra.methods.training import last_layer_columns
from lorchestra.models.peft_files import HEAD_KEY
from lorchestra.runs.build import build_module
from lorchestra.runs.compare import method_context
from lorchestra.runs.ensemble import load_run
from lorchestra.runs.evaluate import evaluate_run
from lorchestra.runs.export import export_run
from lorchestra.runs.import_peft import import_run
from lorchestra.runs.rows import read_rows
from lorchestra.runs.train import train_run
from lorchestra.training.callbacks import Interrupted

HEAD = {"scoring": "head"}


@pytest.fixture
def labels_csv(tmp_path):
    """Writes rows whose first word, one per label, decides the label; returns the path."""

    def build(name="labels.csv", number=96, num_labels=4):
        with (tmp_path / name).open("w", newline="", encoding="utf-8") as file:
            rows = [(f"w{i % num_labels}x number {i}", f"label {i % num_labels}") for i in range(number)]
            csv.writer(file).writerows([("text", "label"), *rows])
        return tmp_path / name

    return build


def weights_of(root):
    return [file.read_bytes() for file in sorted((root / "members").glob("member_*/adapter_model.safetensors"))]


def test_labels_are_learned_and_everything_reads_the_run(run_config, labels_csv, tmp_path):
    path = labels_csv()
    adapt = {"members": 2, "r": 8, "dropout": 0.1}
    config = run_config(path, data=HEAD, adapt=adapt, train={"epochs": 8, "lr": 0.02})
    run = train_run(config, tmp_path / "run").run
    assert json.loads(run.ensemble.read_text())["scoring"] == "head"
    trained = load_run(run.root)
    answers = list(trained.predict(path))
    assert np.mean([answer.prediction == f"label {i % 4}" for i, answer in enumerate(answers)]) > 0.9
    for answer in answers:
        assert sum(answer.probs) == pytest.approx(1, abs=1e-6)
    entry = evaluate_run(trained)
    assert entry["ensemble"]["accuracy"] > 0.8
    # the base has no head: its answers are those of its text
    assert {"base_zero_shot", "base_few_shot", "mc_dropout", "frozen"} <= set(entry["baselines"])
    as_tree = run_config(path, data={"scoring": "tree"}, adapt=adapt, train={"epochs": 1})
    other = evaluate_run(load_run(train_run(as_tree, tmp_path / "tree").run.root))
    for name in ("base_zero_shot", "base_few_shot"):
        assert entry["baselines"][name]["nll"] == pytest.approx(other["baselines"][name]["nll"], rel=1e-5)
    early = list(trained.predict(path, early_exit="exact"))
    assert [answer.prediction for answer in early] == [answer.prediction for answer in answers]


SETTINGS = {
    "plain": {},
    "trunk, dropout": {"adapt": {"layers": "last:1", "dropout": 0.2}, "regularize": {"weight_decay_b": 1.0}},
    "class weights, smoothing": {"data": {"class_weights": True}, "regularize": {"label_smoothing": 0.1}},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_an_interrupted_run_ends_with_the_same_bytes(run_config, labels_csv, tmp_path, settings):
    config = run_config(labels_csv(number=48), **settings | {"data": HEAD | settings.get("data", {})})
    whole = train_run(config, tmp_path / "whole").run.root
    for number, asked in enumerate((0, 3, 10_000)):
        try:
            how = "resume" if number else "fail"
            train_run(config, tmp_path / "pieces", if_exists=how, callbacks=[StopAfter(asked)])
        except Interrupted:
            assert number < 2
    assert weights_of(tmp_path / "pieces") == weights_of(whole)


def test_transformers_and_peft_answer_as_the_members(run_config, labels_csv, tiny_base, tmp_path):
    path = labels_csv(number=48)
    root = train_run(run_config(path, data=HEAD, train={"lr": 0.03}), tmp_path / "run").run.root
    trained = load_run(root)
    examples = trained.read(labels_csv("new.csv", 5), require_answer=True)
    rows = trained.pipeline.encode(examples).rows
    log_probs = trained.pipeline.predict_members(examples, "new").log_probs_MEC
    out = export_run(root, tmp_path / "out", card="")
    for m in range(3):
        base = transformers.AutoModelForSequenceClassification.from_pretrained(tiny_base, num_labels=4)
        loaded = PeftModel.from_pretrained(base, out / f"member_{m:02d}").eval()
        for e, row in enumerate(rows):
            with torch.no_grad():
                logits = loaded(input_ids=torch.tensor([row.prefix])).logits[0]
            expected = torch.tensor(log_probs[m, e]).float()
            torch.testing.assert_close(logits.log_softmax(dim=-1), expected, rtol=0, atol=1e-4)
    with pytest.raises(ConfigError, match="--merge: a causal language model has no classification head"):
        export_run(root, tmp_path / "merged", card="", merge=True)


def test_imported_members_answer_with_the_same_bits(run_config, labels_csv, tmp_path):
    config = run_config(labels_csv(number=48), data=HEAD)
    root = train_run(config, tmp_path / "run").run.root
    folders = sorted((root / "members").iterdir())
    data = run_config(labels_csv(number=48), data={"scoring": "auto"}).data  # the folders say how answers are scored
    again = import_run(folders, tmp_path / "again", data=data)
    new = labels_csv("new.csv", 6)
    assert list(load_run(root).predict(new, raw=True)) == list(load_run(again.root).predict(new, raw=True))
    text = train_run(run_config(labels_csv(number=48)), tmp_path / "text").run.root
    with pytest.raises(ConfigError, match=r"has a classification head and .* has none"):
        import_run([folders[0], text / "members/member_01"], tmp_path / "mixed", data=data)
    with pytest.raises(ConfigError, match=r"data\.scoring: text, but the adapters have classification heads"):
        import_run(folders, tmp_path / "as_text", data=run_config(labels_csv(), data={"scoring": "text"}).data)
    with pytest.raises(ConfigError, match=r"data\.scoring: head, but the adapters have no classification head"):
        import_run([text / "members/member_01"], tmp_path / "as_head", data=config.data)
    five = run_config(labels_csv("five.csv", num_labels=5), data=HEAD).data
    with pytest.raises(ConfigError, match="its head has 4 labels, but the rows have 5 labels"):
        import_run(folders, tmp_path / "five", data=five)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"modules_to_save": ["score", "embed_tokens"]}, "modules_to_save is .* and nothing else"),
        ({"modules_to_save": None}, "modules_to_save is None"),
        ({"task_type": "CAUSAL_LM"}, "modules_to_save is .*, which is not plain LoRA"),
        ({"task_type": "TOKEN_CLS"}, "task_type is 'TOKEN_CLS'"),
    ],
)
def test_folders_that_are_more_than_a_head_are_refused(run_config, labels_csv, tmp_path, change, message):
    config = run_config(labels_csv(number=48), data=HEAD, adapt={"members": 1})
    folder = train_run(config, tmp_path / "run").run.root / "members/member_00"
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=message):
        import_run([folder], tmp_path / "again", data=config.data)


def test_a_damaged_head_is_refused(run_config, labels_csv, tmp_path):
    from safetensors.torch import load_file, save_file

    config = run_config(labels_csv(number=48), data=HEAD, adapt={"members": 1})
    folder = train_run(config, tmp_path / "run").run.root / "members/member_00"
    tensors = load_file(folder / "adapter_model.safetensors")
    for head, message in (
        (None, "the head of a classifier"),
        (tensors[HEAD_KEY] / 0, "not a matrix of finite numbers"),
    ):
        changed = {key: value for key, value in tensors.items() if key != HEAD_KEY}
        save_file(changed if head is None else changed | {HEAD_KEY: head}, folder / "adapter_model.safetensors")
        with pytest.raises(CheckpointError, match=message):
            import_run([folder], tmp_path / "again", data=config.data)


def test_a_module_starts_at_zero_and_learns(run_config, labels_csv):
    config = run_config(labels_csv(number=48), data=HEAD)
    task = read_rows(config.data, 0).task
    module = build_module(config, task)
    log_probs = module(task.splits["val"])
    torch.testing.assert_close(log_probs, torch.full_like(log_probs, -np.log(4)))
    log_probs[..., 0].mean().neg().backward()
    assert module.get_parameter("members.0.score.weight").grad.abs().max() > 0


def test_heads_of_the_last_layer_ensemble_are_member_specific(run_config, labels_csv, monkeypatch):
    config = run_config(
        labels_csv(number=48), data=HEAD, adapt={"members": 3, "layers": "all"}, train={"epochs": 1, "keep": "last"}
    )
    rows = read_rows(config.data, 0)
    trained = []
    start = last_layer.start_training
    monkeypatch.setattr(last_layer, "start_training", lambda *a, **k: trained.append(start(*a, **k)) or trained[-1])
    fitted = last_layer.fit(method_context(config, rows.task), last_layer.Config())
    adapters = trained[0].pipeline.model.adapters
    heads = trained[0].values[:, adapters.slices[-1].stop :]
    columns = last_layer_columns(trained[0].pipeline.model)
    assert heads.shape[1] > 0
    assert len({row.numpy().tobytes() for row in heads}) == 3
    assert torch.equal(trained[0].values[:, ~columns], trained[0].values[:1, ~columns].expand(3, -1))
    assert fitted.cost.parameters == len(columns) + 2 * int(columns.sum())


@pytest.mark.parametrize(
    "name",
    [
        "zero_shot",
        "few_shot",
        "laplace+temperature",
        "swag",
        "last_layer",
        "soup",
        "snapshot",
        "mc_dropout",
        "blob",
        "batch_ensemble",
    ],
)
def test_methods_with_heads(run_config, labels_csv, name):
    config = run_config(
        labels_csv(number=48),
        data=HEAD,
        adapt={"layers": "last:2", "dropout": 0.1, "members": 2},
        train={"token_budget": 400, "epochs": 2},
    )
    task = read_rows(config.data, config.train.seed).task
    context = method_context(config, task)
    named = parse_name(name)
    predictions = named.wrap(context, named.fit(context)).predict(task.splits["test"], "test")
    np.testing.assert_allclose(np.exp(predictions.log_probs_MEC).sum(axis=2), 1.0, rtol=1e-5)


def test_what_a_head_cannot_do_is_refused_before_training(run_config, labels_csv, questions_jsonl, tmp_path):
    with pytest.raises(ConfigError, match=r"regularize\.kl_beta: 0\.1 is a penalty .* has no classification head"):
        train_run(run_config(labels_csv(), data=HEAD, regularize={"kl_beta": 0.1}), tmp_path / "kl")
    with pytest.raises(ConfigError, match=r"data\.scoring: a head needs texts with labels"):
        train_run(run_config(questions_jsonl(), data=HEAD), tmp_path / "questions")
    with pytest.raises(ConfigError, match=r"data\.normalize: token .* and a head has none"):
        train_run(run_config(labels_csv(), data=HEAD | {"normalize": "token"}), tmp_path / "normalize")
