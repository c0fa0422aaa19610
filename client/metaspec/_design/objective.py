"""The base of all objectives: value, derivative, and sums of objectives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from array_api_compat import array_namespace
from numpy.typing import ArrayLike, NDArray

from metaspec._design.array_api import Array, constant_like, namespace_of_floats
from metaspec_contract.spectra import Spectra

Floats: TypeAlias = NDArray[np.float64]


class Objective(ABC):
    """A number for every structure, from its spectra. Objectives add, subtract and scale: `a + 0.5 * b`, `-a`, `a / 2`.

    A subclass defines `_score` with the array API, and `_cotangent`, its derivative in numpy.
    """

    def score(self, values: Array, wavelengths_nm: ArrayLike, channels: Sequence[str]) -> Array:
        """The objective of spectra, differentiable by the library of the array.

        Args:
            values: efficiencies (..., channels, wavelengths), numpy, torch or jax floats.
            wavelengths_nm: wavelengths in nm, ascending, not traced, (wavelengths,).
            channels: names of the channels.

        Returns:
            (...), with the dtype and on the device of `values`.

        Raises:
            ValueError: the shapes disagree, or a required channel or band is missing.
        """
        wavelength = check_spectra(values, wavelengths_nm, channels)
        return self._score(values, wavelength, tuple(channels))

    def cotangent(self, values: ArrayLike, wavelengths_nm: ArrayLike, channels: Sequence[str]) -> Floats:
        """The derivative of the objective with respect to the spectra, in numpy: float64 (..., channels, wavelengths).

        Arguments and errors are those of `score`.
        """
        array = np.asarray(values, np.float64)
        return self._cotangent(array, check_spectra(array, wavelengths_nm, channels), tuple(channels))

    @abstractmethod
    def _score(self, values: Array, wavelengths_nm: Floats, channels: tuple[str, ...]) -> Array: ...

    @abstractmethod
    def _cotangent(self, values: Floats, wavelengths_nm: Floats, channels: tuple[str, ...]) -> Floats: ...

    def __call__(self, spectra: Spectra) -> tuple[Floats, Floats]:
        """Values (N,) and their derivatives with respect to the spectra (N, channels, wavelengths), both float64.

        This makes an objective an argument of `Surrogate.predict_and_gradient`.
        """
        arguments = spectra.values.astype(np.float64), spectra.wavelengths_nm, spectra.channels
        return self.score(*arguments), self.cotangent(*arguments)

    __array_ufunc__ = None  # numpy scalars defer `number * objective` to the objective

    def __add__(self, other: Objective) -> Objective:
        return _Sum((*_terms(self), *_terms(other))) if isinstance(other, Objective) else NotImplemented

    def __radd__(self, other: int) -> Objective:
        return self if other == 0 else NotImplemented  # the start value of sum()

    def __sub__(self, other: Objective) -> Objective:
        return self + (-other) if isinstance(other, Objective) else NotImplemented

    def __neg__(self) -> Objective:
        return -1.0 * self

    def __mul__(self, factor: float | np.floating) -> Objective:
        if not isinstance(factor, int | float | np.floating):
            return NotImplemented
        return _Sum(tuple((float(factor) * weight, objective) for weight, objective in _terms(self)))

    __rmul__ = __mul__

    def __truediv__(self, divisor: float | np.floating) -> Objective:
        return self * (1 / float(divisor)) if isinstance(divisor, int | float | np.floating) else NotImplemented


@dataclass(frozen=True)
class _Sum(Objective):
    """A weighted sum of objectives, flattened: no term is itself a sum."""

    terms: tuple[tuple[float, Objective], ...]

    def _score(self, values: Array, wavelengths_nm: Floats, channels: tuple[str, ...]) -> Array:
        return sum(weight * objective._score(values, wavelengths_nm, channels) for weight, objective in self.terms)

    def _cotangent(self, values: Floats, wavelengths_nm: Floats, channels: tuple[str, ...]) -> Floats:
        total = np.zeros_like(values)
        for weight, objective in self.terms:
            total += weight * objective._cotangent(values, wavelengths_nm, channels)
        return total

    def __repr__(self) -> str:
        text = ""
        for weight, objective in self.terms:
            sign = ("-" if weight < 0 else "") if not text else " - " if weight < 0 else " + "
            text += sign + ("" if abs(weight) == 1 else f"{abs(weight):g} * ") + repr(objective)
        return text


def _terms(objective: Objective) -> tuple[tuple[float, Objective], ...]:
    return objective.terms if isinstance(objective, _Sum) else ((1.0, objective),)


class Linear(Objective):
    """A weighted sum over channels and wavelengths."""

    @abstractmethod
    def _weights(self, wavelengths_nm: Floats, channels: tuple[str, ...]) -> Floats:
        """(channels, wavelengths)."""

    def _score(self, values: Array, wavelengths_nm: Floats, channels: tuple[str, ...]) -> Array:
        return weighted_sum(values, self._weights(wavelengths_nm, channels))

    def _cotangent(self, values: Floats, wavelengths_nm: Floats, channels: tuple[str, ...]) -> Floats:
        return np.broadcast_to(self._weights(wavelengths_nm, channels), values.shape)


def check_spectra(values: Array, wavelengths_nm: ArrayLike, channels: Sequence[str]) -> Floats:
    """The wavelengths in nm as float64 (wavelengths,), if spectra fit them and the channels.

    Raises:
        ValueError: the spectra are not floating-point numbers of shape (..., channels, wavelengths).
    """
    namespace_of_floats("spectra", values)
    wavelength = np.asarray(wavelengths_nm, np.float64)
    expected = (len(channels), len(wavelength))
    if tuple(values.shape[-2:]) != expected:
        raise ValueError(
            f"spectra must be (..., {expected[0]} channels, {expected[1]} wavelengths), got {tuple(values.shape)}"
        )
    return wavelength


def weighted_sum(values: Array, weights: Floats) -> Array:
    """Sums over channels and wavelengths (...) of spectra (..., channels, wavelengths)."""
    return array_namespace(values).sum(values * constant_like(weights, values), axis=(-2, -1))
