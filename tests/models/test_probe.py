"""The load probe detects what the modules of a model do not show."""

import dataclasses

import pytest
import torch
import transformers

from lorchestra.config.adapt import AdaptConfig
from lorchestra.errors import ConfigError
from lorchestra.models import probe as probes
from lorchestra.models.ensemble import EnsembleModel
from lorchestra.models.probe import probe
from lorchestra.nn import attention
from lorchestra.nn.layout import Packing


def on(base, **adapt):
    return EnsembleModel(base, AdaptConfig(**{"members": 2, "r": 2} | adapt), seed=0)


def test_it_restores_the_model(tiny_ensemble, letters):
    ensemble = tiny_ensemble(depth=3, layers="last:1")
    name, values = ensemble.model.config._attn_implementation, ensemble.adapters.values.clone()
    assert probe(ensemble) < 1e-12
    assert ensemble.model.config._attn_implementation == name
    assert torch.equal(ensemble.adapters.values, values)
    assert ensemble.slot.current is None


@pytest.mark.parametrize(("context", "longest"), [(60, 43), (45, 30)])
def test_its_rows_have_shared_prefixes_and_exceed_the_window(tiny_model, context, longest):
    """A window as long as the context does not count."""
    base = tiny_model("qwen2", use_sliding_window=True, sliding_window=40, max_position_embeddings=context)
    batch = probes._probe_batch(on(base))
    assert max(len(item.example.prefix) for item in batch.items) == longest
    assert sum(bool(segment.context) for segment in batch.packing.segments) == 3


def mix_neighbors(base):
    mlp = base.model.layers[1].mlp
    original = mlp.forward
    mlp.forward = lambda hidden: original(hidden + 0.1 * hidden.roll(1, dims=1))


def test_mixing_outside_of_attention_is_detected(tiny_model):
    base = tiny_model(depth=3)
    mix_neighbors(base)
    with pytest.raises(
        ConfigError, match=r"LlamaForCausalLM cannot be used: packed rows differ from rows run one by one by \d"
    ):
        probe(on(base))


@pytest.mark.parametrize("blind", ["context", "window"])
def test_attention_that_ignores_something_is_detected(tiny_model, monkeypatch, blind):
    """Choices that do not see their row's prefix; rows that see beyond the window."""
    right = attention.packed_attention

    def wrong(query, key, value, packing, scores, **options):
        if blind == "window":
            scores = dataclasses.replace(scores, window=None)
        else:
            alone = tuple(type(s)(s.start, s.stop) for s in packing.segments)
            packing = Packing(packing.input_ids, packing.position_ids, alone, packing.spans, None)
        return right(query, key, value, packing, scores, **options)

    base = tiny_model("qwen2", use_sliding_window=True, sliding_window=4, max_window_layers=0)
    assert probe(on(base)) < 1e-12
    monkeypatch.setattr(attention, "packed_attention", wrong)
    with pytest.raises(ConfigError, match="packed rows differ"):
        probe(on(tiny_model("qwen2", use_sliding_window=True, sliding_window=4, max_window_layers=0)))


@pytest.mark.parametrize("source", [0, 2], ids=["below the cut", "above the cut"])
def test_a_layer_that_reads_below_the_cut_is_detected(tiny_model, source):
    base, seen = tiny_model(depth=4), {}
    base.model.layers[source].register_forward_hook(lambda module, inputs, out: seen.update(low=out))
    base.model.layers[3].register_forward_pre_hook(lambda module, inputs: (inputs[0] + seen["low"], *inputs[1:]))
    ensemble = on(base, layers="last:2")
    if source == 2:
        assert probe(ensemble) < 1e-12
    else:
        with pytest.raises(ConfigError, match=r"adapt.layers: 'last:2' cannot .* once changes the answers by \d"):
            probe(ensemble)


class Expert(torch.nn.Module):
    """An MLP with a second map for every token but the last, like experts that divide the tokens among them."""

    def __init__(self, mlp):
        super().__init__()
        self.mlp, self.expert = mlp, torch.nn.Linear(32, 32, dtype=torch.float64)

    def forward(self, hidden):
        out = self.mlp(hidden)
        return torch.cat([out[:, :-1] + self.expert(hidden[:, :-1]), out[:, -1:]], dim=1)


def test_a_map_that_gets_only_some_tokens_is_refused(tiny_model):
    """The refusal names the map, not the whole base."""
    base = tiny_model(depth=2)
    base.model.layers[0].mlp = Expert(base.model.layers[0].mlp)
    ensemble = on(base, target_modules=("expert",))
    with pytest.raises(
        ConfigError, match=r"target_modules: 'model.layers.0.mlp.expert' .* gets 58 of a batch's 59 tokens"
    ):
        probe(ensemble)
    assert not any(module._forward_pre_hooks for module in ensemble.model.modules())


class Unpackable(torch.nn.Module):
    """Fails on any number of rows but one, or at once."""

    def __init__(self, mlp, error, always=False):
        super().__init__()
        self.mlp, self.error, self.always = mlp, error, always

    def forward(self, hidden):
        if self.always or hidden.shape[1] > 40:
            raise self.error
        return self.mlp(hidden)


@pytest.mark.parametrize(
    ("always", "message"),
    [
        (False, r"cannot be used: it fails on packed rows \(KeyError: 'rope'\); take a decoder-only model"),
        (True, r"cannot be used: it fails on a row of plain tokens \(KeyError: 'rope'\); use another base"),
    ],
    ids=["packed", "always"],
)
def test_exceptions_of_a_models_code_become_refusals(tiny_model, always, message):
    base = tiny_model(depth=2)
    base.model.layers[0].mlp = Unpackable(base.model.layers[0].mlp, KeyError("rope"), always)
    with pytest.raises(ConfigError, match=message):
        probe(on(base))


def test_lack_of_memory_is_not_a_refusal(tiny_model):
    base = tiny_model(depth=2)
    base.model.layers[0].mlp = Unpackable(base.model.layers[0].mlp, torch.OutOfMemoryError("no memory"))
    with pytest.raises(torch.OutOfMemoryError):
        probe(on(base))


def test_a_model_with_another_attention_mask_is_refused_with_that_reason():
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.DogeConfig(**sizes, num_key_value_heads=2, vocab_size=101, max_position_embeddings=64)
    with pytest.raises(ConfigError, match=r"DogeForCausalLM cannot be used: it fails on packed rows \(.*: a mask\)"):
        probe(on(transformers.DogeForCausalLM(config).eval()))
