"""Predictions of all members: packed, and by PEFT with adapters in turn or mixed in one batch."""

from __future__ import annotations

import statistics

import numpy as np
import torch

from bench.packed_ways import make_ensemble
from bench.peft_ways import PeftMembers, head_logits
from bench.rows import batches, make_rows
from bench.setting import TARGETS, Base, Setting
from bench.table import REFERENCES, Row, Section, agreement, timed_rows
from bench.timing import Way, alternate
from lorchestra.inference.predict import member_passes, predict_rows
from lorchestra.models.ensemble import EnsembleModel
from lorchestra.types import EncodedExample


def measure_inference(base: Base, setting: Setting) -> Section:
    """Predictions of every M, on all layers and the last third, for each set of adapted maps."""
    rows: list[Row] = []
    notes, numbers = [], {}
    examples = make_rows(2 * setting.batch, setting.mean, base.vocab_size)
    for targets in TARGETS:
        case = f"inference, {targets}"
        ways = [_base_way(base, setting, examples)]
        for layers in base.layers:
            models = {m: make_ensemble(base, m, targets, layers) for m in setting.members_of(targets)}
            peft_members = setting.peft_members(targets, layers)
            peft = PeftMembers(base.modules(), models[setting.main].adapters, models[setting.main].adapt, peft_members)
            for key in REFERENCES:
                ways.append(_peft_way(key, peft, examples, layers, setting, setting.rounds_of(1, targets)))
            for m, model in models.items():
                ways.append(packed_way(model, examples, layers, setting, setting.rounds_of(m, targets)))
        alternate(ways, case)
        rows += timed_rows(case, ways)
        sentence, numbers[f"{case} difference"] = agreement(case, "a log-probability", ways, REFERENCES)
        notes.append(sentence)
        rows.append(_base_passes(case, setting, ways))
    return Section(rows, notes, numbers)


def _base_passes(case: str, setting: Setting, ways: list[Way]) -> Row:
    """Wall time of the members' predictions with adapters on the last third, in base passes over the same rows."""
    (one_pass,) = (way for way in ways if way.key == "base")
    (ours,) = (w for w in ways if (w.key, w.members, w.layers) == ("packed", setting.main, "last third"))
    # per round, since the machine's speed drifts
    ratios = [a / b for a, b in zip(ours.seconds, one_pass.seconds, strict=False)]
    figure = f"{statistics.median(ratios):.2f} base passes ({min(ratios):.2f} to {max(ratios):.2f})"
    return Row(f"{case}, last third", "packed, wall time", str(setting.main), figure)


def _base_way(base: Base, setting: Setting, examples: list[EncodedExample]) -> Way:
    model = base.modules()

    @torch.no_grad()
    def run(number: int) -> tuple[int, np.ndarray]:
        logits = [head_logits(model, group, False) for group in batches(examples, setting.batch)]
        return sum(row.num_tokens for row in examples), torch.cat(logits)[None].numpy()

    return Way("base", "", 1, run, setting.rounds, lambda: run(0))


def _peft_way(
    key: str, peft: PeftMembers, examples: list[EncodedExample], layers: str, setting: Setting, rounds: int
) -> Way:
    tokens = peft.num_members * sum(row.num_tokens for row in examples)

    def run(number: int) -> tuple[int, np.ndarray]:
        return tokens, peft.predict(examples, key, setting.batch)

    def warm_up() -> None:
        peft.predict(examples[: setting.batch], key, setting.batch)

    return Way(key, layers, peft.num_members, run, rounds, warm_up)


def packed_way(model: EnsembleModel, examples: list[EncodedExample], layers: str, setting: Setting, rounds: int) -> Way:
    """lorchestra's predictions of all members."""
    passes = member_passes(range(model.num_members))
    tokens = model.num_members * sum(row.num_tokens for row in examples)

    def run(number: int) -> tuple[int, np.ndarray]:
        return tokens, predict_rows(model, examples, passes, setting.token_budget)

    def warm_up() -> None:
        predict_rows(model, examples[: setting.batch], passes[:1], setting.token_budget)

    return Way("packed", layers, model.num_members, run, rounds, warm_up)


def measure_prefix_inference(base: Base, setting: Setting) -> tuple[list[Row], str, float]:
    """Predictions on rows that share a long prefix, all layers, q+v."""
    examples = make_rows(setting.batch, max(8, setting.prefix // 8), base.vocab_size, setting.prefix)
    model = make_ensemble(base, setting.main, "q+v", "all layers")
    peft = PeftMembers(base.modules(), model.adapters, model.adapt, 1)
    ways = [
        _peft_way("a1", peft, examples, "all layers", setting, setting.rounds),
        packed_way(model, examples, "all layers", setting, setting.rounds),
    ]
    case = "inference, q+v, shared prefix"
    alternate(ways, case)
    return timed_rows(case, ways), *agreement(case, "a log-probability", ways, ("a1",))
