"""Objectives: what an optimiser maximises, as differentiable functions of spectra.

    objective = MinEfficiency(softness=0.02) - 0.5 * Crosstalk("B")
    surrogate.predict_and_gradient(structures, objective)               # numpy: value, gradient, spectra
    objective.score(spectra, wavelengths_nm, channels)                  # numpy, torch or jax, differentiable

Optimisers maximise. Efficiencies, `TargetSpectra` and `MinEfficiency` are better when larger; `Crosstalk`, `Spread` and
`ColourMatrixError` have the sign of what they name, so subtract them. Bands and detectors are those of `Spectra`: blue
400-500, green 500-600, red 600-700 nm, lower edge in and upper edge out, and green is the sum of G1 and G2. Channels are
found by name; those that an objective does not know do not count.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from array_api_compat import array_namespace, device
from numpy.typing import ArrayLike, NDArray

from metaspec._colours import COLOURS, channel_index, check_colour, crosstalk_weights, efficiency_weights
from metaspec._spectra import Spectra

Array: TypeAlias = Any
"""An array of numpy, torch or jax: of any library with the array API."""

Floats: TypeAlias = NDArray[np.float64]


class Objective(ABC):
    """A number for every structure, from its spectra. Objectives add, subtract and scale: `a + 0.5 * b`, `-a`, `a / 2`.

    A new kind defines `_score`, by the array API, and `_cotangent`, its derivative in numpy.
    """

    def score(self, values: Array, wavelengths_nm: ArrayLike, channels: Sequence[str]) -> Array:
        """The objective of spectra, differentiable by the array's own library.

        Args:
            values: efficiencies (..., channels, wavelengths), floats of numpy, torch or jax.
            wavelengths_nm: (wavelengths,) in nm, ascending; numbers, not traced.
            channels: names of the channels.

        Returns:
            (...), of the dtype and on the device of `values`.

        Raises:
            ValueError: the shapes do not fit, or a channel or a band that is needed is missing.
        """
        wavelength = np.asarray(wavelengths_nm, np.float64)
        _check_shape(values, wavelength, channels)
        return self._score(values, wavelength, tuple(channels))

    def cotangent(self, values: ArrayLike, wavelengths_nm: ArrayLike, channels: Sequence[str]) -> Floats:
        """The derivative of the objective by the spectra, in numpy: float64 (..., channels, wavelengths).

        Arguments and errors are those of `score`.
        """
        array, wavelength = np.asarray(values, np.float64), np.asarray(wavelengths_nm, np.float64)
        _check_shape(array, wavelength, channels)
        return self._cotangent(array, wavelength, tuple(channels))

    @abstractmethod
    def _score(self, values: Array, wavelengths_nm: Floats, channels: tuple[str, ...]) -> Array: ...

    @abstractmethod
    def _cotangent(self, values: Floats, wavelengths_nm: Floats, channels: tuple[str, ...]) -> Floats: ...

    def __call__(self, spectra: Spectra) -> tuple[Floats, Floats]:
        """Floats (N,) and their derivatives by the spectra (N, channels, wavelengths), both float64.

        This is what `Surrogate.predict_and_gradient` takes.
        """
        values = spectra.values.astype(np.float64)
        arguments = values, spectra.wavelengths_nm, spectra.channels
        return self.score(*arguments), self.cotangent(*arguments)

    def __add__(self, other: Objective) -> Objective:
        return _Sum((*_terms(self), *_terms(other))) if isinstance(other, Objective) else NotImplemented

    def __radd__(self, other: int) -> Objective:
        return self if other == 0 else NotImplemented  # what sum() starts from

    def __sub__(self, other: Objective) -> Objective:
        return self + (-other) if isinstance(other, Objective) else NotImplemented

    def __neg__(self) -> Objective:
        return -1.0 * self

    def __mul__(self, factor: float) -> Objective:
        if not isinstance(factor, int | float):
            return NotImplemented
        return _Sum(tuple((factor * weight, objective) for weight, objective in _terms(self)))

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> Objective:
        return self * (1 / divisor) if isinstance(divisor, int | float) else NotImplemented


@dataclass(frozen=True)
class _Sum(Objective):
    """A weighted sum of objectives, none of which is a sum."""

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


class _Linear(Objective):
    """A weighted sum over channels and wavelengths."""

    @abstractmethod
    def _weights(self, wavelengths_nm: Floats, channels: tuple[str, ...]) -> Floats:
        """(channels, wavelengths)."""

    def _score(self, values: Array, wavelengths_nm: Floats, channels: tuple[str, ...]) -> Array:
        return _weighted_sum(values, self._weights(wavelengths_nm, channels))

    def _cotangent(self, values: Floats, wavelengths_nm: Floats, channels: tuple[str, ...]) -> Floats:
        return np.broadcast_to(self._weights(wavelengths_nm, channels), values.shape)


@dataclass(frozen=True)
class ColourEfficiency(_Linear):
    """Efficiency of one colour: the mean over its band of the power in its detectors.

    Args:
        colour: "R", "G" (the sum of G1 and G2) or "B".
    """

    colour: str

    def __post_init__(self) -> None:
        check_colour(self.colour)

    def _weights(self, wavelengths_nm: Floats, channels: tuple[str, ...]) -> Floats:
        return efficiency_weights(self.colour, wavelengths_nm, channels)


@dataclass(frozen=True)
class Crosstalk(_Linear):
    """Crosstalk of one colour: the mean over the other two bands of the power in its detectors. Subtract it.

    Args:
        colour: "R", "G" (the sum of G1 and G2) or "B".
    """

    colour: str

    def __post_init__(self) -> None:
        check_colour(self.colour)

    def _weights(self, wavelengths_nm: Floats, channels: tuple[str, ...]) -> Floats:
        return crosstalk_weights(self.colour, wavelengths_nm, channels)


@dataclass(frozen=True)
class Spread(_Linear):
    """Mean over the wavelengths of the channel "spread", by which a model tells how unsure it is. Subtract it."""

    def _weights(self, wavelengths_nm: Floats, channels: tuple[str, ...]) -> Floats:
        if "spread" not in channels:
            raise ValueError(f'the model has no channel "spread", only {", ".join(channels)}: leave out Spread()')
        weights = np.zeros((len(channels), len(wavelengths_nm)))
        weights[channel_index("spread", channels)] = 1 / weights.shape[1]
        return weights


@dataclass(frozen=True)
class MinEfficiency(Objective):
    """The smallest of the three colour efficiencies, or a smooth bound of it that all three have a say in.

    The hard minimum is invrs-gym's evaluation metric. The soft one is -s log(mean(exp(-efficiency / s))): equal to the
    efficiencies where all three are equal, and never more than s log 3 above the smallest.

    Args:
        softness: s, an efficiency; None for the hard minimum, whose derivative ties share.
    """

    softness: float | None = None

    def __post_init__(self) -> None:
        if self.softness is not None and not self.softness > 0:
            raise ValueError(f"softness must be above 0, or None for the hard minimum, got {self.softness}")

    def _score(self, values: Array, wavelengths_nm: Floats, channels: tuple[str, ...]) -> Array:
        xp = array_namespace(values)
        efficiencies = xp.stack(
            [_weighted_sum(values, efficiency_weights(colour, wavelengths_nm, channels)) for colour in COLOURS], axis=-1
        )
        smallest = xp.min(efficiencies, axis=-1)
        if self.softness is None:
            return smallest
        above = efficiencies - xp.expand_dims(smallest, axis=-1)  # not below 0: no exponential overflows
        return smallest - self.softness * xp.log(xp.mean(xp.exp(-above / self.softness), axis=-1))

    def _cotangent(self, values: Floats, wavelengths_nm: Floats, channels: tuple[str, ...]) -> Floats:
        weights = np.stack([efficiency_weights(colour, wavelengths_nm, channels) for colour in COLOURS])
        efficiencies = np.sum(values[..., None, :, :] * weights, axis=(-2, -1))
        above = efficiencies - efficiencies.min(axis=-1, keepdims=True)
        share = (above == 0).astype(float) if self.softness is None else np.exp(-above / self.softness)
        share /= share.sum(axis=-1, keepdims=True)
        return np.tensordot(share, weights, axes=1)


@dataclass(frozen=True, eq=False)
class TargetSpectra(Objective):
    """Closeness to given spectra: the negative mean squared error.

    Args:
        target: efficiencies (len(channels), wavelengths), or (N, len(channels), wavelengths) for each structure its own.
        channels: that the target has, in its order.
        weight: of the squared errors, at least 0, broadcast to the target; where it is 0, anything goes.
    """

    target: ArrayLike
    channels: tuple[str, ...] = ("R", "G1", "G2", "B")
    weight: ArrayLike = field(default=1.0, repr=False)

    def __post_init__(self) -> None:
        target = np.asarray(self.target, np.float64)
        if target.ndim < 2 or target.shape[-2] != len(self.channels) or not np.isfinite(target).all():
            raise ValueError(
                f"target must be finite numbers ({len(self.channels)}, wavelengths) or (N, {len(self.channels)}, "
                f"wavelengths) for the channels {', '.join(self.channels)}, got shape {target.shape}"
            )
        weight = np.broadcast_to(np.asarray(self.weight, np.float64), target.shape)
        if not (weight >= 0).all() or not weight.any():
            raise ValueError("weight must be at least 0, and above 0 somewhere")
        object.__setattr__(self, "target", target)
        object.__setattr__(self, "weight", weight / weight.sum(axis=(-2, -1), keepdims=True))

    def __repr__(self) -> str:
        return f"TargetSpectra({'/'.join(self.channels)}, {np.shape(self.target)[-1]} wavelengths)"

    def _score(self, values: Array, wavelengths_nm: Floats, channels: tuple[str, ...]) -> Array:
        xp = array_namespace(values)
        chosen = self._chosen(values, wavelengths_nm, channels)
        error = xp.stack([values[..., index, :] for index in chosen], axis=-2) - constant_like(self.target, values)
        return -xp.sum(constant_like(self.weight, values) * error**2, axis=(-2, -1))

    def _cotangent(self, values: Floats, wavelengths_nm: Floats, channels: tuple[str, ...]) -> Floats:
        chosen = self._chosen(values, wavelengths_nm, channels)
        result = np.zeros_like(values)
        result[..., chosen, :] = -2 * np.asarray(self.weight) * (values[..., chosen, :] - np.asarray(self.target))
        return result

    def _chosen(self, values: Array, wavelengths_nm: Floats, channels: tuple[str, ...]) -> list[int]:
        target, count = np.shape(self.target), len(wavelengths_nm)
        if target[-1] != count or (len(target) > 2 and target[:-2] != tuple(values.shape[:-2])):
            raise ValueError(
                f"target must have the model's {count} wavelengths, and as many structures as the spectra "
                f"{tuple(values.shape)} if it is not one for all, got {target}"
            )
        return [channel_index(name, channels) for name in self.channels]


def _check_shape(values: Array, wavelengths_nm: Floats, channels: Sequence[str]) -> None:
    expected = (len(channels), len(wavelengths_nm))
    if tuple(values.shape[-2:]) != expected:
        raise ValueError(
            f"spectra must be (..., {expected[0]} channels, {expected[1]} wavelengths), got {tuple(values.shape)}"
        )


def constant_like(constant: ArrayLike, like: Array) -> Array:
    """A constant as an array of the library, dtype and device of another."""
    return array_namespace(like).asarray(np.asarray(constant), dtype=like.dtype, device=device(like))


def _weighted_sum(values: Array, weights: Floats) -> Array:
    return array_namespace(values).sum(values * constant_like(weights, values), axis=(-2, -1))


def by_name(name: str) -> Objective:
    """The objectives that the command line knows.

    Args:
        name: "bayer", a soft minimum of the three colour efficiencies; "min", the hard one; "red", "green", "blue", the
            efficiency of one colour; "colour-matrix", the negative `ColourMatrixError` under D65.

    Raises:
        ValueError: no such name.
    """
    from metaspec.colour import ColourMatrixError

    known: dict[str, Objective] = {
        "bayer": MinEfficiency(softness=0.02),
        "min": MinEfficiency(),
        "red": ColourEfficiency("R"),
        "green": ColourEfficiency("G"),
        "blue": ColourEfficiency("B"),
        "colour-matrix": -ColourMatrixError("D65"),
    }
    if name not in known:
        raise ValueError(f"objective must be one of {', '.join(known)}, got {name!r}")
    return known[name]
