"""Damaged run directories: loading, predicting, evaluating and resuming, from Python and the command line."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
import yaml
from safetensors.torch import load_file, save_file
from stopping import StopWhen
from tiny_base import save_tiny_base

from fuzzing.damage import STRANGE_TEXTS, damage_bytes, damage_json, dumps, pickled, strange_value
from fuzzing.harness import RefusedError, ViolationError, Work
from fuzzing.task_files import as_csv, valid_rows
from lorchestra.cli.main import main
from lorchestra.config.adapt import AdaptConfig, BaseConfig
from lorchestra.config.data import DataConfig
from lorchestra.config.run import EvaluateConfig, RunConfig, TrainConfig
from lorchestra.runs.ensemble import load_run
from lorchestra.runs.evaluate import evaluate_run
from lorchestra.runs.train import train_run
from lorchestra.training.callbacks import Interrupted

MEMBERS = 2


class Runs:
    """A finished run, an unfinished one and their base, one of them damaged, and an action on it.

    Args:
        folder: where the undamaged runs are made, once.
    """

    name = "runs"
    kinds: ClassVar[Sequence[str]] = (
        "undamaged",
        "files removed",
        "files emptied",
        "files cut off",
        "bits flipped",
        "bytes damaged",
        "files made directories",
        "files swapped",
        "JSON fields of ensemble.json",
        "JSON fields of splits.json, metrics.json and calibration.json",
        "JSON fields of latest.json",
        "paths to outside",
        "adapters' tensors",
        "checkpoints' tensors",
        "settings in config.yaml",
        "pickles",
        "damaged base",
        "extra files",
    )

    def __init__(self, folder: Path) -> None:
        self.pristine = folder / "pristine"
        if not self.pristine.exists():
            _make_runs(folder, self.pristine)

    def prepare(self, kind: str, draw: random.Random, folder: Path) -> Work:
        """Copy the undamaged runs, damage one and choose an action."""
        directory = folder / "x"
        shutil.copytree(self.pristine, directory)
        # configurations have absolute paths: use those of the copies
        for config in directory.glob("*/config.yaml"):
            config.write_text(config.read_text().replace(str(self.pristine), str(directory)))
        for record in directory.glob("*/ensemble.json"):
            record.write_text(record.read_text().replace(str(self.pristine), str(directory)))
        unfinished = draw.random() < 0.4 or kind in ("JSON fields of latest.json", "checkpoints' tensors")
        root = directory / ("unfinished" if unfinished else "finished")
        _DAMAGES[kind](draw, root)
        action = draw.choice((_resume,) * 4 + (_load,)) if unfinished else draw.choice(_ACTIONS)
        if draw.random() < 0.15:
            return _CommandLine(root, draw, kind)
        return _Work(action, root, kind, self.answers, self.adapter_bytes)

    @functools.cached_property
    def answers(self) -> list[Any]:
        """Predictions of the undamaged run."""
        return _predictions(self.pristine / "finished")

    @functools.cached_property
    def adapter_bytes(self) -> list[bytes]:
        """The adapters' bytes of the undamaged run."""
        return adapter_bytes(self.pristine / "finished")


def adapter_bytes(root: Path) -> list[bytes]:
    """The bytes of all members' weights."""
    return [file.read_bytes() for file in sorted(root.glob("members/member_*/adapter_model.safetensors"))]


def _make_runs(folder: Path, directory: Path) -> None:
    """Train a small run to the end, and another one halfway."""
    temporary = folder / "making"
    save_tiny_base(temporary / "base")
    draw = random.Random(0)
    (temporary / "rows.csv").write_bytes(as_csv(valid_rows(draw, 24, "text")))
    (temporary / "new.csv").write_bytes(as_csv(valid_rows(draw, 4, "text")))
    temporary.rename(directory)
    config = RunConfig(
        base=BaseConfig(name=str(directory / "base"), threads=1),
        adapt=AdaptConfig(members=MEMBERS, r=2),
        data=DataConfig(train=str(directory / "rows.csv"), scoring="text"),
        train=TrainConfig(epochs=2, batch_size=8, lr=0.01, checkpoint_every_s=0.0),
        evaluate=EvaluateConfig(few_shot=2, resamples=20),
    )
    train_run(config, directory / "finished")
    calls = iter(range(100))
    with contextlib.suppress(Interrupted):
        train_run(config, directory / "unfinished", callbacks=[StopWhen(lambda: next(calls) == 3)])
    evaluate_run(load_run(directory / "finished"))


def _predictions(root: Path) -> list[Any]:
    return list(load_run(root).predict(root.parent / "new.csv"))


def _load(root: Path) -> object:
    return _predictions(root)


def _evaluate(root: Path) -> object:
    return evaluate_run(load_run(root), split="val")["num_examples"]


def _resume(root: Path) -> object:
    return train_run(RunConfig(), root, if_exists="resume").run.root


_ACTIONS = (_load, _load, _evaluate, _resume)


class _Work:
    def __init__(
        self, action: Callable[[Path], object], root: Path, kind: str, answers: list[Any], reference: list[bytes]
    ) -> None:
        self.action, self.root, self.kind, self.answers, self.reference = action, root, kind, answers, reference
        # a resumed run writes checkpoints before it reaches the damage
        self.keeps = action is not _resume
        self.outside = {path.name for path in root.parent.parent.iterdir()}

    def __call__(self) -> object:
        result = self.action(self.root)
        if {path.name for path in self.root.parent.parent.iterdir()} != self.outside:
            raise ViolationError("something was written outside of the run directory")
        # of a finished run, `train` reads no weights
        finished = self.action is _resume and self.root.name == "finished"
        if self.kind == "paths to outside" and not finished:
            raise ViolationError("a path to outside of the run was followed")
        # accepted damage must not change the numbers silently, except for changed settings
        if self.kind not in _CHANGES_ANSWERS:
            if self.action is _load and result != self.answers:
                raise ViolationError("the predictions differ from those of the undamaged run")
            resumed = self.action is _resume and self.root.name == "unfinished"
            if resumed and adapter_bytes(self.root) != self.reference:
                raise ViolationError("a resumed run ended with other bytes")
        return result


_CHANGES_ANSWERS = {
    "settings in config.yaml",
    "bits flipped",
    "bytes damaged",
    "files cut off",
    "JSON fields of ensemble.json",
    "adapters' tensors",
    "checkpoints' tensors",
    "JSON fields of latest.json",
    "files emptied",
    "damaged base",  # the digest of a base covers some of its values only
}


class _CommandLine:
    """A command on a damaged run: exit code 0, or 2 with one error on stderr."""

    keeps = False

    def __init__(self, root: Path, draw: random.Random, kind: str) -> None:
        self.kind = kind
        new = str(root.parent / "new.csv")
        self.arguments = draw.choice(
            (
                ["predict", str(root), "--data", new],
                ["evaluate", str(root), "--json"],
                ["train", "--out", str(root), "--if-exists", "resume", "--skip-evaluation"],
            )
        )

    def __call__(self) -> object:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(self.arguments)
        stderr = err.getvalue()
        if code == 0:
            if self.kind == "paths to outside" and "finished already" not in stderr:
                raise ViolationError("a path to outside of the run was followed")
            return None
        errors = [line for line in stderr.splitlines() if line.startswith("error: ")]
        if code != 2 or len(errors) != 1 or "Traceback" in stderr or out.getvalue():
            raise ViolationError(f"{self.arguments[0]} ended with {code}: {out.getvalue()[:100]!r} {stderr[-400:]!r}")
        raise RefusedError(errors[0].removeprefix("error: "))


def _files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file())


def _directories_of(root: Path) -> list[Path]:
    return [root, *sorted(path for path in root.rglob("*") if path.is_dir())]


def _removed(draw: random.Random, root: Path) -> None:
    if draw.random() < 0.2:
        shutil.rmtree(draw.choice(_directories_of(root)))
    else:
        draw.choice(_files(root)).unlink()


def _emptied(draw: random.Random, root: Path) -> None:
    draw.choice(_files(root)).write_bytes(b"")


def _cut_off(draw: random.Random, root: Path) -> None:
    file = draw.choice(_files(root))
    data = file.read_bytes()
    file.write_bytes(data[: draw.randrange(len(data))])


def _flipped(draw: random.Random, root: Path) -> None:
    file = draw.choice(_files(root))
    data = bytearray(file.read_bytes())
    data[draw.randrange(min(len(data), draw.choice((100, len(data)))))] ^= 1 << draw.randrange(8)
    file.write_bytes(data)


def _damaged(draw: random.Random, root: Path) -> None:
    file = draw.choice(_files(root))
    file.write_bytes(damage_bytes(file.read_bytes(), draw))


def _directories(draw: random.Random, root: Path) -> None:
    """Replace a file by a directory, or a directory by a file."""
    if draw.random() < 0.3:
        directory = draw.choice(_directories_of(root))
        shutil.rmtree(directory)
        directory.write_bytes(b"")
        return
    file = draw.choice(_files(root))
    file.unlink()
    file.mkdir()
    if draw.random() < 0.5:
        (file / "inside").write_text("x")


def _swapped(draw: random.Random, root: Path) -> None:
    one, other = draw.sample([f for f in _files(root) if f.name != "config.yaml"], 2)
    data = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(data)


def _edit_json(file: Path, draw: random.Random, change: Callable[[Any, random.Random], Any]) -> None:
    if file.exists():
        file.write_text(dumps(change(json.loads(file.read_text()), draw)))


def _ensemble_fields(draw: random.Random, root: Path) -> None:
    _edit_json(root / "ensemble.json", draw, damage_json)


def _split_fields(draw: random.Random, root: Path) -> None:
    files = [file for name in ("splits.json", "metrics.json", "calibration.json") if (file := root / name).exists()]
    files += sorted(root.glob("predictions/*.json"))
    _edit_json(draw.choice(files), draw, damage_json)


def _checkpoint_fields(draw: random.Random, root: Path) -> None:
    """Fields of the checkpoint's record with a valid checksum, as a faulty program would write it."""

    def change(value: Any, draw: random.Random) -> Any:
        body = {key: entry for key, entry in value.items() if key != "checksum"}
        body = damage_json(body, draw)
        if not isinstance(body, dict):
            return body
        body = json.loads(json.dumps(body))
        return body | {"checksum": hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()}

    _edit_json(root / "resume/latest.json", draw, change)


def _outside_paths(draw: random.Random, root: Path) -> None:
    """A member's or checkpoint's path to valid files outside of the run directory."""
    if root.name == "unfinished":
        latest = root / "resume/latest.json"
        body = json.loads(latest.read_text())
        body.pop("checksum")
        shutil.move(root / "resume" / body["file"], root.parent / body["file"])
        body["file"] = draw.choice((f"../../{body['file']}", str(root.parent / body["file"])))
        body["checksum"] = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
        latest.write_text(json.dumps(body))
        return
    record = json.loads((root / "ensemble.json").read_text())
    shutil.move(root / "members", root.parent / "outside")
    m = draw.randrange(MEMBERS)
    ways = ("../outside", str(root.parent / "outside"), "members/../../outside", "../finished/../outside")
    for member in record["members"][m:]:
        member["path"] = f"{draw.choice(ways)}/{Path(member['path']).name}"
    if m:
        (root / "members").mkdir()
        shutil.move(root.parent / "outside/member_00", root / "members/member_00")
    (root / "ensemble.json").write_text(json.dumps(record))


def _adapter_tensors(draw: random.Random, root: Path) -> None:
    """Valid files of weights with other contents, and matching checksums."""
    files = sorted(root.glob("members/*/adapter_model.safetensors"))
    if not files:
        return
    file = draw.choice(files)
    tensors = load_file(file)
    _change_tensors(draw, tensors)
    save_file(tensors, file)
    if draw.random() < 0.2:
        file.write_bytes(damage_bytes(file.read_bytes(), draw))
    record = json.loads((root / "ensemble.json").read_text())
    for member in record["members"]:
        if member["path"].endswith(file.parent.name):
            member["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
            if draw.random() < 0.1:
                del member["sha256"]
    (root / "ensemble.json").write_text(json.dumps(record))


_KINDS = (torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool, torch.complex64)


def _change_tensors(draw: random.Random, tensors: dict[str, torch.Tensor]) -> None:
    name = draw.choice(sorted(tensors))
    tensor = tensors[name]
    way = draw.randrange(9)
    if way == 0:
        tensor.flatten()[draw.randrange(tensor.numel())] = draw.choice((float("nan"), float("inf"), -float("inf")))
    elif way == 1:
        tensors[name] = tensor.to(draw.choice(_KINDS))
    elif way == 2:
        tensors[name] = tensor.T.contiguous()
    elif way == 3:
        tensors[name] = tensor[:1].clone()
    elif way == 4:
        del tensors[name]
    elif way == 5:
        tensors[name + draw.choice(("_", ".default", "\x00", "é"))] = tensors.pop(name)
    elif way == 6:
        tensors[name] = torch.zeros(draw.choice(((), (0,), (2, 3, 4))))
    elif way == 7:
        tensors["more"] = torch.zeros(3)
    else:
        tensors[name] = tensor.double() * 1e300


def _checkpoint_tensors(draw: random.Random, root: Path) -> None:
    (file,) = root.glob("resume/state-*.safetensors")
    tensors = load_file(file)
    _change_tensors(draw, tensors)
    save_file(tensors, file)
    latest = root / "resume/latest.json"
    body = json.loads(latest.read_text()) | {"sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    body.pop("checksum")
    body["checksum"] = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    latest.write_text(json.dumps(body))


def _settings(draw: random.Random, root: Path) -> None:
    """Changes of the saved configuration."""
    tree = yaml.safe_load((root / "config.yaml").read_text())
    group = draw.choice(list(tree))
    name = draw.choice(list(tree[group]))
    way = draw.randrange(4)
    if way == 0:
        del tree[group][name]
    elif way == 1:
        tree[group][name] = draw.choice((None, 0, -1, 10**9, True, "all", "x", float("nan"), float("inf"), 1e-300, []))
    elif way == 2:
        value = strange_value(draw)
        tree[group][name] = value if "0" * 1000 not in repr(value) else draw.choice(STRANGE_TEXTS)
    else:
        del tree[group]
    (root / "config.yaml").write_text(yaml.safe_dump(tree))


def _pickles(draw: random.Random, root: Path) -> None:
    """Pickles instead of weights and next to them, under the names that other programs load."""
    canary = root.parent.parent / "canary"
    names = ("adapter_model.bin", "pytorch_model.bin", "training_args.bin", "optimizer.pt", "adapter_model.safetensors")
    folders = [path for path in (root, root / "resume", root.parent / "base", *root.glob("members/*")) if path.is_dir()]
    for _ in range(draw.randrange(1, 4)):
        (draw.choice(folders) / draw.choice(names)).write_bytes(pickled(canary))
    if draw.random() < 0.3:
        draw.choice(_files(root)).write_bytes(pickled(canary))
    if draw.random() < 0.3:
        base = root.parent / "base"
        (base / "model.safetensors").unlink()
        (base / "pytorch_model.bin").write_bytes(pickled(canary))
    elif draw.random() < 0.3:
        (root.parent / "base/model.safetensors").write_bytes(pickled(canary))


def _base(draw: random.Random, root: Path) -> None:
    """Damage to the base, or a configuration that requests remote code."""
    base = root.parent / "base"
    if draw.random() < 0.25:
        config = json.loads((base / "config.json").read_text())
        config["auto_map"] = {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}
        if draw.random() < 0.5:
            config["model_type"] = "evil"
        canary = root.parent.parent / "canary"
        (base / "evil.py").write_text(f"open({str(canary)!r}, 'w').write('a pickle was loaded')\nclass Evil: ...\n")
        (base / "config.json").write_text(json.dumps(config))
        return
    draw.choice((_removed, _emptied, _cut_off, _flipped, _damaged, _directories))(draw, base)


def _strangers(draw: random.Random, root: Path) -> None:
    """Extra files, as killed or other programs leave them."""
    names = (
        "resume/state-00000099.safetensors",
        "members.bak/x",
        "members/member_99/adapter_model.safetensors",
        "predictions/x.json",
        "notes.txt",
        "adapter_config.json",
    )
    for name in draw.sample(names, draw.randrange(1, 4)):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(draw.randbytes(30))


_DAMAGES: dict[str, Callable[[random.Random, Path], None]] = {
    "undamaged": lambda draw, root: None,
    "files removed": _removed,
    "files emptied": _emptied,
    "files cut off": _cut_off,
    "bits flipped": _flipped,
    "bytes damaged": _damaged,
    "files made directories": _directories,
    "files swapped": _swapped,
    "JSON fields of ensemble.json": _ensemble_fields,
    "JSON fields of splits.json, metrics.json and calibration.json": _split_fields,
    "JSON fields of latest.json": _checkpoint_fields,
    "paths to outside": _outside_paths,
    "adapters' tensors": _adapter_tensors,
    "checkpoints' tensors": _checkpoint_tensors,
    "settings in config.yaml": _settings,
    "pickles": _pickles,
    "damaged base": _base,
    "extra files": _strangers,
}
