"""`lorchestra calibrate`: tables and JSON, exit codes, and what predict then writes."""

from __future__ import annotations

import csv
import io
import json
import shutil

import pytest
from tiny_base import save_tiny_base

from lorchestra.config.adapt import AdaptConfig, BaseConfig
from lorchestra.config.data import DataConfig
from lorchestra.config.run import RunConfig, TrainConfig
from lorchestra.runs.train import train_run


def rows(first, number):
    """Texts that any model answers: the label is a word of the text. Every tenth label is wrong."""
    lines = ["text,label"]
    for i in range(first, first + number):
        good = i % 2 == 0
        lines.append(f"the film {i} was {'good' if good else 'bad'},{'yes' if good != (i % 10 == 0) else 'no'}")
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("calibrate")
    (folder / "train.csv").write_text(rows(0, 300))
    (folder / "new.csv").write_text(rows(1000, 200))
    (folder / "later.csv").write_text(rows(2000, 30))
    return folder


@pytest.fixture(scope="module")
def trained(folder):
    config = RunConfig(
        base=BaseConfig(name=str(save_tiny_base(folder / "base"))),
        adapt=AdaptConfig(members=3, r=2),
        data=DataConfig(train=str(folder / "train.csv"), scoring="text"),
        train=TrainConfig(epochs=3, lr=0.03),
    )
    return train_run(config, folder / "run").run.root


@pytest.fixture(scope="module")
def larger(trained, folder):
    """A second run, with more members and other training rows."""
    (folder / "more.csv").write_text(rows(5000, 200))
    config = RunConfig(
        base=BaseConfig(name=str(folder / "base")),
        adapt=AdaptConfig(members=4, r=2),
        data=DataConfig(train=str(folder / "more.csv"), scoring="text"),
        train=TrainConfig(epochs=3, lr=0.03),
    )
    return train_run(config, folder / "larger").run.root


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "run")


def test_from_the_certificate_to_the_answers(lorchestra, run, folder, tmp_path):
    code, out, err = lorchestra(
        "calibrate", run, "--data", folder / "new.csv", "--target-error", 0.3, "--sets", 0.8, "--score", "max_prob"
    )
    assert code == 0, out + err
    text = " ".join(out.split())
    assert "Which score ranks best" in text
    assert "At most 30 % of the automated rows are wrong, with 95 % confidence over the draw of the 200" in text
    assert "Prediction sets (LAC) have the right answer in at least 80 % of rows" in text

    code, out, err = lorchestra("predict", run, "--data", folder / "later.csv")
    assert code == 0, err
    lines = [json.loads(line) for line in out.splitlines()]
    automated = sum(line["decision"] == "automate" for line in lines)
    assert {line["decision"] for line in lines} <= {"automate", "abstain"}
    assert f"decisions: {automated} of 30 answers automated" in err
    assert "prediction sets of 30 rows: " in err
    assert all(set(line["prediction_set"]) <= {"no", "yes"} for line in lines)

    table = tmp_path / "answers.csv"
    assert lorchestra("predict", run, "--data", folder / "later.csv", "--out", table)[0] == 0
    cells = list(csv.DictReader(io.StringIO(table.read_text())))
    assert [row["decision"] for row in cells] == [line["decision"] for line in lines]
    assert [json.loads(row["prediction_set"]) for row in cells] == [line["prediction_set"] for line in lines]

    for options in (["--no-decisions"], ["--raw"], ["--no-decisions", "--abstain-below", 0.9, "--early-exit", "exact"]):
        code, out, err = lorchestra("predict", run, "--data", folder / "later.csv", *options)
        assert code == 0, err
        first = json.loads(out.splitlines()[0])
        assert (first["decision"], first["prediction_set"]) == (None, None)
        assert "decisions:" not in err
    code, _, err = lorchestra("predict", run, "--data", folder / "later.csv", "--abstain-below", 0.9)
    assert code == 2
    assert "--abstain-below 0.9: the run has a certified threshold" in err
    assert "--no-decisions" in err


def test_json(lorchestra, run, folder):
    code, out, _ = lorchestra("calibrate", run, "--data", folder / "new.csv", "--target-error", 0.3, "--json")
    result = json.loads(out)
    assert code == 0
    assert result["guarantee"].startswith("At most 30 % of the automated rows")
    (certificate,) = result["certificates"]
    assert (certificate["target_error"], certificate["confidence"], certificate["num_rows"]) == (0.3, 0.95, 200)
    saved = json.loads((run / "calibration.json").read_text())["questions"][""]["decisions"]
    assert {name: saved[name] for name in result} == result
    assert len(saved["row_digests"]) == 200


def test_a_refusal_has_exit_code_1(lorchestra, run, folder):
    code, out, _ = lorchestra("calibrate", run, "--data", folder / "new.csv", "--target-error", 0.02)
    assert code == 1
    assert "No threshold: " in out
    code, out, _ = lorchestra("predict", run, "--data", folder / "later.csv")
    assert code == 0
    assert json.loads(out.splitlines()[0])["decision"] is None


def test_a_cascade_from_the_certificate_to_the_answers(lorchestra, run, folder, tmp_path):
    arguments = ["calibrate", run, "--data", folder / "new.csv", "--target-error", 0.3, "--cascade", 1]
    code, out, err = lorchestra(*arguments)
    assert code == 0, out + err
    text = " ".join(out.split())
    assert "At most 30 % of the automated rows are wrong, whichever stage answers them, with 95 % confidence" in text
    for words in ("Certified cascade", "first member", "all 3 members", "a person", "Member passes per row: "):
        assert words in text
    result = json.loads(lorchestra(*arguments, "--json")[1])
    assert (result["cascade"]["num_first"], result["cascade"]["num_members"]) == (1, 3)

    code, out, err = lorchestra("predict", run, "--data", folder / "later.csv")
    assert code == 0, err
    lines = [json.loads(line) for line in out.splitlines()]
    assert {line["members_used"] for line in lines} <= {1, 3}
    assert {line["decision"] for line in lines} <= {"automate", "abstain"}
    mean = sum(line["members_used"] for line in lines) / 30
    assert f"cascade: {mean:.2f} of 3 members per row" in err
    table = tmp_path / "answers.csv"
    assert lorchestra("predict", run, "--data", folder / "later.csv", "--out", table)[0] == 0
    cells = list(csv.DictReader(io.StringIO(table.read_text())))
    assert [int(row["members_used"]) for row in cells] == [line["members_used"] for line in lines]

    code, out, err = lorchestra("predict", run, "--data", folder / "later.csv", "--no-decisions")
    assert "members_used" not in json.loads(out.splitlines()[0])
    assert "cascade" not in err
    code, _, err = lorchestra(*arguments[:-1], 3)
    assert code == 2
    assert "cascade: 3 of the run's 3 members cannot answer first; give 1 to 2" in err


def test_a_cascade_of_two_runs(lorchestra, run, larger, folder, tmp_path):
    predict = ["predict", run, larger, "--data", folder / "later.csv"]
    code, _, err = lorchestra(*predict, "--cascade")
    assert code == 2
    assert "has no cascade with a second run; certify one first: lorchestra calibrate" in err
    arguments = ["calibrate", run, larger, "--data", folder / "new.csv", "--target-error", 0.3]
    code, out, err = lorchestra(*arguments)
    assert code == 0, out + err
    text = " ".join(out.split())
    assert "At most 30 % of the automated rows are wrong, whichever run answers them, with 95 % confidence" in text
    for words in ("Certified cascade", "first run", "second run", "a person", "with the second run alone"):
        assert words in text
    assert json.loads(lorchestra(*arguments, "--json")[1])["rows"]["look"] == 2

    code, out, err = lorchestra(*predict, "--cascade")
    assert code == 0, err
    lines = [json.loads(line) for line in out.splitlines()]
    assert {line["members_used"] for line in lines} <= {3, 7}
    assert {line["decision"] for line in lines} <= {"automate", "abstain"}
    automated = sum(line["decision"] == "automate" for line in lines)
    assert f"decisions: {automated} of 30 answers automated" in err
    assert f"cascade: {sum(line['members_used'] for line in lines) / 30:.2f} of 7 members per row" in err
    table = tmp_path / "answers.csv"
    assert lorchestra(*predict, "--cascade", "--out", table)[0] == 0
    cells = list(csv.DictReader(io.StringIO(table.read_text())))
    assert [int(row["members_used"]) for row in cells] == [line["members_used"] for line in lines]
    code, out, _ = lorchestra("predict", run, "--data", folder / "later.csv")  # the run alone has no threshold
    assert json.loads(out.splitlines()[0])["decision"] is None


@pytest.mark.parametrize(
    ("command", "options", "message"),
    [
        ("calibrate", ["--per-class"], "--per-class: not available with two runs"),
        ("calibrate", ["--cascade", 1], "--cascade: not available with two runs"),
        ("predict", [], "is a second run; to answer by the cascade of both: --cascade"),
        ("predict", ["--cascade", "--raw"], "--raw: a cascade of two runs is certified without it"),
        ("predict", ["--cascade", "--early-exit", "exact"], "--early-exit: a cascade of two runs"),
        ("predict", ["--cascade", "--abstain-below", 0.5], "--abstain-below: a cascade of two runs"),
    ],
)
def test_options_that_two_runs_do_not_have(lorchestra, run, larger, folder, command, options, message):
    code, _, err = lorchestra(command, run, larger, "--data", folder / "new.csv", *options)
    assert code == 2
    assert message in err


def test_two_runs_need_both_and_rows(lorchestra, run, larger, folder):
    for arguments, message in (
        (["calibrate", run, larger], "give labelled rows that are new to both with --data FILE"),
        (["calibrate", run, folder / "new.csv"], "new.csv: is a data file; give it as --data"),
        (["predict", run, "--cascade", "--data", folder / "new.csv"], "--cascade: give the second run too"),
        (["calibrate", run, run, "--data", folder / "new.csv"], "a cascade needs two runs"),
        (["calibrate", run, larger, "--data", folder / "more.csv"], "rows are not new to"),
    ):
        code, _, err = lorchestra(*arguments)
        assert code == 2, err
        assert message in err


def test_costs_from_a_file(lorchestra, run, folder, tmp_path):
    costs = tmp_path / "costs.yaml"
    costs.write_text("ask: 1\ncosts:\n  yes: {no: 20}\n  no: {yes: 4}\n")
    arguments = ["calibrate", run, "--data", folder / "new.csv", "--target-error", 0.3, "--costs", costs]
    code, out, err = lorchestra(*arguments)
    assert code == 0, err
    text = " ".join(out.split())
    assert "Cost per 1,000 rows" in text
    assert "Most expensive: to answer 'yes' where 'no' is right (20)." in text
    assert "ask always 1,000" in text
    costs.write_text("ask: 1\ncosts:\n  yes: {no: 20}\n")
    code, _, err = lorchestra(*arguments)
    assert code == 2
    assert "costs.no.yes is missing" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target-error", 0.1, "--max-errors-per-1000", 5], "give one"),
        (["--target-error", 10], "for 10 % give 0.1"),
        (["--confidence", 0], "confidence: 0.0 is not a number between 0 and 1"),
        (["--costs", "none.yaml"], "none.yaml: cannot be read"),
    ],
)
def test_bad_options(lorchestra, run, folder, arguments, message):
    code, _, err = lorchestra("calibrate", run, "--data", folder / "new.csv", *arguments)
    assert code == 2
    assert message in err


def test_bad_rows(lorchestra, run, folder):
    code, _, err = lorchestra("calibrate", run)
    assert code == 2
    assert "the test rows: 30 rows can never certify an error of at most 0.05" in err
    code, _, err = lorchestra("calibrate", run, "--data", folder / "train.csv")
    assert code == 2
    assert "rows are not new to the run; the first, " in err
    assert "train.csv:2, is a " in err
    code, _, err = lorchestra("calibrate", folder / "new.csv")
    assert code == 2
    assert "lorchestra calibrate RUN --data" in err
