"""Area averages: structures on any grid, and polygons, as densities on the pixels of a process.

A density is the share of a pixel's area that is solid, computed exactly, without samples: a structure of 200 x 200 pixels
becomes one of 128 x 128 with the same area, and a polygon keeps its edges to a fraction of a pixel.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_CLOSE = 1e-9  # of a pixel: heights that differ by less are one


def average_to_pixels(grid: NDArray[np.generic], pixels: tuple[int, int]) -> Floats:
    """Area averages of arrays over coarser or finer pixels of the same cell.

    Args:
        grid: values on any grid, (..., rows, columns).
        pixels: rows and columns of the result.

    Returns:
        (..., y, x); the same values where the grid is that of the pixels.
    """
    rows, columns = (_overlaps(count, cells) for count, cells in zip(pixels, grid.shape[-2:], strict=True))
    averaged: Floats = rows @ np.asarray(grid, np.float64) @ columns.T
    return averaged


def _overlaps(pixels: int, cells: int) -> Floats:
    """Share of each of `pixels` equal intervals that lies in each of `cells` equal intervals, (pixels, cells)."""
    pixel, cell = np.arange(pixels)[:, None] * cells, np.arange(cells) * pixels  # in units of 1 / (pixels cells)
    shared = np.minimum(pixel + cells, cell + pixels) - np.maximum(pixel, cell)
    overlaps: Floats = np.maximum(shared, 0) / cells
    return overlaps


def polygon_density(polygons: Sequence[Floats], period: float, pixels: int) -> Floats:
    """Share of each pixel of a cell that polygons cover.

    The union counts, whatever overlaps; holes are linked to the outline of their polygon by a cut, as in GDSII. Exact, but for
    edges that cross each other inside a pixel.

    Args:
        polygons: corners (corners, 2) as x and y, y upwards, in either direction, of polygons that do not cross themselves.
            The cell is the square from 0 to the period; what lies outside does not count.
        period: side of the cell.
        pixels: pixels along a side.

    Returns:
        Densities (y, x), row 0 at the top.
    """
    edges = [_edges(corners * (pixels / period)) for corners in polygons]
    low, high, sign = (
        (np.concatenate(parts) for parts in zip(*edges, strict=True)) if edges else (np.empty((0, 2)),) * 3
    )
    if not len(low):
        return np.zeros((pixels, pixels))
    heights = np.unique(np.concatenate([np.arange(pixels + 1.0), low[:, 1], high[:, 1]]).clip(0, pixels))
    heights = heights[np.append(True, np.diff(heights) > _CLOSE)]
    # Cut the edges into pieces that span one band between neighbouring heights each, ordered by band and x.
    first, last = (_nearest(heights, end[:, 1]) for end in (low, high))
    edge = np.repeat(np.arange(len(low)), last - first)
    band = np.arange(len(edge)) - np.repeat(np.cumsum(last - first) - last, last - first)
    slope = (high[edge, 0] - low[edge, 0]) / (high[edge, 1] - low[edge, 1])
    below, above = (low[edge, 0] + slope * (heights[band + n] - low[edge, 1]) for n in (0, 1))
    order = np.lexsort((below + above, band))
    edge, band, below, above = edge[order], band[order], below[order], above[order]
    # A band begins and ends outside of all polygons: so one running sum is the winding number in each of them.
    winding = np.cumsum(sign[edge])
    entered = winding - sign[edge] == 0
    border = entered | (winding == 0)
    height = (heights[band + 1] - heights[band])[border] * np.where(entered, 1.0, -1.0)[border]
    row = ((heights[band] + heights[band + 1])[border] // 2).astype(int)
    return _covered(row, below[border], above[border], height, pixels)[::-1]


def _edges(corners: Floats) -> tuple[Floats, Floats, Floats]:
    """Lower ends, upper ends and direction of the edges that are not horizontal; none of a polygon without area."""
    ahead = np.roll(corners, -1, axis=0)
    area = (corners[:, 0] * ahead[:, 1] - ahead[:, 0] * corners[:, 1]).sum()
    steep = (corners[:, 1] != ahead[:, 1]) & (area != 0)
    start, end = corners[steep], ahead[steep]
    rising = (end[:, 1] > start[:, 1])[:, None]
    return np.where(rising, start, end), np.where(rising, end, start), np.where(rising[:, 0], -1.0, 1.0) * np.sign(area)


def _nearest(heights: Floats, y: Floats) -> NDArray[np.intp]:
    """Number of the height that each y is within rounding of, or of the first or last one for a y beyond."""
    return np.clip(np.searchsorted(heights, y - _CLOSE), 0, len(heights) - 1)


def _covered(row: NDArray[np.intp], below: Floats, above: Floats, height: Floats, pixels: int) -> Floats:
    """Area to the right of pieces of edges, each inside a row of pixels, summed with their signed heights, (rows, columns)."""
    left, right = (np.clip(f(below, above), 0, pixels) for f in (np.minimum, np.maximum))
    outside = np.maximum(below, above) - np.minimum(below, above)
    shares = np.divide(right - left, outside, out=np.ones_like(outside), where=outside > 0)
    before = np.divide(
        np.clip(-np.minimum(below, above), 0, outside), outside, out=np.zeros_like(outside), where=outside > 0
    )  # share of a piece to the left of the cell, which covers whole rows
    area, carry = np.zeros((pixels, pixels + 1)), np.zeros((pixels, pixels + 1))
    np.add.at(carry[:, 0], row, height * before)
    column = np.minimum(left.astype(int), pixels)
    count = np.maximum(np.ceil(right).astype(int) - column, 1)
    piece = np.repeat(np.arange(len(row)), count)
    column = column[piece] + np.arange(len(piece)) - np.repeat(np.cumsum(count) - count, count)
    start, end = np.maximum(left[piece], column), np.minimum(right[piece], column + 1)
    length = (right - left)[piece]
    part = height[piece] * shares[piece] * np.divide(end - start, length, out=np.ones_like(length), where=length > 0)
    inside = column < pixels
    rows, column, part, middle = row[piece][inside], column[inside], part[inside], ((start + end) / 2)[inside]
    np.add.at(area, (rows, column), part * (column + 1 - middle))
    np.add.at(carry, (rows, column + 1), part)
    return (area + np.cumsum(carry, axis=1))[:, :pixels].clip(0, 1)
