"""Objectives: differentiable functions of spectra that an optimiser maximises.

    objective = MinEfficiency(softness=0.02) - 0.5 * Crosstalk("B")
    surrogate.predict_and_gradient(structures, objective)               # numpy: value, gradient, spectra
    objective.score(spectra, wavelengths_nm, channels)                  # numpy, torch or jax, differentiable

Efficiencies, `TargetSpectra` and `MinEfficiency` are better when larger; `Crosstalk`, `Spread` and `ColourMatrixError` are
better when smaller, so subtract them. Bands and detectors are those of `metaspec_contract.detectors`: blue 400-500, green
500-600, red 600-700 nm, lower edge included and upper edge excluded, and green is the sum of G1 and G2. Channels are found
by name; an objective ignores those that it does not use.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from array_api_compat import array_namespace
from numpy.typing import ArrayLike

from metaspec._design.array_api import Array, constant_like
from metaspec._design.objective import Floats, Linear, Objective, weighted_sum
from metaspec.colour import ColourMatrixError
from metaspec_contract.detectors import CHANNELS, COLOURS, SPREAD, channel_index, check_colour
from metaspec_contract.figures_of_merit import crosstalk_weights, efficiency_weights

__all__ = [
    "ColourEfficiency",
    "ColourMatrixError",
    "Crosstalk",
    "MinEfficiency",
    "Objective",
    "Spread",
    "TargetSpectra",
    "by_name",
]


@dataclass(frozen=True)
class ColourEfficiency(Linear):
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
class Crosstalk(Linear):
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
class Spread(Linear):
    """Mean over the wavelengths of the channel "spread", a model's estimate of its own uncertainty. Subtract it."""

    def _weights(self, wavelengths_nm: Floats, channels: tuple[str, ...]) -> Floats:
        if SPREAD not in channels:
            raise ValueError(f'the model has no channel "{SPREAD}", only {", ".join(channels)}: leave out Spread()')
        weights = np.zeros((len(channels), len(wavelengths_nm)))
        weights[channel_index(SPREAD, channels)] = 1 / weights.shape[1]
        return weights


@dataclass(frozen=True)
class MinEfficiency(Objective):
    """The smallest of the three colour efficiencies, or a smooth approximation that depends on all three.

    The hard minimum is invrs-gym's evaluation metric. The soft one is -s log(mean(exp(-efficiency / s))): exact where all
    three are equal, and at most s log 3 above the smallest.

    Args:
        softness: s, in units of efficiency; None for the hard minimum, where ties share the derivative.
    """

    softness: float | None = None

    def __post_init__(self) -> None:
        if self.softness is not None and not self.softness > 0:
            raise ValueError(f"softness must be above 0, or None for the hard minimum, got {self.softness}")

    def _score(self, values: Array, wavelengths_nm: Floats, channels: tuple[str, ...]) -> Array:
        xp = array_namespace(values)
        weights = [efficiency_weights(colour, wavelengths_nm, channels) for colour in COLOURS]
        efficiencies = xp.stack([weighted_sum(values, weight) for weight in weights], axis=-1)
        smallest = xp.min(efficiencies, axis=-1)
        if self.softness is None:
            return smallest
        above = efficiencies - xp.expand_dims(smallest, axis=-1)  # at least 0: no exponential overflows
        return smallest - self.softness * xp.log(xp.mean(xp.exp(-above / self.softness), axis=-1))

    def _cotangent(self, values: Floats, wavelengths_nm: Floats, channels: tuple[str, ...]) -> Floats:
        weights = np.stack([efficiency_weights(colour, wavelengths_nm, channels) for colour in COLOURS])
        efficiencies = np.stack([weighted_sum(values, weight) for weight in weights], axis=-1)
        above = efficiencies - efficiencies.min(axis=-1, keepdims=True)
        share = (above == 0).astype(float) if self.softness is None else np.exp(-above / self.softness)
        share /= share.sum(axis=-1, keepdims=True)
        return np.tensordot(share, weights, axes=1)


class TargetSpectra(Objective):
    """Closeness to given spectra: the negative mean squared error over channels and wavelengths.

    Args:
        target: efficiencies (len(channels), wavelengths), or (N, len(channels), wavelengths) with one target per structure.
        channels: channels of the target, in its order; others are ignored.
        weight: weights of the squared errors, at least 0, broadcast to the target.

    Raises:
        ValueError: target or weight has another shape or is not finite.
    """

    def __init__(self, target: ArrayLike, channels: Sequence[str] = CHANNELS, weight: ArrayLike = 1.0) -> None:
        self._target, self._channels = np.array(target, np.float64), tuple(channels)
        if self._target.ndim < 2 or self._target.shape[-2] != len(channels) or not np.isfinite(self._target).all():
            raise ValueError(
                f"target must be finite numbers, ({len(channels)}, wavelengths) or (N, {len(channels)}, wavelengths) for "
                f"channels {', '.join(channels)}, got shape {self._target.shape}"
            )
        weights = np.broadcast_to(np.asarray(weight, np.float64), self._target.shape)
        total = weights.sum(axis=(-2, -1), keepdims=True)
        if not (np.isfinite(weights).all() and (weights >= 0).all() and (total > 0).all()):
            raise ValueError("weight must be finite and at least 0, and above 0 somewhere")
        self._weights = weights / total

    def __repr__(self) -> str:
        digest = zlib.crc32(self._weights.tobytes(), zlib.crc32(self._target.tobytes()))  # distinguishes targets
        return f"TargetSpectra({'/'.join(self._channels)}, shape {self._target.shape}, crc32 {digest:08x})"

    def _score(self, values: Array, wavelengths_nm: Floats, channels: tuple[str, ...]) -> Array:
        xp = array_namespace(values)
        chosen = self._chosen(values.shape, channels)
        error = xp.stack([values[..., index, :] for index in chosen], axis=-2) - constant_like(self._target, values)
        return -xp.sum(constant_like(self._weights, values) * error**2, axis=(-2, -1))

    def _cotangent(self, values: Floats, wavelengths_nm: Floats, channels: tuple[str, ...]) -> Floats:
        chosen = self._chosen(values.shape, channels)
        result = np.zeros_like(values)
        result[..., chosen, :] = -2 * self._weights * (values[..., chosen, :] - self._target)
        return result

    def _chosen(self, shape: tuple[int, ...], channels: tuple[str, ...]) -> list[int]:
        """Positions of the target's channels in spectra, whose shape is checked."""
        *own, _, wavelengths = self._target.shape
        if wavelengths != shape[-1] or (own and own != list(shape[:-2])):
            raise ValueError(f"spectra {tuple(shape)} do not fit a target of shape {self._target.shape}")
        return [channel_index(name, channels) for name in self._channels]


def by_name(name: str) -> Objective:
    """An objective of the command line, by name.

    Args:
        name: "bayer", the soft minimum of the three colour efficiencies; "balanced", a sharper one; "min", the hard one;
            "red", "green", "blue", the efficiency of one colour; "colour-matrix", the negative `ColourMatrixError` under D65.

    Raises:
        ValueError: no such name.
    """
    known: dict[str, Objective] = {
        "bayer": MinEfficiency(softness=0.02),
        "balanced": MinEfficiency(softness=0.008),
        "min": MinEfficiency(),
        "red": ColourEfficiency("R"),
        "green": ColourEfficiency("G"),
        "blue": ColourEfficiency("B"),
        "colour-matrix": -ColourMatrixError("D65"),
    }
    if name not in known:
        raise ValueError(f"objective must be one of {', '.join(known)}, got {name!r}")
    return known[name]
