"""What a run would still have recorded after its end: the slow decay of a few resonances, continued.

A guided mode that hardly couples to the light outside rings for thousands of optical periods. Once all else has left the grid,
the recorded field is a sum of few damped oscillations, whose Fourier transform from the end of the run to infinity is known in
closed form. Their complex frequencies, the same for all orders, are found from the second half of the run by ESPRIT (Roy and
Kailath, IEEE Trans. Acoust. Speech Signal Process. 37, 984 (1989)); their amplitudes by least squares.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.signal import firwin

from metaspec_simulation.physics.farfield import Complex

_SIGNIFICANT = 3e-3
"""Singular values below this multiple of the largest one are taken for noise."""

_DELAYS = 4
"""Copies of the series, each one sample later, that the frequencies are found from."""

_WORST_FIT = 0.1
"""Largest relative rms deviation of the fitted oscillations from the recorded ones; where it is exceeded, nothing is added."""

_LEAST_DECAY = 0.05
"""Decay, over the part of the run that is fitted, from which on the rate of an oscillation is known well enough."""

_MOST_DECAY = 50.0
"""Decay, over that part, from which on nothing is left of an oscillation that could go on: it is left out of the fit."""


def tail(series: Complex, step: float, wavelengths_nm: NDArray[np.floating]) -> Complex:
    """Fourier transform, with exp(+i omega t), of a series from its end to infinity.

    Args:
        series: recorded amplitudes from the first time step of the run on, (samples, ...).
        step: time between two samples, um / c.
        wavelengths_nm: wavelengths in nm, (W,).

    Returns:
        (W, ...); 0 where the series does not end in a few damped oscillations.
    """
    shape = (len(wavelengths_nm), *series.shape[1:])
    omega = 2 * np.pi * 1000 / wavelengths_nm
    centre, half_band = (omega.max() + omega.min()) / 2, (omega.max() - omega.min()) / 2
    shifted, times = _baseband(series.reshape(len(series), -1), step, centre, half_band)
    rates = _rates(shifted, times[1] - times[0]) if len(times) > 4 * _DELAYS else np.zeros(0)
    if not len(rates):
        return np.zeros(shape, np.complex64)
    oscillations = np.exp(np.outer(times - times[-1], rates))
    amplitudes = np.linalg.lstsq(oscillations, shifted, rcond=None)[0]
    if np.linalg.norm(oscillations @ amplitudes - shifted) > _WORST_FIT * np.linalg.norm(shifted):
        return np.zeros(shape, np.complex64)
    known = rates.real * (times[-1] - times[0]) < -_LEAST_DECAY
    rates, amplitudes = rates[known], amplitudes[known]
    end = len(series) * step
    growth = rates + 1j * (omega - centre)[:, None]
    start = np.exp(rates * (end - times[-1]) + 1j * ((omega - centre) * end)[:, None])
    return (start / (1 - np.exp(growth * step)) @ amplitudes).reshape(shape).astype(np.complex64)


def _baseband(series: Complex, step: float, centre: float, half_band: float) -> tuple[Complex, NDArray[np.floating]]:
    """The second half of a series, the band moved to frequency 0 and sampled as thinly as it allows, and its times."""
    stride = max(1, int(np.pi / (1.5 * half_band * step)))
    taps = firwin(8 * stride + 1, 0.9 / stride) if stride > 1 else np.ones(1)
    half = len(taps) // 2
    places = np.arange(len(series) // 2 + half, len(series) - half, stride)
    oscillation = np.exp(1j * centre * step * np.arange(len(series)))[:, None]
    rows = [taps @ (series[place - half : place + half + 1] * oscillation[place - half : place + half + 1])
            for place in places]  # fmt: skip
    return np.array(rows, np.complex128), np.asarray(places * step, np.float64)


def _rates(series: Complex, step: float) -> Complex:
    """Complex rates s of the damped oscillations exp(s t) that a series (samples, channels) consists of, (modes,)."""
    left, values, _ = np.linalg.svd(series, full_matrices=False)
    channels = (left * values)[:, values > _SIGNIFICANT * values[0]]
    rows = len(series) - _DELAYS + 1
    delayed = np.concatenate([channels[delay : delay + rows] for delay in range(_DELAYS)], axis=1)
    space, values, _ = np.linalg.svd(delayed, full_matrices=False)
    space = space[:, values > _SIGNIFICANT * values[0]][:, : rows // 2]
    advance = np.linalg.lstsq(space[:-1], space[1:], rcond=None)[0]
    rates = np.log(np.linalg.eigvals(advance)) / step
    decay = -rates.real * step * (len(series) - 1)
    return np.asarray(rates[(decay > 0) & (decay < _MOST_DECAY)], np.complex128)
