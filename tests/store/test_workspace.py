"""Output directories: started, resumed or refused; they appear complete, or not at all."""

from __future__ import annotations

import pytest

from lorchestra.errors import CheckpointError
from lorchestra.store.workspace import COMPARISON, RUN, SWEEP, Workspace

KINDS = {
    RUN: r"exists and is not a run directory \(no config\.yaml\)",
    SWEEP: "exists and is not the directory of a sweep",
    COMPARISON: "exists and is not the directory of a comparison",
}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.marker)
def test_a_directory_is_started_then_resumed_then_refused(kind, tmp_path):
    root = tmp_path / "above/out"
    root.mkdir(parents=True)  # an empty one may exist
    with Workspace.open(root, kind) as workspace:
        assert not workspace.resuming
        with workspace.create() as directory:
            (directory / kind.marker).write_text("x")
            assert not root.exists()
    with Workspace.open(root, kind) as workspace:
        assert (workspace.root, workspace.resuming) == (root, True)
    with pytest.raises(CheckpointError, match="already there; continue it with"), Workspace.open(root, kind, "fail"):
        raise AssertionError
    (root / kind.marker).rename(root / "other.txt")
    for if_exists in ("fail", "resume"):
        with pytest.raises(CheckpointError, match=KINDS[kind]), Workspace.open(root, kind, if_exists):
            raise AssertionError
    assert [path.name for path in root.iterdir()] == ["other.txt"]


def test_a_file_is_no_directory(tmp_path):
    (tmp_path / "out").touch()
    with pytest.raises(CheckpointError, match="is not a run directory"), Workspace.open(tmp_path / "out", RUN):
        raise AssertionError


def test_one_job_at_a_time(tmp_path):
    for first, second in ((Workspace.new, Workspace.new), (Workspace.new, lambda out: Workspace.open(out, RUN))):
        with (
            first(tmp_path / "out"),
            pytest.raises(CheckpointError, match=r"--out .*out: this process, in another call, is working in it"),
            second(tmp_path / "out"),
        ):
            raise AssertionError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("make", [lambda path: path.mkdir(), lambda path: path.touch(), lambda p: p.symlink_to("gone")])
def test_a_new_directory_must_not_exist(make, tmp_path):
    make(tmp_path / "out")
    with pytest.raises(CheckpointError, match="exists already and is left as it is"), Workspace.new(tmp_path / "out"):
        raise AssertionError


def test_an_interrupted_start_leaves_nothing(tmp_path):
    def interrupted(workspace):
        with workspace.create() as directory:
            (directory / "config.yaml").write_text("x")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), Workspace.open(tmp_path / "out", RUN) as workspace:
        interrupted(workspace)
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_appeared_meanwhile_is_left_alone(tmp_path):
    """Where locks do not work, another process may be quicker."""

    def start(workspace):
        with workspace.create() as directory:
            (directory / "config.yaml").write_text("ours")
            workspace.root.mkdir()
            (workspace.root / "config.yaml").write_text("theirs")

    with (
        pytest.raises(CheckpointError, match="another process has just made it; choose another --out"),
        Workspace.open(tmp_path / "out", RUN) as workspace,
    ):
        start(workspace)
    assert (tmp_path / "out/config.yaml").read_text() == "theirs"
