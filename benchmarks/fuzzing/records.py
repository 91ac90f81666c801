"""Change one field of one record, or replace one file by a link, and run a command that reads it.

The records are those of a run, of compared methods, of a sweep and of a base; fields are replaced by text, huge
numbers, NaN, lists, null and the like (`damage.LEAVES`).
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from safetensors.numpy import load_file, save_file
from stopping import StopWhen
from tiny_base import save_tiny_base

from fuzzing.damage import LEAVES, dumps, replace_leaf
from fuzzing.harness import RefusedError, ViolationError, Work, snapshot
from fuzzing.task_files import as_csv, valid_rows
from lorchestra.cli.main import main
from lorchestra.config.mappings import from_mapping
from lorchestra.config.run import RunConfig
from lorchestra.runs.rows import RunRows
from lorchestra.runs.sweep.passes import Pack
from lorchestra.runs.sweep.points import grid_points
from lorchestra.runs.sweep.run import read_points, run_sweep
from lorchestra.runs.train import train_run
from lorchestra.training.callbacks import Interrupted
from lorchestra.types import Task

METHODS = "zero_shot,lora_ensemble,lora_ensemble+temperature"
GRID = "train.lr=0.01,0.02"
_RECIPE: dict[str, Any] = {
    "base": {"threads": 1},
    "adapt": {"members": 2, "r": 2, "layers": "last:2", "dropout": 0.1},
    "data": {"scoring": "text"},
    "train": {"epochs": 2, "batch_size": 8, "lr": 0.01, "checkpoint_every_s": 0.0},
    "evaluate": {"few_shot": 2, "resamples": 20},
}
_SETTINGS = ("train.lr", "train.clip_norm", "train.warmup", "train.epochs", "train.batch_size", "train.patience")
_SETTINGS += ("train.seed", "train.token_budget", "train.checkpoint_every_s", "adapt.r", "adapt.lora_alpha")
_SETTINGS += ("adapt.init_scale", "adapt.init_std_b", "adapt.trunk_memory_gb", "adapt.dropout", "adapt.members")
_SETTINGS += tuple(f"regularize.{name}" for name in ("weight_decay_a", "weight_decay_b", "weight_decay_ba", "kl_beta"))
_SETTINGS += ("regularize.label_smoothing", "evaluate.few_shot", "evaluate.resamples", "data.max_length")
_OF_METHODS = ("batch_ensemble:init=normal:spread", "laplace:precisions", "laplace:draws", "mc_dropout:dropout")
_OF_METHODS += ("mc_dropout:passes", "snapshot:lr_factor", "swag:start", "swag:lr_factor", "swag:scale")
_OF_METHODS += ("swag:iterates", "swag:rank", "few_shot:num_shots", "few_shot:draws", "blob:samples", "blob:draws")
_OF_METHODS += ("blob:init_rho", "blob:prior_std", "blob:kl_lr", "blob:gamma")
_NUMBERS = ("1e38", "1e300", "-1e300", "1e-300", "1e29", "-1", "0", "1099511627776", str(2**70), ".nan", ".inf", "0.5")


class Records:
    """The directories of several commands with one changed record, and a command that reads it.

    Args:
        folder: where the undamaged directories are made, once.
    """

    name = "records"

    def __init__(self, folder: Path) -> None:
        self.pristine = folder / "pristine-records"
        if not self.pristine.exists():
            _make(self.pristine)

    @property
    def kinds(self) -> Sequence[str]:
        """The records by name, and other kinds of changes."""
        return (*_RECORDS, "numbers of predictions", "numbers in settings", "numbers of methods", "links")

    def prepare(self, kind: str, draw: random.Random, folder: Path) -> Work:
        """Copy the undamaged directories, change one record and choose a command."""
        directory = folder / "x"
        shutil.copytree(self.pristine, directory)
        for pattern in (
            "*/config.yaml",
            "*/*.json",
            "sweep*/runs/*/*.json",
            "sweep*/runs/*/config.yaml",
            "recipe.yaml",
        ):
            for file in directory.glob(pattern):
                file.write_text(file.read_text().replace(str(self.pristine), str(directory)))
        # a pass is named after its points' settings, which have paths
        (begun,) = (directory / "begun/passes").iterdir()
        begun.rename(begun.with_name(_key(directory)))
        if kind == "numbers in settings":
            field, value = draw.choice(_SETTINGS), draw.choice(_NUMBERS)
            command = draw.choice((["train", "recipe.yaml", "--out", "new"], ["sweep", "recipe.yaml", "--out", "new"]))
            option = [f"--{field}", value] if command[0] == "train" else ["--grid", f"{field}={value}"]
            return _Command(directory, [*command, *option], may_fail=True)
        if kind == "numbers of methods":
            name = f"{draw.choice(_OF_METHODS)}={draw.choice(_NUMBERS)}"
            name = name.replace("precisions=", "precisions=[") + "]" if "precisions" in name else name
            return _Command(directory, ["compare", "recipe.yaml", "--out", "new", "--methods", name], may_fail=True)
        if kind == "links":
            return _linked(directory, draw)
        patterns, commands = _RECORDS.get(kind, (_PREDICTIONS, _REPORTS))
        file = draw.choice([path for pattern in patterns for path in sorted(directory.glob(pattern))])
        (_change_numbers if kind == "numbers of predictions" else _change_record)(file, draw)
        root = file.relative_to(directory).parts[0]
        if kind == "numbers of predictions" and root == "comparison":
            commands = (_REPORT, _COMPARE)
        return _Command(directory, [one.replace("ROOT", root) for one in draw.choice(commands)])


class _Command:
    """A command: exit code 0, or 2 with one error on stderr; also 1 if a training may fail."""

    keeps = False

    def __init__(
        self, directory: Path, arguments: Sequence[str], *, may_fail: bool = False, outside: Path | None = None
    ) -> None:
        paths = {"run", "unfinished", "comparison", "sweep", "begun", "new", "recipe.yaml", "rows.csv", "new.csv"}
        command, *rest = arguments
        self.arguments = [command, *(str(directory / one) if one.split("/")[0] in paths else one for one in rest)]
        self.may_fail, self.outside = may_fail, outside

    def __call__(self) -> object:
        before = None if self.outside is None else snapshot(self.outside)
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code: object = main(self.arguments)
            except SystemExit as error:  # the parser of options
                code = error.code
        stderr = err.getvalue()
        if self.outside is not None and snapshot(self.outside) != before:
            raise ViolationError(f"{self.arguments[0]} wrote outside")
        if code == 0:
            return None
        errors = [line for line in stderr.splitlines() if line.startswith("error: ")]
        if code == 1 and self.may_fail and "internal error" not in stderr:
            return None
        if code != 2 or "Traceback" in stderr or "internal error" in stderr:
            raise ViolationError(f"{self.arguments} ended with {code}: {stderr[-400:]!r}")
        raise RefusedError(errors[0].removeprefix("error: ")[:2000] if errors else "the options do not parse")


_PREDICT = ["predict", "ROOT", "--data", "new.csv"]
_EVALUATE = ["evaluate", "ROOT"]
_EXPORT = ["export", "ROOT", "--out", "new"]
_MERGE = [*_EXPORT, "--merge"]
_REPORT = ["report", "ROOT"]
_RESUME = ["train", "--out", "ROOT", "--if-exists", "resume", "--skip-evaluation"]
_COMPARE = ["compare", "recipe.yaml", "--out", "ROOT", "--methods", METHODS]
_SWEEP = ["sweep", "recipe.yaml", "--out", "ROOT", "--grid", GRID]
_WITH_METHODS = ["report", "run", "--methods", "comparison"]
_IMPORT = ["import", "ROOT/members/member_00", "ROOT/members/member_01", "--task", "rows.csv", "--out", "new"]
_REPORTS = (_REPORT,)
_PREDICTIONS = ("run/predictions/*.safetensors", "comparison/methods/*/predictions/*.safetensors")
_RECORDS: dict[str, tuple[Sequence[str], Sequence[list[str]]]] = {
    "ensemble.json": (["run/ensemble.json"], (_PREDICT, _EVALUATE, _EXPORT, _MERGE, _REPORT, _RESUME)),
    "ensemble.json of a sweep": (["sweep/runs/*/ensemble.json"], (_REPORT, _SWEEP)),
    "calibration.json": (["run/calibration.json"], (_PREDICT, _EVALUATE, _EXPORT, _RESUME)),
    "metrics.json": (["run/metrics.json"], (_REPORT, _REPORT, _REPORT, _EVALUATE, _EXPORT, _WITH_METHODS)),
    "metrics.json of a sweep": (["sweep/runs/*/metrics.json"], (_REPORT, _SWEEP)),
    "splits.json": (["run/splits.json"], (_EVALUATE, _EXPORT, _WITH_METHODS, _RESUME)),
    "environment.json": (["run/environment.json"], _REPORTS),
    "events.jsonl": (["run/events.jsonl"], _REPORTS),
    "events.jsonl of a pass": (["begun/passes/*/events.jsonl"], (_SWEEP,)),
    "latest.json": (["unfinished/resume/latest.json"], (_RESUME,)),
    "latest.json of a pass": (["begun/passes/*/resume/latest.json"], (_SWEEP,)),
    "words of predictions": (["run/predictions/*.json"], _REPORTS),
    "words of methods' predictions": (["comparison/methods/*/predictions/*.json"], (_REPORT, _COMPARE)),
    "adapter_config.json": (["run/members/member_0*/adapter_config.json"], (_MERGE, _IMPORT, _EXPORT, _PREDICT)),
    "compare.json": (["comparison/compare.json"], (_COMPARE, _REPORT)),
    "splits.json of methods": (["comparison/splits.json"], (_COMPARE, _REPORT)),
    "result.json": (["comparison/methods/*/result.json"], (_COMPARE, _REPORT, _WITH_METHODS)),
    "sweep.json": (["sweep/sweep.json"], (_SWEEP, _REPORT)),
    "pass.json": (["begun/passes/*/pass.json", "begun/sweep.json"], (_SWEEP,)),
    "config.json of a base": (["base/config.json"], (["predict", "run", "--data", "new.csv"],)),
    "config.yaml": (["run/config.yaml", "unfinished/config.yaml"], (_PREDICT, _REPORT, _RESUME)),
}


def _key(directory: Path) -> str:
    """The name of the unfinished pass."""
    return Pack(tuple(read_points(directory / "begun")), RunRows(Task("", {}), ())).key


def _make(directory: Path) -> None:
    """Train, evaluate, compare and sweep; also a training and a sweep that are interrupted halfway."""
    directory.mkdir(parents=True)
    save_tiny_base(directory / "base")
    draw = random.Random(0)
    for name, number in (("rows", 24), ("new", 4), ("ood", 6)):
        (directory / f"{name}.csv").write_bytes(as_csv(valid_rows(draw, number, "text")))
    recipe = json.loads(json.dumps(_RECIPE))
    recipe["base"]["name"], recipe["data"]["train"] = str(directory / "base"), str(directory / "rows.csv")
    (directory / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    config = from_mapping(RunConfig, recipe, "the recipe")
    commands = (
        ["train", "recipe.yaml", "--out", "run"],
        ["evaluate", "run", "--ood", str(directory / "ood.csv")],
        ["compare", "recipe.yaml", "--out", "comparison", "--methods", METHODS],
        ["sweep", "recipe.yaml", "--out", "sweep", "--grid", GRID],
    )
    for command in commands:
        _Command(directory, command)()
    calls = iter(range(1000))
    with contextlib.suppress(Interrupted):
        train_run(config, directory / "unfinished", callbacks=[StopWhen(lambda: next(calls) == 3)])
    calls = iter(range(1000))
    points = grid_points(config, [("train.lr", [0.01, 0.02])])
    with contextlib.suppress(Interrupted):
        run_sweep(points, directory / "begun", callbacks=[StopWhen(lambda: next(calls) == 3)])


def _change_record(file: Path, draw: random.Random) -> None:
    """Change one field of a JSON, JSON lines or YAML file."""
    text = file.read_text()
    if file.suffix == ".yaml":
        tree = yaml.safe_load(text)
        group = draw.choice(list(tree))
        tree[group][draw.choice(list(tree[group]))] = draw.choice(LEAVES)
        file.write_text(yaml.safe_dump(tree))
        return
    if file.suffix == ".jsonl":
        lines = text.splitlines()
        number = draw.randrange(len(lines))
        lines[number] = dumps(replace_leaf(json.loads(lines[number]), draw))
        file.write_text("\n".join(lines) + "\n")
        return
    value = json.loads(text)
    value.pop("checksum", None)
    value = replace_leaf(value, draw)
    if file.name == "latest.json":  # with a valid checksum, as a faulty program would write it
        body = json.dumps(json.loads(dumps(value).replace("NaN", "null").replace("Infinity", "null")), sort_keys=True)
        value["checksum"] = hashlib.sha256(body.encode()).hexdigest()
    file.write_text(dumps(value))


def _change_numbers(file: Path, draw: random.Random) -> None:
    """Change the tensors of saved predictions."""
    arrays = {name: array.copy() for name, array in load_file(file).items()}
    name = draw.choice(list(arrays))
    array = arrays[name]
    way = draw.randrange(8)
    if way == 0:
        del arrays[name]
    elif way == 1:
        arrays[name] = array.astype(draw.choice((np.float32, np.int32, np.float64, np.bool_)))
    elif way == 2:
        arrays[name] = np.ascontiguousarray(array[..., : draw.choice((0, 1))])
    elif way == 3:
        arrays[name] = array[None]
    elif way == 4:
        arrays[name] = array[: draw.choice((0, 1))]
    else:
        value = draw.choice(
            (-1, 2, 10**6, 2**40, 0) if array.dtype == np.int64 else (np.nan, np.inf, -np.inf, 5.0, -1e300)
        )
        array[tuple(draw.randrange(length) for length in array.shape)] = value
    save_file(arrays, file)


def _linked(directory: Path, draw: random.Random) -> Work:
    """A file or folder moved out of the directory and replaced by a link to it."""
    name = draw.choice(("run", "unfinished", "comparison", "sweep", "begun"))
    paths = sorted(path for path in (directory / name).rglob("*") if not path.name.startswith("."))
    path = draw.choice(paths)
    outside = directory.parent / "outside"
    outside.mkdir()
    path.rename(outside / path.name)
    path.symlink_to(outside / path.name)
    commands: dict[str, Sequence[list[str]]] = {
        "run": (_PREDICT, _EVALUATE, _EXPORT, _MERGE, _REPORT, _RESUME, _IMPORT),
        "unfinished": (_RESUME,),
        "comparison": (_COMPARE, _REPORT, _WITH_METHODS),
        "sweep": (_SWEEP, _REPORT),
        "begun": (_SWEEP,),
    }
    arguments = [one.replace("ROOT", name) for one in draw.choice(commands[name])]
    return _Command(directory, arguments, outside=outside)
