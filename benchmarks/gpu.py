"""lorchestra against sequential PEFT on one GPU: training steps of a Llama-7B shape with random weights, in bfloat16.

First the GPU's numbers are compared with the CPU's (the tests marked `gpu`), then steps are timed with 8 rows and with
1 row per member, all layers, q and v. Every case runs its ways in turn in one process on the same rows, and their
losses are compared. The table is printed, and written to benchmarks/results/gpu_<hardware>_<month>.md.

    python benchmarks/gpu.py                                   one GPU of 40 GB or more: some minutes
    python benchmarks/gpu.py --shape tiny --device cpu         tests the script anywhere; printed only
"""

from __future__ import annotations

import argparse
import datetime
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from bench.packed_ways import PackedTraining
from bench.peft_ways import PeftMembers
from bench.rows import make_rows
from bench.setting import RANK, Base, Setting, log
from bench.table import Row, Section, agreement, render, timed_rows
from bench.timing import alternate
from bench.training import packed_way, peft_way
from transformers import LlamaConfig, LlamaForCausalLM

from lorchestra.inference.pipeline import default_token_budget

SHAPES = {
    "7b": {},  # LlamaConfig's defaults are Llama-7B's
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "vocab_size": 300,
    },
}
ROOT = Path(__file__).parents[1]


class RandomBase(Base):
    """A Llama of some shape with random weights, in bfloat16, on a device."""

    def __init__(self, shape: str, device: str) -> None:
        config = LlamaConfig(**SHAPES[shape])
        torch.manual_seed(0)
        torch.set_default_dtype(torch.bfloat16)
        try:
            with torch.device(device):
                self._model = LlamaForCausalLM(config).eval().requires_grad_(False)
        finally:
            torch.set_default_dtype(torch.float32)
        self.vocab_size = config.vocab_size
        self.num_layers = config.num_hidden_layers
        self.context_length = config.max_position_embeddings


def measure(base: Base, setting: Setting, device: str) -> Section:
    """Training steps with one number of rows per member."""
    examples = make_rows(8 * setting.batch, setting.mean, base.vocab_size)
    packed = PackedTraining(base, setting, examples, setting.main, "q+v", "all layers")
    model = packed.trainer.model
    ways = [packed_way(setting.main, packed, "all layers", setting.rounds)]
    for key in ("a0", "a1"):
        peft = PeftMembers(base.modules(), model.adapters, model.adapt, setting.main)
        ways.insert(-1, peft_way(key, peft, packed, "all layers", setting, setting.rounds))
    case = f"training, q+v, {setting.batch} row{'s' * (setting.batch > 1)} per member"
    alternate(ways, case)
    sentence, difference = agreement(case, "a member's loss", ways, ("a0", "a1"))
    rows, notes = timed_rows(case, ways), [sentence]
    if device == "cuda":
        for way in ways:  # one more step each: its peak on top of what the others hold
            torch.cuda.reset_peak_memory_stats()
            held = torch.cuda.memory_allocated()
            way.run(0)
            more = (torch.cuda.max_memory_allocated() - held) / 1e9
            rows.append(Row(f"{case}, memory of a step", way.key, str(way.members), f"{more:.2f} GB"))
        notes.append("Memory of a step: its peak beyond base, adapters and optimizer states.")
    return Section(rows, notes, {f"{case} difference": difference})


def check() -> str:
    """Run the tests of the GPU's numbers; returns pytest's last line."""
    log("comparing the GPU with the CPU: tests marked gpu")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-m",
        "gpu",
        "-p",
        "no:cacheprovider",
        "tests/nn",
        "tests/training",
    ]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if process.returncode:
        raise SystemExit(f"{process.stdout[-4000:]}\nThe GPU's numbers are wrong; nothing was timed.")
    return process.stdout.strip().splitlines()[-1]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="7b")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--members", type=int, default=5)
    parser.add_argument("--mean", type=int, default=128, help="mean tokens of a row")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args(arguments)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device")
    return args


def main(arguments: Sequence[str] | None = None) -> list[Section]:
    """Check, measure, print and write; returns the sections."""
    args = parse(arguments)
    on_gpu = args.device == "cuda"
    checked = check() if on_gpu else "not run, since this is not a GPU"
    base = RandomBase(args.shape, args.device)
    sections = [
        measure(
            base,
            Setting(
                main=args.members,
                batch=batch,
                mean=args.mean,
                rounds=args.rounds,
                token_budget=default_token_budget(args.device),
            ),
            args.device,
        )
        for batch in (8, 1)
    ]
    name = torch.cuda.get_device_name() if on_gpu else "a CPU"
    intro = [
        f"Llama of the shape {args.shape} with random weights in bfloat16, adapters in float32, r = {RANK}, torch"
        f" {torch.__version__}, {datetime.date.today().isoformat()}; rows of {args.mean} tokens on average,"
        f" {args.rounds} rounds in turn after a warm-up. Tests of the GPU: {checked}.",
    ]
    text = render(f"Training on {name}", intro, sections)
    print(text)
    if on_gpu and args.shape == "7b":
        plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
        month = datetime.date.today().strftime("%Y-%m")
        path = Path(__file__).parent / "results" / f"gpu_{plain}_{month}.md"
        path.write_text(text, encoding="utf-8")
        log(f"written to {path}")
    return sections


if __name__ == "__main__":
    main()
