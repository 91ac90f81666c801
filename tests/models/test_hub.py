"""Hub models: cached ones, partial downloads, and refusals with the hub's reason."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
import transformers
from huggingface_hub import errors
from huggingface_hub.utils import filter_repo_objects
from tokenizers import Tokenizer, models, pre_tokenizers

from lorchestra.config.adapt import BaseConfig
from lorchestra.errors import CheckpointError
from lorchestra.models import hub
from lorchestra.models.loading import LoadedBase, load_base

WORDS = ["<unk>", "<s>", "</s>", *"abcdefghijklmnopqrstuvwxyz"]


def save_base(model: transformers.PreTrainedModel, directory: Path) -> Path:
    """Save a model, and a word tokenizer without a pad token."""
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(directory)
    model.save_pretrained(directory)
    return directory


def load(name: str, revision: str | None = None) -> LoadedBase:
    return load_base(BaseConfig(name=name, revision=revision, device="cpu"))


def refused(name: str, revision: str | None = None) -> str:
    with pytest.raises(CheckpointError) as caught:
        load(name, revision)
    assert repr(name) in str(caught.value)
    return str(caught.value)


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def tiny(tiny_model, tmp_path: Path) -> Path:
    return save_base(tiny_model(dtype=torch.float32), tmp_path / "tiny")


@pytest.fixture
def hub_cache(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache with the tiny model as `someone/tiny`, and a hub that cannot be reached."""
    repository = tmp_path / "hub" / "models--someone--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    shutil.copytree(tiny, repository / "snapshots" / COMMIT)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return repository


def test_a_hub_model_downloaded_before_needs_no_hub(on_log, hub_cache: Path, tiny: Path) -> None:
    messages: list[str] = []
    on_log(messages.append)
    base = load_base(BaseConfig(name="someone/tiny", device="cpu"))
    assert (base.id, base.path_for_peft, base.revision) == ("someone/tiny", "someone/tiny", COMMIT)
    assert base.digest == load(str(tiny)).digest
    assert messages == ["http://127.0.0.1:9 cannot be reached; using models downloaded before."]
    assert load("someone/tiny", COMMIT).revision == COMMIT


def test_the_error_of_an_unknown_hub_model_lists_what_was_tried(
    hub_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    message = refused("someone/else")
    for words in ("not an embedded base", str(tmp_path / "hub"), "HF_HUB_OFFLINE", "local directory", "smollm2-135m"):
        assert words in message
    assert f"Did you mean {tmp_path}/tiny?" in refused("tinny")
    assert "the embedded base is spelled 'smollm2-135m'" in refused("SmolLM2_135M")
    assert "was not downloaded before at revision 'v9'" in refused("someone/tiny", "v9")
    assert "it cannot be a hub id" in refused("some one/tiny")


def test_offline_mode_makes_no_requests(hub_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "_hub_answers", lambda: pytest.fail("the hub was asked"))
    assert load("someone/tiny").revision == COMMIT


def test_a_hub_model_is_checked_like_a_directory(hub_cache: Path) -> None:
    snapshot = hub_cache / "snapshots" / COMMIT
    (snapshot / "model.safetensors").rename(snapshot / "pytorch_model.bin")
    assert "only pickled weights" in refused("someone/tiny")
    (snapshot / "adapter_config.json").write_text('{"base_model_name_or_path": "someone/else"}')
    assert "has an adapter" in refused("someone/tiny")


RESPONSE = SimpleNamespace(headers={}, request=None)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (errors.GatedRepoError("403", response=RESPONSE), "it is gated on the hub"),
        (errors.RepositoryNotFoundError("404", response=RESPONSE), "the hub has no such model"),
        (errors.RevisionNotFoundError("404", response=RESPONSE), "the hub has no revision 'v9' of it"),
        (errors.HfHubHTTPError("500 Oh", response=RESPONSE), "failed (HfHubHTTPError: 500 Oh). Try again"),
        (RuntimeError(""), "failed (RuntimeError: no message)"),
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
    ],
)
def test_errors_of_the_hub_are_explained(monkeypatch: pytest.MonkeyPatch, error: Exception, words: str) -> None:
    calls: list[dict[str, object]] = []

    def answer(name: str, **options: object) -> str:
        calls.append(options)
        raise error

    monkeypatch.setattr(hub, "_hub_answers", lambda: True)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", answer)
    with pytest.raises(CheckpointError) as caught:
        load("someone/tiny", "v9")
    assert words in str(caught.value)
    assert calls[0]["local_files_only"] is False
    assert calls[0]["revision"] == "v9"


def test_only_the_files_that_are_read_are_downloaded() -> None:
    wanted = ["config.json", "tokenizer.json", "tokenizer.model", "merges.txt", "chat_template.jinja", "vocab.json"]
    wanted += ["model.safetensors", "model-00001-of-00002.safetensors", "model.safetensors.index.json"]
    unwanted = ["pytorch_model.bin", "consolidated.safetensors", "model.fp16.safetensors", "model.py", "q4.gguf"]
    assert list(filter_repo_objects(wanted + unwanted, allow_patterns=hub._WANTED)) == wanted


def test_a_proxy_counts_as_a_reachable_hub(hub_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not hub._hub_answers()
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert hub._hub_answers()
