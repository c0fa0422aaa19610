"""Information about colour in the raw data of a sensor, in bits per raw pixel."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from array_api_compat import array_namespace
from numpy.typing import ArrayLike

from metaspec._design.array_api import Array, constant_like
from metaspec._design.objective import Floats, Objective
from metaspec.colour import ILLUMINANTS, colour_matching_functions, illuminant
from metaspec_contract.detectors import CHANNELS, COLOUR_NAMES, COLOURS, DETECTORS, channel_index
from metaspec_contract.figures_of_merit import covered_colours

# Filters of `filter_array`: Gaussian transmission, a stated idealisation of dyed filters, not a measurement.
_CENTRES_NM = {"R": 610.0, "G": 540.0, "B": 460.0}
_WIDTH_NM, _PEAK = 100.0, 0.9  # full width at half maximum, and largest transmission


@dataclass(frozen=True)
class InformationPerPixel(Objective):
    """Mutual information of a cell's four electron counts and the colour of the light, in bits per raw pixel.

    The objective of H. Park, S. Park, M. Lee and Y. Park, "Imaging-system-aware inverse design of information-optimized colour
    routers", arXiv:2608.13019: counts Y = A X + N are linear in a Gaussian spectrum X with Gaussian noise N, the target Z is
    the colour, and I = 1/2 log2(det Cov(Z) / det Cov(Z | Y)) / 4. As Z is linear in X, this equals

        I = 1/2 log2(det(A C A' + D) / det(A C_Z A' + D)) / 4,    C_Z = C - C T' (T C T')^-1 T C,

    with C the covariance of the spectra, C_Z that of spectra of known colour, T the colour matching functions times the
    illuminant, and D the noise: a closed form with an exact derivative.

    The authors' public code has this form, but neither their covariance nor their targets, so values are not those of the
    paper. Here, X is the relative deviation of a reflectance from a flat mean, with covariance contrast^2 exp(-|l - l'| /
    correlation), a first-order Markov process (W. K. Pratt and C. E. Mancill, Appl. Opt. 15, 73 (1976)); A is the efficiency
    times the illuminant in photons; D has shot noise at the mean count, and read noise. The value is the mean over several
    exposures, as are the published ones.

    It counts colour only: all four detectors see one spectrum, so sharpness, aliasing and demosaicing do not enter, nor do
    oblique rays, the lens, and the statistics of real scenes. Compare it with that of `filter_array`, under the same settings.

    Args:
        illuminant: one of `metaspec.colour.ILLUMINANTS`.
        photons: exposures: mean numbers of photons within the wavelengths of the spectra that fall on the area of a pixel.
        contrast: standard deviation of the reflectance relative to its mean.
        correlation_nm: difference of wavelengths in nm at which the correlation is 1/e; 0.98 over 10 nm by default.
        read_noise: read noise in electrons, rms.

    Raises:
        ValueError: a setting is out of range.
    """

    illuminant: str = "D65"
    photons: tuple[float, ...] = (50.0, 100.0, 200.0, 400.0, 800.0)
    contrast: float = 0.5
    correlation_nm: float = 500.0
    read_noise: float = 2.0

    def __post_init__(self) -> None:
        if self.illuminant not in ILLUMINANTS:
            raise ValueError(f"illuminant must be one of {', '.join(ILLUMINANTS)}, got {self.illuminant!r}")
        if not self.photons or not all(0 < level < math.inf for level in self.photons):
            raise ValueError(f"photons must be numbers above 0, got {self.photons}")
        for name in ("contrast", "correlation_nm", "read_noise"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise ValueError(f"{name} must be above 0 and finite, got {value}")
        object.__setattr__(self, "photons", tuple(map(float, self.photons)))

    def _score(self, values: Array, wavelengths_nm: Floats, channels: tuple[str, ...]) -> Array:
        xp = array_namespace(values)
        light, covariances = self._scene(wavelengths_nm)
        chosen = xp.stack([values[..., channel_index(name, channels), :] for name in CHANNELS], axis=-2)
        response = chosen * constant_like(light, values)
        mean = xp.sum(response, axis=-1)
        prior, known = (
            xp.matmul(xp.matmul(response, constant_like(one, values)), xp.matrix_transpose(response))
            for one in covariances
        )
        total = xp.zeros_like(mean[..., 0])
        for level in self.photons:  # counts relative to the exposure
            noise = (mean / level + (self.read_noise / level) ** 2)[..., None] * constant_like(np.eye(4), values)
            total = total + xp.linalg.slogdet(prior + noise)[1] - xp.linalg.slogdet(known + noise)[1]
        return total * self._bits

    def _cotangent(self, values: Floats, wavelengths_nm: Floats, channels: tuple[str, ...]) -> Floats:
        light, covariances = self._scene(wavelengths_nm)
        rows = [channel_index(name, channels) for name in CHANNELS]
        response = values[..., rows, :] * light
        mean = response.sum(axis=-1)
        by_response = np.zeros_like(response)
        for sign, covariance in zip((1.0, -1.0), covariances, strict=True):
            spread = response @ covariance
            signal = spread @ np.swapaxes(response, -2, -1)
            for level in self.photons:
                noise = (mean / level + (self.read_noise / level) ** 2)[..., None] * np.eye(4)
                inverse = np.linalg.inv(signal + noise)
                by_mean = np.diagonal(inverse, axis1=-2, axis2=-1)[..., None] / level
                by_response += sign * (2 * inverse @ spread + by_mean)
        result = np.zeros_like(values)
        result[..., rows, :] = self._bits * by_response * light
        return result

    @property
    def _bits(self) -> float:
        """Factor of the sum over exposures of differences of log-determinants: bits, half, per pixel, mean."""
        return 1 / (2 * math.log(2) * len(CHANNELS) * len(self.photons))

    def _scene(self, wavelengths_nm: Floats) -> tuple[Floats, tuple[Floats, Floats]]:
        """Photons at each wavelength per photon on a pixel, and the covariances of spectra: any, and those of known colour.

        Raises:
            ValueError: the wavelengths do not reach all three bands, or leave the table of the illuminant.
        """
        missing = [COLOUR_NAMES[colour] for colour in COLOURS if colour not in covered_colours(wavelengths_nm)]
        if missing:
            raise ValueError(f"information about colour needs wavelengths in the band of {' and '.join(missing)}")
        power = illuminant(self.illuminant, wavelengths_nm) * np.gradient(wavelengths_nm)
        light = power * wavelengths_nm  # photons
        target = colour_matching_functions(wavelengths_nm) * power
        distance = np.abs(wavelengths_nm[:, None] - wavelengths_nm)
        prior = self.contrast**2 * np.exp(-distance / self.correlation_nm)
        shared = target @ prior
        known = prior - shared.T @ np.linalg.solve(shared @ target.T, shared)
        # Efficiencies refer to the light on the cell, which is that on four pixels.
        return len(CHANNELS) * light / light.sum(), (prior, known)


def filter_array(wavelengths_nm: ArrayLike) -> Floats:
    """Spectra of an ordinary colour filter array over the same cell, as a reference: efficiencies (4, wavelengths).

    Each detector gets the quarter of the light that falls on its own filter, times the filter's transmission: a Gaussian
    around 610, 540 or 460 nm, 100 nm wide at half maximum, at most 0.9. These are round numbers, not a measured filter.

    Args:
        wavelengths_nm: wavelengths in nm, (wavelengths,).
    """
    wavelength = np.asarray(wavelengths_nm, np.float64)
    centre = np.array([_CENTRES_NM[c] for name in CHANNELS for c in COLOURS if name in DETECTORS[c]])[:, None]
    transmission: Floats = _PEAK * np.exp2(-((2 * (wavelength - centre) / _WIDTH_NM) ** 2))
    return transmission / len(CHANNELS)
