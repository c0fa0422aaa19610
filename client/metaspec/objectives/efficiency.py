"""Efficiencies: the share of the light of a band that reaches the detectors that it is meant for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from array_api_compat import array_namespace

from metaspec._design.array_api import Array
from metaspec._design.bands import band_mean, check_band
from metaspec._design.objective import Floats, Linear, Objective, weighted_sum
from metaspec_contract.detectors import COLOURS, channel_index, check_colour
from metaspec_contract.figures_of_merit import crosstalk_weights, efficiency_weights


@dataclass(frozen=True)
class _OfColour(Linear):
    """A figure of merit of one colour."""

    colour: str

    def __post_init__(self) -> None:
        check_colour(self.colour)


@dataclass(frozen=True)
class ColourEfficiency(_OfColour):
    """Efficiency of one colour: the mean over its band of the power in its detectors.

    Args:
        colour: "R", "G" (the sum of G1 and G2) or "B".
    """

    def _weights(self, wavelengths_nm: Floats, channels: tuple[str, ...]) -> Floats:
        return efficiency_weights(self.colour, wavelengths_nm, channels)


@dataclass(frozen=True)
class BandEfficiency(Linear):
    """Efficiency in any band and set of channels: the mean over the band of the sum of the channels' power.

    `ColourEfficiency("G")` is `BandEfficiency((500, 600), ("G1", "G2"))`. Light in a wrong detector, such as
    `BandEfficiency((400, 500), ("R",))`, is better when smaller: subtract it.

    Args:
        band_nm: edges of the band in nm; the lower one is included, the upper one excluded.
        channels: names of the channels whose power is added.

    Raises:
        ValueError: the edges are not finite and ascending, or a channel is not named exactly once.
    """

    band_nm: tuple[float, float]
    channels: Sequence[str]

    def __post_init__(self) -> None:
        names = self.channels
        if isinstance(names, str) or not names or len(set(names)) != len(names):
            raise ValueError(f'channels must be a tuple of different names, such as ("R",), got {names!r}')
        check_band(self.band_nm)
        object.__setattr__(self, "band_nm", tuple(map(float, self.band_nm)))
        object.__setattr__(self, "channels", tuple(names))

    def _weights(self, wavelengths_nm: Floats, channels: tuple[str, ...]) -> Floats:
        weights = np.zeros((len(channels), len(wavelengths_nm)))
        for name in self.channels:
            weights[channel_index(name, channels)] = band_mean(self.band_nm, wavelengths_nm)
        return weights


@dataclass(frozen=True)
class Crosstalk(_OfColour):
    """Crosstalk of one colour: the mean over the other two bands of the power in its detectors. Subtract it.

    Args:
        colour: "R", "G" (the sum of G1 and G2) or "B".
    """

    def _weights(self, wavelengths_nm: Floats, channels: tuple[str, ...]) -> Floats:
        return crosstalk_weights(self.colour, wavelengths_nm, channels)


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
