"""`predict`: rows in any form, streamed answers, and answer files that survive an interruption."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import random

import pytest
from tiny_base import WORDS, save_tiny_base

from lorchestra.config.adapt import AdaptConfig, BaseConfig
from lorchestra.config.data import DataConfig
from lorchestra.config.run import RunConfig, TrainConfig
from lorchestra.runs import predict as answers
from lorchestra.runs.ensemble import load_run
from lorchestra.runs.train import train_run

CHUNK = 8
LONG = "very long film " * 200


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_tiny_base(tmp_path_factory.mktemp("predict") / "base")


def train(base, file, folder, **data):
    config = RunConfig(
        base=BaseConfig(name=str(base)),
        adapt=AdaptConfig(members=3, r=2),
        data=DataConfig(train=str(file), scoring="text", **data),
        train=TrainConfig(epochs=1, lr=0.05),
    )
    return train_run(config, folder / "run").run.root


@pytest.fixture(scope="module")
def texts_run(base, tmp_path_factory):
    """A run on texts with the labels no and yes."""
    folder = tmp_path_factory.mktemp("texts")
    rows = [f"the film {i} was {word},{label}" for i in range(25) for word, label in (("good", "yes"), ("bad", "no"))]
    (folder / "reviews.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    return train(base, folder / "reviews.csv", folder)


@pytest.fixture(scope="module")
def questions_run(base, tmp_path_factory):
    """A run on questions with their choices."""
    folder = tmp_path_factory.mktemp("questions")
    draw = random.Random(0)
    rows = [{"question": f"{i} is", "choices": draw.sample(WORDS, 3), "answer": draw.randrange(3)} for i in range(40)]
    (folder / "quiz.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return train(base, folder / "quiz.jsonl", folder)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(answers, "CHUNK_ROWS_CPU", CHUNK)


@pytest.fixture
def write(tmp_path):
    """Writes rows as JSON lines (strings verbatim); returns the path."""

    def build(rows, name="new.jsonl"):
        path = tmp_path / name
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        return path

    return build


def texts(number, seed=1):
    draw = random.Random(seed)
    return [{"text": " ".join(draw.choices(WORDS, k=draw.randint(3, 9))), "user": f"u{i % 3}"} for i in range(number)]


def read(out):
    return [json.loads(line) for line in out.splitlines()]


@pytest.mark.parametrize("rule", [None, "exact", "0.9"])
def test_answers_do_not_depend_on_the_chunk(texts_run, write, monkeypatch, rule):
    """Up to rounding, which depends on the other rows of a packed batch."""
    path = write([*texts(20), *[{"text": "a film"}] * 10, *texts(7, seed=2)])
    by_size = []
    for size in (1, CHUNK, 1000):
        monkeypatch.setattr(answers, "CHUNK_ROWS_CPU", size)
        by_size.append(list(load_run(texts_run).predict(path, 0.6, rule)))
    assert [row.row for row in by_size[0]] == list(range(1, 38))
    for rows in by_size[1:]:
        for one, other in zip(by_size[0], rows, strict=True):
            for name in ("id", "row", "choices", "error", "input"):
                assert getattr(one, name) == getattr(other, name)
            # rounding may change what an exit rule decides; then the rest is not comparable
            if one.members_used == other.members_used:
                assert one.probs == pytest.approx(other.probs, abs=1e-5)
                for mine, theirs in zip(one.member_probs, other.member_probs, strict=True):
                    assert mine == pytest.approx(theirs, abs=1e-5)


def test_rows_are_read_lazily(texts_run):
    taken = []

    def rows():
        for row in texts(3 * CHUNK):
            taken.append(row)
            yield row

    answers_iterator = load_run(texts_run).predict(rows())
    assert not taken
    next(answers_iterator)
    assert len(taken) == CHUNK
    assert len(list(answers_iterator)) == 3 * CHUNK - 1


def test_rows_in_memory(texts_run, questions_run):
    run = load_run(texts_run)
    first, second = run.predict(["a good film", "a bad film"])
    assert (first.id, first.input) == ("rows-1", {"text": "a good film"})
    assert run.labels[second.prediction_index] == second.prediction == second.prediction_text
    (row,) = run.predict([{"text": "a film", "label": "yes", "id": "x", "user": 3}])
    assert (row.id, row.label, row.label_index) == ("x", "yes", 1)
    assert row.input == {"text": "a film", "label": "yes", "user": 3}
    assert list(run.predict([])) == []
    with pytest.raises(ValueError, match=r"rows\[1\] is 3; pass a text or a dict"):
        list(run.predict(["a film", 3]))
    with pytest.raises(ValueError, match="questions with choices; pass dicts with both"):
        list(load_run(questions_run).predict(["a film"]))


FAULTS = {
    "no text": ({"text": ""}, "the text is empty"),
    "null": ({"text": None}, "the text is empty"),
    "another type": ({"text": ["a", "b"]}, "which is not a string"),
    "no column": ({"other": "x"}, "no column 'text'"),
    "no JSON": ('{"text": "a film', "invalid JSON at column"),
    "no object": ("[1]", "not a JSON object"),
    "too long": ({"text": LONG}, "tokens, over data.max_length 256"),
    "half a pair": ('{"text": "\\ud800"}', "lone surrogate"),
    "an id of another type": ({"text": "a film", "id": [1]}, "the id is"),
}


@pytest.mark.parametrize(("fault", "message"), FAULTS.values(), ids=FAULTS.keys())
def test_a_fault_is_recorded_in_the_rows_line(lorchestra, texts_run, write, fault, message):
    path = write([{"text": "a good film"}, fault, {"text": "a bad film"}])
    code, out, err = lorchestra("predict", texts_run, "--data", path)
    assert code == 0, err
    good, bad, last = read(out)
    assert (good["error"], last["error"]) == (None, None)
    assert (good["row"], bad["row"], last["row"]) == (1, 2, 3)
    assert good["prediction"] in ("no", "yes")
    assert message in bad["error"]
    assert f"{path}:2: " in bad["error"]
    assert good.keys() == bad.keys()
    assert {bad[name] for name in ("prediction", "prediction_index", "confidence", "abstain")} == {None}
    assert "warning: 1 of 3 rows could not be answered" in err
    code, out, err = lorchestra("predict", texts_run, "--data", path, "--on-error", "fail")
    assert (code, out) == (2, "")
    assert message in err


def test_faults_of_csv_rows_and_questions(lorchestra, texts_run, questions_run, write):
    path = write(["text,user", "a film,1", "a film, they say,2", "a play,3"], "new.csv")
    _, out, _ = lorchestra("predict", texts_run, "--data", path)
    rows = read(out)
    assert [row["error"] is None for row in rows] == [True, False, True]
    assert "3 cells, but the header has 2" in rows[1]["error"]
    good = {"question": "it is", "choices": ["good", "bad"], "id": 7}
    path = write([good, good | {"choices": ["good"]}, good | {"choices": "good"}, good | {"question": " "}, good])
    _, out, _ = lorchestra("predict", questions_run, "--data", path)
    rows = read(out)
    assert [row["error"] is None for row in rows] == [True, False, False, False, True]
    assert [row["id"] for row in rows] == ["7"] * 5
    assert rows[0]["input"] == {"question": "it is"}


@pytest.mark.parametrize("label", [-1, "?", "", None, "unheard of", 3.5, ["yes"], float("nan")])
def test_an_unknown_label_is_no_error(lorchestra, texts_run, write, label):
    code, out, err = lorchestra("predict", texts_run, "--data", write([{"text": "a film", "label": label}]))
    assert code == 0, err
    (row,) = read(out)
    assert (row["error"], row["label"], row["label_index"]) == (None, None, None)
    assert "label" in row["input"]


def test_a_known_label_is_kept(lorchestra, texts_run, write):
    _, out, _ = lorchestra("predict", texts_run, "--data", write([{"text": "a film", "label": "yes"}]))
    (row,) = read(out)
    assert (row["label"], row["label_index"]) == ("yes", 1)


def test_where_no_row_can_be_answered_the_exit_code_is_2(lorchestra, texts_run, write):
    code, out, err = lorchestra("predict", texts_run, "--data", write([{"text": ""}, {"text": LONG}]))
    assert code == 2
    assert len(read(out)) == 2
    assert "2 of 2 rows could not be answered" in err
    code, out, err = lorchestra("predict", texts_run, "--data", write([{"review": "a film"}] * 3))
    assert (code, out) == (2, "")
    assert "--data.fields.text" in err
    code, out, err = lorchestra("predict", texts_run, "--data", write([]))
    assert (code, out) == (2, "")
    assert "no rows" in err


def test_long_rows_can_be_dropped_or_truncated(lorchestra, texts_run, write):
    rows = [{"text": "a film"}, {"text": LONG}, {"text": ""}, {"text": LONG}, {"text": "a play"}]
    path = write(rows)
    _, out, err = lorchestra("predict", texts_run, "--data", path, "--too-long", "drop")
    assert [row["row"] for row in read(out)] == [1, 3, 5]
    assert "2 row(s) longer than 256 tokens left out" in err
    _, out, err = lorchestra("predict", texts_run, "--data", path, "--data.too-long", "truncate")
    assert [row["row"] for row in read(out) if row["error"] is None] == [1, 2, 4, 5]
    assert "2 row(s) longer than 256 tokens cut" in err
    _, out, err = lorchestra("predict", texts_run, "--data", write([{"text": LONG}] * 3), "--too-long", "drop")
    assert (out, "3 row(s) longer than 256 tokens left out" in err) == ("", True)


def test_columns_of_other_names(lorchestra, texts_run, write):
    path = write([{"review": "a film", "text": "not this", "nr": "r1"}])
    fields = ("--data.fields.text", "review", "--data.fields.id", "nr")
    code, out, err = lorchestra("predict", texts_run, "--data", path, *fields)
    assert code == 0, err
    (row,) = read(out)
    assert (row["id"], row["input"]) == ("r1", {"review": "a film", "text": "not this"})


def table(text, delimiter=","):
    return list(csv.DictReader(io.StringIO(text), delimiter=delimiter))


def test_a_table_of_answers(lorchestra, texts_run, write, tmp_path):
    rows = [
        {"text": "=1+1", "id": "@x", "user": -3, "prediction": "theirs"},
        {"text": "", "tags": ["a", None]},
        {"text": "a, b\n\"c\"", "user": "-3"},
    ]  # fmt: skip
    out = tmp_path / "answers.csv"
    code, _, err = lorchestra("predict", texts_run, "--data", write(rows), "--out", out, "--abstain-below", 0.99)
    assert code == 0, err
    first, second, third = table(out.read_text(encoding="utf-8"))
    names = "id row prediction confidence prob_no prob_yes entropy mutual_information disagreement calibrated abstain"
    last = ("decision", "prediction_set", "error")
    assert list(first) == [*names.split(), *last, "text", "user", "input.prediction", "tags"]
    assert (first["id"], first["text"], first["user"], first["input.prediction"]) == ("'@x", "'=1+1", "-3", "theirs")
    assert float(first["prob_no"]) + float(first["prob_yes"]) == pytest.approx(1, abs=1e-6)
    assert first["abstain"] == "true"
    assert (second["prediction"], second["prob_yes"], second["tags"]) == ("", "", '["a", null]')
    assert "the text is empty" in second["error"]
    assert (third["text"], third["user"]) == ('a, b\n"c"', "-3")


def test_tables_of_questions_with_tabs_and_compressed(lorchestra, questions_run, write, tmp_path):
    rows = [{"question": f"{i} is", "choices": ["good", "bad", "fine"][: 2 + i % 2]} for i in range(2 * CHUNK)]
    out = tmp_path / "answers.tsv.gz"
    code, _, err = lorchestra("predict", questions_run, "--data", write(rows), "--out", out, "--early-exit", "exact")
    assert code == 0, err
    lines_read = table(gzip.decompress(out.read_bytes()).decode(), "\t")
    assert [json.loads(row["choices"]) for row in lines_read] == [row["choices"] for row in rows]
    assert all(max(json.loads(row["probs"])) == float(row["confidence"]) for row in lines_read)
    assert {row["members_used"] for row in lines_read} <= {"2", "3"}


def test_columns_missing_in_the_first_rows_are_reported(lorchestra, texts_run, write, tmp_path):
    rows = [*texts(CHUNK), {"text": "a film", "late": 1}]
    _, _, err = lorchestra("predict", texts_run, "--data", write(rows), "--out", tmp_path / "answers.csv")
    assert "1 row(s) have columns that the first rows lack" in err


def test_other_formats_are_refused_before_anything_is_read(lorchestra, texts_run, tmp_path):
    for name in ("answers.parquet", "answers.xlsx"):
        code, _, err = lorchestra("predict", texts_run, "--data", "none.csv", "--out", tmp_path / name)
        assert (code, "cannot be written; give a .jsonl, .csv or .tsv file" in err) == (2, True)


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.csv.gz"])
@pytest.mark.parametrize("rule", [(), ("--early-exit", "exact")], ids=["all", "early"])
def test_an_interrupted_command_resumes_to_the_same_bytes(
    lorchestra, texts_run, write, tmp_path, interrupt, name, rule
):
    path = write([*texts(2 * CHUNK + 3), {"text": ""}, {"text": LONG}, *texts(2 * CHUNK, seed=5)])
    command = ("predict", texts_run, "--data", path, *rule, "--out")
    code, _, whole = lorchestra(*command, tmp_path / f"whole-{name}")
    assert code == 0, whole
    out = tmp_path / name
    for chunks in (2, 1):
        interrupt(chunks)
        code, stdout, err = lorchestra(*command, out, "--if-exists", "resume")
        assert (code, stdout, out.exists()) == (130, "", False)
        assert f"resume with: lorchestra predict {texts_run} --data {path}" in " ".join(err.split())
        assert "--resume" in err
    with (tmp_path / f"{name}.partial").open("ab") as file:
        file.write(b"half a line that a kill cut off")
    interrupt(-1)
    code, _, err = lorchestra(*command, out)
    assert code == 2
    assert "has the rows of an interrupted command" in err
    code, _, err = lorchestra(*command, out, "--if-exists", "resume")
    assert code == 0, err
    assert f"continuing after {3 * CHUNK} rows" in err
    assert out.read_bytes() == (tmp_path / f"whole-{name}").read_bytes()
    assert err.replace(f"continuing after {3 * CHUNK} rows\n", "") == whole.replace(f"whole-{name}", name)
    assert not list(tmp_path.glob("*.partial*"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda record: record.update(num_rows=10**6), "its first 1000000 rows are not those"),
        (lambda record: record.update(state={}), "a.jsonl.partial.json: state.rows_digest is missing"),
        (lambda record: record["state"]["counts"].pop("rows"), "a.jsonl.partial.json: state.counts.rows is missing"),
        (lambda record: record["state"]["counts"].update(failed="x"), "state.counts.failed is 'x', not"),
        (lambda record: record["state"].update(columns=3), "state.columns is 3, not"),
    ],
)
def test_the_saved_state_of_an_interrupted_command_is_checked(
    lorchestra, texts_run, write, tmp_path, interrupt, change, message
):
    command = ("predict", texts_run, "--data", write(texts(2 * CHUNK)), "--out", tmp_path / "a.jsonl")
    interrupt(1)
    assert lorchestra(*command)[0] == 130
    path = tmp_path / "a.jsonl.partial.json"
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))
    interrupt(-1)
    code, _, err = lorchestra(*command, "--if-exists", "resume")
    assert code == 2
    assert message in " ".join(err.split())


def test_changed_rows_or_options_are_not_resumed(lorchestra, texts_run, questions_run, write, tmp_path, interrupt):
    rows = texts(3 * CHUNK)
    path, out = write(rows), tmp_path / "a.jsonl"
    interrupt(1)
    command = ("predict", texts_run, "--data", path, "--out", out)
    assert lorchestra(*command)[0] == 130
    interrupt(-1)
    resume = ("--if-exists", "resume")
    code, _, err = lorchestra(*command, *resume, "--abstain-below", 0.7)
    assert (code, "was started with --abstain-below None, not 0.7" in err) == (2, True)
    code, _, err = lorchestra("predict", questions_run, "--data", path, "--out", out, *resume)
    assert (code, "was started with run" in err) == (2, True)
    write([{"text": "another film"}, *rows[1:]])
    code, _, err = lorchestra(*command, *resume)
    assert (code, f"its first {CHUNK} rows are not those" in err) == (2, True)
    write(rows[: CHUNK - 1])
    assert lorchestra(*command, *resume)[0] == 2
    # rows appended since are fine
    write([*rows, {"text": "one more film"}])
    assert lorchestra(*command, *resume)[0] == 0
    assert len(out.read_text().splitlines()) == 3 * CHUNK + 1


def test_an_existing_output_file(lorchestra, texts_run, write, tmp_path, interrupt):
    path, out = write(texts(2 * CHUNK)), tmp_path / "a.jsonl"
    out.write_text("before\n")
    command = ("predict", texts_run, "--data", path, "--out", out)
    code, _, err = lorchestra(*command, "--if-exists", "fail")
    assert (code, "exists already" in err) == (2, True)
    interrupt(1)
    assert lorchestra(*command)[0] == 130
    assert out.read_text() == "before\n"
    assert lorchestra(*command, "--if-exists", "fail")[0] == 2
    interrupt(-1)
    assert lorchestra(*command, "--if-exists", "overwrite")[0] == 0
    assert len(out.read_text().splitlines()) == 2 * CHUNK
    assert lorchestra(*command)[0] == 0  # a complete file is replaced
    interrupt(0)  # without rows no files are left behind
    assert lorchestra(*command)[0] == 130
    assert not list(tmp_path.glob("*.partial*"))
    code, _, err = lorchestra("predict", texts_run, "--data", path, "--if-exists", "resume")
    assert (code, "give --out FILE" in err) == (2, True)


def test_a_device_is_written_directly(lorchestra, texts_run, write):
    code, _, err = lorchestra("predict", texts_run, "--data", write(texts(3)), "--out", os.devnull)
    assert code == 0, err
    assert not os.path.isfile(os.devnull)
