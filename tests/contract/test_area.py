"""Area averages: exact for grids and polygons, whatever overlaps; what lies outside of the cell does not count."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from metaspec_contract.area import average_to_pixels, polygon_density

Floats = NDArray[np.float64]


def box(left: float, bottom: float, right: float, top: float) -> Floats:
    return np.array([[left, bottom], [right, bottom], [right, top], [left, top]])


def sampled(polygons: list[Floats], pixels: int, finer: int = 16) -> Floats:
    """The same by samples: centres of small squares that lie in a polygon. The cell is 1 x 1."""
    side = pixels * finer
    y, x = np.divmod(np.arange(side**2), side)
    x, y = (x + 0.5) / side, 1 - (y + 0.5) / side
    inside = np.zeros(side**2, bool)
    for corners in polygons:
        crossings = np.zeros(side**2, int)
        for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
            if y0 != y1:
                right = x < x0 + (y - y0) * (x1 - x0) / (y1 - y0)
                crossings += ((y0 <= y) != (y1 <= y)) & right
        inside |= crossings % 2 == 1
    shares: Floats = inside.reshape(pixels, finer, pixels, finer).mean(axis=(1, 3))
    return shares


@pytest.mark.parametrize("cells", [64, 100, 128, 200, 384])
def test_grids_keep_their_area(cells: int) -> None:
    grid = np.random.default_rng(cells).random((2, cells, cells))
    averaged = average_to_pixels(grid, (128, 128))
    assert averaged.shape == (2, 128, 128)
    np.testing.assert_allclose(averaged.mean(axis=(1, 2)), grid.mean(axis=(1, 2)), rtol=1e-12)
    if cells == 128:
        np.testing.assert_array_equal(averaged, grid)
    if cells == 384:
        np.testing.assert_allclose(averaged, grid.reshape(2, 128, 3, 128, 3).mean(axis=(2, 4)), rtol=1e-12)


def test_each_pixel_is_the_mean_of_what_it_covers() -> None:
    averaged = average_to_pixels(np.array([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0]]), (2, 2))
    np.testing.assert_allclose(averaged, [[2 / 9, 2 / 9], [4 / 9, 0]])


SHAPES = {
    "pixels": [box(0.25, 0.125, 0.5, 0.75)],
    "part of a pixel": [box(0.03, 0.02, 0.04, 0.05)],
    "triangle": [np.array([[0.1, 0.05], [0.9, 0.3], [0.4, 0.97]])],
    "over the edges": [box(-0.2, 0.3, 0.15, 0.45), box(0.6, 0.7, 1.3, 1.2)],
    "far outside": [box(1.1, -1.9, 1.4, -1.5)],
    "clockwise, overlapping": [box(0.2, 0.2, 0.6, 0.6)[::-1], box(0.4, 0.3, 0.8, 0.9), box(0.4, 0.3, 0.8, 0.9)],
    "whole cell": [box(0, 0, 1, 1)],
    "more than the cell": [box(-0.5, -0.5, 2, 2)],
    "hole on a cut": [
        np.array(
            [
                *([0.125, 0.125], [0.875, 0.125], [0.875, 0.875], [0.125, 0.875], [0.125, 0.5], [0.3125, 0.5]),
                *([0.3125, 0.6875], [0.6875, 0.6875], [0.6875, 0.3125], [0.3125, 0.3125], [0.3125, 0.5], [0.125, 0.5]),
            ]
        )
    ],
    "without area": [np.array([[0.2, 0.2], [0.8, 0.5], [0.2, 0.2]])],
    "nothing": [],
}


@pytest.mark.parametrize("name", SHAPES)
def test_polygons_cover_pixels(name: str) -> None:
    density = polygon_density([2 * corners for corners in SHAPES[name]], 2.0, 8)
    wanted = sampled(SHAPES[name], 8)
    np.testing.assert_allclose(density, wanted, atol=0.09)  # of the samples
    assert density.mean() == pytest.approx(wanted.mean(), abs=6e-3)
    if name in ("pixels", "whole cell", "more than the cell", "nothing"):
        np.testing.assert_array_equal(density, wanted)


def test_a_triangle_has_its_area_and_place() -> None:
    corners = np.array([[0.1, 0.05], [0.9, 0.3], [0.4, 0.97]])
    (ax, ay), (bx, by) = corners[1] - corners[0], corners[2] - corners[0]
    for pixels in (7, 16, 128):
        density = polygon_density([corners], 1.0, pixels)
        assert density.mean() == pytest.approx((ax * by - ay * bx) / 2, rel=1e-12)
        rows = (pixels - np.arange(pixels) - 0.5) / pixels
        assert (density.sum(axis=1) * rows).sum() / density.sum() == pytest.approx(corners[:, 1].mean(), abs=1e-2)
