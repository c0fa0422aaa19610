"""Every example in a docstring of the distributions prints what it says."""

from __future__ import annotations

import ast
import doctest
import importlib
from pathlib import Path

import pytest

from metaspec_testing.servers import RunningServer

ROOT = Path(__file__).parents[2]
FOLDERS = ("client", "contract", "export", "server", "simulation", "training")
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
ADDRESS = "http://127.0.0.1:8000"
FILES = {
    ".".join(path.relative_to(ROOT / folder).with_suffix("").parts): path
    for folder in FOLDERS
    for path in sorted((ROOT / folder).rglob("*.py"))
    if ">>> " in path.read_text(encoding="utf-8")
}
"""Files with examples, by module."""


@pytest.mark.parametrize("module", FILES)
def test_examples(module: str, server: RunningServer) -> None:
    names = vars(importlib.import_module(module))
    nodes = ast.walk(ast.parse(FILES[module].read_text(encoding="utf-8")))
    texts = [ast.get_docstring(node) or "" for node in nodes if isinstance(node, DOCUMENTED)]
    examples = [text.replace(ADDRESS, server.url) for text in texts if ">>> " in text]
    assert examples != []
    for text in examples:
        printed: list[str] = []
        test = doctest.DocTestParser().get_doctest(text, dict(names), module, str(FILES[module]), 0)
        doctest.DocTestRunner().run(test, out=printed.append)
        assert printed == [], "".join(printed)


def test_client_contract_and_laboratory_have_examples() -> None:
    assert {module.partition(".")[0] for module in FILES} >= {"metaspec", "metaspec_contract", "metaspec_simulation"}
