"""The continuation of a run's last resonances."""

from __future__ import annotations

import numpy as np
import pytest

from metaspec_contract.process import Process
from metaspec_simulation import Solver
from metaspec_simulation.physics.tail import tail
from metaspec_testing.hard_structures import hard_structures

STEP, SAMPLES = 0.09, 2000
WAVELENGTHS = np.arange(400.0, 701.0)
TIMES = np.arange(SAMPLES) * STEP


def oscillations(frequencies: list[float], rates: list[float]) -> np.ndarray[tuple[int, ...], np.dtype[np.complex128]]:
    """Damped oscillations with random amplitudes in 2 x 3 channels, of both signs of frequency, (samples, 2, 3)."""
    rng = np.random.default_rng(1)
    series = np.zeros((SAMPLES, 2, 3), complex)
    for frequency, rate in zip(frequencies, rates, strict=True):
        for sign in (1, -1):
            amplitude = rng.standard_normal((2, 3)) + 1j * rng.standard_normal((2, 3))
            series += amplitude * np.exp((-rate - 1j * sign * frequency) * TIMES)[:, None, None]
    return series


def test_oscillations_are_continued_exactly() -> None:
    """The transform of what is recorded, plus the tail, is that of a run a hundred times as long, summed in closed form."""
    frequency, rate = 2 * np.pi * 1000 / 550.3, 0.004
    series = oscillations([frequency], [rate])
    omega = 2 * np.pi * 1000 / WAVELENGTHS
    found = tail(series, STEP, WAVELENGTHS)
    assert found.shape == (301, 2, 3)
    alone = np.exp(-(rate + 1j * frequency) * TIMES)  # the one that resonates in the band
    amplitude = np.linalg.lstsq(
        np.stack([alone, alone.conj()], 1), series.reshape(SAMPLES, -1), rcond=None
    )[0][0].reshape(2, 3)  # fmt: skip
    growth = -rate + 1j * (omega - frequency)
    expected = amplitude * (np.exp(growth * SAMPLES * STEP) / (1 - np.exp(growth * STEP)))[:, None, None]
    np.testing.assert_allclose(found, expected, atol=0.01 * np.abs(expected).max())


def test_noise_is_not_continued() -> None:
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((SAMPLES, 2, 3)) + 1j * rng.standard_normal((SAMPLES, 2, 3))
    assert not tail(noise, STEP, WAVELENGTHS).any()


def test_nothing_is_continued_that_hardly_decays() -> None:
    """Its rate is not known."""
    assert not tail(oscillations([11.0], [1e-5]), STEP, WAVELENGTHS).any()


def test_what_has_died_out_is_not_continued() -> None:
    """A burst in the part that is fitted looks like an oscillation that decays at once, and would be infinite before it."""
    rng = np.random.default_rng(0)
    for start in range(SAMPLES // 2, SAMPLES // 2 + 40):
        series = oscillations([2 * np.pi * 1000 / 550.3], [0.004])
        series[start : start + 3] += 10 ** rng.uniform(-2, 2) * rng.standard_normal((3, 2, 3))
        assert np.isfinite(tail(series, STEP, WAVELENGTHS)).all()


@pytest.mark.slow
def test_a_resonance_that_outlasts_the_run() -> None:
    """Half a nanometre wide: after 200 um / c, most of its light is still there. Without the tail, .03 of the power is lost."""
    structure = hard_structures()["chequerboard, 16 pixels"]
    simulation = Solver(Process(), cells=32, longest=200).simulate(structure)
    assert simulation.remaining > 1e-3
    assert np.sqrt(np.mean(simulation.energy_error**2)) < 0.008
