"""Crosstalk between detectors: where the light of each band goes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from array_api_compat import array_namespace
from numpy.typing import ArrayLike

from metaspec._design.array_api import Array, constant_like
from metaspec._design.objective import Floats, Objective, check_spectra
from metaspec_contract.detectors import CHANNELS, COLOURS, DETECTORS, channel_index
from metaspec_contract.figures_of_merit import efficiency_weights

_FOREIGN = tuple(
    tuple(float(detector not in DETECTORS[colour]) / len(COLOURS) for colour in COLOURS) for detector in CHANNELS
)
"""Weights of the default: entries of the detectors of other colours, averaged over the bands."""


def crosstalk_matrix(
    values: Array, wavelengths_nm: ArrayLike, channels: Sequence[str], *, normalise: bool = True
) -> Array:
    """The crosstalk matrix of spectra: rows are the detectors R, G1, G2, B, columns the bands of red, green and blue.

    An entry is the mean over a band of the power in a detector, or its share of the light of that band that all four
    detectors collect: then each column sums to 1, and an ideal router has 1 for R in red and B in blue, and 1 for the sum of
    G1 and G2 in green.

    Args:
        values: efficiencies (..., channels, wavelengths), numpy, torch or jax floats.
        wavelengths_nm: wavelengths in nm, ascending, not traced, (wavelengths,).
        channels: names of the channels.
        normalise: whether entries are shares of the collected light; otherwise, of the incident light.

    Returns:
        (..., 4, 3), with the dtype and on the device of `values`; zeros for a band of which no light is collected.

    Raises:
        ValueError: the shapes disagree, or a detector or band is missing.
    """
    wavelength = check_spectra(values, wavelengths_nm, channels)
    xp = array_namespace(values)
    power = _power(values, wavelength, tuple(channels))
    return power / _collected(xp.sum(power, axis=-2, keepdims=True)) if normalise else power


@dataclass(frozen=True)
class DetectorCrosstalk(Objective):
    """A weighted sum of the entries of the normalised `crosstalk_matrix`. Subtract it.

    By default, it is the mean over the three bands of the share of the collected light that is in detectors of other colours,
    from 0 for an ideal router to 1; the empty cell, which sends a quarter of the light to each detector, has 2/3. Unlike
    `Crosstalk`, it does not depend on how much light is collected.

    Args:
        weights: weights of the entries, a row for each of R, G1, G2, B and a column for each of red, green, blue.

    Raises:
        ValueError: weights are not 4 x 3 finite numbers.
    """

    weights: tuple[tuple[float, ...], ...] = _FOREIGN

    def __post_init__(self) -> None:
        weights = np.asarray(self.weights, np.float64)
        if weights.shape != (len(CHANNELS), len(COLOURS)) or not np.isfinite(weights).all():
            raise ValueError(f"weights must be 4 x 3 finite numbers, detectors by bands, got {self.weights}")
        object.__setattr__(self, "weights", tuple(map(tuple, weights.tolist())))

    def __repr__(self) -> str:
        return "DetectorCrosstalk()" if self.weights == _FOREIGN else f"DetectorCrosstalk(weights={self.weights})"

    def _score(self, values: Array, wavelengths_nm: Floats, channels: tuple[str, ...]) -> Array:
        xp = array_namespace(values)
        matrix = crosstalk_matrix(values, wavelengths_nm, channels)
        return xp.sum(matrix * constant_like(self.weights, values), axis=(-2, -1))

    def _cotangent(self, values: Floats, wavelengths_nm: Floats, channels: tuple[str, ...]) -> Floats:
        power, weights = _power(values, wavelengths_nm, channels), np.asarray(self.weights)
        total = power.sum(axis=-2, keepdims=True)
        collected = _collected(total)
        share = (weights * power).sum(axis=-2, keepdims=True) / collected
        by_power = (weights - np.where(total > 0, share, 0)) / collected
        result = np.zeros_like(values)
        for row, detector in enumerate(CHANNELS):
            result[..., channel_index(detector, channels), :] = by_power[..., row, :] @ _bands(wavelengths_nm)
        return result


def _bands(wavelengths_nm: Floats) -> Floats:
    """Weights of the mean over each colour's band, (3, wavelengths)."""
    return np.concatenate([efficiency_weights(c, wavelengths_nm, DETECTORS[c])[:1] for c in COLOURS])


def _power(values: Array, wavelengths_nm: Floats, channels: tuple[str, ...]) -> Array:
    """Mean power of each detector in each band, (..., 4, 3)."""
    xp = array_namespace(values)
    chosen = xp.stack([values[..., channel_index(name, channels), :] for name in CHANNELS], axis=-2)
    return xp.matmul(chosen, constant_like(_bands(wavelengths_nm).T, values))


def _collected(total: Array) -> Array:
    """Light that all detectors collect of each band; 1 in place of no light, for a division without infinities."""
    xp = array_namespace(total)
    return xp.where(total > 0, total, xp.ones_like(total))
