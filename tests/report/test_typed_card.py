"""The model card of a run on typed questions: each with its prompt, results and calibration; the program asks one."""

from __future__ import annotations

import io
import json
import re
from contextlib import redirect_stderr, redirect_stdout

import pytest
import transformers

from lorchestra.cli import main as cli
from lorchestra.config.adapt import AdaptConfig, BaseConfig
from lorchestra.config.data import DataConfig, PromptConfig
from lorchestra.config.run import EvaluateConfig, RunConfig, TrainConfig
from lorchestra.data.questions_file import read_questions
from lorchestra.metrics.table import BY_KEY
from lorchestra.questions import Question
from lorchestra.runs.ask import Asked, Asker
from lorchestra.runs.ensemble import Ensemble
from lorchestra.types import Example, Task

MAKER = Question("maker", "choice", "Who made\nit?", ("Ann", "Bob", "Ann Lee"), ("a singer", None, None))
GOOD = Question("good", "predicate", "It is good.")
LONG = Question("long", "score", "How long is it?", ("short", "medium", "long"))
STATE = "the song was rather fine"


def rows_of(split, number, questions):
    """Rows whose answers follow from the state, so that members and calibrations differ from the base."""
    return tuple(
        Example(f"{i}/{one.name}", f"{split} {i} film", one.options, (i + k) % len(one.options), f"{split}:{i}", one)
        for i in range(number)
        for k, one in enumerate(questions)
    )


def train(base, out, questions, **data):
    splits = {name: rows_of(name, 20, questions) for name in ("train", "val", "test")}
    config = RunConfig(
        base=BaseConfig(name=str(base)),
        adapt=AdaptConfig(members=2, r=2),
        data=DataConfig(**data),
        train=TrainConfig(epochs=1, lr=0.05),
        evaluate=EvaluateConfig(resamples=0, few_shot=0),
    )
    return Ensemble.train(config, out, rows=Task("films", splits, questions=questions))


def write_rows(path, rows):
    lines = [{"state": row.question, "answers": {row.asked.name: row.choices[row.answer]}} for row in rows]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def export(run, out):
    assert cli.main(["export", str(run.run.root), "--out", str(out)]) == 0
    return (out / "README.md").read_text()


def run_program(out, base, monkeypatch):
    """What the card's program prints about the state, in the exported directory with the base's path filled in."""
    (code,) = re.findall(r"^```python\n(.*?)^```", (out / "README.md").read_text(), flags=re.MULTILINE | re.DOTALL)
    filled = code.replace("BASE = 'tiny'", f"BASE = {str(base)!r}").replace('"your text"', repr(STATE))
    assert filled.count(STATE) == 1
    monkeypatch.chdir(out)
    printed = io.StringIO()
    with redirect_stdout(printed), redirect_stderr(io.StringIO()):
        exec(compile(filled, "card", "exec"), {})
    return eval(printed.getvalue())


def expected(run, question):
    asker = Asker(run)
    (reply,) = asker.answer([asker.encode(Asked(STATE, question))])
    assert reply.answer.calibrated
    return dict(zip(question.options, reply.answer.probs, strict=True))


@pytest.mark.parametrize(
    ("settings", "question"),
    [
        ({"scoring": "tree"}, MAKER),
        ({"scoring": "tree"}, LONG),
        ({"scoring": "text"}, MAKER),
        ({"scoring": "text", "normalize": "token"}, MAKER),
        ({"scoring": "text", "normalize": "byte"}, GOOD),
        ({"scoring": "letter"}, MAKER),
        ({"prompt": PromptConfig(answer_prefix="\n")}, GOOD),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else value.name,
)
def test_its_program_gives_the_probabilities_of_lorchestra(tiny_base, tmp_path, monkeypatch, settings, question):
    run = train(tiny_base, tmp_path / "run", (question, *({GOOD, LONG} - {question})), **settings)
    export(run, tmp_path / "out")
    assert run_program(tmp_path / "out", tiny_base, monkeypatch) == pytest.approx(expected(run, question), abs=1e-4)


def test_its_program_asks_through_the_chat_template(make_base, tmp_path, monkeypatch):
    base = make_base(5)
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
    tokenizer.save_pretrained(base)
    run = train(base, tmp_path / "run", (MAKER, GOOD), prompt=PromptConfig(system_prompt="be 'brief'"))
    assert "system: be 'brief'" in export(run, tmp_path / "out")
    assert run_program(tmp_path / "out", base, monkeypatch) == pytest.approx(expected(run, MAKER), abs=1e-4)


def test_every_question_has_its_prompt_results_and_calibration(tiny_base, tmp_path):
    run = train(tiny_base, tmp_path / "run", (MAKER, GOOD, LONG))
    entry = run.evaluate(data=write_rows(tmp_path / "new.jsonl", rows_of("new", 20, (MAKER, GOOD, LONG))))
    card = export(run, tmp_path / "out")
    assert "`maker`, a choice. Who made it?\n\n- `Ann`: a singer\n- `Bob`\n- `Ann Lee`\n" in card
    assert "      Question: It is good.\n      Is this true or false?\n      Answer:\n" in card
    assert "`long`, a score, from the lowest level. How long is it?" in card
    assert "Question: {question}" not in card
    assert "with the prompts above" in card
    for name, question in entry.questions.items():
        assert f"- `{name}`: {run.calibrations[name].sentence()}" in card
        (line,) = [row for row in card.splitlines() if row.startswith(f"| new, `{name}` (20) | ensemble |")]
        assert f"| {question.evaluation.ensemble.number(BY_KEY['nll'])} |" in line


def test_an_export_has_the_questions_with_which_it_is_imported(tiny_base, tmp_path, monkeypatch):
    run = train(tiny_base, tmp_path / "run", (MAKER, GOOD, LONG))
    export(run, tmp_path / "out")
    assert read_questions(tmp_path / "out/questions.json") == (MAKER, GOOD, LONG)
    rows = write_rows(tmp_path / "rows.jsonl", rows_of("x", 20, (GOOD, MAKER)))
    members = [str(tmp_path / f"out/member_0{m}") for m in range(2)]
    data = ["--data.questions", str(tmp_path / "out/questions.json"), "--data.train", str(rows)]
    assert cli.main(["import", *members, *data, "--out", str(tmp_path / "imported")]) == 0
    imported = Ensemble.load(tmp_path / "imported")
    assert imported.record.questions == (MAKER, GOOD, LONG)
    asked = [Asked(STATE, question) for question in (MAKER, GOOD, LONG)]
    one, other = (Asker(ensemble, raw=True) for ensemble in (run, imported))
    for mine, theirs in zip(
        one.answer([one.encode(a) for a in asked]), other.answer([other.encode(a) for a in asked]), strict=True
    ):
        assert mine.answer.member_probs == theirs.answer.member_probs
