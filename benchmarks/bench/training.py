"""Training steps: packed, and with PEFT one member after the other."""

from __future__ import annotations

import dataclasses

from bench.packed_ways import PackedTraining
from bench.peft_ways import PeftMembers
from bench.rows import make_rows, similar_lengths
from bench.setting import TARGETS, Base, Setting
from bench.table import Row, Section, agreement, timed_rows
from bench.timing import Way, alternate
from lorchestra.nn.packing import Item
from lorchestra.types import EncodedExample

EPOCHS = 3
"""Epochs over which the note spreads the cost of the trunk."""


def measure_training(base: Base, setting: Setting) -> Section:
    """Training steps of every M, on all layers and the last third, for each set of adapted maps."""
    rows, notes, numbers = [], [], {}
    examples = make_rows(8 * setting.batch, setting.mean, base.vocab_size)
    for targets in TARGETS:
        case = f"training, {targets}"
        ways: list[Way] = []
        for layers in base.layers:
            more, trunk_rate = _ways(base, setting, examples, targets, layers)
            ways += more
            if trunk_rate is not None:
                trunk = (more[-1], trunk_rate)
        alternate(ways, case)
        rows += timed_rows(case, ways)
        sentence, numbers[f"{case} difference"] = agreement(case, "a member's loss", ways, ("a0", "a1"))
        way, trunk_rate = trunk
        spread = 1 / (1 / way.median + 1 / (trunk_rate * way.members * EPOCHS))
        notes += [
            sentence,
            f"{case}, last third: the trunk is computed before the first step ({trunk_rate:,.0f} tokens/s, once per"
            f" row); with it, {way.members} members reach {spread:,.0f} tokens/s over {EPOCHS} epochs.",
        ]
    return Section(rows, notes, numbers)


def _ways(
    base: Base, setting: Setting, examples: list[EncodedExample], targets: str, layers: str
) -> tuple[list[Way], float | None]:
    """The ways with adapters on some layers, the packed ones last by M; and the trunk's tokens per second."""
    packed: dict[int, PackedTraining] = {}
    trunk_rate = precomputed = None
    for m in setting.members_of(targets):
        packed[m] = PackedTraining(base, setting, examples, m, targets, layers, precomputed)
        if precomputed is None:
            precomputed = packed[m].trainer.precomputed
            trunk_rate = packed[m].trunk_rate
    main = packed[setting.main]
    ways = []
    for key in ("a0", "a1", "b"):
        members = setting.peft_members(targets, layers)
        peft = PeftMembers(base.modules(), main.trainer.model.adapters, main.trainer.model.adapt, members)
        ways.append(peft_way(key, peft, main, layers, setting, setting.rounds_of(1, targets)))
    ways += [packed_way(m, one, layers, setting.rounds_of(m, targets)) for m, one in packed.items()]
    return ways, trunk_rate


def packed_way(members: int, training: PackedTraining, layers: str, rounds: int) -> Way:
    """Steps of lorchestra's trainer."""
    return Way("packed", layers, members, lambda step: training.step(), rounds, training.warm_up)


def peft_way(key: str, peft: PeftMembers, same: PackedTraining, layers: str, setting: Setting, rounds: int) -> Way:
    """Steps of PEFT on the rows of the same members in `same`; b uses batches of similar lengths instead."""
    examples = same.trainer.rows.train

    def items_of(step: int) -> list[Item]:
        items = [item for item in same.trainer.step_items(step) if item.member < peft.num_members]
        return similar_lengths(items, examples, setting.batch) if key == "b" else items

    def run(step: int) -> tuple[int, list[float]]:
        items = items_of(step)
        return sum(item.example.num_tokens for item in items), peft.train(items, key)

    def warm_up() -> None:
        rows = [item.example for item in items_of(0) if item.member == 0]
        peft.loss(0, rows, key).backward()
        peft.optimizers[0].zero_grad()

    return Way(key, layers, peft.num_members, run, rounds, warm_up)


def measure_prefix_training(base: Base, setting: Setting) -> tuple[list[Row], str, float]:
    """Training steps on rows that share a long prefix, all layers, q+v."""
    examples = make_rows(2 * setting.batch, max(8, setting.prefix // 8), base.vocab_size, setting.prefix)
    # like the default token budget, which does not include shared tokens
    roomy = dataclasses.replace(setting, token_budget=setting.token_budget + setting.prefix)
    packed = PackedTraining(base, roomy, examples, setting.main, "q+v", "all layers")
    model = packed.trainer.model
    peft = PeftMembers(base.modules(), model.adapters, model.adapt, 1)
    ways = [
        peft_way("a1", peft, packed, "all layers", setting, setting.rounds),
        packed_way(setting.main, packed, "all layers", setting.rounds),
    ]
    case = "training, q+v, shared prefix"
    alternate(ways, case)
    return timed_rows(case, ways), *agreement(case, "a member's loss", ways, ("a1",))
