import platform
import sys

import pytest
import torch

import lorchestra.planning.memory as memory

CPU = torch.device("cpu")


@pytest.fixture
def system(tmp_path, monkeypatch):
    """A fake /proc and /sys/fs/cgroup; returns a function that writes a file of them."""
    monkeypatch.setattr(memory, "_PROC", tmp_path / "proc")
    monkeypatch.setattr(memory, "_CGROUPS", tmp_path / "cgroup")

    def write(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    write("proc/meminfo", "MemTotal:  2000 kB\nMemAvailable:  1000 kB\n")
    return write


def group(write, folder, limit, use, idle):
    write(f"{folder}/memory.max", f"{limit}\n")
    write(f"{folder}/memory.current", f"{use}\n")
    write(f"{folder}/memory.stat", f"anon 5\ninactive_file {idle}\n")


def test_available_memory_without_a_limit(system):
    assert memory.free_bytes(CPU) == 1000 * 1024


def test_without_proc_everything_is_unknown(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_PROC", tmp_path / "none")
    monkeypatch.setattr(memory, "_CGROUPS", tmp_path / "none")
    assert memory.free_bytes(CPU) is None
    assert memory.used_bytes() is None
    assert memory.restart_peak() is False


@pytest.mark.parametrize("folder", ["cgroup", "cgroup/a", "cgroup/a/b"])
def test_limits_of_all_parent_groups_apply(system, folder):
    system("proc/self/cgroup", "0::/a/b\n")
    group(system, "cgroup/a", "max", 7, 7)
    group(system, folder, 5000, 4200, 300)
    assert memory.free_bytes(CPU) == 5000 - 4200 + 300


def test_group_over_its_limit_has_nothing_free(system):
    group(system, "cgroup", 5000, 6000, 0)
    assert memory.free_bytes(CPU) == 0


@pytest.mark.parametrize(("limit", "free"), [(9000, 9000 - 8000 + 50), (9223372036854771712, 1000 * 1024)])
def test_groups_of_version_1(system, limit, free):
    system("proc/self/cgroup", "5:cpu:/x\n4:memory:/x/y\n")
    system("cgroup/memory/x/y/memory.limit_in_bytes", str(limit))
    system("cgroup/memory/x/y/memory.usage_in_bytes", "8000")
    system("cgroup/memory/x/y/memory.stat", "total_inactive_file 50\n")
    assert memory.free_bytes(CPU) == free


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_use_and_peak_of_this_process():
    before = memory.used_bytes()
    block = torch.ones(50_000_000)
    assert memory.used_bytes() - before > 150_000_000
    assert memory.peak_bytes() >= memory.used_bytes()
    del block
    high = memory.peak_bytes()
    if memory.restart_peak():
        assert memory.peak_bytes() < high - 100_000_000


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="specific to glibc's allocator")
def test_new_peak_does_not_count_freed_memory():
    blocks = [bytearray(100_000) for _ in range(1_000)]  # 100 MB, each below malloc's mmap threshold
    last = bytearray(100_000)  # keeps the end of the heap in use
    full = memory.used_bytes()
    del blocks
    if not memory.restart_peak():
        pytest.skip("no way to restart the peak here")
    assert memory.peak_bytes() < full - 80_000_000
    assert last is not None
