"""Atomic writes: whole or not at all, also when killed, crowded or out of space."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from lorchestra.errors import CheckpointError
from lorchestra.store import atomic
from lorchestra.store.atomic import (
    atomic_directory,
    atomic_path,
    atomic_write_bytes,
    atomic_write_json,
    atomic_write_text,
    discard_directory,
    replacing_directory,
    sha256_file,
    sweep_directory,
    sweep_leftovers,
)


def entries(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


def test_bytes_text_and_json_arrive_as_they_were_given(tmp_path: Path) -> None:
    atomic_write_bytes(tmp_path / "deep" / "er" / "a.bin", b"\x00\n\r")
    atomic_write_text(tmp_path / "b.txt", "żółw\n")
    atomic_write_json(tmp_path / "c.json", {"x": (1, np.float32(0.5)), "y": np.arange(3), "z": Path("p/q"), "ü": None})
    assert (tmp_path / "deep/er/a.bin").read_bytes() == b"\x00\n\r"
    assert (tmp_path / "b.txt").read_bytes() == "żółw\n".encode()
    assert json.loads((tmp_path / "c.json").read_text("utf-8")) == {
        "x": [1, 0.5],
        "y": [0, 1, 2],
        "z": "p/q",
        "ü": None,
    }
    assert entries(tmp_path) == ["b.txt", "c.json", "deep"]


def test_json_without_a_number_for_it_is_null_and_stays_parsable(tmp_path: Path) -> None:
    atomic_write_json(tmp_path / "m.json", {"auroc": float("nan"), "nll": [np.inf, np.float32("-inf"), 1.0]})

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    text = (tmp_path / "m.json").read_text("utf-8")
    assert json.loads(text, parse_constant=refuse) == {"auroc": None, "nll": [None, None, 1.0]}


def test_json_refuses_what_it_cannot_hold_before_touching_the_file(tmp_path: Path) -> None:
    atomic_write_json(tmp_path / "m.json", 1)
    with pytest.raises(TypeError):
        atomic_write_json(tmp_path / "m.json", {"x": object()})
    assert (tmp_path / "m.json").read_text("utf-8") == "1\n"


def test_the_temporary_path_is_a_dotted_sibling_and_goes_away(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    with atomic_path(target) as first, atomic_path(target) as second:
        assert first != second
        assert first.parent == tmp_path
        assert first.name.startswith(".a.txt.")
        assert not target.exists()
        first.write_text("first")
        second.write_text("second")
    assert target.read_text() == "first"  # the outer block ends last
    assert entries(tmp_path) == ["a.txt"]


def test_a_failing_block_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")

    def fail() -> None:
        with atomic_path(target) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert target.read_text() == "old"
    assert entries(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("directory", [False, True])
def test_files_get_the_usual_mode_even_from_a_writer_that_makes_private_ones(tmp_path: Path, directory: bool) -> None:
    usual = tmp_path / "usual"
    usual.touch()

    def write_private(file: Path) -> None:
        private = tmp_path / "private"
        os.close(os.open(private, os.O_CREAT | os.O_WRONLY, 0o600))
        private.replace(file)

    if directory:
        with atomic_directory(tmp_path / "d") as temporary:
            write_private(temporary / "f")
        written = tmp_path / "d" / "f"
    else:
        with atomic_path(tmp_path / "f") as temporary:
            write_private(temporary)
        written = tmp_path / "f"
    assert stat.S_IMODE(written.stat().st_mode) == stat.S_IMODE(usual.stat().st_mode)


def test_a_directory_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "d"

    def write(fail: bool) -> None:
        with atomic_directory(target) as temporary:
            (temporary / "sub").mkdir()
            (temporary / "sub" / "a").write_text("a")
            assert not target.exists()
            if fail:
                raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011
        write(fail=True)
    assert entries(tmp_path) == []
    write(fail=False)
    assert (target / "sub" / "a").read_text() == "a"
    assert entries(tmp_path) == ["d"]


def test_the_directory_that_was_there_first_stays(tmp_path: Path) -> None:
    with atomic_directory(tmp_path / "d") as mine:
        (mine / "who").write_text("mine")
        with atomic_directory(tmp_path / "d") as theirs:
            (theirs / "who").write_text("theirs")
    assert (tmp_path / "d" / "who").read_text() == "theirs"
    assert entries(tmp_path) == ["d"]


def test_discarding_removes_a_directory_and_accepts_that_it_is_gone(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a").touch()
    discard_directory(tmp_path / "d")
    discard_directory(tmp_path / "d")
    assert entries(tmp_path) == []


KILLED = """
import os, signal, sys
from lorchestra.store.atomic import atomic_directory, atomic_path
with atomic_path(sys.argv[1]) as file, atomic_directory(sys.argv[2]) as directory:
    file.write_text("half")
    (directory / "half").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_writer_leaves_the_old_file_and_its_remains_are_swept_later(tmp_path: Path) -> None:
    file, directory = tmp_path / "f", tmp_path / "d"
    file.write_text("old")
    killed = subprocess.run([sys.executable, "-c", KILLED, file, directory], timeout=900, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert file.read_text() == "old"
    assert not directory.exists()
    assert len(entries(tmp_path)) == 3  # the old file and two leftovers

    with atomic_directory(directory) as temporary:
        (temporary / "whole").touch()
    atomic_write_text(file, "new")
    assert len(entries(tmp_path)) == 4  # too fresh to be judged abandoned: a slow process may still be writing

    long_ago = time.time() - 7200
    for path in tmp_path.rglob("*"):
        os.utime(path, (long_ago, long_ago))
    atomic_write_text(file, "newer")
    sweep_leftovers(directory)
    assert entries(tmp_path) == ["d", "f"]
    assert entries(directory) == ["whole"]


def test_sweeping_spares_everything_that_is_not_a_leftover_of_this_target(tmp_path: Path) -> None:
    names = [".f.0123456789abcdef.tmp", ".g.0123456789abcdef.tmp", ".f.tmp", "f", ".f.g.0123456789abcdef.tmp"]
    for name in names:
        (tmp_path / name).touch()
    sweep_leftovers(tmp_path / "f", older_than_s=-1.0)
    assert entries(tmp_path) == sorted(names[1:])


WRITER = """
import sys
from lorchestra.store.atomic import atomic_directory, atomic_write_text
who = sys.argv[3]
print("ready", flush=True)
sys.stdin.readline()
for _ in range(100):
    atomic_write_text(sys.argv[1], who * 20000)
with atomic_directory(sys.argv[2]) as directory:
    for name in "abc":
        (directory / name).write_text(who)
"""


def test_two_processes_at_once_never_mix(tmp_path: Path) -> None:
    file, directory = tmp_path / "f", tmp_path / "d"
    processes = []
    for who in "xy":
        command = [sys.executable, "-c", WRITER, str(file), str(directory), who]
        processes.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    seen = set()
    while any(process.poll() is None for process in processes):
        if file.exists():
            seen.add(file.read_text())
    seen.add(file.read_text())  # both may have been done before the first look
    for process in processes:
        process.communicate(timeout=900)
        assert process.returncode == 0
    assert seen <= {"x" * 20000, "y" * 20000}
    assert len({(directory / name).read_text() for name in "abc"}) == 1
    assert entries(tmp_path) == ["d", "f"]


def test_sha256_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_file(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    with pytest.raises(CheckpointError, match=r"missing: cannot be read \(No such file"):
        sha256_file(tmp_path / "missing")


def test_names_that_are_no_utf8_are_escaped_in_json(tmp_path: Path) -> None:
    atomic_write_json(tmp_path / "x.json", {"path": "caf\udce9", "note": "é"})
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8")) == {"path": "caf\udce9", "note": "é"}


def test_a_directory_is_swept_of_leftovers_whatever_their_target(tmp_path: Path) -> None:
    names = [".state-00000007.safetensors.0123456789abcdef.tmp", ".latest.json.fedcba9876543210.tmp"]
    spared = ["latest.json", ".hidden.tmp", "x.0123456789abcdef.tmp"]
    for name in (*names, *spared):
        (tmp_path / name).write_text("x")
    sweep_directory(tmp_path)
    assert len(list(tmp_path.iterdir())) == 5  # still young
    sweep_directory(tmp_path, older_than_s=-1)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(spared)
    sweep_directory(tmp_path / "none")


def test_discarding_refuses_a_file_and_leaves_it(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("mine")
    with pytest.raises(CheckpointError, match="a file is where a directory is needed"):
        discard_directory(tmp_path / "x")
    assert (tmp_path / "x").read_text() == "mine"


def test_a_directory_is_replaced_by_a_whole_one(tmp_path: Path) -> None:
    target = tmp_path / "run"
    target.mkdir()
    (target / "old").write_text("")

    def make(fail: bool) -> None:
        with replacing_directory(target) as new:
            new.mkdir()
            (new / "new").write_text("")
            assert (target / "old").exists()
            if fail:
                raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        make(fail=True)
    assert [entry.name for entry in target.iterdir()] == ["old"]
    make(fail=False)
    assert [entry.name for entry in target.iterdir()] == ["new"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["run"]


def test_names_as_long_as_the_file_system_allows_can_be_written(tmp_path: Path) -> None:
    for name in ("n" * 255, "ü" * 127):
        atomic_write_text(tmp_path / name, "x")
        assert (tmp_path / name).read_text() == "x"
        leftover = atomic._temporary_sibling(tmp_path / name)
        leftover.write_text("")
        sweep_leftovers(tmp_path / name, older_than_s=-1.0)
        assert not leftover.exists()
