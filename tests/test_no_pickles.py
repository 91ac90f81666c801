"""The package never reads a pickle and never runs code out of a model's repository: checked in its syntax trees."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from lorchestra.models import sources

SOURCE = Path(__file__).parents[1] / "src"
READERS = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
LOADERS = {("torch", "load"), ("np", "load"), ("numpy", "load"), ("pd", "read_pickle"), ("pandas", "read_pickle")}


def faults(text: str) -> list[str]:
    """What a module does that could run code out of a file."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            module = node.module if isinstance(node, ast.ImportFrom) and node.module else ""
            found += [name for name in (module, *names) if name.split(".")[0] in READERS]
            found += [f"{module}.{name}" for name in names if (module, name) in LOADERS]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if (node.value.id, node.attr) in LOADERS:
                found.append(f"{node.value.id}.{node.attr}")
        elif isinstance(node, ast.keyword) and node.arg in ("trust_remote_code", "allow_pickle"):
            found += [] if _is_false(node.value) else [str(node.arg)]
        elif isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and key.value == "trust_remote_code" and not _is_false(value):
                    found.append("trust_remote_code")
    return found


def _is_false(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is False


def test_no_module_reads_pickles_or_trusts_remote_code():
    modules = sorted(SOURCE.rglob("*.py"))
    assert len(modules) > 50
    assert {path.name: found for path in modules if (found := faults(path.read_text(encoding="utf-8")))} == {}


def test_bases_are_loaded_with_remote_code_off_and_safetensors_only():
    tree = ast.parse((SOURCE / "lorchestra/models/sources.py").read_text(encoding="utf-8"))
    calls = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "from_pretrained"
    ]
    assert len(calls) == 3
    assert sources._OPTIONS["trust_remote_code"] is False
    for call in calls:
        assert any(keyword.arg is None and ast.unparse(keyword.value) == "_OPTIONS" for keyword in call.keywords)
    weights = [call for call in calls if "AutoModelForCausalLM" in ast.unparse(call.func)]
    assert [k.value.value for k in weights[0].keywords if k.arg == "use_safetensors"] == [True]


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "import os, joblib",
        "from pickle import loads",
        "import dill.source",
        "from torch import load",
        "import torch\ntorch.load('x')",
        "import numpy as np\nf = np.load",
        "g(trust_remote_code=True)",
        "g(trust_remote_code=flag)",
        "g(**{'trust_remote_code': flag})",
        "g(allow_pickle=True)",
    ],
)
def test_the_check_sees_each_of_them(text):
    assert faults(text)
    assert faults("g(trust_remote_code=False)\nimport torch\ntorch.zeros(2)\nx = {'trust_remote_code': False}") == []
