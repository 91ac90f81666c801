"""What is checked of the source as a whole: layers, sizes, names, types."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from importlinter.cli import lint_imports

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "lorchestra"
FILES = sorted(SOURCE.rglob("*.py"))
SIDE_ROOMS = ("paper", "demo")


def in_main_rooms():
    """The files of all rooms but the paper's figures and the demo."""
    return [path for path in FILES if path.relative_to(SOURCE).parts[0] not in SIDE_ROOMS]


def test_imports_go_down_the_layers(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("logging.config.dictConfig", lambda config: None)  # it would disable the loggers of other tests
    assert lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True) == 0


def test_no_module_is_long():
    long = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in FILES}
    assert {name: lines for name, lines in long.items() if lines > 500} == {}


def test_no_function_is_long():
    long = {}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = node.end_lineno - node.lineno + 1
                if lines > 60:
                    long[f"{path.relative_to(ROOT)}:{node.name}"] = lines
    assert long == {}


@pytest.mark.parametrize(
    ("words", "most"), [("own", 2), ("found", 3), ("told|tells|hears|said", 0.5), ("place|places", 2)]
)
def test_the_language_is_plain(words, most):
    """Words of the list in CONTRIBUTING.md, per 1,000 lines."""
    text = "".join(path.read_text() for path in in_main_rooms())
    count = len(re.findall(rf"\b(?:{words})\b", text, flags=re.IGNORECASE))
    assert 1000 * count / text.count("\n") < most


def test_any_is_rare():
    count = sum(
        len(re.findall(r"\bAny\b", re.sub(r"^from typing.*$", "", path.read_text(), flags=re.M))) for path in FILES
    )
    assert count <= 40


def test_only_the_command_line_knows_its_library():
    others = [path for path in FILES if path.relative_to(SOURCE).parts[0] != "cli"]
    assert [path for path in others if re.search(r"^\s*(?:import|from) tyro", path.read_text(), flags=re.M)] == []
