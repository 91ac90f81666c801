"""The model card: the hub can read it, its numbers are those of metrics.json, and its program works."""

from __future__ import annotations

import ast
import io
import json
import re
from contextlib import redirect_stderr, redirect_stdout

import pytest
from huggingface_hub import ModelCard

from lorchestra.config.data import PromptConfig
from lorchestra.config.mappings import read_recipe
from lorchestra.config.run import RunConfig
from lorchestra.report.card import model_card
from lorchestra.report.card_program import base_reference
from lorchestra.runs.ensemble import load_run
from lorchestra.runs.evaluate import evaluate_run
from lorchestra.runs.export import export_run, exported_members
from lorchestra.runs.train import train_run
from lorchestra.store.run import Run
from lorchestra.types import Example


def card_of(root, base_name=None, **changes):
    record = json.loads((root / "ensemble.json").read_text()) | changes
    metrics = root / "metrics.json"
    saved = None if changes else Run(root).read_calibration(Run(root).read_ensemble())
    return model_card(
        record,
        read_recipe(root / "config.yaml", RunConfig),
        json.loads((root / "splits.json").read_text()),
        json.loads(metrics.read_text()) if metrics.exists() else None,
        exported_members(root),
        merged=False,
        base_name=base_name,
        calibrations={} if saved is None else saved.calibrations,
        questions=Run(root).read_ensemble().questions,
    )


@pytest.fixture
def finished(run_config, texts_csv, tmp_path):
    """A finished, evaluated run."""
    root = train_run(run_config(texts_csv(), train={"lr": 0.05}), tmp_path / "run").run.root
    evaluate_run(load_run(root))
    return root


def test_the_hub_can_read_it_and_the_license_is_left_open(finished, tiny_base):
    text = card_of(finished)
    data = ModelCard(text).data
    assert (data.base_model, data.library_name, data.license) == ("tiny", "peft", None)
    assert {"lora", "ensemble", "uncertainty"} <= set(data.tags)
    assert "# license: yours to choose" in text
    assert str(tiny_base) not in text  # a path of this machine is useless elsewhere
    hub = card_of(finished, base={"id": "org/base", "revision": "c0ffee", "digest": "", "path": "org/base"})
    assert ModelCard(hub).data.base_model == "org/base"
    assert "revision='c0ffee'" in hub
    named = card_of(finished, base_name="org/name")
    assert ModelCard(named).data.base_model == "org/name"
    assert "BASE = 'org/name'\n" in named


def test_it_says_which_rows_members_saw(finished):
    config = Run(finished).config
    text = config.read_text()
    for order, words in {
        "bootstrap": "a different initialization and a different draw of the rows, with replacement;",
        "folds": "a different initialization and a different part of the rows left out;",
    }.items():
        config.write_text(text.replace("order: own", f"order: {order}"))
        assert words in card_of(finished)


def test_it_says_what_it_was_trained_on_and_how_well_it_does(finished):
    text = card_of(finished)
    assert "texts with labels: no, yes" in text
    assert "train 40, val 5, test 5" in text
    assert "Text: {question}" in text
    assert "LoRA of rank 2" in text
    assert "a different initialization and a different order of the rows" in text
    (entry,) = json.loads((finished / "metrics.json").read_text())["evaluations"]
    line = next(line for line in text.splitlines() if "| ensemble |" in line)
    assert f"| {100 * entry['ensemble']['accuracy']:.1f} | {entry['ensemble']['nll']:.3f} |" in line
    (finished / "metrics.json").unlink()
    assert "Not evaluated yet" in card_of(finished)


def test_the_card_of_imported_members_states_that_they_were_trained_elsewhere(finished):
    members = json.loads((finished / "ensemble.json").read_text())["members"]
    text = card_of(finished, members=[member | {"state": "imported"} for member in members])
    assert "trained elsewhere" in text
    assert "peak learning rate" not in text


SETTINGS = {
    "label texts": {},
    "per token": {"normalize": "token"},
    "per byte": {"normalize": "byte"},
    "letters": {"scoring": "letter"},
    "tree": {"scoring": "tree"},
    "head": {"scoring": "head"},
    "custom prompt": {"prompt": PromptConfig('Is "{question}" good? (')},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_its_program_gives_the_probabilities_of_lorchestra(
    run_config, texts_csv, tiny_base, tmp_path, monkeypatch, settings
):
    root = train_run(run_config(texts_csv(), train={"lr": 0.05}, data=settings), tmp_path / "run").run.root
    trained = load_run(root)
    example = Example("x", "the song was rather fine", trained.labels, None)
    (expected,) = trained.predict([example])
    out = export_run(root, tmp_path / "out", card=card_of(root))
    assert run_program(out, tiny_base, example, monkeypatch) == pytest.approx(
        dict(zip(trained.labels, expected.probs, strict=True)), abs=1e-4
    )


@pytest.mark.parametrize(
    "settings",
    [*({"normalize": how} for how in ("sum", "token", "byte")), {"scoring": "tree"}],
    ids=lambda settings: "-".join(settings.values()),
)
def test_its_program_scores_whole_answers(run_config, tiny_base, tmp_path, monkeypatch, settings):
    path = tmp_path / "a.csv"
    path.write_text("text,label\n" + "".join(f"film {i} was fine,{('yes', 'yes but')[i % 2]}\n" for i in range(20)))
    data = {**settings, "prompt": PromptConfig("{question}?", answer_prefix="\n")}
    root = train_run(run_config(path, train={"lr": 0.05}, data=data), tmp_path / "run").run.root
    trained = load_run(root)
    example = Example("x", "the song was rather fine", trained.labels, None)
    (expected,) = trained.predict([example])
    out = export_run(root, tmp_path / "out", card=card_of(root))
    assert run_program(out, tiny_base, example, monkeypatch) == pytest.approx(
        dict(zip(trained.labels, expected.probs, strict=True)), abs=1e-4
    )


def test_its_program_asks_through_the_chat_template(run_config, texts_csv, make_base, tmp_path, monkeypatch):
    import transformers

    base = make_base(5)
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}answer:"
    tokenizer.save_pretrained(base)
    data = {"prompt": PromptConfig(system_prompt="be 'brief'")}
    root = train_run(run_config(texts_csv(), base=base, train={"lr": 0.05}, data=data), tmp_path / "run").run.root
    trained = load_run(root)
    example = Example("x", "the song was rather fine", trained.labels, None)
    (expected,) = trained.predict([example])
    out = export_run(root, tmp_path / "out", card=card_of(root))
    assert run_program(out, base, example, monkeypatch) == pytest.approx(
        dict(zip(trained.labels, expected.probs, strict=True)), abs=1e-4
    )


def run_program(out, base, example, monkeypatch):
    """Execute the card's program in the exported directory, with the base's path and the question filled in."""
    (code,) = re.findall(r"^```python\n(.*?)^```", (out / "README.md").read_text(), flags=re.MULTILINE | re.DOTALL)
    filled = code.replace("BASE = 'tiny'", f"BASE = {str(base)!r}").replace("your text or question", example.question)
    assert filled.count(example.question) == 1
    monkeypatch.chdir(out)
    printed = io.StringIO()
    with redirect_stdout(printed), redirect_stderr(io.StringIO()):
        exec(compile(filled, "card", "exec"), {})
    return eval(printed.getvalue())


def test_a_local_base_is_named_without_its_path():
    base = {"id": "/srv/models/llama", "revision": None, "digest": "", "path": "/srv/models/llama"}
    assert base_reference({"base": base}) == "llama"


def test_control_characters_are_escaped(finished):
    """An untrusted label or prompt must not rewrite the terminal or reverse the card's text."""
    hostile = "yes\x1b[2J\u009b31m\u202eon\u200b"
    text = card_of(finished, labels=["no", hostile], prompt_template=f"{{question}} {hostile}", task=hostile)
    assert not set("\x1b\u009b\u202e\u200b") & set(text)
    assert "yes\\x1b[2J\\x9b31m\\u202eon\\u200b" in text
    program = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    choices = re.search(r"^choices = (.*)$", program, re.MULTILINE)[1]
    assert ast.literal_eval(choices) == ["no", hostile]
