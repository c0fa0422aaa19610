"""What lies in a folder of designs: layouts that are exact, pictures, and files that programs read."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import gdstk
import numpy as np
import pytest
from matplotlib.figure import Figure

from metaspec import InvalidStructure, Spectra, Surrogate
from metaspec.designs import begin, is_finished, mended, predicted, write_designs
from metaspec.figures import draw_history, draw_spectra, draw_structure
from metaspec.gds import solid_polygons, write_gds
from metaspec.layouts import largest_rules, read_gds
from metaspec.objectives import by_name as objective
from metaspec.optimise import History, Problem, Result, run
from metaspec.optimise import by_name as optimiser
from metaspec.topology import Parameterisation, feature_size, without_small_features
from metaspec_contract.files import write_json
from metaspec_contract.links import structure_link
from metaspec_contract.process import Process
from metaspec_contract.report_page import refresh_page
from metaspec_contract.run_folder import Merit, Unpolished, VerifiedDesign, VerifyReport, read_report
from metaspec_testing import chromium
from metaspec_testing.small_models import Array


def smooth_structure(seed: int) -> Array:
    noise = np.fft.rfft2(np.random.default_rng(seed).standard_normal((128, 128)))
    frequency = np.hypot(np.fft.fftfreq(128)[:, None], np.fft.rfftfreq(128))
    return (np.fft.irfft2(noise * np.exp(-((frequency * 30) ** 2))) > 0).astype(np.uint8)


def rasterise(polygons: list[gdstk.Polygon], period: float = 2.0, pixels: int = 128) -> Array:
    """The pixels whose centres lie in polygons; row 0 is at the largest y."""
    centres = (np.arange(pixels) + 0.5) * period / pixels
    points = [(x, period - y) for y in centres for x in centres]
    return np.array(gdstk.inside(points, polygons)).reshape(pixels, pixels)


def cell_of(path: Path) -> gdstk.Cell:
    """The only top cell of a layout."""
    (cell,) = gdstk.read_gds(path).top_level()
    assert isinstance(cell, gdstk.Cell)
    return cell


STRUCTURES = {
    "smooth": smooth_structure(0),
    "noise": np.random.default_rng(1).integers(0, 2, (128, 128)),
    "chessboard": np.indices((128, 128)).sum(axis=0) % 2 == 0,  # pixels that touch at their corners only
    "ring": np.pad(np.pad(np.zeros((40, 40)), 30, constant_values=1), 14),
    "solid": np.ones((128, 128)),
}


@pytest.mark.parametrize("name", STRUCTURES)
def test_a_layout_is_the_structure_bit_for_bit(tmp_path: Path, name: str) -> None:
    structure = STRUCTURES[name]
    write_gds(tmp_path / "cell.gds", structure)
    library, cell = gdstk.read_gds(tmp_path / "cell.gds"), cell_of(tmp_path / "cell.gds")
    assert (library.unit, library.precision, cell.name) == (1e-6, 1e-12, "ROUTER")
    polygons = [polygon for polygon in cell.polygons if (polygon.layer, polygon.datatype) == (1, 0)]
    np.testing.assert_array_equal(rasterise(polygons), structure)
    assert sum(polygon.area() for polygon in polygons) == pytest.approx(structure.mean() * 4, rel=1e-12)
    corners = np.concatenate([polygon.points for polygon in polygons]) * 64
    np.testing.assert_array_equal(corners, corners.round())  # every corner is one of a pixel, exactly
    (outline,) = (polygon for polygon in cell.polygons if polygon.layer == 100)
    assert outline.bounding_box() == ((0, 0), (2, 2))
    assert outline.area() == 4


def test_a_layout_looks_like_the_picture(tmp_path: Path) -> None:
    structure = np.zeros((128, 128))
    structure[0:8, 0:32] = 1  # top left, where R is
    write_gds(tmp_path / "cell.gds", structure)
    cell = cell_of(tmp_path / "cell.gds")
    (polygon,) = (polygon for polygon in cell.polygons if polygon.layer == 1)
    assert polygon.bounding_box() == ((0, 1.875), (0.5, 2))
    labels = {label.text: label.origin for label in cell.labels}
    assert labels == {"R": (0.5, 1.5), "G1": (1.5, 1.5), "G2": (0.5, 0.5), "B": (1.5, 0.5)}


def test_neighbouring_pixels_are_one_polygon() -> None:
    structure = np.zeros((128, 128))
    structure[10:20, 30:50] = 1
    structure[20:30, 45:60] = 1
    (polygon,) = solid_polygons(structure)
    assert len(polygon.points) == 8


def test_layers_cell_name_and_array(tmp_path: Path) -> None:
    write_gds(
        tmp_path / "array.gds",
        STRUCTURES["ring"],
        period_um=2.1,
        layer=(7, 3),
        boundary_layer=(8, 1),
        cell="CELL",
        array=(2, 3),
    )
    top = cell_of(tmp_path / "array.gds")
    assert top.name == "CELL_ARRAY"
    (reference,) = top.references
    assert (reference.cell_name, reference.repetition.rows, reference.repetition.columns) == ("CELL", 2, 3)
    solid = [polygon for polygon in top.get_polygons() if (polygon.layer, polygon.datatype) == (7, 3)]
    assert sum(polygon.area() for polygon in solid) == pytest.approx(6 * STRUCTURES["ring"].mean() * 2.1**2)
    np.testing.assert_allclose(np.array(top.bounding_box()), [(0, 0), (6.3, 4.2)])
    tile = [polygon for polygon in solid if polygon.bounding_box()[0][0] < 2.1 and polygon.bounding_box()[0][1] < 2.1]
    np.testing.assert_array_equal(rasterise(tile, 2.1), STRUCTURES["ring"])


def test_equal_structures_make_equal_layouts(tmp_path: Path) -> None:
    for name in ("a.gds", "b.gds"):
        write_gds(tmp_path / name, STRUCTURES["smooth"])
    assert (tmp_path / "a.gds").read_bytes() == (tmp_path / "b.gds").read_bytes()


def test_an_empty_cell_has_an_outline_only(tmp_path: Path) -> None:
    write_gds(tmp_path / "void.gds", np.zeros((128, 128)))
    assert [p.layer for p in cell_of(tmp_path / "void.gds").polygons] == [100]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"structure": np.full((128, 128), 0.5)},
            InvalidStructure,
            "got 0.5 at .*; threshold densities first",
        ),
        (
            {"structure": np.zeros((3, 128, 128))},
            InvalidStructure,
            r"one structure \(y, x\), got shape \(3, 128, 128\)",
        ),
        ({"structure": np.zeros((128, 64))}, InvalidStructure, r"must be square, got shape \(128, 64\)"),
        ({"layer": (1, 40000)}, ValueError, "between 0 and 32767, got 1/40000"),
        ({"boundary_layer": (-1, 0)}, ValueError, "between 0 and 32767, got -1/0"),
        ({"array": (0, 1)}, ValueError, "at least 1 x 1"),
        ({"array": (1, 2000)}, ValueError, "at most 1073 x 1073 unit cells"),
        ({"period_um": 2.0000000001}, ValueError, "period_um"),
        ({"period_um": 0.0}, ValueError, "period_um must be above 0"),
    ],
)
def test_what_cannot_be_a_layout(tmp_path: Path, change: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {"structure": STRUCTURES["solid"]} | change
    with pytest.raises(error, match=message):
        write_gds(tmp_path / "no.gds", **arguments)
    assert not (tmp_path / "no.gds").exists()


def test_the_picture_of_a_structure_shows_row_0_at_the_top_and_the_detectors() -> None:
    structure = STRUCTURES["smooth"]
    cell, pattern = draw_structure(structure, title="a title").axes
    (image,) = cell.get_images()
    np.testing.assert_array_equal(image.get_array(), structure)
    assert tuple(image.get_extent()) == (0, 2, 2, 0)  # left, right, bottom, top: y points down
    assert image.origin == "upper"
    places = {text.get_text(): text.get_position() for text in cell.texts}
    assert {name: (x > 1, y > 1) for name, (x, y) in places.items()} == {
        "R": (False, False),
        "G1": (True, False),
        "G2": (False, True),
        "B": (True, True),
    }
    np.testing.assert_array_equal(pattern.get_images()[0].get_array(), np.tile(structure, (3, 3)))


def test_the_picture_of_spectra_names_efficiency_and_crosstalk() -> None:
    wavelengths = np.linspace(400, 700, 301)
    values = np.full((1, 5, 301), 0.1, np.float32)
    values[0, 3, :100] = 0.6
    spectra = Spectra(values, wavelengths, ("R", "G1", "G2", "B", "spread"))
    figure = draw_spectra(spectra, title="a title")
    (ax,) = figure.axes
    drawn = {line.get_label(): line.get_ydata() for line in ax.get_lines()}
    assert list(drawn) == ["R", "G1", "G2", "B", "spread (uncertainty)", "G1 + G2"]
    np.testing.assert_allclose(np.asarray(drawn["G1 + G2"]), 0.2)
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "blue, 400 to 500 nm:\nefficiency 0.600\ncrosstalk 0.100" in legend
    assert predicted(spectra).spread == pytest.approx(0.1)
    assert "green, 500 to 600 nm:\nefficiency 0.200\ncrosstalk 0.200" in legend
    for count in (0, 4):
        with pytest.raises(ValueError, match=rf"draw_spectra draws one structure, got {count}: .*spectra\[0\]"):
            draw_spectra(replace(spectra, values=np.repeat(values, count, axis=0)))


@pytest.mark.parametrize("betas", [[4.0, 4.0, 8.0], [np.inf] * 3, [2.0]])
def test_the_picture_of_a_history(betas: list[float]) -> None:
    steps = len(betas)
    value = np.random.default_rng(0).random((steps, 4))
    checked = np.array(sorted({0, steps - 1}))
    binary = np.array([[0.3, 0.1, 0.2, 0.2], [0.2, 0.25, 0.1, 0.1]])[: len(checked)]
    (ax,) = draw_history(History(np.array(betas), value, checked, binary), objective="bayer").axes
    drawn = {line.get_label(): line.get_ydata() for line in ax.get_lines()}
    np.testing.assert_array_equal(drawn["best of the starts"], value.max(axis=1))
    np.testing.assert_array_equal(drawn["median of the starts"], np.median(value, axis=1))
    np.testing.assert_array_equal(drawn["best binary structure so far"], [0.3] * len(checked))
    assert ax.get_ylabel() == "objective bayer"


def test_labels_of_a_history_do_not_overlap_and_penalties_do_not_squeeze_it() -> None:
    steps = 60
    betas = np.where(np.arange(steps) < 50, 4.0, 4.0 + np.arange(steps))  # changes in every step
    value = np.linspace(0.3, 0.5, steps)[:, None] + np.zeros((1, 2))
    value[20:40] -= 30
    history = History(betas, value, np.array([0, steps - 1]), np.array([[0.3, 0.2], [0.5, 0.4]]))
    figure = draw_history(history, objective="bayer")
    figure.canvas.draw()
    (ax,) = figure.axes
    labels = [text.get_window_extent() for text in ax.texts if "β" in text.get_text()]
    assert len(labels) > 1
    assert not any(one.overlaps(other) for k, one in enumerate(labels) for other in labels[:k])
    assert ax.get_ylim()[0] > 0
    assert any("under the penalties, are not shown" in text.get_text() for text in ax.texts)
    assert all(tick == round(tick) for tick in ax.get_xticks())


@pytest.fixture(scope="module")
def problem(surrogate: Surrogate) -> Problem:
    return Problem(surrogate, objective("bayer"), Parameterisation(radius_nm=100))


@pytest.fixture(scope="module")
def result(problem: Problem) -> Result:
    return run(problem, optimiser("adam", starts=3, seed=1), steps=4, progress=False)


@pytest.fixture(scope="module")
def folder(result: Result, surrogate: Surrogate, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "designs"
    write_designs(folder, result, surrogate, objective="bayer", settings={"steps": 4}, seed=1)
    return folder


def test_the_report_says_what_was_found_and_how(folder: Path, result: Result, surrogate: Surrogate) -> None:
    report = json.loads((folder / "report.json").read_text())
    assert {
        name: report[name] for name in ("schema_version", "url", "model", "model_version", "objective", "seed")
    } == {
        "schema_version": 1,
        "url": surrogate.url,
        "model": "diffractionnet",
        "model_version": "1",
        "objective": "bayer",
        "seed": 1,
    }
    assert (report["period_um"], report["pixel_nm"]) == (2.0, 15.625)
    assert report["process"] == Process().model_dump(mode="json")
    assert report["wavelengths_nm"] == list(range(400, 701))
    assert report["channels"] == ["R", "G1", "G2", "B"]
    assert report["settings"] == {"steps": 4}
    assert report["structures_evaluated"] == result.structures_evaluated
    assert report["server_calls"] == result.server_calls
    assert report["wall_s"] == result.wall_s
    assert len(report["designs"]) == 3
    assert read_report(folder).designs[0].objective == result.value[0]
    for rank, design in enumerate(report["designs"]):
        assert (design["rank"], design["start"]) == (rank, result.row[rank])
        assert design["objective"] == result.value[rank]
        assert design["predicted"] == predicted(result.spectra[rank]).model_dump(exclude_none=True)
        assert (design["solid_nm"], design["void_nm"]) == feature_size(result.structure[rank])
        assert "eroded" not in design  # the problem is not robust
        for name in design["files"].values():
            assert (folder / name).exists()


def test_the_arrays_are_those_of_the_result(folder: Path, result: Result, surrogate: Surrogate) -> None:
    designs, spectra = np.load(folder / "designs.npy"), np.load(folder / "spectra.npy")
    assert (designs.dtype, designs.shape, spectra.dtype, spectra.shape) == ("u1", (3, 128, 128), "f4", (3, 4, 301))
    np.testing.assert_array_equal(designs, result.structure)
    np.testing.assert_allclose(spectra, surrogate.predict(designs).values, atol=1e-5)
    np.testing.assert_array_equal(np.load(folder / "trajectory.npy"), result.trajectory)
    for rank, structure in enumerate(designs):
        np.testing.assert_array_equal(np.load(folder / f"design_{rank:03d}.npy"), structure)
        cell = cell_of(folder / f"design_{rank:03d}.gds")
        solid = [polygon for polygon in cell.polygons if polygon.layer == 1]
        np.testing.assert_array_equal(rasterise(solid), structure)
        contours = read_gds(folder / f"contours_{rank:03d}.gds")
        assert 0 < ((contours > 0.5) != structure).mean() < 0.02
        assert gdstk.read_gds(folder / f"contours_{rank:03d}.gds").precision == pytest.approx(1e-9)


def test_the_rules_of_the_layouts(folder: Path, result: Result) -> None:
    report = read_report(folder)
    assert report.contour_tolerance_nm == 15.625
    assert report.ranked_by == "objective bayer"
    for design, structure in zip(report.designs, result.structure, strict=True):
        assert design.klayout is not None
        for rules, tolerance in ((design.klayout.pixels, None), (design.klayout.contours, 15.625)):
            assert (rules.width_nm, rules.space_nm) == largest_rules(structure, tolerance_nm=tolerance)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gds_layer": (70000, 0)}, "layer"),
        ({"gds_unit_nm": 0.3}, "unit_nm"),
        ({"contour_tolerance_nm": 1.0}, "tolerance_nm"),
    ],
)
def test_layouts_that_cannot_be_written_leave_no_folder(
    result: Result, surrogate: Surrogate, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        write_designs(tmp_path / "designs", result, surrogate, objective="bayer", **options)
    assert not (tmp_path / "designs").exists()


def test_the_history_as_a_table(folder: Path, result: Result) -> None:
    with (folder / "history.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(int(row["step"]), int(row["start"])) for row in rows] == [(s, n) for s in range(4) for n in range(3)]
    np.testing.assert_array_equal(np.array([float(row["value"]) for row in rows]).reshape(4, 3), result.history.value)
    np.testing.assert_array_equal([float(row["beta"]) for row in rows[::3]], result.history.beta)
    binary = [row["binary_value"] for row in rows]
    assert np.flatnonzero([value != "" for value in binary[::3]]).tolist() == result.history.checked.tolist()
    assert [float(value) for value in binary if value] == result.history.binary_value.ravel().tolist()


def test_the_page_holds_its_pictures(folder: Path) -> None:
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert page.count('src="data:image/png;base64,') == 1 + 2 * 3
    for words in ("width=device-width", "prefers-color-scheme: dark", "<th>objective</th>", "imageruler", "KLayout"):
        assert words in page
    assert "metaspec-simulate verify" in page
    assert 'href="design_002.gds"' in page
    assert "http://" not in page.replace(json.loads((folder / "report.json").read_text())["url"], "")  # loads nothing


def test_the_page_links_its_designs_to_the_studio(folder: Path) -> None:
    page = (folder / "report.html").read_text(encoding="utf-8")
    report = read_report(folder)
    for design in report.designs:
        link = structure_link(str(report.url), np.load(folder / f"design_{design.rank:03d}.npy"), report.model)
        assert f'<a href="{link}">' in page
    assert (link or "").startswith(f"{report.url}/?model=diffractionnet#structure=")


def test_the_page_shows_what_is_added_to_the_folder(folder: Path, tmp_path: Path) -> None:
    """A verification, and polished designs in a folder inside."""
    run = Path(shutil.copytree(folder, tmp_path / "run"))
    report = read_report(run)
    merit = Merit.model_validate(report.designs[1].predicted.model_dump() | {"min_efficiency": 0.4321})
    verified = VerifiedDesign(rank=1, predicted=merit, simulated={"24": merit, "80": merit}, mae=0.01, rms=0.0123)
    best = {"rank": 1, "predicted": 0.5, "simulated": 0.4321}
    write_json(
        run / "verify.json",
        VerifyReport(
            solver={"cells": [24, 80]},
            process=report.process,
            summary={"best": best, "rms": 0.0123},
            designs=[verified],
        ).model_dump(mode="json", exclude_none=True),
    )
    polished = report.designs[0].model_copy(update={"unpolished": Unpolished(rank=2, predicted=merit, simulated=merit)})
    (run / "polished").mkdir()
    inner = report.model_copy(update={"designs": [polished]}).model_dump(mode="json", exclude_none=True)
    write_json(run / "polished" / "report.json", inner)
    assert "0.432" not in (run / "report.html").read_text(encoding="utf-8")
    assert refresh_page(run)
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "0.432 [80]" in page
    assert "Best when simulated: design 001, min efficiency 0.432" in page
    assert 'href="polished/report.html"' in page
    before, after = "0.432", f"{report.designs[0].predicted.min_efficiency:.3f}"
    assert f'>002</td><td data-label="min efficiency, simulated before">{before}</td>' in page
    assert f'<td data-label="polished">{after}</td>' in page
    (run / "history.png").unlink()
    assert not refresh_page(run)
    assert (run / "report.html").read_text(encoding="utf-8") == page


@pytest.mark.skipif(chromium.PROGRAM is None, reason="Chromium is not installed")
def test_the_page_fits_a_phone(folder: Path, tmp_path: Path) -> None:
    """That of a robust run, whose table is wide: nothing but figures scrolls sideways."""
    run = Path(shutil.copytree(folder, tmp_path / "run"))
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    for design in report["designs"]:
        design |= {name: {"shift_nm": -12.3, "predicted": design["predicted"]} for name in ("eroded", "dilated")}
    write_json(run / "report.json", report)
    refresh_page(run)
    with chromium.chromium() as page:
        page.open((run / "report.html").as_uri())
        for width in (320, 390, 768, 1100):
            page.resize(width)
            assert page.evaluate("document.documentElement.scrollWidth") == width


def test_no_temporary_files_are_left(folder: Path) -> None:
    names = {path.name for path in folder.iterdir()}
    each = {f"{name}_{n:03d}.{end}" for n in range(3) for name, end in (("design", "png"), ("spectra", "png"))}
    each |= {f"design_{n:03d}.{end}" for n in range(3) for end in ("npy", "gds")}
    each |= {f"contours_{n:03d}.gds" for n in range(3)}
    arrays = {"designs.npy", "spectra.npy", "trajectory.npy"}
    assert names == each | arrays | {"history.csv", "history.png", "report.html", "report.json"}


def test_mended_designs_have_no_narrow_features(result: Result, surrogate: Surrogate, problem: Problem) -> None:
    assert any(min(feature_size(structure)) < 100 for structure in result.structure)
    better = mended(result, problem, 100)
    for structure, row in zip(better.structure, better.row, strict=True):
        assert min(feature_size(structure)) >= 100
        before = result.structure[result.row == row][0]
        np.testing.assert_array_equal(structure, without_small_features(before, 100))
    spectra = surrogate.predict(better.structure)
    np.testing.assert_allclose(better.spectra.values, spectra.values, atol=1e-5)
    np.testing.assert_allclose(better.value, objective("bayer")(spectra)[0], atol=1e-5)
    assert (np.diff(better.value) <= 0).all()
    assert better.structures_evaluated == result.structures_evaluated + 3


def test_a_report_that_cannot_be_drawn_is_not_there(
    result: Result, surrogate: Surrogate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Figure, path: Path, **_: object) -> None:
        path.write_bytes(b"half a picture")
        raise OSError("no space left on device")

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(OSError, match="no space left"):
        write_designs(tmp_path, result, surrogate, objective="bayer")
    assert not (tmp_path / "report.json").exists()
    assert not [path.name for path in tmp_path.iterdir() if path.suffix == ".png"]


def test_a_folder_belongs_to_one_run(tmp_path: Path) -> None:
    settings = {"steps": 20, "radius_nm": 80.0, "model": "one"}
    folder = tmp_path / "new" / "designs"
    assert not is_finished(folder, settings)
    assert not folder.exists()
    begin(folder, settings)
    assert not is_finished(folder, settings)
    with pytest.raises(ValueError, match=r"other settings: steps 20 \(now 30\), model one \(now two\)\. Use another"):
        is_finished(folder, settings | {"steps": 30, "model": "two"})
    (folder / "report.json").write_text("{}")
    assert is_finished(folder, settings)


@pytest.mark.parametrize("content", ["not JSON", "[1]", "3"])
def test_settings_that_cannot_be_read(tmp_path: Path, content: str) -> None:
    (tmp_path / "settings.json").write_text(content)
    with pytest.raises(ValueError, match=r"settings\.json cannot be read"):
        is_finished(tmp_path, {"steps": 20})


def test_folders_of_others_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "a.txt").touch()
    for folder in (tmp_path, tmp_path / "a.txt"):
        with pytest.raises(ValueError, match="not empty and not the folder of an optimisation"):
            is_finished(folder, {"steps": 20})
