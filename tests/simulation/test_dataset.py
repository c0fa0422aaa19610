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

from metaspec_contract.process import Process
from metaspec_contract.structures import symmetries
from metaspec_simulation import Solver
from metaspec_simulation import dataset as data
from metaspec_simulation.data.families import orbit_key, random_structure, split_of
from metaspec_simulation.designs import candidates, read_designs
from metaspec_simulation.physics.farfield import shifted_basis
from metaspec_testing.optimised import write_folder

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


def images(structures: np.ndarray) -> np.ndarray:
    """Another copy by symmetry of each structure."""
    moved = np.roll(structures, (3, -17), axis=(1, 2))
    return np.stack([list(symmetries())[5 + k % 3].apply(one) for k, one in enumerate(moved)])


@pytest.fixture(scope="module")
def optimised(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three optimisations with 2 + 3, 1 + 2 and 2 + 0 structures that differ, and with copies of their own and each other's."""
    rng = np.random.default_rng(11)
    new = np.stack([random_structure(rng, "rectangles") for _ in range(10)])
    nothing = np.zeros((3, 4, 61), np.float32)
    folder = tmp_path_factory.mktemp("optimised")
    return [
        write_folder(folder / "a", new[:2], nothing[:2], np.concatenate([images(new[:2]), new[2:5], new[2:4]])),
        write_folder(folder / "b", np.concatenate([images(new[:1]), new[5:6]]), nothing[:2], new[5:8]),
        write_folder(folder / "c", np.concatenate([new[8:], images(new[3:4])]), nothing),
    ]


def from_designs(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "metaspec_simulation.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_designs_become_a_data_set_and_more_are_appended(optimised: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "set"
    settings = ["--out", out, "--cells", CELLS]
    result = from_designs("--from-designs", *optimised[:2], *settings)
    assert result.returncode == 0, result.stderr
    assert f"14 structures found, 8 of them taken, 8 new to {out}." in result.stdout
    first = data.load(out)
    assert len({orbit_key(one) for one in first.structures}) == len(first) == 8
    np.testing.assert_array_equal(first.structures[:2], np.load(optimised[0] / "designs.npy"))
    assert set(first.family) == {"design"}
    solved = Solver(Process(), CELLS).simulate(first.structures[7])
    np.testing.assert_allclose(first.spectra[7], solved.spectra, atol=data.STEP)

    marked = zarr.open_group(out, mode="r+")["energy_error"]
    marked[3] = 42.0  # is lost if this sample is simulated again
    command = [*settings, "--from-designs", optimised[2], optimised[0]]
    result = from_designs(*command)
    assert result.returncode == 0, result.stderr
    assert f"12 structures found, 7 of them taken, 2 new to {out}." in result.stdout
    both = data.load(out)
    assert len({orbit_key(one) for one in both.structures}) == len(both) == 10
    np.testing.assert_array_equal(both.structures[8:], np.load(optimised[2] / "designs.npy")[:2])
    for field in ("packed", "spectra", "harmonics", "split"):
        np.testing.assert_array_equal(getattr(both, field)[:8], getattr(first, field))
    assert both.energy_error[3] == 42.0
    assert [split_of(one) for one in both.structures] == list(both.split)
    np.testing.assert_array_equal(split_of(images(both.structures)[9]), both.split[9])
    with xarray.open_zarr(out, consolidated=False, chunks=None) as opened:
        assert opened.sizes["sample"] == 10

    assert "already has 10 samples: nothing to do" in from_designs(*command).stdout
    result = from_designs("from-designs", optimised[0], "--out", out, "--cells", CELLS + 2)
    assert result.returncode == 2
    assert "was made with solver" in result.stderr


def test_appending_goes_on_where_it_was_killed(
    optimised: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "set"
    wanted = candidates([read_designs(folder) for folder in optimised])
    assert len(wanted) == 10
    solver = Solver(Process(), CELLS)

    def simulate_missing(recipe: data.Recipe) -> None:
        group = data.read_dataset(out, mode="r+")
        for start, stop in data.missing_shards(group):
            data.write_samples(group, recipe, solver, start, stop, report=lambda: None)

    recipe, new = data.add_structures(out, Process(), CELLS, wanted[:3])
    assert new == 3
    simulate_missing(recipe)
    before = data.load(out)

    class Killed(Exception):
        pass

    resize = zarr.Array.resize
    for fatal in ("structure", "harmonics", "complete"):  # killed just before this array grows

        def killed(array: zarr.Array, shape: tuple[int, ...], fatal: str = fatal) -> None:
            if array.basename == fatal:
                raise Killed
            resize(array, shape)

        monkeypatch.setattr(zarr.Array, "resize", killed)
        with pytest.raises(Killed):
            data.add_structures(out, Process(), CELLS, wanted[::-1])
        monkeypatch.undo()
        assert not data.missing_shards(data.read_dataset(out)), "nothing that is not whole is simulated"
        np.testing.assert_array_equal(data.load(out).spectra, before.spectra)

    assert data.add_structures(out, Process(), CELLS, wanted[:5])[1] == 2  # then killed before anything is simulated
    recipe, new = data.add_structures(out, Process(), CELLS, wanted[:5])
    assert new == 0
    simulate_missing(recipe)
    after = data.load(out)
    np.testing.assert_array_equal(after.structures, wanted[:5])
    np.testing.assert_array_equal(after.spectra[:3], before.spectra)
    np.testing.assert_allclose(after.spectra[4], solver.simulate(wanted[4]).spectra, atol=data.STEP)


def test_a_limit_takes_designs_first_and_the_same_ones_again(optimised: list[Path]) -> None:
    found = [read_designs(folder) for folder in optimised]
    everything = candidates(found)
    assert len(everything) == 10
    np.testing.assert_array_equal(candidates(found, limit=3), everything[:3])
    ends = [orbit_key(one) for folder in found for one in folder.structures]
    kept = candidates(found, limit=8)
    assert len(kept) == 8
    assert [orbit_key(one) in ends for one in kept] == 6 * [True] + 2 * [False]
    np.testing.assert_array_equal(kept[[0, -1]], everything[[0, -1]])  # evenly from the first to the last on the way
    np.testing.assert_array_equal(candidates(found, limit=8), kept)
    np.testing.assert_array_equal(candidates(found, limit=99), everything)


def test_designs_that_do_not_belong_in_a_data_set(finished: Path, optimised: list[Path], tmp_path: Path) -> None:
    wanted = np.load(optimised[0] / "designs.npy")
    with pytest.raises(ValueError, match="not given but random or imported"):
        data.add_structures(finished, Process(), CELLS, wanted)
    data.add_structures(tmp_path / "set", Process(), CELLS, wanted)
    with pytest.raises(ValueError, match="was made with process"):
        data.add_structures(tmp_path / "set", Process(thickness_um=0.5), CELLS, wanted)
    thick = Process(thickness_um=0.8).model_dump(mode="json")
    other = write_folder(tmp_path / "other", wanted, np.zeros((2, 4, 61), np.float32), process=thick)
    result = from_designs("--from-designs", optimised[0], other, "--out", tmp_path / "new")
    assert result.returncode == 2
    assert "designs for different processes" in result.stderr
    assert not (tmp_path / "new").exists()


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
