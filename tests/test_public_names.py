"""The public names: light to import, complete, and the earlier ones with a warning that names the new way."""

from __future__ import annotations

import inspect
import subprocess
import sys
import types
import typing

import pytest

import lorchestra

EARLIER = {
    "build_session": ("lorchestra.runs.build", "build_pipeline", r"build_module\(config, task\)"),
    "evaluate_run": ("lorchestra.runs.evaluate", "evaluate_run", r"Ensemble\.evaluate"),
    "import_run": ("lorchestra.runs.import_peft", "import_run", r"Ensemble\.from_peft"),
    "load_run": ("lorchestra.runs.ensemble", "load_run", r"Ensemble\.load"),
    "prediction_rows": ("lorchestra.runs.predict", "prediction_rows", r"answers_from\(predictions\)"),
    "read_rows": ("lorchestra.runs.rows", "read_rows", r"read_task\(config\)"),
    "train_run": ("lorchestra.runs.train", "train_run", r"Ensemble\.train"),
}


def run(code):
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_import_is_light():
    heavy = "{'torch', 'transformers', 'numpy', 'peft', 'yaml', 'pandas', 'sklearn'}"
    assert run(f"import lorchestra, sys; print({heavy} & set(sys.modules))") == "set()\n"
    assert run("import lorchestra, sys; lorchestra.RunConfig(); print('torch' in sys.modules)") == "False\n"


@pytest.mark.parametrize("name", lorchestra.__all__)
def test_every_exported_name_is_there(name):
    assert getattr(lorchestra, name).__name__ == name
    assert f"`{name}`" in lorchestra.__doc__
    assert name in dir(lorchestra)


@pytest.mark.parametrize("name", EARLIER)
def test_an_earlier_name_warns_and_works(name):
    module, attribute, replacement = EARLIER[name]
    with pytest.warns(DeprecationWarning, match=rf"lorchestra\.{name} will be removed .*{replacement}") as caught:
        value = getattr(lorchestra, name)
    assert value is getattr(sys.modules[module], attribute)
    assert caught[0].filename == __file__
    assert name not in lorchestra.__all__


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'lorchestra' has no attribute 'trian'"):
        _ = lorchestra.trian


def classes_in(hint):
    """The library's classes in a type hint."""
    if isinstance(hint, type) and hint.__module__.startswith("lorchestra."):
        yield hint
    for part in typing.get_args(hint):
        yield from classes_in(part)


def public_callables():
    for name in lorchestra.__all__:
        value = getattr(lorchestra, name)
        if inspect.isfunction(value):
            yield value
        elif value in (
            lorchestra.Ensemble,
            lorchestra.Answer,
            lorchestra.Answers,
            lorchestra.Evaluation,
            lorchestra.Run,
        ):
            members = inspect.getmembers(value, lambda member: inspect.isfunction(member) or inspect.ismethod(member))
            yield from (member for name, member in members if not name.startswith("_"))


def test_what_a_public_function_returns_is_public():
    functions, names = list(public_callables()), {"pandas": types.SimpleNamespace(DataFrame=object)}
    assert lorchestra.Ensemble.predict in functions
    returned = {
        one.__name__
        for function in functions
        for one in classes_in(typing.get_type_hints(inspect.unwrap(function), localns=names).get("return"))
    }
    assert returned - {"SplitRecord"} <= set(lorchestra.__all__)  # a dictionary
    assert {"Ensemble", "Answers", "Answer", "Evaluation", "MethodScores", "EnsembleModule", "Task"} <= returned
