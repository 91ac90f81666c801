"""`lorchestra distill`: a run of one member, its settings, and what is refused."""

from __future__ import annotations

import json

import pytest
from tiny_base import save_tiny_base

from lorchestra.config.adapt import AdaptConfig, BaseConfig
from lorchestra.config.data import DataConfig
from lorchestra.config.run import RunConfig, TrainConfig
from lorchestra.runs import distill as job
from lorchestra.runs.train import train_run
from lorchestra.store.run import Run
from lorchestra.training.callbacks import Interrupted


def rows(first, number, labelled=True):
    lines = ["text,label" if labelled else "text"]
    for i in range(first, first + number):
        lines.append(
            f"the film {i} was {'good' if i % 2 else 'bad'}" + (f",{'yes' if i % 2 else 'no'}" if labelled else "")
        )
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distill")
    (folder / "train.csv").write_text(rows(0, 100))
    (folder / "more.csv").write_text(rows(1000, 40, labelled=False))
    return folder


@pytest.fixture(scope="module")
def trained(folder):
    config = RunConfig(
        base=BaseConfig(name=str(save_tiny_base(folder / "base"))),
        adapt=AdaptConfig(members=3, r=2),
        data=DataConfig(train=str(folder / "train.csv"), scoring="text"),
        train=TrainConfig(epochs=2, lr=0.03, batch_size=16),
    )
    return train_run(config, folder / "run").run.root


def test_a_run_of_one_member_with_settings_of_the_ensemble(lorchestra, trained, folder, tmp_path):
    """Options override single settings; RUN may come after them."""
    out = tmp_path / "one"
    code, stdout, stderr = lorchestra(
        "distill", "--data", folder / "more.csv", "--out", out, trained, "--adapt.r", "3",
        "--train.learning-rate", "0.02", "--distill.direction", "reverse", "--skip-evaluation",
    )  # fmt: skip
    assert code == 0, stderr
    assert stdout == f"{out}\n"
    assert f"trained distilled run: {out}" in stderr
    assert "rank correlation of predicted and true mutual information" in stderr
    config, record = Run(out).read_config(), Run(out).read_distillation()
    assert (config.adapt.members, config.adapt.r, config.train.lr, config.train.batch_size) == (1, 3, 0.02, 16)
    assert record.distill.direction == "reverse"
    assert record.num_train == Run(trained).read_splits()["train"]["num_examples"]
    code, stdout, _ = lorchestra("predict", out, "--data", folder / "more.csv")
    line = json.loads(stdout.splitlines()[0])
    assert line["mutual_information"] > 0
    assert line["information_predicted"]
    code, _, stderr = lorchestra("export", out, "--out", tmp_path / "adapters")
    assert code == 0, stderr
    assert "Distilled: one LoRA, taught by the calibrated mixture of 3 members" in (
        tmp_path / "adapters" / "README.md"
    ).read_text(encoding="utf-8")


def test_typed_settings_are_compared_when_it_is_resumed(lorchestra, trained, folder, tmp_path, monkeypatch):
    """Those of the first command need not be repeated; those that are given must be the same, whatever their value."""
    out = tmp_path / "one"
    command = ("distill", trained, "--out", out, "--skip-evaluation")

    def stop(*args, **kwargs):
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(job, "train_and_finish", stop)
        code, _, stderr = lorchestra(*command, "--adapt.r", "3", "--distill.answers-weight", "0.5")
    assert code == 130
    assert f"stopped; resume with: lorchestra distill {trained} --out {out} --if-exists resume" in stderr
    for option, value, message in (
        ("--adapt.r", "2", "adapt.r: the run in"),
        ("--distill.answers-weight", "0.0", "distill.answers_weight: the run in"),
    ):
        code, _, stderr = lorchestra(*command, "--if-exists", "resume", option, value)
        assert code == 2
        assert message in stderr
    code, _, stderr = lorchestra(*command, "--if-exists", "resume")
    assert code == 0, stderr
    assert Run(out).read_config().adapt.r == 3
    assert Run(out).read_distillation().distill.answers_weight == 0.5


def test_what_is_refused(lorchestra, trained, folder, tmp_path):
    for arguments, message in (
        (
            (folder / "more.csv",),
            "is a data file; the first argument is a run directory: lorchestra distill RUN --data",
        ),
        ((tmp_path / "none",), "no such run directory"),
        ((trained, "--adapt.members", "2"), "adapt.members: 2, but an ensemble is distilled into one member; give 1"),
        ((trained, "--train.epochs", "auto"), "train.epochs: auto is not searched here"),
    ):
        code, _, stderr = lorchestra("distill", *arguments, "--out", tmp_path / "one")
        assert code == 2
        assert message in stderr
    assert not (tmp_path / "one").exists()
