"""Density-based topology optimisation: from a latent array to a structure that can be made.

    parameterisation = Parameterisation(radius_nm=80, symmetry="diagonal")
    density = parameterisation.density(latent, beta=8)          # numpy, torch or jax, differentiable
    gradient = parameterisation.pull_back(latent, cotangent, beta=8)
    structure = parameterisation.binary(latent)

A latent (..., 128, 128) in [0, 1] is smoothed by a conic filter, which sets the length scale, made symmetric if asked for,
and pushed towards 0 and 1 by a tanh projection. The cell is periodic, and so is all that is done here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
from array_api_compat import array_namespace, device, is_array_api_obj, is_jax_array, is_torch_array
from numpy.typing import ArrayLike, NDArray

Array: TypeAlias = Any
"""An array of numpy, torch or jax."""

PIXEL_NM = 15.625
"""Pixels of the default cell: 2 um / 128."""

SYMMETRIES = (None, "diagonal")


def conic_filter(density: Array, radius_nm: float, pixel_nm: float = PIXEL_NM) -> Array:
    """The mean of a density around every pixel, weighted by a cone: 1 at the pixel, 0 at the radius. Periodic.

    B. Bourdin, Int. J. Numer. Methods Eng. 50, 2143 (2001). Linear, its own adjoint, and exact: circular convolution by FFT.

    Args:
        density: (..., y, x), float32 or float64 of numpy, torch or jax.
        radius_nm: of the cone; at most half the cell. Below one pixel nothing is changed.
        pixel_nm: width of a pixel.

    Returns:
        (..., y, x), of the same dtype; within [0, 1], for density within [0, 1], but for rounding.

    Raises:
        ValueError: a radius out of range.
    """
    xp = array_namespace(density)
    y, x = density.shape[-2:]
    transfer = xp.asarray(_conic_transfer(y, x, radius_nm / pixel_nm), dtype=density.dtype, device=device(density))
    spectrum = xp.fft.rfftn(density, axes=(-2, -1)) * transfer
    return xp.astype(xp.fft.irfftn(spectrum, s=(y, x), axes=(-2, -1)), density.dtype)


@lru_cache(maxsize=16)
def _conic_transfer(y: int, x: int, radius: float) -> NDArray[np.float64]:
    """Fourier transform of the cone, real because the cone is even. Radius in pixels."""
    if not 0 < radius <= min(y, x) / 2:
        raise ValueError(f"radius must be above 0 and at most half the cell of {y} x {x} pixels, got {radius:g} pixels")
    rows, columns = (np.minimum(np.arange(n), n - np.arange(n)) for n in (y, x))
    cone = np.maximum(0, 1 - np.hypot(rows[:, None], columns) / radius)
    transfer: NDArray[np.float64] = np.fft.rfft2(cone / cone.sum()).real
    return transfer


def tanh_projection(density: Array, beta: float, eta: float = 0.5) -> Array:
    """Push densities towards 0 below `eta` and towards 1 above, the harder the larger `beta`.

    (tanh(beta eta) + tanh(beta (density - eta))) / (tanh(beta eta) + tanh(beta (1 - eta))): F. Wang, B. S. Lazarov and
    O. Sigmund, Struct. Multidiscip. Optim. 43, 767 (2011). It maps 0 to 0 and 1 to 1.

    Args:
        density: (...), in [0, 1].
        beta: steepness, above 0; infinite for the threshold, density > eta. It may be a traced number of jax.
        eta: threshold, in (0, 1).

    Returns:
        (...), of the same dtype, in [0, 1].

    Raises:
        ValueError: beta or eta out of range.
    """
    if not is_array_api_obj(beta) and not beta > 0:
        raise ValueError(f"beta must be above 0, got {beta}")
    if not is_array_api_obj(eta) and not 0 < eta < 1:
        raise ValueError(f"eta must lie between 0 and 1, got {eta}")
    xp = array_namespace(density)
    if not is_array_api_obj(beta) and math.isinf(beta):
        return xp.astype(density > eta, density.dtype)
    low, high = _tanh(beta * eta), _tanh(beta * (1 - eta))
    return _within_0_and_1((low + xp.tanh(beta * (density - eta))) / (low + high))


def _tanh(number: Any) -> Any:
    return array_namespace(number).tanh(number) if is_array_api_obj(number) else math.tanh(number)


def _within_0_and_1(density: Array) -> Array:
    """Clip what rounding put outside [0, 1]; the derivative stays that of what was clipped."""
    xp = array_namespace(density)
    excess = xp.clip(density, 0, 1) - density
    if is_torch_array(excess):
        excess = excess.detach()
    elif is_jax_array(excess):
        from jax.lax import stop_gradient

        excess = stop_gradient(excess)
    return density + excess


def symmetrise(density: Array, symmetry: str | None) -> Array:
    """The part of a density that has a symmetry.

    Args:
        density: (..., y, x).
        symmetry: None; or "diagonal", the mean with the transpose. With [[R, G1], [G2, B]] it makes the spectra of G1
            and G2 equal.

    Raises:
        ValueError: no such symmetry, or the cell is not square.
    """
    _check_symmetry(symmetry)
    if symmetry is None:
        return density
    if density.shape[-1] != density.shape[-2]:
        raise ValueError(
            f"a diagonal symmetry needs a square cell, got {density.shape[-2]} x {density.shape[-1]} pixels"
        )
    return (density + array_namespace(density).matrix_transpose(density)) / 2


def _check_symmetry(symmetry: str | None) -> None:
    if symmetry not in SYMMETRIES:
        raise ValueError(f'symmetry must be None or "diagonal", got {symmetry!r}')


def beta_schedule(steps: int, first: float = 4.0, last: float = 64.0) -> NDArray[np.float64]:
    """Steepnesses of the projection, (steps,): geometric from `first` to `last`."""
    return np.geomspace(first, last, steps)


def robust_etas(delta: float) -> tuple[float, float, float]:
    """Thresholds of the eroded, the nominal and the dilated structure: 0.5 + delta, 0.5, 0.5 - delta."""
    if not 0 < delta < 0.5:
        raise ValueError(f"delta must lie between 0 and 0.5, got {delta}")
    return 0.5 + delta, 0.5, 0.5 - delta


@dataclass(frozen=True)
class Parameterisation:
    """From latents to densities: conic filter, symmetry, tanh projection.

    Args:
        radius_nm: of the conic filter.
        symmetry: None or "diagonal".
        pixel_nm: width of a pixel.

    Raises:
        ValueError: a value out of range.
    """

    radius_nm: float = 80.0
    symmetry: str | None = None
    pixel_nm: float = PIXEL_NM

    def __post_init__(self) -> None:
        for name, value in (("radius_nm", self.radius_nm), ("pixel_nm", self.pixel_nm)):
            if not 0 < value < math.inf:
                raise ValueError(f"{name} must be above 0 nm, got {value}")
        _check_symmetry(self.symmetry)

    def density(self, latent: Array, beta: float, eta: float = 0.5) -> Array:
        """The density of latents.

        Args:
            latent: (..., y, x), in [0, 1].
            beta: steepness of the projection; infinite for binary densities.
            eta: its threshold; above 0.5 the structure is eroded, below it is dilated.

        Returns:
            (..., y, x), in [0, 1].
        """
        return tanh_projection(self._smooth(latent), beta, eta)

    def pull_back(
        self, latent: ArrayLike, cotangent: ArrayLike, beta: float, eta: float = 0.5
    ) -> NDArray[np.floating[Any]]:
        """The gradient of sum(cotangent * density(latent)) by the latent, in numpy, (..., y, x).

        Raises:
            ValueError: beta is infinite: a threshold has no derivative.
        """
        if math.isinf(beta):
            raise ValueError("beta must be finite: a threshold has no derivative")
        smooth = self._smooth(np.asarray(latent))
        slope = beta / np.cosh(beta * (smooth - eta)) ** 2 / (math.tanh(beta * eta) + math.tanh(beta * (1 - eta)))
        gradient: NDArray[np.floating[Any]] = self._smooth(np.asarray(cotangent) * slope)  # which is its own adjoint
        return gradient

    def binary(self, latent: ArrayLike) -> NDArray[np.uint8]:
        """The structure of latents, thresholded at 0.5: uint8 (..., y, x), 1 is solid and 0 is void."""
        structure: NDArray[np.uint8] = self.density(np.asarray(latent), math.inf).astype(np.uint8)
        return structure

    def _smooth(self, latent: Array) -> Array:
        # Symmetry comes last: rounding in the filter would leave pairs of pixels on two sides of the threshold.
        return symmetrise(conic_filter(latent, self.radius_nm, self.pixel_nm), self.symmetry)


def feature_size(structure: ArrayLike, pixel_nm: float = PIXEL_NM) -> tuple[float, float]:
    """Smallest width of solid features, and of the void between them, in a periodic structure, in nm.

    Measured by imageruler: the largest disc that can paint all solid, and all void. Needs imageruler.

    Args:
        structure: (y, x), binary.
        pixel_nm: width of a pixel.

    Raises:
        ValueError: not one binary structure.
        ImportError: imageruler is not installed.
    """
    array = np.asarray(structure)
    if array.ndim != 2 or not np.isin(array, (0, 1)).all():
        raise ValueError(f"structure must be one binary structure (y, x), got shape {array.shape}")
    try:
        from imageruler import minimum_length_scale
    except ImportError as error:
        raise ImportError('this needs imageruler: pip install "metaspec[optimise]"') from error
    solid, void = minimum_length_scale(array.astype(bool), periodic=(True, True))
    return solid * pixel_nm, void * pixel_nm
