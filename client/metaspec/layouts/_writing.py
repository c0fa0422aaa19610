"""Structures as GDSII: exact pixels, or smooth contours. Needs gdstk."""

from __future__ import annotations

import math
from datetime import datetime
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from metaspec._errors import InvalidStructure
from metaspec._extras import missing_extra
from metaspec._structures import check_one_binary
from metaspec.layouts._contours import SMALLEST_TOLERANCE, contours
from metaspec.layouts._loops import Loop, boundaries, bridges, linked, without_straight_corners
from metaspec_contract.detectors import QUADRANTS
from metaspec_contract.layouts import OUTLINE_LAYER, SOLID_LAYER, check_layer
from metaspec_contract.process import Process
from metaspec_contract.structures import Structure

try:
    import gdstk
except ImportError as error:
    raise missing_extra("layouts need", "gdstk", "optimise") from error

_PERIOD_UM = Process().period_um
_LARGEST = 2**31 - 1  # GDSII coordinates are 32-bit integers, in units of the precision
_MOST_CORNERS = 8190  # of a polygon in GDSII
_CONTOUR_UNIT_NM = 1.0


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

    def polygons(self, layer: tuple[int, int]) -> list[gdstk.Polygon]:
        """The polygons in um."""
        scaled: list[Any] = [loop * self.unit_um for loop in self.loops]
        return [gdstk.Polygon(corners, layer=layer[0], datatype=layer[1]) for corners in scaled]


def write_gds(
    path: str | Path,
    structure: ArrayLike,
    *,
    period_um: float = _PERIOD_UM,
    layer: tuple[int, int] = SOLID_LAYER,
    boundary_layer: tuple[int, int] = OUTLINE_LAYER,
    cell: str = "ROUTER",
    array: tuple[int, int] = (1, 1),
    unit_nm: float | None = None,
    tolerance_nm: float | None = None,
) -> None:
    """Write a structure as GDSII, user unit 1 um: its exact pixels, or smooth contours.

    Equal structures yield identical files: the date in the file is fixed.

    Args:
        path: path of the file.
        structure: (rows, columns), binary: 1 is solid, 0 is void.
        period_um: side of the unit cell in um; default: that of the default process; pass
            `surrogate.metadata().process.period_um` for another one.
        layer: layer and datatype of the solid, whose pixels are merged into polygons.
        boundary_layer: layer and datatype of the unit cell's outline, with the names of the detectors as labels.
        cell: name of the layout cell.
        array: rows and columns of unit cells. More than one yields a top cell `<cell>_ARRAY` that references the unit cell.
        unit_nm: database unit in nm, to which corners are rounded. By default 1 nm for contours; for pixels the coarsest power
            of ten in which a pixel is a whole number of steps, so that they are exact: 1 pm for pixels of 15.625 nm.
        tolerance_nm: largest distance of contours from the edges of the pixels in nm, before rounding, at least 0.75 pixels;
            None for pixels.

    Raises:
        InvalidStructure: the structure is not two-dimensional and square, or not binary.
        ValueError: a pixel is not a multiple of 1e-15 m, the period not one of the database unit, the tolerance too small, or
            a layer or the array exceeds the integers of GDSII,
            or both layers are the same.
    """
    outlines = solid_outlines(structure, period_um, unit_nm, tolerance_nm)
    write_outlines(path, outlines, layer=layer, boundary_layer=boundary_layer, cell=cell, array=array)


def write_outlines(
    path: str | Path,
    outlines: Outlines,
    *,
    layer: tuple[int, int] = SOLID_LAYER,
    boundary_layer: tuple[int, int] = OUTLINE_LAYER,
    cell: str = "ROUTER",
    array: tuple[int, int] = (1, 1),
) -> None:
    """Write the outlines of a structure as GDSII; arguments and errors are those of `write_gds`."""
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
    if max(rows, columns) * period_um / unit_um > _LARGEST:
        most = int(_LARGEST * unit_um / period_um)
        raise ValueError(
            f"array: GDSII holds at most {most} x {most} unit cells of {period_um:g} um at a precision of "
            f"{1000 * unit_um:g} nm, got {rows} x {columns}"
        )
    library = gdstk.Library(unit=1e-6, precision=1e-6 * unit_um)
    unit_cell = library.new_cell(cell)
    outline = gdstk.rectangle((0, 0), (period_um, period_um), layer=boundary_layer[0], datatype=boundary_layer[1])
    unit_cell.add(*outlines.polygons(layer), outline)
    for name, (row, column) in QUADRANTS.items():
        centre = ((0.25 + 0.5 * column) * period_um, (0.75 - 0.5 * row) * period_um)
        unit_cell.add(gdstk.Label(name, centre, layer=boundary_layer[0], texttype=boundary_layer[1]))
    if array != (1, 1):
        spacing = (period_um, period_um)
        library.new_cell(f"{cell}_ARRAY").add(gdstk.Reference(unit_cell, columns=columns, rows=rows, spacing=spacing))
    library.write_gds(path, max_points=_MOST_CORNERS, timestamp=datetime(2000, 1, 1))


def solid_polygons(
    structure: ArrayLike,
    *,
    period_um: float = _PERIOD_UM,
    layer: tuple[int, int] = SOLID_LAYER,
    unit_nm: float | None = None,
    tolerance_nm: float | None = None,
) -> list[gdstk.Polygon]:
    """The solid of a structure as polygons that do not overlap, in um, y upwards; holes are linked to their outline by a cut.

    Args and errors are those of `write_gds`.
    """
    check_layer(layer)
    return solid_outlines(structure, period_um, unit_nm, tolerance_nm).polygons(layer)


def solid_outlines(
    structure: ArrayLike, period_um: float, unit_nm: float | None, tolerance_nm: float | None
) -> Outlines:
    """The outlines of the solid; arguments and errors are those of `write_gds`."""
    solid = _square(structure)
    pixel_nm = 1000 * period_um / len(solid)
    exact_um = _precision_um(period_um, len(solid))
    if tolerance_nm is None:
        unit_um = exact_um if unit_nm is None else _unit_um(unit_nm, period_um)
        step = period_um / len(solid) / unit_um
        return Outlines([np.rint(loop * step) for loop in _pixel_loops(solid, 0)], unit_um, period_um)
    unit_um = _unit_um(_CONTOUR_UNIT_NM if unit_nm is None else unit_nm, period_um)
    check_tolerance(tolerance_nm, pixel_nm)
    loops = contours(solid, tolerance_nm / pixel_nm, 1000 * unit_um / pixel_nm, _MOST_CORNERS)
    return Outlines(loops, unit_um, period_um)


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
    if max(map(len, polygons)) > _MOST_CORNERS:
        half = len(solid) // 2
        return _pixel_loops(solid[:half], below + len(solid) - half) + _pixel_loops(solid[half:], below)
    return [polygon + np.array([0, below]) for polygon in polygons]


def check_tolerance(tolerance_nm: float, pixel_nm: float) -> None:
    """Raise ValueError unless contours can keep a tolerance: at least 3/4 of a pixel, which oblique edges need."""
    if not SMALLEST_TOLERANCE * pixel_nm <= tolerance_nm < math.inf:
        raise ValueError(
            f"tolerance_nm must be finite and at least {SMALLEST_TOLERANCE} pixels, {SMALLEST_TOLERANCE * pixel_nm:g}, "
            f"got {tolerance_nm}"
        )


def check_unit(unit_nm: float, period_um: float) -> None:
    """Raise ValueError unless a period is a whole number of database units of at most 100 nm."""
    _unit_um(unit_nm, period_um)


def _unit_um(unit_nm: float, period_um: float) -> float:
    if not 1e-6 <= unit_nm <= 100:
        raise ValueError(f"unit_nm must lie between 1e-6 and 100, got {unit_nm}")
    steps = Fraction(str(period_um)) * 1000 / Fraction(str(unit_nm))
    if steps.denominator != 1:
        raise ValueError(f"unit_nm: the period of {period_um:g} um is not a multiple of {unit_nm:g} nm")
    if steps > _LARGEST:
        raise ValueError(f"unit_nm: the period of {period_um:g} um has more than {_LARGEST} steps of {unit_nm:g} nm")
    return unit_nm / 1000


def _square(structure: ArrayLike) -> Structure:
    solid = check_one_binary(structure)
    if solid.shape[0] != solid.shape[1]:
        raise InvalidStructure(f"structure must be square, got shape {solid.shape}")
    return solid


def _precision_um(period_um: float, pixels: int) -> float:
    """The coarsest power of ten in um, at most 1 nm, of which the side of a pixel is a multiple."""
    if not 0 < period_um < math.inf:
        raise ValueError(f"period_um must be above 0, got {period_um}")
    pixel_um = Fraction(str(period_um)) / pixels
    for exponent in range(3, 10):
        if (pixel_um * 10**exponent).denominator == 1:
            return float(10.0**-exponent)
    raise ValueError(f"period_um: a {pixels}th of {period_um} um is not a multiple of 1e-15 m")
