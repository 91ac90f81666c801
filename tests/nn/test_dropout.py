import math

import pytest
import torch

from lorchestra.nn.dropout import keep_mask, token_keys
from lorchestra.nn.seeding import derive_seed, mix_64

_GAMMA = 0x9E3779B97F4A7C15


def kept_by_hand(row_seed, place, module_seed, width, rate):
    """One token's mask in plain integers: SplitMix64 seeded by row, place and module, 16 bits a feature."""
    key = mix_64(row_seed) + (place + 1) * _GAMMA
    start = mix_64(key + mix_64(module_seed))
    kept = []
    for feature in range(width):
        word = mix_64(start + (feature // 4 + 1) * _GAMMA)
        lane = (word >> 16 * (feature % 4)) & 0xFFFF
        signed = lane - 65536 if lane >= 32768 else lane
        kept.append(signed + 32768 >= round(rate * 65536))
    return kept


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.93])
@pytest.mark.parametrize("width", [1, 4, 7])
def test_mask_equals_the_hash_in_plain_integers(rate, width):
    seeds, lengths, module = [5, derive_seed("a"), 2**63 - 1], [3, 1, 4], derive_seed("dropout", "q_proj")
    mask = keep_mask(token_keys(seeds, lengths), module, width, rate)
    expected = [
        kept_by_hand(seed, place, module, width, rate)
        for seed, length in zip(seeds, lengths, strict=True)
        for place in range(length)
    ]
    assert mask.dtype == torch.bool
    assert mask.tolist() == expected


def test_mask_of_a_token_does_not_depend_on_its_neighbors():
    lengths = {1: 3, 2: 5, 3: 2}
    alone = {seed: keep_mask(token_keys([seed], [n]), 9, 33, 0.3) for seed, n in lengths.items()}
    for order in ([1, 2, 3], [3, 1, 2], [2, 3], [3, 2, 1]):
        packed = keep_mask(token_keys(order, [lengths[s] for s in order]), 9, 33, 0.3)
        for seed, piece in zip(order, packed.split([lengths[s] for s in order]), strict=True):
            assert torch.equal(piece, alone[seed])


def test_a_longer_row_keeps_the_masks_of_its_first_tokens():
    assert torch.equal(token_keys([4], [9])[:5], token_keys([4], [5]))


def test_no_rows_have_no_keys():
    keys = token_keys([], [])
    assert keys.shape == (0,)
    assert keep_mask(keys, 1, 8, 0.5).shape == (0, 8)


def deviations(count, trials, p):
    return abs(count - trials * p) / math.sqrt(trials * p * (1 - p))


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.1, 0.5, 0.9])
def test_keep_rate_is_within_binomial_bounds(rate):
    mask = keep_mask(token_keys([derive_seed(r) for r in range(40)], [25] * 40), derive_seed("m"), 256, rate)
    p = 1 - round(rate * 65536) / 65536
    assert deviations(mask.sum().item(), mask.numel(), p) < 4.5
    by_feature = [deviations(n, 1000, p) for n in mask.sum(dim=0).tolist()]
    by_token = [deviations(n, 256, p) for n in mask.sum(dim=1).tolist()]
    if rate * 256 > 10:  # the normal approximation of the tails
        assert max(by_feature) < 5.5
        assert max(by_token) < 5.5
    assert max(by_feature) > 1.5  # neither too even: these are draws, not a stratified design


@pytest.mark.parametrize("what", ["module", "row seed", "place", "feature"])
def test_masks_of_different_things_are_independent(what):
    """Two independent masks of rate 0.5 agree on half of their elements."""
    keys = token_keys([derive_seed("a")], [201])
    mask = keep_mask(keys, 1, 256, 0.5)
    other = {
        "module": keep_mask(keys, 2, 256, 0.5),
        "row seed": keep_mask(token_keys([derive_seed("b")], [201]), 1, 256, 0.5),
        "place": mask.roll(1, dims=0),
        "feature": mask.roll(1, dims=1),
    }[what]
    assert deviations((mask == other).sum().item(), mask.numel(), 0.5) < 4.5


def test_neighboring_seeds_are_as_independent_as_any():
    """Callers derive seeds by hashing, but consecutive row seeds must not shift one mask into the next."""
    masks = [keep_mask(token_keys([seed], [8]), 3, 512, 0.5) for seed in range(6)]
    for i, first in enumerate(masks):
        for second in masks[:i]:
            for shift in range(-3, 4):
                agree = (first.roll(shift, dims=0) == second).sum().item()
                assert deviations(agree, first.numel(), 0.5) < 5


def test_expectation_is_preserved():
    rate = 0.25
    mask = keep_mask(token_keys(range(500), [16] * 500), 8, 64, rate).double()
    x = torch.linspace(-1, 3, 64, dtype=torch.float64)
    mean = (mask * x / (1 - rate)).mean(dim=0)
    sd = x.abs() * math.sqrt(rate / (1 - rate) / len(mask))
    assert ((mean - x).abs() <= 4.5 * sd).all()


@pytest.mark.parametrize("rate", [0.9999, 0.99999, 0.999999])
def test_rates_close_to_one_drop_almost_everything(rate):
    """All rates in [0, 1) are allowed, also those that round to 1 in sixteen bits."""
    mask = keep_mask(token_keys([1], [64]), 5, 64, rate)
    assert mask.sum().item() <= 8


def test_masks_are_made_without_touching_the_keys_or_the_global_generator():
    keys = token_keys([1, 2], [3, 4])
    before, state = keys.clone(), torch.get_rng_state()
    keep_mask(keys[2:5], 7, 10, 0.5)
    assert torch.equal(keys, before)
    assert torch.equal(torch.get_rng_state(), state)
