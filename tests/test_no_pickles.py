"""The package never reads a pickle and never runs code out of a model's repository: checked in its syntax trees."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

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


def auto_calls(tree: ast.AST) -> list[ast.Call]:
    """Calls of `transformers.Auto....from_pretrained`."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return [call for call in calls if re.fullmatch(r"transformers\.Auto\w+\.from_pretrained", ast.unparse(call.func))]


def trusts_nothing(call: ast.Call, tree: ast.AST) -> bool:
    """Whether remote code is turned off in a call, by itself or by options it unpacks; left out, people are asked."""
    safe = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Dict):
            pairs = zip(node.value.keys, node.value.values, strict=True)
            if any(isinstance(k, ast.Constant) and k.value == "trust_remote_code" and _is_false(v) for k, v in pairs):
                safe.add(ast.unparse(node.target if isinstance(node, ast.AnnAssign) else node.targets[0]))
    return any(
        (keyword.arg == "trust_remote_code" and _is_false(keyword.value))
        or (keyword.arg is None and ast.unparse(keyword.value) in safe)
        for keyword in call.keywords
    )


def test_bases_are_loaded_with_remote_code_off_and_safetensors_only():
    found = 0
    for path in sorted(SOURCE.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for call in auto_calls(tree):
            found += 1
            where = f"{path.name}:{call.lineno}"
            assert trusts_nothing(call, tree), where
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
            if "AutoModel" in ast.unparse(call.func):
                assert given.get("use_safetensors") == "True" or "gguf_file" in given, where
    assert found >= 5


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("transformers.AutoConfig.from_pretrained(x)", False),
        ("transformers.AutoConfig.from_pretrained(x, trust_remote_code=False)", True),
        ("O = {'local': 1}\ntransformers.AutoModel.from_pretrained(x, **O)", False),
        ("O: dict = {'trust_remote_code': False}\ntransformers.AutoModel.from_pretrained(x, **O)", True),
        ("O = {'trust_remote_code': flag}\ntransformers.AutoModel.from_pretrained(x, **O)", False),
    ],
)
def test_the_check_of_remote_code_sees_what_is_left_out(text, safe):
    tree = ast.parse(text)
    (call,) = auto_calls(tree)
    assert trusts_nothing(call, tree) is safe


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
