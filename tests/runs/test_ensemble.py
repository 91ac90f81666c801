"""Finished runs read again: what each damage says, and what a prediction holds."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import random
import re
import resource
import shutil
import signal
import sys
import threading
import warnings

import numpy as np
import pytest
import safetensors.torch
import torch
import transformers
from untimed import untimed

import lorchestra.runs.train
from lorchestra.config.adapt import BaseConfig
from lorchestra.config.data import DataConfig
from lorchestra.config.mappings import read_recipe
from lorchestra.config.run import RunConfig
from lorchestra.errors import CheckpointError, ConfigError, DataError, InputError
from lorchestra.metrics.calibrator import Calibration
from lorchestra.metrics.result import Evaluation
from lorchestra.runs.compare import compare_methods
from lorchestra.runs.ensemble import Ensemble, load_run
from lorchestra.runs.import_peft import import_run
from lorchestra.runs.plan import plan_run
from lorchestra.runs.predict import answers_from, prediction_rows
from lorchestra.runs.rows import read_task
from lorchestra.runs.sweep.points import grid_points
from lorchestra.runs.sweep.run import run_sweep
from lorchestra.runs.train import train_run
from lorchestra.store.atomic import sha256_file
from lorchestra.types import EarlyExitPredictions, Predictions, Task


@pytest.fixture(scope="module")
def trained_run(tmp_path_factory, make_base):
    """One finished run on texts with labels, and the base it was trained on; copied before it is damaged."""
    from lorchestra.config.adapt import AdaptConfig, BaseConfig
    from lorchestra.config.data import DataConfig
    from lorchestra.config.run import TrainConfig

    folder, base = tmp_path_factory.mktemp("trained"), make_base(3)
    rows = [f"the film {i} was {word},{label}" for i in range(25) for word, label in (("good", "yes"), ("bad", "no"))]
    (folder / "reviews.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    config = RunConfig(
        base=BaseConfig(name=str(base)),
        adapt=AdaptConfig(members=2, r=2),
        data=DataConfig(train=str(folder / "reviews.csv"), scoring="text"),
        train=TrainConfig(epochs=1, lr=0.01),
    )
    return train_run(config, folder / "run").run.root


@pytest.fixture
def run_copy(trained_run, tmp_path):
    """A copy of the finished run, to damage."""
    return shutil.copytree(trained_run, tmp_path / "copy")


def edit(path, **changes):
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, **changes}))


def test_a_copied_run_predicts_as_the_original(trained_run, run_copy, texts_csv):
    new = texts_csv("new.csv", 5, seed=8)
    assert list(load_run(trained_run).predict(new)) == list(load_run(run_copy).predict(new))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: shutil.rmtree(root), "no such run directory"),
        (lambda root: (root / "ensemble.json").unlink(), "not finished.*--if-exists resume"),
        (lambda root: [f.unlink() for f in root.iterdir() if f.is_file()], "not a run directory"),
        (lambda root: edit(root / "ensemble.json", format_version=99), "format_version is 99.*reads 1"),
        (lambda root: (root / "ensemble.json").write_text('{"format_version": 1, "ba'), "truncated or damaged"),
        (lambda root: (root / "ensemble.json").write_text("[1]"), "holds a list"),
        (lambda root: (root / "ensemble.json").write_text('{"format_version": 1}'), "lacks base"),
        (lambda root: (root / "config.yaml").unlink(), "config.yaml: cannot be read"),
        (lambda root: (root / "config.yaml").write_text("a: ["), "config.yaml: not valid YAML"),
        (lambda root: shutil.rmtree(root / "members/member_01"), "member_01.*missing; copy the run directory again"),
        (
            lambda root: shutil.copy(root / "members/member_00/adapter_model.safetensors", root / "members/member_01"),
            "checksum is not the one in ensemble.json",
        ),
        (lambda root: (root / "members/member_00/adapter_model.safetensors").write_bytes(b"x"), "checksum"),
    ],
    ids=[
        "gone",
        "unfinished",
        "no run",
        "version",
        "truncated",
        "list",
        "fields",
        "no config",
        "bad config",
        "member",
        "swapped",
        "garbage",
    ],
)
def test_each_damage_is_named(run_copy, damage, message):
    damage(run_copy)
    with pytest.raises((CheckpointError, ConfigError)) as caught:
        load_run(run_copy)
    assert re.search(message, str(caught.value)), str(caught.value)


def change(path, *names, value=None, drop=False):
    """Set or remove one field, anywhere in a JSON file."""
    record = json.loads(path.read_text())
    holder = record
    for name in names[:-1]:
        holder = holder[name]
    if drop:
        del holder[names[-1]]
    else:
        holder[names[-1]] = value
    path.write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("names", "value", "message"),
    [
        (("members",), None, "members is None, not a list"),
        (("members",), [], "has 0 members, and adapt.members in config.yaml is 2"),
        (("members", 0), "member_00", r"members\[0\] is 'member_00', not an object"),
        (("members", 1, "state"), True, r"members\[1\]\.state is True, not text"),
        (("members", 1, "sha256"), None, r"members\[1\]\.sha256 is None, not text"),
        (("base",), "tiny", "base is 'tiny', not an object"),
        (("base", "revision"), 3, r"base\.revision is 3, not text"),
        (("labels",), "yes", "labels is 'yes', not a list"),
        (("labels",), ["yes", "yes"], "labels are not two or more different ones"),
        (("labels",), ["yes"], "labels are not two or more different ones"),
        (("scoring",), "words", "scoring is 'words', not one of head, letter, text"),
        (("scoring",), "letter", "scoring is 'letter', and data.scoring in config.yaml is 'text'"),
        (("normalize",), "token", "normalize is 'token', and config.yaml has 'sum'"),
        (("answer_prefix",), "", "answer_prefix is '', and config.yaml has ' '"),
        (("system_prompt",), "Be brief.", "system_prompt is 'Be brief.', and config.yaml has None"),
        (("prompt_template",), "{question}?", "prompt_template is not the one of data.prompt"),
        (("tokenizer_digest",), "0" * 64, "the tokenizer of .* has changed"),
    ],
)
def test_each_field_of_the_record_is_checked(run_copy, names, value, message):
    change(run_copy / "ensemble.json", *names, value=value)
    with pytest.raises(CheckpointError, match=rf"ensemble\.json: {message}"):
        load_run(run_copy)


@pytest.mark.parametrize("names", [("members", 1, "sha256"), ("members", 0, "state"), ("base", "digest")], ids=str)
def test_each_missing_field_of_the_record_is_named(run_copy, names):
    change(run_copy / "ensemble.json", *names, drop=True)
    with pytest.raises(CheckpointError, match=rf"{names[-1]} is missing; the file was changed or damaged"):
        load_run(run_copy)


@pytest.mark.parametrize("way", ["../elsewhere", "members/../../elsewhere", "/ABSOLUTE/elsewhere", ""])
def test_a_members_path_never_leads_out_of_the_run(run_copy, way):
    """Though the adapter there is whole and has the right checksum."""
    shutil.copytree(run_copy / "members/member_00", run_copy.parent / "elsewhere")
    change(run_copy / "ensemble.json", "members", 0, "path", value=way.replace("/ABSOLUTE", str(run_copy.parent)))
    with pytest.raises(
        CheckpointError, match=r"members\[0\]\.path is '.*', which is not a member's path in a run directory"
    ):
        load_run(run_copy)


def other_tensors(root, make):
    """Replace member 1's tensors, checksum included, as another program might."""
    file = root / "members/member_01/adapter_model.safetensors"
    tensors = safetensors.torch.load_file(file)
    name = sorted(tensors)[0]
    tensors[name] = make(tensors[name])
    safetensors.torch.save_file(tensors, file)
    change(root / "ensemble.json", "members", 1, "sha256", value=sha256_file(file))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda t: t * math.nan, "holds NaN or infinite values"),
        (lambda t: t.double() * 0 + 1e300, "holds NaN or infinite values"),
        (lambda t: t.to(torch.int64), "has torch.int64 values, not floating-point ones"),
        (lambda t: t.to(torch.complex64), "has torch.complex64 values"),
        (lambda t: t.T.contiguous(), r"has shape \[32, 2\], not \[2, 32\]"),
    ],
    ids=["NaN", "too large", "integers", "complex", "shape"],
)
def test_adapters_of_other_values_are_refused(run_copy, make, message):
    other_tensors(run_copy, make)
    with pytest.raises(CheckpointError, match=rf"member_01/adapter_model\.safetensors: .*{message}"):
        load_run(run_copy)


def test_adapters_of_another_precision_are_taken(run_copy):
    other_tensors(run_copy, lambda t: t.to(torch.bfloat16))
    assert load_run(run_copy).pipeline.model.num_members == 2


def test_a_run_whose_members_all_failed_is_refused(run_copy):
    for m in range(2):
        change(run_copy / "ensemble.json", "members", m, "state", value="failed")
    with pytest.raises(CheckpointError, match=r"every member failed; train again with a smaller train\.lr"):
        load_run(run_copy)


def test_a_configuration_that_was_cut_off_is_refused(run_copy):
    config = run_copy / "config.yaml"
    config.write_text(config.read_text().split("regularize:")[0])
    with pytest.raises(ConfigError, match=r"config\.yaml: has no regularize settings; the file was truncated"):
        load_run(run_copy)
    config.write_text(
        config.read_text().replace("token_budget: 640", "token_budget: null") + "regularize: {}\nevaluate: {}\n"
    )
    with pytest.raises(CheckpointError, match=r"config\.yaml: train\.token_budget is missing"):
        load_run(run_copy)


def test_another_base_than_the_one_trained_on_is_refused(run_copy, make_base):
    other = make_base(4)
    config = run_copy / "config.yaml"
    lines = [f"  name: {other}" if line.startswith("  name: ") else line for line in config.read_text().splitlines()]
    config.write_text("\n".join(lines) + "\n")
    with pytest.raises(CheckpointError, match=r"trained on another base.*adapters fit only the base"):
        load_run(run_copy)


def test_rows_of_the_other_kind_are_refused(run_copy, questions_jsonl):
    with pytest.raises(DataError, match=r"if the text is in 'question', rename that column to 'text'"):
        list(load_run(run_copy).predict(questions_jsonl()))


def test_a_prediction_by_hand():
    """Two members, two choices, then three; every number of the contract."""
    log = math.log
    log_probs = np.array(
        [
            [[log(0.9), log(0.1), -math.inf], [log(0.2), log(0.5), log(0.3)]],
            [[log(0.3), log(0.7), -math.inf], [log(0.2), log(0.5), log(0.3)]],
        ]
    )
    predictions = Predictions(
        log_probs, np.array([0, -1]), ("a", "b"), (("no", "yes"), ("x", "y", "z")), "task", "predict", ("q1", "q2")
    )
    first, second = prediction_rows(predictions, abstain_below=0.55)
    assert first["probs"] == pytest.approx([0.6, 0.4])
    assert first["member_probs"] == [pytest.approx([0.9, 0.1]), pytest.approx([0.3, 0.7])]
    assert (first["prediction"], first["prediction_index"], first["prediction_text"]) == ("no", 0, "no")
    assert (first["label"], first["label_index"], first["abstain"]) == ("no", 0, False)
    assert first["confidence"] == pytest.approx(0.6)
    assert first["disagreement"] == 1.0
    total = -(0.6 * log(0.6) + 0.4 * log(0.4))
    expected = -(0.9 * log(0.9) + 0.1 * log(0.1) + 0.3 * log(0.3) + 0.7 * log(0.7)) / 2
    assert first["entropy"] == pytest.approx(total)
    assert first["mutual_information"] == pytest.approx(total - expected)
    assert (second["label"], second["abstain"], second["disagreement"]) == (None, True, 0.0)
    assert second["mutual_information"] == pytest.approx(0, abs=1e-15)
    assert second["probs"] == pytest.approx([0.2, 0.5, 0.3])
    assert set(first) == {
        "id",
        "choices",
        "prediction",
        "prediction_index",
        "prediction_text",
        "label",
        "label_index",
        "confidence",
        "probs",
        "member_probs",
        "entropy",
        "mutual_information",
        "disagreement",
        "calibrated",
        "abstain",
        "decision",
        "prediction_set",
    }
    assert first["calibrated"] is False
    assert next(prediction_rows(predictions))["abstain"] is None
    answer, other = answers_from(predictions, abstain_below=0.55)
    assert (answer.prediction, answer.prediction_text, answer.choices, answer.row) == ("no", "no", ("no", "yes"), 1)
    assert list(answer.to_dict()) == [*LINE, "error", "input"]
    assert list(answer.to_dict(early_exit=True)) == [*LINE, "members_used", "error", "input"]
    assert other.to_dict() == second | {"row": 2, "error": None, "input": {}}
    calibration = Calibration("temperature", "by hand", temperature=2.0)
    scaled = answers_from(predictions, 0.552, calibration)[0]
    root = 0.6**0.5 / (0.6**0.5 + 0.4**0.5)
    assert scaled.probs == pytest.approx((root, 1 - root))
    assert scaled.entropy == pytest.approx(-(root * log(root) + (1 - root) * log(1 - root)))
    assert (scaled.calibrated, scaled.abstain, scaled.member_probs) == (True, True, answer.member_probs)
    assert scaled.mutual_information == answer.mutual_information


LINE = (
    *("id", "row", "choices", "prediction", "prediction_index", "prediction_text", "label", "label_index"),
    *("confidence", "probs", "member_probs", "entropy", "mutual_information", "disagreement", "calibrated", "abstain"),
    *("decision", "prediction_set"),
)
"""The fields of a line of `lorchestra predict`, in order."""


def test_answers_after_early_exit_are_in_the_order_of_the_rows():
    part = Predictions(np.log([[[0.75, 0.25]]]), np.array([1]), ("b",), (("no", "yes"),), "task", "predict")
    whole = Predictions(
        np.log([[[0.5, 0.5], [0.9, 0.1]], [[0.4, 0.6], [0.8, 0.2]]]),
        np.array([-1, 0]),
        ("a", "c"),
        (("no", "yes"), ("no", "yes")),
        "task",
        "predict",
    )
    early = EarlyExitPredictions((part, whole), (np.array([1]), np.array([0, 2])), 2)
    answers = answers_from(early)
    assert [(one.id, one.row, one.members_used, one.label) for one in answers] == [
        ("a", 1, 2, None),
        ("b", 2, 1, "yes"),
        ("c", 3, 2, "no"),
    ]
    assert all("members_used" in one.to_dict() for one in answers)


def test_a_row_that_cannot_be_answered_has_what_is_known_of_it(trained_run, tmp_path):
    rows = [{"text": "a good film", "user": 3}, {"text": "", "user": 4}, {"text": "bad " * 300, "label": "no"}]
    answered, empty, long = load_run(trained_run).predict(rows)
    assert answered.error is None
    assert answered.input == {"text": "a good film", "user": 3}
    for answer, input_row in ((empty, rows[1]), (long, rows[2])):
        assert answer.error
        assert answer.input == input_row
        fields = answer.to_dict()
        assert list(fields) == [*LINE, "error", "input"]
        names = ("prediction", "prediction_text", "probs", "confidence", "calibrated", "abstain")
        assert all(fields[name] is None for name in names)
    assert (empty.choices, empty.label) == (None, None)
    assert (long.choices, long.label, long.label_index) == (("no", "yes"), "no", 0)


def test_a_relative_base_holds_from_any_directory(on_log, run_config, texts_csv, tiny_base, tmp_path, monkeypatch):
    """A bare name that is a directory here is that directory, is saved as its path, and a remark says so."""
    (tmp_path / "here").mkdir()
    (tmp_path / "elsewhere").mkdir()
    shutil.copytree(tiny_base, tmp_path / "here/mybase")
    monkeypatch.chdir(tmp_path / "here")
    remarks = []
    config = run_config(texts_csv(), base="mybase", train={"epochs": 1})
    on_log(remarks.append)
    root = train_run(config, tmp_path / "run").run.root
    assert f"base.name 'mybase': read as the directory {tmp_path / 'here/mybase'}" in " ".join(remarks)
    assert read_recipe(root / "config.yaml", RunConfig).base.name == str(tmp_path / "here/mybase")
    # the same relative name resumes: nothing is asked for that the run has otherwise
    train_run(config, root, if_exists="resume")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert len(list(load_run(root).predict(texts_csv("new.csv", 3, seed=8)))) == 3


def test_a_run_that_saved_a_relative_base_is_read_from_anywhere(run_copy, texts_csv, tmp_path, monkeypatch):
    text = (run_copy / "config.yaml").read_text()
    base = json.loads((run_copy / "ensemble.json").read_text())["base"]["id"]
    (run_copy / "config.yaml").write_text(text.replace(f"name: {base}", "name: mybase"))
    assert "name: mybase" in (run_copy / "config.yaml").read_text()
    monkeypatch.chdir(tmp_path)
    assert len(list(load_run(run_copy).predict(texts_csv("new.csv", 3, seed=8)))) == 3
    record = json.loads((run_copy / "ensemble.json").read_text())
    edit(run_copy / "ensemble.json", base={**record["base"], "id": "/gone/mybase"})
    with pytest.raises(CheckpointError, match=r"its base was /gone/mybase, which no longer exists; .*--base"):
        load_run(run_copy)


def test_rows_from_python_are_answered_as_those_of_a_file(trained_run, texts_csv):
    run, new = load_run(trained_run), texts_csv("new.csv", 4, seed=8)
    expected = [row.probs for row in run.predict(new)]
    texts = [example.question for example in run.read(new, require_answer=False)]
    for rows in (texts, [{"text": text} for text in texts], np.array(texts), iter(texts)):
        assert [row.probs for row in run.predict(rows)] == expected
    assert list(run.predict([])) == []
    assert list(run.predict([], early_exit="exact")) == []


def test_rows_that_cannot_be_used_are_refused_at_the_call(trained_run):
    run = load_run(trained_run)
    for rows, message in (("a good film", "not the name of a file"), ([1], r"rows\[0\] is 1"), (None, "NoneType")):
        with pytest.raises(InputError, match=message):
            run.predict(rows)
    with pytest.raises(DataError, match="no such file"):
        run.predict("none.csv")


def test_training_from_python_gives_a_loaded_run(run_config, texts_csv, tmp_path):
    config = run_config(texts_csv(), train={"epochs": 1})
    trained = Ensemble.train(config, tmp_path / "run")
    assert (trained.run.root, trained.members, trained.labels) == (tmp_path / "run", (0, 1, 2), ("no", "yes"))
    by_name = train_run(config, tmp_path / "other").run
    expected = list(Ensemble.load(by_name.root).predict(["a good film"]))
    assert list(trained.predict(["a good film"])) == expected
    with pytest.raises(CheckpointError, match="a run is already there"):
        Ensemble.train(config, tmp_path / "run")
    again = Ensemble.train(config, tmp_path / "run", if_exists="resume")
    assert list(again.predict(["a good film"])) == expected
    assert Ensemble.train(config, tmp_path / "run", if_exists="new").run.root == tmp_path / "run-2"


def test_rows_from_python_are_trained_on(run_config, texts_csv, tmp_path):
    config = run_config(texts_csv(), train={"epochs": 1})
    task = read_task(config)
    without_files = dataclasses.replace(config, data=dataclasses.replace(config.data, train=None))
    trained = Ensemble.train(without_files, tmp_path / "run", rows=task)
    assert list(trained.predict(["a film"])) == list(Ensemble.train(config, tmp_path / "f").predict(["a film"]))
    with pytest.raises(ConfigError, match="trained on rows that came from Python"):
        trained.evaluate()
    with pytest.raises(ConfigError, match="rows: has no train rows"):
        Ensemble.train(config, tmp_path / "x", rows=Task("t", {"test": task.splits["test"]}, task.labels))


def test_bad_arguments_are_refused_at_the_call(trained_run, run_config, tmp_path):
    missing = run_config(tmp_path / "gone.csv", train={"epochs": 0})
    with pytest.raises(ConfigError, match=r"train\.epochs: 0"):  # before the rows are read
        Ensemble.train(missing, tmp_path / "run")
    with pytest.raises(ConfigError, match=r"the configuration is of type str; pass a lorchestra\.RunConfig"):
        Ensemble.train("recipe.yaml", tmp_path / "run")
    good = run_config(tmp_path / "gone.csv")
    with pytest.raises(ConfigError, match=r"if_exists: 'overwrite' is unknown; .*fail, resume, finish, new"):
        Ensemble.train(good, tmp_path / "run", if_exists="overwrite")
    assert not (tmp_path / "run").exists()
    run = load_run(trained_run)
    for options, message in (
        ({"abstain_below": 1.5}, r"abstain_below: 1\.5 is not a number in \[0, 1\]"),
        ({"abstain_below": float("nan")}, "abstain_below: nan"),
        ({"early_exit": 2}, "early_exit: 2 is neither exact nor a confidence"),
        ({"on_error": "raise"}, "on_error: 'raise' is unknown; .*record, fail"),
        ({"too_long": "cut"}, "too_long: 'cut' is unknown; .*error, drop, truncate"),
    ):
        with pytest.raises(ConfigError, match=message):
            run.predict(["a film"], **options)
    with pytest.raises(ConfigError, match="early_exit: 2 is neither"):
        run.evaluate(early_exit=2)
    with pytest.raises(ConfigError, match="members: 2 is not one of 0, 1"):
        run.save_pretrained(tmp_path / "out", [0, 2])
    assert not (tmp_path / "out").exists()


def test_an_evaluation_from_python_is_the_saved_one(run_copy, tmp_path):
    run = Ensemble.load(run_copy)
    evaluation = run.evaluate(early_exit="exact", save=False)
    assert not run.run.metrics.exists()
    assert isinstance(evaluation, Evaluation)
    entry = evaluation.to_dict()
    assert (entry["task"], entry["split"], entry["early_exit"]["rule"]) == ("reviews", "test", "exact")
    run.evaluate(early_exit="exact")
    (saved,) = run.run.read_evaluations()[0]
    assert untimed(saved) == untimed(json.loads(json.dumps(entry)))


def test_members_are_saved_and_come_back(run_copy, texts_csv, tmp_path):
    change(run_copy / "ensemble.json", "num_members", value=3)
    change(run_copy / "ensemble.json", "members", value=three_members(run_copy))
    (run_copy / "config.yaml").write_text((run_copy / "config.yaml").read_text().replace("members: 2", "members: 3"))
    run = Ensemble.load(run_copy)
    assert run.members == (0, 2)
    run.save_pretrained(tmp_path / "out", members=[2])  # by its index in the run
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["member_00"]
    with pytest.raises(ConfigError, match="members: 1 is not one of 0, 2"):
        run.save_pretrained(tmp_path / "other", members=[1])
    run.save_pretrained(tmp_path / "all")
    folders = sorted((tmp_path / "all").iterdir())
    data = dataclasses.replace(run.config.data, too_long="error")
    again = Ensemble.from_peft(folders, tmp_path / "again", data=data, base=BaseConfig(name=run.config.base.name))
    new = texts_csv("new.csv", 4, seed=8)
    for one, other in zip(run.predict(new), again.predict(new), strict=True):
        np.testing.assert_allclose(one.member_probs, other.member_probs, rtol=0, atol=1e-6)


def three_members(root):
    """The two members of a run with a failed one between them."""
    first, last = json.loads((root / "ensemble.json").read_text())["members"]
    failed = {**first, "path": "members/member_02", "state": "failed", "reason": "diverged: loss nan"}
    return [first, failed, last]


def process_state():
    """What a library must leave as it was."""
    return {
        "threads": torch.get_num_threads(),
        "dtype": torch.get_default_dtype(),
        "grad": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "torch random": torch.get_rng_state().tolist(),
        "numpy random": str(np.random.get_state()),
        "random": random.getstate(),
        "environment": dict(os.environ),
        "directory": os.getcwd(),
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        "warnings": list(warnings.filters),
        "loggers": {
            name: (logging.getLogger(name).level, list(logging.getLogger(name).handlers))
            for name in (None, "lorchestra", "transformers", "peft", "torch")
        },
        "transformers": transformers.utils.logging.get_verbosity(),
        "bars": transformers.utils.logging.is_progress_bar_enabled(),
        "streams": (sys.stdout, sys.stderr),
        "hooks": (sys.excepthook, threading.excepthook, sys.getrecursionlimit()),
        "limits": resource.getrlimit(resource.RLIMIT_NOFILE),
    }


def test_a_host_process_is_left_as_it_was(run_config, texts_csv, tmp_path, monkeypatch):
    threads = []
    original = lorchestra.runs.train.train_with_checkpoints

    def train_with_checkpoints(run, trainer):
        threads.append(torch.get_num_threads())
        return original(run, trainer)

    monkeypatch.setattr(lorchestra.runs.train, "train_with_checkpoints", train_with_checkpoints)
    torch.manual_seed(7)
    config = run_config(texts_csv(), adapt={"dropout": 0.1}, train={"epochs": 1})
    other = torch.get_num_threads() + 1
    config = dataclasses.replace(config, base=dataclasses.replace(config.base, threads=other))
    before = process_state()
    trained = Ensemble.train(config, tmp_path / "run")
    assert threads == [other]
    assert trained.config.base.threads == other
    assert json.loads(trained.run.environment.read_text())["num_threads"] == other
    list(trained.predict(["a film"]))
    trained.evaluate()
    trained.save_pretrained(tmp_path / "out")
    plan_run(config, tmp_path, seconds=0.1)
    compare_methods(config, ["one_lora"], tmp_path / "comparison")
    run_sweep(grid_points(config, [("train.lr", [0.01])]), tmp_path / "sweep")
    import_run([tmp_path / "out/member_00"], tmp_path / "imported", data=config.data, base=config.base)
    after = process_state()
    assert {name: value for name, value in after.items() if value != before[name]} == {}


def test_answers_as_a_table(trained_run):
    rows = ["a good film", "", "a bad film"]
    pandas = pytest.importorskip("pandas")
    ensemble = Ensemble.load(trained_run)
    table = ensemble.predict(rows, abstain_below=0.9).to_pandas()
    expected = pandas.DataFrame([answer.to_dict() for answer in ensemble.predict(rows, abstain_below=0.9)])
    pandas.testing.assert_frame_equal(table, expected)
    assert list(table["row"]) == [1, 2, 3]
    assert table["prediction"].isna().tolist() == [False, True, False]
    answers = ensemble.predict(rows)
    first = next(answers)
    assert first.row == 1
    assert list(answers.to_pandas()["row"]) == [2, 3]
    assert list(answers) == []


MISTAKES = {
    "threshold as text": (lambda e: e.predict(["x"], abstain_below="0.5"), "abstain_below: '0.5' is not a number"),
    "threshold true": (lambda e: e.predict(["x"], abstain_below=True), "abstain_below: True is not a number"),
    "exit rule in a list": (lambda e: e.predict(["x"], early_exit=[1]), r"early_exit: \[1\] is neither"),
    "exit rule true": (lambda e: e.evaluate(early_exit=True), "early_exit: True is neither"),
    "rows to evaluate": (lambda e: e.evaluate([{"text": "x"}]), "data is of type list; pass a path"),
    "unknown split": (lambda e: e.evaluate(files={"tset": "x"}), "files: 'tset' is no split; did you mean 'test'"),
    "files in a list": (lambda e: e.evaluate(files=["x"]), "files is of type list; pass a dict"),
    "one OOD file": (lambda e: e.evaluate(ood="test.csv"), "ood is of type str; pass a list of paths"),
    "callback": (lambda e: e.evaluate(callbacks=[print]), "is not a lorchestra.Callback"),
    "no members": (lambda e: e.save_pretrained("new", []), r"members: \[\] is not a list with entries"),
    "a member twice": (lambda e: e.save_pretrained("new", [0, 0]), r"members: \[0, 0\] has an entry twice"),
    "member as text": (lambda e: e.save_pretrained("new", ["0"]), "members: '0' is not one of 0"),
    "no directory": (lambda e: Ensemble.load(None), "directory is of type NoneType; pass a path"),
    "one folder": (lambda e: Ensemble.from_peft("peft", "new", data=DataConfig()), "folders is of type str"),
    "data as text": (lambda e: Ensemble.from_peft(["peft"], "new", data="a.csv"), "data is 'a.csv'; pass a lorchestra"),
    "a dict": (lambda e: Ensemble.train({}, "new"), "the configuration is of type dict; pass a lorchestra.RunConfig"),
    "no out": (lambda e: Ensemble.train(RunConfig(), None), "out is of type NoneType; pass a path"),
    "rows": (lambda e: Ensemble.train(RunConfig(), "new", rows=[]), "rows is of type list; pass a lorchestra.Task"),
    "no rows": (
        lambda e: Ensemble.train(RunConfig(), "new", rows=Task("t", {"train": (), "val": ()}, ("a", "b"))),
        "rows: has no train rows",
    ),
}


@pytest.mark.parametrize(("call", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_wrong_argument_is_named_at_the_call(trained_run, call, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message):
        call(Ensemble.load(trained_run))
    assert list(tmp_path.iterdir()) == []
