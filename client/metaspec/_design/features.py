"""Minimum feature sizes of binary structures: measurement, and repair of features that are too small."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metaspec._design.filters import PIXEL_NM, conic_filter
from metaspec._extras import missing_extra
from metaspec._structures import check_one_binary

_PERIODIC = (True, True)


def feature_size(structure: ArrayLike, pixel_nm: float = PIXEL_NM) -> tuple[float, float]:
    """Minimum widths of solid and void in a periodic structure: (solid_nm, void_nm).

    A width is the diameter of the largest disc that can paint all of the solid, or all of the void, as measured by the
    package imageruler: in whole pixels, ignoring single pixels at the edges of large features. M. Chen et al., J. Opt. Soc.
    Am. B 41, A161 (2024). Needs imageruler.

    Args:
        structure: binary structure (y, x).
        pixel_nm: width of a pixel in nm; default: that of the default process; pass
            `surrogate.metadata().process.pixel_nm` for another one.

    Raises:
        InvalidStructure: not one binary structure.
        ImportError: imageruler is not installed.
    """
    solid, void = import_imageruler().minimum_length_scale(check_one_binary(structure).astype(bool), periodic=_PERIODIC)
    return solid * pixel_nm, void * pixel_nm


def without_small_features(structure: ArrayLike, width_nm: float, pixel_nm: float = PIXEL_NM) -> NDArray[np.uint8]:
    """Repair a periodic structure where solid or void is narrower than a width, so that `feature_size` is at least that.

    Where imageruler finds a feature too small, the structure around it is smoothed and thresholded, which removes or widens
    it, repeatedly with growing radius until none is left. The rest of the structure and a diagonal symmetry are preserved.
    Needs imageruler.

    Args:
        structure: binary structure (y, x).
        width_nm: minimum width of solid and void in nm; rounded up to whole pixels.
        pixel_nm: width of a pixel in nm; default: that of the default process; pass
            `surrogate.metadata().process.pixel_nm` for another one.

    Returns:
        uint8 (y, x). With many features and a large width, it can end up entirely solid or void.

    Raises:
        InvalidStructure: not one binary structure.
        ValueError: the width is not above 0 and at most a quarter of the cell.
        ImportError: imageruler is not installed.
    """
    solid = check_one_binary(structure).astype(bool)
    check_width(width_nm, solid.shape, pixel_nm)
    width = int(np.ceil(width_nm / pixel_nm - 1e-9))
    for radius in np.arange(0.75 * width, min(solid.shape) / 2, 0.25):
        violations = narrow_features(solid, width) | narrow_features(~solid, width)
        if not violations.any():
            return solid.astype(np.uint8)
        around = conic_filter(violations.astype(np.float64), radius, 1.0) > 1e-9
        smooth = conic_filter(solid.astype(np.float64), radius, 1.0)
        # Values within rounding of the threshold are void, which keeps a diagonal symmetry.
        solid = np.where(around, smooth > 0.5 + 1e-9, solid)
    return np.full(solid.shape, solid.mean() > 0.5, np.uint8)


def check_width(width_nm: float, shape: tuple[int, ...], pixel_nm: float) -> None:
    """Raise ValueError unless a minimum width is above 0 and at most a quarter of a cell of (y, x) pixels."""
    widest = min(shape) * pixel_nm / 4
    if not 0 < width_nm <= widest:
        raise ValueError(f"width_nm must be above 0 and at most a quarter of the cell, {widest:g}, got {width_nm}")


def narrow_features(solid: NDArray[np.bool_], width: int) -> NDArray[np.bool_]:
    """Pixels of solid features narrower than `width` pixels: imageruler's `length_scale_violations_solid`, but faster.

    A pixel violates the width if no disc of that diameter that fits into the solid covers it, nor any of the nine next larger
    ones (pixelated discs are not nested). Single pixels at the edges of large features are ignored.
    """
    disc_of = import_imageruler().kernel_for_length_scale
    import cv2  # imageruler's own dependency

    violations = solid & ~_large_feature_edges(solid)
    for diameter in range(width, width + 10):
        if not violations.any():
            break
        disc = disc_of(diameter).astype(np.uint8)
        anchor, mirrored = (diameter // 2,) * 2, (diameter - 1 - diameter // 2,) * 2
        opened = cv2.dilate(cv2.erode(_wrapped(solid, 2 * diameter), disc, anchor=anchor), disc, anchor=mirrored)
        violations = violations & (_unwrapped(opened, 2 * diameter) == 0)
    return violations


def _large_feature_edges(solid: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels on straight edges and outer corners of features that have an interior, which imageruler ignores."""
    import cv2

    around = _wrapped(solid, 3)
    interior = cv2.erode(around, np.ones((3, 3), np.uint8))
    near = np.ones((5, 5), np.uint8)
    near[::4, ::4] = 0
    beside_interior = (cv2.dilate(interior, near) > 0) & (interior == 0)

    def void(dy: int, dx: int) -> Any:
        return np.roll(around, (-dy, -dx), axis=(0, 1)) == 0

    edge = np.zeros_like(around, bool)
    for dy, dx in ((-1, 0), (1, 0), (0, -1), (0, 1)):
        edge |= void(dy, dx) & void(dy + dx, dx + dy) & void(dy - dx, dx - dy)
    for dy, dx in ((-1, -1), (-1, 1), (1, -1), (1, 1)):
        edge |= void(dy, 0) & void(0, dx) & void(dy, dx)
    edges: NDArray[np.bool_] = solid & _unwrapped(edge & beside_interior, 3)
    return edges


def _wrapped(array: NDArray[np.bool_], margin: int) -> NDArray[np.uint8]:
    """A periodic array, uint8, with a margin on all sides."""
    return np.pad(array.astype(np.uint8), margin, mode="wrap")


def _unwrapped(array: NDArray[Any], margin: int) -> NDArray[Any]:
    return array[margin:-margin, margin:-margin]


def import_imageruler() -> ModuleType:
    """The package imageruler, imported only when needed.

    Raises:
        ImportError: it is not installed; the message names the extra.
    """
    try:
        import imageruler
    except ImportError as error:
        raise missing_extra("feature sizes need", "imageruler", "optimise") from error
    module: ModuleType = imageruler
    return module
