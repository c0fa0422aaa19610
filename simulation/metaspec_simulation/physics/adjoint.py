"""The adjoint run: the derivative of a figure of merit by the permittivity at every node, from one run backwards in time.

Maxwell's equations on the grid are reciprocal: the field at a node from a current on the recorded plane is the field there from
the same current at the node. So the derivative by the recorded field, sent as a source backwards in time, yields at every node
what a current there does to the figure of merit, and a change of permittivity is a current in proportion to dE/dt.
"""

from __future__ import annotations

from threading import Event

import numpy as np
from numpy.typing import NDArray

from metaspec_simulation.physics.farfield import Complex, oscillation, projection
from metaspec_simulation.physics.grid import Array, Grid
from metaspec_simulation.physics.run import Fractions, Recording, Run


class Sheet:
    """The source on the recorded plane whose field is the derivative of a figure of merit, run backwards.

    Args:
        grid: grid of the simulation.
        wavelengths_nm: wavelengths in nm, (W,).
        weights: derivative g of the figure of merit by the recorded spectra of the orders, whose change is Re sum(g * change
            of the spectra): complex (W, 2, ky, kx).
    """

    def __init__(self, grid: Grid, wavelengths_nm: Array, weights: Complex) -> None:
        self._grid, self._wavelengths_nm = grid, wavelengths_nm
        # A change of the share of solid at a node acts like a current: its susceptibility times the change of E in a step. This
        # factor is the same for all nodes, so that the source carries it.
        omega = 2 * np.pi * 1000 / wavelengths_nm
        resonance = (grid.discrete_frequency(omega) / grid.pole_frequency) ** 2
        susceptibility = grid.eps_solid - 1 + grid.pole_strength / (1 - resonance)
        factor = susceptibility * (1 - np.exp(1j * omega * grid.dt)) / grid.eps_substrate
        # One recording in `stride` steps stands for all of them: between the recordings the series is interpolated within the
        # band, so that the sheet emits nothing outside it.
        scaled = weights * factor[:, None, None, None] / grid.stride
        kernel, half_cell = projection(grid, weights.shape[-1] // 2)
        shifted = np.stack([scaled[:, 0] * half_cell[None, :], scaled[:, 1] * half_cell[:, None]], axis=1)
        self._weights = shifted.swapaxes(2, 3).reshape(len(weights), -1).astype(np.complex64)  # (W, 2 * kx * ky)
        self._kernel = kernel.T
        # Real part of a product with the kernel, for pairs (real part, imaginary part) one after the other.
        self._real_part = np.stack([kernel.real, -kernel.imag], axis=2).reshape(grid.cells, -1).T

    def amplitudes(self, steps: NDArray[np.integer]) -> NDArray[np.float32]:
        """What to add to Ex and Ey, float32 (steps, 2, y * x), at times counted in steps."""
        grid, (orders, cells) = self._grid, self._kernel.shape
        series = oscillation(steps, grid, self._wavelengths_nm).T @ self._weights
        along_y = (series.reshape(-1, orders) @ self._kernel).reshape(-1, orders, cells)
        pairs = np.ascontiguousarray(along_y.swapaxes(1, 2)).view(np.float32)
        return (pairs.reshape(-1, 2 * orders) @ self._real_part).reshape(len(steps), 2, -1)


def run_back(
    grid: Grid, fractions: Fractions, recording: Recording, sheets: list[Sheet], stop: Event
) -> list[tuple[Array, Array, Array]]:
    """Derivatives of figures of merit by the share of solid at the nodes of Ex, Ey and Ez, each (cells, cells).

    The runs of all of them advance together, so that the forward field is needed once.

    Args:
        grid: grid of the runs.
        fractions: share of solid at these nodes.
        recording: forward run of the same polarisation, with its history.
        sheets: source of each figure of merit.
        stop: ends the runs early; what is returned then is worthless.
    """
    runs = [Run(grid, fractions) for _ in sheets]
    totals = np.zeros((len(sheets), 3, grid.cells, grid.cells))
    end = recording.intervals * grid.interval
    first = end + grid.interval - 2  # so that both fields are sampled at the same times
    amplitudes: list[NDArray[np.float32]] = []
    assert recording.history is not None
    for interval, sample in enumerate(recording.history.backwards()):
        if stop.is_set():
            break
        start = interval % _AT_ONCE * grid.interval
        if start == 0:
            steps = first - interval * grid.interval - np.arange(_AT_ONCE * grid.interval)
            amplitudes = [sheet.amplitudes(steps) for sheet in sheets]
            for amplitude in amplitudes:
                amplitude[steps >= end] = 0
        for run, amplitude, total in zip(runs, amplitudes, totals, strict=True):
            run.advance(grid.transmitted, amplitude[start : start + grid.interval], record=False)
            run.correlate(sample, total)
    x, y, z = -grid.interval * totals.swapaxes(0, 1)
    return list(zip(x, y, z, strict=True))


_AT_ONCE = 16
"""Intervals whose sources are computed at once: fewer, larger matrix products."""
