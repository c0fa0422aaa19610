"""The direction of imports inside the server, and what it may load."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import metaspec_server
from metaspec_server.core.errors import ServiceError
from metaspec_server.http.problems import problem_of

ROOT = Path(metaspec_server.__file__).parent
FLOOR = {
    "metaspec_contract",
    "metaspec_server",
    "metaspec_server.blocking",
    "metaspec_server.environment",
    "metaspec_server.layout_reading",
    "metaspec_server.repository",
    "metaspec_server.settings",
}
"""What every room may import of ours: below all of them."""

MAY_IMPORT = {
    "core": {"metaspec_server.core"},
    "engines": {"metaspec_server.core", "metaspec_server.engines"},
    "ops": {"metaspec_server.core", "metaspec_server.ops"},
    "http": {"metaspec_server.core", "metaspec_server.http", "metaspec_server.ops"},
    "oip_grpc": {
        "metaspec_server.core",
        "metaspec_server.http",
        "metaspec_server.oip_grpc",
        "metaspec_server.ops",
    },
}
COMPOSITION = ROOT / "ops" / "serving.py"
"""The one module that joins engines, service and HTTP."""

LIBRARIES = {"onnxruntime": "engines", "tritonclient": "engines", "fastapi": "http", "starlette": "http"}
"""Rooms that third-party libraries belong to."""


def imported(path: Path) -> set[str]:
    """Modules that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names.add(node.module or "")
    return names


def modules(room: str) -> list[Path]:
    found = [path for path in (ROOT / room).glob("**/*.py") if path != COMPOSITION]
    assert len(found) > 2
    return found


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_only_rooms_below_it(room: str) -> None:
    allowed = MAY_IMPORT[room]
    for path in modules(room):
        ours = {name for name in imported(path) if name.startswith("metaspec")}
        wrong = {
            name
            for name in ours - FLOOR
            if not name.startswith("metaspec_contract.") and ".".join(name.split(".")[:2]) not in allowed
        }
        assert not wrong, f"{path.relative_to(ROOT)} imports {wrong}"


def test_every_room_is_covered() -> None:
    rooms = {path.name for path in ROOT.iterdir() if (path / "__init__.py").exists()}
    assert rooms == MAY_IMPORT.keys()


@pytest.mark.parametrize("library", LIBRARIES)
def test_the_core_imports_no_library_of_http_or_of_an_engine(library: str) -> None:
    assert any(library in {name.split(".")[0] for name in imported(path)} for path in modules(LIBRARIES[library]))
    for path in modules("core"):
        assert library not in {name.split(".")[0] for name in imported(path)}, path.name


def loaded_by(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after some code."""
    code += "\nimport sys; print(*{name.split('.')[0] for name in sys.modules})"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=240)
    return set(result.stdout.split())


def test_the_service_loads_no_library_of_http_or_of_an_engine() -> None:
    assert not loaded_by("import metaspec_server.core.service") & LIBRARIES.keys()


def test_the_server_needs_neither_torch_nor_our_other_packages() -> None:
    unwanted = {"torch", "metaspec", "metaspec_simulation", "metaspec_training", "metaspec_export", "onnx"}
    assert not loaded_by("import metaspec_server.ops.serving") & unwanted


def test_every_error_of_the_service_has_a_status() -> None:
    for error in ServiceError.__subclasses__():
        arguments = {
            "TooManyStructures": (2, 1),
            "TooMuchMemory": (2, 1),
            "MemoryFull": (1,),
            "QueueFull": (1, 1, 3.0),
            "DeadlineExceeded": (1.0,),
            "Closed": (),
            "StillLoading": ("name", 1, 2),
        }
        problem = problem_of(error(*arguments.get(error.__name__, ("reason",))))
        assert 400 <= problem.status < 600
        assert (problem.status == 503) == ("Retry-After" in (problem.headers or {})), error
