"""Certify a threshold on one source of rows, then monitor days on which another source takes over.

    pip install --no-deps evals==3.0.1.post1
    python examples/shift.py --out runs/shift

The model learns whether an English headline is satire. Each day brings new rows; on later days a growing part of them
are Portuguese sentences, sarcastic or not. The alarm needs no labels. The errors are counted with labels that one would
not have in time: a row that is automated is a row that nobody has looked at.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import random
from collections.abc import Sequence
from pathlib import Path

from scipy.stats import binomtest

from lorchestra import AdaptConfig, BaseConfig, DataConfig, Ensemble, PromptConfig, RunConfig, TrainConfig

SHARES = (0.0, 0.0, 0.1, 0.2, 0.3, 0.4, 0.7)
"""Part of each day's rows that come from the other source."""

Row = dict[str, str]


def source(name: str) -> list[Row]:
    """Labelled texts of a folder of the wheel `evals`, without duplicates, in a random order."""
    spec = importlib.util.find_spec("evals")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("the rows are in a package: pip install --no-deps evals==3.0.1.post1")
    file = Path(spec.submodule_search_locations[0], "registry/data", name, "samples.jsonl")
    rows: dict[str, Row] = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        sample = json.loads(line)
        text = " ".join(sample["input"][-1]["content"].split())
        if len(text) <= 300 and text.casefold() not in rows:
            rows[text.casefold()] = {"text": text, "label": "yes" if sample["ideal"] in ("1", "Y") else "no"}
    return random.Random(0).sample(list(rows.values()), len(rows))


def write(file: Path, rows: Sequence[Row], *, labels: bool = True) -> Path:
    """Write rows as JSON lines."""
    shown = rows if labels else [{"text": row["text"]} for row in rows]
    file.write_text("".join(json.dumps(row) + "\n" for row in shown), encoding="utf-8")
    return file


def take(rows: list[Row], number: int) -> list[Row]:
    """Remove the first rows and return them."""
    taken = rows[:number]
    del rows[:number]
    return taken


def main() -> None:
    """Train, certify, monitor."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=Path, help="directory to make")
    parser.add_argument("--base", default="smollm2-135m")
    parser.add_argument("--members", type=int, default=3)
    parser.add_argument("--layers", default="last:6")
    parser.add_argument("--rows", type=int, default=400, help="rows that train, and rows that certify")
    parser.add_argument("--rows-per-day", type=int, default=100)
    parser.add_argument("--target-error", type=float, default=0.2)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True)
    headlines, others = source("sarcasm"), source("portuguese-sarcasm")

    files = {
        name: str(write(arguments.out / f"{name}.jsonl", take(headlines, number)))
        for name, number in (("train", arguments.rows), ("val", arguments.rows // 3), ("certify", arguments.rows))
    }
    config = RunConfig(
        base=BaseConfig(name=arguments.base),
        adapt=AdaptConfig(members=arguments.members, layers=arguments.layers),
        data=DataConfig(
            train=files["train"],
            val=files["val"],
            scoring="text",
            prompt=PromptConfig(template="Headline: {question}\nIs this headline satire? Answer:"),
        ),
        train=TrainConfig(epochs=4, lr=2e-3, criterion="nll"),
    )
    ensemble = Ensemble.train(config, out=arguments.out / "run")
    decisions = ensemble.calibrate(files["certify"], target_error=arguments.target_error)
    print(decisions.guarantee())
    if not decisions.has_threshold:
        return

    new = arguments.out / "new.jsonl"
    print("day  other source  automated  wrong of these  p-value of the errors  alarm, without labels")
    for day, share in enumerate(SHARES, 1):
        num_others = round(share * arguments.rows_per_day)
        rows = take(headlines, arguments.rows_per_day - num_others) + take(others, num_others)
        random.Random(day).shuffle(rows)
        monitoring = ensemble.monitor(write(new, rows, labels=False))

        answers = ensemble.predict([row["text"] for row in rows])
        pairs = [(a, row) for a, row in zip(answers, rows, strict=True) if a.decision == "automate"]
        wrong = sum(answer.prediction != row["label"] for answer, row in pairs)
        p_value = binomtest(wrong, len(pairs), arguments.target_error, alternative="greater").pvalue if pairs else 1.0
        alarm = ", ".join(monitoring.reasons) or "no"
        print(f"{day:3}  {share:12.0%}  {len(pairs):9}  {wrong:14}  {p_value:21.4f}  {alarm}", flush=True)


if __name__ == "__main__":
    main()
