"""The steps from a latent to a density: filter, symmetry, projection. For numpy, torch and jax."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
from array_api_compat import array_namespace
from numpy.typing import NDArray

from metaspec._design.array_api import Array, constant_like, detached, namespace_of_floats
from metaspec_contract.process import Process

PIXEL_NM = Process().pixel_nm
"""Width of a pixel of the default process in nm."""

RADIUS_NM = 80.0
"""Default radius of the conic filter in nm: designs with features of 78 nm, five pixels, end best with it."""


def conic_filter(density: Array, radius_nm: float, pixel_nm: float = PIXEL_NM) -> Array:
    """The mean of a density around every pixel, weighted by a cone: 1 at the pixel, 0 at the radius. Periodic.

    B. Bourdin, Int. J. Numer. Methods Eng. 50, 2143 (2001). It is linear, self-adjoint, and an exact circular convolution by
    FFT.

    Args:
        density: (..., y, x), numpy, torch or jax floats.
        radius_nm: radius of the cone in nm, at most half the cell; no effect up to one pixel.
        pixel_nm: width of a pixel in nm; default: that of the default process; pass
            `surrogate.metadata().process.pixel_nm` for another one.

    Returns:
        (..., y, x), same dtype; within [0, 1] up to rounding if the density is.

    Raises:
        ValueError: the radius is out of range, or the density is not floating-point.
    """
    xp = namespace_of_floats("density", density)
    y, x = density.shape[-2:]
    if not 0 < radius_nm <= min(y, x) * pixel_nm / 2:
        raise ValueError(
            f"radius_nm must be above 0 and at most half of the cell's {min(y, x) * pixel_nm:g} nm, got {radius_nm}"
        )
    half = xp.finfo(density.dtype).bits < 32  # for which there is no FFT
    wide = xp.astype(density, xp.float32) if half else density
    transfer = constant_like(_conic_transfer(y, x, radius_nm / pixel_nm), wide)
    spectrum = xp.fft.rfftn(wide, axes=(-2, -1)) * transfer
    return xp.astype(xp.fft.irfftn(spectrum, s=(y, x), axes=(-2, -1)), density.dtype)


@lru_cache(maxsize=64)
def _conic_transfer(y: int, x: int, radius: float) -> NDArray[np.float64]:
    """Fourier transform (y, x // 2 + 1) of a cone with a radius in pixels; real, because the cone is even."""
    rows, columns = (np.minimum(np.arange(n), n - np.arange(n)) for n in (y, x))
    cone = np.maximum(0, 1 - np.hypot(rows[:, None], columns) / radius)
    transfer: NDArray[np.float64] = np.fft.rfft2(cone / cone.sum()).real
    return transfer


def symmetrise(density: Array, symmetry: str | None) -> Array:
    """The symmetric part of a density: a self-adjoint projection.

    Args:
        density: (..., y, x).
        symmetry: None; or "diagonal", the mean with the transpose, which makes the spectra of G1 and G2 equal.

    Raises:
        ValueError: no such symmetry, or the cell is not square.
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
    """Push densities below `eta` towards 0 and above it towards 1, more steeply for larger `beta`.

    (tanh(beta eta) + tanh(beta (density - eta))) / (tanh(beta eta) + tanh(beta (1 - eta))), which maps 0 and 1 to
    themselves: F. Wang, B. S. Lazarov and O. Sigmund, Struct. Multidiscip. Optim. 43, 767 (2011).

    Args:
        density: (...), numpy, torch or jax floats in [0, 1].
        beta: steepness, above 0; infinite for the threshold, density > eta. May be traced by jax.
        eta: threshold, between 0 and 1. May be traced by jax.

    Returns:
        (...), same dtype, exactly within [0, 1].

    Raises:
        ValueError: beta or eta is out of range, or the density is not floating-point.
    """
    xp = namespace_of_floats("density", density)
    check_projection(beta, eta)
    if _is_number(beta) and math.isinf(beta):
        return xp.astype(density > eta, density.dtype)
    low, high = _tanh(beta * eta), _tanh(beta * (1 - eta))
    projected = (low + xp.tanh(beta * (density - eta))) / (low + high)
    # Rounding may leave [0, 1]: clip the value, but not the derivative.
    return projected + detached(xp.clip(projected, 0, 1) - projected)


def tanh_slope(density: NDArray[Any], beta: float, eta: float) -> NDArray[Any]:
    """The derivative of `tanh_projection` with respect to the density, in numpy.

    Raises:
        ValueError: beta or eta is out of range, or beta is infinite.
    """
    check_projection(beta, eta)
    if math.isinf(beta):
        raise ValueError("beta must be finite for a derivative: a threshold has none")
    span = math.tanh(beta * eta) + math.tanh(beta * (1 - eta))
    slope: NDArray[Any] = float(beta) / span * (1 - np.tanh(float(beta) * (density - eta)) ** 2)
    return slope


def check_projection(beta: float, eta: float) -> None:
    """Raise ValueError for numbers out of range; traced values cannot be checked."""
    if _is_number(beta) and not beta > 0:
        raise ValueError(f"beta must be above 0, got {beta}")
    if _is_number(eta) and not 0 < eta < 1:
        raise ValueError(f"eta must lie between 0 and 1, got {eta}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number)


def _tanh(value: Any) -> Any:
    return math.tanh(value) if _is_number(value) else array_namespace(value).tanh(value)
