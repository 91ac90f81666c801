"""Names within a directory: what leads out of it is refused, by name and by what lies there."""

from __future__ import annotations

import os
import re

import pytest

from lorchestra.errors import CheckpointError
from lorchestra.store.predictions import tensors_path
from lorchestra.store.run import Run
from lorchestra.store.safe_paths import LONGEST_NAME, inside, name_fault, read_plain
from lorchestra.store.schema import read_json


def test_names_within_are_paths(tmp_path):
    (tmp_path / "members").mkdir()
    (tmp_path / "members/a b").write_text("x")
    assert inside(tmp_path, "members", "a b") == tmp_path / "members/a b"
    assert inside(tmp_path, "members/./a b") == tmp_path / "members/a b"
    assert inside(tmp_path, "not", "there", "yet.json") == tmp_path / "not/there/yet.json"
    assert inside(str(tmp_path), "config.yaml") == tmp_path / "config.yaml"


@pytest.mark.parametrize(
    "name", ["", "/etc/passwd", "..", "../x", "a/../../x", "a/..", "a\0b", "..\\x", "C:\\x", "\\\\server\\x"]
)
def test_names_that_lead_out_are_refused(tmp_path, name):
    with pytest.raises(CheckpointError, match="is not a name within this directory"):
        inside(tmp_path, name)


@pytest.mark.parametrize("link", ["file", "folder", "folder/file", "dangling", "loop", "folder/to/more"])
def test_links_are_refused_anywhere_in_a_path(tmp_path, link):
    outside, root = tmp_path / "outside", tmp_path / "root"
    (outside / "to").mkdir(parents=True)
    root.mkdir()
    for file in (outside / "file", outside / "to/more"):
        file.write_text("x")
    (root / "file").symlink_to(outside / "file")
    (root / "folder").symlink_to(outside, target_is_directory=True)
    (root / "dangling").symlink_to(tmp_path / "nowhere")
    (root / "loop").symlink_to(root / "loop")
    with pytest.raises(CheckpointError, match="is a link, and links in a run directory are not followed"):
        inside(root, link)


def test_a_link_to_a_file_within_is_refused_too(tmp_path):
    (tmp_path / "a").write_text("x")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(CheckpointError, match="is a link"):
        inside(tmp_path, "b")


def test_the_root_may_be_a_link(tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "root", target_is_directory=True)
    assert Run(tmp_path / "link").config == tmp_path / "link/config.yaml"


def test_what_is_no_file_is_refused_without_waiting_for_it(tmp_path):
    os.mkfifo(tmp_path / "metrics.json")
    with pytest.raises(CheckpointError, match=r"metrics.json: is neither a file nor a directory"):
        _ = Run(tmp_path).metrics
    with pytest.raises(OSError, match="is not a regular file"):
        read_plain(tmp_path / "metrics.json")
    with pytest.raises(OSError, match="is not a regular file"):
        read_plain(tmp_path)


def test_a_link_that_replaces_a_file_after_the_check_is_not_read(tmp_path):
    (tmp_path / "secret").write_text('{"a": 1}')
    path = inside(tmp_path, "record.json")
    path.symlink_to(tmp_path / "secret")
    with pytest.raises(CheckpointError, match=r"record\.json: cannot be read"):
        read_json(path)


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("", "is empty"),
        (".hidden", "begins with a dot"),
        ("..", "begins with a dot"),
        ("a/b", "holds a path separator"),
        ("a\\b", "holds a path separator"),
        ("a\nb", "holds control characters"),
        ("a\x9bb", "holds control characters"),
        ("a\u202eb", "holds control characters"),
        ("\ud800", "holds half of a surrogate pair"),
        ("é" * 101, f"has 202 bytes, more than {LONGEST_NAME}"),
    ],
)
def test_what_can_be_no_part_of_a_file_name(tmp_path, name, fault):
    assert name_fault(name) == fault
    if name and not name.startswith(".") and "bytes" not in fault:
        with pytest.raises(CheckpointError, match=re.escape(fault)):
            tensors_path(tmp_path, f"{name}.test")


def test_what_can_be():
    for name in ("rows", "my data", "arc_easy", "日本語", "a.b", "caf\udce9", "x" * LONGEST_NAME, "שלום"):
        assert name_fault(name) is None


def test_numbers_that_are_none_are_no_json(tmp_path):
    for text in ("NaN", "Infinity", "-Infinity"):
        (tmp_path / "x.json").write_text(f'{{"a": {text}}}')
        with pytest.raises(CheckpointError, match="is not a number"):
            read_json(tmp_path / "x.json")
