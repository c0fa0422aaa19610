"""Data sets: complete, resumable after a killed run, and refused when damaged or mixed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import xarray
import zarr
from metaspec_simulation import Process, Solver
from metaspec_simulation import dataset as data
from metaspec_simulation.farfield import shifted_basis
from metaspec_simulation.structures import random_structure

CELLS = 24
DATASETS = Path(__file__).parents[2] / "datasets"


def command(out: Path, count: int, *more: str) -> list[str]:
    settings = ["--count", str(count), "--out", str(out), "--seed", "5", "--cells", str(CELLS)]
    return [sys.executable, "-m", "metaspec_simulation.cli", *settings, *more]


def simulate(out: Path, count: int, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(out, count, *more), capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data") / "set"
    result = simulate(out, 70, "--workers", "2")
    assert result.returncode == 0, result.stderr
    assert "has 70 samples" in result.stdout
    assert "WARNING" not in result.stderr
    return out


def test_samples_are_what_the_solver_says(finished: Path) -> None:
    samples = data.load(finished)
    recipe = data.Recipe(Process(), seed=5, cells=CELLS)
    solver = Solver(Process(), CELLS)
    assert len(samples) == 70
    for sample in (0, 69):
        np.testing.assert_array_equal(samples.structures[sample], recipe.structure(sample))
        solved = solver.simulate(recipe.structure(sample))
        np.testing.assert_allclose(samples.spectra[sample], solved.spectra, atol=data.STEP)
        basis = shifted_basis(np.array([9]), np.array([-30]))[0]
        np.testing.assert_allclose(
            basis @ (samples.harmonics[sample] * data.HARMONIC_STEP), basis @ solved.harmonics[:, ::2], atol=6e-3
        )
        assert samples.family[sample] == recipe.family(sample)
        assert samples.energy_error[sample] == pytest.approx(np.sqrt(np.mean(solved.energy_error**2)), rel=1e-5)


def test_a_killed_run_goes_on_and_ends_up_the_same(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    process = subprocess.Popen(command(out, 70), stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 120
    while not (out / "complete" / "c" / "0").exists():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    left = len(data.missing_shards(data.read_dataset(out)))
    assert left == 1, "the first shard is there, the second is not"
    assert simulate(out, 70).returncode == 0
    for array in ("structure", "spectra", "harmonics", "family", "split", "energy_error"):
        # One step of the integers: how memory is aligned decides over the last bit of a float.
        tolerance = {"spectra": 1, "harmonics": 1, "energy_error": 1e-6}.get(array, 0)
        ours, theirs = (zarr.open_group(folder)[array][:].astype(float) for folder in (out, finished))
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance)


def test_an_interrupted_run_says_how_to_go_on(tmp_path: Path) -> None:
    out = tmp_path / "set"
    process = subprocess.Popen(
        command(out, 200),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        # A shell's background job ignores Ctrl-C, and would hand that down to what it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 120
    while not (out / "complete" / "c" / "0").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "of 200 samples written. Repeat the command to go on." in output


def test_more_samples_and_nothing_to_do(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    shutil.copytree(finished, out)
    assert simulate(out, 72).returncode == 0
    before, after = data.load(finished), data.load(out)
    assert len(after) == 72
    np.testing.assert_array_equal(after.spectra[:70], before.spectra)
    assert "nothing to do" in simulate(out, 72).stdout


def test_xarray_reads_it(finished: Path) -> None:
    with xarray.open_zarr(finished, consolidated=False, chunks=None) as opened:
        assert dict(opened.spectra.sizes) == {"sample": 70, "channel": 4, "wavelength": 301}
        np.testing.assert_allclose(opened.spectra.values, data.load(finished).spectra, atol=1e-6)
        assert opened.wavelength.attrs["units"] == "nm"
        assert Process.model_validate(opened.attrs["process"]) == Process()


def test_what_is_refused(finished: Path, tmp_path: Path) -> None:
    def message(*arguments: object) -> str:
        result = simulate(*arguments)  # type: ignore[arg-type]
        assert result.returncode == 2
        assert "Traceback" not in result.stderr
        return result.stderr

    assert "was made with seed = 5, not 6" in message(finished, 70, "--seed", "6")
    assert "was made with solver" in message(finished, 70, "--cells", "26")
    other = tmp_path / "other"
    other.mkdir()
    (other / "file").write_text("x")
    assert "is not a MetaSpec data set" in message(other, 70)
    assert "--count" in message(other, 0)
    with pytest.raises(ValueError, match="no Zarr group"):
        data.load(tmp_path / "missing")
    zarr.create_group(tmp_path / "foreign")
    with pytest.raises(ValueError, match="schema version 2, it says None"):
        data.load(tmp_path / "foreign")
    data.open_dataset(tmp_path / "fresh", data.Recipe(Process(), seed=0, cells=CELLS), count=3)
    with pytest.raises(ValueError, match="no finished samples"):
        data.load(tmp_path / "fresh")


def test_given_structures(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    given = np.stack([random_structure(rng, "rectangles") for _ in range(2)])
    np.save(tmp_path / "given.npy", given)
    settings = ["--structures", str(tmp_path / "given.npy"), "--out", str(tmp_path / "set"), "--cells", str(CELLS)]

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "metaspec_simulation.cli", "run", *settings, *more]
        return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)

    assert run().returncode == 0
    samples = data.load(tmp_path / "set")
    np.testing.assert_array_equal(samples.structures, given)
    assert set(samples.family) == {"design"}
    solved = Solver(Process(), CELLS).simulate(given[1])
    np.testing.assert_allclose(samples.spectra[1], solved.spectra, atol=data.STEP)
    assert "nothing to do" in run().stdout
    assert "exclude each other" in run("--count", "3").stderr
    np.save(tmp_path / "given.npy", 1 - given)
    assert "was made with given" in run().stderr
    np.save(tmp_path / "given.npy", given[:, :64])
    assert "structures must have shape (N, 128, 128), got (2, 64, 128)" in run().stderr


@pytest.mark.parametrize(("name", "cells", "count"), [("bayer-600nm", 80, 3000), ("bayer-600nm-coarse", 48, 20000)])
def test_the_reference_data_sets(name: str, cells: int, count: int) -> None:
    """Complete, distinct, small, the same structures on both grids, and what today's solver says of them."""
    path = DATASETS / name
    samples = data.load(path)
    assert len(samples) >= count
    assert (samples.split == "test").sum() >= count // 12
    assert np.isfinite(samples.spectra).all()
    assert samples.energy_error.mean() < 0.008
    distinct, times = np.unique(samples.packed, axis=0, return_counts=True)
    assert len(distinct) >= 0.999 * len(samples)  # the empty cell comes up now and then
    repeated = np.unpackbits(distinct[times > 1], axis=1).mean(axis=1)
    assert np.isin(repeated, (0, 1)).all(), "only a cell that is empty or full comes twice by chance"
    recipe = data.Recipe(samples.process, seed=samples.attributes["seed"], cells=cells)
    np.testing.assert_array_equal(samples.structures[320], recipe.structure(320))
    solved = Solver(samples.process, cells).simulate(recipe.structure(320))
    np.testing.assert_allclose(samples.spectra[320], solved.spectra, atol=2e-4)
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    assert size / len(samples) < 5.2e3, "23,000 structures take less than 120 MB"
    with pytest.raises(ValueError, match="split must be one of train, validation, test, got 'all'"):
        samples.of("all")
