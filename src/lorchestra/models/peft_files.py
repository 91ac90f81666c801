"""Members as PEFT LoRA folders, which PEFT and vLLM can load.

Format: `adapter_config.json` and `adapter_model.safetensors` as PEFT's `save_pretrained` writes them, keys
`base_model.model.<module>.lora_A.weight` `[R, I]` and `.lora_B.weight` `[O, R]`. A classification head is one of PEFT's
`modules_to_save`, the module that transformers' classifiers call `score`, `[C, D]`.
"""

from __future__ import annotations

import copy
import os
import re
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lorchestra.config.adapt import AdaptConfig
from lorchestra.errors import CheckpointError, ConfigError
from lorchestra.models.ensemble import EnsembleModel
from lorchestra.models.gguf import quiet_transformers
from lorchestra.models.patching import text_config
from lorchestra.models.targets import base_names, is_transposed
from lorchestra.nn.adapters import StackedAdapters
from lorchestra.nn.head import STEP_SCALE
from lorchestra.store.atomic import sha256_file

if TYPE_CHECKING:
    from peft import LoraConfig
    from transformers import PreTrainedModel

WEIGHTS = "adapter_model.safetensors"
HEAD = "score"
"""The classification head of transformers' `AutoModelForSequenceClassification` with a decoder."""
HEAD_KEY = f"base_model.model.{HEAD}.weight"
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def adapter_tensors(adapters: StackedAdapters, values_P: Tensor, rank: int | None = None) -> dict[str, Tensor]:
    """One member's parameters under PEFT's names, up to its rank (by default the highest of all members)."""
    tensors = {}
    for piece in adapters.slices:
        for which in ("A", "B"):
            view = adapters.view(values_P, piece, which)
            view = view[:rank] if which == "A" else view[:, :rank]
            tensors[f"base_model.model.{piece.name}.lora_{which}.weight"] = view.detach().cpu().contiguous()
    if adapters.head_shape is not None:
        tensors[HEAD_KEY] = (adapters.head(values_P).detach() * STEP_SCALE).cpu()
    return tensors


def save_members(
    directory: Path,
    ensemble: EnsembleModel,
    values_MP: Tensor,
    base_path: str,
    members: Sequence[int] | None = None,
    adapt: AdaptConfig | None = None,
    first: int = 0,
) -> list[dict[str, str]]:
    """Write the folders `member_00`, `member_01`, ... to an existing directory.

    Args:
        directory: where to write; the caller makes it appear complete.
        ensemble: defines the adapters' shapes and modules.
        values_MP: the parameters of all members, `[M, P]`.
        base_path: the base for PEFT: hub id or directory.
        members: which to write, numbered in this order; default: all.
        adapt: the settings that these members were configured with, if not the ensemble's (a point of a sweep); they
            decide whether a folder states its scaling by lora_alpha and use_rslora as configured.
        first: number of the first folder.

    Returns:
        Per written member, its folder's path and the SHA-256 of its weights.
    """
    adapt = adapt or ensemble.adapt
    config = peft_config(ensemble, base_path)
    written = []
    for index, m in enumerate(range(ensemble.num_members) if members is None else members, first):
        member = ensemble.adapter_settings[m]
        as_configured = (member.r, member.scaling) == (adapt.r, adapt.scaling)
        config.r, config.lora_dropout = member.r, member.dropout
        config.init_lora_weights = member.as_saved.init_lora_weights
        config.use_rslora = adapt.use_rslora and as_configured
        config.lora_alpha = _short(adapt.lora_alpha if as_configured else member.scaling * member.r)
        folder = directory / f"member_{index:02d}"
        folder.mkdir()
        _write_member(folder, config, adapter_tensors(ensemble.adapters, values_MP[m], member.r))
        written.append({"path": f"{directory.name}/{folder.name}", "sha256": sha256_file(folder / WEIGHTS)})
    return written


def _short(number: float) -> float:
    """As an integer if it is one, like PEFT."""
    return int(number) if float(number).is_integer() else number


def _write_member(folder: Path, config: LoraConfig, tensors: dict[str, Tensor]) -> None:
    config.save_pretrained(folder)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def peft_config(ensemble: EnsembleModel, base_path: str) -> LoraConfig:
    """The `LoraConfig` with which PEFT adapts exactly the ensemble's modules.

    It names them in the shortest unambiguous way: as the user did, by the last parts of their names, or in full.
    """
    from peft import LoraConfig  # heavy
    from peft.tuners.tuners_utils import check_target_module_exists

    adapt = ensemble.adapt
    adapted = [piece.name for piece in ensemble.adapters.slices]
    config = LoraConfig(
        task_type="CAUSAL_LM" if ensemble.head is None else "SEQ_CLS",
        modules_to_save=None if ensemble.head is None else [HEAD],
        base_model_name_or_path=base_path,
        inference_mode=True,
        r=ensemble.adapters.slices[0].rank,
        lora_alpha=_short(adapt.lora_alpha),
        lora_dropout=adapt.dropout,
        use_rslora=adapt.use_rslora,
        init_lora_weights=ensemble.adapter_settings[0].as_saved.init_lora_weights,
        fan_in_fan_out=any(is_transposed(ensemble.model.get_submodule(name).base) for name in adapted),
        target_modules=adapted,
    )
    all_names = [name for name in base_names(ensemble.model) if name]
    layers = None if len(ensemble.layers) == ensemble.num_layers else ensemble.layers
    candidates: list[tuple[list[str], list[int] | None]] = [
        ([] if isinstance(adapt.target_modules, str) else list(adapt.target_modules), layers),
        (sorted({name.rsplit(".", 1)[-1] for name in adapted}), layers),
        (adapted, None),
    ]
    for names, some_layers in candidates:
        config.target_modules, config.layers_to_transform = (
            names,
            some_layers,
        )  # not a set: its order varies
        if {name for name in all_names if names and check_target_module_exists(config, name)} == set(adapted):
            return config
    config.target_modules = "|".join(map(re.escape, adapted))  # a full name may also be the end of another
    return config


def check_readable(ensemble: EnsembleModel) -> None:
    """Refuse targets whose adapters PEFT could not load, before anything is trained.

    For bases whose modules were renamed in transformers (mixtures of experts, composite models), PEFT renames what it
    loads, and reads names such as `gate_proj` as experts even if they are linear maps. With such a base, a member is
    saved and loaded on trial, on a model whose weights take no memory.

    Raises:
        ConfigError: PEFT would adapt other modules, or miss their weights.
    """
    model: PreTrainedModel = ensemble.model
    if model.config is text_config(model) and all(p.ndim < 3 for p in model.parameters()):
        return
    trial = torch.randn(ensemble.adapters.values.shape[1], generator=torch.Generator().manual_seed(0))
    tensors = adapter_tensors(ensemble.adapters, trial)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), quiet_transformers():
        warnings.simplefilter("ignore")
        _write_member(Path(folder), peft_config(ensemble, ""), tensors)
        with torch.device("meta"):
            skeleton = type(model)._from_config(copy.deepcopy(model.config), attn_implementation="eager")
        skeleton._apply(lambda tensor: torch.zeros((), dtype=tensor.dtype).expand(tensor.shape))
        loaded = _read_by_peft(skeleton, folder)
    same = {key for key, tensor in tensors.items() if key in loaded and torch.equal(loaded[key], tensor)}
    failed = {key.removesuffix(".weight").rsplit(".", 2)[1] for key in tensors.keys() - same}
    if failed or loaded.keys() - same:
        raise ConfigError(
            f"adapt.target_modules: {ensemble.adapt.target_modules!r} cannot be saved for PEFT, which in a"
            f" {type(model).__name__} reads names as those of experts, or of earlier versions"
            f" ({', '.join(sorted(failed)) or 'also of other modules'}); leave those out, for example by naming maps of"
            " the attention only"
        )


def _read_by_peft(skeleton: nn.Module, folder: str) -> dict[str, Tensor]:
    """The adapter tensors that PEFT loads onto a model; none if it refuses."""
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer

    try:
        model = PeftModel.from_pretrained(skeleton, folder, low_cpu_mem_usage=True)
    except (ValueError, RuntimeError):
        return {}
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer)]
    tensors = {}
    for name, module in layers:
        for which in ("lora_A", "lora_B"):
            weight = getattr(module, which)["default"].weight.detach()
            tensors[f"{name}.{which}.weight"] = torch.empty(0) if weight.is_meta else weight  # meta: not loaded
    return tensors


@torch.no_grad()
def load_member(
    adapters: StackedAdapters,
    member: int,
    folder: str | os.PathLike[str],
    sha256: str | None = None,
    rank: int | None = None,
) -> None:
    """Load a PEFT folder as a member.

    Args:
        adapters: the adapters of all members, changed in place.
        member: which member.
        folder: the PEFT folder.
        sha256: the expected checksum of its weights.
        rank: the member's rank, if it was trained elsewhere: rows of A and columns of B beyond it, and modules that
            this member does not adapt, become zero. None: the adapters' rank, and no module may be missing.

    Raises:
        CheckpointError: the file is missing, damaged, has other modules or shapes than the ensemble, or values that
            are not finite.
    """
    path = Path(folder) / WEIGHTS
    if sha256 is not None and sha256_file(path) != sha256:
        raise CheckpointError(f"{path}: the file's checksum is not the one in ensemble.json; it was changed or damaged")
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path}: not a readable safetensors file ({error}); copy the run directory again"
        ) from error
    if rank is not None:
        adapters.values[member].zero_()
    for piece in adapters.slices:
        keys = {which: f"base_model.model.{piece.name}.lora_{which}.weight" for which in ("A", "B")}
        if rank is not None and not tensors.keys() & set(keys.values()):
            continue
        for which, key in keys.items():
            view = adapters.view(adapters.values[member], piece, which)
            if rank is not None:
                view = view[:rank] if which == "A" else view[:, :rank]
            view.copy_(_checked(path, key, tensors.pop(key, None), view))
    if adapters.head_shape is not None:
        view = adapters.head(adapters.values[member])
        view.copy_(_checked(path, HEAD_KEY, tensors.pop(HEAD_KEY, None), view) / STEP_SCALE)
    if tensors:
        raise CheckpointError(
            f"{path}: has {len(tensors)} tensors that config.yaml does not name, such as {min(tensors)}"
        )


def _checked(path: Path, key: str, tensor: Tensor | None, view: Tensor) -> Tensor:
    """A tensor of a PEFT folder in the number format of `view`, if it has its shape and finite numbers."""
    if tensor is None or tensor.shape != view.shape:
        fault = "is missing" if tensor is None else f"has shape {list(tensor.shape)}, not {list(view.shape)}"
        raise CheckpointError(f"{path}: {key} {fault}; config.yaml and the adapters do not match")
    if tensor.dtype not in _DTYPES:
        raise CheckpointError(f"{path}: {key} has {tensor.dtype} values, not floating-point ones")
    if not (converted := tensor.to(view)).isfinite().all():  # 1e300 is infinite in float32
        raise CheckpointError(f"{path}: {key} holds NaN or infinite values; train the member again")
    return converted
