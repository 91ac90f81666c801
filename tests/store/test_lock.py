"""One process at a time in a directory: refused with the holder's pid, free again however the holder ended."""

from __future__ import annotations

import errno
import os
import threading

import pytest

import lorchestra.store.lock
from lorchestra.errors import CheckpointError
from lorchestra.store.atomic import sweep_directory, sweep_leftovers
from lorchestra.store.lock import directory_lock
from lorchestra.store.workspace import RUN, Workspace


def entries(directory):
    return sorted(path.name for path in directory.iterdir())


def test_a_second_process_is_refused_with_the_pid_of_the_first(held_by_another, tmp_path):
    with held_by_another(tmp_path / "run") as holder:
        message = rf"--out \S+run: another process \(pid {holder.pid} on .+\) is working in it; wait .* another --out"
        for _ in range(2):  # being refused takes nothing from the holder
            with pytest.raises(CheckpointError, match=message), directory_lock(tmp_path / "run"):
                raise AssertionError
        assert entries(tmp_path) == [".run.lorchestra.lock"]
        holder.stdin.write("\n")
        holder.stdin.flush()
        assert holder.wait(timeout=900) == 0
        assert entries(tmp_path) == []
        with directory_lock(tmp_path / "run"):
            pass
    assert entries(tmp_path) == []


def test_a_killed_holder_locks_nobody_out(held_by_another, tmp_path):
    with held_by_another(tmp_path / "run") as holder:
        holder.kill()
        holder.wait(timeout=900)
        assert entries(tmp_path) == [".run.lorchestra.lock"]
        with directory_lock(tmp_path / "run"):
            note = (tmp_path / ".run.lorchestra.lock").read_text()
            assert str(os.getpid()) in note
            assert str(holder.pid) not in note.split()
    assert entries(tmp_path) == []


def test_one_process_holds_a_directory_once_under_all_its_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to("run")
    for name in ("run", "./run/../run", "link", tmp_path / "run"):
        message = "this process, in another call, is working in it"
        with directory_lock("run"), pytest.raises(CheckpointError, match=message), directory_lock(name):
            raise AssertionError
    with directory_lock("run"), directory_lock("other"), directory_lock("run/inside"):
        assert entries(tmp_path) == [".other.lorchestra.lock", ".run.lorchestra.lock", "link", "run"]
    assert entries(tmp_path) == ["link", "run"]
    assert entries(tmp_path / "run") == []


def test_threads_take_turns_and_never_overlap(tmp_path):
    """Many that take, give back and remove the same lock file: at most one is inside, and all get in at last."""
    inside, most, entered = [], [], []

    def work(number):
        while True:
            try:
                with directory_lock(tmp_path / "run"):
                    inside.append(number)
                    most.append(len(inside))
                    entered.append(number)
                    inside.remove(number)
                    if entered.count(number) == 50:
                        return
            except CheckpointError:
                continue

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=900)
    assert set(most) == {1}
    assert len(entered) == 4 * 50
    assert entries(tmp_path) == []


def test_it_is_given_back_when_the_block_raises_and_missing_parents_go_again(tmp_path):
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt), directory_lock(tmp_path / "a/b/run"):
            raise KeyboardInterrupt
        assert entries(tmp_path) == []
    with directory_lock(tmp_path / "a/b/run"):
        (tmp_path / "a/kept").touch()
    assert entries(tmp_path / "a") == ["kept"]


def test_a_holder_whose_file_is_gone_removes_no_other_one(tmp_path):
    with directory_lock(tmp_path / "run"):
        (tmp_path / ".run.lorchestra.lock").unlink()
        (tmp_path / ".run.lorchestra.lock").write_text("another's")
    assert entries(tmp_path) == [".run.lorchestra.lock"]


def test_without_locks_it_goes_on_and_says_so(tmp_path, monkeypatch, on_log):
    def no_locks(descriptor, blocking):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    messages = []
    on_log(messages.append)
    (tmp_path / "file").touch()
    (tmp_path / ".taken.lorchestra.lock").symlink_to("file")
    for name in ("taken", "file/run", "x\0y"):
        with directory_lock(tmp_path / name):
            assert len(messages) == 1
            assert "cannot be locked" in messages.pop()
    monkeypatch.setattr(lorchestra.store.lock, "lock_descriptor", no_locks)
    with pytest.raises(ZeroDivisionError) as caught, directory_lock(tmp_path / "run"):
        raise ZeroDivisionError
    assert caught.value.__context__ is None
    (text,) = messages
    assert text.startswith(f"{tmp_path / 'run'} cannot be locked (No locks available): make sure that no other process")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_parent_that_cannot_be_written_is_no_reason_to_fail(tmp_path, on_log):
    messages = []
    on_log(messages.append)
    (tmp_path / "run").mkdir()
    tmp_path.chmod(0o555)
    try:
        with directory_lock(tmp_path / "run"):
            assert "Permission denied" in messages[0]
    finally:
        tmp_path.chmod(0o755)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_child_that_was_forked_meanwhile_keeps_no_lock(tmp_path):
    read, write = os.pipe()
    with directory_lock(tmp_path / "run"):
        if (child := os.fork()) == 0:
            os.read(read, 1)
            os._exit(0)
    with directory_lock(tmp_path / "run"):
        pass
    os.write(write, b"x")
    os.waitpid(child, 0)
    for end in (read, write):
        os.close(end)


def test_sweeping_leaves_a_lock_alone(tmp_path):
    with directory_lock(tmp_path / "run"):
        sweep_leftovers(tmp_path / "run", older_than_s=-1)
        sweep_directory(tmp_path, older_than_s=-1)
        assert entries(tmp_path) == [".run.lorchestra.lock"]


def test_a_new_name_is_one_in_which_nobody_is_at_work(tmp_path):
    root = tmp_path / "run"
    with Workspace.open(root, RUN, "new") as first, Workspace.open(root, RUN, "new") as second:
        assert (first.root, second.root, second.resuming) == (root, tmp_path / "run-2", False)
        (second.root / "resume").mkdir(parents=True)
        with Workspace.open(root, RUN, "new") as third:
            assert third.root == tmp_path / "run-3"
    with Workspace.open(root, RUN, "new") as workspace:
        assert workspace.root == root
    assert entries(tmp_path) == ["run-2"]
