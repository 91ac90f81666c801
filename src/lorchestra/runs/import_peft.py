"""Make a run of LoRA adapters that were trained elsewhere, so that it can be evaluated and used as an ensemble."""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from lorchestra.config.adapt import BaseConfig
from lorchestra.config.data import DataConfig
from lorchestra.config.run import RunConfig, TrainConfig, check_run
from lorchestra.errors import CheckpointError, ConfigError
from lorchestra.models.ensemble import EnsembleModel
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
from lorchestra.runs.build import build_pipeline
from lorchestra.runs.record import ensemble_record, write_description
from lorchestra.runs.rows import read_rows
from lorchestra.store.atomic import atomic_directory, atomic_write_json, sha256_file
from lorchestra.store.run_dir import RunDir, require_free, write_ensemble

logger = logging.getLogger(__name__)

BASE_OF_THE_FOLDERS = BaseConfig(name="")


def import_run(
    folders: Sequence[str | Path],
    out: str | Path,
    *,
    data: DataConfig,
    base: BaseConfig = BASE_OF_THE_FOLDERS,
    same_base: bool = False,
    seed: int = 0,
) -> RunDir:
    """Make a run directory of PEFT LoRA folders; it appears whole or not at all.

    Members may differ in rank, scaling and in what they adapt. Their weights are copied as they are.

    Args:
        folders: one a member.
        out: the run directory to make.
        data: how answers are asked for; its training rows give the labels and few-shot examples.
        base: the base; an empty name stands for the one that the folders name.
        same_base: take `base` for the folders' base although they name another.
        seed: decides which rows are held out for validation and test where no files are given.

    Raises:
        ConfigError, DataError, CheckpointError: a folder, a row or a setting cannot be used.
    """
    if not folders:
        raise ConfigError("import: no folder; give one PEFT folder or more, each becomes a member")
    root = require_free(out)
    found = [read_peft_folder(folder) for folder in folders]
    checksums = [sha256_file(folder_file(folder.path, WEIGHTS)) for folder in found]
    _refuse_twins(found, checksums)
    config = RunConfig(_base(found, base), common_adapt(found), data, TrainConfig(seed=seed))
    check_run(config)
    rows = read_rows(config.data, seed)
    for note in rows.notes:
        logger.info(note)
    if data.test is None:
        logger.info(
            f"the test rows are held out of {data.train}: adapters that were trained on all of its rows have seen them;"
            " give --data.test for an honest evaluation"
        )
    if len({folder.dropout for folder in found}) > 1:
        logger.info("the members were trained with different dropout; MC dropout is left out of evaluations")

    def check(loaded: LoadedBase) -> None:
        _check_base(found, config.base, loaded, same_base)

    pipeline, resolved = build_pipeline(
        config,
        rows.task.name,
        rows.task.labels,
        rows.task.splits["train"],
        adapter_settings=[
            dataclasses.replace(own, r=folder.r, scaling=folder.scaling)
            for own, folder in zip(make_adapter_settings(config.adapt, seed), found, strict=True)
        ],
        check_base=check,
    )
    for split in ("val", "test"):  # rows that cannot be asked are told of now, not in the first evaluation
        pipeline.encode(rows.task.splits[split])
    num_bytes = sum(folder_file(folder.path, WEIGHTS).stat().st_size for folder in found)
    with atomic_directory(root, num_bytes=num_bytes) as directory:
        run = RunDir(directory)
        write_description(run, resolved, rows, pipeline)
        members = [
            _copy_member(run, m, folder, checksum, pipeline.model, pipeline.base)
            for m, (folder, checksum) in enumerate(zip(found, checksums, strict=True))
        ]
        # what their training cost is not known here
        cost = dict.fromkeys(("train_s", "tokens", "tokens_per_s", "peak_bytes", "base_passes"))
        write_ensemble(run, ensemble_record(pipeline, rows, members, cost))
    return RunDir(root)


def _refuse_twins(folders: Sequence[PeftFolder], checksums: Sequence[str]) -> None:
    first: dict[str, PeftFolder] = {}
    for folder, checksum in zip(folders, checksums, strict=True):
        twin = first.setdefault(checksum, folder)
        if twin is not folder:
            raise CheckpointError(
                f"{folder.path}: holds the same weights as {twin.path}; equal members add nothing, give each once"
            )


def _base(folders: Sequence[PeftFolder], given: BaseConfig) -> BaseConfig:
    """The base to load: the one given, or the one that the folders name, at the revision that they name."""
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
    # a relative path is that of another working directory as often as not, so only absolute ones are compared as such
    known = name is None or name in names or os.path.normpath(name) in names
    if not known and not same_base:
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


def _copy_member(
    run: RunDir, m: int, folder: PeftFolder, checksum: str, model: EnsembleModel, base: LoadedBase
) -> dict[str, Any]:
    """Copy one folder into the run, read it as a run is read, and describe it for `ensemble.json`."""
    target = run.members / f"member_{m:02d}"
    target.mkdir(parents=True)
    if folder.adapter_name is None:
        shutil.copyfile(folder_file(folder.path, WEIGHTS), target / WEIGHTS)
    else:  # PEFT would take the name in the keys for a part of the module's
        save_file(plain_tensors(folder), target / WEIGHTS, metadata={"format": "pt"})
        checksum = sha256_file(target / WEIGHTS)
    config = read_peft_config(folder.path)
    base_keys = {"base_model_name_or_path": base.path_for_peft, "revision": base.revision}
    atomic_write_json(target / CONFIG, config | base_keys | {"inference_mode": True})
    load_member(model.adapters, m, target, checksum, folder.r)
    return {
        "path": f"members/{target.name}",
        "sha256": checksum,
        "seed": None,
        "state": "imported",
        "best_step": None,
        "val_nll": None,
        "r": folder.r,
        "scaling": folder.scaling,
        "source": str(folder.path.absolute()),
    }
