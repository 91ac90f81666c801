"""Make a run of LoRA adapters that were trained elsewhere, to evaluate and use them as an ensemble."""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import save_file

from lorchestra.config.adapt import BaseConfig
from lorchestra.config.data import DataConfig
from lorchestra.config.mappings import check_types
from lorchestra.config.run import RunConfig, TrainConfig, check_run
from lorchestra.errors import CheckpointError, ConfigError
from lorchestra.inference.pipeline import Pipeline
from lorchestra.models.init import make_adapter_settings
from lorchestra.models.loading import LoadedBase
from lorchestra.models.peft_files import WEIGHTS, load_member
from lorchestra.models.peft_import import (
    CONFIG,
    PeftFolder,
    check_fits,
    common_adapt,
    folder_file,
    named_base,
    plain_tensors,
    read_peft_config,
    read_peft_folder,
)
from lorchestra.runs.build import build_pipeline, describe, ensemble_record, settle_dtype, torch_threads
from lorchestra.runs.calibration import calibrate, save_calibration
from lorchestra.runs.rows import RunRows, read_rows
from lorchestra.store.atomic import atomic_write_json, sha256_file
from lorchestra.store.ensemble_record import MemberRecord
from lorchestra.store.run import Run
from lorchestra.store.workspace import Workspace
from lorchestra.training.callbacks import Callback

logger = logging.getLogger(__name__)

BASE_OF_THE_FOLDERS = BaseConfig(name="")
_HELD_OUT = (
    "the validation rows are held out of the training file, and the adapters may have been trained on them; give"
    " --data.val"
)
_UNKNOWN_COST = dict.fromkeys(("train_s", "tokens", "tokens_per_s", "peak_bytes", "base_passes"))


def import_run(
    folders: Sequence[str | Path],
    out: str | Path,
    *,
    data: DataConfig,
    base: BaseConfig = BASE_OF_THE_FOLDERS,
    same_base: bool = False,
    seed: int = 0,
) -> Run:
    """Make a run directory of PEFT LoRA folders; it appears whole or not at all.

    Members may differ in rank, scaling and adapted modules. Their weights are copied unchanged.

    Args:
        folders: one per member.
        out: the run directory to make.
        data: how questions are put to the model; its training rows give the labels and few-shot examples.
        base: the base; an empty name stands for the one that the folders name.
        same_base: accept `base` although the folders name another.
        seed: decides which rows are held out for validation and test if no files are given.

    Raises:
        ConfigError, DataError, CheckpointError: a folder, a row or a setting cannot be used.
    """
    check_types(data, DataConfig, "data")
    check_types(base, BaseConfig, "base")
    if not folders:
        raise ConfigError("import: no folder; give one PEFT folder or more, each becomes a member")
    with Workspace.new(out) as workspace, torch_threads(base.threads):
        adapters = [read_peft_folder(folder) for folder in folders]
        checksums = [sha256_file(folder_file(folder.path, WEIGHTS)) for folder in adapters]
        _refuse_twins(adapters, checksums)
        data = _with_scoring(data, adapters)
        config = RunConfig(_base(adapters, base), common_adapt(adapters), data, TrainConfig(seed=seed))
        check_run(config)
        rows = read_rows(config.data, seed)
        _check_heads(adapters, rows.task.labels)
        _log_notes(adapters, data, rows)
        config, rates = settle_dtype(config)
        pipeline, resolved = _build(config, adapters, rows, same_base)
        for split in ("val", "test"):  # reports rows that cannot be used now, not in the first evaluation
            pipeline.encode(rows.task.splits[split])
        num_bytes = sum(folder_file(folder.path, WEIGHTS).stat().st_size for folder in adapters)
        with workspace.create(num_bytes) as directory:
            run = Run(directory)
            describe(run, resolved, rows, pipeline, rates)
            members = [
                _copy_member(run, m, folder, checksum, pipeline)
                for m, (folder, checksum) in enumerate(zip(adapters, checksums, strict=True))
            ]
            record = ensemble_record(pipeline, rows, members, _UNKNOWN_COST)
            if config.data.val is None and config.data.task is None:
                save_calibration(run, record, _HELD_OUT)
            else:
                calibrate(run, record, pipeline, rows.task.splits["val"], config.train.calibration, Callback())
            run.write_ensemble(record)
    return Run(workspace.root)


def _with_scoring(data: DataConfig, folders: Sequence[PeftFolder]) -> DataConfig:
    """The settings of data with the scoring of the folders: classification heads, or not.

    Raises:
        ConfigError: some folders have a head, or another scoring is configured.
    """
    with_head = [folder for folder in folders if folder.head_shape is not None]
    if with_head and len(with_head) < len(folders):
        (without, *_) = [folder for folder in folders if folder.head_shape is None]
        raise ConfigError(
            f"import: {with_head[0].path} has a classification head and {without.path} has none; members answer alike"
        )
    if bool(with_head) == (data.scoring == "head"):
        return data
    if not with_head or data.scoring != "auto":
        has = "have classification heads" if with_head else "have no classification head"
        raise ConfigError(f"data.scoring: {data.scoring}, but the adapters {has}; leave it out")
    return dataclasses.replace(data, scoring="head")


def _check_heads(folders: Sequence[PeftFolder], labels: Sequence[str] | None) -> None:
    """Refuse classification heads for another number of labels.

    Raises:
        ConfigError: names the folder and both numbers.
    """
    for folder in folders:
        if folder.head_shape is not None and (labels is None or folder.head_shape[0] != len(labels)):
            number = (
                "the rows have choices instead of labels" if labels is None else f"the rows have {len(labels)} labels"
            )
            raise ConfigError(
                f"{folder.path / WEIGHTS}: its head has {folder.head_shape[0]} labels, but {number}; give rows"
                " with the labels that this adapter was trained on"
            )
    if labels is not None and any(folder.head_shape is not None for folder in folders):
        logger.info(f"the heads' labels, in order: {', '.join(labels[:20])}{', ...' if len(labels) > 20 else ''}")


def _log_notes(adapters: Sequence[PeftFolder], data: DataConfig, rows: RunRows) -> None:
    for note in rows.notes:
        logger.info(note)
    if data.test is None:
        logger.info(
            f"the test rows are held out of {data.train}: adapters that were trained on all of its rows have seen them;"
            " give --data.test for an honest evaluation"
        )
    if len({folder.dropout for folder in adapters}) > 1:
        logger.info("the members were trained with different dropout; MC dropout is left out of evaluations")


def _build(
    config: RunConfig, adapters: Sequence[PeftFolder], rows: RunRows, same_base: bool
) -> tuple[Pipeline, RunConfig]:
    """The base with members of the adapters' shapes on it, and the resolved configuration."""
    adapter_settings = [
        dataclasses.replace(settings, r=folder.r, scaling=folder.scaling)
        for settings, folder in zip(make_adapter_settings(config.adapt, config.train.seed), adapters, strict=True)
    ]
    task = rows.task
    return build_pipeline(
        config,
        task.name,
        task.labels,
        task.splits["train"],
        adapter_settings=adapter_settings,
        check_base=lambda loaded: _check_base(adapters, config.base, loaded, same_base),
    )


def _refuse_twins(folders: Sequence[PeftFolder], checksums: Sequence[str]) -> None:
    first: dict[str, PeftFolder] = {}
    for folder, checksum in zip(folders, checksums, strict=True):
        twin = first.setdefault(checksum, folder)
        if twin is not folder:
            raise CheckpointError(
                f"{folder.path}: holds the same weights as {twin.path}; identical members add nothing, give each once"
            )


def _base(folders: Sequence[PeftFolder], given: BaseConfig) -> BaseConfig:
    """The base to load: the given one, or the one that the folders name, at the revision that they name."""
    name, revision = named_base(folders)
    if not given.name:
        if name is None:
            raise ConfigError(f"--base: {folders[0].path / CONFIG} names no base; give the one it was trained on")
        return dataclasses.replace(given, name=name, revision=revision)
    if given.name == name and given.revision is None:
        return dataclasses.replace(given, revision=revision)
    return given


def _check_base(folders: Sequence[PeftFolder], given: BaseConfig, loaded: LoadedBase, same_base: bool) -> None:
    name, revision = named_base(folders)
    names = {given.name, loaded.id, loaded.path_for_peft}
    # a relative path often refers to another working directory, so only absolute paths are compared
    is_known = name is None or name in names or os.path.normpath(name) in names
    if not is_known and not same_base:
        raise CheckpointError(
            f"{folders[0].path / CONFIG}: trained on {name!r}, but --base is {given.name!r}; give the base it was"
            " trained on, or --same-base if these are two names of the same weights"
        )
    if name == given.name and revision is not None and revision != given.revision and not same_base:
        raise CheckpointError(
            f"{folders[0].path / CONFIG}: trained on revision {revision!r} of {name!r}, but --revision is"
            f" {given.revision!r}; leave it out, or give --same-base if both have the same weights"
        )
    for folder in folders:
        check_fits(folder, loaded.model, given.name)


def _copy_member(run: Run, m: int, folder: PeftFolder, checksum: str, pipeline: Pipeline) -> MemberRecord:
    """Copy one folder into the run, load it as a run's member is loaded, and describe it."""
    target = run.members / f"member_{m:02d}"
    target.mkdir(parents=True)
    if folder.adapter_name is None:
        shutil.copyfile(folder_file(folder.path, WEIGHTS), target / WEIGHTS)
    else:  # PEFT would take the name in the keys for part of the module's name
        save_file(plain_tensors(folder), target / WEIGHTS, metadata={"format": "pt"})
        checksum = sha256_file(target / WEIGHTS)
    config, base = read_peft_config(folder.path), pipeline.base
    base_keys = {"base_model_name_or_path": base.path_for_peft, "revision": base.revision}
    atomic_write_json(target / CONFIG, config | base_keys | {"inference_mode": True})
    load_member(pipeline.model.adapters, m, target, checksum, folder.r)
    return MemberRecord(
        path=f"members/{target.name}",
        sha256=checksum,
        seed=None,
        state="imported",
        best_step=None,
        val_nll=None,
        r=folder.r,
        scaling=folder.scaling,
        source=str(folder.path.absolute()),
    )
