"""`metaspec-simulate verify FILE`: structures of any files, simulated like designs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gdstk
import numpy as np
import pytest

from metaspec_contract.figures_of_merit import colour_efficiency
from metaspec_contract.process import Process
from metaspec_contract.run_folder import VerifyReport
from metaspec_simulation import Solver
from metaspec_testing.run_folders import write_run_folder

CELLS = 24
PROCESS = Process(thickness_um=0.1, wavelength_step_nm=20)
"""A process that is quickly simulated."""

Command = Callable[..., Any]
Refusal = Callable[..., str]


@pytest.fixture
def process(tmp_path: Path) -> Path:
    (tmp_path / "process.json").write_text(json.dumps({"thickness_um": 0.1, "wavelength_step_nm": 20}))
    return tmp_path / "process.json"


def write_layout(path: Path, right: float = 1.0) -> None:
    library = gdstk.Library(unit=1e-6, precision=1e-13)
    library.new_cell("POST").add(gdstk.rectangle((0.5, 0.25), (right, 1.5), layer=1))
    library.write_gds(path)


def test_a_layout_and_arrays_are_simulated(process: Path, tmp_path: Path, command: Command) -> None:
    write_layout(tmp_path / "post.gds", right=1.0 + 0.5 / 64)  # its right edge in the middle of a pixel
    fine = np.zeros((2, 256, 256), np.uint8)
    fine[0, 64:224, 64:128] = 1
    np.save(tmp_path / "two.npy", fine)
    out = tmp_path / "results"
    arguments = ["verify", tmp_path / "post.gds", tmp_path / "two.npy", "--out", out, "--cells", CELLS]
    arguments += ["--process", process]
    result = command(*arguments)
    assert result.code == 0, result.err
    assert f"{tmp_path / 'post.gds'}: cell POST, " in result.out
    assert f"{tmp_path / 'two.npy'}: 256 x 256 pixels averaged to 128 x 128, 7.8 % solid." in result.out

    binary = fine[:, ::2, ::2]
    grey = binary[0].astype(np.float32)
    grey[32:112, 64] = 0.5
    solver = Solver(PROCESS, CELLS)
    wanted = [solver.simulate(one).spectra for one in (grey, *binary)]
    np.testing.assert_allclose(np.load(out / "spectra.npy"), wanted, atol=1e-6)
    np.testing.assert_allclose(np.load(out / "designs.npy"), [grey, *binary], atol=1e-6)
    report = VerifyReport.model_validate_json((out / "verify.json").read_text())
    assert (report.model, report.objective, report.process) == (None, None, PROCESS)
    assert [one.source for one in report.designs] == ["post.gds", "two.npy[0]", "two.npy[1]"]
    for design, spectra in zip(report.designs, wanted, strict=True):
        smallest = colour_efficiency(spectra, PROCESS.wavelengths_nm).min()
        assert design.simulated[str(CELLS)].min_efficiency == pytest.approx(smallest, abs=1e-6)
        assert (design.predicted, design.mae) == (None, None)
        (row, *_) = (line for line in result.out.splitlines() if line.startswith(f"{design.source} "))
        assert f"{smallest:.3f}" in row.split()
    thresholded = report.designs[0].thresholded
    assert thresholded is not None
    there = report.designs[1].simulated[str(CELLS)].min_efficiency
    assert thresholded[str(CELLS)].min_efficiency == pytest.approx(there, abs=1e-6)
    assert "post.gds, at 1/2" in result.out
    assert report.designs[1].thresholded is None

    kept = {path.name: path.stat().st_mtime_ns for path in (out / "simulated").iterdir()}
    assert len(kept) == 3  # the thresholded layout is the first of the arrays
    again = command(*arguments, "--best", 2)
    assert again.code == 0, again.err
    assert {path.name: path.stat().st_mtime_ns for path in (out / "simulated").iterdir()} == kept
    assert len(VerifyReport.model_validate_json((out / "verify.json").read_text()).designs) == 2


def test_the_results_of_one_file_lie_beside_it(process: Path, tmp_path: Path, command: Command) -> None:
    write_layout(tmp_path / "post.gds")
    result = command("verify", tmp_path / "post.gds", "--cells", CELLS, "--process", process, "--cell", "POST")
    assert result.code == 0, result.err
    assert sorted(path.name for path in (tmp_path / "post.gds-verified").iterdir()) == [
        "designs.npy",
        "simulated",
        "spectra.npy",
        "verify.json",
    ]


def test_results_of_other_files_are_not_replaced(
    process: Path, tmp_path: Path, command: Command, refusal: Refusal
) -> None:
    """Files of one name in two folders are told apart, and a folder belongs to its files."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_layout(tmp_path / name / "post.gds")
    files = [tmp_path / name / "post.gds" for name in ("a", "b")]
    options = ["--out", tmp_path / "out", "--cells", CELLS, "--process", process]
    result = command("verify", *files, *options)
    assert result.code == 0, result.err
    for name in ("a/post.gds", "b/post.gds"):
        assert any(line.startswith(f"{name} ") for line in result.out.splitlines())
    before = (tmp_path / "out" / "verify.json").read_bytes()
    write_layout(tmp_path / "c.gds")
    assert "holds the results of a/post.gds, b/post.gds: give another one with --out" in refusal(
        "verify", tmp_path / "c.gds", *options
    )
    assert "post.gds is given twice" in refusal("verify", files[0], files[0], *options)
    assert (tmp_path / "out" / "verify.json").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.txt"], "a.txt: the name must end in .npy"),
        (["post.gds", "--cell", "B"], "post.gds has no cell 'B', only POST"),
        (["post.gds", "--layer", "9/0"], "cell POST has nothing in layer 9/0; layers with polygons: 1/0"),
        (["post.gds", "--layer", "x"], "--layer must be two integers, LAYER/DATATYPE, got 'x'"),
        (["wrong.npy"], "wrong.npy: structures must lie between 0 (void) and 1 (solid), got 7"),
        (["post.gds", "wrong.npy"], "--out is needed for 2 files"),
        (["run", "post.gds"], "give one run folder, or files, got both"),
        (["run", "--cell", "A"], "a run folder is verified alone, without --out, --cell and --layer"),
        (["post.gds", "--out", "run"], "run is a run folder: give another one with --out"),
        (["post.gds", "--out", "a.txt"], "a.txt is not a folder of verified structures: give another one with --out"),
        (["nowhere.gds"], "nowhere.gds"),
    ],
)
def test_what_cannot_be_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusal: Refusal, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_layout(tmp_path / "post.gds")
    np.save("wrong.npy", np.full((16, 16), 7))
    Path("a.txt").touch()
    spectra = np.zeros((1, 4, 16), np.float32)
    write_run_folder(tmp_path / "run", np.zeros((1, 128, 128), np.uint8), spectra, process=PROCESS)
    before = set(tmp_path.rglob("*"))
    assert message in refusal("verify", *arguments)
    assert set(tmp_path.rglob("*")) == before
