"""Figures of merit of a colour router, as the `bayer_sorter` challenge of the public package invrs-gym defines them.

Green is the sum of G1 and G2. The lower edge of a colour's band belongs to the band, the upper one does not.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

COLOURS = {"blue": ((400, 500), (3,)), "green": ((500, 600), (1, 2)), "red": ((600, 700), (0,))}
"""Band in nm and detectors of each colour."""

Floats = NDArray[np.floating]


def colour_efficiencies(spectra: Floats, wavelengths_nm: Floats) -> Floats:
    """Mean over each colour's band of the power in its detectors: (N, 4, W) to (N, 3) for blue, green, red.

    Raises:
        ValueError: no wavelength lies in a band.
    """
    inside = _bands(wavelengths_nm)
    return np.stack([_power(spectra, c)[:, inside[c]].mean(axis=1) for c in COLOURS], axis=1)


def crosstalks(spectra: Floats, wavelengths_nm: Floats) -> Floats:
    """Mean over the other two bands of the power in each colour's detectors: (N, 4, W) to (N, 3) for blue, green, red.

    Raises:
        ValueError: no wavelength lies in a band.
    """
    inside = _bands(wavelengths_nm)
    others = {c: np.any([inside[other] for other in COLOURS if other != c], axis=0) for c in COLOURS}
    return np.stack([_power(spectra, c)[:, others[c]].mean(axis=1) for c in COLOURS], axis=1)


def _power(spectra: Floats, colour: str) -> Floats:
    """Power in the detectors of a colour, (N, W)."""
    _, detectors = COLOURS[colour]
    power: Floats = spectra[:, list(detectors)].sum(axis=1)
    return power


def _bands(wavelengths_nm: Floats) -> dict[str, NDArray[np.bool_]]:
    """Which wavelengths lie in the band of each colour, (W,)."""
    bands = {
        colour: np.asarray((wavelengths_nm >= low) & (wavelengths_nm < high))
        for colour, ((low, high), _) in COLOURS.items()
    }
    for colour, inside in bands.items():
        if not inside.any():
            raise ValueError(f"no wavelength lies in the band of {colour}, {COLOURS[colour][0]} nm")
    return bands
