"""Structures as GDSII files: the outlines of their pixels, or others. Needs gdstk, which is imported only when it is used."""

from __future__ import annotations

import math
from datetime import datetime
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from metaspec_contract.detectors import QUADRANTS
from metaspec_contract.layouts import OUTLINE_LAYER, SOLID_LAYER, check_layer
from metaspec_contract.loops import Loop, boundaries, bridges, linked, without_straight_corners
from metaspec_contract.merging import import_gdstk
from metaspec_contract.structures import Structure

MOST_CORNERS = 8190
"""Largest number of corners of a polygon in GDSII."""

LARGEST = 2**31 - 1
"""Largest coordinate in GDSII, in database units."""


class Outlines(NamedTuple):
    """The solid of a unit cell as polygons.

    Attributes:
        loops: polygons that do not overlap, in database units, whole numbers; holes are linked to their outline by a cut.
        unit_um: database unit in um.
        period_um: side of the unit cell in um.
    """

    loops: list[Loop]
    unit_um: float
    period_um: float

    def polygons(self, layer: tuple[int, int]) -> list[Any]:
        """The polygons in um, as gdstk has them."""
        polygon = import_gdstk().Polygon
        return [polygon(loop * self.unit_um, layer=layer[0], datatype=layer[1]) for loop in self.loops]


def exact_unit_um(period_um: float, pixels: int) -> float:
    """The coarsest power of ten in um, at most 1 nm, of which the side of a pixel is a multiple.

    Args:
        period_um: side of the unit cell in um.
        pixels: pixels along it.

    Raises:
        ValueError: the period is not above 0, or a pixel is not a multiple of 1e-15 m.
    """
    if not 0 < period_um < math.inf:
        raise ValueError(f"period_um must be above 0, got {period_um}")
    pixel_um = Fraction(str(period_um)) / pixels
    for exponent in range(3, 10):
        if (pixel_um * 10**exponent).denominator == 1:
            return float(10.0**-exponent)
    raise ValueError(f"period_um: a {pixels}th of {period_um} um is not a multiple of 1e-15 m")


def pixel_outlines(solid: Structure, period_um: float, unit_um: float) -> Outlines:
    """The outlines of the solid pixels of a structure, merged.

    Args:
        solid: binary structure (rows, columns), square.
        period_um: side of the unit cell in um.
        unit_um: database unit in um, to which corners are rounded; with `exact_unit_um` they are exact.
    """
    step = period_um / len(solid) / unit_um
    return Outlines([np.rint(loop * step) for loop in _pixel_loops(solid, 0)], unit_um, period_um)


def write_outlines(
    path: str | Path,
    outlines: Outlines,
    *,
    layer: tuple[int, int] = SOLID_LAYER,
    boundary_layer: tuple[int, int] = OUTLINE_LAYER,
    cell: str = "ROUTER",
    array: tuple[int, int] = (1, 1),
    note: str = "",
) -> None:
    """Write the outlines of a structure as GDSII, user unit 1 um. Equal outlines yield identical files: the date is fixed.

    Args:
        path: path of the file.
        outlines: outlines of the structure.
        layer: layer and datatype of the solid.
        boundary_layer: layer and datatype of the unit cell's outline, with the names of the detectors as labels.
        cell: name of the layout cell.
        array: rows and columns of unit cells. More than one yields a top cell `<cell>_ARRAY` that references the unit cell.
        note: text of a further label at the lower left corner of the unit cell, such as "distance_um 1.25"; printable ASCII.

    Raises:
        ValueError: a layer or the array exceeds the integers of GDSII, both layers are the same, or the note is not ASCII.
        ImportError: gdstk is not installed.
    """
    _, unit_um, period_um = outlines
    if len(array) != 2 or not all(isinstance(count, int | np.integer) for count in array):
        raise ValueError(f"array must be two integers, rows and columns, got {array!r:.60}")
    rows, columns = map(int, array)
    if rows < 1 or columns < 1:
        raise ValueError(f"array must be at least 1 x 1 unit cells, got {rows} x {columns}")
    check_layer(layer)
    check_layer(boundary_layer)
    if tuple(layer) == tuple(boundary_layer):
        raise ValueError(f"layer and boundary_layer must differ, both are {layer[0]}/{layer[1]}")
    if not (note.isascii() and note.isprintable()):
        raise ValueError(f"note must be printable ASCII, got {note!r:.60}")
    if max(rows, columns) * period_um / unit_um > LARGEST:
        most = int(LARGEST * unit_um / period_um)
        raise ValueError(
            f"array: GDSII holds at most {most} x {most} unit cells of {period_um:g} um at a precision of "
            f"{1000 * unit_um:g} nm, got {rows} x {columns}"
        )
    gdstk = import_gdstk()
    library = gdstk.Library(unit=1e-6, precision=1e-6 * unit_um)
    unit_cell = library.new_cell(cell)
    outline = gdstk.rectangle((0, 0), (period_um, period_um), layer=boundary_layer[0], datatype=boundary_layer[1])
    unit_cell.add(*outlines.polygons(layer), outline)
    for name, (row, column) in QUADRANTS.items():
        centre = ((0.25 + 0.5 * column) * period_um, (0.75 - 0.5 * row) * period_um)
        unit_cell.add(gdstk.Label(name, centre, layer=boundary_layer[0], texttype=boundary_layer[1]))
    if note:
        unit_cell.add(gdstk.Label(note, (0, 0), "sw", layer=boundary_layer[0], texttype=boundary_layer[1]))
    if array != (1, 1):
        spacing = (period_um, period_um)
        library.new_cell(f"{cell}_ARRAY").add(gdstk.Reference(unit_cell, columns=columns, rows=rows, spacing=spacing))
    library.write_gds(path, max_points=MOST_CORNERS, timestamp=datetime(2000, 1, 1))


def _pixel_loops(solid: Structure, below: int) -> list[Loop]:
    """Outlines of merged pixels in pixels, holes linked to them, each with few enough corners for GDSII.

    Args:
        solid: rows of the structure.
        below: number of rows of the structure that lie below these.
    """
    loops = boundaries(solid)
    if not loops:
        return []
    polygons = [without_straight_corners(loop) for loop in linked(loops, bridges(loops))]
    if max(map(len, polygons)) > MOST_CORNERS:
        half = len(solid) // 2
        return _pixel_loops(solid[:half], below + len(solid) - half) + _pixel_loops(solid[half:], below)
    return [polygon + np.array([0, below]) for polygon in polygons]
