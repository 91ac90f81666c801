"""The page: its numbers, that it runs and loads nothing foreign, and that data stay text."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import subprocess
import sys
from dataclasses import replace
from importlib.resources import files

import numpy as np
import pytest

from lorchestra.config.adapt import AdaptConfig, BaseConfig
from lorchestra.config.run import EvaluateConfig, RunConfig
from lorchestra.errors import ConfigError, LorchestraError
from lorchestra.metrics.evaluation import evaluate_predictions
from lorchestra.report.html.page import write_report
from lorchestra.store.predictions import load_predictions


@pytest.fixture
def report(read_page):
    """Writes the page of one run; returns the page and its text."""

    def build(root, **options):
        out = root / "report.html"
        write_report([root], out, **options)
        return read_page(out), out.read_text(encoding="utf-8")

    return build


def entry_of(root):
    return json.loads((root / "metrics.json").read_text())["evaluations"][0]


def test_the_page_holds_the_right_numbers(make_run, report):
    root = make_run()
    entry = entry_of(root)
    page, text = report(root)
    ensemble, (low, high) = entry["ensemble"], entry["intervals"]["ensemble"]["nll"]
    row = page.row("ensemble")
    assert row[1].startswith(f"{100 * ensemble['accuracy']:.1f} ")
    assert row[2] == f"{ensemble['nll']:.3f} {low:.3f} to {high:.3f}"
    assert row[4] == f"{100 * ensemble['automated_5']:.1f}"
    assert row[6].startswith(f"{ensemble['brier']:.3f} ")
    mean = page.row("one LoRA (mean of 3)")
    assert mean[2].startswith(f"{entry['member_mean']['nll']:.3f} ± {entry['member_mean']['std']['nll']:.3f} ")
    difference = page.row("the mean member")
    assert f"{abs(ensemble['nll'] - entry['member_mean']['nll']):.3f} guaranteed" in difference[2]
    scaled = page.row("the best member, temperature-scaled")
    assert len(scaled) == 6
    assert f"AUROC {entry['ood']['far']['auroc']['mutual_information']:.3f}" in text
    assert page.row("far")[5] == f"{entry['ood']['far']['auroc']['mutual_information']:.3f}"
    assert page.row("Base passes")[1] == "9.0"
    assert page.row("Trained parameters")[1:] == ["768", "256 per member"]
    assert "guaranteed by convexity" in page.text


def test_the_distance_of_ood_rows_has_a_column_where_it_was_measured(make_run, report):
    root = make_run()
    page, _ = report(root)
    assert "Distance: from the training rows" not in page.text
    metrics = json.loads((root / "metrics.json").read_text())
    metrics["evaluations"][0]["ood"]["far"]["auroc"]["distance"] = 0.987
    (root / "metrics.json").write_text(json.dumps(metrics))
    page, _ = report(root)
    assert page.row("far")[6] == "0.987"
    assert "Distance: from the training rows" in page.text


def test_baselines_left_out_are_named(make_run, report):
    root = make_run()
    metrics = json.loads((root / "metrics.json").read_text())
    metrics["evaluations"][0]["left_out"] = {"base_few_shot": "5 of 9 rows are <too> long"}
    (root / "metrics.json").write_text(json.dumps(metrics))
    page, _ = report(root)
    assert "Left out: base, few-shot (5 of 9 rows are <too> long)." in page.text


def test_all_parts_exist(make_run, report):
    page, _ = report(make_run(evaluations=("test", "val")))
    for title in (
        "Did the ensemble help?",
        "Can its confidence be trusted?",
        "How sure is it when it is wrong?",
        "From one LoRA to the ensemble",
        "How training went",
        "What if it may abstain?",
        "In distribution or not?",
        "Do the members differ?",
        "The most confident mistakes",
        "The most contested rows",
        "Cost of training",
        "Configuration",
        "Environment",
        "Other evaluations of this run",
    ):
        assert title in page.text, title
    pictures = [attributes for tag, attributes in page.tags if tag == "svg" and attributes.get("role") == "img"]
    assert len(pictures) > 10
    assert all(attributes.get("aria-label") for attributes in pictures)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = {attributes["href"] for tag, attributes in page.tags if tag == "a"}
    assert targets <= {f"#{name}" for name in ids}


def test_the_slider_and_its_table_count_the_same(make_run, report):
    root = make_run()
    page, _ = report(root)
    (slider,) = [attributes for _, attributes in page.tags if "data-curve" in attributes]
    curve = json.loads(slider["data-curve"])
    rows = load_predictions(root / "predictions/toy.test.safetensors")
    mixture = np.exp(rows.log_probs_MEC).mean(axis=0)
    answered = mixture.max(axis=1) >= 0.8
    wrong = answered & (mixture.argmax(axis=1) != rows.labels)
    assert (curve["rows"], curve["answered"][160], curve["wrong"][160]) == (60, answered.sum(), wrong.sum())
    cells = page.row("0.80")
    assert (cells[1], cells[3]) == (f"{100 * answered.mean():.1f} %", str(wrong.sum()))
    # the position of the slider's ring: on the panel, at full coverage on its right edge
    assert (curve["left"], curve["right"]) == (58, 414)
    assert curve["floor"] > curve["top"]


def test_examples_show_text_answer_and_choice(make_run, report):
    root = make_run()
    rows = load_predictions(root / "predictions/toy.test.safetensors")
    mixture = np.exp(rows.log_probs_MEC).mean(axis=0)
    wrong = mixture.argmax(axis=1) != rows.labels
    worst = int(np.where(wrong, mixture.max(axis=1), -1).argmax())
    page, _ = report(root, examples=1)
    start = page.text.index("The most confident mistakes")
    shown = page.text[start : page.text.index("The most contested rows")]
    assert rows.texts[worst] in shown
    assert f"{mixture[worst].max():.2f}" in shown
    assert shown.count("predicted") == shown.count("right answer") == 1


def test_without_examples_no_text_of_the_data_is_in_the_page(make_run, report):
    _, text = report(make_run(), examples=0)
    assert "of test?" not in text
    assert "Examples were left out" in text


NASTY = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&{{ 7 * 7 }}"


def nasty(rows):
    number = rows.num_examples
    return replace(
        rows,
        ids=tuple(f"{NASTY}{row}" for row in range(number)),
        options=tuple(tuple(f"{NASTY}{c}" for c in range(len(options))) for options in rows.options),
        texts=(f"{NASTY} question",) * number,
    )


def test_everything_from_data_stays_text(make_run, report):
    """Texts, labels, ids, names of tasks, sets and members, prompt, configuration and environment."""
    config = RunConfig(base=BaseConfig(name=NASTY), adapt=AdaptConfig(members=3, layers=NASTY))
    record = {
        "base": {"id": NASTY, "revision": NASTY, "digest": NASTY, "path": NASTY},
        "prompt_template": NASTY,
        "labels": [NASTY, "yes"],
        "tokenizer_digest": NASTY,
        "members": [
            {"path": f"members/member_{m:02d}", "sha256": NASTY, "state": NASTY, "best_step": 4, "val_nll": 0.5}
            for m in range(3)
        ],
    }
    # what a file's name can hold: no slash
    name = "<script>alert(1)<img src=x onerror=alert(2)>"
    root = make_run(name, task=name, ood=(name,), config=config, change=nasty, record=record)
    (root / "environment.json").write_text(json.dumps({NASTY: {NASTY: NASTY}}))
    page, text = report(root)
    tags = [tag for tag, _ in page.tags]
    assert tags.count("script") == 1
    assert not {"img", "iframe", "object", "embed", "link", "form", "base", "audio", "video", "image", "use"} & set(
        tags
    )
    attributes = {key for _, values in page.tags for key in values}
    assert not {key for key in attributes if key.startswith("on")} | ({"src", "srcset", "xlink:href"} & attributes)
    assert page.text.count(NASTY) > 20
    assert "{{ 7 * 7 }}" in page.text  # templates are not applied to data
    assert name in page.text
    assert "alert(1)</script>" not in text


def test_control_characters_are_escaped(make_run, report):
    hostile = "a\x1b[2J\u009b31m\u202eb\u200b"

    def change(rows):
        number = rows.num_examples
        options = tuple(tuple(f"{hostile}{c}" for c in range(len(options))) for options in rows.options)
        return replace(rows, options=options, texts=(f"{hostile}\r\nsecond line",) * number)

    page, text = report(make_run(change=change, record={"prompt_template": hostile, "labels": [hostile, "yes"]}))
    assert not set("\x1b\u009b\u202e\u200b\r") & set(text)
    assert "a\\x1b[2J\\x9b31m\\u202eb\\u200b" in page.text


def test_nothing_is_fetched_and_only_our_script_runs(make_run, report):
    page, text = report(make_run())
    assert not re.search(r"https?:|//[a-z]|@import|url\(|src=|srcset|<link|<iframe", text)
    (policy,) = [
        tag["content"] for name, tag in page.tags if name == "meta" and "Content-Security-Policy" in tag.values()
    ]
    (script,) = page.scripts
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert not re.search(r"fetch|XMLHttp|innerHTML|eval|import|WebSocket", script)
    (style,) = page.styles
    for need in ("prefers-color-scheme: dark", "@media print", "max-width: 640px", "#0072b2", "#d55e00"):
        assert need in style


def test_a_single_member_makes_a_page(make_run, report):
    page, _ = report(make_run(members=1))
    assert "There is one member only" in page.text
    assert page.row("one LoRA")
    assert "Do the members differ?" not in page.text
    assert "mean member" not in page.text
    assert page.row("far")[5] == "\N{EN DASH}"
    assert not [row for rows in page.tables for row in rows if row and row[0] == "ensemble"]


def test_a_failed_member_is_listed_with_its_reason(make_run, report):
    root = make_run()
    record = json.loads((root / "ensemble.json").read_text())
    failed = {"state": "failed", "reason": "diverged: loss nan (step 4)", "best_step": 0, "val_nll": None}
    record["members"].insert(1, record["members"][0] | failed)
    (root / "ensemble.json").write_text(json.dumps(record | {"num_members": 4}))
    (root / "events.jsonl").unlink()  # of three members
    page, _ = report(root)
    assert ["1", "failed, diverged: loss nan (step 4)"] in [row[:2] for rows in page.tables for row in rows]


def test_many_members_make_a_page(make_run, report):
    page, text = report(make_run(members=12))
    assert page.row("one LoRA (mean of 12)")
    assert "nan" not in re.findall(r' d="([^"]*)"', text)


@pytest.mark.parametrize("resamples", [0, 60])
def test_infinite_nll_and_absent_intervals_make_a_page(make_run, report, resamples):
    def exclude(rows):
        log_probs = rows.log_probs_MEC.copy()
        log_probs[:, 0] = np.where(np.arange(4) == 1 - rows.labels[0], 0.0, -np.inf)
        return replace(rows, log_probs_MEC=log_probs)

    root = make_run(change=exclude, resamples=resamples)
    assert entry_of(root)["ensemble"]["nll"] is None
    page, _ = report(root)
    assert page.row("ensemble")[2].startswith("∞")
    assert page.row("the mean member")[2] == "not defined"
    if not resamples:
        assert "cannot be judged" in page.text


def test_a_right_answer_everywhere_makes_a_page(make_run, report):
    def right(rows):
        log_probs = np.where(np.arange(4) == rows.labels[:, None], np.log(0.97), np.log(0.01))
        log_probs[np.arange(4) >= rows.num_choices[:, None]] = -np.inf
        log_probs -= np.log(np.exp(log_probs).sum(axis=-1, keepdims=True))
        return replace(rows, log_probs_MEC=np.stack([log_probs] * 3))

    page, _ = report(make_run(change=right))
    assert "ensemble: 0 wrong of 60" in page.text
    assert "base, few-shot: 0 wrong" not in page.text
    assert "The most confident mistakes" not in page.text


def test_bare_runs_make_a_page(make_run, report):
    """No validation predictions, baselines, OOD sets, log, environment, adapters, texts, or intervals."""
    root = make_run()
    rows = load_predictions(root / "predictions/toy.test.safetensors")
    (root / "metrics.json").write_text(json.dumps({"evaluations": [evaluate_predictions(rows, resamples=0)]}))
    for name in ("environment.json", "events.jsonl", "members/member_00/adapter_model.safetensors"):
        (root / name).unlink()
    for path in (root / "predictions").iterdir():
        if not path.stem.startswith("toy.test") or "base" in path.stem:
            path.unlink()
    words = root / "predictions/toy.test.json"
    words.write_text(json.dumps(json.loads(words.read_text()) | {"texts": []}))
    page, _ = report(root)
    assert "there is no events.jsonl" in page.text
    assert "not recorded" in page.text
    assert "test-1" in page.text  # ids stand for texts


def test_validation_rows_are_marked_as_too_optimistic(make_run, report):
    page, _ = report(make_run(evaluations=("val",)))
    assert "all numbers here are too optimistic" in page.text


def test_the_page_is_a_function_of_the_run(make_run, report):
    root = make_run()
    assert report(root)[1] == report(root)[1]


def test_bad_calls_leave_no_page(make_run, tmp_path, monkeypatch):
    root, out = make_run(), tmp_path / "page.html"
    with pytest.raises(ConfigError, match="--examples: -1 is below 0"):
        write_report([root], out, examples=-1)
    with pytest.raises(ConfigError, match="no run given"):
        write_report([], out)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(LorchestraError, match=r"pip install 'lorchestra\[report\]'"):
        write_report([root], out)
    assert not out.exists()


def test_templates_are_part_of_the_package():
    names = {entry.name for entry in files("lorchestra.report.html").joinpath("templates").iterdir()}
    assert names >= {"page.html.j2", "run.html.j2", "comparison.html.j2", "macros.html.j2", "page.css", "page.js"}


def test_no_model_library_is_loaded(make_run, tmp_path):
    root = make_run(config=RunConfig(adapt=AdaptConfig(members=3), evaluate=EvaluateConfig(few_shot=2)))
    code = (
        "import sys\n"
        "from lorchestra.report.html.page import write_report\n"
        f"write_report([{str(root)!r}], {str(tmp_path / 'page.html')!r})\n"
        "print('loaded', sorted({'torch', 'transformers', 'peft'} & set(sys.modules)))\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.endswith("loaded []\n")


def test_baselines_without_adapters_and_unbalanced_labels_are_on_the_page(make_run, tmp_path):
    root = make_run()
    metrics = json.loads((root / "metrics.json").read_text())
    entry = metrics["evaluations"][0]
    labels = entry["classes"]["labels"] if "classes" in entry else list("abc")
    entry["baselines"]["tfidf"] = dict(entry["baselines"]["base_few_shot"], T=1.25, num_rows=40, validation_nll=0.5)
    entry["seconds"] = {"tfidf": 3.0}
    entry["classes"] = {
        "labels": labels,
        "train_rows": [90, 9, 5],
        "rows": [40, 12, 8],
        "recall": {"ensemble": [0.9, 0.25, None], "tfidf": [0.8, 0.5, 0.125]},
        "weighted": False,
    }
    (root / "metrics.json").write_text(json.dumps(metrics))
    few = root / "predictions"
    for path in list(few.glob("*.test.base_few_shot.*")):
        (few / path.name.replace("base_few_shot", "tfidf")).write_bytes(path.read_bytes())
    out = tmp_path / "page.html"
    write_report([root], out)
    page = out.read_text()
    assert "TF-IDF + LR (T = 1.25)" in page
    assert "Recall by label" in page
    assert "12.5 %" in page
    assert "Seconds spent: TF-IDF + LR 3." in page
    assert "the best baseline without adapters" in page
    assert "--data.class-weights" in page
