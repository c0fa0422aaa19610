"""Smooth contours of a pixelated structure, within a stated distance of its pixels' edges.

Needs contourpy and SciPy, which come with the extra "optimise".
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from metaspec_contract.loops import Loop, bridges, linked, simplified, without_straight_corners

Floats = NDArray[np.float64]

_FINER = 4  # grid steps per pixel
_WIDEST = 2.0  # radius of the filter in pixels at most: stairs of one pixel become straight
_CORNER = 0.3  # of the radius: how far the filter rounds a corner
_SIMPLIFIED = 0.05  # pixels that a contour may lose by fewer corners
_MARGIN = math.sqrt(2) / _FINER + _SIMPLIFIED  # a contour's distance from the grid points that decide its course

SMALLEST_TOLERANCE = 0.75
"""Smallest tolerance in pixels: an oblique edge is half a pixel from its stairs, and the grid is not finer."""


def contours(solid: NDArray[np.uint8], tolerance: float, unit: float, most: int) -> list[Loop]:
    """Polygons of the solid with smooth edges, cut at the edges of the cell, holes linked to their outlines.

    The structure is filtered, like the densities of an optimisation, and its level of 1/2 followed (marching squares). What is
    farther from an edge of a pixel than the tolerance, less a margin for the grid, stays as it is.

    Args:
        solid: binary structure (rows, columns), square, row 0 at the top; periodic.
        tolerance: largest distance of a contour from the edges of the pixels, in pixels, before rounding to the unit.
        unit: database unit in pixels, of which the cell is a multiple: corners are rounded to it.
        most: largest number of corners of a polygon; where one has more, all are cut into strips.

    Returns:
        Loops in units of the database unit, whole numbers.
    """
    field = _field(solid[::-1], tolerance)
    strip = len(field) - 1
    polygons = _polygons(field, strip, unit)
    while (longest := max(map(len, polygons), default=0)) > most and strip > 1:
        strip = max(1, strip // math.ceil(1.5 * longest / most))
        polygons = _polygons(field, strip, unit)
    return polygons


def _polygons(field: Floats, strip: int, unit: float) -> list[Loop]:
    """Polygons above 1/2, cut into strips of so many grid steps, in database units."""
    from contourpy import FillType, contour_generator

    generator = contour_generator(
        z=field, name="serial", fill_type=FillType.OuterOffset, chunk_size=(strip, len(field) - 1)
    )
    loops = []
    for corners, offsets in zip(*generator.filled(0.5, 2.0), strict=True):
        loops += [corners[start : end - 1] for start, end in pairwise(offsets)]
    if not loops:
        return []
    cuts = bridges(loops)
    everything = np.concatenate(loops)
    # On the edges of the cell and of strips, the next one goes on.
    kept = (everything[:, 0] % (len(field) - 1) == 0) | (everything[:, 1] % strip == 0)
    kept[cuts.ravel()] = True
    sizes = np.cumsum([len(one) for one in loops])[:-1]
    keep = np.concatenate(
        [
            simplified(loop, _SIMPLIFIED * _FINER, flags)
            for loop, flags in zip(loops, np.split(kept, sizes), strict=True)
        ]
    )
    number = np.cumsum(keep) - 1
    rounded = np.rint(everything / (_FINER * unit))
    parts = [part[flags] for part, flags in zip(np.split(rounded, sizes), np.split(keep, sizes), strict=True)]
    polygons = [without_straight_corners(loop) for loop in linked(parts, number[cuts])]
    return [polygon for polygon in polygons if len(polygon) > 2]


def _field(up: NDArray[np.uint8], tolerance: float) -> Floats:
    """Filtered structure at the points of a finer grid, the edges of the cell included; above 1/2 is solid."""
    from scipy.ndimage import distance_transform_edt

    fine = np.kron(up, np.ones((_FINER, _FINER)))
    radius = min(_WIDEST, (tolerance - _MARGIN) / _CORNER)
    transfer = _transfer(len(fine), radius)
    smooth = np.fft.irfft2(np.fft.rfft2(fine) * transfer, s=fine.shape)
    # Points that touch a pixel of either kind: the distance to the nearest is that to the nearest edge of a pixel.
    touching = np.stack([np.roll(fine, shift, axis=(0, 1)) for shift in ((0, 0), (1, 0), (0, 1), (1, 1))]) > 0
    reach = math.ceil(tolerance * _FINER) + 1
    deepest = (tolerance - _MARGIN) * _FINER
    for touches, wanted in ((touching.any(axis=0), 0.0), (~touching.all(axis=0), 1.0)):
        if not touches.any():
            return np.full((len(fine) + 1,) * 2, wanted)
        wrapped = np.pad(touches, reach, mode="wrap")
        distance = distance_transform_edt(~wrapped)[reach:-reach, reach:-reach]
        smooth = np.where(distance > deepest, wanted, smooth)
    smooth[np.abs(smooth - 0.5) < 1e-6] = 0.5 + 1e-6  # no crossing at a point of the grid
    return np.pad(smooth, (0, 1), mode="wrap")


@lru_cache(maxsize=8)
def _transfer(points: int, radius: float) -> NDArray[np.complex128]:
    """Fourier transform of a cone, at the distances of a point of the grid from the centres of squares."""
    apart = np.abs(np.arange(points) - 0.5) / _FINER
    apart = np.minimum(apart, points / _FINER - apart)
    cone = np.maximum(0, 1 - np.hypot(apart[:, None], apart) / radius)
    transfer: NDArray[np.complex128] = np.fft.rfft2(cone / cone.sum())
    return transfer
