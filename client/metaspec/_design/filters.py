"""The steps from a latent to a density: filter, symmetry, projection. For numpy, torch and jax alike."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
from array_api_compat import array_namespace
from numpy.typing import NDArray

from metaspec._design.array_api import Array, constant_like, detached, namespace_of_floats

PIXEL_NM = 15.625
"""Width of a pixel of the default cell: 2 um / 128."""


def conic_filter(density: Array, radius_nm: float, pixel_nm: float = PIXEL_NM) -> Array:
    """The mean of a density around every pixel, weighted by a cone: 1 at the pixel, 0 at the radius. Periodic.

    B. Bourdin, Int. J. Numer. Methods Eng. 50, 2143 (2001). It is linear, its own adjoint, and a circular convolution, done by
    FFT without an approximation.

    Args:
        density: (..., y, x), floats of numpy, torch or jax.
        radius_nm: of the cone; at most half the cell. Up to one pixel it changes nothing.
        pixel_nm: width of a pixel.

    Returns:
        (..., y, x), of the same dtype; within [0, 1], for a density within [0, 1], but for rounding.

    Raises:
        ValueError: a radius out of range, or a density that is not of floats.
    """
    xp = namespace_of_floats("density", density)
    y, x = density.shape[-2:]
    if not 0 < radius_nm <= min(y, x) * pixel_nm / 2:
        raise ValueError(
            f"radius_nm must be above 0 and at most half of the cell's {min(y, x) * pixel_nm:g} nm, got {radius_nm}"
        )
    transfer = constant_like(_conic_transfer(y, x, radius_nm / pixel_nm), density)
    spectrum = xp.fft.rfftn(density, axes=(-2, -1)) * transfer
    return xp.astype(xp.fft.irfftn(spectrum, s=(y, x), axes=(-2, -1)), density.dtype)


@lru_cache(maxsize=64)
def _conic_transfer(y: int, x: int, radius: float) -> NDArray[np.float64]:
    """Fourier transform (y, x // 2 + 1) of a cone of a radius in pixels: real, because the cone is even."""
    rows, columns = (np.minimum(np.arange(n), n - np.arange(n)) for n in (y, x))
    cone = np.maximum(0, 1 - np.hypot(rows[:, None], columns) / radius)
    transfer: NDArray[np.float64] = np.fft.rfft2(cone / cone.sum()).real
    return transfer


def symmetrise(density: Array, symmetry: str | None) -> Array:
    """The part of a density that has a symmetry: a projection, and its own adjoint.

    Args:
        density: (..., y, x).
        symmetry: None; or "diagonal", the mean with the transpose. With quadrants [[R, G1], [G2, B]] that makes the spectra
            of G1 and G2 equal.

    Raises:
        ValueError: no such symmetry, or a cell that is not square.
    """
    check_symmetry(symmetry)
    if symmetry is None:
        return density
    if density.shape[-1] != density.shape[-2]:
        raise ValueError(f"the diagonal symmetry needs a square cell, got {density.shape[-2]} x {density.shape[-1]}")
    return (density + array_namespace(density).matrix_transpose(density)) / 2


def check_symmetry(symmetry: str | None) -> None:
    """Raise ValueError unless `symmetry` is None or "diagonal"."""
    if symmetry not in (None, "diagonal"):
        raise ValueError(f'symmetry must be None or "diagonal", got {symmetry!r}')


def tanh_projection(density: Array, beta: float, eta: float = 0.5) -> Array:
    """Push densities below `eta` towards 0 and above it towards 1, the harder the larger `beta`.

    (tanh(beta eta) + tanh(beta (density - eta))) / (tanh(beta eta) + tanh(beta (1 - eta))), which leaves 0 and 1 where they
    are: F. Wang, B. S. Lazarov and O. Sigmund, Struct. Multidiscip. Optim. 43, 767 (2011).

    Args:
        density: (...), floats in [0, 1] of numpy, torch or jax.
        beta: steepness, above 0; infinite for the threshold, density > eta. It may be a number that jax traces.
        eta: threshold, between 0 and 1; likewise.

    Returns:
        (...), of the same dtype, in [0, 1] and never outside.

    Raises:
        ValueError: beta or eta out of range, or a density that is not of floats.
    """
    xp = namespace_of_floats("density", density)
    check_projection(beta, eta)
    if _is_number(beta) and math.isinf(beta):
        return xp.astype(density > eta, density.dtype)
    low, high = _tanh(beta * eta), _tanh(beta * (1 - eta))
    projected = (low + xp.tanh(beta * (density - eta))) / (low + high)
    # Rounding may lead out of [0, 1]: it is undone, and is none of the derivative's business.
    return projected + detached(xp.clip(projected, 0, 1) - projected)


def tanh_slope(density: NDArray[Any], beta: float, eta: float) -> NDArray[Any]:
    """The derivative of `tanh_projection` by the density, in numpy.

    Raises:
        ValueError: beta or eta out of range, or an infinite beta.
    """
    check_projection(beta, eta)
    if math.isinf(beta):
        raise ValueError("beta must be finite where a derivative is wanted: a threshold has none")
    span = math.tanh(beta * eta) + math.tanh(beta * (1 - eta))
    slope: NDArray[Any] = float(beta) / span * (1 - np.tanh(float(beta) * (density - eta)) ** 2)
    return slope


def check_projection(beta: float, eta: float) -> None:
    """Raise ValueError for numbers out of range; what is traced cannot be checked."""
    if _is_number(beta) and not beta > 0:
        raise ValueError(f"beta must be above 0, got {beta}")
    if _is_number(eta) and not 0 < eta < 1:
        raise ValueError(f"eta must lie between 0 and 1, got {eta}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number)


def _tanh(value: Any) -> Any:
    return math.tanh(value) if _is_number(value) else array_namespace(value).tanh(value)
