"""Structures from files of others: what a file says arrives, and what cannot be a structure is refused in one line."""

from __future__ import annotations

import base64
import json
import math
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gdstk
import klayout.db as kdb
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from metaspec_contract.drawings import read_drawing
from metaspec_contract.layouts import read_layout
from metaspec_contract.process import Process

PROCESS = Process()
RNG = np.random.default_rng(3)
PIXEL_UM = 2 / 128


def box(row: int, column: int, height: int, width: int) -> NDArray[np.float32]:
    """A structure with a solid rectangle."""
    structure = np.zeros((128, 128), np.float32)
    structure[row : row + height, column : column + width] = 1
    return structure


def rectangle(row: int, column: int, height: int, width: int, scale: float = 1.0) -> gdstk.Polygon:
    """The same as a polygon, layer 1/0."""
    x, y = column * PIXEL_UM, 2 - row * PIXEL_UM
    corners = np.array([(x, y - height * PIXEL_UM), (x + width * PIXEL_UM, y)]) * scale
    return gdstk.rectangle(tuple(corners[0]), tuple(corners[1]), layer=1)


def outline(scale: float = 1.0) -> gdstk.Polygon:
    return gdstk.rectangle((0, 0), (2 * scale, 2 * scale), layer=100)


def write(path: Path, *cells: tuple[str, list[Any]], unit: float = 1e-6, precision: float = 1e-12) -> Path:
    library = gdstk.Library(unit=unit, precision=precision)
    made: dict[str, gdstk.Cell] = {}
    for name, shapes in cells:
        made[name] = cell = library.new_cell(name)
        for shape in shapes:
            if isinstance(shape, tuple):  # a reference: name of the cell, and arguments
                cell.add(gdstk.Reference(made[shape[0]], **shape[1]))
            else:
                cell.add(shape)
    library.write_gds(path)
    return path


def density(path: Path, **options: Any) -> NDArray[np.float32]:
    found: NDArray[np.float32]
    (found,) = read_drawing(path, **options).densities(PROCESS)
    return found


L_SHAPE = [outline(), rectangle(10, 20, 30, 12), rectangle(34, 20, 6, 40)]
L_PIXELS = np.maximum(box(10, 20, 30, 12), box(34, 20, 6, 40))


def test_polygons_of_a_layout(tmp_path: Path) -> None:
    np.testing.assert_array_equal(density(write(tmp_path / "a.gds", ("A", L_SHAPE))), L_PIXELS)


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ({"origin": (0, 0)}, L_PIXELS),
        ({"origin": (2, 0), "rotation": np.pi / 2}, np.rot90(L_PIXELS)),
        ({"origin": (2, 2), "rotation": np.pi}, np.rot90(L_PIXELS, 2)),
        ({"origin": (0, 2), "x_reflection": True}, L_PIXELS[::-1]),
        ({"origin": (7, -3)}, L_PIXELS),
        ({"origin": (1, 1), "columns": 30, "rows": 40, "spacing": (2, 2)}, L_PIXELS),
        ({"origin": (1, 1), "columns": 5, "rows": 1, "spacing": (2, 2)}, L_PIXELS),
        ({"origin": (0, 0), "rotation": np.pi / 2, "columns": 3, "rows": 3, "spacing": (2, 2)}, np.rot90(L_PIXELS)),
    ],
)
def test_references(tmp_path: Path, arguments: dict[str, Any], wanted: NDArray[np.float32]) -> None:
    path = write(tmp_path / "a.gds", ("A", L_SHAPE), ("TOP", [("A", arguments)]))
    np.testing.assert_allclose(density(path), wanted, atol=1e-6)
    np.testing.assert_array_equal(density(path, cell="A"), L_PIXELS)


def test_magnified_references_of_references(tmp_path: Path) -> None:
    half = [outline(0.5), rectangle(10, 20, 30, 12, 0.5), rectangle(34, 20, 6, 40, 0.5)]
    inner = ("MIDDLE", [("HALF", {"origin": (1, 0.25), "magnification": 2})])
    path = write(tmp_path / "a.gds", ("HALF", half), inner, ("TOP", [("MIDDLE", {"origin": (-3, 1)})]))
    np.testing.assert_array_equal(density(path), L_PIXELS)


def test_the_pitch_of_arrays_is_magnified_and_large_arrays_are_one_cell(tmp_path: Path) -> None:
    half = [outline(0.5), rectangle(10, 20, 30, 12, 0.5), rectangle(34, 20, 6, 40, 0.5)]
    array = ("ARRAY", [("HALF", {"columns": 3000, "rows": 3000, "spacing": (1, 1)})])
    path = write(tmp_path / "a.gds", ("HALF", half), array, ("TOP", [("ARRAY", {"magnification": 2})]), precision=1e-9)
    np.testing.assert_allclose(density(path), L_PIXELS, atol=0.15)
    with pytest.raises(ValueError, match="the pitch of the array is 1 x 1 um, but the period is 2 um"):
        density(path, cell="ARRAY")


def test_a_coarse_unit_is_no_excuse_for_another_period(tmp_path: Path) -> None:
    path = write(tmp_path / "a.gds", ("A", [gdstk.rectangle((0, 0), (1.9, 1.9), layer=100)]), precision=1e-7)
    with pytest.raises(ValueError, match=r"the outline is 1\.9 x 1\.9 um, but the period is 2 um"):
        density(path)


def test_an_array_of_holes_inside_the_unit_cell(tmp_path: Path) -> None:
    """Repetitions of what has no outline are all there."""
    post = [rectangle(124, 0, 4, 4)]
    array = {"origin": (0.125, 0.125), "columns": 8, "rows": 8, "spacing": (0.25, 0.25)}
    path = write(tmp_path / "a.gds", ("POST", post), ("TOP", [outline(), ("POST", array)]))
    y, x = np.mgrid[:128, :128]
    wanted = ((x % 16 >= 8) & (x % 16 < 12) & ((127 - y) % 16 >= 8) & ((127 - y) % 16 < 12)).astype(float)
    np.testing.assert_array_equal(density(path), wanted)


def test_paths_boxes_and_other_units(tmp_path: Path) -> None:
    """A path of 10 nm pixels in a file whose user unit is 1 nm; a BOX record, which gdstk does not write, made by hand."""
    path = write(
        tmp_path / "a.gds",
        ("A", [gdstk.FlexPath([(0, 500), (2000, 500)], 125, layer=1)]),
        unit=1e-9,
        precision=1e-12,
    )
    np.testing.assert_array_equal(density(path), box(128 - 36, 0, 8, 128))
    content = write(tmp_path / "b.gds", ("A", [rectangle(10, 20, 30, 12), outline()])).read_bytes()
    boundary, box_record = b"\x00\x04\x08\x00\x00\x06\x0d\x02\x00\x01\x00\x06\x0e\x02\x00\x00", b"\x00\x04\x2d\x00"
    assert boundary in content
    as_box = box_record + b"\x00\x06\x0d\x02\x00\x01\x00\x06\x2e\x02\x00\x00"
    (tmp_path / "b.gds").write_bytes(content.replace(boundary, as_box, 1))
    np.testing.assert_array_equal(density(tmp_path / "b.gds"), box(10, 20, 30, 12))


def test_where_the_unit_cell_begins(tmp_path: Path) -> None:
    """Without an outline at the origin, or around it where the solid lies there; solid goes on at the other side."""
    path = write(tmp_path / "a.gds", ("A", [rectangle(10, 20, 30, 12)]))
    np.testing.assert_array_equal(density(path), box(10, 20, 30, 12))
    around = write(tmp_path / "b.gds", ("A", [gdstk.rectangle((-0.5, -0.25), (0.5, 0.25), layer=1)]))
    np.testing.assert_array_equal(density(around), box(48, 32, 32, 64))
    over = write(tmp_path / "c.gds", ("A", [outline(), gdstk.rectangle((-0.25, 1.75), (0.25, 2.25), layer=1)]))
    wanted = np.roll(box(0, 0, 32, 32), (-16, -16), axis=(0, 1))
    np.testing.assert_array_equal(density(over), wanted)
    shifted = read_layout(path).density(PROCESS, (1.0, 0.0))
    np.testing.assert_array_equal(shifted, np.roll(box(10, 20, 30, 12), -64, axis=1))


BOW_TIE = [(0.2, 0.2), (0.8, 0.8), (0.8, 0.2), (0.2, 0.8)]
CROSSED = {
    "bow tie": [BOW_TIE],
    "spike": [[(1, 1), (1.5, 1.25), (1, 1)], [(0.25, 1), (0.5, 1), (0.5, 1.5), (1.0, 1.5), (0.5, 1.5), (0.25, 1.5)]],
    "figure of eight over a rectangle": [BOW_TIE, [(0.1, 0.1), (0.9, 0.1), (0.9, 0.6), (0.1, 0.6)]],
    "rectangle clockwise over one that is not": [
        [(0.1, 0.1), (0.1, 0.6), (0.9, 0.6), (0.9, 0.1)],
        [(0.5, 0.3), (1.5, 0.3), (1.5, 1.1), (0.5, 1.1)],
    ],
    "wound twice": [[(0.2, 0.2), (1.2, 0.2), (1.2, 1.2), (0.2, 1.2), (0.2, 0.2), (0.8, 0.2), (0.8, 0.8), (0.2, 0.8)]],
}


@pytest.mark.parametrize("name", CROSSED)
def test_the_union_is_that_of_klayout(tmp_path: Path, name: str) -> None:
    """Whatever crosses itself, or others in the other direction."""
    shapes = [gdstk.Polygon(corners, layer=1) for corners in CROSSED[name]]
    path = write(tmp_path / "a.gds", ("A", [outline(), *shapes]))
    layout = kdb.Layout()
    layout.read(str(path))
    region = kdb.Region(layout.top_cell().begin_shapes_rec(layout.layer(1, 0))).merged()
    assert density(path).mean() * 4 == pytest.approx(region.area() * layout.dbu**2, abs=1e-6)


def test_edges_between_pixels_are_area_averages(tmp_path: Path) -> None:
    third = write(tmp_path / "a.gds", ("A", [gdstk.rectangle((0, 0), (0.5 + PIXEL_UM / 4, 2), layer=1)]))
    wanted = box(0, 0, 128, 32)
    wanted[:, 32] = 0.25
    np.testing.assert_allclose(density(third), wanted, atol=1e-4)  # the database unit is 1 pm


@pytest.mark.parametrize(
    ("cells", "options", "message"),
    [
        ([("A", L_SHAPE), ("B", L_SHAPE)], {}, "must have one top cell, got A, B: name the cell"),
        ([("A", L_SHAPE)], {"cell": "B"}, "has no cell 'B', only A"),
        ([("A", L_SHAPE)], {"layer": (2, 0)}, "cell A has nothing in layer 2/0; layers with polygons: 1/0"),
        ([("A", [outline(0.8), rectangle(80, 5, 9, 9)])], {}, "the outline is 1.6 x 1.6 um, but the period is 2 um"),
        (
            [("A", L_SHAPE), ("TOP", [("A", {"columns": 3, "rows": 3, "spacing": (2.5, 2)})])],
            {},
            "the pitch of the array is 2.5 x 2 um, but the period is 2 um",
        ),
        (
            [("A", L_SHAPE), ("TOP", [("A", {}), ("A", {"origin": (2, 0)})])],
            {},
            "cell TOP has 2 outlines of unit cells: name the unit cell",
        ),
        ([("A", [gdstk.rectangle((0, 0), (3, 1), layer=1)])], {}, "which is no period of 2 um from or around"),
        (
            [("A", [*L_SHAPE, gdstk.rectangle((2.5, 0.5), (2.75, 1), layer=1)])],
            {},
            r"cell A has solid outside of the unit cell, from \(2.5, 0.5\) to \(2.75, 1\) um: it may only reach over the edge",
        ),
        (
            [("A", L_SHAPE[1:]), ("TOP", [outline(), ("A", {"columns": 2, "rows": 1, "spacing": (1.9, 2)})])],
            {},
            "cell TOP has solid outside of the unit cell, from ",
        ),
        (
            [("A", [outline(), gdstk.rectangle((-200, -200), (200, 200), layer=1)])],
            {},
            "more than a period over the edge of the unit cell, whose lower left corner is at ",
        ),
        (
            [("A", L_SHAPE), ("TOP", [("A", {"columns": 2, "rows": 1, "spacing": (2.01, 2)})])],
            {},
            "the pitch of the array is 2.01 x 2.01 um, but the period is 2 um",
        ),
        (
            [
                (f"A{k}", [(f"A{k - 1}", {}), (f"A{k - 1}", {"origin": (0.1, 0)})] if k else L_SHAPE[1:])
                for k in range(40)
            ],
            {},
            "has more than 200000 polygons: name the unit cell",
        ),
        (
            [("A", L_SHAPE[1:]), ("TOP", [("A", {"columns": 3000, "rows": 3000, "spacing": (2, 2)})])],
            {},
            "cell TOP has more than 200000 polygons: name the unit cell",
        ),
        ([("A", [])], {}, "cell A has nothing in layer 1/0; layers with polygons: none"),
    ],
)
def test_layouts_that_are_no_unit_cell(tmp_path: Path, cells: list[Any], options: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "a.gds", *cells)
    with pytest.raises(ValueError, match=message) as refused:
        density(path, **options)
    assert str(refused.value).startswith(f"{path}")
    assert "\n" not in str(refused.value)


def test_an_empty_unit_cell_is_void(tmp_path: Path) -> None:
    assert not density(write(tmp_path / "a.gds", ("A", [outline()]))).any()


def test_damaged_layouts(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    whole = write(tmp_path / "a.gds", ("A", L_SHAPE)).read_bytes()
    place = whole.index(b"\x00\x1c\x05\x02")  # the beginning of a cell
    for content in (b"", b"hello", whole[:-4], whole[: len(whole) // 2], whole[:place] + b"\x00\x01" + whole[place:]):
        (tmp_path / "b.gds").write_bytes(content)
        with pytest.raises(ValueError, match=r"b\.gds is (not a|a damaged) GDSII file"):
            read_drawing(tmp_path / "b.gds")
    missing = whole.replace(b"\x00\x04\x07\x00", b"\x00\x04\x0a\x00\x00\x06\x12\x06NO\x00\x0c\x10\x03" + bytes(8) +
                            b"\x00\x04\x11\x00\x00\x04\x07\x00")  # fmt: skip
    (tmp_path / "c.gds").write_bytes(missing)
    with pytest.raises(ValueError, match="refers to cell NO, which is not in the file"):
        read_drawing(tmp_path / "c.gds")
    assert capfd.readouterr() == ("", "")


def test_any_damaged_byte_is_read_or_refused_in_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    array = ("A", {"columns": 2, "rows": 2, "spacing": (2, 2)})
    wire = gdstk.FlexPath([(0, 0.5), (1.5, 0.5), (1.5, 1)], 0.125, ends="round", layer=1, simple_path=True)
    path = write(tmp_path / "a.gds", ("A", [*L_SHAPE, wire, gdstk.Label("R", (1, 1))]), ("TOP", [array]))
    whole = path.read_bytes()
    rng, refused = np.random.default_rng(5), 0
    for place in rng.permutation(len(whole))[:250]:
        damaged = bytearray(whole)
        damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        message = ""
        try:
            density(path)
        except ValueError as error:
            message, refused = str(error), refused + 1
        assert not message or message.startswith(str(path))
        assert "\n" not in message
    assert refused > 100
    assert capfd.readouterr() == ("", "")


def test_what_is_not_a_file_is_not_waited_for(tmp_path: Path) -> None:
    for name in ("a.gds", "a.npy", "a.png", "a.json"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(ValueError, match="is not a regular file"):
            read_drawing(tmp_path / name)


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_an_alpha_channel_that_hides_nothing(tmp_path: Path, mode: str) -> None:
    picture = Image.fromarray((L_PIXELS * 255).astype(np.uint8)).convert(mode)
    picture.save(tmp_path / "a.png")
    np.testing.assert_array_equal(density(tmp_path / "a.png"), L_PIXELS)
    picture.putalpha(254)
    picture.save(tmp_path / "b.png")
    with pytest.raises(ValueError, match="must have no transparent pixels"):
        read_drawing(tmp_path / "b.png")


def test_arrays_of_any_grid(tmp_path: Path) -> None:
    np.save(tmp_path / "same.npy", L_PIXELS.astype(np.uint8))
    np.testing.assert_array_equal(density(tmp_path / "same.npy"), L_PIXELS)
    np.save(tmp_path / "fine.npy", np.kron(L_PIXELS, np.ones((3, 3))))
    np.testing.assert_array_equal(density(tmp_path / "fine.npy"), L_PIXELS)
    coarse = RNG.integers(0, 2, (4, 100, 100))
    np.save(tmp_path / "coarse.npy", coarse)
    drawing = read_drawing(tmp_path / "coarse.npy")
    found = drawing.densities(PROCESS)
    assert found.dtype == np.float32
    assert found.shape == (4, 128, 128)
    np.testing.assert_allclose(found.mean(axis=(1, 2)), coarse.mean(axis=(1, 2)), rtol=1e-6)
    assert drawing.remark(PROCESS) == "100 x 100 pixels averaged to 128 x 128"
    assert found.min() == 0
    assert found.max() == 1


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "I;16"])
def test_pictures_are_white_where_solid(tmp_path: Path, mode: str) -> None:
    levels = L_PIXELS * (65535 if mode == "I;16" else 255)
    picture = Image.fromarray(levels.astype(np.uint16 if mode == "I;16" else np.uint8))
    (picture if mode == "I;16" else picture.convert(mode)).save(tmp_path / "a.png")
    np.testing.assert_array_equal(density(tmp_path / "a.png"), L_PIXELS)


def typed(array: NDArray[Any], **fields: Any) -> list[Any]:
    """An array as totypes writes it."""
    content = {
        "shape": list(array.shape),
        "dtype": str(array.dtype),
        "bytes": base64.b64encode(array.tobytes()).decode(),
    }
    kind = "BoundedArray" if array.ndim == 0 else "Density2DArray"
    name = f"\x93TOTYPES.REGISTERED_CUSTOM_TYPE.<class 'totypes.types.{kind}'>"
    return [name, {"array": ["\x93TYPES.ARRAY", content], "lower_bound": 0.0, "upper_bound": 1.0, **fields}]


def shaped(written: list[Any], shape: list[int]) -> list[Any]:
    """The same with another shape."""
    written[1]["array"][1]["shape"] = shape
    return written


def test_designs_of_invrs_gym(tmp_path: Path) -> None:
    """As in the leaderboard, 200 x 200; there, blue is where both coordinates are small, so that ours is turned."""
    theirs = RNG.integers(0, 2, (200, 200)).astype(np.float32)
    document = {
        "density_metasurface": typed(2 * theirs - 1, lower_bound=-1.0, minimum_width=8),
        "thickness_metasurface": typed(np.array(0.7, np.float32)),
        "offset_monitor_substrate": typed(np.array(2.5, np.float32)),
    }
    (tmp_path / "a.json").write_text(json.dumps(document))
    drawing = read_drawing(tmp_path / "a.json")
    (found,) = drawing.densities(PROCESS)
    np.save(tmp_path / "turned.npy", theirs[::-1, ::-1])
    np.testing.assert_allclose(found, density(tmp_path / "turned.npy"), atol=1e-6)
    assert drawing.remark(PROCESS) == "200 x 200 pixels averaged to 128 x 128, made for thickness_um 0.7, here 0.6"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda design: [], "is no design of invrs-gym's bayer_sorter"),
        (lambda design: {}, "it has no density_metasurface"),
        (lambda design: design | {"density_metasurface": 3}, "lower_bound must be a number, got None"),
        (
            lambda design: design | {"density_metasurface": typed(np.zeros((64, 64)), upper_bound=math.inf)},
            "lower_bound must be below upper_bound, both finite, got 0 and inf",
        ),
        (
            lambda design: design | {"density_metasurface": shaped(typed(np.zeros((128, 128))), [-1, 128])},
            r"holds no array of totypes: its shape is \[-1, 128\]",
        ),
        (
            lambda design: design | {"density_metasurface": typed(np.zeros((9, 8)))},
            r"must be square.*\(1, 9, 8\)|\(9, 8\)",
        ),
        (lambda design: design | {"density_metasurface": typed(np.full((9, 9), 3.0))}, "must lie between 0"),
        (
            lambda design: (
                design
                | {
                    "density_metasurface": [
                        *typed(np.zeros((9, 9)))[:1],
                        {"array": [0], "lower_bound": 0, "upper_bound": 1},
                    ]
                }
            ),
            "density_metasurface holds no array of totypes",
        ),
        (lambda design: design | {"thickness_metasurface": typed(np.zeros(2))}, "must be one number, got shape"),
    ],
)
def test_designs_that_are_none(tmp_path: Path, change: Callable[[Any], Any], message: str) -> None:
    design = {"density_metasurface": typed(np.zeros((9, 9)))}
    (tmp_path / "a.json").write_text(json.dumps(change(design)))
    with pytest.raises(ValueError, match=message):
        read_drawing(tmp_path / "a.json")


def colours(path: Path) -> None:
    Image.fromarray(RNG.integers(0, 255, (16, 16, 3), np.uint8)).save(path)


def transparent(path: Path) -> None:
    Image.fromarray(np.full((16, 16, 4), 128, np.uint8), "RGBA").save(path)


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("a.txt", Path.touch, r"the name must end in \.npy, \.gds, \.gds2, \.gdsii, \.png or \.json"),
        ("a.npy", lambda path: None, "is missing"),
        ("a.png", lambda path: None, "is missing"),
        ("a.json", lambda path: None, "is missing"),
        ("a.gds", lambda path: None, "is missing"),
        ("a.npy", lambda path: np.save(path, np.zeros((16, 8))), r"must be square.*\(16, 8\)"),
        ("a.npy", lambda path: np.save(path, np.full((16, 16), 7)), "must lie between 0 .* got 7"),
        ("a.npy", lambda path: np.save(path, np.zeros((4, 4))), "8 to 16384 pixels along a side, got 4"),
        ("a.png", lambda path: path.write_bytes(b"\x89PNG\r\n"), "is not a picture that can be read"),
        ("a.png", colours, "must be in shades of grey"),
        ("a.png", transparent, "must have no transparent pixels"),
        ("a.json", lambda path: path.write_text("{"), "is not JSON"),
        ("a.json", lambda path: path.write_bytes(struct.pack("4B", 255, 254, 0, 1)), "is not JSON"),
    ],
)
def test_files_that_hold_no_structures(tmp_path: Path, name: str, make: Callable[[Path], object], message: str) -> None:
    make(tmp_path / name)
    with pytest.raises(ValueError, match=message) as refused:
        read_drawing(tmp_path / name)
    assert "\n" not in str(refused.value)


def test_a_cell_belongs_to_a_layout(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", L_PIXELS)
    with pytest.raises(ValueError, match=r"a\.npy is no layout: it has no cell 'A'"):
        read_drawing(tmp_path / "a.npy", cell="A")
