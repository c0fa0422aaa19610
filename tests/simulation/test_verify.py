"""The truth check: what it says is what was simulated, it goes on where it stopped, and it refuses what does not fit."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from metaspec import Spectra
from metaspec_contract.detectors import CHANNELS
from metaspec_contract.figures_of_merit import colour_efficiency, crosstalk
from metaspec_contract.process import Process
from metaspec_simulation import Solver
from metaspec_simulation import verify as truth
from metaspec_simulation.data.families import random_structure
from metaspec_simulation.designs import read_designs
from metaspec_testing.optimised import write_folder

CELLS = 24
SPARSE = Process(wavelength_step_nm=5)
TOO_HIGH = 0.02  # by which the predictions below miss


def command(folder: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "metaspec_simulation.cli", "verify", str(folder), *more]


def verify(folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(folder, *more), capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def structures() -> np.ndarray:
    rng = np.random.default_rng(8)
    return np.stack([random_structure(rng, "random_field_diagonal") for _ in range(4)])


@pytest.fixture(scope="module")
def simulated(structures: np.ndarray) -> np.ndarray:
    solver = Solver(SPARSE, CELLS)
    return np.stack([solver.simulate(structure).spectra for structure in structures])


@pytest.fixture(scope="module")
def finished(structures: np.ndarray, simulated: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder, interrupted by Ctrl-C and verified at the second go. Channels come in another order, and there is a fifth."""
    channels = ["B", "spread", "R", "G1", "G2"]
    predicted = np.full((4, 5, 61), 9.0, np.float32)
    for channel, name in enumerate(CHANNELS):
        predicted[:, channels.index(name)] = simulated[:, channel] + TOO_HIGH
    folder = write_folder(tmp_path_factory.mktemp("verify") / "run", structures, predicted, channels=channels)
    process = subprocess.Popen(
        command(folder, "--cells", str(CELLS)),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        # A shell's background job ignores Ctrl-C, and would hand that down to what it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 300
    while not list(folder.glob("simulated/*.npz")):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    assert "of 4 simulations done. Repeat the command to go on." in output
    assert not (folder / "verify.json").exists()
    result = verify(folder, "--cells", str(CELLS))
    assert result.returncode == 0, result.stderr
    (folder / "stdout").write_text(result.stdout)
    return folder


def test_what_it_says(finished: Path, simulated: np.ndarray) -> None:
    body = json.loads((finished / "verify.json").read_text())
    assert (body["model"], body["model_version"], body["objective"]) == ("diffractionnet", "7", "bayer")
    assert body["solver"]["cells"] == [CELLS]
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


def test_only_what_is_missing_is_simulated(finished: Path, structures: np.ndarray, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(finished, tmp_path / "run"))
    tasks = [row[0] for row in truth.tasks(read_designs(folder), [CELLS])]
    assert all(task.done is not None for task in tasks)
    tasks[0].file.unlink()
    tasks[1].file.write_bytes(tasks[1].file.read_bytes()[:1000])  # as if the disk had been full
    changed = structures.copy()
    changed[2] = 1 - changed[2]
    np.save(folder / "designs.npy", changed)
    todo = [row[0] for row in truth.tasks(read_designs(folder), [CELLS])]
    assert [task.done is None for task in todo] == [True, True, True, False]
    with pytest.raises(ValueError, match=r"3 simulations of .* are missing"):
        truth.compare(read_designs(folder), [[task] for task in todo])
    assert all(
        a[0].file != b[0].file for a, b in zip(*(truth.tasks(read_designs(folder), [c]) for c in (24, 26)), strict=True)
    )


def test_several_grids(structures: np.ndarray, simulated: np.ndarray, tmp_path: Path) -> None:
    from metaspec_simulation.figures import draw_verification

    designs = read_designs(write_folder(tmp_path / "run", structures, simulated))
    todo = truth.tasks(designs, [CELLS + 4, CELLS], best=1)
    assert [[task.cells for task in row] for row in todo] == [[CELLS, CELLS + 4]]
    for task in todo[0]:
        task.simulate(Solver(task.process, task.cells))
    result = truth.compare(designs, todo)
    apart = np.sqrt(np.mean((result.simulated[0, 0] - result.simulated[1, 0]) ** 2))
    assert 0.001 < apart < 0.1
    np.testing.assert_allclose(result.error[0], result.simulated[0, 0] - result.simulated[1, 0], atol=1e-6)
    (design,) = truth.as_json(result)["designs"]
    assert design["grid_difference_rms"] == pytest.approx(apart, rel=1e-5)
    assert design["rms"] == pytest.approx(apart, rel=1e-3)  # predicted was what the coarser grid says
    assert list(design["simulated"]) == ["24", "28"]
    assert "min (24) grids rms" in truth.table(result)
    parity = draw_verification(result).axes[-1]
    assert len(parity.containers) == 4, "min, R, G, B"
    assert all(container.has_xerr for container in parity.containers)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("schema_version", 2, "report.json: schema_version: Input should be 1"),
        ("designs", [{"rank": 0}], "designs.npy has 4 rows but report.json lists 1"),
        ("designs", [{"start": 0}] * 4, "report.json: designs.0.rank: Field required"),
        ("channels", ["R", "G", "B"], "channels must name each of R, G1, G2, B once"),
        ("channels", ["R", "R", "G1", "G2", "B"], "channels must name each of R, G1, G2, B once"),
        (
            "wavelengths_nm",
            list(range(400, 701)),
            r"expected floats of shape \(4, 4, 301\), got float32 of shape \(4, 4, 61\)",
        ),
        ("wavelengths_nm", [*range(400, 700, 5), 720], "wavelengths_nm must ascend in equal steps"),
        ("wavelengths_nm", list(range(700, 399, -5)), "wavelengths_nm must ascend in equal steps"),
        ("period_um", 1.6, "period_um is 1.6, but that of the process is 2.0"),
        ("process", {"tilt": 3}, "process: tilt: Extra inputs are not permitted. Give --process FILE"),
    ],
)
def test_reports_that_do_not_fit(
    structures: np.ndarray, simulated: np.ndarray, tmp_path: Path, field: str, value: object, message: str
) -> None:
    folder = write_folder(tmp_path / "run", structures, simulated, **{field: value})
    with pytest.raises(ValueError, match=message):
        truth.tasks(read_designs(folder), [CELLS])
    assert not (folder / "simulated").exists()


@pytest.mark.parametrize(
    ("file", "value", "message"),
    [
        ("designs.npy", np.zeros((4, 64, 64), np.uint8), r"expected uint8 of shape \(N, 128, 128\)"),
        ("designs.npy", np.zeros((4, 128, 128)), "got float64"),
        ("designs.npy", np.full((4, 128, 128), 255, np.uint8), "must be binary, .* got a value of 255"),
        ("designs.npy", np.zeros((0, 128, 128), np.uint8), "holds no structures"),
        ("designs.npy", np.array([{"a": 1}], object), "is not a .npy file of plain numbers"),
        ("spectra.npy", np.full((4, 4, 61), np.nan), "values that are not finite"),
        ("spectra.npy", np.zeros((4, 4, 61), np.int16), "got int16"),
        ("trajectory.npy", np.zeros((4, 128), np.uint8), r"got uint8 of shape \(4, 128\)"),
    ],
)
def test_arrays_that_do_not_fit(
    structures: np.ndarray, simulated: np.ndarray, tmp_path: Path, file: str, value: np.ndarray, message: str
) -> None:
    folder = write_folder(tmp_path / "run", structures, simulated)
    np.save(folder / file, value)
    with pytest.raises(ValueError, match=message):
        read_designs(folder)


def test_files_that_are_no_reports(structures: np.ndarray, simulated: np.ndarray, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "run", structures, simulated)
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
    result = verify(folder)
    assert result.returncode == 2
    assert "report.json is missing: give a folder that `metaspec optimise` has finished" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_process_that_the_server_does_not_describe(
    structures: np.ndarray, simulated: np.ndarray, tmp_path: Path
) -> None:
    """A bare Triton tells nothing of the process: it is the default, or what the user says it is."""
    folder = write_folder(tmp_path / "run", structures, simulated, process={})
    assert read_designs(folder).process == Process()
    thick = Process(thickness_um=0.8)
    assert truth.tasks(read_designs(folder, thick), [CELLS])[0][0].process == Process(
        thickness_um=0.8, wavelength_step_nm=5
    )


def test_figures_of_merit() -> None:
    """As the client has them, and as they are defined: bands with their lower edge, without their upper one; G1 + G2."""
    wavelengths = Process().wavelengths_nm
    spectra = np.random.default_rng(0).uniform(0, 0.5, (5, 4, 301)).astype(np.float32)
    theirs = Spectra(spectra, wavelengths)
    np.testing.assert_allclose(colour_efficiency(spectra, wavelengths), theirs.colour_efficiency(), rtol=1e-5)
    np.testing.assert_allclose(crosstalk(spectra, wavelengths), theirs.crosstalk(), rtol=1e-5)
    ideal = np.zeros((1, 4, 301))
    for channel, (low, high, value) in enumerate([(600, 700, 1), (500, 600, 0.25), (500, 600, 0.75), (400, 500, 1)]):
        ideal[0, channel, low - 400 : high - 400] = value
    ideal[0, :, 300] = 7  # 700 nm belongs to no band
    np.testing.assert_array_equal(colour_efficiency(ideal, wavelengths), [[1, 1, 1]])
    np.testing.assert_array_equal(crosstalk(ideal, wavelengths), [[0, 0, 0]])
    with pytest.raises(ValueError, match="no wavelength lies in the band of red"):
        colour_efficiency(spectra[..., :150], wavelengths[:150])
