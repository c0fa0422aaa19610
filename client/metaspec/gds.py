"""A structure as a GDSII layout. Needs gdstk.

Rows of a structure count downwards, as in a picture; y of a layout points upwards. A layout viewer shows the cell just as
the pictures do, with detector R at the top left: row r lies between y = period - (r + 1) * pixel and y = period - r * pixel.
"""

from __future__ import annotations

import math
from datetime import datetime
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metaspec._errors import InvalidStructure
from metaspec._extras import missing_extra
from metaspec._structures import check_one_binary
from metaspec_contract.detectors import QUADRANTS
from metaspec_contract.process import Process
from metaspec_contract.structures import Structure

try:
    import gdstk
except ImportError as error:
    raise missing_extra("layouts need", "gdstk", "optimise") from error

_PERIOD_UM = Process().period_um
_LARGEST = 2**31 - 1  # GDSII coordinates are 32-bit integers, in units of the precision


def write_gds(
    path: str | Path,
    structure: ArrayLike,
    *,
    period_um: float = _PERIOD_UM,
    layer: tuple[int, int] = (1, 0),
    boundary_layer: tuple[int, int] = (100, 0),
    cell: str = "ROUTER",
    array: tuple[int, int] = (1, 1),
) -> None:
    """Write a structure as GDSII: user unit 1 um, coordinates exact.

    The precision is the coarsest power of ten in which a pixel is a whole number of steps: 1 pm for pixels of 15.625 nm.
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

    Raises:
        InvalidStructure: the structure is not two-dimensional and square, or not binary.
        ValueError: a pixel is not a multiple of 1e-15 m, or a layer or the array exceeds the integers of GDSII.
    """
    rows, columns = array
    if rows < 1 or columns < 1:
        raise ValueError(f"array must be at least 1 x 1 unit cells, got {rows} x {columns}")
    check_layer(boundary_layer)
    solid = _square(structure)
    polygons = solid_polygons(solid, period_um=period_um, layer=layer)
    precision_um = _precision_um(period_um, len(solid))
    if max(rows, columns) * period_um / precision_um > _LARGEST:
        most = int(_LARGEST * precision_um / period_um)
        raise ValueError(
            f"array: GDSII holds at most {most} x {most} unit cells of {period_um:g} um at a precision of "
            f"{1000 * precision_um:g} nm, got {rows} x {columns}"
        )
    library = gdstk.Library(unit=1e-6, precision=1e-6 * precision_um)
    unit_cell = library.new_cell(cell)
    outline = gdstk.rectangle((0, 0), (period_um, period_um), layer=boundary_layer[0], datatype=boundary_layer[1])
    unit_cell.add(*polygons, outline)
    for name, (row, column) in QUADRANTS.items():
        centre = ((0.25 + 0.5 * column) * period_um, (0.75 - 0.5 * row) * period_um)
        unit_cell.add(gdstk.Label(name, centre, layer=boundary_layer[0], texttype=boundary_layer[1]))
    if array != (1, 1):
        spacing = (period_um, period_um)
        library.new_cell(f"{cell}_ARRAY").add(gdstk.Reference(unit_cell, columns=columns, rows=rows, spacing=spacing))
    library.write_gds(path, max_points=8190, timestamp=datetime(2000, 1, 1))


def solid_polygons(
    structure: ArrayLike, *, period_um: float = _PERIOD_UM, layer: tuple[int, int] = (1, 0)
) -> list[gdstk.Polygon]:
    """The solid of a structure as merged polygons, in um, y upwards.

    Args:
        structure: (rows, columns), binary: 1 is solid, 0 is void.
        period_um: side of the unit cell in um; default: that of the default process; pass
            `surrogate.metadata().process.period_um` for another one.
        layer: layer and datatype of the polygons.

    Raises:
        InvalidStructure: the structure is not two-dimensional and square, or not binary.
        ValueError: a pixel is not a multiple of 1e-15 m, or the layer exceeds the integers of GDSII.
    """
    check_layer(layer)
    solid = _square(structure)
    pixel_um = period_um / len(solid)
    runs = [
        gdstk.rectangle(
            (start * pixel_um, period_um - row * pixel_um), (stop * pixel_um, period_um - (row + 1) * pixel_um)
        )
        for row, line in enumerate(solid)
        for start, stop in _runs(line)
    ]
    precision = _precision_um(period_um, len(solid))
    merged: list[gdstk.Polygon] = gdstk.boolean(runs, [], "or", precision, layer[0], layer[1])
    return merged


def check_layer(layer: tuple[int, int]) -> None:
    """Raise ValueError unless layer and datatype are within the 16-bit integers of GDSII."""
    if not all(0 <= number < 2**15 for number in layer):
        raise ValueError(f"layer and datatype must lie between 0 and 32767, got {layer[0]}/{layer[1]}")


def _square(structure: ArrayLike) -> Structure:
    solid = check_one_binary(structure)
    if solid.shape[0] != solid.shape[1]:
        raise InvalidStructure(f"structure must be square, got shape {solid.shape}")
    return solid


def _runs(line: NDArray[np.uint8]) -> NDArray[np.intp]:
    """First column and last column + 1 of every run of solid pixels in a row, (runs, 2)."""
    edges = np.diff(line.astype(np.int8), prepend=0, append=0)
    return np.column_stack([np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)])


def _precision_um(period_um: float, pixels: int) -> float:
    """The coarsest power of ten in um, at most 1 nm, of which the side of a pixel is a multiple."""
    if not 0 < period_um < math.inf:
        raise ValueError(f"period_um must be above 0, got {period_um}")
    pixel_um = Fraction(str(period_um)) / pixels
    for exponent in range(3, 10):
        if (pixel_um * 10**exponent).denominator == 1:
            return float(10.0**-exponent)
    raise ValueError(f"period_um: a {pixels}th of {period_um} um is not a multiple of 1e-15 m")
