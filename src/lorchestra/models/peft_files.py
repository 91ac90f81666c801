"""Members as PEFT LoRA folders: what PEFT and vLLM read as they are.

Format: `adapter_config.json` and `adapter_model.safetensors` as PEFT's `save_pretrained` writes them, keys
`base_model.model.<module>.lora_A.weight` `[R, I]` and `.lora_B.weight` `[O, R]`.
"""

from __future__ import annotations

import copy
import os
import re
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
from lorchestra.store.atomic import sha256_file

WEIGHTS = "adapter_model.safetensors"
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def adapter_tensors(adapters: StackedAdapters, values_P: Tensor, rank: int | None = None) -> dict[str, Tensor]:
    """One member's parameters under PEFT's names, up to its own rank (by default the bank's)."""
    tensors = {}
    for piece in adapters.slices:
        for which in ("A", "B"):
            view = adapters.view(values_P, piece, which)
            view = view[:rank] if which == "A" else view[:, :rank]
            tensors[f"base_model.model.{piece.name}.lora_{which}.weight"] = view.detach().cpu().contiguous()
    return tensors


def save_members(
    directory: Path,
    ensemble: EnsembleModel,
    values_MP: Tensor,
    base_path: str,
    members: Sequence[int] | None = None,
    adapt: AdaptConfig | None = None,
) -> list[dict[str, str]]:
    """Write `member_00`, `member_01`, ... into an existing directory.

    Args:
        directory: where the folders go; the caller makes it appear whole.
        ensemble: gives the adapters' shape and place.
        values_MP: the parameters of all members, `[M, P]`.
        base_path: what PEFT loads the base from (hub id or directory).
        members: which to write, numbered in this order; by default all.
        adapt: the settings that these members were configured by, where they are a part of the ensemble with settings
            of its own; by default the ensemble's. It decides in which words a folder states its scaling.

    Returns:
        For each written member, its folder's name and the SHA-256 of its weights.
    """
    adapt = adapt or ensemble.adapt
    config = peft_config(ensemble, base_path)
    written = []
    for index, m in enumerate(range(ensemble.num_members) if members is None else members):
        own = ensemble.adapter_settings[m]
        as_configured = (own.r, own.scaling) == (adapt.r, adapt.scaling)
        config.r, config.lora_dropout, config.init_lora_weights = own.r, own.dropout, own.as_saved.init_lora_weights
        config.use_rslora = adapt.use_rslora and as_configured
        config.lora_alpha = _short(adapt.lora_alpha if as_configured else own.scaling * own.r)
        folder = directory / f"member_{index:02d}"
        folder.mkdir()
        _write_member(folder, config, adapter_tensors(ensemble.adapters, values_MP[m], own.r))
        written.append({"path": f"{directory.name}/{folder.name}", "sha256": sha256_file(folder / WEIGHTS)})
    return written


def _short(number: float) -> float:
    """As an integer where it is one, as PEFT writes them."""
    return int(number) if float(number).is_integer() else number


def _write_member(folder: Path, config: Any, tensors: dict[str, Tensor]) -> None:
    config.save_pretrained(folder)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def peft_config(ensemble: EnsembleModel, base_path: str) -> Any:
    """The `LoraConfig` with which PEFT adapts exactly the modules that the ensemble adapts.

    It names them in the shortest way that does: as the user did, by the last parts of their names, or by whole names.
    """
    from peft import LoraConfig  # heavy; only needed here
    from peft.tuners.tuners_utils import check_target_module_exists

    adapt = ensemble.adapt
    adapted = [piece.name for piece in ensemble.adapters.slices]
    config = LoraConfig(
        task_type="CAUSAL_LM",
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
    every = [name for name in base_names(ensemble.model) if name]
    layers = None if len(ensemble.layers) == ensemble.num_layers else ensemble.layers
    ways: list[tuple[list[str], list[int] | None]] = [
        ([] if isinstance(adapt.target_modules, str) else list(adapt.target_modules), layers),
        (sorted({name.rsplit(".", 1)[-1] for name in adapted}), layers),
        (adapted, None),
    ]
    for names, some_layers in ways:
        config.target_modules, config.layers_to_transform = names, some_layers  # a list: PEFT's own set has no order
        if {name for name in every if names and check_target_module_exists(config, name)} == set(adapted):
            return config
    config.target_modules = "|".join(map(re.escape, adapted))  # a whole name may also be the end of another
    return config


def check_readable(ensemble: EnsembleModel) -> None:
    """Refuse targets whose adapters PEFT could not read, before anything is trained.

    For bases whose modules had other names in former days (mixtures of experts, composite models) PEFT renames what it
    reads, and takes names such as `gate_proj` for experts even where a linear map is called so. With such a base a
    member is written and read for trial, on a model whose weights take no memory.

    Raises:
        ConfigError: PEFT would adapt other modules, or not find their weights.
    """
    config: Any = ensemble.model.config
    if config is text_config(ensemble.model) and all(p.ndim < 3 for p in ensemble.model.parameters()):
        return
    kind: Any = type(ensemble.model)
    trial = torch.randn(ensemble.adapters.values.shape[1], generator=torch.Generator().manual_seed(0))
    tensors = adapter_tensors(ensemble.adapters, trial)
    with tempfile.TemporaryDirectory() as place, warnings.catch_warnings(), quiet_transformers():
        warnings.simplefilter("ignore")
        _write_member(Path(place), peft_config(ensemble, ""), tensors)
        with torch.device("meta"):
            skeleton = kind._from_config(copy.deepcopy(config), attn_implementation="eager")
        skeleton._apply(lambda tensor: torch.zeros((), dtype=tensor.dtype).expand(tensor.shape))
        found = _read_by_peft(skeleton, place)
    same = {key for key, tensor in tensors.items() if key in found and torch.equal(found[key], tensor)}
    lost = {key.removesuffix(".weight").rsplit(".", 2)[1] for key in tensors.keys() - same}
    if lost or found.keys() - same:
        raise ConfigError(
            f"adapt.target_modules: {ensemble.adapt.target_modules!r} cannot be saved for PEFT, which in a"
            f" {kind.__name__} takes names for those of experts, or of former days"
            f" ({', '.join(sorted(lost)) or 'of others, too'}); leave those out, as by naming attention's maps only"
        )


def _read_by_peft(skeleton: nn.Module, folder: str) -> dict[str, Tensor]:
    """The adapter tensors that PEFT puts onto a model; none where it refuses."""
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer

    try:
        model = PeftModel.from_pretrained(skeleton, folder, low_cpu_mem_usage=True)
    except (ValueError, RuntimeError):
        return {}
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer)]
    found = {}
    for name, module in layers:
        for which in ("lora_A", "lora_B"):
            weight = getattr(module, which)["default"].weight.detach()
            found[f"{name}.{which}.weight"] = torch.empty(0) if weight.is_meta else weight  # meta: nothing was read
    return found


@torch.no_grad()
def load_member(
    adapters: StackedAdapters,
    member: int,
    folder: str | os.PathLike[str],
    sha256: str | None = None,
    rank: int | None = None,
) -> None:
    """Read one PEFT folder into a member's row.

    Args:
        bank: where to.
        member: whose row.
        folder: the PEFT folder.
        sha256: what its weights' checksum must be.
        rank: the member's own rank, for one that was trained elsewhere: rows of A and columns of B past it, and modules
            that this member does not adapt, are zero. None: the bank's rank, and every module must be there.

    Raises:
        CheckpointError: the file is missing, damaged, of other modules or shapes than the ensemble, or holds values
            that are no finite numbers.
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
            found = tensors.pop(key, None)
            if found is None or found.shape != view.shape:
                shape = "is missing" if found is None else f"has shape {list(found.shape)}, not {list(view.shape)}"
                raise CheckpointError(f"{path}: {key} {shape}; config.yaml and the adapters do not belong together")
            if found.dtype not in _DTYPES:
                raise CheckpointError(f"{path}: {key} holds {found.dtype} values, not floating-point ones")
            view.copy_(found)
            if not view.isfinite().all():
                raise CheckpointError(f"{path}: {key} holds NaN or infinite values; train the member again")
    if tensors:
        raise CheckpointError(f"{path}: holds {len(tensors)} tensors that config.yaml does not name, as {min(tensors)}")
