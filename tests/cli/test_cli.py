"""The command line: streams, exit codes, and no traceback for any user error."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from commands import Command
from safetensors.torch import load_file

from lorchestra.cli import main as cli
from lorchestra.cli.stopping import GracefulStop
from lorchestra.config.data import PromptConfig
from lorchestra.config.mappings import to_yaml
from lorchestra.training import trainer


@pytest.fixture
def recipe(run_config, tmp_path):
    """Writes a recipe for a run on the tiny base; returns its path."""

    def build(train_file, **settings):
        path = tmp_path / "recipe.yaml"
        path.write_text(to_yaml(run_config(train_file, **settings)))
        return path

    return build


@pytest.fixture
def finished(lorchestra, recipe, texts_csv, tmp_path):
    """A finished run."""
    code, out, err = lorchestra("train", recipe(texts_csv()), "--out", tmp_path / "run", "--skip-evaluation")
    assert code == 0, err
    assert out == f"{tmp_path / 'run'}\n"
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("options", "adapted"),
    [
        (["--adapt.target-modules", "all-linear", "--adapt.layers", "last:1"], 7),
        (["--adapt.target-modules", r".*\.(q|down)_proj", "--adapt.init-lora-weights", "orthogonal"], 6),
        (["--adapt.target-modules", "k_proj", "--adapt.use-rslora", "--adapt.init-lora-weights", "True"], 3),
        (["--adapt.target-modules", "k_proj", "v_proj", "--adapt.init-lora-weights", "gaussian"], 6),
    ],
    ids=["all-linear", "regex", "one name", "two names"],
)
def test_target_modules_and_initializations_as_options(lorchestra, recipe, texts_csv, tmp_path, options, adapted):
    """The options are saved with the run, and the run can be loaded again."""
    out = tmp_path / "run"
    code, _, err = lorchestra("train", recipe(texts_csv()), "--out", out, "--skip-evaluation", *options)
    assert code == 0, err
    settings = yaml.safe_load((out / "config.yaml").read_text())["adapt"]
    given = options[1] if options[2].startswith("-") else options[1:3]
    assert settings["target_modules"] == given
    peft = json.loads((out / "members/member_00/adapter_config.json").read_text())
    assert peft["use_rslora"] is settings["use_rslora"] is ("--adapt.use-rslora" in options)
    assert peft["init_lora_weights"] == settings["init_lora_weights"]
    assert len(load_file(out / "members/member_00/adapter_model.safetensors")) == 2 * adapted
    code, out, err = lorchestra("predict", out, "--data", texts_csv("more.csv", 3, seed=9))
    assert (code, len(out.splitlines())) == (0, 3), err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--adapt.modules-to-save", "lm_head"], "--adapt.modules-to-save is not offered: members are low-rank"),
        (["--adapt.modules_to_save=lm_head"], "--adapt.modules-to-save is not offered: members are low-rank"),
        (["--adapt.target-modules", "q_prj"], "'q_prj'; did you mean 'q_proj'?"),
        (["--adapt.target-modules", r".*\.w[12]"], "matches no linear map's whole name"),
        (["--adapt.target-modules", "("], "is not a regular expression"),
        (["--adapt.target-modules", "mlp"], "not a linear map"),
        (["--adapt.init-lora-weights", "orthogonal", "--adapt.r", "3"], "orthogonal needs an even rank; adapt.r is 3"),
        (["--adapt.init-lora-weights", "olora"], "invalid choice 'olora'"),
        (
            ["--adapt.init-lora-weights", "pissa", "--regularize.weight-decay-b", "10"],
            "regularize.weight_decay_b: 10, but with adapt.init_lora_weights: pissa",
        ),
    ],
)
def test_refused_adapters_write_nothing(lorchestra, recipe, texts_csv, tmp_path, options, message):
    code, out, err = lorchestra("train", recipe(texts_csv()), "--out", tmp_path / "run", *options)
    assert (code, out) == (2, "")
    assert message in " ".join(err.split())
    assert not (tmp_path / "run").exists()


def test_train_evaluate_predict(lorchestra, recipe, texts_csv, tmp_path):
    path = recipe(texts_csv(), train={"epochs": 1})
    code, out, err = lorchestra("train", path, "--train.epochs", 3, "--out", tmp_path / "run")
    assert code == 0, err
    assert "ensemble" in out
    assert "one LoRA (mean of 3)" in out
    assert "epoch 3" in err
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["train"]["epochs"] == 3
    assert (tmp_path / "run/reliability.reviews.test.png").read_bytes().startswith(b"\x89PNG")

    ood = texts_csv("ood.csv", 8, seed=4)
    code, out, _ = lorchestra("evaluate", tmp_path / "run", "--ood", ood, "--json")
    assert code == 0
    assert json.loads(out)["ood"]["ood"]["num_examples"] == {"in_dist": 5, "ood": 8}

    code, out, _ = lorchestra("predict", tmp_path / "run", "--data", ood, "--abstain-below", 0.6)
    assert code == 0
    rows = [json.loads(line) for line in out.splitlines()]
    assert len(rows) == 8
    assert all(row["abstain"] == (row["confidence"] < 0.6) for row in rows)
    assert all(len(row["member_probs"]) == 3 for row in rows)

    code, out, err = lorchestra("predict", tmp_path / "run", "--data", ood, "--out", tmp_path / "answers.jsonl")
    assert (code, out) == (0, "")
    assert "8 rows" in err
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == 8


@pytest.mark.parametrize("rule", ["exact", "0.9"])
def test_early_exit(lorchestra, finished, texts_csv, rule):
    ood = texts_csv("ood.csv", 8, seed=4)
    code, out, err = lorchestra("predict", finished, "--data", ood, "--early-exit", rule)
    assert code == 0, err
    rows = [json.loads(line) for line in out.splitlines()]
    assert [row["id"] for row in rows] == [f"ood-{n}" for n in range(1, 9)]
    assert all(len(row["member_probs"]) == row["members_used"] for row in rows)
    mean = sum(row["members_used"] for row in rows) / 8
    assert f"early exit ({rule}): {mean:.2f} of 3 members per row" in err
    code, out, err = lorchestra("evaluate", finished, "--early-exit", rule)
    assert code == 0, err
    assert f"With early exit ({rule}) a row uses" in " ".join(out.split())


def test_columns_of_other_names(lorchestra, recipe, texts_csv, tmp_path):
    path = recipe(texts_csv(columns=("review body", "stars")))
    fields = ("--data.fields.text", "review body", "--data.fields.label", "stars")
    code, _, err = lorchestra("train", path, *fields, "--out", tmp_path / "run", "--skip-evaluation")
    assert code == 0, err


def test_json_of_train_is_one_object_on_stdout(lorchestra, recipe, texts_csv, tmp_path):
    code, out, _ = lorchestra("train", recipe(texts_csv()), "--out", tmp_path / "run", "--json")
    assert code == 0
    assert json.loads(out)["task"] == "reviews"


BAD = {
    "no command": (("trian",), "did you mean 'train'"),
    "no rows": (("train", "--out", "OUT"), "data.train: no training rows; give a file with --data.train"),
    "missing file": (("train", "--data.train", "none.csv", "--out", "OUT"), "none.csv: no such file"),
    "missing recipe": (("train", "none.yaml", "--out", "OUT"), "none.yaml: cannot be read as a recipe"),
    "decay": (
        ("train", "--data.train", "x.csv", "--train.lr", "1e-3", "--regularize.weight-decay-b", "1e4", "--out", "OUT"),
        "must be below 1",
    ),
    "members": (("train", "--data.train", "x.csv", "--adapt.members", "0", "--out", "OUT"), "adapt.members: 0"),
    "unknown option": (("train", "--data.trian", "x", "--out", "OUT"), "--data.train"),
    "not a number": (("train", "--adapt.members", "five", "--out", "OUT"), "--adapt.members"),
    "no out": (("train", "--data.train", "x.csv"), "--out"),
    "no run": (("evaluate", "OUT"), "no such run directory"),
    "no run to predict": (("predict", "OUT", "--data", "x.csv"), "no such run directory"),
    "threshold": (("predict", "OUT", "--data", "x.csv", "--abstain-below", "1.5"), "--abstain-below: 1.5"),
    "early exit": (("predict", "OUT", "--data", "x.csv", "--early-exit", "2"), "--early-exit: 2 is neither exact"),
    "early exit, evaluated": (("evaluate", "OUT", "--early-exit", "all"), "--early-exit: all is neither exact"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input_ends_with_2_and_a_text_on_stderr(lorchestra, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = lorchestra(*arguments)
    assert code == 2
    assert message in err
    assert out == ""
    assert "Traceback" not in err
    assert not (tmp_path / "OUT").exists()


ROWS = {
    "no JSON": ('{"question": "q", "choices": ["a", "b"], "answer": 0}\nnonsense\n', "rows.jsonl:2: invalid JSON"),
    "one choice": ('{"question": "q", "choices": ["a"], "answer": 0}\n', "rows.jsonl:1: .*at least two"),
    "answer out of range": ('{"question": "q", "choices": ["a", "b"], "answer": 2}\n', "rows.jsonl:1: .*0 to 1"),
    "no answer": ('{"question": "q", "choices": ["a", "b"]}\n', "rows.jsonl:1: no column 'answer'"),
    "same id": ('{"id": "x", "question": "q", "choices": ["a", "b"], "answer": 0}\n' * 2, "already used by line 1"),
    "empty": ("", "rows.jsonl: the file has no rows"),
    "too few": ('{"question": "q", "choices": ["a", "b"], "answer": 0}\n', "too few to hold out"),
    "free text": ('{"prompt": "p", "completion": "c"}\n', "are not supported"),
}


@pytest.mark.parametrize(("text", "message"), ROWS.values(), ids=ROWS.keys())
def test_bad_rows_are_named(lorchestra, tmp_path, text, message):
    path = tmp_path / "rows.jsonl"
    path.write_text(text)
    code, _, err = lorchestra("train", "--data.train", path, "--out", tmp_path / "run")
    assert code == 2
    assert re.search(message, err), err
    assert not (tmp_path / "run").exists()


def test_letters_that_are_no_single_tokens_are_refused_or_avoided(lorchestra, recipe, questions_jsonl, tmp_path):
    """`auto` falls back to texts; explicit letters are an error, also with a base that splits them."""
    path = recipe(questions_jsonl(), data={"scoring": "auto", "prompt": PromptConfig("{question} Answer:")})
    code, _, err = lorchestra("train", path, "--out", tmp_path / "auto", "--skip-evaluation")
    assert code == 0
    assert "scoring answers by text: data.prompt.template has no {options}" in err
    code, _, err = lorchestra("train", path, "--data.scoring", "letter", "--out", tmp_path / "letter")
    assert code == 2
    assert "data.prompt.template has no {options}" in err


def test_an_existing_run_is_refused(lorchestra, recipe, texts_csv, finished):
    code, _, err = lorchestra("train", recipe(texts_csv()), "--out", finished)
    assert code == 2
    assert "--if-exists resume" in err


def test_a_failed_member_is_exit_code_1(lorchestra, recipe, texts_csv, tmp_path, monkeypatch):
    def clip_gradients(grad, max_norms):
        grad[1] = float("nan")
        return original(grad, max_norms)

    original = trainer.clip_gradients
    monkeypatch.setattr(trainer, "clip_gradients", clip_gradients)
    code, out, err = lorchestra("train", recipe(texts_csv()), "--out", tmp_path / "run")
    assert code == 1
    assert "member(s) 1 failed and are left out of the ensemble" in err
    assert "one LoRA (mean of 2)" in out
    why = r"diverged: loss \S+, gradient norm nan \(step 1\)"
    assert len(re.findall(rf"^member 1 failed: {why}$", err, re.MULTILINE)) == 1  # when it happened
    assert len(re.findall(rf"^member 1 failed and is left out: {why}$", err, re.MULTILINE)) == 1
    code, _, err = lorchestra("evaluate", tmp_path / "run")
    assert code == 0
    assert re.search(rf"^member 1 failed and is left out: {why}$", err, re.MULTILINE)


def test_training_alone_prints_the_reason_of_a_failure(lorchestra, recipe, texts_csv, tmp_path, monkeypatch):
    original = trainer.step_failure
    calls = iter(range(10_000))
    monkeypatch.setattr(trainer, "step_failure", lambda *a: "loss 1" if next(calls) == 1 else original(*a))
    code, _, err = lorchestra("train", recipe(texts_csv()), "--out", tmp_path / "run", "--skip-evaluation")
    assert code == 1
    assert "\nmember 1: diverged: loss 1 (step 1)\n" in err


def test_an_internal_error_is_exit_code_3(lorchestra, monkeypatch):
    def broken(arguments):
        raise ZeroDivisionError("oh")

    monkeypatch.setattr("lorchestra.cli.predict.run", broken)
    code, _, err = lorchestra("predict")
    assert code == 3
    assert "internal error: ZeroDivisionError: oh" in err
    with pytest.raises(ZeroDivisionError):
        lorchestra("predict", "--debug")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_midst_of_printing_or_importing_only_sets_a_mark(monkeypatch, capfd, number):
    """A regression of the crash drill: a signal while the console imported one of its modules was an internal error."""

    class Busy:
        def write(self, text):
            raise RuntimeError("reentrant call")

    monkeypatch.setattr(sys, "stderr", Busy())
    with GracefulStop() as stop:
        assert not stop.should_stop()
        signal.raise_signal(number)
        assert stop.should_stop()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    assert capfd.readouterr().err == "\nstopping after this micro-batch; a second Ctrl-C stops at once\n"


def test_a_second_ctrl_c_ends_a_training_with_its_best_adapters(capfd):
    with GracefulStop(can_finish=True) as stop:
        signal.raise_signal(signal.SIGINT)
        assert (stop.should_stop(), stop.should_finish()) == (True, False)
        signal.raise_signal(signal.SIGINT)
        assert (stop.should_stop(), stop.should_finish()) == (True, True)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    with GracefulStop(can_finish=True) as stop:
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        assert not stop.should_finish()
    err = capfd.readouterr().err
    assert "a second Ctrl-C ends the training with the best adapters so far" in err
    assert "ending with the best adapters so far; a third Ctrl-C stops at once" in err


@pytest.mark.slow
def test_ctrl_c_stops_cleanly_and_prints_how_to_resume(recipe, texts_csv, tmp_path):
    path = recipe(texts_csv(), train={"epochs": 100_000})  # never finishes before the signal
    events = tmp_path / "run/events.jsonl"
    deadline = time.monotonic() + 900
    with Command("train", path, "--out", tmp_path / "run", directory=tmp_path) as command:
        while (not events.exists() or not events.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.02)
        command.send_signal(signal.SIGINT)
        assert command.wait() == 130, command.err
    assert f"resume with: lorchestra train --out {tmp_path / 'run'} --if-exists resume" in command.err
    assert command.out == ""
    assert (tmp_path / "run/resume/latest.json").exists()


def test_help_is_quick_and_needs_no_torch():
    """Heavy packages are not imported; `benchmarks/` measures the time."""
    code = (
        "import sys\n"
        "from lorchestra.cli.main import main\n"
        "main(['--help'])\n"
        "try:\n"
        "    main(['train', '--help'])\n"
        "except SystemExit:\n"
        "    pass\n"
        "print('loaded', sorted({'torch', 'transformers', 'numpy', 'pyarrow', 'sklearn'} & set(sys.modules)))\n"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.endswith("loaded []\n")


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_each_command_has_a_help(lorchestra, command):
    code, out, _ = lorchestra(command, "--help")
    assert code == 0
    assert f"usage: lorchestra {command}" in out


def test_version_and_plain_call(lorchestra):
    assert lorchestra("--version")[1].startswith("lorchestra 0.")
    code, out, _ = lorchestra()
    assert code == 2
    assert "commands:" in out


def test_home_is_expanded_in_every_argument(lorchestra, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    code, _, err = lorchestra("train", "--data.train=~/none.csv", "--out=~/run")
    assert code == 2
    assert f"{tmp_path}/none.csv: no such file" in err
    code, _, err = lorchestra("evaluate", "~/none")
    assert f"{tmp_path}/none: no such run" in err
    assert not (tmp_path / "~").exists()


MISPLACED = {
    "training file": (("train", "x.csv", "--out", "OUT"), "train x.csv: is a data file; give it as --data.train x.csv"),
    "two files": (
        ("train", "--data.train", "a.csv", "x.csv", "--out", "OUT"),
        "train x.csv: is a data file; give it as",
    ),
    "plan": (("plan", "x.jsonl"), "give it as --data.train x.jsonl"),
    "compare": (("compare", "x.csv", "--out", "OUT"), "give it as --data.train x.csv"),
    "sweep": (("sweep", "x.csv", "--out", "OUT", "--grid", "train.lr=1"), "give it as --data.train x.csv"),
    "paper": (("paper", "x.csv", "--out", "OUT"), "give it as --data.train x.csv"),
    "task": (("train", "arc_easy", "--out", "OUT"), "give the task as --data.task arc_easy"),
    "base": (("train", "base.gguf", "--out", "OUT"), "give the base as --base.name base.gguf"),
    "directory": (("train", ".", "--out", "OUT"), "this is a directory; give a base as --base.name ."),
    "no run": (("predict", "x.csv"), "the first argument is a run directory: lorchestra predict RUN --data x.csv"),
    "no run, data": (("predict", "x.csv", "--data", "x.csv"), "lorchestra predict RUN --data x.csv"),
    "behind the run": (("predict", "RUN", "x.csv"), "predict x.csv: is a data file; give it as --data x.csv"),
    "evaluate": (("evaluate", "x.parquet"), "lorchestra evaluate RUN --data x.parquet"),
    "evaluate, behind": (("evaluate", "RUN", "x.csv"), "give it as --data x.csv"),
    "export": (("export", "RUN", "OUT"), "OUT: name the directory to create with --out OUT"),
    "report": (("report", "x.csv"), "the first argument is a run directory"),
    "import": (("import", "x.csv", "--out", "OUT"), "give it as --task x.csv"),
    "demo": (("demo", "x.csv"), "lorchestra train --data.train x.csv --out RUN"),
}


@pytest.mark.parametrize(("arguments", "message"), MISPLACED.values(), ids=MISPLACED.keys())
def test_the_error_of_a_misplaced_argument_names_the_option(lorchestra, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.csv").write_text("text,label\na,b\n")
    code, out, err = lorchestra(*arguments)
    assert code == 2
    assert message in err
    assert out == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.csv"]


def test_the_error_of_a_run_directory_as_a_recipe_shows_how_to_resume(lorchestra, tmp_path):
    (tmp_path / "config.yaml").write_text("train: {}")
    code, _, err = lorchestra("train", tmp_path, "--out", tmp_path / "new")
    assert code == 2
    assert f"to resume it: lorchestra train --out {tmp_path} --if-exists resume" in err


def test_options_typed_with_the_value_of_the_default_count_on_resume(lorchestra, recipe, texts_csv, finished):
    resume = ("train", "--out", finished, "--if-exists", "resume", "--skip-evaluation")
    assert lorchestra(*resume)[0] == 0
    for option, value, saved in (("--train.epochs", "3", "2"), ("--data.too-long=error", None, None)):
        code, _, err = lorchestra(*resume, *((option,) if value is None else (option, value)))
        assert code == (0 if saved is None else 2), err
        if saved is not None:
            assert f"train.epochs: the run in {finished} has {saved}, not {value}; a resumed run keeps its" in err
    same = ("--train.epochs", "2", "--train.no-gradient-checkpointing", "--data.scoring", "auto")
    assert lorchestra(*resume, *same, "--train.token-budget", "None")[0] == 0
    code, _, err = lorchestra(*resume, "--train.gradient_checkpointing")
    assert code == 2
    assert "train.gradient_checkpointing: the run" in err
    path = finished.parent / "short.yaml"
    path.write_text("train: {batch_size: 8, epochs: 3}")
    code, _, err = lorchestra("train", path, *resume[1:])
    assert code == 2
    assert "train.epochs" in err


def test_an_evaluation_that_cannot_be_saved_is_shown_and_is_an_error(lorchestra, finished, monkeypatch):
    from lorchestra.errors import CheckpointError

    def full(*arguments):
        raise CheckpointError("metrics.json: the disk is full.")

    monkeypatch.setattr("lorchestra.store.run.atomic_write_json", full)
    code, out, err = lorchestra("evaluate", finished)
    assert code == 2
    assert "one LoRA (mean of 3)" in out
    assert "error: metrics.json: the disk is full. The evaluation was not saved." in err
    code, out, _ = lorchestra("evaluate", finished, "--json")
    assert code == 2
    assert json.loads(out)["split"] == "test"
    code, out, err = lorchestra("evaluate", finished, "--no-save")
    assert (code, "one LoRA" in out, "picture" in err) == (0, True, False)


def test_a_moved_base_and_moved_files_are_options(lorchestra, finished, tmp_path, tiny_base, texts_csv):
    new = texts_csv("new.csv", 5, seed=3)
    for command in (("predict", finished, "--data", new), ("evaluate", finished), ("export", finished, "--out", "x")):
        code, _, err = lorchestra(*command, "--base", tmp_path / "none")
        assert code == 2
        assert f"there is no directory or file {tmp_path / 'none'}" in err
    assert lorchestra("predict", finished, "--data", new, "--base", tiny_base)[0] == 0
    (tmp_path / "reviews.csv").rename(tmp_path / "renamed.csv")
    assert lorchestra("evaluate", finished)[0] == 2
    assert lorchestra("evaluate", finished, "--data.train", tmp_path / "renamed.csv")[0] == 0
    assert lorchestra("evaluate", finished, "--data", new)[0] == 0


@pytest.mark.parametrize("terminal", [False, True])
def test_bars_of_libraries_are_drawn_in_terminals_only(monkeypatch, lorchestra, terminal):
    monkeypatch.setenv("TQDM_DISABLE", "")
    monkeypatch.delenv("TQDM_DISABLE")
    monkeypatch.setattr("lorchestra.cli.tasks.run", lambda arguments: 0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    assert lorchestra("tasks")[0] == 0
    assert os.environ.get("TQDM_DISABLE") == (None if terminal else "1")
    code = "from tqdm.auto import tqdm; list(tqdm(range(3))); from datasets.utils import tqdm; list(tqdm(range(3)))"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (process.stderr == "") is not terminal


def test_the_makefile_lets_pip_show_errors_only():
    """Pip's warnings about caches and about the carriers' missing requirements would only confuse."""
    lines = (Path(__file__).parents[2] / "Makefile").read_text().splitlines()
    pip = next(line for line in lines if line.startswith("PIP :="))
    assert "--quiet --quiet" in pip
    assert "--no-warn-conflicts" in pip
    assert not [line for line in lines if "pip install" in line and line != pip]
