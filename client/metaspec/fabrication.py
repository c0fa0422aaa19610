"""Fabrication: what a lithography makes of a layout, and random corners of its process.

process = BlurAndBias(blur_nm=(10, 25), bias_nm=(-10, 10), corners=4, seed=0)
problem = optimise.Problem(surrogate, objective, parameterisation, fabrication=process)
fabricated(structure, Corner(blur_nm=20, bias_nm=5))                # numpy, torch or jax, differentiable
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metaspec._design.array_api import Array, constant_like, namespace_of_floats
from metaspec._design.filters import PIXEL_NM, tanh_projection, tanh_slope

__all__ = ["BlurAndBias", "Corner", "fabricate", "pull_back"]


def __dir__() -> list[str]:
    return __all__


_LARGEST_BIAS = 1.5  # of the blur: beyond it, a threshold near 0 or 1 fills or removes features wider than the blur


class Corner(NamedTuple):
    """One corner of a process.

    Attributes:
        blur_nm: standard deviation of the Gaussian blur in nm.
        bias_nm: shift of the edges in nm, positive where solid grows.
    """

    blur_nm: float
    bias_nm: float


@dataclass(frozen=True)
class BlurAndBias:
    """Gaussian blur and edge bias, at corners that are drawn at random in every step.

    A layout is blurred by a Gaussian (beam, diffusion, acid) and thresholded (resist), as in constant-threshold models of
    lithography (M. Jansen, B. S. Lazarov, M. Schevenels and O. Sigmund, Struct. Multidiscip. Optim. 48, 717 (2013)). A
    threshold of Phi(-bias / blur), with Phi the normal distribution, shifts a straight edge by exactly the bias; corners are
    rounded, and features narrower than about the blur vanish or merge. Binary structures stay on their pixels: curved and
    oblique edges move by the bias on average, a straight edge along the pixels by whole pixels only.

    The corners of a step are uniform over both ranges and stratified, a Latin hypercube (M. D. McKay, R. J. Beckman and W. J.
    Conover, Technometrics 21, 239 (1979)). They follow from the seed and the number of the step alone, so that a resumed run
    sees the same. Designs are ranked at one further draw, the same for all.

    Args:
        blur_nm: smallest and largest blur in nm, above 0.
        bias_nm: smallest and largest bias in nm, at most 1.5 times the smallest blur.
        corners: number of corners of each step.
        seed: seed of the random number generator.
        redraw: whether each step has its own corners; if not, all have those of the ranking, as line searches require.

    Raises:
        ValueError: a setting is out of range.
    """

    blur_nm: tuple[float, float] = (10.0, 25.0)
    bias_nm: tuple[float, float] = (-10.0, 10.0)
    corners: int = 4
    seed: int = 0
    redraw: bool = True

    def __post_init__(self) -> None:
        for name in ("blur_nm", "bias_nm"):
            pair = getattr(self, name)
            if len(pair) != 2 or not -math.inf < pair[0] <= pair[1] < math.inf:
                raise ValueError(f"{name} must be two lengths in nm, the smaller first, got {pair}")
            object.__setattr__(self, name, tuple(map(float, pair)))
        if self.corners < 1 or self.seed < 0:
            raise ValueError(f"corners must be at least 1 and seed at least 0, got {self.corners} and {self.seed}")
        for bias in self.bias_nm:
            _check(Corner(self.blur_nm[0], bias))

    def draw(self, step: int | None = None) -> tuple[Corner, ...]:
        """The corners of a step.

        Args:
            step: number of the step, from 0; None for the corners at which designs are ranked.
        """
        key = 0 if step is None or not self.redraw else step + 1
        rng = np.random.default_rng([key, self.seed])
        strata = np.stack([rng.permutation(self.corners), rng.permutation(self.corners)], axis=1)
        unit = (strata + rng.random((self.corners, 2))) / self.corners
        low, high = np.array([self.blur_nm, self.bias_nm]).T
        return tuple(Corner(*corner) for corner in (low + (high - low) * unit).tolist())


def fabricate(density: Array, corner: Corner, beta: float = math.inf, pixel_nm: float = PIXEL_NM) -> Array:
    """What a process makes of densities at one of its corners. Periodic.

    Args:
        density: (..., y, x), numpy, torch or jax floats in [0, 1].
        corner: blur and bias.
        beta: steepness of the threshold; infinite for binary structures. No steeper than makes an edge one pixel wide, so that
            it has a derivative.
        pixel_nm: width of a pixel in nm; default: that of the default process; pass
            `surrogate.metadata().process.pixel_nm` for another one.

    Returns:
        (..., y, x), same dtype, within [0, 1].

    Raises:
        ValueError: a blur or bias is out of range, or the density is not floating-point.
    """
    blurred = _blur(density, corner, pixel_nm)
    return tanh_projection(blurred, _steepness(beta, corner, pixel_nm), _threshold(corner))


def pull_back(
    density: ArrayLike, cotangent: ArrayLike, corner: Corner, beta: float, pixel_nm: float = PIXEL_NM
) -> NDArray[np.float64]:
    """The gradient of sum(cotangent * fabricate(density)) with respect to the density, in numpy, (..., y, x).

    Args:
        density: (..., y, x), floats in [0, 1].
        cotangent: (..., y, x).
        corner: blur and bias.
        beta: steepness of the threshold, finite.
        pixel_nm: width of a pixel in nm.

    Raises:
        ValueError: as for `fabricate`, or beta is infinite.
    """
    blurred = np.asarray(_blur(np.asarray(density, np.float64), corner, pixel_nm))
    slope = tanh_slope(blurred, _steepness(beta, corner, pixel_nm), _threshold(corner))
    gradient: NDArray[np.float64] = _blur(np.asarray(cotangent, np.float64) * slope, corner, pixel_nm)  # self-adjoint
    return gradient


def _check(corner: Corner) -> None:
    blur, bias = corner
    if not 0 < blur < math.inf:
        raise ValueError(f"blur_nm must be above 0 and finite, got {blur:g}")
    if not abs(bias) <= _LARGEST_BIAS * blur:
        raise ValueError(f"bias_nm must be at most {_LARGEST_BIAS} times the blur of {blur:g} nm, got {bias:g}")


def _threshold(corner: Corner) -> float:
    return math.erfc(corner.bias_nm / corner.blur_nm / math.sqrt(2)) / 2


def _steepness(beta: float, corner: Corner, pixel_nm: float) -> float:
    """Steepness of the threshold: that of the density, but an edge is at least one pixel wide; infinite if that is.

    The slope of a blurred edge is 1 / (blur sqrt(2 pi)), and that of the projection at its threshold is about beta / 2.
    """
    return beta if math.isinf(beta) else min(beta, 2 * math.sqrt(2 * math.pi) * corner.blur_nm / pixel_nm)


def _blur(density: Array, corner: Corner, pixel_nm: float) -> Array:
    xp = namespace_of_floats("density", density)
    _check(corner)
    y, x = density.shape[-2:]
    if corner.blur_nm > min(y, x) * pixel_nm / 8:  # its tails would meet across the cell
        raise ValueError(
            f"blur_nm must be at most an eighth of the cell's {min(y, x) * pixel_nm:g} nm, got {corner.blur_nm:g}"
        )
    blur = corner.blur_nm / pixel_nm
    rows, columns = (constant_like(_gaussian(n, blur), density) for n in (y, x))
    return xp.matmul(xp.matmul(rows, density), columns)


@lru_cache(maxsize=64)
def _gaussian(pixels: int, blur: float) -> NDArray[np.float64]:
    """Matrix of the blur along one axis, (pixels, pixels): integrals of the Gaussian over pixels.

    So the result is exactly that of pixels with sharp edges, at the pixels' centres. Rows sum to 1, and no entry is negative.
    """
    distance = np.arange(pixels)
    distance = np.minimum(distance, pixels - distance)
    edges = [math.erf((d - 0.5) / blur / math.sqrt(2)) for d in range(pixels // 2 + 2)]
    weight = np.diff(edges)[distance] / 2
    weight /= weight.sum()
    matrix: NDArray[np.float64] = weight[np.abs(np.subtract.outer(np.arange(pixels), np.arange(pixels)))]
    return matrix
