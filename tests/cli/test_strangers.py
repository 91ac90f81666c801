"""Directories from a stranger: whatever their records name and their links point to, nothing outside is touched."""

from __future__ import annotations

import json
import os
import shutil
import sys

import pytest
import yaml
from fuzzing.records import METHODS, Records

OPENED: list[str] = []
WATCHED: list[str] = []


def _audit(event, arguments):
    if event == "open" and WATCHED and isinstance(arguments[0], str | bytes | os.PathLike):
        path = os.path.realpath(os.fsdecode(arguments[0]))
        if path.startswith(WATCHED[0]):
            OPENED.append(path)


sys.addaudithook(_audit)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    """A finished run, an unfinished one, compared methods and a sweep."""
    return Records(tmp_path_factory.mktemp("strangers")).pristine


@pytest.fixture
def stranger(pristine, tmp_path):
    """A copy of them, next to an empty directory that no command may read or write."""
    folder = tmp_path / "x"
    shutil.copytree(pristine, folder)
    for file in [*folder.rglob("*.json"), *folder.rglob("*.yaml")]:
        file.write_text(file.read_text().replace(str(pristine), str(folder)))
    (tmp_path / "outside").mkdir()
    return folder


def commands(stranger):
    """A command line for each kind of directory."""
    run, recipe, new = stranger / "run", stranger / "recipe.yaml", stranger / "new.csv"
    return {
        "predict": ("predict", run, "--data", new),
        "evaluate": ("evaluate", run, "--json"),
        "export": ("export", run, "--out", stranger / "new"),
        "merge": ("export", run, "--out", stranger / "new", "--merge"),
        "report": ("report", run),
        "report --methods": ("report", run, "--methods", stranger / "comparison"),
        "report sweep": ("report", stranger / "sweep"),
        "resume": ("train", "--out", stranger / "unfinished", "--if-exists", "resume", "--skip-evaluation"),
        "compare": ("compare", recipe, "--out", stranger / "comparison", "--methods", METHODS),
        "sweep": ("sweep", recipe, "--out", stranger / "sweep", "--grid", "train.lr=0.01,0.02"),
        "resume sweep": ("sweep", recipe, "--out", stranger / "begun", "--grid", "train.lr=0.01,0.02"),
        "import": ("import", run / "members/member_00", "--task", stranger / "rows.csv", "--out", stranger / "new"),
    }


def states(folder):
    """Names, bytes and times of everything in a directory."""
    return {
        str(path.relative_to(folder)): (path.read_bytes() if path.is_file() else None, path.lstat().st_mtime_ns)
        for path in folder.rglob("*")
    }


def run_watched(lorchestra, arguments, outside):
    """Run a command and check that nothing in `outside` is opened or changed."""
    before = states(outside)
    OPENED.clear()
    WATCHED[:] = [os.path.realpath(outside)]
    try:
        code, _, err = lorchestra(*arguments)
    finally:
        WATCHED.clear()
    assert OPENED == []
    assert states(outside) == before
    return code, err


LINKS = [
    ("predict", "run/config.yaml"),
    ("predict", "run/ensemble.json"),
    ("predict", "run/members/member_01"),
    ("predict", "run/members/member_00/adapter_model.safetensors"),
    ("evaluate", "run/splits.json"),
    ("evaluate", "run/metrics.json"),
    ("evaluate", "run/predictions"),
    ("export", "run/members"),
    ("export", "run/members/member_00/adapter_config.json"),
    ("merge", "run/members/member_01/adapter_config.json"),
    ("import", "run/members/member_00/adapter_config.json"),
    ("import", "run/members/member_00/adapter_model.safetensors"),
    ("report", "run/events.jsonl"),
    ("report", "run/environment.json"),
    ("report", "run/predictions/rows.test.json"),
    ("report", "run/predictions/rows.test.base_zero_shot.safetensors"),
    ("report --methods", "comparison/methods/lora_ensemble/result.json"),
    ("report --methods", "comparison/methods/zero_shot"),
    ("report --methods", "comparison/compare.json"),
    ("report sweep", "sweep/sweep.json"),
    ("report sweep", "sweep/runs"),
    ("resume", "unfinished/resume"),
    ("resume", "unfinished/resume/latest.json"),
    ("resume", "unfinished/resume/state-*.safetensors"),
    ("resume", "unfinished/events.jsonl"),
    ("compare", "comparison/methods"),
    ("compare", "comparison/splits.json"),
    ("compare", "comparison/methods/lora_ensemble/predictions"),
    ("sweep", "sweep/results.csv"),
    ("resume sweep", "begun/passes"),
]


@pytest.mark.parametrize(("command", "target"), LINKS)
def test_a_link_instead_of_a_file_is_refused(lorchestra, stranger, command, target):
    outside = stranger.parent / "outside"
    (path,) = stranger.glob(target)
    path.rename(outside / path.name)
    path.symlink_to(outside / path.name)
    code, err = run_watched(lorchestra, commands(stranger)[command], outside)
    assert code == 2
    assert f"{path}: is a link" in err
    assert not (stranger / "new").exists()


def edit(path, change):
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


NAMES = [
    ("evaluate", "run/ensemble.json", lambda r: r.update(task="../../../outside/x")),
    ("evaluate", "run/ensemble.json", lambda r: r.update(task="OUTSIDE/x")),
    ("export", "run/ensemble.json", lambda r: r["members"][0].update(path="../../outside")),
    ("report", "run/metrics.json", lambda r: r["evaluations"][0].update(task="../../../outside/x")),
    ("report", "run/metrics.json", lambda r: r["evaluations"][0].update(split="OUTSIDE/x")),
    ("report", "run/metrics.json", lambda r: r["evaluations"][0]["baselines"].update({"/../../x": {}})),
    (
        "report",
        "run/metrics.json",
        lambda r: r["evaluations"][0]["ood"].update({"../x": r["evaluations"][0]["ood"]["ood"]}),
    ),
    ("evaluate", "run/metrics.json", lambda r: r["evaluations"][0].update(task="..")),
    (
        "report --methods",
        "comparison/methods/lora_ensemble/result.json",
        lambda r: r["entry"].update(task="../../../../../outside/x"),
    ),
    ("report sweep", "sweep/sweep.json", lambda r: r["points"][0].update(name="../../outside")),
    ("sweep", "sweep/sweep.json", lambda r: r["points"][0].update(name="../../outside")),
]


@pytest.mark.parametrize(("command", "record", "change"), NAMES)
def test_a_name_that_leads_out_is_refused(lorchestra, stranger, command, record, change):
    outside = stranger.parent / "outside"
    for suffix in ("test.json", "test.safetensors"):
        shutil.copyfile(stranger / f"run/predictions/rows.{suffix}", outside / f"x.{suffix}")
    edit(stranger / record, change)
    text = (stranger / record).read_text().replace("OUTSIDE", str(outside))
    (stranger / record).write_text(text)
    code, err = run_watched(lorchestra, commands(stranger)[command], outside)
    assert code == 2
    assert "cannot be part of a file name" in err or "is not a member's path in a run directory" in err


def test_the_directory_itself_may_be_a_link(lorchestra, stranger):
    (stranger / "link").symlink_to(stranger / "run", target_is_directory=True)
    assert lorchestra("predict", stranger / "link", "--data", stranger / "new.csv")[0] == 0
    assert lorchestra("export", stranger / "link", "--out", stranger / "new")[0] == 0


def test_links_of_the_hub_s_cache_are_followed_within_its_repository(lorchestra, stranger):
    """In the cache, a snapshot's files are links to blobs in a sibling directory."""
    repository = stranger / "models--org--adapter"
    snapshot, blobs = repository / "snapshots/abc", repository / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, name in enumerate(("adapter_config.json", "adapter_model.safetensors")):
        shutil.copyfile(stranger / "run/members/member_00" / name, blobs / str(number))
        (snapshot / name).symlink_to(f"../../blobs/{number}")
    arguments = (
        "import",
        snapshot,
        "--task",
        stranger / "rows.csv",
        "--data.scoring",
        "text",
        "--out",
        stranger / "new",
    )
    assert lorchestra(*arguments)[0] == 0
    (blobs / "0").rename(stranger.parent / "outside/0")
    (blobs / "0").symlink_to(stranger.parent / "outside/0")
    assert run_watched(lorchestra, (*arguments[:-1], stranger / "other"), stranger.parent / "outside")[0] == 2


@pytest.mark.parametrize("field", ["megatron_config", "arrow_config", "lora_bias", "not_known"])
def test_dangerous_fields_of_a_peft_configuration_are_refused_by_name(lorchestra, stranger, field):
    edit(stranger / "run/members/member_00/adapter_config.json", lambda config: config.update({field: {"a": 1}}))
    for command in ("export", "merge", "import"):
        code, err = run_watched(lorchestra, commands(stranger)[command], stranger.parent / "outside")
        assert code == 2
        assert f"member_00/adapter_config.json: {field} is" in err
        assert ".tmp" not in err
        assert not (stranger / "new").exists()


def test_file_names_that_are_too_long_for_derived_names(lorchestra, stranger):
    long = stranger / f"{'x' * 210}.csv"
    shutil.copyfile(stranger / "new.csv", long)
    for command in (("evaluate", stranger / "run", "--data", long), ("evaluate", stranger / "run", "--ood", long)):
        code, err = run_watched(lorchestra, command, stranger.parent / "outside")
        assert code == 2
        assert "has 210 bytes, more than 200; rename it" in err


FIELDS = [
    ("predict", "run/ensemble.json", lambda r: r["members"][0].update(r="8"), "members[0].r is '8'"),
    ("predict", "run/ensemble.json", lambda r: r["members"][1].update(scaling="2"), "members[1].scaling is '2'"),
    ("report", "run/ensemble.json", lambda r: r["members"][0].update(val_nll="low"), "members[0].val_nll is 'low'"),
    ("report", "run/ensemble.json", lambda r: r["members"][0].update(best_step=[]), "members[0].best_step is []"),
    ("sweep", "sweep/runs/lr=0.01/ensemble.json", lambda r: r["members"][0].update(val_nll="low"), "val_nll is 'low'"),
    (
        "report",
        "run/metrics.json",
        lambda r: r["evaluations"][-1]["intervals"].update(seed="x"),
        "intervals.seed is 'x'",
    ),
    ("export", "run/metrics.json", lambda r: r["evaluations"][0]["ensemble"].update(ece="x"), "ensemble.ece"),
    ("export", "run/splits.json", lambda r: r["train"].update(num_examples="x"), "train.num_examples is 'x'"),
    ("report", "run/environment.json", lambda r: r.update(packages=[[1]]), "packages is [[1]]"),
    ("resume", "unfinished/splits.json", lambda r: r.update(train=None), "train is None, not an object"),
    (
        "compare",
        "comparison/methods/lora_ensemble/predictions/rows.test.json",
        lambda r: r["ids"].__setitem__(0, "other"),
        "its row 'other' is not one of the test rows",
    ),
    ("compare", "comparison/methods/zero_shot/result.json", lambda r: r["cost"].update(fit_s=[]), "cost.fit_s is []"),
    ("report --methods", "comparison/splits.json", lambda r: r["train"].update(digest=3), "train.digest is 3"),
    ("resume sweep", "begun/passes/*/pass.json", lambda r: r.update(points=[3]), "points[0] is 3, not text"),
]


@pytest.mark.parametrize(("command", "record", "change", "message"), FIELDS)
def test_a_field_of_the_wrong_type_is_one_error_that_names_it(lorchestra, stranger, command, record, change, message):
    (path,) = stranger.glob(record)
    edit(path, change)
    code, _, err = lorchestra(*commands(stranger)[command])
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert (code, len(errors)) == (2, 1)
    assert str(path.with_suffix("")) in errors[0]
    assert message in errors[0]


@pytest.mark.parametrize("command", ["predict", "evaluate", "export", "report"])
@pytest.mark.parametrize("content", ["0: private\n1: other\n", "private: [no end\n"])
def test_a_file_that_a_saved_configuration_names_for_labels_is_not_read(lorchestra, stranger, command, content):
    """Training may read such a file; a run saves the names in it."""
    outside = stranger.parent / "outside"
    (outside / "names.yaml").write_text(content)
    config = yaml.safe_load((stranger / "run/config.yaml").read_text())
    config["data"]["read"]["label_names"] = [str(outside / "names.yaml")]
    (stranger / "run/config.yaml").write_text(yaml.safe_dump(config))
    code, err = run_watched(lorchestra, commands(stranger)[command], outside)
    assert code == 2
    assert "config.yaml: data.read.label_names has" in err
    assert "private" not in err


def _fail(*numbers):
    def change(record):
        for number in numbers:
            record["members"][number]["state"] = "failed"

    return change


@pytest.mark.parametrize(
    ("command", "change", "message"),
    [
        ("report", _fail(0), "num_members is 2, and 1 members of the run are left"),
        ("report", _fail(0, 1), "num_members is 2, and 0 members of the run are left"),
        ("export", _fail(0, 1), "every member failed"),
        ("merge", _fail(0, 1), "every member failed"),
        ("predict", lambda r: r.update(labels=["yes", "\ud800"]), "a label holds half of a surrogate pair"),
        *(
            ("export", lambda r, name=name: r.pop(name), f"lacks {name}")
            for name in ("normalize", "chat_template", "system_prompt")
        ),
        ("export", lambda r: r["base"].pop("id"), "base.id is missing"),
        ("report", lambda r: r["base"].pop("id"), "base.id is missing"),
    ],
)
def test_a_record_that_contradicts_the_files_is_refused(lorchestra, stranger, command, change, message):
    edit(stranger / "run/ensemble.json", change)
    code, err = run_watched(lorchestra, commands(stranger)[command], stranger.parent / "outside")
    assert code == 2
    assert message in err
    assert not (stranger / "new").exists()
