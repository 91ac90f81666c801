"""`lorchestra import` and `lorchestra export`: there and back, and what is refused."""

from __future__ import annotations

import json
import re

import pytest
from huggingface_hub import ModelCard


def test_import_evaluate_predict_export_and_import_again(lorchestra, peft_folder, texts_csv, tiny_base, tmp_path):
    folders = [peft_folder("a", seed=1, r=2), peft_folder("b", seed=2, r=4, lora_alpha=32)]
    rows = texts_csv()
    options = ("--base", tiny_base, "--data.scoring", "text", "--data.prompt.template", "{question}? It is")
    code, out, err = lorchestra("import", *folders, *options, "--task", rows, "--out", tmp_path / "run")
    assert code == 0, err
    assert out == f"{tmp_path / 'run'}\n"
    assert "imported 2 members" in err
    code, out, err = lorchestra("evaluate", tmp_path / "run", "--json")
    assert code == 0, err
    evaluation = json.loads(out)
    assert evaluation["num_members"] == 2
    code, _, err = lorchestra("report", tmp_path / "run", "--out", tmp_path / "report.html")
    assert code == 0, err
    assert "imported" in (tmp_path / "report.html").read_text()
    new = texts_csv("new.csv", 6, seed=8)
    code, first, _ = lorchestra("predict", tmp_path / "run", "--data", new)
    assert code == 0
    assert len(first.splitlines()) == 6

    code, out, err = lorchestra("export", tmp_path / "run", "--out", tmp_path / "out", "--merge")
    assert code == 0, err
    assert out == f"{tmp_path / 'out'}\n"
    names = sorted(entry.name for entry in (tmp_path / "out").iterdir())
    assert names == ["README.md", "member_00", "member_01", "merged_00", "merged_01"]
    card = (tmp_path / "out/README.md").read_text()
    assert f"| {100 * evaluation['ensemble']['accuracy']:.1f} |" in card
    assert "merged_" in card
    assert ModelCard(card).data.library_name == "peft"

    exported = sorted((tmp_path / "out").glob("member_*"))
    code, _, err = lorchestra("import", *exported, *options, "--data.train", rows, "--out", tmp_path / "again")
    assert code == 0, err
    assert lorchestra("predict", tmp_path / "again", "--data", new)[1] == first


BAD = {
    "no folder": (("import", "--task", "ROWS", "--out", "OUT"), "no folder; give one PEFT folder or more"),
    "no such folder": (("import", "none", "--task", "ROWS", "--out", "OUT"), "none: no such directory"),
    "no config": (("import", "EMPTY", "--task", "ROWS", "--out", "OUT"), "empty: has no adapter_config.json"),
    "no rows": (("import", "ADAPTER", "--out", "OUT"), "data.train: no training rows"),
    "rows twice": (
        ("import", "ADAPTER", "--task", "ROWS", "--data.train", "x.csv", "--out", "OUT"),
        "--data.train x.csv is given too",
    ),
    "missing rows": (("import", "ADAPTER", "--task", "none.csv", "--out", "OUT"), "none.csv: no such file"),
    "another base": (
        ("import", "ADAPTER", "--task", "ROWS", "--base", "none/of/these", "--out", "OUT"),
        "base.name 'none/of/these'",
    ),
    "revision alone": (("import", "ADAPTER", "--task", "ROWS", "--revision", "x", "--out", "OUT"), "give --base too"),
    "no out": (("import", "ADAPTER", "--task", "ROWS"), "--out"),
    "import exists": (("import", "ADAPTER", "--task", "ROWS", "--out", "EMPTY"), "exists already"),
    "no run": (("export", "EMPTY", "--out", "OUT"), "not a run directory"),
    "not there": (("export", "none", "--out", "OUT"), "no such run directory"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input_ends_with_2_and_a_text_on_stderr(
    lorchestra, peft_folder, texts_csv, tmp_path, monkeypatch, arguments, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    made = {"ADAPTER": peft_folder, "ROWS": texts_csv}
    filled = [made[a]() if a in made else {"EMPTY": "empty"}.get(a, a) for a in arguments]
    code, out, err = lorchestra(*filled)
    assert code == 2, err
    assert message in re.sub(r"\s+", " ", err)
    assert out == ""
    assert "Traceback" not in err
    assert not (tmp_path / "OUT").exists()


def test_export_of_an_existing_directory_and_of_an_unfinished_run(lorchestra, run_config, texts_csv, tmp_path):
    from lorchestra.runs.train import train_run

    root = train_run(run_config(texts_csv()), tmp_path / "run").run.root
    (tmp_path / "out").mkdir()
    code, _, err = lorchestra("export", root, "--out", tmp_path / "out")
    assert (code, "exists already" in err) == (2, True)
    (root / "ensemble.json").unlink()
    code, _, err = lorchestra("export", root, "--out", tmp_path / "new")
    assert (code, "not finished" in err) == (2, True)
    assert not (tmp_path / "new").exists()


def test_import_for_a_task_by_name(lorchestra, peft_folder, make_task, tiny_base, tmp_path):
    quiz = make_task()
    options = ("--base", tiny_base, "--data.scoring", "text", "--data-dir", quiz.directory)
    code, _, err = lorchestra("import", peft_folder(), *options, "--task", "quiz", "--out", tmp_path / "run")
    assert code == 0, err
    code, out, err = lorchestra("evaluate", tmp_path / "run", "--json")
    assert code == 0, err
    assert (json.loads(out)["task"], json.loads(out)["num_examples"]) == ("quiz", 12)
    code, _, err = lorchestra("import", peft_folder("b"), *options, "--task", "quizz", "--out", tmp_path / "other")
    assert code == 2
    assert "did you mean 'quiz'?" in err
