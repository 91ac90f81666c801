"""Write a run's members for use elsewhere: plain PEFT folders, and whole models with the adapter merged."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from lorchestra.errors import CheckpointError, ConfigError
from lorchestra.models.gguf import quiet_transformers
from lorchestra.models.loading import LoadedBase, dtype_name
from lorchestra.models.peft_files import WEIGHTS
from lorchestra.models.peft_import import CONFIG, PeftFolder, read_peft_config, read_peft_folder
from lorchestra.models.quantized import dequantize, num_weights
from lorchestra.models.targets import is_transposed
from lorchestra.report.card import QUESTIONS_FILE
from lorchestra.runs.loading import good_members, load_base_of
from lorchestra.store.atomic import atomic_write_json, atomic_write_text, sha256_file
from lorchestra.store.ensemble_record import MemberRecord
from lorchestra.store.run import Run
from lorchestra.store.schema import read_json
from lorchestra.store.workspace import Workspace
from lorchestra.types import Json

logger = logging.getLogger(__name__)


def exported_members(root: str | Path) -> list[str]:
    """The names of the folders that an export of this run holds: failed members are left out.

    Raises:
        CheckpointError: no finished run, or files are missing.
    """
    run = Run.at(root)
    return [member.name for member in _members(run)]


def export_run(
    root: str | Path,
    out: str | Path,
    *,
    card: str,
    merge: bool = False,
    base_name: str | None = None,
    base: str | Path | None = None,
) -> Path:
    """Write `member_00`, `member_01`, ... and README.md into a new directory, which appears whole or not at all.

    A run's typed questions are written as a questions file, too.

    Args:
        root: a finished run.
        out: the directory to make.
        card: the text of README.md (see `report.card`).
        merge: also write `merged_00`, ...: whole models, with tokenizer, in the base's number format.
        base: where the run's base is now, if it has moved; without `base_name` the adapters name that.
        base_name: what the adapters name as their base (a hub id), instead of this machine's path.

    Raises:
        CheckpointError: no finished run, damaged files, another base, or `out` exists.
        ConfigError: members with classification heads are to be merged.
    """
    run = Run.at(root)
    record, config = run.read_ensemble(), run.read_config()
    if merge and record.scoring == "head":
        raise ConfigError(
            "--merge: a causal language model has no classification head; export the adapters alone, which"
            " AutoModelForSequenceClassification and PEFT load"
        )
    with Workspace.new(out) as workspace:
        members = _members(run)
        for member in members:
            weights = run.inside(member.path, WEIGHTS)
            if sha256_file(weights) != member.sha256:
                raise CheckpointError(
                    f"{weights}: the checksum is not the one in ensemble.json; it was changed or damaged"
                )
            read_peft_folder(weights.parent)  # other programs are only to be given plain LoRA
        num_bytes = sum(run.inside(member.path, WEIGHTS).stat().st_size for member in members)
        loaded = load_base_of(run, record, config, base) if merge or base is not None else None
        if loaded is not None and base_name is None and base is not None:
            base_name = loaded.path_for_peft
        if loaded is not None and merge:
            num_bytes += len(members) * num_weights(loaded.model) * loaded.dtype.itemsize
        with workspace.create(num_bytes) as directory:
            for member in members:
                _copy_member(run, member, directory)
            if loaded is not None and merge:
                _merge_members(directory, [member.name for member in members], loaded)
            if base_name is not None:  # last: merging loads the adapters with the base at hand
                for member in members:
                    _rename_base(directory / member.name / CONFIG, base_name)
            if record.questions:
                questions = {question.name: question.to_dict() for question in record.questions}
                atomic_write_json(directory / QUESTIONS_FILE, questions)
            atomic_write_text(directory / "README.md", card)
    return workspace.root


def _dequantize(base: LoadedBase) -> None:
    """Make a quantized base plain: merged weights do not have the few values that it can store."""
    if base.quantization is not None:
        logger.warning(
            f"merged models hold the dequantized weights ({base.quantization}) that the members were trained on, in"
            f" {dtype_name(base.dtype)}; quantizing them again changes answers and confidence"
        )
        dequantize(base.model, base.dtype)


def _members(run: Run) -> list[MemberRecord]:
    record = run.read_ensemble()
    return [record.members[m] for m in good_members(run, record)]


def _copy_member(run: Run, member: MemberRecord, directory: Path) -> None:
    folder = directory / member.name
    folder.mkdir()
    for name in (CONFIG, WEIGHTS):
        shutil.copyfile(run.inside(member.path, name), folder / name, follow_symlinks=False)


def _rename_base(path: Path, base_name: str) -> None:
    atomic_write_json(path, read_json(path) | {"base_model_name_or_path": base_name, "revision": None})


def _adapted(folder: PeftFolder, base: LoadedBase) -> Json:
    """The linear maps of the base that an adapter adapts, by name."""
    modules = dict(base.model.named_modules())
    for name, sizes in folder.modules.items():
        weight = getattr(modules.get(name), "weight", None)
        if weight is None or sorted(weight.shape) != sorted(sizes):
            shape = "no such map" if weight is None else f"a map of {list(weight.shape)}"
            raise CheckpointError(
                f"{folder.path / WEIGHTS}: adapts {name} as a map from {sizes[0]} to {sizes[1]} features, but {base.id}"
                f" has {shape}; the adapter is not of this base"
            )
    return {name: modules[name] for name in folder.modules}


def _plain_config(folder: Path, modules: Mapping[str, Any]) -> object:
    """What PEFT needs to merge a plain LoRA: nothing else of its configuration, which may be a stranger's."""
    from peft import LoraConfig  # heavy; only needed here

    config = read_peft_config(folder)
    return LoraConfig(
        task_type="CAUSAL_LM",
        inference_mode=True,
        r=config["r"],
        lora_alpha=config.get("lora_alpha", 8),
        use_rslora=bool(config.get("use_rslora")),
        fan_in_fan_out=any(map(is_transposed, modules.values())),
        target_modules="|".join(map(re.escape, modules)),
    )


@torch.no_grad()
def _merge_members(directory: Path, names: Sequence[str], base: LoadedBase) -> None:
    """Merge each member into the one loaded base, save the model, and restore the base's weights."""
    from peft import PeftModel  # heavy; only needed here

    _dequantize(base)
    for part in (base.model.config, base.model.config.get_text_config()):
        part.use_cache = True  # loading turned it off for packed passes; saved models are for generation
    for name in names:
        modules = _adapted(read_peft_folder(directory / name), base)
        config = _plain_config(directory / name, modules)
        weights = {key: module.weight.clone() for key, module in modules.items()}
        adapted = PeftModel.from_pretrained(base.model, str(directory / name), config=config)
        merged = adapted.merge_and_unload(safe_merge=True)
        folder = directory / name.replace("member", "merged")
        with quiet_transformers():
            merged.save_pretrained(folder)
            base.tokenizer.save_pretrained(folder)
        for key, module in modules.items():
            module.weight.copy_(weights[key])
        logger.info(f"merged {name}")
