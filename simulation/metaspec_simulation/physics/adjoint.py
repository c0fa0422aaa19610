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
        self._order = weights.shape[-1] // 2
        # A change of the share of solid at a node acts like a current: its susceptibility times the change of E in a step. This
        # factor is the same for all nodes, so that the source carries it.
        omega = 2 * np.pi * 1000 / wavelengths_nm
        resonance = (grid.discrete_frequency(omega) / grid.pole_frequency) ** 2
        susceptibility = grid.eps_solid - 1 + grid.pole_strength / (1 - resonance)
        factor = susceptibility * (1 - np.exp(1j * omega * grid.dt)) / grid.eps_substrate
        self._weights = (weights * factor[:, None, None, None]).reshape(len(weights), -1).astype(np.complex64)

    def amplitudes(self, steps: NDArray[np.integer]) -> NDArray[np.float32]:
        """What to add to Ex and Ey, float32 (steps, 2, y * x), 0 in the ghost cells, at times counted in steps.

        One recording in `stride` steps stands for all of them: between the recordings the series is interpolated within the
        band, so that the sheet emits nothing outside it.
        """
        grid, orders = self._grid, 2 * self._order + 1
        series = (oscillation(steps, grid, self._wavelengths_nm).T @ self._weights) / grid.stride
        kernel, half_cell = projection(grid, self._order)
        coefficients = series.reshape(len(steps), 2, orders, orders)
        coefficients = np.stack(
            [coefficients[:, 0] * half_cell[None, :], coefficients[:, 1] * half_cell[:, None]], axis=1
        )
        sheet = np.zeros((len(steps), 2, grid.cells + 2, grid.cells + 2), np.float32)
        sheet[..., 1:-1, 1:-1] = (kernel @ coefficients @ kernel.T).real
        return sheet.reshape(len(steps), 2, -1)


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
    row = grid.cells + 2
    totals = np.zeros((len(sheets), 3, row * row))
    end = recording.intervals * grid.interval
    first = end + grid.interval - 2  # so that both fields are sampled at the same times
    assert recording.history is not None
    for interval, sample in enumerate(recording.history.backwards()):
        if stop.is_set():
            break
        steps = first - interval * grid.interval - np.arange(grid.interval)
        for run, sheet, total in zip(runs, sheets, totals, strict=True):
            amplitudes = sheet.amplitudes(steps)
            amplitudes[steps >= end] = 0
            run.advance(grid.transmitted, amplitudes, record=False)
            run.correlate(sample, total)
    x, y, z = -grid.interval * totals.reshape(-1, 3, row, row)[..., 1:-1, 1:-1].swapaxes(0, 1)
    return list(zip(x, y, z, strict=True))
