"""Members as PEFT LoRA folders: what PEFT and vLLM read as they are.

Format: `adapter_config.json` and `adapter_model.safetensors` as PEFT's `save_pretrained` writes them, keys
`base_model.model.<module>.lora_A.weight` `[R, I]` and `.lora_B.weight` `[O, R]`.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lorchestra.core.bank import AdapterBank
from lorchestra.errors import CheckpointError
from lorchestra.models.ensemble import EnsembleModel
from lorchestra.store.atomic import sha256_file

WEIGHTS = "adapter_model.safetensors"


def adapter_tensors(bank: AdapterBank, values_P: Tensor) -> dict[str, Tensor]:
    """One member's parameters under PEFT's names."""
    tensors = {}
    for piece in bank.slices:
        for which in ("A", "B"):
            view = bank.view(values_P, piece, which)
            tensors[f"base_model.model.{piece.name}.lora_{which}.weight"] = view.detach().cpu().contiguous()
    return tensors


def save_members(directory: Path, ensemble: EnsembleModel, values_MP: Tensor, base_path: str) -> list[dict[str, str]]:
    """Write `member_00`, `member_01`, ... into an existing directory.

    Args:
        directory: where the folders go; the caller makes it appear whole.
        ensemble: gives the adapters' shape and place.
        values_MP: the parameters to save, `[M, P]`.
        base_path: what PEFT loads the base from (hub id or directory).

    Returns:
        For each member, its folder's name and the SHA-256 of its weights.
    """
    from peft import LoraConfig  # heavy; only needed here

    adapt = ensemble.adapt
    written = []
    for m in range(ensemble.num_members):
        shared = ensemble.scaling[m] == adapt.lora_alpha / adapt.r
        alpha = float(adapt.lora_alpha if shared else ensemble.scaling[m] * adapt.r)
        config = LoraConfig(
            task_type="CAUSAL_LM",
            base_model_name_or_path=base_path,
            inference_mode=True,
            r=adapt.r,
            lora_alpha=int(alpha) if alpha.is_integer() else alpha,
            lora_dropout=adapt.dropout,
            target_modules=list(adapt.target_modules),
            layers_to_transform=None if len(ensemble.layers) == ensemble.num_layers else ensemble.layers,
        )
        folder = directory / f"member_{m:02d}"
        folder.mkdir()
        config.save_pretrained(folder)
        save_file(adapter_tensors(ensemble.bank, values_MP[m]), folder / WEIGHTS, metadata={"format": "pt"})
        written.append({"path": f"{directory.name}/{folder.name}", "sha256": sha256_file(folder / WEIGHTS)})
    return written


@torch.no_grad()
def load_member(
    bank: AdapterBank,
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
        CheckpointError: the file is missing, damaged, or of other modules or shapes than the ensemble.
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
        bank.values[member].zero_()
    for piece in bank.slices:
        keys = {which: f"base_model.model.{piece.name}.lora_{which}.weight" for which in ("A", "B")}
        if rank is not None and not tensors.keys() & set(keys.values()):
            continue
        for which, key in keys.items():
            view = bank.view(bank.values[member], piece, which)
            if rank is not None:
                view = view[:rank] if which == "A" else view[:, :rank]
            found = tensors.pop(key, None)
            if found is None or found.shape != view.shape:
                shape = "is missing" if found is None else f"has shape {list(found.shape)}, not {list(view.shape)}"
                raise CheckpointError(f"{path}: {key} {shape}; config.yaml and the adapters do not belong together")
            view.copy_(found)
    if tensors:
        raise CheckpointError(f"{path}: holds {len(tensors)} tensors that config.yaml does not name, as {min(tensors)}")
