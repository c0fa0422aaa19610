"""The command line: version, modules, and process files."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

import metaspec_simulation
from metaspec_contract.process import Process
from metaspec_simulation.dataset import Recipe, open_dataset
from metaspec_testing.data_sets import fill


def test_version(command: Callable[..., Any]) -> None:
    expected = f"metaspec-simulate {version('metaspec-lab')}\n"
    assert command("--version").out == expected
    arguments = [sys.executable, "-m", "metaspec_simulation", "--version"]
    result = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"tilt": 3}', "process.tilt: unknown field"),
        (b'{"thickness_um": -1}', "process.thickness_um: Input should be greater than 0"),
        (b'{"wavelength_step_nm": 0.7}', "must be a whole number of wavelength_step_nm"),
        (b'{"solid": {"name": "TiO2"}}', "process.solid.source: Field required"),
        (b'{"period_um": ', "Expecting value: line 1"),
        (b"[1.6]", "expected a JSON object with fields of the process, got list"),
        (b"\xff\xfe", "can't decode byte"),
    ],
)
@pytest.mark.parametrize("arguments", [("run", "--count", 1), ("import", ".")])
def test_damaged_process_files(
    tmp_path: Path, refusal: Callable[..., str], arguments: tuple[object, ...], content: bytes, message: str
) -> None:
    file = tmp_path / "process.json"
    file.write_bytes(content)
    line = refusal(*arguments, "--out", tmp_path / "set", "--process", file)
    assert f"process.json: {message}" in line or (message in line and "process.json: " in line)
    assert not (tmp_path / "set").exists()


def test_a_partial_process_file_changes_the_default(tmp_path: Path, command: Callable[..., Any]) -> None:
    file, out = tmp_path / "process.json", tmp_path / "set"
    file.write_text('{"period_um": 1.6}')
    fill(open_dataset(out, Recipe(Process(period_um=1.6), seed=0, cells=24), count=1))
    result = command("--count", 1, "--cells", 24, "--out", out, "--process", file)
    assert result.code == 0, result.err
    assert "process.json, against the default: period_um 1.6 against 2.0.\n" in result.out
    file.write_text("{}")
    assert "against the default: no difference.\n" in command("import", tmp_path, "--out", out, "--process", file).out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--count", "0", "--out", "set"], "Invalid value for '--count': "),
        (["--count", "abc", "--out", "set"], "Invalid value for '--count': "),
        (["--count", "1"], "Missing option '--out'"),
        (["--bogus"], "No such option: --bogus"),
        (["bogus"], "No such command 'bogus'"),
        (["verify", "nowhere"], "'nowhere' does not exist"),
        (["import", "--out", "set"], "Missing argument"),
    ],
)
def test_usage_errors(
    command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = command(*arguments)
    (line,) = result.err.splitlines()
    assert (result.code, result.out) == (2, "")
    assert line.startswith("metaspec-simulate: ")
    assert message in line


def test_a_read_only_installation_and_no_home(tmp_path: Path) -> None:
    """There is no place for compiled code: a file is where the folder would be, and the home is no folder."""
    package = Path(metaspec_simulation.__file__).parent
    shutil.copytree(package, tmp_path / package.name, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / package.name / "physics" / "__pycache__").touch()
    kept = {name: value for name, value in os.environ.items() if name not in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME")}
    environment = kept | {"HOME": "/dev/null", "PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    code = "import metaspec_simulation.physics.fdtd as fdtd; print(fdtd.__file__, fdtd.energy)"
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(str(tmp_path))


def test_help(command: Callable[..., Any]) -> None:
    assert command("--help").out.startswith("Usage: metaspec-simulate [OPTIONS] COMMAND")
    nothing = command()
    assert nothing.code == 2
    assert nothing.err.startswith("Usage: metaspec-simulate [OPTIONS] COMMAND")
