"""Colour matching: how well a sensor's spectra reproduce the eye's colour matching functions under an illuminant.

A sensor sees colours as the CIE 1931 observer does if its spectral responses are linear combinations of the colour matching
functions (the Luther condition). `ColourMatrixError` measures the deviation that the best 3 x 3 colour matrix leaves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from array_api_compat import array_namespace
from numpy.typing import ArrayLike, NDArray

from metaspec._design.array_api import Array, constant_like
from metaspec._design.objective import Floats, Objective
from metaspec_contract.detectors import COLOURS, DETECTORS, channel_index

__all__ = ["ILLUMINANTS", "ColourMatrixError", "colour_matching_functions", "illuminant"]


def __dir__() -> list[str]:
    return __all__


# Lobes of the colour matching functions: amplitude, centre (nm), inverse widths (1/nm) below and above the centre.
# C. Wyman, P.-P. Sloan and P. Shirley, "Simple analytic approximations to the CIE XYZ color matching functions",
# Journal of Computer Graphics Techniques 2(2), 1-11 (2013), the multi-lobe fit of the 2-degree functions.
_LOBES = (
    ((0.362, 442.0, 0.0624, 0.0374), (1.056, 599.8, 0.0264, 0.0323), (-0.065, 501.1, 0.0490, 0.0382)),
    ((0.821, 568.8, 0.0213, 0.0247), (0.286, 530.9, 0.0613, 0.0322)),
    ((1.217, 437.0, 0.0845, 0.0278), (0.681, 459.0, 0.0385, 0.0725)),
)

_RIDGE, _TINY = 1e-9, 1e-30  # added to the Gram matrix: relative to the sensor's power, and absolute for zero power

# Components S0, S1 and S2 of daylight from 380 to 780 nm in steps of 10 nm: CIE 15:2004, Colorimetry, table T.2.
_DAYLIGHT_NM = np.arange(380.0, 781.0, 10.0)
# fmt: off
_S0 = (
    63.4, 65.8, 94.8, 104.8, 105.9, 96.8, 113.9, 125.6, 125.5, 121.3, 121.3, 113.5, 113.1, 110.8, 106.5, 108.8, 105.3, 104.4,
    100.0, 96.0, 95.1, 89.1, 90.5, 90.3, 88.4, 84.0, 85.1, 81.9, 82.6, 84.9, 81.3, 71.9, 74.3, 76.4, 63.3, 71.7, 77.0, 65.2,
    47.7, 68.6, 65.0,
)
_S1 = (
    38.5, 35.0, 43.4, 46.3, 43.9, 37.1, 36.7, 35.9, 32.6, 27.9, 24.3, 20.1, 16.2, 13.2, 8.6, 6.1, 4.2, 1.9, 0.0, -1.6, -3.5,
    -3.5, -5.8, -7.2, -8.6, -9.5, -10.9, -10.7, -12.0, -14.0, -13.6, -12.0, -13.3, -12.9, -10.6, -11.6, -12.2, -10.2, -7.8,
    -11.2, -10.4,
)
_S2 = (
    3.0, 1.2, -1.1, -0.5, -0.7, -1.2, -2.6, -2.9, -2.8, -2.6, -2.6, -1.8, -1.5, -1.3, -1.2, -1.0, -0.5, -0.3, 0.0, 0.2, 0.5,
    2.1, 3.2, 4.1, 4.7, 5.1, 6.7, 7.3, 8.6, 9.8, 10.2, 8.3, 9.6, 8.5, 7.0, 7.6, 8.0, 6.7, 5.2, 7.4, 6.8,
)
# fmt: on


def colour_matching_functions(wavelengths_nm: ArrayLike) -> NDArray[np.float64]:
    """The CIE 1931 2-degree colour matching functions x, y and z, (3, wavelengths).

    The analytic fit of Wyman, Sloan and Shirley (2013), whose error is below the spread between observers.

    Args:
        wavelengths_nm: wavelengths in nm, (wavelengths,).
    """
    wavelength = np.asarray(wavelengths_nm, np.float64)

    def lobe(amplitude: float, centre: float, below: float, above: float) -> NDArray[np.float64]:
        steps = (wavelength - centre) * np.where(wavelength < centre, below, above)
        result: NDArray[np.float64] = amplitude * np.exp(-(steps**2) / 2)
        return result

    return np.stack([np.sum([lobe(*numbers) for numbers in lobes], axis=0) for lobes in _LOBES])


def _illuminant_a(wavelength: NDArray[np.float64]) -> NDArray[np.float64]:
    """CIE standard illuminant A, an incandescent lamp: CIE 15:2004 and ISO/CIE 11664-2."""

    def planck(nm: Any) -> Any:
        return nm**-5.0 / np.expm1(1.435e7 / (2848 * nm))

    spectrum: NDArray[np.float64] = 100 * planck(wavelength) / planck(560.0)
    return spectrum


def _illuminant_d65(wavelength: NDArray[np.float64]) -> NDArray[np.float64]:
    """CIE daylight D65 from three components, CIE 15:2004: 6500 K, 6504 K with the present constants of Planck's law."""
    first, last = _DAYLIGHT_NM[0], _DAYLIGHT_NM[-1]
    if wavelength.min() < first or wavelength.max() > last:
        raise ValueError(
            f"D65 is tabulated from {first:g} to {last:g} nm, got {wavelength.min():g} to {wavelength.max():g} nm"
        )
    temperature = 6500 * 1.4388 / 1.4380
    x = 0.244063 + 0.09911e3 / temperature + 2.9678e6 / temperature**2 - 4.6070e9 / temperature**3
    y = -3.000 * x**2 + 2.870 * x - 0.275
    m = 0.0241 + 0.2562 * x - 0.7341 * y
    m1, m2 = (-1.3515 - 1.7703 * x + 5.9114 * y) / m, (0.0300 - 31.4424 * x + 30.0717 * y) / m
    return np.interp(wavelength, _DAYLIGHT_NM, np.asarray(_S0) + m1 * np.asarray(_S1) + m2 * np.asarray(_S2))


_ILLUMINANTS: dict[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "D65": _illuminant_d65,
    "A": _illuminant_a,
    "E": lambda wavelength: np.full(wavelength.shape, 100.0),
}

ILLUMINANTS = tuple(_ILLUMINANTS)
"""Names of the illuminants: D65, average daylight; A, an incandescent lamp; E, equal energy."""


def illuminant(name: str, wavelengths_nm: ArrayLike) -> NDArray[np.float64]:
    """Relative spectral power of a CIE illuminant, 100 at 560 nm, (wavelengths,).

    Args:
        name: one of `ILLUMINANTS`.
        wavelengths_nm: wavelengths in nm, (wavelengths,).

    Raises:
        ValueError: no such illuminant, or a wavelength outside its table.
    """
    if name not in _ILLUMINANTS:
        raise ValueError(f"illuminant must be one of {', '.join(ILLUMINANTS)}, got {name!r}")
    return _ILLUMINANTS[name](np.asarray(wavelengths_nm, np.float64))


@dataclass(frozen=True)
class ColourMatrixError(Objective):
    """Residual colour error of a sensor after the best 3 x 3 colour matrix, from 0 (colorimetric) to 1. Subtract it.

    With S the sensor's red, green (G1 + G2) and blue spectra and Q an orthonormal basis of the colour matching functions,
    both times the illuminant, it is min over M of |Q - M S|^2 / |Q|^2: one minus the Vora value (P. L. Vora and H. J.
    Trussell, J. Opt. Soc. Am. A 10, 1499 (1993)). It is independent of the sensor's brightness and of the choice of
    primaries. All wavelengths have equal weight, so they should be equally spaced.

    The best M has a closed form, so the derivative with respect to S at that M is the total derivative (variable projection:
    G. H. Golub and V. Pereyra, SIAM J. Numer. Anal. 10, 413 (1973)). Spectra that differ by less than about 3e-5 of their
    power count as equal, so that value and derivative stay finite where colours are indistinguishable.

    Args:
        illuminant: one of `ILLUMINANTS`.

    Raises:
        ValueError: no such illuminant.
    """

    illuminant: str = "D65"

    def __post_init__(self) -> None:
        if self.illuminant not in ILLUMINANTS:
            raise ValueError(f"illuminant must be one of {', '.join(ILLUMINANTS)}, got {self.illuminant!r}")

    def _score(self, values: Array, wavelengths_nm: Floats, channels: tuple[str, ...]) -> Array:
        xp = array_namespace(values)
        light, basis = self._light_and_basis(wavelengths_nm)
        sensor = xp.matmul(constant_like(_opponents(channels), values), values) * constant_like(light, values)
        overlap = xp.matmul(sensor, constant_like(basis.T, values))
        matrix = xp.linalg.solve(_gram(sensor), overlap)
        return 1 - xp.sum(overlap * matrix, axis=(-2, -1)) / 3

    def _cotangent(self, values: Floats, wavelengths_nm: Floats, channels: tuple[str, ...]) -> Floats:
        (light, basis), opponents = self._light_and_basis(wavelengths_nm), _opponents(channels)
        sensor = opponents @ values * light
        matrix = np.linalg.solve(_gram(sensor), sensor @ basis.T)
        ridge = _RIDGE * np.sum(matrix**2, axis=(-2, -1), keepdims=True) * sensor
        by_sensor = -2 / 3 * (matrix @ (basis - np.swapaxes(matrix, -2, -1) @ sensor) - ridge)
        result: Floats = opponents.T @ (by_sensor * light)
        return result

    def _light_and_basis(self, wavelengths_nm: Floats) -> tuple[Floats, Floats]:
        """The illuminant (wavelengths,), and an orthonormal basis of the eye's responses under it (3, wavelengths)."""
        light = illuminant(self.illuminant, wavelengths_nm) / 100
        return light, np.linalg.qr((colour_matching_functions(wavelengths_nm) * light).T)[0].T


def _opponents(channels: tuple[str, ...]) -> Floats:
    """Matrix from channels to red + green + blue, red - blue, and red - green + blue, (3, channels).

    They span the same space as red, green and blue, which differ little in a real cell: their products would lose
    in float32 what the differences retain.
    """
    mix = np.zeros((3, len(channels)))
    for column, colour in enumerate(COLOURS):
        for detector in DETECTORS[colour]:
            mix[column, channel_index(detector, channels)] = 1
    return np.array([[1.0, 1, 1], [1, 0, -1], [1, -1, 1]]) @ mix


def _gram(sensor: Array) -> Array:
    """Gram matrix of the sensor's spectra, (..., 3, 3), with a ridge on the diagonal."""
    xp = array_namespace(sensor)
    power = xp.sum(sensor**2, axis=(-2, -1))[..., None, None]
    identity = constant_like(np.eye(3), sensor)
    return xp.matmul(sensor, xp.matrix_transpose(sensor)) + (_RIDGE * power + _TINY) * identity
