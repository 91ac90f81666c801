"""The cache of converted bases: safe against kills, concurrency, damage and full disks."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import transformers
from tokenizers import Tokenizer, models

from lorchestra.errors import CheckpointError
from lorchestra.models import gguf as converter
from lorchestra.models.gguf import cache_root, converted_directory, find_damage


def read_tiny(gguf_file: Path) -> tuple[transformers.PreTrainedTokenizerFast, transformers.LlamaForCausalLM]:
    """Replaces the slow part, reading the GGUF; the rest is real."""
    backend = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>"))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return tokenizer, transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=50, **sizes))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LORCHESTRA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(converter, "_read", read_tiny)
    monkeypatch.setattr(converter, "_require_gguf", lambda: None)
    return tmp_path / "cache" / "bases"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    file = tmp_path / "tiny.gguf"
    file.write_bytes(b"GGUF and the rest")
    return file


def entries(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


def test_the_second_use_converts_nothing(on_log, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = converted_directory(source)
    metadata = json.loads((first / "conversion.json").read_text("utf-8"))
    assert metadata["source"] == {
        "file": "tiny.gguf",
        "bytes": source.stat().st_size,
        "sha256": converter.sha256_file(source),
    }
    assert metadata["made_with"]["transformers"] == transformers.__version__
    monkeypatch.setattr(converter, "_convert", lambda *arguments: pytest.fail("converted again"))
    on_log(pytest.fail)
    assert converted_directory(source) == first


def test_the_copy_is_keyed_by_content_and_converter(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Path] = []
    monkeypatch.setattr(converter, "_convert", lambda file, directory, sha256: made.append(file))
    monkeypatch.setattr(converter, "find_damage", lambda directory: None)
    moved = tmp_path / "elsewhere" / "tiny.gguf"
    moved.parent.mkdir()
    moved.write_bytes(source.read_bytes())
    other = tmp_path / "other" / "tiny.gguf"
    other.parent.mkdir()
    other.write_bytes(source.read_bytes() + b"\0")
    directory = converted_directory(source)
    assert converted_directory(moved) == directory
    assert converted_directory(other) != directory
    monkeypatch.setattr(converter, "CONVERTER_VERSION", converter.CONVERTER_VERSION + 1)
    assert converted_directory(source) != directory
    assert made == [source, other, source]


def cut(name: str) -> Callable[[Path], object]:
    return lambda directory: os.truncate(directory / name, (directory / name).stat().st_size - 1)


def blank_header(directory: Path) -> None:
    with (directory / "model.safetensors").open("rb+") as file:
        file.write(bytes(64))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda directory: (directory / "model.safetensors").unlink(), "model.safetensors is missing"),
        (lambda directory: (directory / "conversion.json").unlink(), "conversion.json is missing or unreadable"),
        (lambda directory: (directory / "conversion.json").write_text("[1]"), "conversion.json is missing or unr"),
        (cut("model.safetensors"), "model.safetensors has"),
        (cut("tokenizer.json"), "tokenizer.json has"),
        (blank_header, "model.safetensors has a broken header"),
    ],
)
def test_a_damaged_copy_is_made_anew_and_said_once(
    on_log, source: Path, cache: Path, damage: Callable[[Path], object], words: str
) -> None:
    directory = converted_directory(source)
    assert find_damage(directory) is None
    damage(directory)
    messages: list[str] = []
    on_log(messages.append)
    assert converted_directory(source) == directory
    assert len(messages) == 2
    assert f"The converted copy in {directory} is damaged ({words}" in messages[0]
    assert messages[1].startswith("Converting")
    assert find_damage(directory) is None
    assert entries(cache) == [directory.name]
    on_log(pytest.fail)
    converted_directory(source)


def test_a_header_that_contradicts_the_file_size_is_damage(source: Path) -> None:
    directory = converted_directory(source)
    file = directory / "model.safetensors"
    with file.open("ab") as handle:
        handle.write(b"more")
    metadata = json.loads((directory / "conversion.json").read_text("utf-8"))
    metadata["files"]["model.safetensors"] += 4
    (directory / "conversion.json").write_text(json.dumps(metadata))
    assert find_damage(directory) == "model.safetensors has a broken header"


@pytest.mark.slow
def test_a_killed_conversion_is_never_used(on_log, source: Path, cache: Path) -> None:
    killed = subprocess.run([sys.executable, __file__, "die", source], timeout=900, check=False)
    assert killed.returncode == -signal.SIGKILL
    (leftover,) = entries(cache)
    assert leftover.startswith(".tiny-")
    assert (cache / leftover / "model.safetensors").is_file()
    directory = converted_directory(source)
    assert find_damage(directory) is None
    assert entries(cache) == [leftover, directory.name]
    long_ago = time.time() - 7200
    for path in (cache / leftover, *(cache / leftover).rglob("*")):
        os.utime(path, (long_ago, long_ago))
    on_log(pytest.fail)
    converted_directory(source)
    assert entries(cache) == [directory.name]


@pytest.mark.slow
def test_two_concurrent_conversions_end_in_one_complete_copy(on_log, source: Path, cache: Path) -> None:
    command = [sys.executable, __file__, "wait", str(source)]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "written\n"
    assert len(entries(cache)) == 2  # both have written everything, neither has finished
    outputs = [process.communicate("go\n", timeout=900)[0].strip() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    on_log(pytest.fail)
    directory = converted_directory(source)
    assert outputs == [str(directory)] * 2
    assert entries(cache) == [directory.name]


def test_threads_of_one_process_share_one_conversion(source: Path, on_log) -> None:
    messages: list[str] = []
    on_log(messages.append)
    threads = [threading.Thread(target=converted_directory, args=(source,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(messages) == 1


def test_a_full_disk_is_explained_and_leaves_nothing(
    source: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: object, directory: Path) -> None:
        (directory / "model.safetensors").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(transformers.PreTrainedModel, "save_pretrained", full)
    with pytest.raises(CheckpointError, match=r"the disk is full .*Set LORCHESTRA_CACHE to use another cache"):
        converted_directory(source)
    assert entries(cache) == []

    def need(path: Path, num_bytes: int) -> None:
        raise CheckpointError(f"{path}: {num_bytes} bytes wanted")

    monkeypatch.setattr(converter, "require_space", need)
    with pytest.raises(CheckpointError, match=r"\d{5} bytes wanted"):
        converted_directory(source)
    assert entries(cache) == []


def test_the_cache_directory_is_configurable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("LORCHESTRA_CACHE", "~/cache")
    assert cache_root() == tmp_path / "home" / "cache"
    monkeypatch.delenv("LORCHESTRA_CACHE")
    assert cache_root() == tmp_path / "xdg" / "lorchestra"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_root() == tmp_path / "home" / ".cache" / "lorchestra"

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(CheckpointError, match="Set LORCHESTRA_CACHE"):
        cache_root()


def convert_in_a_process(what: str, source: Path) -> None:
    """Convert; after writing all files, get killed (`die`) or wait for a line on stdin (`wait`)."""
    check = converter._check_saved_tokenizer

    def interrupted(*arguments: object) -> None:
        check(*arguments)  # type: ignore[arg-type]
        if what == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        print("written", flush=True)
        sys.stdin.readline()

    converter._read = read_tiny
    converter._require_gguf = lambda: None
    converter._check_saved_tokenizer = interrupted
    print(converted_directory(source))


if __name__ == "__main__":
    convert_in_a_process(sys.argv[1], Path(sys.argv[2]))
