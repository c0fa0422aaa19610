"""Simulation on a GPU, without one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from metaspec_simulation.cli import app
from metaspec_simulation.physics.cuda import cuda


def test_in_the_simulator() -> None:
    """numba reads the variable when it is imported."""
    tests = Path(__file__).with_name("on_simulated_gpu.py")
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests)],
        env=os.environ | {"NUMBA_ENABLE_CUDASIM": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "3 passed" in run.stdout


@pytest.mark.skipif(cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu(tmp_path: Path) -> None:
    out = tmp_path / "new"
    run = CliRunner().invoke(app, ["run", "--count", "1", "--out", str(out), "--gpu"])
    assert isinstance(run.exception, ValueError)
    assert "--gpu requires an NVIDIA GPU" in str(run.exception)
    assert not out.exists()


@pytest.mark.parametrize("other", [("--workers", "2"), ("--scheduler", "tcp://localhost:1")])
def test_workers_and_gpu(tmp_path: Path, other: tuple[str, str]) -> None:
    out = tmp_path / "new"
    run = CliRunner().invoke(app, ["run", "--count", "1", "--out", str(out), "--gpu", *other])
    assert isinstance(run.exception, ValueError)
    assert "--gpu and --workers or --scheduler exclude each other" in str(run.exception)
    assert not out.exists()
