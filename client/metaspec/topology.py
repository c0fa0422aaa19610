"""Density-based topology optimisation: from latents to manufacturable structures.

    parameterisation = Parameterisation(radius_nm=120, symmetry="diagonal")
    density = parameterisation.density(latent, beta=8)                       # numpy, torch or jax, differentiable
    gradient = parameterisation.pull_back(latent, cotangent, beta=8)         # the same derivative, in numpy
    structure = parameterisation.binary(latent)
    latent = parameterisation.latent(structure)                              # a start from a given structure

A latent (..., y, x) in [0, 1] is smoothed by a conic filter, which sets the length scale, optionally symmetrised, and pushed
towards 0 and 1 by a tanh projection. All steps are periodic, like the cell.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metaspec._design.array_api import Array
from metaspec._design.features import feature_size, without_small_features
from metaspec._design.filters import (
    PIXEL_NM,
    RADIUS_NM,
    check_symmetry,
    conic_filter,
    symmetrise,
    tanh_projection,
    tanh_slope,
)
from metaspec._design.latents import latents_of
from metaspec._design.length_scale import length_scale_violation
from metaspec_contract.structures import PIXELS, check_binary

__all__ = [
    "PIXEL_NM",
    "RADIUS_NM",
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


def __dir__() -> list[str]:
    return __all__


@dataclass(frozen=True)
class Parameterisation:
    """From latents to densities: conic filter, symmetry, tanh projection; and to binary structures.

    Args:
        radius_nm: radius of the conic filter in nm; by default the one that suits features of 78 nm, five pixels.
        symmetry: None or "diagonal".
        pixel_nm: width of a pixel in nm; default: that of the default process; pass
            `surrogate.metadata().process.pixel_nm` for another one.
        min_feature_nm: minimum width of solid and void in the binary structures, in nm, see `without_small_features`; None
            for any. Needs imageruler.

    Raises:
        ValueError: a value is out of range.
    """

    radius_nm: float = RADIUS_NM
    symmetry: str | None = None
    pixel_nm: float = PIXEL_NM
    min_feature_nm: float | None = None

    def __post_init__(self) -> None:
        for name in ("radius_nm", "pixel_nm", "min_feature_nm"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be above 0 and finite, got {value}")
        check_symmetry(self.symmetry)

    def density(self, latent: Array, beta: float, eta: float = 0.5) -> Array:
        """Densities of latents.

        Args:
            latent: (..., y, x), numpy, torch or jax floats in [0, 1].
            beta: steepness of the projection; infinite for binary densities.
            eta: threshold of the projection; above 0.5 the structure is eroded, below dilated (see `robust_etas`).

        Returns:
            (..., y, x), same dtype, exactly within [0, 1].

        Raises:
            ValueError: beta or eta is out of range, or the latents do not fit the filter or the symmetry.
        """
        return tanh_projection(self._smooth(latent), beta, eta)

    def pull_back(
        self, latent: ArrayLike, cotangent: ArrayLike, beta: float, eta: float = 0.5
    ) -> NDArray[np.floating[Any]]:
        """The gradient of sum(cotangent * density(latent)) with respect to the latent, in numpy.

        Args:
            latent: (..., y, x), floats in [0, 1].
            cotangent: (..., y, x), such as the gradient of an objective with respect to the density.
            beta: steepness of the projection, finite.
            eta: threshold of the projection.

        Returns:
            (..., y, x).

        Raises:
            ValueError: as for `density`, or beta is infinite.
        """
        slope = tanh_slope(self._smooth(np.asarray(latent)), beta, eta)
        gradient: NDArray[np.floating[Any]] = self._smooth(np.asarray(cotangent) * slope)  # filters are self-adjoint
        return gradient

    def violation(self, latent: ArrayLike, beta: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """How much latents break the minimum feature size, and the derivative with respect to the latents, in numpy.

        See `metaspec._design.length_scale`. The width is half a pixel more than the minimum, because edges are pixelated.

        Args:
            latent: (..., y, x), floats in [0, 1].
            beta: steepness of the projection, finite.

        Returns:
            (...) and (..., y, x); zeros without a minimum feature size.

        Raises:
            ValueError: as for `pull_back`.
        """
        smooth = np.asarray(self._smooth(np.asarray(latent, np.float64)))
        if self.min_feature_nm is None:
            return np.zeros(smooth.shape[:-2]), np.zeros(smooth.shape)
        width, radius = self.min_feature_nm / self.pixel_nm + 0.5, self.radius_nm / self.pixel_nm
        value, derivative = length_scale_violation(smooth, beta, width, radius)
        return value, self._smooth(derivative)

    def binary(self, latent: ArrayLike, eta: float = 0.5) -> NDArray[np.uint8]:
        """Thresholded structures, uint8 (..., y, x); 1 is solid, 0 is void.

        Where the parameterisation has a minimum feature size, they are repaired: solid and void are at least that wide.

        Raises:
            ValueError: as for `density`, or the minimum feature size is more than a quarter of the cell.
            ImportError: imageruler, which the repair needs, is not installed.
        """
        structure: NDArray[np.uint8] = self.density(np.asarray(latent), math.inf, eta).astype(np.uint8)
        if self.min_feature_nm is not None:
            for index in np.ndindex(structure.shape[:-2]):
                structure[index] = without_small_features(structure[index], self.min_feature_nm, self.pixel_nm)
        return structure

    def latent(self, structure: ArrayLike) -> NDArray[np.float64]:
        """Latents that `binary` turns back into given structures, as far as the filter can represent them.

        Irregular detail that is much finer than the filter is lost: compare `binary(latent)` with the structures. Of
        structures that the filter itself can make, at most a few pixels in ten thousand differ.

        Args:
            structure: binary structures (..., y, x).

        Returns:
            (..., y, x), in [0, 1].

        Raises:
            InvalidStructure: not binary structures.
            ValueError: they do not fit the filter or the symmetry.
        """
        array = np.asarray(structure)
        binary = check_binary(array, (array.shape[-2], array.shape[-1])).reshape(array.shape)
        return latents_of(binary, lambda field: np.asarray(self._smooth(field)))

    def _smooth(self, latent: Array) -> Array:
        # Symmetry last: rounding in the filter could put a pixel and its image on opposite sides of the threshold.
        return symmetrise(conic_filter(latent, self.radius_nm, self.pixel_nm), self.symmetry)


def beta_schedule(steps: int, first: float = 4.0, last: float = 64.0, stages: int | None = None) -> NDArray[np.float64]:
    """Steepness of the projection in every step, (steps,): geometric from `first` to `last`.

    Args:
        steps: number of steps.
        first: steepness in the first step.
        last: steepness in the last step.
        stages: number of stages of equal length in which the steepness stays the same; by default, it grows in every step.

    Raises:
        ValueError: the number of steps is negative, that of stages not positive, or a steepness is not above 0 and finite.
    """
    for name, value in (("first", first), ("last", last)):
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be above 0 and finite, got {value}")
    if stages is None:
        return np.geomspace(first, last, steps)
    if stages < 1:
        raise ValueError(f"stages must be at least 1, got {stages}")
    return np.geomspace(first, last, stages)[np.arange(steps) * stages // max(steps, 1)]


def robust_etas(delta: float) -> tuple[float, float, float]:
    """Thresholds of the eroded, the nominal and the dilated structure: 0.5 + delta, 0.5, 0.5 - delta.

    An objective that is the worst of the three is robust against over- and under-etching, and prevents narrow solid and
    void: F. Wang, B. S. Lazarov and O. Sigmund, Struct. Multidiscip. Optim. 43, 767 (2011).

    Raises:
        ValueError: delta is not between 0 and 0.5.
    """
    if not 0 < delta < 0.5:
        raise ValueError(f"delta must lie between 0 and 0.5, got {delta}")
    return 0.5 + delta, 0.5, 0.5 - delta


def random_latents(
    count: int,
    seed: int | np.random.Generator = 0,
    shape: tuple[int, int] = (PIXELS, PIXELS),
    *,
    pixel_nm: float = PIXEL_NM,
    correlation_nm: tuple[float, float] = (80.0, 400.0),
) -> NDArray[np.float64]:
    """Smooth random starting points that lead to different designs: periodic Gaussian random fields, mapped to (0, 1).

    Each has its own correlation length, and its own mean level from 0.3 to 0.7. A larger count extends the same sequence.

    Args:
        count: number of latents.
        seed: seed of the random number generator, or a generator.
        shape: pixels (y, x) of a latent; `surrogate.metadata().pixels` for another device than the default one.
        pixel_nm: width of a pixel in nm; default: that of the default process; pass
            `surrogate.metadata().process.pixel_nm` for another one.
        correlation_nm: smallest and largest correlation length in nm; lengths are drawn log-uniformly between them.

    Returns:
        (count, y, x), strictly between 0 and 1.

    Raises:
        ValueError: the correlation lengths are not above 0 and ascending.
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
        low_pass[0, 0] = 0  # the mean level is drawn separately
        field = np.fft.ifft2(np.fft.fft2(rng.standard_normal(shape)) * low_pass).real
        latent[:] = 1 / (1 + np.exp(-field / field.std()) * (1 / level - 1))
    return latents
