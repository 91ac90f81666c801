"""Run directories like those of training and evaluation, made without a model; and a parser of pages."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from lorchestra.config.adapt import AdaptConfig
from lorchestra.config.mappings import to_mapping, to_yaml
from lorchestra.config.run import RunConfig
from lorchestra.metrics.evaluation import evaluate_predictions, ood_scores
from lorchestra.store.atomic import atomic_write_json
from lorchestra.store.predictions import save_predictions
from lorchestra.store.run import Run
from lorchestra.types import Predictions


def make_predictions(
    members: int = 3, rows: int = 60, seed: int = 0, task: str = "toy", split: str = "test", signal: float = 1.2
) -> Predictions:
    """Members that share a signal and differ in noise, on rows with two to four choices."""
    draw = np.random.default_rng(seed)
    widths = np.where(np.arange(rows) % 2, 4, 2)
    labels = draw.integers(widths)
    shared = draw.normal(size=(rows, 4))
    shared[np.arange(rows), labels] += signal
    scores = 1.5 * (shared + draw.normal(size=(members, rows, 4)))
    scores[:, np.arange(4) >= widths[:, None]] = -np.inf
    log_probs = scores - np.log(np.exp(scores).sum(axis=-1, keepdims=True))
    return Predictions(
        log_probs,
        labels.astype(np.int64),
        tuple(f"{split}-{row}" for row in range(rows)),
        tuple(tuple("abcd"[:width]) for width in widths),
        task=task,
        split=split,
        texts=tuple(f"question {row} of {split}?" for row in range(rows)),
    )


@pytest.fixture
def make_run(tmp_path):
    """Writes a finished and evaluated run directory; returns its path. Each `evaluations` is a split's name."""

    def build(
        name: str = "run",
        *,
        task: str = "toy",
        members: int = 3,
        evaluations: tuple[str, ...] = ("test",),
        ood: tuple[str, ...] = ("far",),
        temperature: bool = False,
        resamples: int = 60,
        seed: int = 0,
        rows: int = 60,
        config: RunConfig | None = None,
        change: Any = None,
        record: Any = None,
    ) -> Path:
        run = Run(tmp_path / name)
        run.root.mkdir(parents=True)
        config = config or RunConfig(adapt=AdaptConfig(members=members))
        run.config.write_text(to_yaml(config), encoding="utf-8")
        atomic_write_json(run.environment, {"python": "3.11.7", "packages": {"torch": "2.13.0"}})
        entries = []
        validation = make_predictions(members, 40, seed + 1, task, "val")
        save_predictions(run.predictions, validation)
        for split in evaluations:
            predictions = validation if split == "val" else make_predictions(members, rows, seed, task, split)
            zero = replace(
                make_predictions(1, predictions.num_examples, 77, task, split, 0.2), labels=predictions.labels
            )
            if change is not None:
                predictions, zero = change(predictions), replace(zero, ids=change(predictions).ids)
            save_predictions(run.predictions, predictions)
            save_predictions(run.predictions, zero, f"{task}.{split}.base_few_shot")
            entry = evaluate_predictions(
                predictions,
                validation=validation,
                train_labels=[0, 0, 1],
                baselines={"base_few_shot": zero},
                temperature=temperature,
                resamples=resamples,
            )
            entry["ood"] = {}
            for name in ood:
                outside = make_predictions(members, 30, seed + 5, task, f"ood_{name}")
                save_predictions(run.predictions, outside)
                entry["ood"][name] = ood_scores(predictions, outside)
            entries.append(entry)
        cost = {"train_s": 12.0, "tokens": 30000, "tokens_per_s": 2500.0, "peak_bytes": 2**30, "base_passes": 9.0}
        atomic_write_json(run.metrics, {"evaluations": entries, "cost": cost})
        events = [{"event": "step", "step": s, "epoch": (s - 1) // 4, "loss": [1.0 / s] * members} for s in range(1, 9)]
        for epoch in (1, 2):
            nlls = [1.0 / epoch + 0.1 * m for m in range(members)]
            events.append(
                {"event": "evaluation", "step": 4 * epoch, "val_nll": nlls, "val_accuracy": [0.5 * epoch] * members}
            )
        run.events.write_text("".join(json.dumps(event) + "\n" for event in events))
        folder = run.members / "member_00"
        folder.mkdir(parents=True)
        arrays = {"q.lora_A.weight": np.zeros((8, 16), "f4"), "q.lora_B.weight": np.zeros((16, 8), "f4")}
        save_file(arrays, folder / "adapter_model.safetensors")
        atomic_write_json(
            run.ensemble,
            {
                "format_version": 2,
                "base": {"id": "tiny", "revision": None, "digest": "d1", "path": "tiny"},
                "tokenizer_digest": "d2",
                "num_members": members,
                "members": [
                    {
                        "path": f"members/member_{m:02d}",
                        "sha256": "0" * 64,
                        "state": "finished",
                        "best_step": 8,
                        "val_nll": 0.5,
                        "seed": m,
                    }
                    for m in range(members)
                ],
                "task": task,
                "labels": ["no", "yes"],
                "prompt_template": "{question} Answer:",
                "chat_template": False,
                "system_prompt": None,
                "scoring": "text",
                "choice_end": "where_needed",
                "normalize": "sum",
                "cost": cost,
            }
            | (record or {}),
        )
        return run.root

    return build


@dataclass
class Page:
    """The parts of a page that a browser sees."""

    tags: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    text: str = ""
    scripts: list[str] = field(default_factory=list)
    styles: list[str] = field(default_factory=list)
    tables: list[list[list[str]]] = field(default_factory=list)

    def row(self, name: str, table: int | None = None) -> list[str]:
        """The cells of the first row that starts with a name."""
        tables = self.tables if table is None else [self.tables[table]]
        return next(row for rows in tables for row in rows if row and row[0] == name)


class _Parser(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.page = Page()
        self.inside = ""
        self.in_cell = False

    def handle_starttag(self, tag, attrs):
        self.page.tags.append((tag, dict(attrs)))
        self.inside = tag if tag in ("script", "style") else ""
        if tag == "table":
            self.page.tables.append([])
        elif tag == "tr" and self.page.tables:
            self.page.tables[-1].append([])
        elif tag in ("td", "th"):
            self.page.tables[-1][-1].append("")
            self.in_cell = True

    def handle_startendtag(self, tag, attrs):
        self.page.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        self.inside = ""
        self.in_cell = self.in_cell and tag not in ("td", "th")

    def handle_data(self, data):
        if self.inside == "script":
            self.page.scripts.append(data)
        elif self.inside == "style":
            self.page.styles.append(data)
        else:
            self.page.text += data
            if self.in_cell:
                self.page.tables[-1][-1][-1] += data + " "


@pytest.fixture
def read_page():
    """Parses a page."""

    def read(path: Path) -> Page:
        parser = _Parser()
        parser.feed(Path(path).read_text(encoding="utf-8"))
        parser.close()
        page = parser.page
        page.tables = [[[" ".join(cell.split()) for cell in row] for row in rows] for rows in page.tables]
        return page

    return read


@pytest.fixture
def make_comparison(tmp_path):
    """Writes a directory of compared methods on the rows of `make_run`; returns its path."""

    def build(
        name: str = "compared",
        *,
        methods: Any = ("zero_shot", "one_lora", "one_lora+temperature", "lora_ensemble", "high_rank", "long_training"),
        task: str = "toy",
        split: str = "test",
        rows: int = 60,
        resamples: int = 60,
        config: RunConfig | None = None,
        left_out: Any = None,
        change: Any = None,
        train_digest: str = "d",
    ) -> Path:
        root = tmp_path / name
        mapping = to_mapping(config or RunConfig(adapt=AdaptConfig(members=3)))
        atomic_write_json(root / "compare.json", {"format_version": 1, "config": mapping, "resolved": mapping})
        atomic_write_json(root / "splits.json", {"train": {"digest": train_digest}})
        if left_out:
            atomic_write_json(root / "left_out.json", left_out)
        for number, key in enumerate(methods):
            members = 3 if key.split("+")[0] == "lora_ensemble" else 1
            predictions = make_predictions(members, rows, 0, task, split, 0.2 + 0.3 * number)
            predictions = predictions if change is None else change(predictions)
            entry = evaluate_predictions(predictions, train_labels=[0, 0, 1], resamples=resamples)
            result = {
                "name": key,
                "summary": f"what {key} is",
                "settings": {},
                "chosen": {"temperature": 1.234} if "+" in key else {},
                "cost": {
                    "fit_base_passes": 2.5 * number,
                    "tokens": 12000 * number,
                    "fit_s": 10.0 + number,
                    "peak_bytes": 2**30,
                    "parameters": 768 * number,
                    "predict_base_passes": float(members),
                },
                "predict_s": {"val": 1.0, "test": 2.0},
                "entry": entry,
                "config": mapping,
            }
            folder = root / "methods" / key
            save_predictions(folder / "predictions", predictions)
            atomic_write_json(folder / "result.json", result)
        return root

    return build
