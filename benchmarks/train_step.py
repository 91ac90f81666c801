"""Training throughput and memory: lockstep packed training beside sequential PEFT runs, one process, alternating.

Setting: M = 5 members, 8 rows a member and step, r = 8, q_proj and v_proj; rows of random tokens with ragged lengths
(mean 75). Every way takes the same rows in the same steps, from equal adapters, with AdamW; losses are compared. Tokens
are counted without padding.

    python benchmarks/train_step.py --rounds 5 --out benchmarks/results/train_step.md
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model

from lorchestra.core.packing import Item
from lorchestra.engine.config import RegularizeConfig, TrainConfig
from lorchestra.engine.frozen import TrainingRows
from lorchestra.engine.memory import peak_bytes as process_peak_bytes
from lorchestra.engine.trainer import Trainer
from lorchestra.models.config import AdaptConfig, BaseConfig
from lorchestra.models.ensemble import EnsembleModel
from lorchestra.models.sources import load_base
from lorchestra.types import EncodedExample

MEMBERS, BATCH, OPTIONS, LR = 5, 8, (4, 5, 6, 7), 1e-4
WAYS = {
    "a0": "PEFT, one run after the other: padded batches of 8, logits of all positions",
    "a1": "PEFT, the same with the head at the answer position only",
    "b": "PEFT, a1 with batches of like lengths",
    "all": "lorchestra, all layers",
    "last10": "lorchestra, last 10 of 30 layers, trunk cached",
}


class Silent:
    """An observer that keeps the last losses."""

    loss: list[float | None]

    def on_step(self, report, state) -> None:
        self.loss = report.loss

    def on_evaluation(self, entry, state) -> None: ...

    def on_phase(self, text, done, total) -> None: ...


def make_rows(count: int, mean: int, vocab_size: int) -> list[EncodedExample]:
    generator = torch.Generator().manual_seed(0)
    spread = torch.randn(count, generator=generator).mul(0.4).exp()
    lengths = (spread / spread.mean() * mean).round().long().clamp(min=8)
    return [
        EncodedExample(
            i,
            tuple(torch.randint(8, vocab_size, (int(n),), generator=generator).tolist()),
            tuple((option,) for option in OPTIONS),
            i % len(OPTIONS),
        )
        for i, n in enumerate(lengths)
    ]


class PeftRuns:
    """Five ordinary PEFT runs on one base object; each step trains every member once, one after the other."""

    def __init__(self, initial: list[list[torch.Tensor]], head: str) -> None:
        self.head = head
        config = LoraConfig(r=8, lora_alpha=32, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        self.model = get_peft_model(load_base(BaseConfig()).model, config)
        self.adapters = [p for p in self.model.parameters() if p.requires_grad]
        self.members = [
            {"values": values, "optimizer": torch.optim.AdamW(self.adapters, lr=LR, weight_decay=0.0)}
            for values in initial
        ]
        self.loss: list[float | None] = []

    def _put(self, values: list[torch.Tensor]) -> None:
        with torch.no_grad():
            for parameter, value in zip(self.adapters, values, strict=True):
                parameter.copy_(value)

    def run_step(self, items: list[Item]) -> None:
        self.loss = []
        for m, member in enumerate(self.members):
            rows = [item.example for item in items if item.member == m]
            self._put(member["values"])
            logits = self._forward(rows)
            loss = F.cross_entropy(logits[:, OPTIONS], torch.tensor([row.answer for row in rows]))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.adapters, 1.0)
            member["optimizer"].step()
            member["optimizer"].zero_grad()
            member["values"] = [p.detach().clone() for p in self.adapters]
            self.loss.append(loss.item())

    def _forward(self, rows: list[EncodedExample]) -> torch.Tensor:
        width = max(len(row.prefix) for row in rows)
        ids = torch.full((len(rows), width), 2)
        mask = torch.zeros(len(rows), width, dtype=torch.long)
        for i, row in enumerate(rows):  # left padding: the answer position is the last
            ids[i, width - len(row.prefix) :] = torch.tensor(row.prefix)
            mask[i, width - len(row.prefix) :] = 1
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        keep = 0 if self.head == "all" else 1
        return self.model(
            input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False, logits_to_keep=keep
        ).logits[:, -1]


def make_trainer(layers: str, rows: list[EncodedExample], token_budget: int, threads: int | None = None) -> Trainer:
    ensemble = EnsembleModel(
        load_base(BaseConfig(threads=threads)).model, AdaptConfig(members=MEMBERS, layers=layers), 0
    )
    config = TrainConfig(epochs=100, batch_size=BATCH, lr=LR, schedule="constant", warmup=0, token_budget=token_budget)
    trainer = Trainer(ensemble, TrainingRows(rows, rows[:1]), config, RegularizeConfig(), Silent())
    trainer.prepare()
    return trainer


def same_start(
    rows: list[EncodedExample], token_budget: int, steps: int, members: int
) -> tuple[list[list[torch.Tensor]], list[list[Item]]]:
    """The members' first adapters and the rows of each step, as lorchestra has them; its model is dropped again."""
    trainer = make_trainer("all", rows, token_budget)
    bank = trainer.model.bank
    initial = [
        [bank.view(bank.values[m], piece, which).detach().clone() for piece in bank.slices for which in "AB"]
        for m in range(members)
    ]
    return initial, [trainer.step_items(step) for step in range(steps)]


def sorted_items(items: list[Item], rows: list[EncodedExample]) -> list[Item]:
    """Batches of like lengths: each member's rows are neighbors in length, with as many tokens on average."""
    ordered = sorted(rows, key=lambda row: row.num_tokens)
    batches = [ordered[i : i + BATCH] for i in range(0, len(ordered) - BATCH + 1, BATCH)]
    taken = []
    for m in range(MEMBERS):
        first = next(item.example.row for item in items if item.member == m)
        taken += [Item(m, row) for row in batches[first % len(batches)]]
    return taken


def build(
    way: str, rows: list[EncodedExample], token_budget: int, steps: int, peft_members: int = MEMBERS
) -> tuple[Callable[[int], int], Callable[[], list]]:
    """A function that runs step `s` and returns its tokens, and one that gives the last losses."""
    if way in ("all", "last10"):
        trainer = make_trainer("all" if way == "all" else "last:10", rows, token_budget)

        def packed(step: int) -> int:
            trainer.state.step = step
            before = trainer.state.tokens
            trainer.step()
            return trainer.state.tokens - before

        return packed, lambda: trainer.observer.loss
    initial, schedule = same_start(rows, token_budget, steps, peft_members)
    runs = PeftRuns(initial, "all" if way == "a0" else "answer")

    def padded(step: int) -> int:
        items = sorted_items(schedule[step], rows) if way == "b" else schedule[step]
        runs.run_step(items)
        return sum(item.example.num_tokens for item in items if item.member < peft_members)

    return padded, lambda: runs.loss


def processor() -> str:
    """The CPU's name, where Linux tells it."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", info.read_text()) if info.exists() else []
    return names[0] if names else platform.machine()


def peak_bytes(way: str, args: argparse.Namespace) -> int:
    """Peak resident memory of a process of its own that runs two steps."""
    command = [
        sys.executable,
        __file__,
        "--memory-of",
        way,
        "--mean",
        str(args.mean),
        "--token-budget",
        str(args.token_budget),
    ]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ways", nargs="+", default=list(WAYS))
    parser.add_argument("--mean", type=int, default=75, help="mean tokens a row")
    parser.add_argument("--token-budget", type=int, default=800)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--memory-of")
    args = parser.parse_args()
    rows = make_rows(200, args.mean, 49152)
    if args.memory_of:
        # One PEFT run, as a user would have in memory; of lorchestra all members.
        run, _ = build(args.memory_of, rows, args.token_budget, 2, peft_members=1)
        for step in range(2):
            run(step)
        print(process_peak_bytes())
        return
    ways = {way: build(way, rows, args.token_budget, args.rounds + 1) for way in args.ways}
    rates: dict[str, list[float]] = {way: [] for way in ways}
    for run, _ in ways.values():
        run(0)  # warm-up
    losses: dict[str, list] = {}
    for step in range(1, args.rounds + 1):
        for way, (run, last_loss) in ways.items():
            started = time.perf_counter()
            tokens = run(step)
            rates[way].append(tokens / (time.perf_counter() - started))
            if step == 1:
                losses[way] = last_loss()
        print(json.dumps({way: round(values[-1]) for way, values in rates.items()}), file=sys.stderr)
    medians = {way: statistics.median(values) for way, values in rates.items()}
    baselines = [way for way in ("a0", "a1", "b") if way in medians]
    lines = [
        f"# Training step: {processor()}, {os.cpu_count()} cores, torch {torch.__version__}",
        "",
        f"M = {MEMBERS}, {BATCH} rows a member, mean {args.mean} tokens, r = 8, q_proj and v_proj, SmolLM2-135M in"
        f" float32, token budget {args.token_budget}, {args.rounds} alternating rounds, medians (least to most). Peak"
        " memory: of a process of its own; of PEFT one run, of lorchestra all members.",
        "",
        "| way | tokens/s | " + " | ".join(f"over {b}" for b in baselines) + " | peak memory, GB |",
        "|---|---|" + "---|" * len(baselines) + "---|",
    ]
    for way, values in rates.items():
        memory = "" if args.no_memory else f"{peak_bytes(way, args) / 1e9:.2f}"
        ratios = " | ".join(f"{medians[way] / medians[b]:.2f}" for b in baselines)
        spread = f"{medians[way]:.0f} ({min(values):.0f} to {max(values):.0f})"
        lines.append(f"| {way}: {WAYS[way]} | {spread} | {ratios} | {memory} |")
    if "a1" in losses and "all" in losses:
        largest = max(abs(a - b) for a, b in zip(losses["a1"], losses["all"], strict=True))
        lines += [
            "",
            f"Largest difference of a member's loss after one step, a1 against all layers packed: {largest:.1e}.",
        ]
    text = "\n".join(lines) + "\n"
    print(text)
    if args.out:
        args.out.write_text(text)


if __name__ == "__main__":
    main()
