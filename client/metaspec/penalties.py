"""Penalties: differentiable functions of a density, instead of its spectra, that `Problem` subtracts from the objective.

    penalties = (FillFactor(0.3, 0.6), Asymmetry("x", weight=2.0))
    problem = optimise.Problem(surrogate, objective, parameterisation, penalties=penalties)
    penalties[0].score(density)                                         # numpy, torch or jax, differentiable

A quadratic penalty keeps a constraint approximately: a larger weight, more closely (J. Nocedal and S. J. Wright, Numerical
Optimization, 2nd ed., Springer (2006), section 17.1). Each is 0 where its constraint holds.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import array_namespace
from numpy.typing import ArrayLike

from metaspec._design.array_api import Array, namespace_of_floats
from metaspec._design.objective import Floats

__all__ = ["Asymmetry", "FillFactor", "Penalty"]


def __dir__() -> list[str]:
    return __all__


class Penalty(ABC):
    """A number of at least 0 for every density, smaller is better. A subclass defines `_score`, and `_cotangent` in numpy."""

    def score(self, density: Array) -> Array:
        """The penalty of densities, differentiable by the library of the array.

        Args:
            density: (..., y, x), numpy, torch or jax floats in [0, 1].

        Returns:
            (...), same dtype.

        Raises:
            ValueError: the densities are not floating-point, or do not fit the penalty.
        """
        namespace_of_floats("density", density)
        return self._score(density)

    def cotangent(self, density: ArrayLike) -> Floats:
        """The derivative of the penalty with respect to the density, in numpy: float64 (..., y, x).

        Arguments and errors are those of `score`.
        """
        return self._cotangent(np.asarray(density, np.float64))

    @abstractmethod
    def _score(self, density: Array) -> Array: ...

    @abstractmethod
    def _cotangent(self, density: Floats) -> Floats: ...


@dataclass(frozen=True)
class FillFactor(Penalty):
    """Share of solid below a minimum or above a maximum: weight * (max(0, minimum - f)^2 + max(0, f - maximum)^2).

    Args:
        minimum: smallest mean density f that is not penalised.
        maximum: largest mean density f that is not penalised.
        weight: penalty per square of the excess; by default, an excess of 0.05 costs 0.05.

    Raises:
        ValueError: not 0 <= minimum <= maximum <= 1, or the weight is not above 0 and finite.
    """

    minimum: float = 0.0
    maximum: float = 1.0
    weight: float = 20.0

    def __post_init__(self) -> None:
        if not 0 <= self.minimum <= self.maximum <= 1:
            raise ValueError(
                f"minimum and maximum must be shares, the smaller first, got {self.minimum} and {self.maximum}"
            )
        _check_weight(self.weight)

    def _score(self, density: Array) -> Array:
        xp = array_namespace(density)
        fill = xp.mean(density, axis=(-2, -1))
        excess = fill - xp.clip(fill, self.minimum, self.maximum)
        return self.weight * excess**2

    def _cotangent(self, density: Floats) -> Floats:
        fill = density.mean(axis=(-2, -1), keepdims=True)
        excess = fill - np.clip(fill, self.minimum, self.maximum)
        pixels = density.shape[-2] * density.shape[-1]
        return np.broadcast_to(2 * self.weight * excess / pixels, density.shape)


@dataclass(frozen=True)
class Asymmetry(Penalty):
    """Deviation from a symmetry: weight times the mean squared difference of the density and its image.

    It leaves a design the choice to break the symmetry where that pays. `Parameterisation(symmetry="diagonal")` imposes the
    diagonal one exactly.

    Args:
        symmetry: "diagonal" or "antidiagonal", mirror images that swap G1 and G2, or R and B; "x" or "y", mirror images along
            that axis; "rotation", by 180 degrees.
        weight: factor of the mean squared difference.

    Raises:
        ValueError: no such symmetry, or the weight is not above 0 and finite.
    """

    symmetry: str = "diagonal"
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.symmetry not in _IMAGES:
            raise ValueError(f"symmetry must be one of {', '.join(_IMAGES)}, got {self.symmetry!r}")
        _check_weight(self.weight)

    def _score(self, density: Array) -> Array:
        return self.weight * array_namespace(density).mean(self._difference(density) ** 2, axis=(-2, -1))

    def _cotangent(self, density: Floats) -> Floats:
        pixels = density.shape[-2] * density.shape[-1]
        result: Floats = 4 * self.weight / pixels * self._difference(density)  # each image is its own inverse
        return result

    def _difference(self, density: Array) -> Array:
        y, x = density.shape[-2:]
        if y != x and "diagonal" in self.symmetry:
            raise ValueError(f"the {self.symmetry} symmetry needs a square cell, got {y} x {x}")
        return density - _IMAGES[self.symmetry](array_namespace(density), density)


_IMAGES: dict[str, Callable[[Any, Array], Array]] = {
    "diagonal": lambda xp, density: xp.matrix_transpose(density),
    "antidiagonal": lambda xp, density: xp.flip(xp.matrix_transpose(density), axis=(-2, -1)),
    "x": lambda xp, density: xp.flip(density, axis=-1),
    "y": lambda xp, density: xp.flip(density, axis=-2),
    "rotation": lambda xp, density: xp.flip(density, axis=(-2, -1)),
}


def _check_weight(weight: float) -> None:
    if not 0 < weight < math.inf:
        raise ValueError(f"weight must be above 0 and finite, got {weight}")
