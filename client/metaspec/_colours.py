"""The colours of a Bayer cell: their bands, their detectors, and figures of merit as weights on spectra."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

COLOURS = ("R", "G", "B")

BANDS_NM = {"B": (400.0, 500.0), "G": (500.0, 600.0), "R": (600.0, 700.0)}
"""Bands of the colours: the lower edge belongs to the band, the upper one does not (invrs-gym's `bayer_sorter`)."""

DETECTORS = {"R": ("R",), "G": ("G1", "G2"), "B": ("B",)}
"""Detectors of the colours; the power of a colour is the sum over them, so green is G1 + G2."""


def check_colour(colour: str) -> None:
    """Raise ValueError unless `colour` is "R", "G" or "B"."""
    if colour not in COLOURS:
        raise ValueError(f"colour must be one of {', '.join(COLOURS)}, got {colour!r}")


def channel_index(name: str, channels: Sequence[str]) -> int:
    """Where a channel is among `channels`; raises ValueError if it is not there."""
    if name not in channels:
        raise ValueError(f"channel must be one of {', '.join(channels)}, got {name!r}")
    return list(channels).index(name)


def efficiency_weights(colour: str, wavelengths_nm: ArrayLike, channels: Sequence[str]) -> NDArray[np.float64]:
    """Weights (channels, wavelengths) that sum spectra up to a colour's efficiency.

    That is the mean, over the wavelengths in the colour's band, of the power in its detectors. Other channels weigh 0.

    Raises:
        ValueError: no such colour, a detector is not among the channels, or no wavelength lies in the band.
    """
    return _weights(colour, (colour,), wavelengths_nm, channels)


def crosstalk_weights(colour: str, wavelengths_nm: ArrayLike, channels: Sequence[str]) -> NDArray[np.float64]:
    """Weights (channels, wavelengths) that sum spectra up to a colour's crosstalk.

    That is the mean, over the wavelengths in the other two colours' bands, of the power in its detectors.

    Raises:
        ValueError: no such colour, a detector is not among the channels, or no wavelength lies in the bands.
    """
    return _weights(colour, tuple(other for other in COLOURS if other != colour), wavelengths_nm, channels)


def _weights(
    colour: str, bands: Sequence[str], wavelengths_nm: ArrayLike, channels: Sequence[str]
) -> NDArray[np.float64]:
    check_colour(colour)
    wavelength = np.asarray(wavelengths_nm, np.float64)
    inside = np.zeros(len(wavelength), bool)
    for low, high in (BANDS_NM[band] for band in bands):
        inside |= (wavelength >= low) & (wavelength < high)
    if not inside.any():
        raise ValueError(f"no wavelength lies in the band of {' or '.join(bands)}")
    weights = np.zeros((len(channels), len(wavelength)))
    for detector in DETECTORS[colour]:
        weights[channel_index(detector, channels)] = inside / inside.sum()
    return weights
