"""Choices that continue others, from the file to the answer: exact, learnable, and named in runs without ends."""

from __future__ import annotations

import csv
import dataclasses
import json

import numpy as np
import pytest
import torch
import transformers
import yaml

from lorchestra.config.adapt import BaseConfig
from lorchestra.errors import CheckpointError
from lorchestra.inference.predict import MemberPass
from lorchestra.nn.packing import BASE
from lorchestra.runs.build import build_pipeline
from lorchestra.runs.ensemble import load_run
from lorchestra.runs.train import train_run
from lorchestra.types import Example

PREFIXES = ("yes", "yes but", "no", "no answer")
ROWS = [Example(str(i), text, PREFIXES, 0, f"rows:{i}") for i, text in enumerate(("the film was good", "a dull play"))]


def write_rows(path, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    return path


@pytest.mark.parametrize("normalize", ["sum", "token", "byte"])
def test_scores_are_those_of_whole_strings_with_their_ends(run_config, tiny_base, tmp_path, normalize):
    """Against transformers alone: one unpacked forward pass a string, in float64."""
    config = run_config(tmp_path / "none.csv", data={"normalize": normalize})
    config = dataclasses.replace(config, base=BaseConfig(name=str(tiny_base), dtype="float64"))
    pipeline, _ = build_pipeline(config, "t", PREFIXES, ROWS)
    base = pipeline.predict(ROWS, [MemberPass(BASE)], "test").log_probs_MEC[0]
    shown = pipeline.predict(
        ROWS, [MemberPass(BASE)], "test", shots=[Example("s", "a song", PREFIXES, 1)]
    ).log_probs_MEC[0]
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float64)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_base)

    def log_prob(prompt, string):
        before, ids = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, prompt + string))
        assert ids[: len(before)] == before
        with torch.no_grad():
            log_probs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        terms = [float(log_probs[i - 1, ids[i]]) for i in range(len(before), len(ids))]
        return sum(terms), len(terms)

    for log_probs, start, end in ((base, "", "\n"), (shown, "Text: a song\nLabel: yes but\n\n", "\n\n")):
        for e, row in enumerate(ROWS):
            scores = []
            for choice in PREFIXES:
                total, number = log_prob(f"{start}Text: {row.question}\nLabel:", f" {choice}{end}")
                scores.append(total / {"sum": 1, "token": number, "byte": 1 + len(choice)}[normalize])
            expected = torch.tensor(scores, dtype=torch.float64).log_softmax(-1)
            torch.testing.assert_close(torch.tensor(log_probs[e]), expected, rtol=0, atol=1e-6)


def films():
    words = ("very good", "dull bad")
    return [(f"the film number {i} was {word}", i % 2) for i in range(60) for word in (words[i % 2],)]


THINGS = [
    "apple",
    "bread",
    "chair",
    "door",
    "engine",
    "forest",
    "glass",
    "house",
    "island",
    "jacket",
    "kettle",
    "lemon",
]


@pytest.mark.parametrize("kind", ["labels", "integers", "questions"])
def test_they_can_be_learned(run_config, tmp_path, kind):
    """No label that continues another won a single row before choices had ends."""
    if kind == "labels":
        path = write_rows(tmp_path / "a.csv", [(text, ("yes", "yes rather")[answer]) for text, answer in films()])
    elif kind == "integers":
        rows = [(f"I saw the {thing} today {i}", label) for i in range(6) for label, thing in enumerate(THINGS)]
        path = write_rows(tmp_path / "a.csv", rows)
    else:
        path = tmp_path / "a.jsonl"
        rows = [{"question": text, "choices": ["10", "100"], "answer": answer} for text, answer in films()]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    train = {"epochs": {"labels": 20, "integers": 10, "questions": 8}[kind], "lr": 0.03}
    run = train_run(run_config(path, adapt={"members": 2, "r": 8, "layers": "all"}, train=train), tmp_path / "run").run
    trained = load_run(run.root)
    examples = trained.read(path, require_answer=True)
    right = {}
    for example, row in zip(examples, trained.predict(examples), strict=True):
        right.setdefault(example.answer, []).append(row.prediction_index == example.answer)
    assert all(np.mean(hits) > 0.9 for hits in right.values())


@pytest.fixture
def of_format_1(run_config, tmp_path):
    """Trains a run by the rules of format 1 and takes what format 2 added out of its files."""

    def build(path, **data):
        config = run_config(path, adapt={"members": 1}, data=data)
        prompt = dataclasses.replace(config.data.prompt, version=1)
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, prompt=prompt))
        root = train_run(config, tmp_path / "old").run.root
        record = json.loads((root / "ensemble.json").read_text())
        assert record["choice_end"] == "never"
        for name in ("choice_end", "chat_frame", "answer_prefix"):
            record.pop(name)
        (root / "ensemble.json").write_text(json.dumps(record | {"format_version": 1}))
        saved = yaml.safe_load((root / "config.yaml").read_text())
        saved["data"].pop("keep_tokens")
        for name in ("version", "frame", "answer_prefix"):
            saved["data"]["prompt"].pop(name)
        for name in ("criterion", "calibration"):
            saved["train"].pop(name)
        (root / "config.yaml").write_text(yaml.safe_dump(saved))
        (root / "calibration.json").unlink()
        return root

    return build


def test_a_run_of_format_1_says_that_its_labels_cannot_win(on_log, of_format_1, tmp_path):
    path = write_rows(tmp_path / "a.csv", [(text, ("yes", "yes but")[answer]) for text, answer in films()])
    root, messages = of_format_1(path), []
    on_log(messages.append)
    trained = load_run(root)
    (note,) = messages
    assert note.startswith("labels 'yes', 'yes but': this run is of format 1")
    assert "train again" in note
    rows = list(trained.predict(path))
    assert all(row.prediction_text == "yes" for row in rows)  # as it was trained
    assert {row.calibrated for row in rows} == {False}
    assert messages == [note]


def test_a_run_of_format_1_says_that_a_rows_choice_cannot_win(on_log, of_format_1, questions_jsonl, tmp_path):
    root, messages = of_format_1(questions_jsonl()), []
    on_log(messages.append)
    trained = load_run(root)
    row = Example("x", "the film", ("long", "short"), None, "new:1")
    list(trained.predict([row]))
    assert messages == []
    for number in (2, 3):
        list(trained.predict([dataclasses.replace(row, choices=("10", "100"), where=f"new:{number}")]))
    (note,) = messages
    assert note.startswith("new:2: this run is of format 1")


def test_record_and_configuration_must_have_the_same_rules(run_config, texts_csv, tmp_path):
    root = train_run(run_config(texts_csv(), adapt={"members": 1}), tmp_path / "run").run.root
    record = json.loads((root / "ensemble.json").read_text())
    (root / "ensemble.json").write_text(json.dumps(record | {"choice_end": "never"}))
    with pytest.raises(CheckpointError, match=r"choice_end is 'never', and data\.prompt\.version in config\.yaml is 2"):
        load_run(root)
    (root / "ensemble.json").write_text(json.dumps(record | {"choice_end": "sometimes"}))
    with pytest.raises(CheckpointError, match="choice_end is 'sometimes', not one of never, where_needed"):
        load_run(root)


def test_an_unfinished_run_of_before_goes_on_by_its_rules(run_config, tmp_path, texts_csv):
    """Its configuration has no version of prompts."""
    from lorchestra.store.run import Run

    root = train_run(run_config(texts_csv(), adapt={"members": 1}), tmp_path / "run").run.root
    assert Run(root).read_config().data.prompt.version == 2
    saved = yaml.safe_load((root / "config.yaml").read_text())
    saved["data"]["prompt"].pop("version")
    (root / "config.yaml").write_text(yaml.safe_dump(saved))
    assert Run(root).read_config().data.prompt.version == 1
