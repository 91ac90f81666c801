"""`predict --data -`: rows are answered as they come, and none is lost whatever happens to either end of the pipe."""

from __future__ import annotations

import gzip
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress

import pytest
from tiny_base import WORDS, save_tiny_base

from lorchestra.config.adapt import AdaptConfig, BaseConfig
from lorchestra.config.data import DataConfig
from lorchestra.config.run import RunConfig, TrainConfig
from lorchestra.runs import predict as answers
from lorchestra.runs.answer_options import AnswerOptions
from lorchestra.runs.ensemble import input_rows_of, load_run
from lorchestra.runs.predict import answer_chunks
from lorchestra.runs.train import train_run

posix = pytest.mark.skipif(os.name == "nt", reason="signals and pipes of POSIX")


def train(folder, dtype):
    rows = [f"the film {i} was {word},{label}" for i in range(25) for word, label in (("good", "yes"), ("bad", "no"))]
    (folder / "reviews.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    config = RunConfig(
        base=BaseConfig(name=str(save_tiny_base(folder / "base")), dtype=dtype),
        adapt=AdaptConfig(members=2, r=2),
        data=DataConfig(train=str(folder / "reviews.csv"), scoring="text"),
        train=TrainConfig(epochs=1, lr=0.05),
    )
    return train_run(config, folder / "run").run.root


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on texts with the labels no and yes."""
    return train(tmp_path_factory.mktemp("pipes"), "float32")


def texts(number, seed=1):
    draw = random.Random(seed)
    return [{"text": " ".join(draw.choices(WORDS, k=draw.randint(3, 9)))} for _ in range(number)]


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def read(out):
    return [json.loads(line) for line in out.splitlines()]


@pytest.fixture
def process(run):
    """Starts the command as a subprocess that reads rows from a pipe."""
    started = []

    def start(*options, stdout=subprocess.PIPE, **environment):
        command = [sys.executable, "-m", "lorchestra", "predict", str(run), "--data", "-", *map(str, options)]
        streams = {"stdin": subprocess.PIPE, "stdout": stdout, "stderr": subprocess.PIPE}
        # tests that a shell started in the background ignore SIGINT, and would pass that on
        unignore = None if os.name == "nt" else lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)
        started.append(subprocess.Popen(command, **streams, env=os.environ | environment, preexec_fn=unignore))
        return started[-1]

    yield start
    for one in started:
        one.kill()
        for stream in (one.stdin, one.stdout, one.stderr):
            if stream is not None:
                with suppress(BrokenPipeError):
                    stream.close()
        one.wait()


def send(process, data):
    process.stdin.write(data)
    process.stdin.flush()


def next_line(process):
    """The next line of its stdout, which has five minutes to come."""
    found = []
    thread = threading.Thread(target=lambda: found.append(process.stdout.readline()), daemon=True)
    thread.start()
    thread.join(300)
    assert found, "no line has come"
    return found[0]


@pytest.fixture
def piped(lorchestra, run, monkeypatch):
    """Runs the command in this process with bytes on a pipe as its standard input."""

    def start(data, *options):
        reading, writing = os.pipe()
        threading.Thread(target=fill, args=(writing, data)).start()
        with open(reading) as pipe:
            monkeypatch.setattr(sys, "stdin", pipe)
            return lorchestra("predict", run, "--data", "-", *options)

    def fill(writing, data):
        with open(writing, "wb") as pipe, suppress(BrokenPipeError):
            pipe.write(data)

    return start


HOSTILE = {"text": "a film \u2603\x1b[2J\u009b31m\u202e", "id": "\u00e9\u202e"}


def test_each_row_is_answered_before_the_next_one_is_sent(process):
    """Also a bad one; half a row is none. Lines are UTF-8 in any locale."""
    running = process(PYTHONIOENCODING="cp1252:strict")
    send(running, lines([HOSTILE]))
    first = next_line(running).decode("utf-8")
    assert not set("\x1b\u009b\u202e") & set(first)
    assert "\u00e9" in first
    assert json.loads(first)["id"] == HOSTILE["id"]
    assert json.loads(first)["input"]["text"] == HOSTILE["text"]
    send(running, b'{"text": "a film\n')
    assert "standard input:2: invalid JSON" in json.loads(next_line(running))["error"]
    send(running, b'{"text": "a go')
    send(running, b'od film"}\n')
    third = json.loads(next_line(running))
    assert (third["row"], third["error"], third["input"]) == (3, None, {"text": "a good film"})
    running.stdin.close()
    assert running.stdout.read() == b""
    assert running.wait(300) == 0


@posix
def test_a_pipe_that_does_not_block_is_waited_for(process, run):
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    command = [sys.executable, "-m", "lorchestra", "predict", str(run), "--data", "-"]
    streams = {"stdin": reading, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with open(reading), open(writing, "wb") as pipe, subprocess.Popen(command, **streams) as running:
        for row in texts(2):
            pipe.write(lines([row]))
            pipe.flush()
            assert json.loads(next_line(running))["input"] == row
        pipe.close()
        assert running.wait(300) == 0


@posix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_a_stopped_command_resumes(process, piped, tmp_path, number):
    """It is stopped while it waits for rows; in the end every row is in the file once."""
    rows = texts(40)
    out = tmp_path / "a.jsonl"
    running = process("--out", out)
    send(running, lines(rows[:30]))
    record = tmp_path / "a.jsonl.partial.json"
    while not record.exists() or json.loads(record.read_text())["num_rows"] < 30:
        assert running.poll() is None
        time.sleep(0.02)
    running.send_signal(number)
    assert running.wait(300) == 130
    err = running.stderr.read().decode()
    assert "30 rows are in" in err
    assert "a.jsonl --resume\ninterrupted\n" in err
    code, _, err = piped(lines(rows), "--out", out, "--resume")
    assert code == 0, err
    assert "continuing after 30 rows" in err
    assert [row["input"] for row in read(out.read_text())] == rows


@posix
def test_a_reader_that_leaves_ends_the_command_quietly(process):
    running = process()
    send(running, lines(texts(1)))
    next_line(running)
    running.stdout.close()
    with suppress(BrokenPipeError):
        while running.poll() is None:
            send(running, lines(texts(50)))
    assert running.wait(300) == 0
    assert b"rror" not in running.stderr.read()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full on this system")
def test_a_full_device(process, lorchestra, run, tmp_path):
    with open("/dev/full", "wb") as full:
        running = process(stdout=full)
        running.stdin.write(lines(texts(3)))
        running.stdin.close()
    assert running.wait(300) == 2
    err = running.stderr.read()
    assert err.endswith(b"error: stdout cannot be written: No space left on device; send the output elsewhere\n")
    (tmp_path / "new.jsonl").write_bytes(lines(texts(3)))
    code, _, err = lorchestra("predict", run, "--data", tmp_path / "new.jsonl", "--out", "/dev/full")
    assert (code, "/dev/full: the disk is full" in err) == (2, True)


def test_marks_line_ends_and_bad_rows(piped):
    """A byte order mark, CRLF, no line end at the end, and rows of all kinds in between."""
    data = b'\xef\xbb\xbf{"text": "a"}\r\n\r\n{bad\r\n{"other": 1}\r\n[1]\n{"text": "\xff"}\n{"text": "b"}'
    code, out, err = piped(data)
    assert code == 0, err
    rows = read(out)
    faults = [row["error"] for row in rows]
    assert [fault is None for fault in faults] == [True, False, False, False, False, True]
    for fault, start in zip(
        faults[1:5],
        ("3: invalid JSON", "4: no column 'text'", "5: not a JSON object", "6: not UTF-8 (byte 0xff)"),
        strict=True,
    ):
        assert fault.startswith(f"standard input:{start}")
    assert (rows[0]["input"], rows[5]["input"]) == ({"text": "a"}, {"text": "b"})
    code, out, err = piped(data, "--on-error", "fail")
    assert (code, out) == (2, "")
    assert "error: standard input:3: invalid JSON" in err


def test_a_line_of_many_megabytes(piped):
    """It is longer than the pipe and every buffer, and cannot be answered; its neighbours are."""
    long = {"text": "good film " * 800_000}
    code, out, err = piped(lines([{"text": "a film"}, long, {"text": "a play"}]))
    assert code == 0, err
    first, second, third = read(out)
    assert (first["error"], third["error"], third["row"]) == (None, None, 3)
    assert "standard input:2: " in second["error"]
    assert second["input"] == long


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "standard input: has no rows"),
        (b"\n\n", "standard input: has no rows"),
        (bytes(range(128, 256)) * 50, "standard input:1: not UTF-8"),
        (lines([{"review": "a film"}]), "standard input:1: neither row form fits"),
    ],
    ids=["empty", "blank", "binary", "other columns"],
)
def test_input_without_a_row_to_answer_is_one_error(piped, data, message):
    code, out, err = piped(data)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("error: ") == 1


def test_a_compressed_pipe(piped):
    """Of a damaged one, the rows before the damage are answered."""
    data = gzip.compress(lines(texts(9)))
    code, out, err = piped(data)
    assert code == 0, err
    assert [row["input"] for row in read(out)] == texts(9)
    code, out, err = piped(data[:-8])  # without the checksum
    assert code == 2
    assert "error: standard input: incomplete or damaged gzip file" in err
    assert [row["input"] for row in read(out)] == texts(9)


def test_a_program_that_failed_can_send_its_rows_again(piped, tmp_path):
    """Its end looks like any other. Rows that are in the complete file are not answered again, and nothing changes."""
    rows, out = texts(20), tmp_path / "a.jsonl"
    assert piped(lines(rows[:12]), "--out", out)[0] == 0
    before = out.read_bytes()
    for _ in range(2):
        code, _, err = piped(lines(rows[:12]), "--out", out, "--resume")
        assert code == 0, err
        assert "continuing after 12 rows" in err
        assert out.read_bytes() == before
    assert piped(lines(rows), "--out", out, "--resume")[0] == 0
    assert out.read_bytes().startswith(before)
    assert [row["input"] for row in read(out.read_text())] == rows
    assert [row["row"] for row in read(out.read_text())] == list(range(1, 21))
    assert not list(tmp_path.glob("*.partial*"))


def test_other_rows_are_not_resumed(piped, tmp_path):
    rows, out = texts(12), tmp_path / "a.jsonl"
    assert piped(lines(rows), "--out", out)[0] == 0
    before = out.read_bytes()
    for other in ([*rows[:11], {"text": "another film"}], rows[:5]):
        code, _, err = piped(lines(other), "--out", out, "--resume")
        assert code == 2
        assert f"standard input: its first 12 rows are not those of {out}, answered before" in err
        assert "resume with" not in err
    code, _, err = piped(lines(rows), "--out", out, "--resume", "--top", "1")
    assert (code, "was started with --top None, not 1" in err) == (2, True)
    assert out.read_bytes() == before


def test_options_that_contradict_resume(piped, tmp_path):
    code, _, err = piped(lines(texts(3)), "--resume")
    assert (code, "--resume: lines on stdout cannot be resumed; give --out FILE" in err) == (2, True)
    code, _, err = piped(lines(texts(3)), "--resume", "--if-exists", "overwrite", "--out", tmp_path / "a.jsonl")
    assert (code, "--resume: contradicts --if-exists overwrite" in err) == (2, True)


def test_a_redirected_file_is_answered_like_the_file(lorchestra, run, tmp_path, monkeypatch):
    """In full chunks, so the bytes are the same; only the rows' names differ, which the file's name is part of."""
    monkeypatch.setattr(answers, "CHUNK_ROWS_CPU", 8)
    rows = [{"id": i} | row for i, row in enumerate(texts(30))]
    path = tmp_path / "new.jsonl"
    path.write_bytes(lines(rows))
    _, expected, _ = lorchestra("predict", run, "--data", path)
    with path.open() as file:
        monkeypatch.setattr(sys, "stdin", file)
        code, out, err = lorchestra("predict", run, "--data", "-")
    assert code == 0, err
    assert out == expected


def test_in_float64_answers_do_not_depend_on_the_chunks(tmp_path):
    """However a stream is cut, also where some chunks share first tokens and others do not."""
    trained = load_run(train(tmp_path, "float64"))
    path = tmp_path / "new.jsonl"
    path.write_bytes(lines([*texts(9), *[{"text": "the film was good"}] * 4, *texts(7, seed=2)]))
    rows = list(input_rows_of(trained, path))
    by_cut = []
    for ends in ([20], [1, 2, 9, 13, 20], list(range(1, 21))):
        chunks = [tuple(rows[start:end]) for start, end in zip([0, *ends], ends, strict=False)]
        parts = list(answer_chunks(trained.pipeline, chunks, AnswerOptions(calibration=trained.calibration)))
        by_cut.append([answer for part in parts for answer in part.answers])
    for other in by_cut[1:]:
        for one, two in zip(by_cut[0], other, strict=True):
            assert one.prediction == two.prediction
            assert one.probs == pytest.approx(two.probs, rel=0, abs=1e-12)
            for mine, theirs in zip(one.member_probs, two.member_probs, strict=True):
                assert mine == pytest.approx(theirs, rel=0, abs=1e-12)
