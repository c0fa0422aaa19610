"""The contract stands alone, and what it says is not said again elsewhere."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import metaspec_contract

ROOT = Path(__file__).parents[2]
CONTRACT = ROOT / "contract" / "metaspec_contract"
TREES = ("client", "server", "simulation", "training", "export")

LISTING = """
import importlib, pkgutil, sys
import metaspec_contract
for module in pkgutil.iter_modules(metaspec_contract.__path__):
    importlib.import_module(f"metaspec_contract.{module.name}")
print("\\n".join(sorted({name.partition(".")[0] for name in sys.modules})))
"""


def test_imports() -> None:
    allowed = set(sys.stdlib_module_names) | {"metaspec_contract", "numpy", "pydantic"}
    for path in CONTRACT.glob("*.py"):
        tree = ast.parse(path.read_text())
        for block in [node for node in ast.walk(tree) if isinstance(node, ast.If)]:
            if isinstance(block.test, ast.Name) and block.test.id == "TYPE_CHECKING":
                block.body = [ast.Pass()]  # annotations only; nothing is imported
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0
                names = [node.module or ""]
            else:
                continue
            assert {name.partition(".")[0] for name in names} <= allowed, f"{path.name}: {names}"


def test_importing_it_loads_nothing_of_ours() -> None:
    result = subprocess.run([sys.executable, "-c", LISTING], capture_output=True, text=True, check=True, timeout=60)
    loaded = set(result.stdout.split())
    assert {"numpy", "pydantic", "metaspec_contract"} <= loaded
    ours = {name for name in loaded if name.startswith("metaspec")}
    assert ours == {"metaspec_contract"}
    assert not loaded & {"torch", "onnx", "onnxruntime", "httpx", "zarr", "scipy", "starlette"}


def test_public_names() -> None:
    assert all(hasattr(metaspec_contract, name) for name in metaspec_contract.__all__)
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", metaspec_contract.__version__)


FACTS = {
    "edges of the colours' bands (detectors.BANDS_NM)": r"\b(400(\.0)?, ?500|500(\.0)?, ?600|600(\.0)?, ?700)(\.0)?\b",
    "names of the channels (detectors.CHANNELS)": r"['\"]R['\"], ?['\"]G1['\"]",
    "names of the colours (detectors.COLOURS)": r"['\"](R|B)['\"], ?['\"]G['\"], ?['\"](R|B)['\"]",
    "names of the colours (detectors.COLOUR_NAMES)": r"['\"](red|blue)['\"], ?(['\"]G['\"]: ?)?['\"]green['\"]",
    "detectors of green (detectors.DETECTORS)": r"['\"]G1['\"], ?['\"]G2['\"]",
    "quadrants (detectors.QUADRANTS)": r"\(0, 0\),.{0,8}\(0, 1\),.{0,8}\(1, 0\)",
    "names of gradient models (model.gradient_model)": r"_vjp['\"`]",
    "temporary names (files.replacing)": r"\bgetpid\(",
    "syncing files (files.replacing)": r"\bfsync\(",
    "bit packing of structures (structures.pack)": r"\b(un)?packbits\(",
}
"""Facts that stand in the contract, by the text that would say them again."""

ALLOWED = {
    ("client/metaspec/_cli/bulk.py", "syncing files (files.replacing)"): "appends to a file that a later run resumes",
    (
        "training/metaspec_training/data/augmentation.py",
        "bit packing of structures (structures.pack)",
    ): "a table of bytes",
    (
        "training/metaspec_training/data/bits.py",
        "bit packing of structures (structures.pack)",
    ): "bits in words to rotate",
    ("simulation/metaspec_simulation/data/store.py", "temporary names (files.replacing)"): "moves a folder, not a file",
    ("client/metaspec/_run_lock.py", "temporary names (files.replacing)"): "says who holds the lock",
    ("simulation/metaspec_simulation/data/lock.py", "temporary names (files.replacing)"): "says who holds the lock",
}
"""Reasons, by path and fact, why a text is something else."""


@cache
def code(path: Path) -> str:
    """Source text without comments and docstrings."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        return re.sub(r"^\s*(//|\*|/\*).*$", "", text, flags=re.MULTILINE)
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            strings = [
                part for part in node.body if isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant)
            ]
            node.body = [part for part in node.body if part not in strings] or [ast.Pass()]
    return ast.unparse(tree)


SOURCES = [
    path for tree in TREES for ending in ("py", "js", "html") for path in sorted((ROOT / tree).rglob(f"*.{ending}"))
]


@pytest.mark.parametrize("fact", FACTS)
def test_facts_stand_once(fact: str) -> None:
    assert len(SOURCES) > 50
    said_again = {
        str(path.relative_to(ROOT)): found.group()
        for path in SOURCES
        if (found := re.search(FACTS[fact], code(path))) and (str(path.relative_to(ROOT)), fact) not in ALLOWED
    }
    assert not said_again


@pytest.mark.parametrize("fact", FACTS)
def test_the_contract_says_them(fact: str) -> None:
    """Otherwise the pattern looks for a text that nobody would write."""
    paths = [path for path in CONTRACT.glob("*.py") if re.search(FACTS[fact], code(path))]
    named = re.search(r"\((\w+)\.", fact)
    assert named is not None
    assert [path.stem for path in paths] == [named.group(1)]
