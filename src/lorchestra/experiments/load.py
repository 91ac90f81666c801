"""A finished run as a session: base, members and prompt as they were trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lorchestra.config import read_recipe
from lorchestra.core import predictive
from lorchestra.core.early_exit import ExitRule
from lorchestra.data.memory import examples_of, is_file
from lorchestra.data.prompts import PromptTemplate
from lorchestra.engine.config import RunConfig, check_run
from lorchestra.engine.module import EnsembleModule
from lorchestra.engine.session import Session
from lorchestra.errors import CheckpointError
from lorchestra.experiments.build import Say
from lorchestra.experiments.rows import read_like
from lorchestra.models.adapters import WEIGHTS, load_member
from lorchestra.models.ensemble import EnsembleModel
from lorchestra.models.members import member_adapters
from lorchestra.models.peft_folders import CONFIG
from lorchestra.models.sources import LoadedBase, load_base
from lorchestra.store.run_dir import RunDir, read_ensemble
from lorchestra.types import EarlyExitPredictions, Example, Predictions


@dataclass
class TrainedEnsemble:
    """A finished run, ready to predict.

    Failed members are left out: `session` holds the others, in order, and `members` their numbers in the run.
    """

    run: RunDir
    record: dict[str, Any]
    config: RunConfig
    session: Session
    members: tuple[int, ...]

    @property
    def labels(self) -> tuple[str, ...] | None:
        """The label set in order; None where every question brings its own choices."""
        return None if self.record["labels"] is None else tuple(self.record["labels"])

    def as_module(self) -> EnsembleModule:
        """The members as a `torch.nn.Module`: differentiable, and with the adapters as its parameters."""
        return EnsembleModule(self.session)

    def read(self, path: str | Path, *, require_answer: bool) -> tuple[Example, ...]:
        """Rows of a file, in the form the run was trained on."""
        return read_like(path, self.config.data, self.labels, require_answer=require_answer).examples

    def predict(
        self,
        rows: Any,
        abstain_below: float | None = None,
        early_exit: str | float | None = None,
    ) -> Iterator[dict[str, Any]]:
        """One dictionary a row (see `prediction_rows`), for the rows of a file or rows from Python.

        Args:
            rows: a file's path; or texts, dicts, a DataFrame, a Series, a Dataset or examples (see `examples_of`).
            abstain_below: marks rows whose confidence is below it.
            early_exit: "exact" or a confidence in (0, 1]: members are asked until a row is decided (see `ExitRule` and
                `early_exit_rows`).

        Raises:
            ConfigError: `early_exit` is neither of the two.
            InputError, DataError: rows that cannot be used; at the call, before the first is answered.
        """
        rule = None if early_exit is None else ExitRule.parse(early_exit, "early_exit")
        if is_file(rows):
            examples = self.read(rows, require_answer=False)
        else:
            examples = examples_of(rows, self.config.data.fields, self.labels)
        return self._answers(examples, abstain_below, rule) if examples else iter(())

    def _answers(
        self, examples: Sequence[Example], abstain_below: float | None, rule: ExitRule | None
    ) -> Iterator[dict[str, Any]]:
        if rule is None:
            yield from prediction_rows(self.session.predict_members(examples, "predict"), abstain_below)
        else:
            yield from early_exit_rows(self.session.predict_early(examples, "predict", rule), abstain_below)


def load_own_base(
    run: RunDir, record: dict[str, Any], config: RunConfig, say: Say, moved: str | Path | None = None
) -> LoadedBase:
    """The base a run was trained on.

    Args:
        run: the run.
        record: its record.
        config: its configuration.
        say: is told, in one line each, what a person should know.
        moved: where the base is now (as base.name), if not where it was.

    Raises:
        CheckpointError: it cannot be loaded, or is not what it was.
    """
    if moved is None:
        asked = dataclasses.replace(config.base, revision=record["base"]["revision"])
    else:
        asked = dataclasses.replace(config.base, name=str(moved), revision=None)
    try:
        base = load_base(asked, notify=say)
    except CheckpointError as error:
        if moved is not None:
            raise
        raise CheckpointError(f"{error} Where the run's base has moved, --base names its new path or id.") from error
    if base.digest != record["base"]["digest"] and moved is not None:
        raise CheckpointError(
            f"--base {moved}: is another base than {record['base'].get('id') or config.base.name}, on which"
            f" {run.root} was trained (digest {base.digest[:12]} against {record['base']['digest'][:12]}); adapters are"
            " only right on their own base"
        )
    if base.digest != record["base"]["digest"]:
        raise CheckpointError(
            f"{run.ensemble}: trained on another base than {config.base.name!r} is now (digest"
            f" {record['base']['digest'][:12]} against {base.digest[:12]}); adapters are only right on their own base"
        )
    if base.tokenizer_digest != record["tokenizer_digest"]:
        raise CheckpointError(f"{run.ensemble}: the tokenizer of {asked.name!r} has changed since the run was trained")
    return base


def load_run(root: str | Path, say: Say = lambda text: None, *, base: str | Path | None = None) -> TrainedEnsemble:
    """Load a finished run.

    Args:
        root: its directory.
        say: is told, in one line each, what a person should know.
        base: where the base is now (hub id, directory, .gguf file), if not where it was; its weights must be the same.

    Raises:
        CheckpointError: no finished run, damaged files, or the base is not the one the run was trained on.
    """
    run, record = read_ensemble(root)
    config = read_recipe(run.config, RunConfig, whole=True)
    check_run(config)
    _check_consistent(run, record, config)
    good = good_members(run, record)
    loaded = load_own_base(run, record, config, say, base)
    members = [record["members"][m] for m in good]
    adapt = dataclasses.replace(config.adapt, members=len(good))
    # members that were imported, or trained with settings of their own, have their rank and scaling in the record
    adapters = [
        dataclasses.replace(own.as_saved, r=member.get("r", own.r), scaling=member.get("scaling", own.scaling))
        for own, member in zip(member_adapters(adapt, config.train.seed), members, strict=True)
    ]
    model = EnsembleModel(loaded.model, adapt, config.train.seed, adapters)
    for index, member in enumerate(members):
        load_member(model.bank, index, run.root / member["path"], member["sha256"], member.get("r"))
    template = PromptTemplate.from_config(
        config.data, has_labels=record["labels"] is not None, tokenizer=loaded.tokenizer
    )
    if template.text(record["scoring"]) != record["prompt_template"]:
        raise CheckpointError(
            f"{run.ensemble}: prompt_template is not the one of data.prompt in {run.config.name}; one of the two files"
            " was changed"
        )
    assert config.train.token_budget is not None
    session = Session(
        loaded, model, template, config.data, record["scoring"], config.train.token_budget, record["task"], say
    )
    return TrainedEnsemble(run, record, config, session, good)


def good_members(run: RunDir, record: dict[str, Any]) -> tuple[int, ...]:
    """The members that did not fail, by their numbers in the run.

    Raises:
        CheckpointError: a file of one of them is missing.
    """
    good = tuple(m for m, member in enumerate(record["members"]) if member["state"] != "failed")
    for m in good:
        folder = run.root / str(record["members"][m].get("path"))
        for name in (CONFIG, WEIGHTS):
            if not (folder / name).is_file():
                raise CheckpointError(f"{folder / name}: missing; copy the run directory again, whole")
    return good


def _check_consistent(run: RunDir, record: dict[str, Any], config: RunConfig) -> None:
    """The record and the configuration must speak of the same run."""
    if len(record["members"]) != config.adapt.members:
        raise CheckpointError(
            f"{run.ensemble}: has {len(record['members'])} members, and adapt.members in {run.config.name} is"
            f" {config.adapt.members}; one of the two files was changed"
        )
    if all(member["state"] == "failed" for member in record["members"]):
        raise CheckpointError(f"{run.ensemble}: every member failed; train again with a smaller train.lr")
    if config.data.scoring != record["scoring"]:
        raise CheckpointError(
            f"{run.ensemble}: scoring is {record['scoring']!r}, and data.scoring in {run.config.name} is"
            f" {config.data.scoring!r}; one of the two files was changed"
        )
    if config.train.token_budget is None:
        raise CheckpointError(f"{run.config}: train.token_budget is missing; the file was changed")


def prediction_rows(predictions: Predictions, abstain_below: float | None = None) -> Iterator[dict[str, Any]]:
    """Predictions as one dictionary a row, as `lorchestra predict` writes them.

    `probs` and `confidence` are of the mixture of members; `entropy` and `mutual_information` in nats; `disagreement`
    is the share of member pairs with different answers; `abstain` is None unless a threshold is given.
    """
    log_probs = predictions.log_probs_MEC
    mixture = np.exp(predictive.mixture_log_probs(log_probs))
    member_probs = np.exp(log_probs)
    entropy = predictive.total_entropy(log_probs)
    information = predictive.mutual_information(log_probs)
    disagreement = predictive.disagreement(log_probs)
    for e, options in enumerate(predictions.options):
        probs = mixture[e, : len(options)]
        best = int(probs.argmax())
        label = int(predictions.labels[e])
        yield {
            "id": predictions.ids[e],
            "choices": list(options),
            "prediction": best,
            "prediction_text": options[best],
            "label": None if label < 0 else label,
            "confidence": float(probs[best]),
            "probs": probs.tolist(),
            "member_probs": member_probs[:, e, : len(options)].tolist(),
            "entropy": float(entropy[e]),
            "mutual_information": float(information[e]),
            "disagreement": float(disagreement[e]),
            "abstain": None if abstain_below is None else bool(probs[best] < abstain_below),
        }


def early_exit_rows(found: EarlyExitPredictions, abstain_below: float | None = None) -> list[dict[str, Any]]:
    """As `prediction_rows`, in the order of the rows; `members_used` says how many members answered one.

    `member_probs`, `probs` and all that follows from them are of these members alone.
    """
    rows = {
        int(place): {**row, "members_used": part.num_members}
        for part, places in zip(found.parts, found.places, strict=True)
        for place, row in zip(places, prediction_rows(part, abstain_below), strict=True)
    }
    return [rows[place] for place in sorted(rows)]
