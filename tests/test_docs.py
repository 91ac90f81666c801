"""The documentation is true: the CLI page is current, links lead somewhere, and README's code runs."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import shlex
from pathlib import Path

import pytest
from tiny_base import save_tiny_base

from lorchestra.cli import main as cli
from lorchestra.methods.registry import METHODS, WRAPPERS, parse_name
from lorchestra.models import loading

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def load_make_cli():
    spec = importlib.util.spec_from_file_location("make_cli", ROOT / "docs/make_cli.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_cli_page_is_what_help_prints():
    assert (ROOT / "docs/cli.md").read_text(encoding="utf-8") == load_make_cli().reference(), "run: make docs"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_named_files_exist(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "log.md"], ids=lambda page: page.name)
def test_named_modules_and_their_functions_exist(page):
    """Named as `path.py`, `path.py` `name`, `path.py` (`name`, `other`) or `path.py` | `name` → `other`."""
    text = page.read_text(encoding="utf-8")
    for path, names in re.findall(r"`([a-z][a-z_0-9/]*\.py)`((?:(?:,| \|| →)? \(?`\w+`)*)", text):
        file = next((root / path for root in (ROOT, ROOT / "src/lorchestra") if (root / path).is_file()), None)
        assert file is not None, path
        code = file.read_text(encoding="utf-8")
        for name in re.findall(r"\w+", names):
            assert re.search(rf"^\s*(?:def |class )?{name}\b\s*[(:=\[]", code, flags=re.MULTILINE), (path, name)


def blocks(language):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture
def small_default_base(tmp_path_factory, monkeypatch):
    """Replaces the embedded base with a tiny one of twelve layers."""
    directory = save_tiny_base(tmp_path_factory.mktemp("base") / "tiny", num_layers=12)
    monkeypatch.setattr(loading, "embedded_directory", lambda **_: directory)


def test_readme_code_runs(small_default_base, texts_csv, tmp_path, monkeypatch, capsys):
    """Every `lorchestra` line and the Python block, on two dozen rows."""
    texts_csv(number=24)
    new = texts_csv("new.csv", 4, seed=3)
    new.write_text("\n".join(line.split(",")[0] for line in new.read_text().splitlines()) + "\n")
    monkeypatch.chdir(tmp_path)
    lines = [line for block in blocks("bash") for line in block.splitlines() if line.startswith("lorchestra ")]
    assert any(line.startswith("lorchestra train") for line in lines)
    assert any(line.startswith("lorchestra predict") for line in lines)
    for line in lines:
        code = cli.main(shlex.split(line)[1:])
        assert code == 0, f"{line}\n{capsys.readouterr().err}"
    capsys.readouterr()
    (code,) = blocks("python")
    exec(compile(code.replace('"runs/', '"python-runs/'), "README.md", "exec"), {"__name__": "__main__"})
    assert len(capsys.readouterr().out.splitlines()) == 2 + 1  # two answers, one evaluation
    assert sorted(folder.name for folder in (tmp_path / "peft-folders").iterdir())[0] == "member_00"


def test_the_methods_page_has_every_setting_with_its_default():
    text = (ROOT / "docs/design/methods.md").read_text(encoding="utf-8")
    table = text[text.index("| name | settings |") : text.index("What is not obvious")]
    documented = dict(re.findall(r"^\| `([+\w]+)` \| (.*) \|$", table, flags=re.MULTILINE))
    every = METHODS | {f"+{name}": wrapper for name, wrapper in WRAPPERS.items()}
    for name, method in every.items():
        fields = re.findall(r"`(\w+)=([^`]*)`", documented.get(name, ""))
        assert [field for field, _ in fields] == [field.name for field in dataclasses.fields(method.Config)], name
        for field, value in fields:
            if "..." not in value:
                named = parse_name(f"one_lora{name}:{field}={value}" if name[0] == "+" else f"{name}:{field}={value}")
                config = named.wrappers[0][1] if name[0] == "+" else named.config
                assert config == method.Config(), (name, field)
