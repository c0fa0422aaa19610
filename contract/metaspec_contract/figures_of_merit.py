"""Figures of merit of a colour router: efficiency and crosstalk of red, green and blue, as weights on spectra and as numbers.

The definitions are those of the `bayer_sorter` challenge of the public package invrs-gym; green is G1 + G2.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metaspec_contract.detectors import (
    BANDS_NM,
    CHANNELS,
    COLOUR_NAMES,
    COLOURS,
    DETECTORS,
    channel_index,
    check_colour,
)


def efficiency_weights(
    colour: str, wavelengths_nm: ArrayLike, channels: Sequence[str] = CHANNELS
) -> NDArray[np.float64]:
    """Weights, float64 (channels, wavelengths), that sum spectra up to a colour's efficiency.

    That is the mean, over the wavelengths in the colour's band, of the power in its detectors. Other channels weigh 0.

    Args:
        colour: "R", "G" or "B".
        wavelengths_nm: wavelengths of the spectra in nm, (wavelengths,).
        channels: names of the channels of the spectra.

    Raises:
        ValueError: no such colour, one of its detectors is not among the channels, or no wavelength lies in its band.
    """
    return _weights(colour, (colour,), wavelengths_nm, channels)


def crosstalk_weights(
    colour: str, wavelengths_nm: ArrayLike, channels: Sequence[str] = CHANNELS
) -> NDArray[np.float64]:
    """Weights, float64 (channels, wavelengths), that sum spectra up to a colour's crosstalk.

    That is the mean, over the wavelengths in the other two colours' bands, of the power in its detectors.

    Args:
        colour: "R", "G" or "B".
        wavelengths_nm: wavelengths of the spectra in nm, (wavelengths,).
        channels: names of the channels of the spectra.

    Raises:
        ValueError: no such colour, one of its detectors is not among the channels, or no wavelength lies in the bands.
    """
    return _weights(colour, tuple(other for other in COLOURS if other != colour), wavelengths_nm, channels)


def colour_efficiency(
    spectra: NDArray[np.floating], wavelengths_nm: ArrayLike, channels: Sequence[str] = CHANNELS
) -> NDArray[np.float32]:
    """Efficiency of red, green and blue: (..., channels, wavelengths) to float32 (..., 3).

    Raises:
        ValueError: see `efficiency_weights`.
    """
    return weighted_sums(spectra, [efficiency_weights(colour, wavelengths_nm, channels) for colour in COLOURS])


def crosstalk(
    spectra: NDArray[np.floating], wavelengths_nm: ArrayLike, channels: Sequence[str] = CHANNELS
) -> NDArray[np.float32]:
    """Crosstalk of red, green and blue: (..., channels, wavelengths) to float32 (..., 3).

    Raises:
        ValueError: see `crosstalk_weights`.
    """
    return weighted_sums(spectra, [crosstalk_weights(colour, wavelengths_nm, channels) for colour in COLOURS])


def weighted_sums(spectra: NDArray[np.floating], weights: Sequence[NDArray[np.float64]]) -> NDArray[np.float32]:
    """Sums over channels and wavelengths: (..., channels, wavelengths) to float32 (..., number of weights)."""
    sums: NDArray[np.float32] = np.tensordot(spectra, np.stack(weights), axes=([-2, -1], [1, 2])).astype(np.float32)
    return sums


def in_band(colour: str, wavelengths_nm: ArrayLike) -> NDArray[np.bool_]:
    """Which wavelengths lie in a colour's band, bool (wavelengths,)."""
    check_colour(colour)
    (low, high), wavelengths = BANDS_NM[colour], np.asarray(wavelengths_nm, np.float64)
    inside: NDArray[np.bool_] = (wavelengths >= low) & (wavelengths < high)
    return inside


def _weights(
    colour: str, bands: Sequence[str], wavelengths_nm: ArrayLike, channels: Sequence[str]
) -> NDArray[np.float64]:
    check_colour(colour)
    inside = np.any([in_band(band, wavelengths_nm) for band in bands], axis=0)
    if not inside.any():
        wavelengths = np.asarray(wavelengths_nm, np.float64)
        names = " or ".join(COLOUR_NAMES[band] for band in bands)
        edges = " or ".join(f"{BANDS_NM[band][0]:g} to {BANDS_NM[band][1]:g} nm" for band in bands)
        raise ValueError(
            f"no wavelength lies in the band of {names} ({edges}), got {wavelengths.min():g} to {wavelengths.max():g} nm"
        )
    weights = np.zeros((len(channels), len(inside)))
    for detector in DETECTORS[colour]:
        weights[channel_index(detector, channels)] = inside / inside.sum()
    return weights
