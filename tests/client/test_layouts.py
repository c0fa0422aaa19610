"""Layouts: fast, read back as they were written, smooth within the stated tolerance, and checked by the real KLayout."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gdstk
import klayout.db as kdb
import numpy as np
import pytest
from scipy.spatial import cKDTree

from metaspec import InvalidStructure
from metaspec.layouts import Rules, largest_rules, read_gds, solid_polygons, write_gds
from metaspec.topology import PIXEL_NM, Parameterisation, random_latents
from metaspec_contract.area import polygon_density
from metaspec_contract.process import Process
from metaspec_testing.small_models import Array

Y, X = np.mgrid[:128, :128]
DESIGN = Path(__file__).parents[2] / "docs" / "design" / "router_78nm.npy"


def smooth_structure(seed: int, radius_nm: float = 80.0) -> Array:
    structure: Array
    (structure,) = Parameterisation(radius_nm).binary(random_latents(1, seed, correlation_nm=(60.0, 120.0)))
    return structure


STRUCTURES = {
    "smooth": smooth_structure(0),
    "holes": 1 - ((Y % 8 < 4) & (X % 8 < 4)),
    "holes in posts in holes": ((np.maximum(abs(Y - 63.5), abs(X - 63.5)) // 7) % 2).astype(int),
    "chessboard": ((X + Y) % 2) & (np.maximum(abs(X - 60), abs(Y - 60)) < 20),
    "noise": np.random.default_rng(1).random((128, 128)) < 0.7,
    "rings that touch": ((Y // 4 + X // 4) % 2) | (X % 16 == 0),
    "solid": np.ones((128, 128)),
    "void": np.zeros((128, 128)),
}


@pytest.mark.parametrize("name", STRUCTURES)
def test_what_is_written_is_read(tmp_path: Path, name: str) -> None:
    write_gds(tmp_path / "a.gds", STRUCTURES[name])
    density = read_gds(tmp_path / "a.gds")
    np.testing.assert_array_equal(density, STRUCTURES[name])
    assert density.dtype == np.float32
    polygons = gdstk.read_gds(tmp_path / "a.gds").top_level()[0].polygons  # type: ignore[union-attr]
    assert max(len(polygon.points) for polygon in polygons) <= 8190
    area = sum(polygon.area() for polygon in polygons if polygon.layer == 1)
    assert area == pytest.approx(4 * STRUCTURES[name].mean(), rel=1e-9)  # nothing overlaps


@pytest.mark.timeout(60)  # where every hole is compared with every corner, it takes minutes
def test_four_thousand_holes() -> None:
    y, x = np.mgrid[:256, :256]
    polygons = solid_polygons(1 - ((y % 4 < 2) & (x % 4 < 2)))
    assert sum(polygon.area() for polygon in polygons) == pytest.approx(4 * 0.75, rel=1e-12)
    assert 4 * 4032 < sum(len(polygon.points) for polygon in polygons) < 7 * 4032
    assert len(polygons) < 10


def test_an_array_is_read_as_its_cell(tmp_path: Path) -> None:
    write_gds(tmp_path / "a.gds", STRUCTURES["smooth"], array=(500, 400), layer=(7, 1), boundary_layer=(8, 0))
    density = read_gds(tmp_path / "a.gds", layer=(7, 1), boundary_layer=(8, 0))
    np.testing.assert_array_equal(density, STRUCTURES["smooth"])
    with pytest.raises(ValueError, match=r"the pitch of the array is 2 x 2 um, but the period is 1\.6 um"):
        read_gds(tmp_path / "a.gds", process=Process(period_um=1.6), layer=(7, 1), boundary_layer=(8, 0))


def test_a_grid_of_1_nm(tmp_path: Path) -> None:
    write_gds(tmp_path / "a.gds", STRUCTURES["smooth"], unit_nm=1)
    library = gdstk.read_gds(tmp_path / "a.gds")
    assert library.precision == pytest.approx(1e-9)
    density = read_gds(tmp_path / "a.gds")
    np.testing.assert_array_equal(density > 0.5, STRUCTURES["smooth"])
    assert np.abs(density - STRUCTURES["smooth"]).max() < 0.1  # half a nm of 15.6 nm, on two sides at a corner


def edge_distance(structure: Array, points: Array) -> Array:
    """Distances of points in um from the nearest edge of a pixel between solid and void, in nm."""
    wide = np.pad(structure[::-1] > 0, 8, mode="wrap")
    place = points * 64 + 8  # in pixels
    column, row = np.floor(place).astype(int).T
    distance = np.zeros(len(points))
    for kind in (False, True):  # a point in a pixel of one kind is as far from the edge as from the pixels of the other
        centres = np.argwhere(wide != kind)[:, ::-1] + 0.5
        mine = wide[row, column] == kind
        _, nearest = cKDTree(centres).query(place[mine], 16)
        apart = np.maximum(np.abs(centres[nearest] - place[mine][:, None]) - 0.5, 0)
        distance[mine] = np.hypot(*np.moveaxis(apart, -1, 0)).min(axis=1)
    return distance * PIXEL_NM


@pytest.mark.parametrize("tolerance", [12.0, 15.625])
@pytest.mark.parametrize("name", ["smooth", "holes", "holes in posts in holes"])
def test_contours_keep_the_tolerance(name: str, tolerance: float) -> None:
    structure = np.asarray(STRUCTURES[name], np.uint8)
    polygons = solid_polygons(structure, tolerance_nm=tolerance)
    corners = np.concatenate([polygon.points for polygon in polygons])
    np.testing.assert_allclose(corners * 1000, np.rint(corners * 1000), atol=1e-6)  # on a grid of 1 nm
    inner = corners[((corners > 1e-6) & (corners < 2 - 1e-6)).all(axis=1)]
    middles = [(polygon.points + np.roll(polygon.points, 1, axis=0)) / 2 for polygon in polygons]
    between = np.concatenate(middles)
    between = between[((between > 1e-6) & (between < 2 - 1e-6)).all(axis=1)]
    rounding = 0.75  # of the corners
    assert edge_distance(structure, inner).max() <= tolerance + rounding
    if name != "holes in posts in holes":  # whose cuts lead from edge to edge
        cuts = {"smooth": 5, "holes": 600}[name]
        far = edge_distance(structure, between) > tolerance + rounding
        assert far.sum() <= cuts


@pytest.mark.parametrize("shift", [(0, 0), (5, 40), (64, 64)])
def test_contours_are_periodic(shift: tuple[int, int]) -> None:
    """Neighbouring cells fit: what is cut at the edge of the cell is the same contour as in a cell that lies elsewhere."""
    structure = smooth_structure(3)
    moved = np.roll(structure, shift, axis=(0, 1))
    densities = [
        polygon_density([np.array(p.points) for p in solid_polygons(one, tolerance_nm=16)], 2.0, 256)
        for one in (structure, moved)
    ]
    back = np.roll(densities[1], (-2 * shift[0], -2 * shift[1]), axis=(0, 1))
    np.testing.assert_allclose(back, densities[0], atol=0.35)  # other corners are left out
    assert np.abs(back - densities[0]).mean() < 2e-3


def klayout_violations(path: Path, rule_nm: int) -> tuple[int, int]:
    """Violations of width and space in the middle cell of an array of 3 x 3, by KLayout from the file."""
    layout = kdb.Layout()
    layout.read(str(path))
    region = kdb.Region(layout.top_cell().begin_shapes_rec(layout.layer(1, 0)))
    region.merge()
    cell = round(2 / layout.dbu)
    middle = kdb.Box(cell, cell, 2 * cell, 2 * cell)
    rule = round(rule_nm / 1000 / layout.dbu)
    checks = (region.width_check, region.space_check)
    found = [check(rule, False, kdb.Region.Euclidian, None, None, None) for check in checks]
    width, space = (sum(middle.contains(pair.bbox().center()) for pair in pairs.each()) for pairs in found)
    return width, space


@pytest.mark.parametrize("options", [{}, {"tolerance_nm": 15.625}])
def test_the_stated_rules_are_those_of_klayout(tmp_path: Path, options: dict[str, Any]) -> None:
    structure = np.load(DESIGN)
    rules = largest_rules(structure, **options)
    write_gds(tmp_path / "a.gds", structure, array=(3, 3), **options)
    assert klayout_violations(tmp_path / "a.gds", rules.width_nm)[0] == 0
    assert klayout_violations(tmp_path / "a.gds", rules.width_nm + 1)[0] > 0
    assert klayout_violations(tmp_path / "a.gds", rules.space_nm)[1] == 0
    assert klayout_violations(tmp_path / "a.gds", rules.space_nm + 1)[1] > 0


def test_rules_on_a_coarse_grid_are_not_rounded_to_it(tmp_path: Path) -> None:
    """KLayout at 0.1 nm finds nothing below the rules, and something within 1 nm above them."""
    structure = np.load(DESIGN)
    rules = largest_rules(structure, unit_nm=5)
    write_gds(tmp_path / "a.gds", structure, array=(3, 3), unit_nm=5)
    layout = kdb.Layout()
    layout.read(str(tmp_path / "a.gds"))
    layout.top_cell().flatten(True)
    region = kdb.Region(layout.top_cell().begin_shapes_rec(layout.layer(1, 0))).merged()
    region.transform(kdb.ICplxTrans(50))  # 0.1 nm
    middle = kdb.Box(20_000, 20_000, 40_000, 40_000)
    for check, rule in ((region.width_check, rules.width_nm), (region.space_check, rules.space_nm)):
        found = [
            sum(
                middle.contains(pair.bbox().center())
                for pair in check(10 * nm, False, kdb.Region.Euclidian, None, None, None).each()
            )
            for nm in (rule, rule + 1)
        ]
        assert found[0] == 0 < found[1]


def test_contours_pass_larger_rules_than_pixels() -> None:
    structure = np.load(DESIGN)
    pixels, contours = (largest_rules(structure, tolerance_nm=one) for one in (None, PIXEL_NM))
    assert pixels == Rules(15, 15)  # a step of one pixel, 15.6 nm
    assert min(contours) >= 2 * min(pixels)


def test_rules_of_simple_shapes() -> None:
    """Stripes pass for their widths; a disc for .71 of its diameter at most: KLayout compares edges at right angles."""
    stripes = (X % 32 < 12).astype(np.uint8)
    assert largest_rules(stripes) == Rules(187, 312)  # 12 and 20 pixels of 15.625 nm
    disc = (np.hypot(Y - 63.5, X - 63.5) < 20).astype(np.uint8)
    width, _ = largest_rules(disc, tolerance_nm=20)
    assert 0.55 * 40 * PIXEL_NM < width < 0.72 * 40 * PIXEL_NM
    assert largest_rules(np.ones((128, 128))) == largest_rules(np.zeros((128, 128))) == Rules(512, 512)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"tolerance_nm": 11}, ValueError, "tolerance_nm must be finite and at least 0.75 pixels, 11.7188, got 11"),
        ({"tolerance_nm": np.inf}, ValueError, "tolerance_nm must be finite"),
        ({"tolerance_nm": np.nan}, ValueError, "tolerance_nm must be finite"),
        ({"unit_nm": 0}, ValueError, "unit_nm must lie between 1e-6 and 100, got 0"),
        ({"unit_nm": 3.0}, ValueError, "unit_nm: the period of 2 um is not a multiple of 3 nm"),
        ({"unit_nm": 1e-6, "period_um": 4.0}, ValueError, "has more than 2147483647 steps"),
        ({"structure": np.full((128, 128), 0.5)}, InvalidStructure, "must be binary"),
        ({"layer": (100, 0)}, ValueError, "layer and boundary_layer must differ, both are 100/0"),
        ({"layer": (1.5, 0)}, ValueError, r"layer and datatype must be two integers, got \(1.5, 0\)"),
        ({"array": (2.5, 1)}, ValueError, r"array must be two integers, rows and columns, got \(2.5, 1\)"),
    ],
)
def test_what_cannot_be_written(tmp_path: Path, options: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {"structure": STRUCTURES["solid"]} | options
    with pytest.raises(error, match=message):
        write_gds(tmp_path / "no.gds", **arguments)
    assert not list(tmp_path.iterdir())


def test_the_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Its examples run, and say what the comments say; its table is what the rules of the published designs are."""
    root = Path(__file__).parents[2] / "docs"
    text = (root / "layouts.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").symlink_to(root)
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(block, names)
    assert names["lost"] == 0
    assert 0 < names["changed"] < 0.02
    pixels, contours = (tuple(map(int, re.findall(r"\d+", line))) for line in capsys.readouterr().out.splitlines())
    (row,) = (line for line in text.splitlines() if line.startswith("| `router_78nm.npy` |"))
    cells = [cell.strip() for cell in row.split("|")]
    assert cells[3:5] == [f"{pixels[0]}, {pixels[1]}", f"{contours[0]}, {contours[1]}"]
