"""Bands of wavelengths: the mean over one, on the wavelengths of a model."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def check_band(band_nm: tuple[float, float]) -> None:
    """Raise ValueError unless the edges of a band are two finite wavelengths above 0 in nm, the smaller first."""
    if len(band_nm) != 2 or not 0 < band_nm[0] < band_nm[1] < math.inf:
        raise ValueError(f"band_nm must be two wavelengths in nm, the smaller first, got {band_nm}")


def band_mean(band_nm: tuple[float, float], wavelengths_nm: Floats) -> Floats:
    """Weights of the mean over a band, (wavelengths,): equal within the band, whose upper edge is excluded, 0 outside.

    Args:
        band_nm: lower and upper edge in nm.
        wavelengths_nm: wavelengths of the spectra in nm, ascending, (wavelengths,).

    Raises:
        ValueError: the wavelengths do not reach across the band: the mean would be that of another band.
    """
    low, high = band_nm
    step = float(np.diff(wavelengths_nm).max()) if len(wavelengths_nm) > 1 else 0.0
    inside = (wavelengths_nm >= low) & (wavelengths_nm < high)
    if not inside.any() or wavelengths_nm[0] >= low + step or wavelengths_nm[-1] < high - step:
        got = f"{wavelengths_nm[0]:g} to {wavelengths_nm[-1]:g} nm" if len(wavelengths_nm) else "none"
        raise ValueError(f"the wavelengths must reach across the band of {low:g} to {high:g} nm, got {got}")
    weights: Floats = inside / inside.sum()
    return weights
