"""PEFT LoRA folders made by other tools: read, checked, and combined into the shape of an ensemble.

An ensemble has plain LoRA, and may have a classification head per member. PEFT's extensions change the arithmetic, the
base or the tokens, so they are refused by name, and so are unknown settings that are on. Weights are read from
safetensors only: pickles can run code, and are never opened.

Format: see `peft_files`.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from lorchestra.config.adapt import AdaptConfig
from lorchestra.errors import CheckpointError
from lorchestra.models.directories import has_whole_weights, near_path
from lorchestra.models.peft_files import HEAD, HEAD_KEY, WEIGHTS
from lorchestra.store.safe_paths import inside, read_plain
from lorchestra.store.schema import COUNT, Each, Number, Shape, check_shape

CONFIG = "adapter_config.json"

# settings that do not change what a plain LoRA computes, or that are checked separately
_HARMLESS = {
    *("peft_type", "peft_version", "task_type", "auto_mapping", "inference_mode", "runtime_config"),
    *("base_model_name_or_path", "revision", "megatron_core", "ephemeral_gpu_offload"),
    *("r", "lora_alpha", "lora_dropout", "use_rslora", "fan_in_fan_out", "init_lora_weights", "qalora_group_size"),
    *("loftq_config", "eva_config", "corda_config", "lora_ga_config", "ensure_weight_tying"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
}
# other programs, PEFT included, rely on the types of these fields
_NAMES: Shape = (str, [str], None)
_SHAPE: Shape = {
    "r": Number(1, 10_000, whole=True),
    "lora_alpha?": Number(-1e30, 1e30),
    "peft_version?": (str, None),
    "auto_mapping?": (Each((str, None)), None),
    "inference_mode?": (bool, None),
    "runtime_config?": (Each(bool), None),
    "ephemeral_gpu_offload?": (bool, None),
    "use_rslora?": (bool, None),
    "fan_in_fan_out?": (bool, None),
    "ensure_weight_tying?": (bool, None),
    "qalora_group_size?": (Number(1, 1_000_000, whole=True), None),
    "megatron_core?": (str, None),
    "target_modules?": _NAMES,
    "exclude_modules?": _NAMES,
    "layers_pattern?": _NAMES,
    "layers_to_transform?": (COUNT, [COUNT], None),
    **{f"{name}?": (dict, None) for name in ("loftq_config", "eva_config", "corda_config", "lora_ga_config")},
}
_OFF: tuple[object, ...] = (None, False, "none", "", [], {})
# the others (pissa, olora, loftq, ...) subtract the adapter's start from the base's weights
_PLAIN_INITS = (None, True, False, "gaussian", "eva", "orthogonal")

_TENSOR = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<which>[AB])(\.(?P<adapter>[^.]+))?\.weight")
_AS_BASE = "a merged or fully fine-tuned model can be the base (--base.name) of new members"
_IN_LAYER = re.compile(r"(?P<list>.+?)\.(?P<layer>[0-9]{1,6})\.(?P<name>.+)")
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class PeftFolder:
    """One LoRA adapter on disk; `modules` has `(in_features, out_features)` of the adapted maps by name."""

    path: Path
    base: str | None
    """The base it was trained on, with its revision, as far as the folder names it."""
    revision: str | None
    r: int
    scaling: float
    """`lora_alpha / r`, or `lora_alpha / sqrt(r)` with rsLoRA."""
    dropout: float
    modules: Mapping[str, tuple[int, int]]
    head_shape: tuple[int, int] | None = None
    """C and D of the classification head; None without one."""
    adapter_name: str | None = None
    """The adapter's name in the keys of its tensors (`lora_A.NAME.weight`), which PEFT omits when it saves."""


def read_peft_folder(path: str | Path) -> PeftFolder:
    """Read and check one folder.

    Raises:
        CheckpointError: it is not a PEFT folder, its files are missing or damaged, or it is more than plain LoRA.
    """
    folder = Path(path)
    config = read_peft_config(folder)
    where = folder / CONFIG
    _refuse_features(where, config)
    r = config.get("r")
    if not isinstance(r, int) or isinstance(r, bool) or r < 1:
        raise CheckpointError(f"{where}: r is {r!r}, not a whole number above 0; the file was changed or damaged")
    alpha, dropout = _number(where, config, "lora_alpha", 8.0), _number(where, config, "lora_dropout", 0.0)
    if not 0 <= dropout < 1:
        raise CheckpointError(f"{where}: lora_dropout is {dropout}, not in [0, 1); the file was changed or damaged")
    check_shape(config, _SHAPE, where)
    scaling = alpha / (math.sqrt(r) if config.get("use_rslora") else r)
    base, revision = (_name(where, config, field) for field in ("base_model_name_or_path", "revision"))
    tensors = _read_tensors(folder)
    head_shape = _read_head(folder / WEIGHTS, tensors) if config.get("task_type") == "SEQ_CLS" else None
    modules, adapter_name = _read_modules(folder, tensors, r)
    return PeftFolder(folder, base, revision, r, scaling, dropout, modules, head_shape, adapter_name)


def plain_tensors(folder: PeftFolder) -> dict[str, Tensor]:
    """The folder's tensors under the keys that PEFT saves, without the adapter's name.

    Raises:
        CheckpointError: the file cannot be read.
    """
    tensors = _read_tensors(folder.path)
    return {key.replace(f".{folder.adapter_name}.weight", ".weight"): tensor for key, tensor in tensors.items()}


def folder_file(folder: Path, name: str) -> Path:
    """A file of an untrusted folder. Links are not followed: they could point to any file.

    Exceptions are links of the Hugging Face Hub's cache that stay within one of its repositories.

    Raises:
        CheckpointError: the file is another link, or not a regular file.
    """
    path = folder / name
    if path.is_symlink():
        repository = folder.resolve().parent.parent
        blob = path.resolve()
        if folder.resolve().parent.name == "snapshots" and blob.parent == repository / "blobs" and blob.is_file():
            return blob
    return inside(folder, name)


def named_base(folders: Sequence[PeftFolder]) -> tuple[str | None, str | None]:
    """The base that all folders name, and its revision; None if they name none.

    Raises:
        CheckpointError: two folders name different bases.
    """
    first, *others = folders
    for other in others:
        if (other.base, other.revision) != (first.base, first.revision):
            raise CheckpointError(
                f"{other.path / CONFIG}: trained on {_shown(other)}, but {first.path / CONFIG} on {_shown(first)}; the"
                " members of an ensemble share one base"
            )
    return first.base, first.revision


def common_adapt(folders: Sequence[PeftFolder]) -> AdaptConfig:
    """The adapters' settings that fit all folders: the highest rank, and the union of modules.

    What a member lacks of it is zero and stays zero, also in training: a zero row of A meets a zero column of B.
    `lora_alpha` gives the first folder's scaling at that rank; a run records the scaling of each member.
    """
    locations = [_location(folder, module) for folder in folders for module in folder.modules]
    layers = sorted({layer for layer, _ in locations})
    names = tuple(dict.fromkeys(name for _, name in locations))
    rank = max(folder.r for folder in folders)
    dropouts = {folder.dropout for folder in folders}
    return AdaptConfig(
        members=len(folders),
        r=rank,
        lora_alpha=folders[0].scaling * rank,
        target_modules=names,
        layers=str(layers),
        dropout=dropouts.pop() if len(dropouts) == 1 else 0.0,
    )


def check_fits(folder: PeftFolder, model: nn.Module, base: str) -> None:
    """Refuse an adapter whose modules or shapes differ from the base's.

    Raises:
        CheckpointError: names the weights file, the module and both shapes.
    """
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    for name, (in_features, out_features) in folder.modules.items():
        start = f"{folder.path / WEIGHTS}: {name}"
        linear = linears.get(name)
        if linear is None:
            raise CheckpointError(
                f"{start} is adapted, but {base} has no linear map of that name; give the base it was trained on"
            )
        if (linear.in_features, linear.out_features) != (in_features, out_features):
            raise CheckpointError(
                f"{start} is adapted as a map from {in_features} to {out_features} features, but in {base} it maps"
                f" {linear.in_features} to {linear.out_features}; give the base it was trained on"
            )


def read_peft_config(folder: Path) -> dict[str, object]:
    """The adapter's configuration, unchecked.

    Raises:
        CheckpointError: it is missing, a link, or not a JSON object.
    """
    where = folder / CONFIG
    if folder.is_file():
        raise CheckpointError(f"{folder}: is a file{_about_file(folder)}; give the folder that PEFT saved")
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such directory.{near_path(folder)} Give a folder that PEFT saved.")
    file = folder_file(folder, CONFIG)
    if not file.is_file():
        deeper = sorted(folder.glob(f"*/{CONFIG}"))
        if (folder / "members").is_dir():
            hint = f"this is a run; its adapters are the folders in {folder / 'members'}"
        elif (folder / "config.json").is_file():
            hint = f"this is a full model, not an adapter; {_AS_BASE}"
        elif deeper:
            hint = f"did you mean {deeper[0].parent}? PEFT saves a named adapter in a folder of that name"
        else:
            hint = "give a folder written by PEFT's save_pretrained"
        raise CheckpointError(f"{folder}: has no {CONFIG}; {hint}")
    try:
        config = json.loads(read_plain(file).decode("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{where}: cannot be read as JSON ({error}); copy the folder again") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{where}: has a {type(config).__name__}, not a JSON object; copy the folder again")
    return config


def _about_file(path: Path) -> str:
    """What a file given instead of a folder is, judged by its name."""
    if path.suffix.lower() == ".gguf":
        return " in llama.cpp's format, which cannot be imported"
    if path.name in (WEIGHTS, CONFIG):
        return f" of an adapter, not its folder {path.parent}"
    return ""


def _refuse_features(where: Path, config: Mapping[str, object]) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise CheckpointError(f"{where}: peft_type is {kind!r}; only LORA adapters can be members")
    task = config.get("task_type")
    if task not in (None, "CAUSAL_LM", "SEQ_CLS"):
        raise CheckpointError(
            f"{where}: task_type is {task!r}; only adapters of causal language models (CAUSAL_LM) and of classifiers"
            " made of them (SEQ_CLS) can be members"
        )
    whole, heads = config.get("modules_to_save"), [[HEAD], ["classifier", HEAD], [HEAD, "classifier"]]
    if task == "SEQ_CLS" and whole not in heads:  # PEFT writes both names, whichever the model has
        raise CheckpointError(
            f"{where}: modules_to_save is {_short(whole)}, and a classifier's member has its head, ['{HEAD}'], and"
            " nothing else"
        )
    init = config.get("init_lora_weights")
    if init not in _PLAIN_INITS:
        raise CheckpointError(
            f"{where}: init_lora_weights is {init!r}, which changes the base's weights; convert it to plain LoRA by"
            " PEFT's save_pretrained(..., path_initial_model_for_weight_conversion=...)"
        )
    for name, value in config.items():
        if name not in _HARMLESS and value not in _OFF and not (name == "modules_to_save" and task == "SEQ_CLS"):
            raise CheckpointError(
                f"{where}: {name} is {_short(value)}, which is not plain LoRA and cannot be part of an ensemble; train"
                " the adapter without it"
            )


def _number(where: Path, config: Mapping[str, object], name: str, default: float) -> float:
    value = config.get(name, default)
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise CheckpointError(f"{where}: {name} is {value!r}, not a number; the file was changed or damaged")
    return float(value)


def _name(where: Path, config: Mapping[str, object], field: str) -> str | None:
    value = config.get(field)
    if not isinstance(value, str | None):
        raise CheckpointError(f"{where}: {field} is {value!r}, not a name; the file was changed or damaged")
    return value or None


def _read_head(path: Path, tensors: dict[str, Tensor]) -> tuple[int, int]:
    """The shape of the classification head, whose tensor is removed.

    Raises:
        CheckpointError: it is missing, or not a matrix of finite numbers.
    """
    head = tensors.pop(HEAD_KEY, None)
    if head is None:
        raise CheckpointError(f"{path}: has no {HEAD_KEY}, the head of a classifier; copy the folder again")
    if head.ndim != 2 or head.dtype not in _DTYPES or not head.isfinite().all():
        raise CheckpointError(f"{path}: {HEAD_KEY} is not a matrix of finite numbers; this adapter's training failed")
    return head.shape[0], head.shape[1]


def _read_modules(folder: Path, tensors: dict[str, Tensor], r: int) -> tuple[dict[str, tuple[int, int]], str | None]:
    """Shapes of the adapted maps, and the adapter's name in the keys.

    Raises:
        CheckpointError: a tensor is not the A or B of one plain LoRA of this rank.
    """
    path = folder / WEIGHTS
    pairs, adapter_name = _read_pairs(path, tensors)
    modules = {}
    for name, pair in pairs.items():
        if _IN_LAYER.fullmatch(name) is None:
            raise CheckpointError(
                f"{path}: adapts {name}, which is outside the decoder layers; only maps within them can be adapted"
            )
        for which, axis in (("A", 0), ("B", 1)):
            if which not in pair:
                raise CheckpointError(f"{path}: {name} has no lora_{which}.weight; copy the folder again")
            shape = list(pair[which].shape)
            if len(shape) != 2 or shape[axis] != r:
                wanted = f"[{r}, in_features]" if which == "A" else f"[out_features, {r}]"
                raise CheckpointError(
                    f"{path}: {name}.lora_{which}.weight has shape {shape}, not {wanted} for r = {r} in {CONFIG}"
                )
        modules[name] = (pair["A"].shape[1], pair["B"].shape[0])
    return modules, adapter_name


def _read_pairs(path: Path, tensors: Mapping[str, Tensor]) -> tuple[dict[str, dict[str, Tensor]], str | None]:
    """A and B by module, and the adapter's name in the keys."""
    pairs: dict[str, dict[str, Tensor]] = {}
    adapters: set[str | None] = set()
    for key, tensor in tensors.items():
        match = _TENSOR.fullmatch(key)
        if match is None and not any("lora_" in name for name in tensors):
            raise CheckpointError(f"{path}: has the weights of a full model ({key}, ...), not of a LoRA; {_AS_BASE}")
        if match is None:
            raise CheckpointError(f"{path}: {key} is not an A or B of plain LoRA, and cannot be part of an ensemble")
        if tensor.dtype not in _DTYPES:
            raise CheckpointError(f"{path}: {key} has {tensor.dtype} values; save the adapter as float32 or bfloat16")
        if not tensor.isfinite().all():
            raise CheckpointError(f"{path}: {key} has NaN or infinite values; this adapter's training failed")
        pairs.setdefault(match["module"], {})[match["which"]] = tensor
        adapters.add(match["adapter"])
    if len(adapters) > 1:
        names = ", ".join(sorted(name or "an unnamed one" for name in adapters))
        raise CheckpointError(
            f"{path}: has several adapters ({names}); save each separately, by PEFT's save_pretrained(...,"
            " selected_adapters=[NAME])"
        )
    if not pairs:
        raise CheckpointError(f"{path}: has no tensors; copy the folder again, or train the adapter")
    return pairs, adapters.pop()


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    path = folder_file(folder, WEIGHTS)
    if not path.is_file():
        pickles = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in folder.glob(pattern))
        if pickles:
            raise CheckpointError(
                f"{folder / pickles[0]}: is a pickle, which can run code when it is read, and is never opened;"
                " if you trust it, save the adapter as safetensors (as PEFT's save_pretrained does by default)"
            )
        if has_whole_weights(folder):
            raise CheckpointError(
                f"{folder}: has the weights of a full model next to {CONFIG}, and no {WEIGHTS}: a merged or fully"
                f" fine-tuned model, not an adapter; give the adapter from before merging. Without {CONFIG}, {_AS_BASE}"
            )
        raise CheckpointError(f"{path}: missing; copy the whole folder again")
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file ({error}); copy the folder again") from error


def _location(folder: PeftFolder, module: str) -> tuple[int, str]:
    """A module's decoder layer, and its name within the layer."""
    match = _IN_LAYER.fullmatch(module)
    assert match is not None, f"{folder.path}: {module} is not in a layer"
    return int(match["layer"]), match["name"]


def _shown(folder: PeftFolder) -> str:
    return repr(folder.base) + (f" (revision {folder.revision})" if folder.revision else "")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
