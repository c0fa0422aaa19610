"""Minimum feature sizes of binary structures: measurement, and repair of features that are too small."""

from __future__ import annotations

from types import ModuleType

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
        RuntimeError: no such structure was found.
        ImportError: imageruler is not installed.
    """
    solid = check_one_binary(structure).astype(bool)
    half = min(solid.shape) / 2
    if not 0 < width_nm <= half / 2 * pixel_nm:
        raise ValueError(
            f"width_nm must be above 0 and at most a quarter of the cell, {half / 2 * pixel_nm:g}, got {width_nm}"
        )
    width = int(np.ceil(width_nm / pixel_nm - 1e-9))
    violations_of = import_imageruler().length_scale_violations_solid
    for radius in np.arange(0.75 * width, half, 0.25):
        violations = violations_of(solid, width, _PERIODIC) | violations_of(~solid, width, _PERIODIC)
        if not violations.any():
            return solid.astype(np.uint8)
        around = conic_filter(violations.astype(np.float64), radius, 1.0) > 1e-9
        smooth = conic_filter(solid.astype(np.float64), radius, 1.0)
        # Values within rounding of the threshold are void, which keeps a diagonal symmetry.
        solid = np.where(around, smooth > 0.5 + 1e-9, solid)
    raise RuntimeError(f"no structure without features below {width_nm:g} nm was found")


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
