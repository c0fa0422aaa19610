"""Widths of features in binary structures: measured, and mended where they are too small to be made."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metaspec._design.filters import PIXEL_NM, conic_filter

_PERIODIC = (True, True)


def feature_size(structure: ArrayLike, pixel_nm: float = PIXEL_NM) -> tuple[float, float]:
    """The smallest widths of solid and of void in a periodic structure: (solid_nm, void_nm).

    A width is the diameter of the largest disc that can paint all of the solid, or all of the void, as the package imageruler
    measures it: in whole pixels, single pixels at the edges of large features not counted. M. Chen et al., J. Opt. Soc. Am.
    B 41, A161 (2024). Needs imageruler.

    Args:
        structure: (y, x), 0 and 1.
        pixel_nm: width of a pixel.

    Raises:
        ValueError: not one binary structure.
        ImportError: imageruler is not installed.
    """
    solid, void = _imageruler().minimum_length_scale(_binary(structure), periodic=_PERIODIC)
    return solid * pixel_nm, void * pixel_nm


def without_small_features(structure: ArrayLike, width_nm: float, pixel_nm: float = PIXEL_NM) -> NDArray[np.uint8]:
    """Mend a periodic structure where solid or void is narrower than a width, so that `feature_size` is at least that.

    Where imageruler finds a feature too small, the pattern around it is smoothed and thresholded, which makes it go or grow,
    again and in growing circles until none is left. The rest of the structure stays as it is, and so does a diagonal
    symmetry. Needs imageruler.

    Args:
        structure: (y, x), 0 and 1.
        width_nm: that solid and void are to have at least; rounded up to whole pixels.
        pixel_nm: width of a pixel.

    Returns:
        uint8 (y, x). If features are many and the width is large, it can end up all solid or all void.

    Raises:
        ValueError: not one binary structure, or a width that is not above 0 and at most a quarter of the cell.
        RuntimeError: no such structure was found.
        ImportError: imageruler is not installed.
    """
    solid = _binary(structure)
    half = min(solid.shape) / 2
    if not 0 < width_nm <= half / 2 * pixel_nm:
        raise ValueError(
            f"width_nm must be above 0 and at most a quarter of the cell, {half / 2 * pixel_nm:g}, got {width_nm}"
        )
    width = int(np.ceil(width_nm / pixel_nm - 1e-9))
    violations_of = _imageruler().length_scale_violations_solid
    for radius in np.arange(0.75 * width, half, 0.25):
        violations = violations_of(solid, width, _PERIODIC) | violations_of(~solid, width, _PERIODIC)
        if not violations.any():
            return solid.astype(np.uint8)
        around = conic_filter(violations.astype(np.float64), radius, 1.0) > 1e-9
        smooth = conic_filter(solid.astype(np.float64), radius, 1.0)
        # What lies on the threshold but for rounding is void, on both sides of a diagonal.
        solid = np.where(around, smooth > 0.5 + 1e-9, solid)
    raise RuntimeError(f"no structure without features below {width_nm:g} nm was found")


def _binary(structure: ArrayLike) -> NDArray[np.bool_]:
    array = np.asarray(structure)
    if array.ndim != 2:
        raise ValueError(f"structure must be one structure (y, x), got shape {array.shape}")
    if not np.isin(array, (0, 1)).all():
        raise ValueError("structure must be binary, 1 for solid and 0 for void")
    return array.astype(bool)


def _imageruler() -> Any:
    try:
        import imageruler
    except ImportError as error:
        raise ImportError('feature sizes need imageruler: pip install "metaspec[optimise]"') from error
    return imageruler
