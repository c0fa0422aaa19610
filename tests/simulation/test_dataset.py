"""Data sets: complete, resumable after a killed run, and refused when damaged or mixed."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray
import zarr
from numpy.typing import NDArray

from metaspec_contract.process import Process
from metaspec_contract.structures import symmetries
from metaspec_simulation import Solver
from metaspec_simulation import dataset as data
from metaspec_simulation.data.designs import candidates, read_designs
from metaspec_simulation.data.families import FAMILIES, orbit_key, random_structure, split_of
from metaspec_simulation.data.labels import labels, pack_orders, unpack_orders
from metaspec_simulation.data.store import new_folder
from metaspec_simulation.physics.farfield import quadrant_weights, shifted_basis
from metaspec_testing.run_folders import PROCESS as SPARSE
from metaspec_testing.run_folders import write_run_folder

CELLS, COUNT, SHARD = 24, 12, 4
LONGEST = 20.0  # light that is left does not matter here
RECIPE = data.Recipe(Process(), seed=5, cells=CELLS, longest=LONGEST)
DATASETS = Path(__file__).parents[2] / "datasets"

Command = Callable[..., Any]
Start = Callable[..., subprocess.Popen[str]]
Refusal = Callable[..., str]


def settings(out: Path, count: int = COUNT) -> list[str]:
    return ["--count", str(count), "--out", str(out), "--seed", "5", "--cells", str(CELLS), "--longest", str(LONGEST)]


def wait_for_a_shard(out: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not (out / "complete" / "c" / "0").exists():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)


@pytest.fixture(scope="module")
def solver() -> Solver:
    return Solver(Process(), CELLS, longest=LONGEST)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("data") / "set"
    data.open_dataset(out, RECIPE, COUNT, shard=SHARD)
    arguments = [sys.executable, "-m", "metaspec_simulation", *settings(out), "--workers", "2"]
    result = subprocess.run(arguments, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    assert f"has {COUNT} samples. {COUNT} of its structures are distinct up to symmetry." in result.stdout
    assert f"{COUNT}/{COUNT} [" in result.stderr
    assert "warning" not in result.stderr.lower()
    return out


def test_samples_are_those_of_the_solver(finished: Path, solver: Solver) -> None:
    samples = data.load(finished)
    assert len(samples) == COUNT
    assert RECIPE.family(3) == "grey"
    for sample in (0, 3):
        np.testing.assert_array_equal(samples.structures[sample], RECIPE.structure(sample))
        np.testing.assert_array_equal(samples.levels(sample), np.rint(255 * RECIPE.structure(sample)))
        solved = solver.simulate(RECIPE.structure(sample))
        np.testing.assert_allclose(samples.spectra[sample], solved.spectra, atol=data.STEP)
        basis = shifted_basis(np.array([9]), np.array([-30]))[0]
        np.testing.assert_allclose(
            basis @ (samples.harmonics[sample] * data.HARMONIC_STEP), basis @ solved.harmonics[:, ::2], atol=6e-3
        )
        assert samples.family[sample] == RECIPE.family(sample)
        assert samples.energy_error[sample] == pytest.approx(np.sqrt(np.mean(solved.energy_error**2)), rel=1e-5)
    np.testing.assert_array_equal(samples.flag, samples.energy_error > 0.005)
    assert 0 < samples.flag.sum() < COUNT


@pytest.mark.slow
def test_a_killed_run_resumes_and_ends_up_the_same(
    finished: Path, tmp_path: Path, command: Command, refusal: Refusal, start_command: Start
) -> None:
    """While it runs, nobody else writes this data set; once it has been killed, the next may."""
    out = tmp_path / "set"
    data.open_dataset(out, RECIPE, COUNT, shard=SHARD)
    process = start_command(*settings(out), start_new_session=True)
    wait_for_a_shard(out, process)
    message = f"{out} is being written by process {process.pid} on {socket.gethostname()}: wait until it has ended, or stop it"
    assert refusal(*settings(out)) == f"metaspec-simulate: {message}"
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert 0 < len(data.missing_shards(data.read_dataset(out))) < COUNT // SHARD
    assert command(*settings(out)).code == 0
    assert_same(out, finished)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def assert_same(out: Path, finished: Path) -> None:
    for array in ("structure", "spectra", "harmonics", "family", "split", "energy_error", "flag", "complete"):
        # One step of the integers: memory alignment decides the last bit of a float.
        tolerance = {"spectra": 1, "harmonics": 1, "energy_error": 1e-6}.get(array, 0)
        ours, theirs = (data.read_dataset(folder)[array][:].astype(float) for folder in (out, finished))
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance)


@pytest.mark.slow
def test_files_that_a_power_cut_damaged_are_simulated_again(
    finished: Path, tmp_path: Path, command: Command, refusal: Refusal
) -> None:
    out = tmp_path / "set"
    shutil.copytree(finished, out)
    empty, halved = out / "complete" / "c" / "0", out / "spectra" / "c" / "1" / "0" / "0"
    halved.write_bytes(halved.read_bytes()[: halved.stat().st_size // 2])
    with pytest.raises(ValueError, match=f"{halved} is damaged or missing: repeat the metaspec-simulate command"):
        data.load(out)
    empty.write_bytes(empty.read_bytes()[:-1])
    with pytest.raises(ValueError, match=f"{empty} is damaged or missing"):
        data.load(out)
    empty.write_bytes(b"")
    assert f"{halved} and 1 other file of set are damaged or missing" in refusal("check", out)
    result = command(*settings(out))
    assert result.code == 0, result.err
    for file in (empty, halved):
        assert f"{file} was damaged: its samples are simulated again.\n" in result.out
    assert_same(out, finished)
    assert "nothing to do" in command(*settings(out)).out


def test_what_is_damaged_and_cannot_be_made_again(finished: Path, tmp_path: Path, refusal: Refusal) -> None:
    """Labels of another recipe, and structures that were given, unless they are given again."""
    out = tmp_path / "set"
    shutil.copytree(finished, out)
    (out / "flag" / "c" / "2").unlink()
    line = refusal(*settings(out), "--longest", 30)
    assert f"{out / 'flag' / 'c' / '2'} is damaged, and {out} was made with solver = " in line
    given = data.load(finished).structures[:2]
    recipe = data.given_recipe(Process(), CELLS, given)
    group = data.open_dataset(tmp_path / "given", recipe, 2, given)
    file = tmp_path / "given" / "structure" / "c" / "0" / "0" / "0"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match="structures in it are lost: restore it"):
        data.add_structures(tmp_path / "given", Process(), CELLS, np.zeros((1, 128, 128), np.uint8))
    with pytest.raises(ValueError, match="structures in it are lost: restore it"):
        data.mend(tmp_path / "given", group, recipe)
    (damage,) = data.mend(tmp_path / "given", group, recipe, given)
    assert damage.file == file
    np.testing.assert_array_equal(group["structure"][:], np.rint(255 * given))


def test_checksums(finished: Path, tmp_path: Path, command: Command, refusal: Refusal) -> None:
    line = command("check", finished).out
    digest = hashlib.sha256(np.rint(255 * data.load(finished).structures).astype(np.uint8).tobytes()).hexdigest()
    assert line == f"{digest}  set\n"
    file = tmp_path / "sums"
    file.write_text(line)
    flagged = int(data.load(finished).flag.sum())
    assert command("check", finished, "--checksums", file).out == (
        f"{finished} is intact: {COUNT} of {COUNT} samples. {COUNT} of its structures are distinct up to symmetry. "
        f"{flagged} samples have an energy error above 0.005 and are flagged: training leaves them out.\n"
    )
    file.write_text(line.replace(line[:8], "00000000"))
    assert "holds other structures than" in refusal("check", finished, "--checksums", file)
    file.write_text(line.replace("set", "other"))
    assert "has no line for set" in refusal("check", finished, "--checksums", file)


def test_distinct_structures_of_several_sets_are_counted_once(finished: Path) -> None:
    samples = data.load(finished)
    assert data.count_distinct([samples]) == COUNT
    few = samples.take(np.array([1, 3, 3]))
    assert data.count_distinct([few]) == 2
    assert data.count_distinct([few, samples]) == COUNT


def test_copies_by_symmetry_are_no_distinct_structures(tmp_path: Path) -> None:
    """Of a set that is not finished, what is finished counts."""
    wanted = np.stack([random_structure(np.random.default_rng(seed), "rectangles") for seed in range(3)])
    given = np.concatenate([wanted[:2], images(wanted[:1]), wanted[2:], wanted[2:]])
    group = data.open_dataset(tmp_path / "set", data.given_recipe(Process(), CELLS, given), 5, given, shard=2)
    group["complete"][:3] = 1
    assert data.summary(group) == "2 of its structures are distinct up to symmetry."


def test_orders_under_the_layer(tmp_path: Path, solver: Solver) -> None:
    """They give the spectra of a device with the detectors elsewhere."""
    near = Process(distance_um=1.0)
    recipe = dataclasses.replace(RECIPE, orders=True)
    group = data.open_dataset(tmp_path / "set", recipe, 1)
    data.write_samples(group, recipe, solver, 0, 1, lambda: None)
    stored, kept = group["orders"][0], slice(None, None, 20)
    np.testing.assert_array_equal(group["order_wavelength"][:], near.wavelengths_nm[kept])
    orders = np.zeros((2, 2, 301, 15, 15), np.complex64)
    orders[:, :, kept] = unpack_orders(stored, Process())
    np.testing.assert_array_equal(pack_orders(orders[:, :, kept], Process()), stored)
    np.testing.assert_array_equal(data.load(tmp_path / "set", orders=True).orders[0], stored)
    assert data.load(tmp_path / "set").orders.shape == (0, 2, 2, 2, 0, 0), "only on request"
    found = np.einsum("cyx,wyx->cw", quadrant_weights(7), solver.flux(orders, near.distance_um)[kept])
    truth = Solver(near, CELLS, longest=LONGEST).simulate(RECIPE.structure(0)).spectra[:, kept]
    # The coarsest grid cuts orders off at other wavelengths, where they count most.
    assert np.sqrt(np.mean((found - truth) ** 2)) < 8e-3
    with pytest.raises(ValueError, match=r"was made with orders = .*, not None"):
        data.open_dataset(tmp_path / "set", RECIPE, 2)
    group = data.open_dataset(tmp_path / "set", recipe, 2)
    group["orders"][1], group["complete"][:] = 1 - stored, (0, 1)
    np.testing.assert_array_equal(data.load(tmp_path / "set", orders=True).orders, [1 - stored])


@pytest.mark.slow
def test_an_interrupted_run_says_how_to_resume(tmp_path: Path, start_command: Start) -> None:
    out = tmp_path / "set"
    data.open_dataset(out, RECIPE, 100, shard=SHARD)
    process = start_command(*settings(out, 100))
    wait_for_a_shard(out, process)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "of 100 samples written. Repeat the command to resume." in output


@pytest.mark.slow
def test_more_samples_and_nothing_to_do(finished: Path, tmp_path: Path, command: Command) -> None:
    out = tmp_path / "set"
    shutil.copytree(finished, out)
    assert command(*settings(out, COUNT + 2)).code == 0
    before, after = data.load(finished), data.load(out)
    assert len(after) == COUNT + 2
    np.testing.assert_array_equal(after.spectra[:COUNT], before.spectra)
    assert "nothing to do" in command(*settings(out, COUNT + 2)).out


@pytest.mark.filterwarnings("error")
def test_xarray_reads_it(finished: Path) -> None:
    """Without a warning, and as many samples as there are after more have been added."""
    with xarray.open_dataset(finished, engine="zarr", chunks=None) as opened:
        np.testing.assert_allclose(opened.structure.values, data.load(finished).structures, atol=1e-7)
    with xarray.open_zarr(finished, chunks=None) as opened:
        assert dict(opened.spectra.sizes) == {"sample": COUNT, "channel": 4, "wavelength": 301}
        np.testing.assert_allclose(opened.spectra.values, data.load(finished).spectra, atol=1e-6)
        assert opened.wavelength.attrs["units"] == "nm"
        assert Process.model_validate(opened.attrs["process"]) == Process()
        assert opened.attrs["made_with"].startswith("metaspec-lab ")


def test_refusals(finished: Path, tmp_path: Path, refusal: Refusal) -> None:
    assert "was made with seed = 5, not 6" in refusal(*settings(finished), "--seed", 6)
    assert "was made with solver" in refusal(*settings(finished), "--cells", 26)
    other = tmp_path / "other"
    other.mkdir()
    (other / "file").write_text("x")
    assert "is not a MetaSpec data set" in refusal(*settings(other))
    assert "give --count" in refusal("--out", other)
    with pytest.raises(ValueError, match="there is no such folder"):
        data.load(tmp_path / "missing")
    zarr.create_group(tmp_path / "foreign")
    with pytest.raises(ValueError, match="schema version 2 or 3, it says None"):
        data.load(tmp_path / "foreign")
    data.open_dataset(tmp_path / "fresh", RECIPE, count=3)
    with pytest.raises(ValueError, match="no finished samples"):
        data.load(tmp_path / "fresh")


def test_a_process_that_is_not_complete(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "set"
    shutil.copytree(finished, out)
    group = data.read_dataset(out, mode="r+")
    group.attrs["process"] = {k: v for k, v in group.attrs["process"].items() if k != "period_um"}
    with pytest.raises(ValueError, match="set: process must state period_um"):
        data.load(out)


def test_of_two_that_create_one_folder_the_first_stays(tmp_path: Path) -> None:
    def create() -> None:
        with new_folder(tmp_path / "set") as mine:
            mine.mkdir()
            with new_folder(tmp_path / "set") as theirs:
                theirs.mkdir()
                (theirs / "theirs").touch()

    with pytest.raises(OSError, match="not empty"):
        create()
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["set", "set/theirs"]


def test_provenance(finished: Path) -> None:
    random = data.load(finished)
    thick = Process(thickness_um=0.8)

    def changed(process: Process | None = None, **attributes: object) -> data.Samples:
        few = random.take(np.arange(4))
        fields = {"process": process or few.process, "attributes": few.attributes | attributes}
        return data.Samples(**{name: getattr(few, name) for name in few.__dataclass_fields__} | fields)

    old = changed(made_with="metaspec 0.1.0")
    found = data.provenance({"random": random, "old": old}, preset="field")
    assert (found.process, found.preset, found.merged_greens) == (Process(), "field", False)
    assert [source.name for source in found.data] == ["random", "old"]
    assert found.data[0].structures == len(random.of("train")) < COUNT
    assert found.data[0].solver == {"name": "metaspec-fdtd", "cells": CELLS, "decay": RECIPE.decay, "longest": LONGEST}
    assert found.data[0].made_with.startswith("metaspec-lab ")
    assert found.data[1].made_with == "metaspec 0.1.0"
    assert data.provenance({"merged": changed(merged_greens=True)}).merged_greens
    with pytest.raises(
        ValueError, match=r"random and other are of different processes: thickness_um 0\.6 against 0\.8"
    ):
        data.provenance({"random": random, "other": changed(process=thick)})
    with pytest.raises(ValueError, match="merged knows only the mean of G1 and G2, random knows each of them"):
        data.provenance({"random": random, "merged": changed(merged_greens=True)})
    with pytest.raises(ValueError, match="channels must be R, G1, G2, B, got B, G1, G2, R"):
        data.provenance({"random": random, "other": changed(channels=["B", "G1", "G2", "R"])})
    with pytest.raises(ValueError, match="at least one data set"):
        data.provenance({})


@pytest.mark.slow
def test_given_structures(tmp_path: Path, command: Command, refusal: Refusal, solver: Solver) -> None:
    """Binary ones, and densities, which are rounded to 1/255."""
    rng = np.random.default_rng(3)
    given = np.stack([random_structure(rng, family) for family in ("rectangles", "grey")])
    file = tmp_path / "given.npy"
    np.save(file, given + 1e-3 * (given < 0.9))
    arguments = ["run", "--structures", file, "--out", tmp_path / "set", "--cells", CELLS, "--longest", LONGEST]
    assert command(*arguments).code == 0
    samples = data.load(tmp_path / "set")
    np.testing.assert_array_equal(samples.structures, given)
    assert set(samples.family) == {"design"}
    np.testing.assert_allclose(samples.spectra[1], solver.simulate(given[1]).spectra, atol=data.STEP)
    assert list(samples.grey) == [-1, 0]
    assert "nothing to do" in command(*arguments).out
    assert "exclude each other" in refusal(*arguments, "--count", 3)
    np.save(file, 1 - given)
    assert "was made with given" in refusal(*arguments)
    for wrong, message in (
        (given[:, :64], "structures must be (128, 128), (N, 128, 128) or (N, 1, 128, 128), got (2, 64, 128)"),
        (given * 2, "structures must lie between 0 (void) and 1 (solid), got 2"),
        (given[:0], "structures must be at least one, got none"),
    ):
        np.save(file, wrong)
        assert message in refusal(*arguments)


def images(structures: NDArray[Any]) -> NDArray[Any]:
    """Another copy by symmetry of each structure."""
    moved = np.roll(structures, (3, -17), axis=(1, 2))
    return np.stack([list(symmetries())[5 + k % 3].apply(one) for k, one in enumerate(moved)])


@pytest.fixture(scope="module")
def optimised(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three optimisations with 2 + 3, 1 + 2 and 2 + 0 distinct structures, and with copies of their own and each other's."""
    rng = np.random.default_rng(11)
    new = np.stack([random_structure(rng, "rectangles") for _ in range(10)])
    nothing = np.zeros((3, 4, 61), np.float32)
    folder = tmp_path_factory.mktemp("optimised")
    return [
        write_run_folder(folder / "a", new[:2], nothing[:2], np.concatenate([images(new[:2]), new[2:5], new[2:4]])),
        write_run_folder(folder / "b", np.concatenate([images(new[:1]), new[5:6]]), nothing[:2], new[5:8]),
        write_run_folder(folder / "c", np.concatenate([new[8:], images(new[3:4])]), nothing),
    ]


@pytest.mark.slow
def test_designs_become_a_data_set_and_more_are_appended(
    optimised: list[Path], tmp_path: Path, command: Command, refusal: Refusal
) -> None:
    out = tmp_path / "set"
    arguments = ["--out", out, "--cells", CELLS]
    result = command("--from-designs", *optimised[:2], *arguments)
    assert result.code == 0, result.err
    assert "report.json, against the default: wavelength_step_nm 5.0 against 1.0." in result.out
    assert f"14 structures found, 8 of them taken, 8 new to {out}." in result.out
    first = data.load(out)
    assert len({orbit_key(one) for one in first.structures}) == len(first) == 8
    np.testing.assert_array_equal(first.structures[:2], np.load(optimised[0] / "designs.npy"))
    assert set(first.family) == {"design"}
    solved = Solver(SPARSE, CELLS).simulate(first.structures[7])
    np.testing.assert_allclose(first.spectra[7], solved.spectra, atol=data.STEP)

    marked = data.read_dataset(out, mode="r+")["energy_error"]
    marked[3] = 42.0  # is lost if this sample is simulated again
    more = [*arguments, "--from-designs", optimised[2], optimised[0]]
    result = command(*more)
    assert result.code == 0, result.err
    assert f"12 structures found, 7 of them taken, 2 new to {out}." in result.out
    both = data.load(out)
    assert len({orbit_key(one) for one in both.structures}) == len(both) == 10
    np.testing.assert_array_equal(both.structures[8:], np.load(optimised[2] / "designs.npy")[:2])
    for field in ("packed", "spectra", "harmonics", "split"):
        np.testing.assert_array_equal(getattr(both, field)[:8], getattr(first, field))
    assert both.energy_error[3] == 42.0
    assert [split_of(one) for one in both.structures] == list(both.split)
    np.testing.assert_array_equal(split_of(images(both.structures)[9]), both.split[9])
    with xarray.open_zarr(out, chunks=None) as opened:
        assert opened.sizes["sample"] == 10

    assert "already has 10 samples: nothing to do" in command(*more).out
    assert "was made with solver" in refusal("from-designs", optimised[0], "--out", out, "--cells", CELLS + 2)


def test_grey_designs_become_grey_samples(tmp_path: Path) -> None:
    """In steps of 1/255; copies by symmetry, within these steps, are one sample."""
    binary = random_structure(np.random.default_rng(2), "rectangles")
    grey = 0.2 + 0.6 * random_structure(np.random.default_rng(3), "rectangles")
    designs = np.stack([grey, binary, images(grey[None])[0] + 1e-4])
    nothing = np.zeros((3, 4, 61), np.float32)
    folder = write_run_folder(tmp_path / "run", designs, nothing, images(binary[None]))
    wanted = candidates([read_designs(folder)])
    assert len(wanted) == 2
    assert data.add_structures(tmp_path / "set", SPARSE, CELLS, wanted[1:])[1] == 1
    assert data.add_structures(tmp_path / "set", SPARSE, CELLS, wanted)[1] == 1
    assert data.add_structures(tmp_path / "set", SPARSE, CELLS, wanted)[1] == 0
    stored = data.read_dataset(tmp_path / "set")["structure"][:]
    np.testing.assert_array_equal(stored, np.rint(255 * np.stack([binary, grey])))


@pytest.mark.slow
def test_appending_resumes_where_it_was_killed(
    optimised: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, coarsest: Solver
) -> None:
    out = tmp_path / "set"
    wanted = candidates([read_designs(folder) for folder in optimised])
    assert len(wanted) == 10

    def simulate_missing(recipe: data.Recipe) -> None:
        group = data.read_dataset(out, mode="r+")
        for start, stop in data.missing_shards(group):
            data.write_samples(group, recipe, coarsest, start, stop, report=lambda: None)

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
        assert not data.missing_shards(data.read_dataset(out)), "no half-added structure is simulated"
        np.testing.assert_array_equal(data.load(out).spectra, before.spectra)

    assert data.add_structures(out, Process(), CELLS, wanted[:5])[1] == 2  # then killed before anything is simulated
    recipe, new = data.add_structures(out, Process(), CELLS, wanted[:5])
    assert new == 0
    simulate_missing(recipe)
    after = data.load(out)
    np.testing.assert_array_equal(after.structures, wanted[:5])
    np.testing.assert_array_equal(after.spectra[:3], before.spectra)
    np.testing.assert_allclose(after.spectra[4], coarsest.simulate(wanted[4]).spectra, atol=data.STEP)


def test_a_limit_takes_designs_first_and_the_same_ones_again(optimised: list[Path]) -> None:
    found = [read_designs(folder) for folder in optimised]
    everything = candidates(found)
    assert len(everything) == 10
    np.testing.assert_array_equal(candidates(found, limit=3), everything[:3])
    ends = [orbit_key(one) for folder in found for one in folder.structures]
    kept = candidates(found, limit=8)
    assert len(kept) == 8
    assert [orbit_key(one) in ends for one in kept] == 6 * [True] + 2 * [False]
    np.testing.assert_array_equal(kept[[0, -1]], everything[[0, -1]])  # evenly spaced over the trajectories
    np.testing.assert_array_equal(candidates(found, limit=8), kept)
    np.testing.assert_array_equal(candidates(found, limit=99), everything)


def test_designs_that_do_not_belong_in_a_data_set(
    finished: Path, optimised: list[Path], tmp_path: Path, refusal: Refusal
) -> None:
    wanted = np.load(optimised[0] / "designs.npy")
    with pytest.raises(ValueError, match="not given but random or imported"):
        data.add_structures(finished, Process(), CELLS, wanted)
    data.add_structures(tmp_path / "set", Process(), CELLS, wanted)
    thick = SPARSE.model_copy(update={"thickness_um": 0.8})
    with pytest.raises(ValueError, match="was made with another process: "):
        data.add_structures(tmp_path / "set", thick, CELLS, wanted)
    other = write_run_folder(tmp_path / "other", wanted, np.zeros((2, 4, 61), np.float32), process=thick)
    line = refusal("--from-designs", optimised[0], other, "--out", tmp_path / "new")
    assert (
        f"{other} hold designs for different processes: thickness_um 0.6 against 0.8. Make a data set of each" in line
    )
    assert not (tmp_path / "new").exists()


def test_a_complete_data_set_of_an_earlier_solver_is_left_alone(
    command: Callable[..., Any], refusal: Callable[..., str], tmp_path: Path
) -> None:
    """Nothing to do for the same samples; more of them would be labelled by another solver."""
    recipe = data.Recipe(Process(), seed=5, cells=CELLS, decay=0.1)
    group = data.open_dataset(tmp_path / "set", recipe, 2)
    data.write_samples(group, recipe, Solver(Process(), CELLS, decay=0.1), 0, 2, lambda: None)
    arguments = ("--out", tmp_path / "set", "--seed", 5, "--cells", CELLS)
    assert "already has 2 samples: nothing to do" in command(*arguments, "--count", 2).out
    assert "was made with solver = " in refusal(*arguments, "--count", 3)


def test_nothing_is_appended_to_the_designs_of_an_earlier_solver(tmp_path: Path) -> None:
    wanted = np.stack([random_structure(np.random.default_rng(seed), "rectangles") for seed in range(3)])
    recipe = dataclasses.replace(data.given_recipe(Process(), CELLS, wanted[:2]), decay=0.1)
    group = data.open_dataset(tmp_path / "set", recipe, 2, wanted[:2])
    data.write_samples(group, recipe, Solver(Process(), CELLS, decay=0.1), 0, 2, lambda: None)
    assert data.add_structures(tmp_path / "set", Process(), CELLS, wanted[:2])[1] == 0
    with pytest.raises(ValueError, match="was made with solver = "):
        data.add_structures(tmp_path / "set", Process(), CELLS, wanted)
    assert len(data.load(tmp_path / "set")) == 2


@pytest.mark.slow
@pytest.mark.parametrize(("name", "cells", "count"), [("bayer-600nm", 80, 3000), ("bayer-600nm-coarse", 48, 20000)])
def test_the_reference_data_sets(name: str, cells: int, count: int) -> None:
    """Complete, distinct, small, the same structures on both grids; today's solver, which follows the light longer, is near."""
    path = DATASETS / name
    samples = data.load(path)
    assert len(samples) >= count
    assert (samples.split == "test").sum() >= count // 12
    assert np.isfinite(samples.spectra).all()
    assert samples.energy_error.mean() < 0.008
    times = Counter(row.tobytes() for row in samples.packed)
    assert len(times) >= 0.999 * len(samples)  # the empty cell comes up now and then
    repeated = {row for row, number in times.items() if number > 1}
    assert repeated <= {bytes(2048), b"\xff" * 2048}, "only an empty or full structure is drawn twice"
    families = samples.attributes.get("families", FAMILIES)  # those of schema version 2
    recipe = data.Recipe(samples.process, seed=samples.attributes["seed"], cells=cells, families=tuple(families))
    np.testing.assert_array_equal(samples.take(np.array([320])).structures[0], recipe.structure(320))
    solved = Solver(samples.process, cells).simulate(recipe.structure(320))
    assert np.sqrt(np.mean((samples.spectra[320] - solved.spectra) ** 2)) < 5e-3
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    assert size / len(samples) < 5.2e3, "23,000 structures take less than 120 MB"
    with pytest.raises(ValueError, match="split must be one of train, validation, test, got 'all'"):
        samples.of("all")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "sample", "grey", "flagged"), [("bayer-600nm-80", 3, 120, 7), ("designs-600nm-80", 0, 162, 0)]
)
def test_the_reference_data_sets_of_schema_3(name: str, sample: int, grey: int, flagged: int) -> None:
    """Complete, small, with the field under the layer; simulated on a GPU, they hold what the solver says."""
    samples = data.load(DATASETS / name, orders=True)
    assert samples.attributes["schema_version"] == 3
    assert samples.attributes["solver"] == data.Recipe(Process(), seed=1, cells=80).attributes()["solver"]
    assert data.count_distinct([samples]) == len(samples) == len(samples.orders)
    assert ((samples.grey >= 0) & (samples.flag == 0)).sum() == grey
    assert samples.flag.sum() == flagged
    assert samples.energy_error[samples.flag == 0].max() < 5e-3
    structure = samples.structures[sample]
    if name.startswith("bayer"):
        recipe = data.Recipe(Process(), seed=samples.attributes["seed"], cells=80, orders=True)
        np.testing.assert_allclose(structure, recipe.structure(sample), atol=1e-6)
    simulation, orders = Solver(Process(), 80).simulate_with_orders(structure)
    expected = labels(Process(), simulation, orders)
    np.testing.assert_allclose(samples.spectra[sample], expected["spectra"] * data.STEP, atol=1.01 * data.STEP)
    assert np.abs(samples.harmonics[sample] - expected["harmonics"]).max() <= 1
    assert np.abs(samples.orders[samples.ordered[sample]] - expected["orders"]).max() <= 1
    size = sum(file.stat().st_size for file in (DATASETS / name).rglob("*") if file.is_file())
    assert size / len(samples) < 25e3
