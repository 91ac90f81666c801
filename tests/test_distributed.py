"""Groups of processes: what they exchange, and what an error or the end of one means for the others."""

import group_calls
import pytest
import torch
from processes import in_processes

from lorchestra.distributed import ALONE, process_group
from lorchestra.errors import CheckpointError, ConfigError


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("number", [0, 1, 5, 8, 21])
def test_blocks_are_contiguous_and_balanced(monkeypatch, size, number):
    monkeypatch.setattr(ALONE, "size", size)
    blocks = ALONE.blocks(number)
    assert [m for block in blocks for m in block] == list(range(number))
    assert len(blocks) == size
    assert max(map(len, blocks)) - min(map(len, blocks)) <= 1


def test_one_process_is_a_group_in_which_nothing_travels():
    rows = torch.ones(2, 3)
    with process_group() as group:
        assert (group.rank, group.size, group.is_first, group.block(3)) == (0, 1, True, range(3))
        assert group.gather("a") == ["a"]
        assert group.gather_tensors(rows)[0] is group.rows_to_first(rows) is rows
        assert group.first(lambda: 3) == 3
        assert (group.any(True), group.any(False)) == (True, False)
        with pytest.raises(CheckpointError, match="full"):
            group.first(group_calls._full)


def test_processes_exchange_values_and_tensors():
    first, second = in_processes(2, group_calls.exchange)
    assert first.pop("rank") == [0, 2, True, [0, 1]]
    assert second.pop("rank") == [1, 2, False, [2, 3, 4]]
    rows = [[[0, 1], [2, 3]], [[1, 2], [3, 4], [5, 6], [7, 8]]]
    assert first.pop("to first") == rows[0] + rows[1]
    assert second.pop("to first") == rows[1]
    assert first == second
    assert first["values"] == [[0, 15, "nan", None], [1, 15 * 1001, "nan", None]]
    assert first["tensors"] == [rows] * 3
    assert first["empty"] == [[0, 3], [1, 3]]
    assert first["any"] == [True, False]
    assert first["first"] == ["only", "0"]
    assert first["sharing"] == 2


def test_an_error_of_the_first_process_can_be_handled_by_all():
    assert in_processes(2, group_calls.fail_in_first) == [["the disk is full", [0, 1]]] * 2


def test_the_same_error_in_all_processes_is_reported_once():
    errors = sorted(in_processes(3, group_calls.fail_in_all))
    assert errors[0] == ["DataError", "rows.csv: no rows"]
    assert [name for name, _ in errors[1:]] == ["ReportedError"] * 2


@pytest.mark.parametrize(
    ("function", "name"), [(group_calls.fail_in_second, "DataError"), (group_calls.bug_in_second, "ZeroDivisionError")]
)
def test_an_error_in_one_process_ends_all_and_is_reported_once(function, name):
    first, second = in_processes(2, function)
    assert second[0] == name
    assert first[0] == "ReportedError"


def test_a_killed_process_ends_the_others():
    first, second = in_processes(2, group_calls.killed_second)
    assert second is None
    assert first[0] == "LostProcessError"
    assert "another of the 2 processes of this training has ended" in first[1]
    assert "--if-exists resume" in first[1]


def test_several_machines_are_refused(monkeypatch):
    from lorchestra.distributed import _check_machine

    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    with pytest.raises(ConfigError, match="8 processes on several machines, 4 on this one"):
        _check_machine(8)
