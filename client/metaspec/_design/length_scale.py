"""Minimum feature size as a differentiable constraint on a filtered field, for the steps in which densities are still grey."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from metaspec._design.filters import tanh_projection, tanh_slope

Floats = NDArray[np.float64]


def length_scale_violation(smooth: Floats, beta: float, width: float, radius: float) -> tuple[Floats, Floats]:
    """How much a field thresholded at 1/2 breaks a minimum width of solid and void, and its derivative.

    The geometric constraints of M. Zhou, B. S. Lazarov, F. Wang and O. Sigmund, Comput. Methods Appl. Mech. Eng. 293, 266
    (2015): on the middle line of a solid feature, where the gradient of the field vanishes, the field must reach the
    threshold that erodes a feature of the width to nothing; in void the same with solid and void exchanged.

    Args:
        smooth: latents after the conic filter, float64 (..., y, x); periodic.
        beta: steepness of the projection, finite.
        width: minimum width in pixels.
        radius: radius of the conic filter in pixels.

    Returns:
        Mean over the pixels of the squared lack, (...), and its derivative with respect to the field, (..., y, x).
    """
    ratio = min(width / radius, 2.0)  # twice the radius is the largest width that the filter can impose
    reached = 0.5 + ratio**2 / 4 if ratio < 1 else ratio - ratio**2 / 4  # Qian and Sigmund (2013), for a conic filter
    dy, dx = _slope(smooth, -2), _slope(smooth, -1)
    flat = np.exp(-(radius**4) * (dy**2 + dx**2))
    density, density_slope = tanh_projection(smooth, beta), tanh_slope(smooth, beta, 0.5)
    solid, void = np.minimum(smooth - reached, 0), np.minimum(1 - reached - smooth, 0)
    lack = flat * (density * solid**2 + (1 - density) * void**2)
    derivative = flat * (density_slope * (solid**2 - void**2) + 2 * density * solid - 2 * (1 - density) * void)
    steep = -2 * radius**4 * lack
    derivative -= _slope(steep * dy, -2) + _slope(steep * dx, -1)  # central differences are anti-symmetric
    pixels = smooth.shape[-2] * smooth.shape[-1]
    return lack.sum(axis=(-2, -1)) / pixels, derivative / pixels


def _slope(field: Floats, axis: int) -> Floats:
    """Central difference per pixel along an axis, periodic."""
    return (np.roll(field, -1, axis) - np.roll(field, 1, axis)) / 2
