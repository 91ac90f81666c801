"""`lorchestra import`: make a run from adapters trained elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

import tyro

from lorchestra.cli.arguments import check_run_argument, parse
from lorchestra.config.adapt import BaseConfig
from lorchestra.config.data import DataConfig
from lorchestra.errors import ConfigError


@dataclass(frozen=True)
class ImportArguments:
    """Make a run from LoRA adapters saved by PEFT, trained by any tool: one folder per member.

    Members may differ in rank, scaling and adapted layers. Extensions of LoRA (DoRA, trained biases, ...) are refused
    with the name of the setting. Task and prompt are given as for train:

        lorchestra import adapters/a adapters/b --task reviews.csv --out runs/imported
        lorchestra evaluate runs/imported --data reviews-test.csv
    """

    folders: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PEFT_DIR ...")]
    """Folders with adapter_config.json and adapter_model.safetensors."""
    out: str = field(kw_only=True)
    """The run directory to create; it must not exist yet."""
    base: str | None = None
    """The base, as --base.name of train. Default: the one that the folders name."""
    task: str | None = None
    """A named task (`lorchestra tasks` lists them), or the file with the training rows."""
    revision: str | None = None
    """Hub revision of the base. Default: the one that the folders name."""
    dtype: Literal["auto", "float32", "bfloat16", "float64"] = "auto"
    """Number format of the base; auto as in train."""
    quantization: Literal["none", "nf4", "int8"] = "none"
    """How the base is stored, as --base.quantization of train: nf4 for adapters that were trained as QLoRA."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto uses CUDA if available."""
    same_base: bool = False
    """Accept a --base that the folders name differently: you know that the weights are the same."""
    seed: int = 0
    """Seed of the rows held out if --data.val or --data.test is not given, as --train.seed of train."""
    data: DataConfig = field(default_factory=DataConfig)


def run(arguments: Sequence[str]) -> int:
    """Run the command."""
    parsed = parse(ImportArguments, arguments, "import")
    for folder in parsed.folders:
        check_run_argument(folder, "import")
    data = parsed.data
    if parsed.task is not None:
        for option, given in (("--data.train", data.train), ("--data.task", data.task)):
            if given is not None:
                raise ConfigError(f"--task {parsed.task}: {option} {given} is given too; leave one out")
        from lorchestra.runs.rows import is_task_name

        is_named = is_task_name(parsed.task)
        data = replace(data, task=parsed.task) if is_named else replace(data, train=parsed.task)
    if parsed.base is None and parsed.revision is not None:
        raise ConfigError(f"--revision {parsed.revision}: give --base too")

    from lorchestra.cli.output import messages, printer
    from lorchestra.runs.import_peft import import_run

    say = printer(messages())
    imported = import_run(
        parsed.folders,
        parsed.out,
        data=data,
        base=BaseConfig(
            name=parsed.base or "",
            revision=parsed.revision,
            dtype=parsed.dtype,
            quantization=parsed.quantization,
            device=parsed.device,
        ),
        same_base=parsed.same_base,
        seed=parsed.seed,
    )
    say(f"imported {len(parsed.folders)} members; evaluate them with: lorchestra evaluate {imported.root}")
    print(imported.root)
    return 0
