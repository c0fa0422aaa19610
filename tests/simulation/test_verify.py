"""Verification: it reports what was simulated, resumes where it stopped, and refuses files that do not fit."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from numpy.typing import NDArray
from pydantic import JsonValue

from metaspec_contract.detectors import CHANNELS
from metaspec_contract.figures_of_merit import colour_efficiency
from metaspec_contract.process import Process
from metaspec_contract.run_folder import VerifyReport
from metaspec_contract.structures import Structure
from metaspec_simulation import Solver
from metaspec_simulation.data.designs import read_designs
from metaspec_simulation.data.families import random_structure
from metaspec_simulation.figures import draw_verification
from metaspec_simulation.simulated import Task, simulations, tasks
from metaspec_simulation.verify import as_report, compare, summary, table
from metaspec_testing.run_folders import PROCESS as SPARSE
from metaspec_testing.run_folders import write_run_folder

CELLS = 24
TOO_HIGH = 0.02  # error of the predictions below

Floats = NDArray[np.float32]
Command = Callable[..., Any]
Refusal = Callable[..., str]


@pytest.fixture(scope="module")
def structures() -> Structure:
    rng = np.random.default_rng(8)
    return np.stack([random_structure(rng, "random_field_diagonal") for _ in range(4)])


@pytest.fixture(scope="module")
def simulated(structures: Structure) -> Floats:
    solver = Solver(SPARSE, CELLS)
    return np.stack([solver.simulate(structure).spectra for structure in structures])


@pytest.fixture(scope="module")
def finished(
    structures: Structure,
    simulated: Floats,
    tmp_path_factory: pytest.TempPathFactory,
    start_command: Callable[..., subprocess.Popen[str]],
) -> Path:
    """A folder that was interrupted by Ctrl-C, then verified. Channels come in another order, and there is a fifth."""
    channels: list[JsonValue] = ["B", "spread", "R", "G1", "G2"]
    predicted = np.full((4, 5, 61), 9.0, np.float32)
    for channel, name in enumerate(CHANNELS):
        predicted[:, channels.index(name)] = simulated[:, channel] + TOO_HIGH
    folder = write_run_folder(tmp_path_factory.mktemp("verify") / "run", structures, predicted, channels=channels)
    arguments = ["verify", str(folder), "--cells", str(CELLS)]
    process = start_command(*arguments)
    deadline = time.monotonic() + 120
    while not list(folder.glob("simulated/[!.]*.npz")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "of 4 simulations done. Repeat the command to resume." in output
    assert not (folder / "verify.json").exists()
    command = [sys.executable, "-m", "metaspec_simulation", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    (folder / "stdout").write_text(result.stdout)
    return folder


def test_the_report(finished: Path, simulated: Floats) -> None:
    text = (finished / "verify.json").read_text()
    VerifyReport.model_validate_json(text)
    body = json.loads(text)
    assert (body["model"], body["model_version"], body["objective"]) == ("diffractionnet", "7", "bayer")
    assert body["solver"]["cells"] == [CELLS]
    assert "grid_difference_rms" not in body["designs"][0]
    assert Process.model_validate(body["process"]) == SPARSE
    colours = colour_efficiency(simulated, SPARSE.wavelengths_nm)
    for k, design in enumerate(body["designs"]):
        assert design["rank"] == k
        there = design["simulated"][str(CELLS)]
        assert list(there["colour_efficiency"].values()) == pytest.approx(colours[k], abs=1e-6)  # R, G, B
        assert there["min_efficiency"] == pytest.approx(colours[k].min(), abs=1e-6)
        more = {"R": TOO_HIGH, "G": 2 * TOO_HIGH, "B": TOO_HIGH}  # green is the sum of two detectors
        for colour, offset in more.items():
            predicted = design["predicted"]["colour_efficiency"][colour]
            assert predicted == pytest.approx(there["colour_efficiency"][colour] + offset, abs=1e-6)
        assert design["mae"] == pytest.approx(TOO_HIGH, abs=1e-6)
        assert design["rms"] == pytest.approx(TOO_HIGH, abs=1e-6)
        with np.load(finished / there["file"], allow_pickle=False) as kept:
            np.testing.assert_allclose(kept["spectra"], simulated[k], atol=1e-6)
            energy = kept["reflection"] + kept["spectra"].sum(axis=0) - 1
            assert there["energy_error"] == pytest.approx(np.sqrt(np.mean(energy**2)), rel=1e-5)
    best = colours.min(axis=1).argmax()
    assert body["summary"]["best"]["rank"] == best
    assert body["summary"]["best"]["simulated"] == pytest.approx(colours[best].min(), abs=1e-6)
    assert body["summary"]["mae"] == pytest.approx(TOO_HIGH, abs=1e-6)
    assert 0.9 * TOO_HIGH < body["summary"]["min_efficiency_error"]["mean"] < 2.1 * TOO_HIGH
    text = (finished / "stdout").read_text()
    assert f"Best when simulated: rank {best}, min efficiency {colours[best].min():.4f}" in text
    rows = [line.split() for line in text.splitlines() if line[:4].strip().isdigit()]
    assert [row[0] for row in rows] == ["0", "1", "2", "3"]
    assert [row[2] for row in rows] == [f"{smallest:.4f}" for smallest in colours.min(axis=1)]
    assert (finished / "verify.png").read_bytes().startswith(b"\x89PNG")
    assert len(list((finished / "simulated").iterdir())) == 4
    assert "grey" not in text
    assert "grey" not in body["summary"]
    assert not {"thresholded", "non_discreteness"} & body["designs"][0].keys()


def test_only_what_is_missing_is_simulated(finished: Path, structures: Structure, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    done = [row[0] for row in tasks(read_designs(folder), [CELLS])]
    assert all(task.done is not None for task in done)
    done[0].file.unlink()
    done[1].file.write_bytes(done[1].file.read_bytes()[:1000])  # as if the disk had been full
    changed = structures.copy()
    changed[2] = 1 - changed[2]
    np.save(folder / "designs.npy", changed)
    todo = [row[0] for row in tasks(read_designs(folder), [CELLS])]
    assert [task.done is None for task in todo] == [True, True, True, False]
    with pytest.raises(ValueError, match=r"3 simulations of .* are missing"):
        compare(read_designs(folder), [[task] for task in todo])
    assert all(
        a[0].file != b[0].file for a, b in zip(*(tasks(read_designs(folder), [c]) for c in (24, 26)), strict=True)
    )


def test_several_grids(structures: Structure, simulated: Floats, tmp_path: Path) -> None:
    folder = write_run_folder(tmp_path / "run", structures, simulated, merged_greens=True)
    designs = read_designs(folder)
    todo = tasks(designs, [CELLS + 4, CELLS], best=1)
    assert [[task.cells for task in row] for row in todo] == [[CELLS, CELLS + 4]]
    for task in todo[0]:
        task.simulate(Solver(task.process, task.cells))
    assert len(list((folder / "simulated").iterdir())) == 2, "no temporary file is left"
    result = compare(designs, todo)
    coarse, fine = result.simulated.spectra[:, 0]
    apart = np.sqrt(np.mean((coarse - fine) ** 2))
    assert 0.001 < apart < 0.1
    np.testing.assert_allclose(result.error[0], coarse - fine, atol=1e-6)
    (design,) = as_report(result).designs
    assert design.grid_difference_rms == pytest.approx(apart, rel=1e-5)
    assert design.rms == pytest.approx(apart, rel=1e-3)  # the coarser grid's spectra were the prediction
    assert list(design.simulated) == ["24", "28"]
    assert "min (24) grids rms" in table(result)
    assert "knows only the mean of G1 and G2" in table(result)
    parity = draw_verification(result).axes[-1]
    assert len(parity.containers) == 4, "min, R, G, B"
    assert all(getattr(container, "has_xerr", False) for container in parity.containers)


def texts(figure: Figure) -> str:
    return "\n".join(one.get_text() for one in figure.findobj(Text) if isinstance(one, Text))


def test_grey_designs(structures: Structure, simulated: Floats, tmp_path: Path) -> None:
    """They are simulated as they are and thresholded, on every grid; nothing more is simulated for binary ones."""
    density = 0.25 + 0.5 * structures[1]
    folder = write_run_folder(tmp_path / "run", np.stack([structures[0], density]), simulated[:2])
    designs = read_designs(folder)
    todo = tasks(designs, [CELLS, CELLS + 4])
    everything = simulations(todo)
    assert sum((task.structure == structures[0]).all() for task in everything) == 2
    assert sum((task.structure == structures[1]).all() for task in everything) == 2
    assert sum((task.structure == density).all() for task in everything) == 2
    assert len(everything) == 6
    solvers = {cells: Solver(SPARSE, cells, longest=20) for cells in (CELLS, CELLS + 4)}
    for task in everything:
        task.simulate(solvers[task.cells])
    result = compare(designs, todo)
    of_design, of_threshold = result.simulated.spectra, result.thresholded.spectra
    np.testing.assert_array_equal(of_threshold[:, 0], of_design[:, 0])
    np.testing.assert_allclose(of_design[1, 1], solvers[CELLS + 4].simulate(density).spectra, atol=1e-6)
    for g, solver in enumerate(solvers.values()):
        np.testing.assert_allclose(of_threshold[g, 1], solver.simulate(structures[1]).spectra, atol=1e-6)
    np.testing.assert_allclose(result.non_discreteness, [0, 0.75])

    binary, grey = as_report(result).designs
    assert (binary.non_discreteness, binary.thresholded) == (None, None)
    assert grey.non_discreteness == pytest.approx(0.75)
    assert grey.thresholded is not None
    assert list(grey.thresholded) == list(grey.simulated) == ["24", "28"]
    before, after = grey.simulated["28"], grey.thresholded["28"]
    smallest = colour_efficiency(of_threshold[1, 1], SPARSE.wavelengths_nm).min()
    assert after.min_efficiency == pytest.approx(smallest, abs=1e-6)
    assert after.file is not None
    with np.load(folder / after.file) as kept:
        np.testing.assert_array_equal(kept["spectra"], of_threshold[1, 1])
    assert after.min_efficiency is not None
    assert before.min_efficiency is not None
    change = after.min_efficiency - before.min_efficiency
    found = summary(result)["grey"]
    assert (found["designs"], found["non_discreteness"]) == (1, pytest.approx(0.75))
    assert found["min_efficiency_change"] == {"mean": pytest.approx(change), "lowest": pytest.approx(change)}

    lines = table(result).splitlines()
    assert lines[3].endswith(" grids rms      grey  min, 1/2  1/2 (24)")
    coarser = grey.thresholded["24"].min_efficiency
    assert lines[5].split()[-3:] == ["0.7500", f"{after.min_efficiency:.4f}", f"{coarser:.4f}"]
    assert lines[4].split()[-3] == "0.0000"
    assert lines[-1].startswith(
        "Grey: 1 of 2 designs, non-discreteness 0.7500 on average. "
        f"Thresholding at 1/2 changes their min efficiency by {change:+.4f} on average"
    )
    drawn = texts(draw_verification(result))
    assert f"{before.min_efficiency:.3f} simulated, {after.min_efficiency:.3f} thresholded" in drawn
    assert "non-discreteness 0.750" in drawn
    assert drawn.count("thresholded") == 2, "the grey design, and the legend"


def test_what_is_grey_by_rounding_is_binary(structures: Structure, simulated: Floats, tmp_path: Path) -> None:
    """A steep projection does not reach 0 and 1. The same structure has one name, thresholded or not."""
    steep = (structures * (1 - 2e-7) + 1e-7).astype(np.float32)
    folder = write_run_folder(tmp_path / "run", steep, simulated)
    designs = read_designs(folder)
    assert designs.structures.dtype == np.uint8
    np.testing.assert_array_equal(designs.structures, structures)
    first, *_ = files = [row[0].file for row in tasks(designs, [CELLS])]
    np.save(folder / "designs.npy", np.stack([0.5 + 0.4 * (2.0 * structures[0] - 1), *structures[1:]]))
    grey, *others = (row[0] for row in tasks(read_designs(folder), [CELLS]))
    assert grey.file != first
    assert grey.thresholded.file == first
    assert [task.file for task in others] == files[1:]


def test_the_name_of_a_simulation_states_when_the_solver_stops(
    structures: Structure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = Task(SPARSE, CELLS, structures[0], tmp_path)
    names = {task.file}
    for name in ("DECAY", "LONGEST"):
        with monkeypatch.context() as patched:
            patched.setattr(f"metaspec_simulation.simulated.{name}", 2e-5)
            names.add(task.file)
    assert len(names) == 3


@pytest.mark.parametrize(
    ("model", "model_version", "origin"),
    [
        ("solver", "64 cells, metaspec-lab 0.2.0", "optimised at 64 cells"),
        ("solver", "64 cells, decay 0.001, metaspec-lab 0.2.0", "optimised at 64 cells, decay 0.001"),
        ("rcwa", "1.2", "optimised on rcwa 1.2"),
    ],
)
def test_designs_that_were_optimised_on_the_solver(
    finished: Path, tmp_path: Path, model: str, model_version: str, origin: str
) -> None:
    """Nothing was predicted, and nothing says so."""
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    body = json.loads((folder / "report.json").read_text())
    changes = {"simulated": True, "model": model, "model_version": model_version, "url": None}
    (folder / "report.json").write_text(json.dumps(body | changes))
    designs = read_designs(folder)
    result = compare(designs, tasks(designs, [CELLS]))
    text = table(result)
    best = summary(result)["best"]
    assert f"min efficiency {best['simulated']:.4f} ({origin}: {best['predicted']:.4f})." in text
    assert f"Min efficiency: {origin} minus simulated is +" in text
    assert text.splitlines()[3].startswith("rank   optim.  simul.   optim.")
    drawn = texts(draw_verification(result))
    assert f"min efficiency {best['predicted']:.3f} {origin}" in drawn
    assert "predict" not in (text + drawn).lower()
    assert "predicted" in as_report(result).model_dump()["designs"][0], "names of fields stay"


def test_designs_with_distances_of_their_own(structures: Structure, tmp_path: Path, command: Command) -> None:
    distances, solver = [1.25, 2.0], Solver(SPARSE, CELLS)
    expected = np.stack([solver.simulate(one, at).spectra for one, at in zip(structures, distances, strict=False)])
    folder = write_run_folder(tmp_path / "run", structures[:2], expected)
    body = json.loads((folder / "report.json").read_text())
    for design, distance in zip(body["designs"], distances, strict=True):
        design["conditions"] = {"distance_um": distance}
    (folder / "report.json").write_text(json.dumps(body))
    result = command("verify", folder, "--cells", CELLS)
    assert result.code == 0, result.err
    head, *rows = (line for line in result.out.splitlines() if line[:4].strip() in ("rank", "0", "1"))
    assert " distance_um       MAE" in head
    assert ["1.2500" in rows[0], "2.0000" in rows[1]] == [True, True]
    report = VerifyReport.model_validate_json((folder / "verify.json").read_text())
    assert report.process == SPARSE
    for design, distance in zip(report.designs, distances, strict=True):
        assert design.conditions == {"distance_um": distance}
        assert (design.mae or 0) < 1e-6
    drawn = texts(draw_verification(compare(read_designs(folder), tasks(read_designs(folder), [CELLS]))))
    assert "design 000, distance_um 1.25" in drawn


def test_another_process(structures: Structure, tmp_path: Path, command: Command, refusal: Refusal) -> None:
    """The process and the wavelengths are those of the report; a file takes their place, and completes what is missing."""
    narrow = Process(period_um=1.6, wavelength_min_nm=450, wavelength_max_nm=750, wavelength_step_nm=10)
    spectra = Solver(narrow, CELLS).simulate(structures[0]).spectra
    folder = write_run_folder(tmp_path / "run", structures[:1], spectra[None], process=narrow)
    arguments = ["verify", folder, "--cells", CELLS]
    result = command(*arguments)
    assert result.code == 0, result.err
    assert "report.json, against the default: period_um 1.6 against 2.0, wavelength_min_nm 450.0" in result.out
    report = VerifyReport.model_validate_json((folder / "verify.json").read_text())
    assert report.process == narrow
    assert (report.designs[0].mae or 0) < 1e-6

    body = json.loads((folder / "report.json").read_text())
    del body["process"]["distance_um"]
    (folder / "report.json").write_text(json.dumps(body))
    line = refusal(*arguments)
    assert "report.json: process must state distance_um. Give --process FILE to say what to simulate" in line
    file = tmp_path / "process.json"
    file.write_text(json.dumps({"period_um": 1.6}))
    result = command(*arguments, "--process", file)
    assert result.code == 0, result.err
    assert "process.json, against the default: period_um 1.6 against 2.0." in result.out
    assert VerifyReport.model_validate_json((folder / "verify.json").read_text()).process == narrow


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("schema_version", 2, "report.json: schema_version: Input should be 1"),
        ("designs", [], "report.json: designs: List should have at least 1 item"),
        ("designs", [{"rank": 0}], "report.json: designs.0.start: Field required"),
        ("channels", ["R", "G", "B"], "channels must name each of G1, G2 once"),
        ("channels", ["R", "R", "G1", "G2", "B"], "channels must name each of R once"),
        (
            "wavelengths_nm",
            list(range(400, 701)),
            r"expected floats of shape \(4, 4, 301\), got float32 of shape \(4, 4, 61\)",
        ),
        ("wavelengths_nm", [*range(400, 700, 5), 699], "wavelengths_nm must ascend in equal steps"),
        ("wavelengths_nm", list(range(700, 399, -5)), "wavelengths_nm must ascend, got 695 after 700"),
        ("period_um", 1.6, "period_um is 1.6, but that of the process is 2.0. Give --process FILE"),
        ("process", {}, "process must state period_um, .*wavelength_step_nm. Give --process FILE"),
        (
            "process",
            SPARSE.model_dump(mode="json") | {"tilt": 3},
            "process.tilt: unknown field. Give --process FILE",
        ),
    ],
)
def test_reports_that_do_not_fit(
    structures: Structure, simulated: Floats, tmp_path: Path, field: str, value: JsonValue, message: str
) -> None:
    folder = write_run_folder(tmp_path / "run", structures, simulated)
    report = json.loads((folder / "report.json").read_text())
    (folder / "report.json").write_text(json.dumps(report | {field: value}))
    with pytest.raises(ValueError, match=message):
        tasks(read_designs(folder), [CELLS])
    assert not (folder / "simulated").exists()


@pytest.mark.parametrize(
    ("file", "value", "message"),
    [
        ("designs.npy", np.zeros((4, 64, 64), np.uint8), r"designs.npy: structures must be .*got \(4, 64, 64\)"),
        (
            "designs.npy",
            np.full((4, 128, 128), 1.5),
            "designs.npy: structures must lie between 0 .* got 1.5 at structure 0",
        ),
        ("designs.npy", np.full((4, 128, 128), np.nan), "designs.npy: structures must lie between 0 .* got nan"),
        ("trajectory.npy", np.full((4, 128, 128), 0.5), "trajectory.npy: structures must be binary, .* got 0.5"),
        ("designs.npy", np.full((4, 128, 128), 255, np.uint8), "got 255 .*divide 8-bit images by 255"),
        ("designs.npy", np.zeros((0, 128, 128), np.uint8), "designs.npy has 0 rows but report.json lists 4"),
        ("designs.npy", np.array([{"a": 1}], object), "is not a .npy file of plain numbers"),
        ("spectra.npy", np.full((4, 4, 61), np.nan), "values that are not finite"),
        ("spectra.npy", np.zeros((4, 4, 61), np.int16), "got int16"),
        ("trajectory.npy", np.zeros((4, 128), np.uint8), r"trajectory.npy: structures must be .*got \(4, 128\)"),
    ],
)
def test_arrays_that_do_not_fit(
    structures: Structure, simulated: Floats, tmp_path: Path, file: str, value: NDArray[Any], message: str
) -> None:
    folder = write_run_folder(tmp_path / "run", structures, simulated)
    np.save(folder / file, value)
    with pytest.raises(ValueError, match=message):
        read_designs(folder)


def test_files_that_are_no_reports(structures: Structure, simulated: Floats, tmp_path: Path, refusal: Refusal) -> None:
    folder = write_run_folder(tmp_path / "run", structures, simulated)
    (folder / "spectra.npy").unlink()
    with pytest.raises(ValueError, match=r"spectra\.npy is missing"):
        read_designs(folder)
    np.savez(folder / "archive", a=structures)
    (folder / "archive.npz").rename(folder / "designs.npy")
    with pytest.raises(ValueError, match="an archive of several arrays"):
        read_designs(folder)
    for content in (b"{", b"[]", b"\xff\xfe"):
        (folder / "report.json").write_bytes(content)
        with pytest.raises(ValueError, match=r"report\.json"):
            read_designs(folder)
    (folder / "report.json").unlink()
    assert "report.json is missing: give a folder that `metaspec optimise` has finished" in refusal("verify", folder)


def test_thinned_wavelengths(structures: Structure, simulated: Floats, tmp_path: Path) -> None:
    """Only the wavelengths of the predicted spectra are simulated."""
    thinned: list[JsonValue] = list(range(400, 701, 10))
    folder = write_run_folder(tmp_path / "run", structures, simulated[..., ::2], wavelengths_nm=thinned)
    assert tasks(read_designs(folder), [CELLS])[0][0].process == Process(wavelength_step_nm=10)
