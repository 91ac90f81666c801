"""Whole trainings: the run directory, exact resume, failures, and what is refused."""

from __future__ import annotations

import dataclasses
import errno
import json
import math

import pytest
import safetensors.torch
import torch
import transformers
from stop_after import StopAfter

import lorchestra.runs.train
import lorchestra.runs.training
import lorchestra.store.disk
import lorchestra.training.checkpoint
import lorchestra.training.early_stopping
import lorchestra.training.trainer
from lorchestra.config.data import PromptConfig
from lorchestra.config.mappings import read_recipe
from lorchestra.config.run import RunConfig
from lorchestra.errors import CheckpointError, ConfigError, DataError, TrainingError
from lorchestra.models.init import make_adapter_settings
from lorchestra.runs.ensemble import load_run
from lorchestra.runs.train import train_run
from lorchestra.store.atomic import sha256_file
from lorchestra.store.run import Run
from lorchestra.training.callbacks import Interrupted
from lorchestra.types import Example


def adapter_settings(root):
    """The bytes of all members' weights."""
    files = sorted((root / "members").glob("member_*/adapter_model.safetensors"))
    return [file.read_bytes() for file in files]


def test_the_run_directory_holds_the_contract(run_config, texts_csv, tmp_path):
    root = train_run(run_config(texts_csv()), tmp_path / "run").run.root
    record = json.loads((root / "ensemble.json").read_text())
    assert record["format_version"] == 2
    assert record["choice_end"] == "where_needed"
    assert record["num_members"] == 3
    assert record["labels"] == ["no", "yes"]
    assert record["task"] == "reviews"
    assert [member["state"] for member in record["members"]] == ["finished"] * 3
    assert len({member["seed"] for member in record["members"]}) == 3
    assert len(set(adapter_settings(root))) == 3
    splits = json.loads((root / "splits.json").read_text())
    ids = [name for split in splits.values() for name in split["ids"]]
    assert len(ids) == len(set(ids)) == 50
    assert {split: len(values["ids"]) for split, values in splits.items()} == {"train": 40, "val": 5, "test": 5}
    events = [json.loads(line) for line in (root / "events.jsonl").read_text().splitlines()]
    assert [e["step"] for e in events if e["event"] == "step"] == list(range(1, 11))
    assert [e["epoch"] for e in events if e["event"] == "evaluation"] == [1, 2]
    assert events[-1]["event"] == "finished"
    assert record["cost"]["tokens"] == sum(e["tokens"] for e in events if e["event"] == "step")
    assert record["cost"]["base_passes"] == pytest.approx(3 * 2)
    assert not list(root.rglob(".*.tmp"))


def test_the_saved_configuration_is_resolved_and_repeats_the_run(run_config, texts_csv, tmp_path):
    config = run_config(texts_csv(), data={"scoring": "auto"})
    first = train_run(config, tmp_path / "first").run
    saved = read_recipe(first.config, RunConfig)
    assert saved.data.scoring in ("letter", "text")
    assert saved.train.token_budget == 640
    assert saved.base.threads == torch.get_num_threads()
    second = train_run(saved, tmp_path / "second").run
    assert adapter_settings(first.root) == adapter_settings(second.root)


@pytest.mark.parametrize("layers", ["all", "last:1"])
def test_peft_reproduces_each_members_logits(run_config, texts_csv, tiny_base, reference_log_probs, tmp_path, layers):
    """Loaded by PEFT alone, onto a base loaded by transformers alone."""
    from peft import PeftModel

    adapt = {"layers": layers, "target_modules": ("q_proj", "v_proj", "down_proj")}
    root = train_run(run_config(texts_csv(), adapt=adapt), tmp_path / "run").run.root
    trained = load_run(root)
    examples = trained.read(texts_csv("new.csv", 6, seed=9), require_answer=False)
    log_probs = trained.pipeline.predict_members(examples, "new").log_probs_MEC
    encoded = trained.pipeline.encode(examples).rows
    for m in range(3):
        base = transformers.AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
        peft = PeftModel.from_pretrained(base, str(root / f"members/member_{m:02d}")).eval()
        for e, row in enumerate(encoded):
            expected = reference_log_probs(peft, row)
            torch.testing.assert_close(torch.tensor(log_probs[m, e]).float(), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"adapt": {"layers": "last:1", "dropout": 0.2}, "regularize": {"kl_beta": 0.5, "weight_decay_b": 5.0}},
        {"train": {"token_budget": 60, "patience": 1, "epochs": 3}, "data": {"class_weights": True}},
        {"adapt": {"init_lora_weights": "pissa"}, "regularize": {"weight_decay_ba": 0.1}},
    ],
    ids=["plain", "trunk, dropout, KL, decay", "budget, early stop, weights", "PiSSA"],
)
def test_a_run_interrupted_over_and_over_ends_with_the_same_bytes(run_config, texts_csv, tmp_path, settings):
    config = run_config(texts_csv(), **settings)
    whole = train_run(config, tmp_path / "whole").run.root
    root = tmp_path / "pieces"
    stops = 0
    for asked in (0, 3, 2, 7, 1, 5, 10_000):
        try:
            train_run(config, root, if_exists="resume" if stops else "fail", callbacks=[StopAfter(asked)])
        except Interrupted:
            stops += 1
        else:
            break
    assert stops >= 3
    assert adapter_settings(root) == adapter_settings(whole)
    steps = [[json.loads(line) for line in (r / "events.jsonl").read_text().splitlines()] for r in (whole, root)]
    plain = [[(e["step"], e["loss"]) for e in events if e["event"] == "step"] for events in steps]
    assert plain[0] == plain[1]  # nothing is logged twice


@pytest.mark.parametrize("dtype", ["auto", "bfloat16", "float16"])
def test_trunks_in_a_file_give_the_same_bytes_and_are_gone_in_the_end(run_config, texts_csv, tmp_path, dtype):
    """With no memory for them at all; the second of two processes maps what the first computed."""
    adapt = {"layers": "last:1", "trunk_dtype": dtype}
    whole = train_run(run_config(texts_csv(), adapt=adapt), tmp_path / "whole").run.root
    config = run_config(texts_csv(), adapt=adapt | {"trunk_memory_gb": 0.0})
    root = tmp_path / "run"
    with pytest.raises(Interrupted):
        train_run(config, root, callbacks=[StopAfter(9)])
    files = {path: path.stat().st_mtime_ns for path in (root / "resume").glob("trunk-*")}
    assert {path.name for path in files} == {
        f"trunk-{s}.{e}" for s in ("training", "validation") for e in ("bin", "json")
    }
    with pytest.raises(Interrupted):
        train_run(config, root, if_exists="resume", callbacks=[StopAfter(1)])
    assert {path: path.stat().st_mtime_ns for path in files} == files
    train_run(config, root, if_exists="resume")
    assert adapter_settings(root) == adapter_settings(whole)
    assert not list((root / "resume").glob("trunk-*"))
    changes = [
        e for e in map(json.loads, (root / "events.jsonl").read_text().splitlines()) if e["event"] == "trunk_dtype"
    ]
    assert {event["dtype"] for event in changes} == {dtype} - {"auto"}
    assert all(0 < event["max_change"] < 0.1 for event in changes)


def test_a_run_in_half_precision_is_another_and_interrupted_in_memory_the_same(run_config, texts_csv, tmp_path):
    roots = {}
    for dtype in ("auto", "bfloat16"):
        config = run_config(texts_csv(), adapt={"layers": "last:1", "trunk_dtype": dtype})
        roots[dtype] = train_run(config, tmp_path / dtype).run.root
    assert adapter_settings(roots["auto"]) != adapter_settings(roots["bfloat16"])
    with pytest.raises(Interrupted):
        train_run(config, tmp_path / "run", callbacks=[StopAfter(9)])
    assert adapter_settings(train_run(config, tmp_path / "run", if_exists="resume").run.root) == adapter_settings(
        roots["bfloat16"]
    )


def in_float64(config):
    """For comparisons across packings: Adam divides gradients by their size, rounding errors in float32 included."""
    return dataclasses.replace(config, base=dataclasses.replace(config.base, dtype="float64"))


def test_without_room_for_trunks_training_goes_on_without_them(on_log, run_config, texts_csv, tmp_path, monkeypatch):
    config = in_float64(run_config(texts_csv(), adapt={"layers": "last:1", "trunk_memory_gb": 0.0}))
    monkeypatch.setattr(lorchestra.store.disk, "free_bytes", lambda path: 1000 if "trunk" in path.name else None)
    messages = []
    on_log(messages.append)
    root = train_run(config, tmp_path / "run").run.root
    assert any("disk is full" in text and "continues without the cache" in text for text in messages)
    monkeypatch.undo()
    other = train_run(config, tmp_path / "other").run.root
    for ours, theirs in zip(*(sorted(r.glob("members/*/*.safetensors")) for r in (root, other)), strict=True):
        one, two = safetensors.torch.load_file(ours), safetensors.torch.load_file(theirs)
        for name, tensor in one.items():
            torch.testing.assert_close(tensor, two[name], rtol=0, atol=2e-4)


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before_in_force(
    on_log, run_config, texts_csv, tmp_path, monkeypatch
):
    """The disk fills up in the fourth checkpoint; with room again, the run goes on and ends with the same bytes."""
    config = run_config(texts_csv())
    whole = train_run(config, tmp_path / "whole").run.root
    original, saves = lorchestra.training.checkpoint.save_file, []

    def save_file(tensors, path):
        saves.append(path)
        if len(saves) == 4:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        original(tensors, path)

    monkeypatch.setattr(lorchestra.training.checkpoint, "save_file", save_file)
    root = tmp_path / "run"
    with pytest.raises(CheckpointError, match=r"disk is full.*Free some space"):
        train_run(config, root)
    assert not list(root.rglob(".*.tmp"))
    messages = []
    on_log(messages.append)
    train_run(config, root, if_exists="resume")
    assert any("after step 3 of 10" in text for text in messages)
    assert adapter_settings(root) == adapter_settings(whole)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing", "record"])
def test_a_damaged_checkpoint_is_refused(run_config, texts_csv, tmp_path, damage):
    config, root = run_config(texts_csv()), tmp_path / "run"
    with pytest.raises(Interrupted):
        train_run(config, root, callbacks=[StopAfter(4)])
    (state,) = (root / "resume").glob("state-*.safetensors")
    data = bytearray(state.read_bytes())
    if damage == "truncated":
        state.write_bytes(data[:-1])
    elif damage == "flipped":
        data[-5] ^= 1
        state.write_bytes(data)
    elif damage == "missing":
        state.unlink()
    else:
        latest = root / "resume/latest.json"
        latest.write_text(latest.read_text().replace('"step": 4', '"step": 5'))
    with pytest.raises(CheckpointError, match=r"checksum.*start it again with --if-exists new"):
        train_run(config, root, if_exists="resume")


def rewrite_checkpoint(root, change):
    """Change a checkpoint's record and make its checksum right again, as a program at fault would."""
    latest = root / "resume/latest.json"
    body = json.loads(latest.read_text())
    body.pop("checksum")
    change(body)
    latest.write_text(json.dumps(body | {"checksum": lorchestra.training.checkpoint._checksum(body)}))


@pytest.fixture
def stopped(run_config, texts_csv, tmp_path):
    """An interrupted run with a checkpoint after step 4: configuration and directory."""
    config, root = run_config(texts_csv()), tmp_path / "run"
    with pytest.raises(Interrupted):
        train_run(config, root, callbacks=[StopAfter(4)])
    return config, root


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda body: body.pop("file"), r"latest\.json: file is missing"),
        (
            lambda body: body.update(file="../state-1.safetensors"),
            "file is '../state-1.safetensors', which is not a check",
        ),
        (lambda body: body.update(file="/state-1.safetensors"), "which is not a checkpoint of this run"),
        (lambda body: body.update(events_bytes=[1]), r"events_bytes is \[1\], not an integer"),
        (lambda body: body.update(events_bytes=-1), "events_bytes is -1, less than 0"),
        (lambda body: body["state"].update(tokens=10**400), r"state\.tokens is 1000"),
        (lambda body: body.update(state=[]), r"state is \[\], not an object"),
        (lambda body: body["state"].pop("members"), r"state\.members is missing"),
        (lambda body: body["state"]["members"][1].pop("waited"), r"state\.members\[1\]\.waited is missing"),
        (
            lambda body: body["state"]["members"][1].update(epoch_loss="x"),
            r"members\[1\]\.epoch_loss is 'x', not a nu",
        ),
        (lambda body: body["state"]["members"][1].update(epoch_steps=None), r"members\[1\]\.epoch_steps is None, not"),
        (lambda body: body["state"]["members"][1].update(status="asleep"), "is 'asleep', not one of failed, finished"),
        (lambda body: body["state"]["members"].pop(), "the checkpoint does not have 3 members"),
        (lambda body: body["state"]["num_updates"].append(1), "the checkpoint does not have 3 members"),
        (lambda body: body["state"].update(step="4"), r"state\.step is '4', not an integer"),
        (lambda body: body["state"].update(step=99), "the checkpoint is at step 99, the run has 10"),
        (lambda body: body["state"].update(num_updates=[4, 4, 5]), "the checkpoint is at step 4"),
    ],
)
def test_each_field_of_a_checkpoint_is_checked(stopped, change, message):
    config, root = stopped
    rewrite_checkpoint(root, change)
    with pytest.raises(CheckpointError, match=message):
        train_run(config, root, if_exists="resume")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("best"), "best should be torch.float32 .* has no such tensor"),
        (lambda tensors: tensors.update(values=tensors["values"][:2].clone()), r"has torch\.float32 \[2, \d+\]"),
        (lambda tensors: tensors.update(values=tensors["values"].double()), r"has torch\.float64"),
    ],
)
def test_a_checkpoint_of_other_tensors_is_refused(stopped, change, message):
    config, root = stopped
    (file,) = (root / "resume").glob("state-*.safetensors")
    tensors = safetensors.torch.load_file(file)
    change(tensors)
    safetensors.torch.save_file(tensors, file)
    rewrite_checkpoint(root, lambda body: body.update(sha256=sha256_file(file)))
    with pytest.raises(CheckpointError, match=message):
        train_run(config, root, if_exists="resume")


def test_a_validation_nll_that_is_no_number_does_not_spoil_the_checkpoint(run_config, texts_csv, tmp_path, monkeypatch):
    """The history then holds a NaN, for which JSON has null: the checksum must be of what is read again."""
    original, calls = lorchestra.training.early_stopping.predict_rows, []

    def predict_rows(*arguments, **options):
        log_probs = original(*arguments, **options)
        calls.append(0)
        if len(calls) == 1:
            log_probs[1] = math.nan
        return log_probs

    monkeypatch.setattr(lorchestra.training.early_stopping, "predict_rows", predict_rows)
    config, root = run_config(texts_csv()), tmp_path / "run"
    with pytest.raises(Interrupted):
        train_run(config, root, callbacks=[StopAfter(6)])
    outcome = train_run(config, root, if_exists="resume")
    assert outcome.failed_members == (1,)
    assert outcome.reasons == ("diverged: validation NLL nan (step 5)",)
    events = [json.loads(line) for line in (root / "events.jsonl").read_text().splitlines()]
    (failure,) = [e for e in events if e["event"] == "member_failed"]
    assert (failure["member"], failure["step"], failure["reason"]) == (1, 5, *outcome.reasons)


def test_a_checkpoint_of_an_earlier_version_is_resumed(stopped, texts_csv, run_config, tmp_path):
    """It lacks the losses by which an epoch is judged; the members come out as of a run that was never disturbed."""
    config, root = stopped

    def forget(body):
        for member in body["state"]["members"]:
            for name in ("first_loss", "epoch_loss", "epoch_steps"):
                del member[name]

    rewrite_checkpoint(root, forget)
    train_run(config, root, if_exists="resume")
    assert adapter_settings(root) == adapter_settings(train_run(config, tmp_path / "whole").run.root)


def test_a_run_directory_appears_with_its_configuration(run_config, texts_csv, tmp_path, monkeypatch):
    """Killed before that there is nothing, so that the same command with --if-exists resume starts anew."""

    def killed(*arguments):
        raise KeyboardInterrupt

    config, root = run_config(texts_csv()), tmp_path / "run"
    root.mkdir()  # an empty one may be there
    monkeypatch.setattr("lorchestra.store.run.to_yaml", killed)
    with pytest.raises(KeyboardInterrupt):
        train_run(config, root)
    assert not root.exists()
    monkeypatch.undo()
    train_run(config, root, if_exists="resume")
    assert len(adapter_settings(root)) == 3


def test_a_directory_that_another_process_made_meanwhile_is_left_alone(run_config, texts_csv, tmp_path, monkeypatch):
    original, root = lorchestra.runs.training.build_pipeline, tmp_path / "run"

    def slow(*arguments, **settings):
        root.mkdir()
        (root / "config.yaml").write_text("theirs")
        return original(*arguments, **settings)

    monkeypatch.setattr("lorchestra.runs.training.build_pipeline", slow)
    with pytest.raises(CheckpointError, match="another process has just made it"):
        train_run(run_config(texts_csv()), root)
    assert [path.name for path in root.iterdir()] == ["config.yaml"]


def test_a_file_where_the_members_should_go_is_refused_and_kept(stopped):
    config, root = stopped
    (root / "members").write_text("mine")
    with pytest.raises(CheckpointError, match=r"members: a file is where a directory is needed"):
        train_run(config, root, if_exists="resume")
    assert (root / "members").read_text() == "mine"


def test_an_existing_run_is_never_overwritten(on_log, run_config, texts_csv, tmp_path):
    config, root = run_config(texts_csv()), tmp_path / "run"
    train_run(config, root)
    before = adapter_settings(root)
    with pytest.raises(CheckpointError, match="--if-exists"):
        train_run(config, root)
    outcome = train_run(config, root, if_exists="new")
    assert outcome.run.root == tmp_path / "run-2"
    messages = []
    on_log(messages.append)
    assert train_run(config, root, if_exists="resume").run.root == root
    assert "finished already" in messages[-1]
    assert adapter_settings(root) == before


def test_a_directory_that_is_no_run_is_left_alone(run_config, texts_csv, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("keep me")
    for if_exists in ("fail", "resume"):
        with pytest.raises(CheckpointError, match="not a run directory"):
            train_run(run_config(texts_csv()), tmp_path / "mine", if_exists=if_exists)
    assert [file.name for file in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_a_resumed_run_keeps_its_settings(run_config, texts_csv, tmp_path):
    config, root = run_config(texts_csv()), tmp_path / "run"
    with pytest.raises(Interrupted):
        train_run(config, root, callbacks=[StopAfter(4)])
    other = dataclasses.replace(config, train=dataclasses.replace(config.train, lr=0.02))
    with pytest.raises(ConfigError, match=r"train\.lr: the run in .* has 0\.01, not 0\.02"):
        train_run(other, root, if_exists="resume")


def test_a_trained_run_is_finished_from_its_last_checkpoint(run_config, texts_csv, tmp_path, monkeypatch):
    """Killed between training and finishing: nothing is trained or precomputed again."""
    config = run_config(texts_csv(), adapt={"layers": "last:1"}, regularize={"kl_beta": 0.5})
    whole = train_run(config, tmp_path / "whole").run.root

    def killed(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(lorchestra.runs.train, "save_members", killed)
    with pytest.raises(KeyboardInterrupt):
        train_run(config, tmp_path / "run")
    monkeypatch.undo()
    monkeypatch.setattr(lorchestra.training.trainer.Trainer, "prepare", killed)
    root = train_run(config, tmp_path / "run", if_exists="resume").run.root
    assert adapter_settings(root) == adapter_settings(whole)
    last = [json.loads(line)["event"] for line in (root / "events.jsonl").read_text().splitlines()][-2:]
    assert last == ["resumed", "finished"]


def test_changed_rows_are_not_resumed_on(run_config, texts_csv, tmp_path):
    path = texts_csv()
    config, root = run_config(path), tmp_path / "run"
    with pytest.raises(Interrupted):
        train_run(config, root, callbacks=[StopAfter(4)])
    path.write_text(path.read_text() + "one more film,yes\n")
    with pytest.raises(DataError, match="have changed since"):
        train_run(config, root, if_exists="resume")


def poison(monkeypatch, member, step):
    """Makes one member's gradient NaN in one step."""
    original = lorchestra.training.trainer.clip_gradients
    calls = []

    def clip_gradients(grad, max_norms):
        calls.append(0)
        if len(calls) == step:
            grad[member] = math.nan
        return original(grad, max_norms)

    monkeypatch.setattr(lorchestra.training.trainer, "clip_gradients", clip_gradients)


def test_a_failed_member_is_left_out_of_the_ensemble(on_log, run_config, texts_csv, tmp_path, monkeypatch):
    config = in_float64(run_config(texts_csv()))
    whole = train_run(config, tmp_path / "whole").run.root
    poison(monkeypatch, member=1, step=4)
    outcome = train_run(config, tmp_path / "run")
    assert outcome.failed_members == (1,)
    root = outcome.run.root
    members = Run(root).read_ensemble().members
    states = [member.state for member in members]
    assert states == ["finished", "failed", "finished"]
    (reason,) = outcome.reasons
    assert [member.reason for member in members] == [None, reason, None]
    assert reason.startswith("diverged: loss ")
    assert reason.endswith(", gradient norm nan (step 4)")
    events = [json.loads(line) for line in (root / "events.jsonl").read_text().splitlines()]
    (failure,) = [e for e in events if e["event"] == "member_failed"]
    assert (failure["member"], failure["step"]) == (1, 4)
    messages = []
    on_log(messages.append)
    trained = load_run(root)
    assert messages == [f"member 1 failed and is left out: {reason}"]
    assert trained.members == (0, 2)
    assert trained.pipeline.model.num_members == 2
    for m in (0, 2):  # packing without member 1 changes rounding, nothing else
        ours, theirs = (
            safetensors.torch.load_file(r / f"members/member_{m:02d}/adapter_model.safetensors") for r in (root, whole)
        )
        for name, tensor in ours.items():
            torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=2e-4)


def test_a_run_whose_members_all_fail_ends_in_an_error(run_config, texts_csv, tmp_path, monkeypatch):
    poison(monkeypatch, member=slice(None), step=3)
    with pytest.raises(TrainingError, match=r"every member failed.*smaller train\.lr") as caught:
        train_run(run_config(texts_csv()), tmp_path / "run")
    assert caught.value.exit_code == 1


def test_questions_with_choices(run_config, questions_jsonl, tmp_path):
    config = run_config(questions_jsonl(), data={"scoring": "letter"})
    record = train_run(config, tmp_path / "run").run.read_ensemble()
    assert record.labels is None
    assert record.scoring == "letter"
    assert "{options}" in record.prompt_template


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"adapt": {"members": 0}}, r"adapt\.members: 0"),
        ({"adapt": {"target_modules": ("q_porj",)}}, r"did you mean 'q_proj'"),
        ({"adapt": {"layers": "last:9"}}, r"adapt\.layers: 'last:9' is out of range; the base has 3 layers"),
        ({"regularize": {"weight_decay_b": 100.0}}, r"must be below 1"),
        ({"train": {"token_budget": 5}}, r"train\.token_budget: 5 is below the longest row"),
        ({"data": {"max_length": 300}}, r"data\.max_length: 300 is more than the 256 tokens"),
        ({"data": {"prompt": PromptConfig("{qestion}")}}, r"did you mean \{question\}"),
    ],
)
def test_bad_settings_leave_no_directory(run_config, texts_csv, tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        train_run(run_config(texts_csv(), **settings), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_row_longer_than_the_context_is_named_and_can_be_dropped_or_cut(on_log, run_config, texts_csv, tmp_path):
    path = texts_csv()
    path.write_text(path.read_text() + "long " * 300 + "film,yes\n")
    with pytest.raises(DataError, match=r"reviews\.csv:52: the row has \d+ tokens.*drop.*truncate"):
        train_run(run_config(path), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    for how in ("drop", "truncate"):
        messages = []
        on_log(messages.append)
        train_run(run_config(path, data={"too_long": how}), tmp_path / how)
        assert any("reviews.csv:52" in text for text in messages)


def test_members_of_different_ranks_are_recorded_and_loaded(run_config, texts_csv, tmp_path, monkeypatch):
    """Ranks 1, 4 and 2 on one base: each folder has its rank, and the run predicts what the trainer trained."""
    original, trained = lorchestra.runs.training.build_pipeline, []

    def build_pipeline(config, *arguments, **unused):
        default = make_adapter_settings(config.adapt, config.train.seed)
        adapter_settings = [dataclasses.replace(a, r=r, scaling=8 / r) for a, r in zip(default, (1, 4, 2), strict=True)]
        pipeline, resolved = original(config, *arguments, adapter_settings=adapter_settings)
        trained.append(pipeline)
        return pipeline, resolved

    monkeypatch.setattr(lorchestra.runs.training, "build_pipeline", build_pipeline)
    root = train_run(run_config(texts_csv(), train={"keep": "last"}), tmp_path / "run").run.root
    record = Run(root).read_ensemble()
    assert [(member.r, member.scaling) for member in record.members] == [(1, 8.0), (4, 2.0), (2, 4.0)]
    loaded = load_run(root)
    assert torch.equal(loaded.pipeline.model.adapters.values, trained[0].model.adapters.values)
    rows = [Example("", f"good {n}", ("no", "yes"), None) for n in range(4)]
    log_probs, wanted = (
        pipeline.predict_members(rows, "test").log_probs_MEC for pipeline in (loaded.pipeline, trained[0])
    )
    assert (log_probs == wanted).all()
    assert abs(wanted[0] - wanted[1]).max() > 1e-4
