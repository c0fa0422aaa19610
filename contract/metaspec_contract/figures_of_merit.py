"""Figures of merit of a colour router: efficiency and crosstalk of red, green and blue.

Both are linear in the spectra, so they are also available as weights. Definitions follow the `bayer_sorter` challenge of the
public package invrs-gym; green is G1 + G2. A device whose wavelengths do not reach the band of a colour has no efficiency of
it: functions refuse to compute one, and reports, which list those of `covered_colours`, leave it out.
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
    """Weights of a colour's efficiency, float64 (channels, wavelengths).

    The efficiency is the mean, over the wavelengths in the colour's band, of the power in its detectors. Other channels have
    weight 0.

    Args:
        colour: "R", "G" or "B".
        wavelengths_nm: wavelengths of the spectra in nm, (wavelengths,).
        channels: names of the channels of the spectra.

    Raises:
        ValueError: unknown colour, a detector that is not among the channels, or no wavelength in the band.
    """
    return _weights(colour, (colour,), wavelengths_nm, channels)


def crosstalk_weights(
    colour: str, wavelengths_nm: ArrayLike, channels: Sequence[str] = CHANNELS
) -> NDArray[np.float64]:
    """Weights of a colour's crosstalk, float64 (channels, wavelengths).

    The crosstalk is the mean, over the wavelengths in the other two colours' bands, of the power in its detectors.

    Args:
        colour: "R", "G" or "B".
        wavelengths_nm: wavelengths of the spectra in nm, (wavelengths,).
        channels: names of the channels of the spectra.

    Raises:
        ValueError: unknown colour, a detector that is not among the channels, or no wavelength in the bands.
    """
    return _weights(colour, tuple(other for other in COLOURS if other != colour), wavelengths_nm, channels)


def covered_colours(wavelengths_nm: ArrayLike) -> tuple[str, ...]:
    """Colours whose band contains at least one of the wavelengths: those that have an efficiency."""
    return tuple(colour for colour in COLOURS if in_band(colour, wavelengths_nm).any())


def crosstalk_colours(wavelengths_nm: ArrayLike) -> tuple[str, ...]:
    """Covered colours that have a crosstalk: all of them, or none if only one band is covered."""
    covered = covered_colours(wavelengths_nm)
    return covered if len(covered) > 1 else ()


def colour_efficiency(
    spectra: NDArray[np.floating],
    wavelengths_nm: ArrayLike,
    channels: Sequence[str] = CHANNELS,
    colours: Sequence[str] = COLOURS,
) -> NDArray[np.float32]:
    """Efficiency of colours, red, green and blue by default: (..., channels, wavelengths) to float32 (..., colours).

    Raises:
        ValueError: see `efficiency_weights`.
    """
    return weighted_sums(spectra, [efficiency_weights(colour, wavelengths_nm, channels) for colour in colours])


def crosstalk(
    spectra: NDArray[np.floating],
    wavelengths_nm: ArrayLike,
    channels: Sequence[str] = CHANNELS,
    colours: Sequence[str] = COLOURS,
) -> NDArray[np.float32]:
    """Crosstalk of colours, red, green and blue by default: (..., channels, wavelengths) to float32 (..., colours).

    Raises:
        ValueError: see `crosstalk_weights`.
    """
    return weighted_sums(spectra, [crosstalk_weights(colour, wavelengths_nm, channels) for colour in colours])


def weighted_sums(spectra: NDArray[np.floating], weights: Sequence[NDArray[np.float64]]) -> NDArray[np.float32]:
    """Weighted sums over channels and wavelengths: (..., channels, wavelengths) to float32 (..., number of weights).

    Raises:
        ValueError: the last two axes of the spectra do not have the shape of the weights.
    """
    if not weights:
        return np.zeros((*np.shape(spectra)[:-2], 0), np.float32)
    if np.shape(spectra)[-2:] != weights[0].shape:
        raise ValueError(f"spectra must end in (channels, wavelengths) = {weights[0].shape}, got {np.shape(spectra)}")
    sums: NDArray[np.float32] = np.tensordot(spectra, np.stack(weights), axes=([-2, -1], [1, 2])).astype(np.float32)
    return sums


def in_band(colour: str, wavelengths_nm: ArrayLike) -> NDArray[np.bool_]:
    """Mask of the wavelengths in a colour's band, bool (wavelengths,)."""
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
        got = f"{wavelengths.min():g} to {wavelengths.max():g} nm" if wavelengths.size else "none"
        names = " or ".join(COLOUR_NAMES[band] for band in bands)
        edges = " or ".join(f"{BANDS_NM[band][0]:g} to {BANDS_NM[band][1]:g} nm" for band in bands)
        raise ValueError(f"no wavelength lies in the band of {names} ({edges}), got {got}")
    weights = np.zeros((len(channels), len(inside)))
    for detector in DETECTORS[colour]:
        weights[channel_index(detector, channels)] = inside / inside.sum()
    return weights
