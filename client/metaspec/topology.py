"""Density-based topology optimisation: from latents to structures that can be made.

    parameterisation = Parameterisation(radius_nm=120, symmetry="diagonal")
    density = parameterisation.density(latent, beta=8)                       # numpy, torch or jax, differentiable
    gradient = parameterisation.pull_back(latent, cotangent, beta=8)         # the same derivative, in numpy
    structure = parameterisation.binary(latent)

A latent (..., y, x) in [0, 1] is smoothed by a conic filter, which sets the length scale, made symmetric if asked for, and
pushed towards 0 and 1 by a tanh projection. The cell is periodic, and so is all that happens here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metaspec._design.array_api import Array
from metaspec._design.features import feature_size, without_small_features
from metaspec._design.filters import PIXEL_NM, check_symmetry, conic_filter, symmetrise, tanh_projection, tanh_slope

__all__ = [
    "PIXEL_NM",
    "Parameterisation",
    "beta_schedule",
    "conic_filter",
    "feature_size",
    "random_latents",
    "robust_etas",
    "symmetrise",
    "tanh_projection",
    "without_small_features",
]


@dataclass(frozen=True)
class Parameterisation:
    """From latents to densities: conic filter, symmetry, tanh projection.

    Args:
        radius_nm: of the conic filter; about 1.5 times the smallest width that can be made, and `without_small_features` has
            little left to mend.
        symmetry: None or "diagonal".
        pixel_nm: width of a pixel.

    Raises:
        ValueError: a value out of range.
    """

    radius_nm: float = 120.0
    symmetry: str | None = None
    pixel_nm: float = PIXEL_NM

    def __post_init__(self) -> None:
        for name, value in (("radius_nm", self.radius_nm), ("pixel_nm", self.pixel_nm)):
            if not 0 < value < math.inf:
                raise ValueError(f"{name} must be above 0 and finite, got {value}")
        check_symmetry(self.symmetry)

    def density(self, latent: Array, beta: float, eta: float = 0.5) -> Array:
        """Densities of latents.

        Args:
            latent: (..., y, x), floats in [0, 1] of numpy, torch or jax.
            beta: steepness of the projection; infinite for binary densities.
            eta: its threshold: above 0.5 the structure is eroded, below it is dilated (see `robust_etas`).

        Returns:
            (..., y, x), of the same dtype, in [0, 1] and never outside.

        Raises:
            ValueError: beta or eta out of range, or latents that do not fit the filter or the symmetry.
        """
        return tanh_projection(self._smooth(latent), beta, eta)

    def pull_back(
        self, latent: ArrayLike, cotangent: ArrayLike, beta: float, eta: float = 0.5
    ) -> NDArray[np.floating[Any]]:
        """The gradient of sum(cotangent * density(latent)) by the latent (a vector-Jacobian product), in numpy.

        Args:
            latent: (..., y, x), floats in [0, 1].
            cotangent: (..., y, x), such as the gradient of an objective by the density.
            beta: steepness of the projection, finite.
            eta: its threshold.

        Returns:
            (..., y, x).

        Raises:
            ValueError: as for `density`, and for an infinite beta.
        """
        slope = tanh_slope(self._smooth(np.asarray(latent)), beta, eta)
        gradient: NDArray[np.floating[Any]] = self._smooth(np.asarray(cotangent) * slope)  # filters are self-adjoint
        return gradient

    def binary(self, latent: ArrayLike, eta: float = 0.5) -> NDArray[np.uint8]:
        """Structures of latents: uint8 (..., y, x), 1 is solid and 0 is void."""
        structure: NDArray[np.uint8] = self.density(np.asarray(latent), math.inf, eta).astype(np.uint8)
        return structure

    def _smooth(self, latent: Array) -> Array:
        # Symmetry comes last: rounding in the filter could put a pixel and its image on two sides of the threshold.
        return symmetrise(conic_filter(latent, self.radius_nm, self.pixel_nm), self.symmetry)


def beta_schedule(steps: int, first: float = 4.0, last: float = 64.0) -> NDArray[np.float64]:
    """Steepnesses of the projection for every step, (steps,): geometric from `first` to `last`.

    Raises:
        ValueError: a number of steps below 0, or a steepness that is not above 0 and finite.
    """
    for name, value in (("first", first), ("last", last)):
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be above 0 and finite, got {value}")
    return np.geomspace(first, last, steps)


def robust_etas(delta: float) -> tuple[float, float, float]:
    """Thresholds of the eroded, the nominal and the dilated structure: 0.5 + delta, 0.5, 0.5 - delta.

    An objective that is the worst of the three holds up when etching takes off too much or too little, and keeps solid and
    void from getting narrow: F. Wang, B. S. Lazarov and O. Sigmund, Struct. Multidiscip. Optim. 43, 767 (2011).

    Raises:
        ValueError: delta is not between 0 and 0.5.
    """
    if not 0 < delta < 0.5:
        raise ValueError(f"delta must lie between 0 and 0.5, got {delta}")
    return 0.5 + delta, 0.5, 0.5 - delta


def random_latents(
    count: int,
    seed: int | np.random.Generator = 0,
    shape: tuple[int, int] = (128, 128),
    *,
    pixel_nm: float = PIXEL_NM,
    correlation_nm: tuple[float, float] = (80.0, 400.0),
) -> NDArray[np.float64]:
    """Smooth random starts that lead to different designs: grey Gaussian random fields, periodic.

    Each has a correlation length and a level of its own, from 0.3 to 0.7; the first of many are those of few.

    Args:
        count: of latents.
        seed: a whole number, or a generator to draw from.
        shape: of a latent, (y, x) in pixels.
        pixel_nm: width of a pixel.
        correlation_nm: smallest and largest correlation length, between which lengths are drawn log-uniformly.

    Returns:
        (count, y, x), strictly between 0 and 1.

    Raises:
        ValueError: correlation lengths that are not above 0 and ascending.
    """
    shortest, longest = correlation_nm
    if not 0 < shortest <= longest < math.inf:
        raise ValueError(f"correlation_nm must be two lengths above 0, the smaller first, got {correlation_nm}")
    rng = np.random.default_rng(seed)
    ky, kx = (2 * np.pi * np.fft.fftfreq(pixels, pixel_nm) for pixels in shape)
    k_squared = ky[:, None] ** 2 + kx**2
    latents = np.empty((count, *shape))
    for latent in latents:
        correlation, level = np.exp(rng.uniform(*np.log(correlation_nm))), rng.uniform(0.3, 0.7)
        low_pass = np.exp(-k_squared * correlation**2 / 4)
        low_pass[0, 0] = 0  # the level is drawn, not left to the noise
        field = np.fft.ifft2(np.fft.fft2(rng.standard_normal(shape)) * low_pass).real
        latent[:] = 1 / (1 + np.exp(-field / field.std()) * (1 / level - 1))
    return latents
