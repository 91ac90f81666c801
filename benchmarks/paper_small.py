"""Figures 1, 3, 5 and ood of the paper on the embedded base and a part of ARC-Easy, where it overfits.

400 training, 80 validation and 400 test rows of ARC-Easy, and 200 of OpenBookQA and CommonsenseQA, are drawn with a
fixed seed into OUT/data, and `lorchestra paper` trains the profile `small` on them: five members without and five with
strong decay on B, in one packed pass, with predictions after each of six epochs. Results: docs/paper.md.

    python benchmarks/paper_small.py --data-dir DIR --out OUT       112 minutes on one busy core

DIR has one folder per data set, with JSON lines.
"""

from __future__ import annotations

import argparse
import gzip
import random
from pathlib import Path

from lorchestra.cli.main import main as lorchestra
from lorchestra.store.atomic import atomic_write_text

ROWS = {
    "arc_easy.train": ("arc_easy/train.jsonl", 400),
    "arc_easy.val": ("arc_easy/dev.jsonl", 80),
    "arc_easy.test": ("arc_easy/test.jsonl", 400),
    "openbookqa": ("openbookqa/test.jsonl", 200),
    "commonsense_qa": ("commonsense_qa/dev.jsonl", 200),
}
"""The files to draw: the source file in the data directory, and the number of rows."""


def draw(source: Path, number: int) -> str:
    """Rows of a file of JSON lines, plain or gzipped, drawn with a fixed seed."""
    packed = source.with_name(f"{source.name}.gz")
    text = gzip.decompress(packed.read_bytes()).decode() if packed.exists() else source.read_text(encoding="utf-8")
    rows = text.splitlines(keepends=True)
    random.Random(0).shuffle(rows)
    return "".join(rows[:number])


def main() -> int:
    """Draw the rows and make the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    data, figures = args.out / "data", args.out / "figures"
    files = {name: data / f"{name}.jsonl" for name in ROWS}
    for name, (source, number) in ROWS.items():
        atomic_write_text(files[name], draw(args.data_dir / source, number))
    arguments = ["paper", "fig1", "fig3", "fig5", "ood", "--profile", "small", "--out", figures]
    for split in ("train", "val", "test"):
        arguments += [f"--data.{split}", files[f"arc_easy.{split}"]]
    arguments += ["--ood", files["openbookqa"], files["commonsense_qa"]]
    arguments += ["--train.epochs", 6, "--train.batch-size", 8, "--train.lr", 1e-3]
    return lorchestra([str(argument) for argument in arguments])


if __name__ == "__main__":
    raise SystemExit(main())
