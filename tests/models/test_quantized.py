"""Quantized bases: products and gradients of the dequantized weights, what is stored, and whole runs on them."""

from __future__ import annotations

import copy
import shutil
import subprocess
import sys

import pytest
import torch
import transformers
from tiny_base import tiny_tokenizer

from lorchestra.config.adapt import AdaptConfig, BaseConfig
from lorchestra.config.run import RunConfig, check_run
from lorchestra.errors import CheckpointError, ConfigError
from lorchestra.models import quantized
from lorchestra.models.ensemble import EnsembleModel
from lorchestra.models.loading import load_base
from lorchestra.models.quantized import dense_weight, dequantize, num_weights, quantized_maps, stored_bytes
from lorchestra.nn.lora import MemberLoRALinear
from lorchestra.nn.packing import Item, pack

pytest.importorskip("bitsandbytes", reason="needs the extra quant")

KINDS = ("nf4", "int8")
MEMBERS = 3


@pytest.fixture(scope="module")
def wide_base(tmp_path_factory):
    """A base whose maps have several blocks of 64 weights, one of them not filled, and a bias; with its tokenizer."""
    tokenizer = tiny_tokenizer()
    config = transformers.Qwen2Config(
        hidden_size=40,
        intermediate_size=56,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=len(tokenizer),
        max_position_embeddings=256,
        bos_token_id=0,
        eos_token_id=1,
    )
    model = transformers.Qwen2ForCausalLM(config)
    source = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=source)
            parameter.copy_(1 + 0.1 * noise if "norm" in name else 0.15 * noise)
    directory = tmp_path_factory.mktemp("bases") / "wide"
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def load(directory, kind, dtype="float32"):
    return load_base(BaseConfig(name=str(directory), dtype=dtype, quantization=kind, device="cpu"))


def with_members(model, members=MEMBERS, layers="last:2"):
    """Members with random A and B on a model."""
    return EnsembleModel(model, AdaptConfig(members=members, r=2, layers=layers, init_std_b=0.3), seed=0)


def batch_of(rows, members=MEMBERS):
    return pack([Item(m, row) for m in range(members) for row in rows])


def outputs(ensemble, rows):
    """Log-probabilities, and the gradient of the sum of all losses."""
    batch = batch_of(rows)
    ensemble.adapters.zero_grad()
    log_probs = ensemble.forward(batch)
    answers = torch.tensor([item.example.answer for item in batch.items])
    (-log_probs[torch.arange(len(answers)), answers]).sum().backward()
    return log_probs.detach(), ensemble.adapters.grad.clone()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_predictions_and_gradients_are_those_of_the_dequantized_base(wide_base, letters, kind, dtype):
    """To the bit, and after passes without gradients, too."""
    base = load(wide_base, kind, dtype)
    plain = copy.deepcopy(base.model)
    dequantize(plain, base.dtype)
    assert not list(quantized_maps(plain))
    stored, dense = with_members(base.model), with_members(plain)
    with torch.no_grad():
        assert torch.equal(stored.forward(batch_of(letters)), dense.forward(batch_of(letters)))
    for one, other in zip(outputs(stored, letters), outputs(dense, letters), strict=True):
        assert torch.equal(one, other)
    assert outputs(stored, letters)[1].abs().max() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_the_weights_are_near_those_of_the_base(wide_base, kind):
    """Each off by at most half the largest step, which is that of its block or output channel."""
    plain = dict(load(wide_base, "none").model.named_modules())
    for name, module in quantized_maps(load(wide_base, kind).model):
        weight = plain[name].weight
        blocks = weight.reshape(-1) if kind == "nf4" else weight
        size = 64 if kind == "nf4" else weight.shape[1]
        most = torch.stack([part.abs().max() for part in blocks.reshape(-1).split(size)]).repeat_interleave(size)
        # NF4's widest gap is 0.304 of the largest weight; rounding that to 8 bits adds a little
        # int8 rounds the weights to float16 first
        step = 0.304 * 1.02 if kind == "nf4" else 1 / 127
        off = (dense_weight(module) - weight).abs().reshape(-1)
        assert (off <= most[: len(off)] * step / 2 + 0.004 * most[: len(off)]).all()
        assert off.max() > 0


def test_nf4_weights_are_16_values_times_a_scale_per_block(wide_base):
    """The values of QLoRA's appendix E, found from quantiles of a normal distribution."""
    from scipy.stats import norm

    offset = 0.9677083
    positive = norm.ppf(torch.linspace(offset, 0.5, 9)[:-1].numpy())
    negative = -norm.ppf(torch.linspace(offset, 0.5, 8)[:-1].numpy())
    values = torch.tensor(sorted([*positive, 0.0, *negative]))
    values = (values / values.abs().max()).float()
    name, module = next(iter(quantized_maps(load(wide_base, "nf4").model)))
    for block in dense_weight(module).reshape(-1).split(64):
        scaled = block / block.abs().max()
        nearest = (scaled[:, None] - values).abs().amin(dim=1)
        assert nearest.max() < 1e-5, name


@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_is_dequantized_once_per_pass_for_all_members(wide_base, letters, kind, monkeypatch):
    counts = []
    for members in (1, 5):
        ensemble, calls = with_members(load(wide_base, kind).model, members), []
        with monkeypatch.context() as patch:
            original = quantized.dense_weight
            patch.setattr(quantized, "dense_weight", lambda *a, calls=calls, f=original: calls.append(1) or f(*a))
            ensemble.forward(batch_of(letters, members)).sum().backward()
        counts.append(len(calls))
    assert counts[0] == counts[1]
    # 7 maps a layer, and again backward where the input depends on an adapter
    assert 3 * 7 < counts[0] <= 3 * 7 + 2 * 7


@pytest.mark.parametrize("kind", KINDS)
def test_the_digest_is_the_same_in_every_number_format_and_another_than_of_the_plain_base(wide_base, kind):
    digests = {dtype: load(wide_base, kind, dtype).digest for dtype in ("float32", "bfloat16")}
    assert len(set(digests.values())) == 1
    other = [load(wide_base, one).digest for one in ("none", *KINDS) if one != kind]
    assert digests["float32"] not in other


def test_the_digest_knows_the_scale_of_the_weights(wide_base, tmp_path):
    """Weights twice as large have the same 4 bits each."""
    from safetensors.torch import load_file, save_file

    twice = shutil.copytree(wide_base, tmp_path / "twice")
    tensors = load_file(twice / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    save_file(tensors | {name: 2 * tensors[name]}, twice / "model.safetensors", {"format": "pt"})
    assert load(wide_base, "nf4").digest != load(twice, "nf4").digest


@pytest.mark.parametrize("kind", KINDS)
def test_stored_bytes_and_numbers_of_weights(wide_base, kind):
    base, plain = load(wide_base, kind, "bfloat16").model, load(wide_base, "none", "bfloat16").model
    assert num_weights(base) == num_weights(plain) == sum(one.numel() for one in plain.parameters())
    sizes = [tuple(dense_weight(module).shape) for _, module in quantized_maps(base)]
    maps = sum(rows * columns for rows, columns in sizes)
    rest = stored_bytes(plain) - 2 * maps
    if kind == "nf4":  # a scale of 8 bits per block, and one of 32 per 256 scales
        blocks = [-(-rows * columns // 64) for rows, columns in sizes]
        expected = maps / 2 + sum(blocks) + sum(4 * -(-n // 256) for n in blocks)
    else:
        expected = maps + 4 * sum(rows for rows, _ in sizes)
    assert stored_bytes(base) == rest + expected
    assert stored_bytes(base, torch.float32) == 2 * rest + expected
    assert len(sizes) == 3 * 7


@pytest.mark.parametrize("kind", KINDS)
def test_everything_else_has_the_base_s_number_format(wide_base, kind):
    base = load(wide_base, kind, "bfloat16")
    plain = load(wide_base, "none", "bfloat16").model
    maps = {f"{name}.weight" for name, _ in quantized_maps(base.model)}
    for name, parameter in base.model.named_parameters():
        if name not in maps:
            assert torch.equal(parameter, plain.get_parameter(name)), name
    for name, buffer in base.model.named_buffers():
        assert torch.equal(buffer, plain.get_buffer(name)), name
    assert base.quantization == kind
    assert with_members(base.model).dtype == torch.bfloat16


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_that_is_stored_so_is_read_as_it_is(wide_base, tmp_path, kind):
    made = load(wide_base, kind)
    made.model.save_pretrained(tmp_path / "stored")
    made.tokenizer.save_pretrained(tmp_path / "stored")
    for setting in ("none", kind):
        read = load(tmp_path / "stored", setting)
        assert (read.quantization, read.digest) == (kind, made.digest)
    other = next(one for one in KINDS if one != kind)
    with pytest.raises(ConfigError, match=rf"base.quantization: {other}, but the weights of .* are stored as {kind}"):
        load(tmp_path / "stored", other)


def test_bad_settings_are_refused(wide_base, monkeypatch):
    with pytest.raises(ConfigError, match=r"base.dtype: float64, but the base is quantized"):
        load(wide_base, "nf4", "float64")
    monkeypatch.setattr(quantized.util, "find_spec", lambda name: None)
    with pytest.raises(CheckpointError, match=r"needs the package bitsandbytes.*pip install 'lorchestra\[quant\]'"):
        load(wide_base, "int8")


@pytest.mark.parametrize("kind", KINDS)
def test_gated_products_save_less_on_a_quantized_base_too(wide_base, kind):
    ensemble = with_members(load(wide_base, kind).model)
    patched = [layer.mlp.forward.__qualname__ for layer in ensemble.model.model.layers]
    assert all("forward" in name for name in patched)
    assert "_slim_forward" in patched[0]


@pytest.mark.parametrize("kind", KINDS)
def test_pissa_starts_as_the_quantized_base(wide_base, letters, kind):
    model = load(wide_base, kind).model
    ensemble = EnsembleModel(model, AdaptConfig(members=1, r=2, init_lora_weights="pissa"), seed=0)
    assert any(isinstance(module, MemberLoRALinear) for module in model.modules())
    member = ensemble.forward(pack([Item(0, row) for row in letters]))
    base = ensemble.forward(pack([Item(-1, row) for row in letters]))
    torch.testing.assert_close(member, base, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_loftq_starts_at_the_best_product_of_its_rank(wide_base, kind):
    """Known answer: by Eckart and Young the error that is left has the remaining singular values."""
    plain = dict(load(wide_base, "none").model.named_modules())
    base = load(wide_base, kind)
    quantized_weights = {name: dense_weight(module) for name, module in quantized_maps(base.model)}
    adapt = AdaptConfig(members=2, r=3, lora_alpha=12.0, init_lora_weights="loftq")
    ensemble = EnsembleModel(base.model, adapt, seed=0)
    for name, (A, B) in ensemble.adapters.parameters.items():
        error = plain[name].weight - quantized_weights[name]
        singular = torch.linalg.svdvals(error)
        for m in range(2):
            left = torch.linalg.matrix_norm(error - adapt.scaling * B[m] @ A[m])
            torch.testing.assert_close(left, singular[3:].square().sum().sqrt(), rtol=1e-3, atol=1e-6)
        assert torch.equal(A[0], A[1])
        assert torch.equal(B[0], B[1])
    assert adapt.shares_init


def test_noise_keeps_members_apart_at_loftq_s_start(wide_base):
    made = {}
    for how, std in (("loftq", 0.0), ("loftq", 0.05), (True, 0.05)):
        adapt = AdaptConfig(members=2, r=3, init_lora_weights=how, init_std_b=std)
        made[how, std] = EnsembleModel(load(wide_base, "nf4").model, adapt, seed=0).adapters.parameters
    for name, (_, start) in made["loftq", 0.0].items():
        noisy, noise = made["loftq", 0.05][name][1], made[True, 0.05][name][1]
        for m in range(2):
            torch.testing.assert_close(noisy[m], start[m] + noise[m])
        assert not torch.equal(noisy[0], noisy[1])


def test_loftq_needs_the_weights_before_they_were_quantized(wide_base, tmp_path):
    made = load(wide_base, "nf4")
    made.model.save_pretrained(tmp_path / "stored")
    made.tokenizer.save_pretrained(tmp_path / "stored")
    adapt = AdaptConfig(members=1, r=2, init_lora_weights="loftq")
    with pytest.raises(ConfigError, match="loftq needs the weights before they were quantized"):
        EnsembleModel(load(tmp_path / "stored", "none").model, adapt, seed=0)
    with pytest.raises(ConfigError, match=r"loftq starts at what quantizing changes, and base.quantization is none"):
        check_run(RunConfig(adapt=adapt))


def test_no_warning_of_missing_kernels_is_shown():
    """bitsandbytes warns when it is imported, as by PEFT in the middle of a training's live table."""
    program = "import lorchestra.models.loading, peft, bitsandbytes.backends.cpu.ops"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "kernels" not in done.stderr
