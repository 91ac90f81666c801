"""The documentation is true: the CLI page is current, links lead somewhere, and README's code runs."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from lorchestra.methods.registry import METHODS, WRAPPERS, parse_name
from lorchestra.models.embedded import _PACKAGE

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


def blocks(language):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.base
@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec(_PACKAGE) is None, reason="the wheel with the embedded base is missing")
def test_readme_code_runs(texts_csv, tmp_path):
    """Every `lorchestra` line and the Python block, on two dozen rows with the embedded base."""
    texts_csv(number=24)
    new = texts_csv("new.csv", 4, seed=3)
    new.write_text("\n".join(line.split(",")[0] for line in new.read_text().splitlines()) + "\n")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    lines = [line for block in blocks("bash") for line in block.splitlines() if line.startswith("lorchestra ")]
    assert any(line.startswith("lorchestra train") for line in lines)
    assert any(line.startswith("lorchestra predict") for line in lines)
    for line in lines:
        found = subprocess.run(
            shlex.split(line), cwd=tmp_path, env={**os.environ, "PATH": path}, capture_output=True, text=True
        )
        assert found.returncode == 0, f"{line}\n{found.stderr}"
    (code,) = blocks("python")
    code = code.replace('"runs/', '"python-runs/')
    found = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert len(found.stdout.splitlines()) == 1 + 4


def test_the_methods_page_has_every_setting_with_its_default():
    text = (ROOT / "docs/design/methods.md").read_text(encoding="utf-8")
    table = text[text.index("| name | settings |") : text.index("What is not obvious")]
    told = dict(re.findall(r"^\| `([+\w]+)` \| (.*) \|$", table, flags=re.MULTILINE))
    every = METHODS | {f"+{name}": wrapper for name, wrapper in WRAPPERS.items()}
    for name, method in every.items():
        fields = re.findall(r"`(\w+)=([^`]*)`", told.get(name, ""))
        assert [field for field, _ in fields] == [field.name for field in dataclasses.fields(method.Config)], name
        for field, value in fields:
            if "..." not in value:
                named = parse_name(f"one_lora{name}:{field}={value}" if name[0] == "+" else f"{name}:{field}={value}")
                found = named.wrappers[0][1] if name[0] == "+" else named.config
                assert found == method.Config(), (name, field)
