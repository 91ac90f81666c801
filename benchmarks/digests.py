"""Train small fixed runs through the command line and print digests of their adapters and predictions.

A change that should not alter numbers gives the same digests before and after, on one machine: bits differ between
processors. The script uses the command line only, so that it works with other versions of the code.

    python benchmarks/digests.py --out before.json
    ... the change ...
    python benchmarks/digests.py --compare before.json
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import yaml
from safetensors.numpy import load_file
from tiny_base import WORDS, save_tiny_base

_TRAIN = {"epochs": 3, "batch_size": 6, "lr": 0.01, "checkpoint_every_s": 0.0}
_ADAPT = {"members": 3, "r": 2}

# settings that each case adds to the common ones; cases named "... +stop" are interrupted and resumed
CASES: dict[str, dict[str, Any]] = {
    "all layers": {},
    "all layers, float64": {"base": {"dtype": "float64"}},
    "trunk": {"adapt": {"layers": "last:1"}},
    "trunk, float64": {"adapt": {"layers": "last:1"}, "base": {"dtype": "float64"}},
    "trunk in half precision": {"adapt": {"layers": "last:1", "trunk_dtype": "bfloat16"}},
    "dropout": {"adapt": {"dropout": 0.2}},
    "KL and decay": {"adapt": {"layers": "last:2"}, "regularize": {"kl_beta": 0.5, "weight_decay_b": 5.0}},
    "KL over the vocabulary": {"regularize": {"kl_beta": 0.5, "kl_over": "vocabulary", "kl_direction": "reverse"}},
    "penalties": {"regularize": {"weight_decay_ba": 0.1, "weight_decay_a": 1.0, "label_smoothing": 0.1}},
    "shared prefix": {"data": {"prompt": {"template": f"{' '.join(WORDS * 3)}\nText: {{question}}\nLabel:"}}},
    "early stop": {"train": {"patience": 1, "epochs": 8, "lr": 0.05}},
    "keep last, checkpointing": {"train": {"keep": "last", "gradient_checkpointing": True, "token_budget": 120}},
    "bootstrap, PiSSA": {"adapt": {"order": "bootstrap", "init_lora_weights": "pissa"}},
    "questions": {"data": {"train": "questions.jsonl", "normalize": "token"}},
    "letters": {"data": {"train": "questions.jsonl", "scoring": "letter"}},
    "all layers +stop": {},
    "trunk, dropout, KL +stop": {"adapt": {"layers": "last:1", "dropout": 0.2}, "regularize": {"kl_beta": 0.5}},
}
SWEEP = ("train.lr=0.01,1e30", "regularize.label_smoothing=0,0.1")
METHODS = (
    "one_lora,lora_ensemble+temperature,mc_dropout:dropout=0.2,soup,snapshot,last_layer,swag,laplace,blob,"
    "batch_ensemble"
)


def write_rows(folder: Path) -> None:
    """Write texts with labels and questions with choices, drawn with a fixed seed."""
    draw = random.Random(0)
    texts, questions = ["text,label"], []
    seen: set[str] = set()
    while len(seen) < 60:
        words = " ".join(draw.choices(WORDS, k=draw.randint(4, 12)))
        if words in seen:
            continue
        seen.add(words)
        texts.append(f"{words},{'yes' if 'good' in words or 'fine' in words else 'no'}")
        choices = draw.sample(WORDS, draw.randint(2, 4))
        questions.append({"question": words, "choices": choices, "answer": draw.randrange(len(choices))})
    (folder / "texts.csv").write_text("\n".join(texts) + "\n", encoding="utf-8")
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions), encoding="utf-8")


def write_recipe(folder: Path, name: str, changes: dict[str, Any]) -> Path:
    """Write the recipe of a case: the common settings, updated by its changes."""
    recipe: dict[str, Any] = {
        "base": {"name": str(folder / "base"), "device": "cpu", "threads": 1},
        "adapt": dict(_ADAPT),
        "data": {"train": "texts.csv", "scoring": "text"},
        "train": dict(_TRAIN),
        "evaluate": {"few_shot": 2, "resamples": 50},
    }
    for group, values in changes.items():
        recipe.setdefault(group, {}).update(values)
    recipe["data"]["train"] = str(folder / recipe["data"]["train"])
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path


LATER_BASELINES = (".tfidf", ".frozen")
"""Predictions that evaluations of earlier versions do not have."""


def lorchestra(*arguments: object, codes: tuple[int, ...] = (0,)) -> str:
    """Run a command in a subprocess; returns its stdout."""
    command = [sys.executable, "-m", "lorchestra", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)
    if done.returncode not in codes:
        raise SystemExit(f"{' '.join(command)}\nexit code {done.returncode}\n{done.stderr}")
    return done.stdout


def train_with_stop(recipe: Path, out: Path) -> None:
    """Train, interrupt after some steps, resume."""
    command = [sys.executable, "-m", "lorchestra", "train", str(recipe), "--out", str(out), "--skip-evaluation"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        events = out / "events.jsonl"
        while process.poll() is None and not (events.exists() and events.read_bytes().count(b"\n") >= 6):
            time.sleep(0.01)
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
    lorchestra("train", recipe, "--out", out, "--if-exists", "resume", "--skip-evaluation")


def digest_arrays(paths: list[Path], root: Path) -> str:
    """A digest of the arrays' names, shapes, formats and bytes, independent of the files' layout."""
    digest = hashlib.sha256()
    for path in sorted(path for path in paths if not path.stem.endswith(LATER_BASELINES)):
        digest.update(path.relative_to(root).as_posix().encode())
        for name, array in sorted(load_file(path).items()):
            digest.update(f"{name} {array.shape} {array.dtype}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def digest_run(run: Path, data: Path) -> dict[str, str]:
    """Digests of a run's adapters, of its evaluation's predictions, and of its answers to the rows of a file."""
    answers = [json.loads(line) for line in lorchestra("predict", run, "--data", data).splitlines()]
    numbers = json.dumps([[answer["probs"], answer["member_probs"]] for answer in answers]).encode()
    return {
        "adapters": digest_arrays(list(run.glob("members/*/*.safetensors")), run),
        "predictions": digest_arrays(list(run.glob("predictions/*.safetensors")), run),
        "answers": hashlib.sha256(numbers).hexdigest()[:16],
    }


def collect(folder: Path, only: str) -> dict[str, dict[str, str]]:
    """Train every case in `folder`; returns its digests."""
    write_rows(folder)
    save_tiny_base(folder / "base")
    digests: dict[str, dict[str, str]] = {}

    def report(name: str, parts: dict[str, str]) -> None:
        digests[name] = parts
        print(f"{name:<28}", *(f"{part} {value}" for part, value in parts.items()), flush=True)

    for number, (name, changes) in enumerate(CASES.items()):
        if only not in name:
            continue
        recipe, out = write_recipe(folder, f"case{number}", changes), folder / f"run{number}"
        if name.endswith("+stop"):
            train_with_stop(recipe, out)
        else:
            lorchestra("train", recipe, "--out", out, "--skip-evaluation")
        lorchestra("evaluate", out)
        data = folder / changes.get("data", {}).get("train", "texts.csv")
        report(name, digest_run(out, data))
    recipe = write_recipe(folder, "common", {})
    if only in "sweep with failing members":
        out = folder / "sweep"
        grid = [word for axis in SWEEP for word in ("--grid", axis)]
        lorchestra("sweep", recipe, *grid, "--out", out, codes=(1,))
        patterns = {"adapters": "**/members/*/*.safetensors", "predictions": "**/predictions/*.safetensors"}
        parts = {part: digest_arrays(list(out.glob(pattern)), out) for part, pattern in patterns.items()}
        report("sweep with failing members", parts)
    if only in "methods":
        out = folder / "comparison"
        lorchestra("compare", recipe, "--methods", METHODS, "--out", out)
        report("methods", {"predictions": digest_arrays(list(out.glob("**/*.safetensors")), out)})
    return digests


def main() -> int:
    """Collect digests; exit code 1 if they differ from those of `--compare`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="file to write the digests to")
    parser.add_argument("--compare", type=Path, help="file with the digests of another state of the code")
    parser.add_argument("--only", default="", help="cases whose names contain this")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        digests = collect(Path(folder), arguments.only)
    if arguments.out is not None:
        machine = {"processor": platform.processor() or platform.machine(), "python": platform.python_version()}
        arguments.out.write_text(json.dumps({"machine": machine, "digests": digests}, indent=1), encoding="utf-8")
    if arguments.compare is None:
        return 0
    before = json.loads(arguments.compare.read_text(encoding="utf-8"))["digests"]
    different = [name for name, parts in digests.items() if before.get(name) != parts]
    for name in different:
        print(f"different: {name}: {before.get(name)} before, {digests[name]} now")
    print(f"{len(digests) - len(different)} of {len(digests)} cases are the same")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
