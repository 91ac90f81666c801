"""Full disks, missing permissions and wrong paths are explained with a remedy."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from lorchestra.errors import CheckpointError
from lorchestra.store.atomic import atomic_directory, atomic_path, atomic_write_bytes, atomic_write_text
from lorchestra.store.disk import readable_bytes, require_space


def entries(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


class RustError(Exception):
    """Stands for safetensors.SafetensorError, which is no OSError and puts the number into its text."""


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), ["the disk is full", "free in", "Free some space"]),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), ["the disk is full"]),
        (RustError("I/O error: No space left on device (os error 28)"), ["the disk is full", "unchanged"]),
        (OSError(errno.EFBIG, "File too large"), ["limit of this process (ulimit -f)", "Raise the limit"]),
        (RustError("I/O error: File too large (os error 27)"), ["ulimit -f"]),
        (OSError(errno.EROFS, "Read-only file system"), ["read-only", "Choose"]),
        (PermissionError(errno.EACCES, "Permission denied"), ["no permission to write", "Change the permissions of"]),
        (RustError("I/O error: Permission denied (os error 13)"), ["no permission to write"]),
    ],
)
@pytest.mark.parametrize("kind", [atomic_path, atomic_directory])
def test_what_goes_wrong_in_the_block_is_explained(tmp_path: Path, kind, error: Exception, words: list[str]) -> None:
    target = tmp_path / "x"
    with pytest.raises(CheckpointError) as caught, kind(target):
        raise error
    assert str(caught.value).startswith(f"{target}: ")
    for word in words:
        assert word in str(caught.value)
    assert caught.value.__cause__ is error
    assert entries(tmp_path) == []


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "No such file", "/elsewhere/input"),
        PermissionError(errno.EACCES, "Permission denied", "/elsewhere/input"),
        RustError("No such file or directory (os error 2)"),
        ValueError("not about the disk"),
    ],
)
def test_errors_of_the_block_that_are_not_about_writing_pass_untouched(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error)) as caught, atomic_path(tmp_path / "x"):
        raise error
    assert caught.value is error


def test_a_disk_that_fills_up_at_the_last_moment_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "x"
    target.write_text("old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match=r"the disk is full \(3 bytes needed, .* free in"):
        atomic_write_bytes(target, b"new")
    assert target.read_text() == "old"
    assert entries(tmp_path) == ["x"]


def test_known_lack_of_space_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"the disk is full \(1\.0 EB needed, .* free in"):
        require_space(tmp_path / "x", 10**18)
    with (
        pytest.raises(CheckpointError, match="the disk is full"),
        atomic_directory(tmp_path / "x", num_bytes=10**17),
    ):
        pytest.fail("the block must not begin")
    assert entries(tmp_path) == []


def test_paths_that_cannot_be_written_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "directory").mkdir()
    with pytest.raises(CheckpointError, match="a file is where a directory is needed"):
        atomic_write_text(tmp_path / "file" / "x", "")
    with pytest.raises(CheckpointError, match="is a directory, not a file"):
        atomic_write_text(tmp_path / "directory", "")
    with pytest.raises(CheckpointError, match=r"cannot be written .*name too long"):
        atomic_write_text(tmp_path / ("x" * 300), "")
    with (
        pytest.raises(CheckpointError, match="a file is where a directory is needed"),
        atomic_directory(tmp_path / "file"),
    ):
        pass

    def denied(self: Path, *arguments: object, **options: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", denied)
    with pytest.raises(CheckpointError, match="no permission to write"):
        atomic_write_text(tmp_path / "y", "")
    assert entries(tmp_path) == ["directory", "file"]


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (10**18, "1.0 EB"), (538_090_408, "538.1 MB")],
)
def test_sizes_are_readable(num_bytes: int, text: str) -> None:
    assert readable_bytes(num_bytes) == text
