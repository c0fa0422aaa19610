"""The command line: version, modules, and process files."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from metaspec_contract.process import Process
from metaspec_simulation.cli import main
from metaspec_simulation.dataset import Recipe, open_dataset


def test_version(command: Callable[..., Any]) -> None:
    expected = f"metaspec-lab {version('metaspec-lab')}\n"
    assert command("--version").out == expected
    arguments = [sys.executable, "-m", "metaspec_simulation", "--version"]
    result = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"tilt": 3}', "process.tilt: Extra inputs are not permitted"),
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
    open_dataset(out, Recipe(Process(period_um=1.6), seed=0, cells=24), count=1)["complete"][:] = 1
    result = command("--count", 1, "--cells", 24, "--out", out, "--process", file)
    assert result.code == 0, result.err
    assert "process.json, against the default: period_um 1.6 against 2.0.\n" in result.out
    file.write_text("{}")
    assert "against the default: no difference.\n" in command("import", tmp_path, "--out", out, "--process", file).out


def test_usage_errors(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["metaspec-simulate", "--count", "0", "--out", str(tmp_path / "set")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "Invalid value for '--count'" in capsys.readouterr().err
