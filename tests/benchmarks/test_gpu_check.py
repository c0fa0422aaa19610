"""`benchmarks/gpu_check.py`: to the point where the GPU is missing, and all the way on a CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu_check.py"
NO_GPU = os.environ | {"CUDA_VISIBLE_DEVICES": "-1"}


def gpu_check(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *arguments, "--out", str(folder / "found" / "tables.md")]
    return subprocess.run(command, capture_output=True, text=True, env=NO_GPU, cwd=folder, timeout=300, check=False)


def test_without_a_gpu_it_says_what_is_missing(tmp_path: Path) -> None:
    result = gpu_check(folder=tmp_path)
    assert result.returncode == 2
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("gpu_check: ")
    assert "NVIDIA driver" in line
    assert list(tmp_path.iterdir()) == []


def test_what_is_missing_is_said_before_anything_is_installed_or_imported(tmp_path: Path) -> None:
    """As `make gpu-check` runs it first: by a Python that has no packages."""
    command = [sys.executable, "-I", "-S", str(SCRIPT), "--find-gpu"]
    result = subprocess.run(command, capture_output=True, text=True, env=NO_GPU, cwd=tmp_path, timeout=60, check=False)
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.skipif((ROOT / ".venv-gpu").exists(), reason="its environment has been made: there is a GPU")
def test_make_installs_nothing_without_a_gpu() -> None:
    command = ["make", "gpu-check", f"PYTHON={sys.executable}"]
    result = subprocess.run(command, capture_output=True, text=True, env=NO_GPU, cwd=ROOT, timeout=60, check=False)
    assert result.returncode == 2
    ours, makes = result.stderr.splitlines()
    assert ours.startswith("gpu_check: ")
    assert makes.startswith("make")
    assert not (ROOT / ".venv-gpu").exists()


def test_a_missing_repository(tmp_path: Path) -> None:
    result = gpu_check("--provider", "cpu", "--models", str(tmp_path / "none"), folder=tmp_path)
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith(f"gpu_check: {tmp_path / 'none'}: no such folder")


@pytest.mark.slow
def test_the_whole_check_on_a_cpu(small_repository: Path, tmp_path: Path) -> None:
    few = ["--sizes", "1", "2", "--structures", "4", "--seconds", "0.05", "--loads", "1x1", "3x4"]
    result = gpu_check("--provider", "cpu", "--models", str(small_repository), *few, folder=tmp_path)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "found" / "tables.md").read_text() == result.stdout
    found = json.loads((tmp_path / "found" / "tables.json").read_text())
    assert found["failed"] == {}

    forward, gradient = found["models"]["diffractionnet"], found["models"]["diffractionnet_vjp"]
    assert forward["placement"]["nodes"].keys() == {"CPUExecutionProvider"}
    assert forward["placement"]["nodes"]["CPUExecutionProvider"]["MatMul"] == 1
    assert forward["placement"]["copies"] == 0
    assert forward["work"]["gflop"] == pytest.approx(2 * 64 * 1204 / 1e9)
    for model, outputs in ((forward, {"spectra"}), (gradient, {"spectra", "gradient"})):
        assert model["parity"]["cpu"].keys() == outputs
        assert all(output["largest"] < 1e-6 < output["of"] for output in model["parity"]["cpu"].values())
        assert model["speed"]["sizes"].keys() == {"1", "2"}
        assert model["speed"]["s_after_another_size"].keys() == {"1"}
    served = found["server"]["default"]
    for load in ("predict 1 x 1", "predict 3 x 4", "gradient 1 x 1", "gradient 3 x 4"):
        assert served[load]["answers"] > 0
        assert served[load]["deviation"] < 1e-6


@pytest.mark.slow
def test_a_wrong_answer_fails_the_check(small_repository: Path, tmp_path: Path) -> None:
    """A session that answers with other weights than the CPU's reference."""
    program = f"""
import sys
sys.path.insert(0, {str(SCRIPT.parent)!r})
import gpu_check, gpu_measurements
right = gpu_measurements.run
gpu_measurements.run = lambda session, inputs, chunk=None: {{
    name: array * (1 if chunk else 1.001) for name, array in right(session, inputs, chunk).items()
}}
sys.exit(gpu_check.main())
"""
    few = ["--sizes", "1", "--structures", "2", "--seconds", "0.01", "--loads", "1x1"]
    flags = ["--provider", "cpu", "--models", str(small_repository), *few, "--out", str(tmp_path / "tables.md")]
    command = [sys.executable, "-c", program, *flags]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300, check=False)
    assert result.returncode == 1, result.stderr
    failed = json.loads((tmp_path / "tables.json").read_text())["failed"]
    assert failed.keys() == {
        "diffractionnet: spectra, cpu",
        "diffractionnet_vjp: spectra, cpu",
        "diffractionnet_vjp: gradient, cpu",
    }
