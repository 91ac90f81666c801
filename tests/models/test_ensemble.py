import copy
import gc
import math
import warnings

import peft
import pytest
import torch
from torch import nn
from transformers import AttentionInterface

from lorchestra.config.adapt import AdaptConfig
from lorchestra.errors import ConfigError
from lorchestra.models.ensemble import EnsembleModel
from lorchestra.models.init import member_seed
from lorchestra.nn.packing import BASE, Item, pack
from lorchestra.types import EncodedExample

ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}


def batch_of(rows, members, seed=None):
    """Members with different rows, so that their spans differ in length."""
    items = [
        Item(m, row, None if seed is None else 1000 * seed + 50 * m + row.row)
        for m in members
        for row in rows
        if (row.row + m) % 3
    ]
    return pack(items)


def loss_of(log_probs, batch):
    answers = torch.tensor([item.example.answer for item in batch.items])
    return -log_probs[torch.arange(len(answers)), answers].sum()


def gradients(ensemble, batch, hidden=None):
    ensemble.adapters.zero_grad()
    loss_of(ensemble.forward(batch, hidden=hidden), batch).backward()
    return ensemble.adapters.grad.clone()


def sequences(row):
    return [(*row.prefix, *choice) for choice in row.choices]


def score(row, logits):
    """Log-probabilities of the row's choices by brute force, from full logits of each whole sequence.

    With a tree, each token's is normalized over the tokens with which a choice continues.
    """
    scores = []
    for choice, sequence_logits in zip(row.choices, logits, strict=True):
        terms = []
        for j, token in enumerate(choice):
            line = sequence_logits[len(row.prefix) - 1 + j]
            if row.tree is not None:
                continuing = {other[j] for other in row.choices if other[:j] == choice[:j]}
                line = line.where(torch.tensor([t in continuing for t in range(len(line))]), -math.inf)
            terms.append(line.log_softmax(dim=-1)[token])
        scores.append(sum(terms))
    return torch.stack(scores).log_softmax(dim=0)


def one_by_one(model, rows):
    """Each choice of each row in a separate pass."""
    return [score(row, [model(torch.tensor([ids])).logits[0] for ids in sequences(row)]) for row in rows]


def padded(model, rows):
    """All choices of all rows in one right-padded pass with an attention mask."""
    flat = [ids for row in rows for ids in sequences(row)]
    width = max(map(len, flat))
    ids = torch.tensor([[*ids, *[0] * (width - len(ids))] for ids in flat])
    mask = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids in flat])
    logits = iter(model(ids, attention_mask=mask).logits)
    return [score(row, [next(logits) for _ in row.choices]) for row in rows]


def peft_model(base, ensemble, member):
    """PEFT's model of one member, on a copy of the base."""
    adapt = ensemble.adapt
    config = peft.LoraConfig(
        r=adapt.r, lora_alpha=adapt.lora_alpha, target_modules=list(adapt.target_modules), lora_dropout=0.0
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft calls what transformers has deprecated
        model = peft.get_peft_model(copy.deepcopy(base), config, autocast_adapter_dtype=False).eval()
    parameters = dict(model.named_parameters())
    for name, leaves in ensemble.adapters.parameters.items():
        for which, leaf in zip("AB", (group[member] for group in leaves), strict=True):
            parameters[f"base_model.model.{name}.lora_{which}.default.weight"].data.copy_(leaf)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize(
    ("family", "targets"),
    [("llama", ALL_LINEAR), ("qwen2", ("q_proj", "v_proj")), ("qwen3", ("q_proj", "k_proj", "o_proj", "down_proj"))],
)
@pytest.mark.parametrize("kind", ["letters", "texts", "trees"])
def test_packed_equals_peft_one_by_one_and_padded(request, tiny_model, tiny_ensemble, family, targets, kind, dtype):
    """Log-probabilities and gradients of A and B: one packed batch of all members against PEFT, member by member."""
    rows, base = request.getfixturevalue(kind), tiny_model(family, dtype=dtype)
    ensemble = tiny_ensemble(base=copy.deepcopy(base), target_modules=targets, r=3, members=2)
    batch = batch_of(rows, range(2))
    assert (batch.scoring.option_ids is None) == (kind == "texts")
    log_probs = ensemble.forward(batch)
    gradients(ensemble, batch)
    tolerance = TOLERANCE[dtype]
    for member in range(2):
        model = peft_model(base, ensemble, member)
        mine = [b for b, item in enumerate(batch.items) if item.member == member]
        examples = [batch.items[b].example for b in mine]
        for scorer in (one_by_one, padded):
            model.zero_grad()
            scores = scorer(model, examples)
            for b, expected in zip(mine, scores, strict=True):
                torch.testing.assert_close(log_probs[b, : len(expected)], expected, rtol=0, atol=tolerance)
                assert (log_probs[b, len(expected) :] == -math.inf).all()
            sum(-line[example.answer] for line, example in zip(scores, examples, strict=True)).backward()
            parameters = dict(model.named_parameters())
            for name, leaves in ensemble.adapters.parameters.items():
                for which, leaf in zip("AB", (group[member] for group in leaves), strict=True):
                    expected = parameters[f"base_model.model.{name}.lora_{which}.default.weight"].grad
                    largest = expected.abs().max().item()
                    assert largest > 1e-3
                    torch.testing.assert_close(leaf.grad, expected, rtol=0, atol=tolerance * max(1.0, largest))


@pytest.mark.parametrize("kinds_of_rows", [("letters", "texts"), ("trees",)], ids=["texts", "trees"])
def test_sliding_windows_equal_the_stock_model(request, tiny_model, tiny_ensemble, kinds_of_rows):
    """Rows longer than the window, in a model whose layers alternate between full and sliding attention."""
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    base = tiny_model("qwen2", depth=3, use_sliding_window=True, sliding_window=3, layer_types=kinds)
    rows = [row for kind in kinds_of_rows for row in request.getfixturevalue(kind)]
    assert max(len(row.prefix) for row in rows) > 6
    expected = one_by_one(base, rows)
    full = one_by_one(tiny_model("qwen2", depth=3), rows)
    log_probs = tiny_ensemble(base=base).forward(pack([Item(BASE, row) for row in rows]))
    for b, line in enumerate(expected):
        torch.testing.assert_close(log_probs[b, : len(line)], line, rtol=0, atol=1e-9)
    assert any((a - b).abs().max() > 1e-2 for a, b in zip(expected, full, strict=True))


@pytest.mark.parametrize("kind", ["letters", "texts", "trees"])
def test_base_items_and_fresh_members_are_the_stock_model(request, tiny_model, kind):
    """At step 0 B is zero and members equal the base; BASE items equal the base at any step."""
    rows, base = request.getfixturevalue(kind), tiny_model()
    expected = one_by_one(base, rows)
    ensemble = EnsembleModel(base, AdaptConfig(members=2, r=2), seed=0)
    batch = pack([Item(m, row) for m in (BASE, 0, 1) for row in rows])
    log_probs = ensemble.forward(batch)
    for b, line in enumerate(expected * 3):
        torch.testing.assert_close(log_probs[b, : len(line)], line, rtol=0, atol=1e-12)
    ensemble.adapters.values.normal_(generator=torch.Generator().manual_seed(0))
    changed = ensemble.forward(batch)
    assert torch.equal(changed[: len(rows)], log_probs[: len(rows)])
    assert not torch.isclose(changed[len(rows) :, 0], log_probs[len(rows) :, 0]).any()


def test_probabilities_sum_to_one_over_the_choices_of_each_row(tiny_ensemble, letters, texts):
    for rows in (letters, texts):
        totals = tiny_ensemble().forward(batch_of(rows, range(3))).exp().sum(dim=1)
        torch.testing.assert_close(totals, torch.ones_like(totals), rtol=0, atol=1e-12)


def parameter_bytes(ensemble):
    """Bytes of the distinct storages of all parameters and buffers, including the stacked adapters."""
    tensors = [*ensemble.model.parameters(), *ensemble.model.buffers(), ensemble.adapters.values]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


@pytest.mark.parametrize("tied", [True, False])
def test_base_weights_exist_once(tiny_model, tied):
    sizes = {}
    for members in (1, 8):
        base = tiny_model(tie_word_embeddings=tied)
        before = {p.untyped_storage().data_ptr() for p in base.parameters()}
        ensemble = EnsembleModel(base, AdaptConfig(members=members, r=2), seed=0)
        after = {p.untyped_storage().data_ptr() for p in base.parameters()}
        assert before < after
        assert len(after - before) == 1
        sizes[members] = parameter_bytes(ensemble)
    # two layers; A: 32 -> 2 twice, B: 2 -> 32 (q) and 2 -> 16 (v), eight bytes each
    one_member = 2 * (2 * 32 * 2 + 2 * 32 + 2 * 16) * 8
    assert sizes[8] - sizes[1] == 7 * one_member
    assert one_member == ensemble.adapters.values[0].nbytes


def test_only_the_adapters_are_trainable(tiny_ensemble):
    ensemble = tiny_ensemble()
    trainable = {id(p) for p in ensemble.model.parameters() if p.requires_grad}
    leaves = {id(p) for pair in ensemble.adapters.parameters.values() for group in pair for p in group}
    assert trainable == leaves
    assert not ensemble.model.training


@pytest.mark.parametrize(("base_dtype", "adapter_dtype"), [(torch.bfloat16, torch.float32), (torch.float64,) * 2])
def test_adapters_are_float32_or_wider(tiny_model, letters, base_dtype, adapter_dtype):
    ensemble = EnsembleModel(tiny_model(dtype=base_dtype), AdaptConfig(members=2, r=2), seed=0)
    assert ensemble.adapters.values.dtype == adapter_dtype
    log_probs = ensemble.forward(batch_of(letters, range(2)))
    assert log_probs.dtype == torch.promote_types(base_dtype, torch.float32)


LAYERS = {"last:2": [2, 3], "last:1": [3], "[1, 3]": [1, 3], "all": [0, 1, 2, 3]}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize(("layers", "adapted"), LAYERS.items())
def test_trunk_plus_top_equals_the_full_model(tiny_ensemble, texts, layers, adapted, dtype):
    """Forward and gradients, also with dropout, since masks do not depend on the trunk."""
    ensemble = tiny_ensemble(dtype=dtype, depth=4, layers=layers, dropout=0.3)
    assert ensemble.layers == adapted
    tolerance = {torch.float32: 1e-6, torch.float64: 1e-12}[dtype]
    for seed in (None, 1):
        batch = batch_of(texts, range(3), seed)
        hidden = ensemble.forward(batch, "trunk")
        full, top = ensemble.forward(batch), ensemble.forward(batch, hidden=hidden)
        present = batch.scoring.term_mask.any(dim=-1)
        torch.testing.assert_close(top[present], full[present], rtol=tolerance, atol=tolerance)
        whole = gradients(ensemble, batch)
        torch.testing.assert_close(gradients(ensemble, batch, hidden), whole, rtol=tolerance, atol=tolerance)
        assert whole.abs().max() > 0.1


def test_trunk_equals_the_stock_hidden_states_for_every_member_and_adapter(tiny_model, tiny_ensemble, letters):
    base = tiny_model(depth=4)
    ensemble = tiny_ensemble(base=copy.deepcopy(base), layers="last:2", dropout=0.5)
    items = [Item(m, row, 100 * m + row.row) for m in range(3) for row in letters]
    batch = pack(items)
    hidden = ensemble.forward(batch, "trunk")
    assert not hidden.requires_grad
    for item, piece in zip(items, hidden[0].split([item.example.num_tokens for item in items]), strict=True):
        stock = base(torch.tensor([item.example.prefix]), output_hidden_states=True).hidden_states[2][0]
        torch.testing.assert_close(piece, stock, rtol=0, atol=1e-12)
    ensemble.adapters.values.normal_()
    assert torch.equal(ensemble.forward(batch, "trunk"), hidden)


@pytest.fixture
def count_layers():
    """Counts how often each layer's MLP runs."""

    def attach(ensemble):
        runs = [0] * ensemble.num_layers

        def count(index):
            def hook(*_):
                runs[index] += 1

            return hook

        for index, layer in enumerate(ensemble.model.model.layers):
            layer.mlp.register_forward_hook(count(index))
        return runs

    return attach


def test_each_pass_runs_only_the_layers_it_needs(tiny_ensemble, letters, count_layers):
    ensemble = tiny_ensemble(depth=4, layers="last:1")
    runs, batch = count_layers(ensemble), batch_of(letters, range(2))
    hidden = ensemble.forward(batch, "trunk")
    assert runs == [1, 1, 1, 0]
    ensemble.forward(batch, hidden=hidden)
    assert runs == [1, 1, 1, 1]
    ensemble.forward(batch)
    assert runs == [2, 2, 2, 2]


def test_the_head_computes_only_the_rows_of_the_options(tiny_ensemble, letters):
    """Only at the answer positions; the whole vocabulary gives the same log-probabilities."""
    ensemble = tiny_ensemble()
    batch = batch_of(letters, range(3))
    options = batch.scoring.option_ids
    seen = {}
    ensemble.model.lm_head.register_forward_hook(lambda module, inputs, output: seen.update(narrow=output[0]))
    ensemble.forward(batch)
    narrow = seen["narrow"]
    wide = ensemble.forward(batch, "logits")
    assert narrow.shape == (len(batch.items), len(options))
    assert wide.shape == (len(batch.items), 101)
    assert 2 < len(options) < 30
    torch.testing.assert_close(narrow, wide[:, options], rtol=0, atol=1e-12)


@pytest.mark.parametrize("sharing", ["nothing shared", "shared in the batch", "cached prefix"])
def test_rows_without_choices_have_the_next_token_logits_of_stock_passes(tiny_model, tiny_ensemble, letters, sharing):
    """Packed rows of the base and several members against each row alone, in the stock base or PEFT's model."""
    front = () if sharing == "nothing shared" else tuple(range(20, 40))
    rows = [EncodedExample(row.row, front + row.prefix, (), None) for row in letters]
    base, members = tiny_model(), (BASE, 0, 1, 2)
    ensemble = tiny_ensemble(base=copy.deepcopy(base))
    prefix = ensemble.prefill(front, members, 45) if sharing == "cached prefix" else None
    items = [Item(m, row) for m in members for row in rows if (row.row + m) % 3]
    batch = pack(items, shared=len(front), prefix=prefix)
    assert batch.packing.num_tokens == sum(len(item.example.prefix) - len(front) for item in items) + (
        len(front) * len(members) if sharing == "shared in the batch" else 0
    )
    stock = {m: base if m == BASE else peft_model(base, ensemble, m) for m in members}
    expected = [stock[item.member](torch.tensor([item.example.prefix])).logits[0, -1] for item in items]
    torch.testing.assert_close(ensemble.forward(batch, "logits"), torch.stack(expected), rtol=0, atol=1e-9)


def test_rows_without_choices_have_no_log_probs(tiny_ensemble, letters):
    """Neither alone nor in a batch with rows that have choices, whose logits are then those of the next token."""
    ensemble = tiny_ensemble()
    without = EncodedExample(9, (1, 2, 3), (), None)
    for rows in ([without], [letters[0], without]):
        batch = pack([Item(0, row) for row in rows])
        with pytest.raises(ValueError, match="rows without choices have no log_probs; request logits"):
            ensemble.forward(batch)
        assert ensemble.slot.current is None
        assert ensemble.forward(batch, "logits").shape == (len(rows), 101)


def test_gradient_of_a_member_is_the_same_alone_and_with_four_others(tiny_ensemble, texts):
    """The loss is a sum over members; a mean would divide the gradient by five."""
    ensemble = tiny_ensemble(members=5, dropout=0.2)
    together = gradients(ensemble, batch_of(texts, range(5), seed=3))
    for member in range(5):
        alone = gradients(ensemble, batch_of(texts, [member], seed=3))
        torch.testing.assert_close(together[member], alone[member], rtol=1e-11, atol=1e-11)
        assert not alone[[m for m in range(5) if m != member]].any()


def test_scores_and_gradients_do_not_depend_on_the_order_of_rows(tiny_ensemble, texts):
    ensemble = tiny_ensemble(dropout=0.4)
    items = [Item(m, row, 1000 * m + row.row) for m in range(3) for row in texts]
    shuffled = [items[i] for i in torch.randperm(len(items), generator=torch.Generator().manual_seed(1)).tolist()]
    shuffled.sort(key=lambda item: item.member)
    first, second = pack(items), pack(shuffled)
    by_item = dict(zip(shuffled, ensemble.forward(second), strict=True))
    for item, line in zip(items, ensemble.forward(first), strict=True):
        torch.testing.assert_close(by_item[item], line, rtol=0, atol=1e-12)
    torch.testing.assert_close(gradients(ensemble, second), gradients(ensemble, first), rtol=1e-11, atol=1e-11)


def test_a_nan_row_packed_first_affects_no_other_row(tiny_model, letters, texts):
    """One token has a NaN embedding: a row of member 0 with it is NaN, and all else is as without that row."""
    base = tiny_model()
    poisoned = 77
    rows = [row for row in [*letters, *texts] if poisoned not in row.prefix + sum(row.choices, ())]
    with torch.no_grad():
        base.model.embed_tokens.weight[poisoned] = float("nan")
        base.lm_head.weight = nn.Parameter(base.lm_head.weight.clone(), requires_grad=False)
    ensemble = EnsembleModel(base, AdaptConfig(members=3, r=2, dropout=0.2), seed=0)
    ensemble.adapters.values.add_(0.1)
    bad = EncodedExample(99, (1, poisoned, 2), ((3, 4), (5,)), 0)
    clean = [Item(m, row, 10 * m + row.row) for m in (1, 2) for row in rows]
    with_bad = pack([Item(0, bad, 1), *clean])
    without = pack(clean)
    log_probs = ensemble.forward(with_bad)
    assert log_probs[0, :2].isnan().all()
    expected = ensemble.forward(without)
    torch.testing.assert_close(log_probs[1:, : expected.shape[1]], expected, rtol=0, atol=1e-12)
    dirty, pure = gradients(ensemble, with_bad), gradients(ensemble, without)
    assert dirty[0].isnan().any()
    torch.testing.assert_close(dirty[1:], pure[1:], rtol=1e-11, atol=1e-11)


def test_a_nan_member_packed_first_affects_no_other(tiny_ensemble, letters):
    ensemble = tiny_ensemble()
    batch = batch_of(letters, range(3))
    expected, pure = ensemble.forward(batch), gradients(ensemble, batch)
    ensemble.adapters.values[0] = float("nan")
    log_probs, dirty = ensemble.forward(batch), gradients(ensemble, batch)
    first = sum(item.member == 0 for item in batch.items)
    assert log_probs[:first, 0].isnan().all()
    assert torch.equal(log_probs[first:], expected[first:])
    assert torch.equal(dirty[1:], pure[1:])


def test_a_failed_pass_leaves_no_state(tiny_ensemble, letters):
    """An error during a pass must not leave its packing, trunk or options to the next pass."""
    ensemble = tiny_ensemble(depth=3, layers="last:1")
    batch = batch_of(letters, range(3))
    hidden, expected = ensemble.forward(batch, "trunk"), ensemble.forward(batch)
    wrong = pack([Item(0, EncodedExample(0, (5_000,), ((1,), (2,)), 0))])
    for failing in (lambda: ensemble.forward(wrong, hidden=hidden), lambda: ensemble.forward(wrong, "trunk")):
        with pytest.raises((IndexError, RuntimeError)):
            failing()
        assert ensemble.slot.current is None
        assert torch.equal(ensemble.forward(batch), expected)


def test_initial_a_derives_from_run_seed_and_member(tiny_model):
    def start(seed=0, **adapt):
        return EnsembleModel(tiny_model(), AdaptConfig(r=2, **adapt), seed).adapters.values

    three, five = start(members=3), start(members=5)
    assert torch.equal(three, five[:3])
    assert len({tuple(line.tolist()) for line in five}) == 5
    assert not torch.isclose(start(seed=1, members=3), three).all(dim=1).any()
    same = start(members=3, same_init=True)
    assert torch.equal(same, three[:1].expand(3, -1))


@pytest.mark.parametrize(("how", "tolerance"), [(True, 0.0), ("gaussian", 0.0), ("orthogonal", 1e-12)])
def test_with_any_initialization_members_differ_and_equal_the_base(tiny_model, letters, how, tolerance):
    ensemble = EnsembleModel(tiny_model(), AdaptConfig(members=3, r=2, init_lora_weights=how), seed=0)
    rows = [*letters]
    expected = ensemble.forward(pack([Item(BASE, row) for row in rows]))
    for member in range(3):
        log_probs = ensemble.forward(pack([Item(member, row) for row in rows]))
        torch.testing.assert_close(log_probs, expected, rtol=0, atol=tolerance)
    assert len({tuple(line.tolist()) for line in ensemble.adapters.values}) == 3
    assert ensemble.adapters.values[:, ensemble.adapters.is_B].any() == (how == "orthogonal")


def test_orthogonal_initialization_needs_an_even_rank(tiny_model):
    with pytest.raises(ConfigError, match=r"adapt\.init_lora_weights: orthogonal needs an even rank; adapt\.r is 3"):
        EnsembleModel(tiny_model(), AdaptConfig(r=3, init_lora_weights="orthogonal"), seed=0)


def test_initial_a_of_a_layer_does_not_depend_on_the_other_adapted_layers(tiny_model):
    every = EnsembleModel(tiny_model(depth=3), AdaptConfig(members=2, r=2), 0).adapters
    top = EnsembleModel(tiny_model(depth=3), AdaptConfig(members=2, r=2, layers="last:1"), 0).adapters
    assert set(top.parameters) < set(every.parameters)
    for name, (As, _) in top.parameters.items():
        assert all(torch.equal(a, b) for a, b in zip(As, every.parameters[name][0], strict=True))


def test_adapters_are_named_as_in_the_model(tiny_ensemble):
    """Seeds and saved files depend on these names, which are PEFT's."""
    names = tiny_ensemble(depth=4, layers="[1, 3]", target_modules=("v_proj", "q_proj")).adapters.parameters
    assert list(names) == [f"model.layers.{i}.self_attn.{which}_proj" for i in (1, 3) for which in "qv"]


def test_member_seeds_differ_by_run_and_member():
    assert len({member_seed(run, m) for run in range(10) for m in range(10)}) == 100


def test_several_ensembles_can_coexist(tiny_ensemble, letters):
    """Each reads its packing, and its registered attention disappears with it."""
    first, second = tiny_ensemble(seed=0), tiny_ensemble("qwen2", seed=3)
    batches = [batch_of(letters, range(3)), batch_of(letters[:3], range(2))]
    expected = [first.forward(batches[0]), second.forward(batches[1])]
    assert torch.equal(first.forward(batches[0]), expected[0])
    names = {ensemble.model.config._attn_implementation for ensemble in (first, second)}
    assert len(names) == 2
    assert names <= set(AttentionInterface._global_mapping)
    del first, second
    gc.collect()
    assert not names & set(AttentionInterface._global_mapping)


@pytest.mark.parametrize(
    ("field", "value"), [("members", 0), ("r", 0), ("dropout", 1.0), ("dropout", -0.1), ("layers", "last:9")]
)
def test_settings_out_of_range_name_the_field_and_its_value(tiny_model, field, value):
    with pytest.raises(ConfigError, match=rf"adapt\.{field}.*{value}"):
        EnsembleModel(tiny_model(), AdaptConfig(**{field: value}), seed=0)


@pytest.mark.parametrize(
    "error", [RuntimeError("[enforce fail at alloc_cpu.cpp] can't allocate memory"), MemoryError()]
)
def test_members_that_do_not_fit_into_memory_are_an_error(tiny_model, monkeypatch, error):
    def full(*arguments, **options):
        raise error

    monkeypatch.setattr("lorchestra.models.ensemble.StackedAdapters", full)
    with pytest.raises(ConfigError, match=r"adapt\.members: 3 members of rank 8 do not fit into the memory of cpu"):
        EnsembleModel(tiny_model(), AdaptConfig(members=3), seed=0)


def test_initial_a_can_be_scaled_and_b_drawn(tiny_model):
    """The same draw of A times the scale; B with that standard deviation, different for each member."""
    plain, scaled, drawn = (
        EnsembleModel(tiny_model(), AdaptConfig(members=2, r=2, **settings), seed=0).adapters
        for settings in ({}, {"init_scale": 5.0}, {"init_std_b": 0.02})
    )
    torch.testing.assert_close(scaled.values, 5 * plain.values)
    assert torch.equal(drawn.values * ~drawn.is_B, plain.values)
    B = drawn.values[:, drawn.is_B]
    assert B.std(dim=1).tolist() == pytest.approx([0.02, 0.02], rel=0.2)
    assert not torch.equal(B[0], B[1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"init_scale": 0.0}, r"adapt\.init_scale: 0\.0 is not a finite number above 0"),
        ({"init_std_b": -1.0}, r"adapt\.init_std_b: -1\.0 is not a finite number from 0 up"),
        ({"init_std_b": 0.1, "init_lora_weights": "orthogonal"}, "orthogonal initialization sets B itself; leave one"),
    ],
)
def test_impossible_initializations_are_refused(tiny_model, settings, message):
    with pytest.raises(ConfigError, match=message):
        EnsembleModel(tiny_model(), AdaptConfig(r=2, **settings), seed=0)
