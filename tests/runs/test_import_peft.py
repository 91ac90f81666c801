"""Adapters from elsewhere as a run: the same answers as PEFT gives, and all that a run can do."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
import transformers

from lorchestra.config.adapt import BaseConfig
from lorchestra.config.data import DataConfig, PromptConfig
from lorchestra.config.run import RunConfig
from lorchestra.errors import CheckpointError, ConfigError, DataError
from lorchestra.metrics.calibrator import fit_calibration
from lorchestra.metrics.predictive import mixture_log_probs
from lorchestra.runs.ensemble import load_run
from lorchestra.runs.evaluate import evaluate_run
from lorchestra.runs.import_peft import import_run
from lorchestra.runs.train import train_run

MIXED = [
    {"r": 2, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]},
    {"r": 5, "lora_alpha": 3, "target_modules": ["o_proj", "up_proj"], "layers_to_transform": [2]},
    {"r": 8, "lora_alpha": 8, "target_modules": "all-linear", "use_rslora": True},
]


@pytest.fixture
def data(texts_csv):
    """How the rows are asked for."""
    return DataConfig(train=str(texts_csv()), scoring="text")


@pytest.fixture
def mixed(peft_folder):
    """Three folders that differ in all that members may differ in."""
    return [peft_folder(f"adapter{m}", seed=m, **settings) for m, settings in enumerate(MIXED)]


@pytest.mark.parametrize("layers", [None, [1, 2]], ids=["all layers", "with a trunk"])
def test_members_answer_as_peft_alone_does(
    peft_folder, data, texts_csv, tiny_base, reference_log_probs, tmp_path, layers
):
    from peft import PeftModel

    settings = [dict(one) for one in MIXED]
    if layers is not None:
        settings[0]["layers_to_transform"] = layers
        settings[2] |= {"layers_to_transform": layers, "target_modules": ["k_proj", "gate_proj"]}
    folders = [peft_folder(f"adapter{m}", seed=m, **one) for m, one in enumerate(settings)]
    run = import_run(folders, tmp_path / "run", data=data)
    trained = load_run(run.root)
    assert trained.pipeline.model.trunk_layers == (0 if layers is None else 1)
    examples = trained.read(texts_csv("new.csv", 5, seed=9), require_answer=False)
    log_probs = trained.pipeline.predict_members(examples, "new").log_probs_MEC
    members = [run.root / f"members/member_{m:02d}" for m in range(3)]
    for m, folders_m in enumerate(zip(folders, members, strict=True)):
        for folder in folders_m:  # the folder given, and its copy in the run
            base = transformers.AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
            peft = PeftModel.from_pretrained(base, str(folder)).eval()
            for e, row in enumerate(trained.pipeline.encode(examples).rows):
                expected = reference_log_probs(peft, row)
                torch.testing.assert_close(torch.tensor(log_probs[m, e]).float(), expected, rtol=0, atol=1e-4)
    assert np.abs(log_probs[0] - log_probs[1]).max() > 0.01


def test_an_imported_run_is_evaluated_as_any_other(on_log, mixed, data, texts_csv, tmp_path):
    messages = []
    on_log(messages.append)
    run = import_run(mixed, tmp_path / "run", data=data, seed=3)
    assert any("give --data.test for an honest evaluation" in text for text in messages)
    entry = evaluate_run(load_run(run.root))
    assert (entry["num_members"], entry["num_examples"], entry["task"]) == (3, 5, "reviews")
    evaluate_run(load_run(run.root), data=texts_csv("other.csv", 12, seed=5))
    metrics = json.loads(run.metrics.read_text())
    assert [e["split"] for e in metrics["evaluations"]] == ["test", "other"]
    record = json.loads(run.ensemble.read_text())
    assert [member["state"] for member in record["members"]] == ["imported"] * 3
    assert [member["r"] for member in record["members"]] == [2, 5, 8]
    assert record["labels"] == ["no", "yes"]


def test_import_gives_back_what_training_wrote(run_config, texts_csv, tmp_path):
    """The members of a run, imported with its settings, predict the same bits."""
    path = texts_csv()
    root = train_run(run_config(path), tmp_path / "run").run.root
    folders = sorted((root / "members").iterdir())
    again = import_run(folders, tmp_path / "again", data=run_config(path).data)
    new = texts_csv("new.csv", 6, seed=9)
    assert list(load_run(root).predict(new, raw=True)) == list(load_run(again.root).predict(new, raw=True))
    assert json.loads((root / "splits.json").read_text()) == json.loads(again.splits.read_text())


def test_only_given_validation_rows_calibrate_imported_members(mixed, texts_csv, tmp_path):
    """Rows held out of the training file may have trained the adapters."""
    train, val = str(texts_csv()), str(texts_csv("val.csv", 30, seed=4))
    held_out = import_run(mixed, tmp_path / "held-out", data=DataConfig(train=train, scoring="text"))
    calibration = load_run(held_out.root).calibration
    assert (calibration.kind, calibration.num_rows) == ("none", 0)
    assert "held out of the training file" in calibration.reason
    given = load_run(import_run(mixed, tmp_path / "given", data=DataConfig(train=train, val=val, scoring="text")).root)
    predictions = given.pipeline.predict_members(given.read(val, require_answer=True), "val")
    mixture = mixture_log_probs(predictions.log_probs_MEC)
    expected = fit_calibration(mixture, predictions.labels, predictions.options)
    assert (given.calibration.kind, given.calibration.num_rows) == ("temperature", 30)
    assert given.calibration.temperature == pytest.approx(expected.temperature, rel=1e-5)


def test_scoring_and_threads_are_settled_as_in_a_training(on_log, mixed, questions_jsonl, tmp_path):
    data = DataConfig(train=str(questions_jsonl()), scoring="auto", prompt=PromptConfig("{question} Answer:"))
    messages = []
    on_log(messages.append)
    run = import_run(mixed[:1], tmp_path / "run", data=data)
    assert any("scoring answers by text" in text for text in messages)
    trained = load_run(run.root)
    assert (trained.labels, trained.pipeline.scoring) == (None, "text")
    assert evaluate_run(trained)["num_members"] == 1


def test_what_a_member_lacks_stays_zero_under_training_and_what_was_learned_can_be_saved(
    mixed, data, texts_csv, tmp_path
):
    """A custom loop over imported members of different shapes, saved as PEFT folders and imported again."""
    trained = load_run(import_run(mixed, tmp_path / "run", data=data).root)
    ensemble, adapters = trained.as_module(), trained.pipeline.model.adapters
    examples = trained.read(data.train, require_answer=True)[:8]
    rows = ensemble.encode(examples)
    answers = torch.tensor([row.answer for row in rows])
    start = adapters.values.clone()
    optimizer = torch.optim.AdamW(ensemble.parameters(), lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        (-ensemble(rows)[:, torch.arange(8), answers].mean(dim=1)).sum().backward()
        optimizer.step()
    for m, rank in enumerate((2, 5, 8)):
        for piece in adapters.slices:
            A, B = (adapters.view(adapters.values[m], piece, which) for which in ("A", "B"))
            assert not A[rank:].any()
            assert not B[:, rank:].any()
    assert torch.equal(adapters.values == 0, start == 0)
    assert (adapters.values != start).any(dim=1).all()

    ensemble.save_pretrained(tmp_path / "learned")
    with pytest.raises(CheckpointError, match="exists already"):
        ensemble.save_pretrained(tmp_path / "learned")
    again = load_run(import_run(sorted((tmp_path / "learned").iterdir()), tmp_path / "again", data=data).root)
    new = again.read(texts_csv("new.csv", 5, seed=9), require_answer=False)
    expected = trained.pipeline.predict_members(new, "new").log_probs_MEC
    log_probs = again.pipeline.predict_members(new, "new").log_probs_MEC
    np.testing.assert_allclose(log_probs, expected, rtol=0, atol=1e-5)


def test_an_imported_run_has_nothing_to_resume(on_log, mixed, texts_csv, tmp_path):
    path = texts_csv()
    root = import_run(mixed, tmp_path / "run", data=DataConfig(train=str(path), scoring="text")).root
    messages = []
    before = {file: file.read_bytes() for file in root.rglob("*") if file.is_file()}
    on_log(messages.append)
    train_run(RunConfig(), root, if_exists="resume")
    assert any("finished already" in text for text in messages)
    assert {file: file.read_bytes() for file in root.rglob("*") if file.is_file()} == before


def test_no_folder(data, tmp_path):
    with pytest.raises(ConfigError, match="no folder; give one PEFT folder or more"):
        import_run([], tmp_path / "run", data=data)


def test_an_existing_directory_is_left_alone(mixed, data, tmp_path):
    (tmp_path / "run").mkdir()
    with pytest.raises(CheckpointError, match=r"--out .*exists already"):
        import_run(mixed, tmp_path / "run", data=data)
    assert not list((tmp_path / "run").iterdir())


def test_a_bad_folder_among_good_ones_leaves_nothing(mixed, data, tmp_path):
    (mixed[2] / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"adapter2/adapter_model\.safetensors: missing"):
        import_run(mixed, tmp_path / "run", data=data)
    assert not (tmp_path / "run").exists()


def test_the_same_weights_twice_are_refused(mixed, data, tmp_path):
    twin = shutil.copytree(mixed[0], tmp_path / "twin")
    with pytest.raises(CheckpointError, match=r"twin: holds the same weights as .*adapter0"):
        import_run([*mixed, twin], tmp_path / "run", data=data)


def test_another_base_is_refused_with_both_names_unless_it_is_the_same(
    mixed, data, texts_csv, make_base, tiny_base, tmp_path
):
    copy = shutil.copytree(tiny_base, tmp_path / "copy")
    base = BaseConfig(name=str(copy))
    with pytest.raises(CheckpointError) as caught:
        import_run(mixed, tmp_path / "run", data=data, base=base)
    assert f"trained on {str(tiny_base)!r}, but --base is {str(copy)!r}" in str(caught.value)
    assert "--same-base" in str(caught.value)
    renamed = import_run(mixed, tmp_path / "renamed", data=data, base=base, same_base=True)
    config = json.loads((renamed.members / "member_00/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(copy)
    plain = import_run(mixed, tmp_path / "plain", data=data, base=BaseConfig(name=str(tiny_base)))
    new = texts_csv("new.csv", 4, seed=9)
    assert list(load_run(renamed.root).predict(new)) == list(load_run(plain.root).predict(new))


def test_a_base_that_the_adapter_does_not_fit_is_refused(mixed, data, tmp_path):
    from tokenizers import Tokenizer, models

    config = transformers.LlamaConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=3, num_attention_heads=2, vocab_size=9
    )
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "narrow")
    tokenizer = Tokenizer(models.BPE({"a": 0, "b": 1}, []))
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="b").save_pretrained(tmp_path / "narrow")
    with pytest.raises(CheckpointError, match=r"adapter0.*q_proj is adapted as a map from 32 to 32 features.*narrow"):
        import_run(mixed, tmp_path / "run", data=data, base=BaseConfig(name=str(tmp_path / "narrow")), same_base=True)


def test_a_folder_that_names_no_base_needs_one(peft_folder, data, tiny_base, tmp_path):
    folder = peft_folder()
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": None}))
    with pytest.raises(ConfigError, match=r"--base: .*names no base"):
        import_run([folder], tmp_path / "run", data=data)
    assert import_run([folder], tmp_path / "run", data=data, base=BaseConfig(name=str(tiny_base))).ensemble.is_file()


def test_unusable_rows_are_reported_at_once(mixed, data, texts_csv, tmp_path):
    path = texts_csv("long.csv", 8, seed=2)
    path.write_text(path.read_text() + "long " * 300 + "film,yes\n")
    config = DataConfig(train=data.train, val=str(path), scoring="text")
    with pytest.raises(DataError, match=r"long\.csv:10: the row has \d+ tokens"):
        import_run(mixed, tmp_path / "run", data=config)
    assert not (tmp_path / "run").exists()


def test_an_adapter_with_its_name_in_the_keys_is_saved_without_it(peft_folder, data, tmp_path):
    from safetensors.torch import load_file, save_file

    weights = "adapter_model.safetensors"
    plain, named = peft_folder("a"), peft_folder("b")
    tensors = {k.replace(".weight", ".b.weight"): v for k, v in load_file(named / weights).items()}
    save_file(tensors, named / weights, metadata={"format": "pt"})
    run = import_run([named], tmp_path / "run", data=data)
    expected, log_probs = load_file(plain / weights), load_file(run.members / "member_00" / weights)
    assert expected.keys() == log_probs.keys()
    assert all(torch.equal(tensor, log_probs[key]) for key, tensor in expected.items())
    load_run(run.root)
