"""Structures as GDSII: exact pixels, or smooth contours. Needs gdstk."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

from numpy.typing import ArrayLike

from metaspec._errors import InvalidStructure
from metaspec._extras import missing_extra
from metaspec._structures import check_one_binary
from metaspec.layouts._contours import SMALLEST_TOLERANCE, contours
from metaspec_contract.layout_writing import (
    LARGEST,
    MOST_CORNERS,
    Outlines,
    exact_unit_um,
    pixel_outlines,
    write_outlines,
)
from metaspec_contract.layouts import OUTLINE_LAYER, SOLID_LAYER, check_layer
from metaspec_contract.process import Process
from metaspec_contract.structures import Structure

try:
    import gdstk
except ImportError as error:
    raise missing_extra("layouts need", "gdstk", "optimise") from error

_PERIOD_UM = Process().period_um
_CONTOUR_UNIT_NM = 1.0


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
    note: str = "",
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
        note: text of a further label at the lower left corner of the unit cell, such as "distance_um 1.25"; printable ASCII.

    Raises:
        InvalidStructure: the structure is not two-dimensional and square, or not binary.
        ValueError: a pixel is not a multiple of 1e-15 m, the period not one of the database unit, the tolerance too small,
            a layer or the array exceeds the integers of GDSII, both layers are the same, or the note is not ASCII.
    """
    outlines = solid_outlines(structure, period_um, unit_nm, tolerance_nm)
    write_outlines(path, outlines, layer=layer, boundary_layer=boundary_layer, cell=cell, array=array, note=note)


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
    exact_um = exact_unit_um(period_um, len(solid))
    if tolerance_nm is None:
        return pixel_outlines(solid, period_um, exact_um if unit_nm is None else _unit_um(unit_nm, period_um))
    unit_um = _unit_um(_CONTOUR_UNIT_NM if unit_nm is None else unit_nm, period_um)
    check_tolerance(tolerance_nm, pixel_nm)
    loops = contours(solid, tolerance_nm / pixel_nm, 1000 * unit_um / pixel_nm, MOST_CORNERS)
    return Outlines(loops, unit_um, period_um)


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
    if steps > LARGEST:
        raise ValueError(f"unit_nm: the period of {period_um:g} um has more than {LARGEST} steps of {unit_nm:g} nm")
    return unit_nm / 1000


def _square(structure: ArrayLike) -> Structure:
    solid = check_one_binary(structure)
    if solid.shape[0] != solid.shape[1]:
        raise InvalidStructure(f"structure must be square, got shape {solid.shape}")
    return solid
