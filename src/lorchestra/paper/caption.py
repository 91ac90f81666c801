"""What was trained, as the caption of a figure: the paper's values, and this project's where those are open."""

from __future__ import annotations

from collections.abc import Sequence

from lorchestra.paper.results import REGULARIZERS, FinishedRun
from lorchestra.store.schema import read_json

PAPER = {"adapt.members": 5, "adapt.r": 8}
"""Settings of arXiv 2310.00035 that are known here; its strengths of the decay on B are 1e2 and 1e3."""


def caption(runs: Sequence[FinishedRun], profile: str, named: str | None = None) -> str:
    """One text on the settings that all of a figure's runs share; what varies is in its data.

    Args:
        runs: the figure's runs.
        profile: the profile they were trained with.
        named: the task's name, where `runs` holds the directory of a comparison of methods.
    """
    config, varied = runs[0].config, {field for run in runs for field in run.settings}
    known = {"adapt.members": config.adapt.members, "adapt.r": config.adapt.r}
    names = {"adapt.members": "M", "adapt.r": "r"}
    shared = [field for field in PAPER if field not in varied]
    paper = [f"{names[field]} = {known[field]}" for field in shared if known[field] == PAPER[field]]
    own = [
        f"{names[field]} = {known[field]} (paper: {PAPER[field]})" for field in shared if known[field] != PAPER[field]
    ]
    sizes = []
    for task, run in {named or run.task: run for run in runs}.items():
        splits = run.run.read_splits("train", "test")
        sizes.append(f"{task} ({splits['train']['num_examples']} training, {splits['test']['num_examples']} test rows)")
    adapt, train = config.adapt, config.train
    epochs = "epoch" if train.epochs == 1 else "epochs"
    modules = adapt.target_modules if isinstance(adapt.target_modules, str) else ", ".join(adapt.target_modules)
    alpha = "" if "adapt.lora_alpha" in varied else f"alpha {adapt.lora_alpha:g} on "
    own += [
        f"{config.base.name.rstrip('/').rpartition('/')[2]} (paper: LLaMA-13b)",
        "; ".join(sizes),
        f"{alpha}{modules}, layers {adapt.layers}",
        f"AdamW, lr {train.lr:g} {train.schedule}, {train.epochs} {epochs} of batches of {train.batch_size}",
        f"{_scoring(runs[0], named)} scoring, few-shot base with {config.evaluate.few_shot} rows, seed {train.seed}",
    ]
    if named is None:
        prompts = dict.fromkeys(str(run.record["prompt_template"]) for run in runs)
        own.append("prompt " + ", ".join('"' + prompt.replace("\n", " / ") + '"' for prompt in prompts))
    if varied & REGULARIZERS.keys():
        own.append("strengths of the regularizers, except 100 and 1000 of the decay on B")
    begin = f"As in the paper: {', '.join(paper)}. " if paper else ""
    return f"{begin}This project's setting (profile {profile}): {'; '.join(own)}."


def _scoring(run: FinishedRun, named: str | None) -> str:
    """How answers were scored: settled for a run, or once for a comparison."""
    if named is None:
        return str(run.record["scoring"])
    record = read_json(run.run.inside("compare.json"), {"resolved": {"data": {"scoring": str}}})
    return str(record["resolved"]["data"]["scoring"])
