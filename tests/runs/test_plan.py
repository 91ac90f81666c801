"""Plans beside the trainings they are of, and the token budget by free memory."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from types import SimpleNamespace

import pytest
import yaml
from safetensors.torch import load_file
from typed_rows import typed_config

import lorchestra.methods.frozen
import lorchestra.models.ensemble
import lorchestra.planning.budget
import lorchestra.runs.plan
import lorchestra.runs.train
from lorchestra.config.data import PromptConfig
from lorchestra.errors import ConfigError
from lorchestra.inference import features, predict, trunk
from lorchestra.inference.packed import run_packed
from lorchestra.nn.packing import BASE, pack_prefix
from lorchestra.planning.budget import settle_budget
from lorchestra.runs.build import build_pipeline
from lorchestra.runs.calibration import calibrate
from lorchestra.runs.ensemble import load_run
from lorchestra.runs.evaluate import evaluate_run
from lorchestra.runs.plan import plan_run
from lorchestra.runs.rows import read_rows
from lorchestra.runs.train import train_run
from lorchestra.training.precompute import TrainingRows


@pytest.fixture
def free_memory(monkeypatch):
    """Lets so many bytes be free."""

    def patch(number):
        for module in (lorchestra.planning.budget, lorchestra.runs.plan):
            monkeypatch.setattr(module, "free_bytes", lambda device: number)

    return patch


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"adapt": {"layers": "last:1"}},
        {"adapt": {"layers": "last:2", "members": 11, "dropout": 0.1}, "regularize": {"kl_beta": 0.1}},
        {"train": {"gradient_checkpointing": True, "token_budget": 100}},
    ],
    ids=["all layers", "last layer", "eleven members", "checkpointing"],
)
def test_counts_are_those_of_the_real_run(run_config, texts_csv, tmp_path, settings):
    config = run_config(texts_csv(), **settings)
    record = plan_run(config, tmp_path, seconds=0.1)
    outcome = train_run(config, tmp_path / "run")
    cost = json.loads(outcome.run.ensemble.read_text())["cost"]
    assert record["work"]["tokens"] == cost["tokens"]
    assert record["work"]["base_passes"] == cost["base_passes"]
    saved = yaml.safe_load(outcome.run.config.read_text())
    assert record["token_budget"]["value"] == saved["train"]["token_budget"]
    steps = [json.loads(line) for line in outcome.run.events.read_text().splitlines()]
    assert record["work"]["steps"] == max(event.get("step", 0) for event in steps)
    files = [load_file(file) for file in outcome.run.members.glob("*/*.safetensors")]
    assert record["parameters"]["members"] == sum(tensor.numel() for file in files for tensor in file.values())
    sizes = record["bytes"]
    assert sizes["fits"]
    assert sizes["base"] == record["parameters"]["base"] * 4
    assert sizes["training"] == 16 * record["parameters"]["members"]
    parts = ("process", "base", "adapters", "training", "activations", "trunk")
    assert sizes["peak"] == max(sizes["loading"], sum(sizes[part] for part in parts))
    assert (sizes["trunk"] > 0) == (config.adapt.layers != "all")
    assert record["remedies"] == []
    assert min(record["time_s"]["training"], record["time_s"]["evaluation"]) > 0
    assert not (tmp_path / "trunk").exists()


def test_trunks_go_to_a_file_beyond_their_memory(run_config, texts_csv, tmp_path):
    asked = {"layers": "last:1"}
    inside = plan_run(run_config(texts_csv(), adapt=asked), tmp_path, seconds=0.1)
    outside = plan_run(run_config(texts_csv(), adapt=asked | {"trunk_memory_gb": 0}), tmp_path, seconds=0.1)
    assert (inside["disk_bytes"]["trunk"], outside["bytes"]["trunk"]) == (0, 0)
    assert inside["bytes"]["trunk"] == outside["disk_bytes"]["trunk"] > 0


@pytest.fixture
def count_tokens(monkeypatch):
    """Counts packed tokens by the module that runs the passes, while the switch is on; returns counts and switch."""
    tokens, switch = Counter(), SimpleNamespace(on=False)

    def watch(name, module):
        def counted(*args, **kwargs):
            for batch, outputs in run_packed(*args, **kwargs):
                tokens[name] += batch.packing.num_tokens * switch.on
                yield batch, outputs

        monkeypatch.setattr(module, "run_packed", counted)

    for name, module in {"members": predict, "trunk": trunk, "states": features}.items():
        watch(name, module)

    def counted_prefix(prefix, members, device):
        batch = pack_prefix(prefix, members, device)
        tokens["trunk" if members == [BASE] else "members"] += batch.packing.num_tokens * switch.on
        return batch

    monkeypatch.setattr(lorchestra.models.ensemble, "pack_prefix", counted_prefix)
    return tokens, switch


@pytest.mark.parametrize("layers", ["all", "last:1"])
@pytest.mark.parametrize("prompt", ["{question} Answer:", "one two " * 10 + "{question} Answer:"])
def test_calibration_and_frozen_states_are_counted(
    run_config, texts_csv, tmp_path, monkeypatch, count_tokens, layers, prompt
):
    """The tokens that the calibration after the training, and the baseline in the evaluation, really compute."""
    tokens, switch = count_tokens
    config = run_config(texts_csv(), adapt={"layers": layers}, data={"prompt": PromptConfig(template=prompt)})
    work = plan_run(config, tmp_path, seconds=0.1)["work"]

    def counted(*args):
        switch.on = True
        calibrate(*args)
        switch.on = False

    monkeypatch.setattr(lorchestra.runs.train, "calibrate", counted)
    run = train_run(config, tmp_path / "run").run
    assert tokens["members"] > 0
    assert (tokens["trunk"] > 0) == (layers == "last:1")
    assert work["calibration_tokens"] == tokens["members"] + tokens["trunk"]
    tokens.clear()
    switch.on = True
    evaluate_run(load_run(run.root))
    assert work["frozen_states_tokens"] == tokens["states"] > 0


def test_frozen_states_of_typed_questions_are_counted(tmp_path, tiny_base, count_tokens):
    """A classifier per question reads the states of its rows."""
    tokens, switch = count_tokens
    config = typed_config(tmp_path, tiny_base)
    work = plan_run(config, tmp_path, seconds=0.1)["work"]
    run = train_run(config, tmp_path / "run").run
    switch.on = True
    evaluate_run(load_run(run.root))
    assert work["frozen_states_tokens"] == tokens["states"] > 0


def test_calibration_averages_orders_of_the_options(run_config, questions_jsonl, tmp_path, monkeypatch, count_tokens):
    tokens, switch = count_tokens
    data = {"scoring": "letter", "prompt": PromptConfig(option_orders=3)}
    config = run_config(questions_jsonl(), data=data)
    record = plan_run(config, tmp_path, seconds=0.1)
    assert record["time_s"]["frozen_states"] == record["work"]["frozen_states_tokens"] == 0  # no labels

    def counted(*args):
        switch.on = True
        calibrate(*args)
        switch.on = False

    monkeypatch.setattr(lorchestra.runs.train, "calibrate", counted)
    train_run(config, tmp_path / "run")
    assert record["work"]["calibration_tokens"] == pytest.approx(tokens["members"], rel=0.01)


def test_what_is_disabled_is_not_counted(run_config, texts_csv, tmp_path, monkeypatch):
    config = run_config(texts_csv(), train={"calibration": "none"}, evaluate={"frozen": False})
    record = plan_run(config, tmp_path, seconds=0.1)
    assert record["time_s"]["calibration"] == record["time_s"]["frozen_states"] == 0
    assert record["work"]["calibration_tokens"] == record["work"]["frozen_states_tokens"] == 0
    config = run_config(texts_csv())
    times = plan_run(config, tmp_path, seconds=0.1)["time_s"]
    assert min(times["calibration"], times["frozen_states"]) > 0
    assert times["total"] == pytest.approx(times["training"] + times["evaluation"] + times["calibration"])
    monkeypatch.setattr(lorchestra.methods.frozen, "MAX_BYTES", 1000)  # then the evaluation leaves it out
    assert plan_run(config, tmp_path, seconds=0.1)["work"]["frozen_states_tokens"] == 0


def test_many_members_are_not_made(run_config, texts_csv, tmp_path):
    """Two thousand members are predicted from eight."""
    few = plan_run(run_config(texts_csv(), adapt={"members": 4}), tmp_path, seconds=0.1)
    many = plan_run(run_config(texts_csv(), adapt={"members": 2000}), tmp_path, seconds=0.1)
    for part in ("adapters", "training"):
        assert many["bytes"][part] == 500 * few["bytes"][part]
    assert many["work"]["tokens"] == 500 * few["work"]["tokens"]
    assert many["disk_bytes"]["run"] == 500 * few["disk_bytes"]["run"]


def test_what_does_not_fit_comes_with_remedies(run_config, texts_csv, tmp_path, free_memory):
    config = run_config(texts_csv(), adapt={"members": 2000}, train={"token_budget": 400})
    free_memory(50_000_000)
    record = plan_run(config, tmp_path, seconds=0.1)
    assert not record["bytes"]["fits"]
    remedies = {remedy["option"]: remedy for remedy in record["remedies"]}
    assert remedies["adapt.members"]["fits"]
    smaller = config.adapt.__class__(**{**vars(config.adapt), "members": int(remedies["adapt.members"]["value"])})
    again = plan_run(dataclasses.replace(config, adapt=smaller), tmp_path, seconds=0.1)
    saved = record["bytes"]["adapters"] + record["bytes"]["training"]
    left = again["bytes"]["adapters"] + again["bytes"]["training"]
    assert remedies["adapt.members"]["peak"] == pytest.approx(record["bytes"]["peak"] - saved + left, abs=10_000)


@pytest.fixture
def settled(run_config, texts_csv, on_log):
    """The budget that a configuration gets, and the messages."""

    def settle(sharing=1, **settings):
        config = run_config(texts_csv(), **settings)
        rows = read_rows(config.data, 0)
        train = rows.task.splits["train"]
        pipeline, _ = build_pipeline(config, rows.task.name, rows.task.labels, train)
        messages = []
        on_log(messages.append)
        encoded = [pipeline.encode(rows.task.splits[split]).rows for split in ("train", "val")]
        return settle_budget(config, pipeline, TrainingRows(*encoded), sharing), messages

    return settle


def test_the_default_budget_where_memory_is_ample_or_unknown(settled, free_memory):
    for free in (None, 10**10, 10**12):
        free_memory(free)
        assert settled() == (640, [])


def test_tokens_that_all_rows_share_come_on_top_of_the_default_budget(settled, free_memory):
    """Not under dropout, where rows share nothing."""
    free_memory(None)
    data = {"prompt": PromptConfig(template="one two " * 5 + "{question} Answer:")}
    with_prefix = settled(data=data)[0]
    assert with_prefix > 640 + 16
    assert settled(data=data, adapt={"dropout": 0.1}) == (640, [])
    longer = {"prompt": PromptConfig(template="one two " * 10 + "{question} Answer:")}
    assert 1.9 < (settled(data=longer)[0] - 640) / (with_prefix - 640) < 2.1


def test_less_memory_gives_a_smaller_budget_down_to_the_longest_row(settled, free_memory):
    budgets = []
    for free in (20_000_000, 8_000_000, 4_000_000, 2_000_000):
        free_memory(free)
        budget, messages = settled()
        budgets.append(budget)
        assert (budget == 640) == (messages == [])
    assert budgets == sorted(budgets, reverse=True)
    assert 100 < budgets[-1] < 640
    free_memory(1000)
    budget, messages = settled()
    assert budget < 64
    assert "training may need" in messages[0]
    assert f"token budget of {budget}, the longest row" in messages[0]
    free_memory(2_000_000)
    assert settled(train={"gradient_checkpointing": True})[0] > budgets[-1]


def test_processes_on_one_machine_share_its_free_memory(settled, free_memory):
    free_memory(8_000_000)
    alone, in_two = settled()[0], settled(sharing=2)[0]
    free_memory(4_000_000)
    assert in_two == settled()[0] < alone


def test_a_budget_that_is_given_is_kept(settled, free_memory):
    free_memory(1000)
    assert settled(train={"token_budget": 700}) == (700, [])


def test_training_and_plan_refuse_a_budget_below_the_longest_row_alike(run_config, texts_csv, tmp_path):
    config = run_config(texts_csv(), train={"token_budget": 3})
    messages = []
    for start in (lambda: plan_run(config, tmp_path), lambda: train_run(config, tmp_path / "run")):
        with pytest.raises(ConfigError, match=r"train\.token_budget: 3 is below the longest row") as caught:
            start()
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


def test_the_settled_budget_is_saved_and_kept_when_resumed(on_log, run_config, texts_csv, tmp_path, free_memory):
    config = run_config(texts_csv())
    free_memory(4_000_000)
    messages = []
    on_log(messages.append)
    run = train_run(config, tmp_path / "run").run
    budget = yaml.safe_load(run.config.read_text())["train"]["token_budget"]
    assert 100 < budget < 640
    assert any(f"token budget: {budget} instead of 640" in text for text in messages)
    run.ensemble.unlink()
    free_memory(10**12)
    train_run(config, tmp_path / "run", if_exists="resume")
    assert yaml.safe_load(run.config.read_text())["train"]["token_budget"] == budget
