"""Paths that the system refuses: one error that names the path, for every argument that is a path."""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path

import pytest

from lorchestra.config.mappings import to_yaml
from lorchestra.errors import CheckpointError
from lorchestra.store.disk import explained_paths

_CALLS = [(os, "stat"), (os, "lstat"), (os, "open"), (os, "mkdir"), (os, "listdir"), (os, "scandir"), (io, "open")]


@pytest.fixture
def closed(tmp_path, monkeypatch):
    """A directory in which nothing can be read or written; permissions alone do not stop root."""
    directory = tmp_path / "closed"
    directory.mkdir()
    inside = f"{directory}{os.sep}"

    def refusing(original):
        def call(path, *arguments, **options):
            if isinstance(path, str | os.PathLike) and os.path.abspath(path).startswith(inside):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fspath(path))
            return original(path, *arguments, **options)

        return call

    for module, name in _CALLS:
        monkeypatch.setattr(module, name, refusing(getattr(module, name)))
    return directory / "x"


@pytest.fixture
def too_long(tmp_path):
    return tmp_path / ("n" * 300)


@pytest.fixture
def circle(tmp_path):
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to("one")
    return tmp_path / "one" / "x"


@pytest.fixture
def within_a_file(tmp_path):
    (tmp_path / "file").write_text("no directory")
    return tmp_path / "file" / "x"


def commands(bad, run, rows, base):
    """Every command-line argument that is a path, with a bad one."""
    train = ("--data.train", rows, "--base.name", base)
    member = run / "members/member_00"
    out = run.parent / "never"
    return [
        ("train", bad, "--out", out),
        ("train", "--data.train", bad, "--out", out),
        ("train", "--data.train", f"{bad}.csv", "--out", out),
        ("train", "--data.train", rows, "--data.val", f"{bad}.csv", "--out", out),
        ("train", "--data.train", rows, "--data.test", f"{bad}.csv", "--out", out),
        ("train", "--data.train", rows, "--base.name", bad, "--out", out),
        ("train", "--data.train", rows, "--base.name", f"{bad}.gguf", "--out", out),
        ("train", *train, "--out", bad),
        ("train", *train, "--out", bad, "--if-exists", "new"),
        ("train", *train, "--out", bad, "--if-exists", "resume"),
        ("evaluate", bad),
        ("evaluate", run, "--data", f"{bad}.csv"),
        ("evaluate", run, "--ood", bad),
        ("evaluate", run, "--ood", f"{bad}.csv"),
        ("predict", bad, "--data", rows),
        ("predict", run, "--data", f"{bad}.csv"),
        ("predict", run, "--data", rows, "--out", bad),
        ("export", bad, "--out", out),
        ("export", run, "--out", bad),
        ("import", bad, "--task", rows, "--out", out),
        ("import", member, "--task", f"{bad}.csv", "--out", out),
        ("import", member, "--task", rows, "--base", bad, "--out", out),
        ("import", member, "--task", rows, "--out", bad),
        ("report", bad),
        ("report", run, "--methods", bad),
        ("sweep", *train, "--out", bad, "--grid", "train.lr=1e-4,1e-3"),
        ("compare", *train, "--out", bad, "--methods", "zero_shot"),
        ("plan", *train, "--out", bad, "--seconds", "0.1"),
        ("plan", bad),
        ("paper", "fig2", *train, "--out", bad),
        ("paper", "fig5", *train, "--ood", f"{bad}.csv", "--out", out),
        ("demo", "--out", bad),
        ("tasks", "arc_easy", "--show", "1", "--data-dir", bad),
        ("tasks", "arc_easy", "--show", "1", "--base", bad, "--data-dir", out),
    ]


@pytest.mark.parametrize("kind", ["too_long", "closed", "circle", "within_a_file"])
def test_a_path_that_the_system_refuses_is_one_error(
    lorchestra, run_config, texts_csv, tiny_base, tmp_path, request, monkeypatch, kind
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    rows, run = texts_csv(), tmp_path / "run"
    (tmp_path / "recipe.yaml").write_text(to_yaml(run_config(rows)))
    code, _, err = lorchestra("train", tmp_path / "recipe.yaml", "--out", run, "--skip-evaluation")
    assert code == 0, err
    bad = request.getfixturevalue(kind)
    for arguments in commands(bad, run, rows, tiny_base):
        code, out, err = lorchestra(*arguments)
        shown = " ".join(map(str, arguments)).replace(str(bad), "BAD")
        assert code == 2, f"{shown}: {code}\n{err}"
        assert err.count("error: ") == 1, f"{shown}\n{err}"
        assert "internal" not in err, f"{shown}\n{err}"
        assert out == "", shown


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.EACCES, "/data/x: no permission to read or write it; change the permissions"),
        (errno.EPERM, "no permission"),
        (errno.ENAMETOOLONG, "longer than the file system allows; give a shorter one"),
        (errno.ELOOP, "symbolic links in this path lead in a circle"),
        (errno.ENOTDIR, "a part of this path is a file"),
        (errno.ENOENT, "no such file or directory"),
        (errno.ENOSPC, "the disk is full"),
        (errno.EIO, "cannot be read or written"),
    ],
)
def test_messages_of_system_errors_about_a_path(number, message):
    with pytest.raises(CheckpointError, match=message), explained_paths():
        raise OSError(number, os.strerror(number), "/data/x")


@pytest.mark.parametrize("error", [OSError("no number"), OSError(errno.ENOSPC, "full"), OSError(1, "x", __file__)])
def test_other_errors_of_the_system_pass(error, monkeypatch):
    monkeypatch.setattr("lorchestra.store.disk._INSTALLED", Path(__file__).parent)
    with pytest.raises(OSError, match=r".") as raised, explained_paths():
        raise error
    assert raised.value is error
