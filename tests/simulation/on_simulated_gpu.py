"""The time loop for GPUs, in numba's CUDA simulator; `test_cuda.py` runs this in a process of its own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from metaspec_contract.process import Process
from metaspec_simulation.physics import cuda, farfield, solver
from metaspec_simulation.physics.cuda import Lanes
from metaspec_simulation.physics.grid import Grid, fill_fractions, make_grid
from metaspec_simulation.physics.many import ManySolver
from metaspec_simulation.physics.run import Run
from metaspec_simulation.physics.solver import Solver

CELLS = 24


def one_step(process: Process, cells: int) -> Grid:
    """A grid of which every step is an interval; the simulator takes seconds for a step of a lane."""
    return replace(make_grid(process, cells), stride=1, interval=1)


def test_a_step_of_any_field_is_that_of_the_solver() -> None:
    """Uniform planes, absorbing layers, patterned layer with its pole, edges of the cell, source, recorded planes, energy."""
    grid = replace(one_step(Process(), CELLS), pole_strength=1.3)  # a grid this coarse needs none
    order = farfield.max_order(Process())
    rng = np.random.default_rng(0)
    fractions = fill_fractions((rng.random((128, 128)) < 0.7) * rng.random((128, 128)), CELLS)
    pulse = np.array([0.3], np.float32)
    run, lanes = Run(grid, fractions), Lanes(grid, order, pulse, longest=4, most=2)
    lanes.start(1, fractions, polarisation=1)

    field, memory = (rng.standard_normal((n, grid.depth + 1, CELLS**2)).astype(np.float32) for n in (6, 4))
    field[:3, [0, -1]] = 0
    field[3:, -1] = 0
    pole = rng.standard_normal((6, grid.bottom - grid.top + 2, CELLS**2)).astype(np.float32)
    gain = run._absorber.gain[[0, 0, 1, 1], :, None]
    memory *= gain != 0
    layer = np.minimum(np.arange(pole.shape[1]), 2)
    layer[-1] = 3
    inside = slice(CELLS, -CELLS)  # ghost rows
    pole *= np.stack([drive[layer, inside] for drive in run._medium.drive] * 2) != 0
    state = run._state
    for arrays, ours in (
        ((*state.e, *state.h), field), (state.memory, memory), ((*state.polarisation, *state.current), pole)
    ):  # fmt: skip
        for array, values in zip(arrays, ours, strict=True):
            array[:, inside] = values
            array[:, :CELLS], array[:, -CELLS:] = values[:, -CELLS:], values[:, :CELLS]
    for device, ours in ((lanes._field, field), (lanes._memory, memory), (lanes._pole, pole)):
        device[:, 1] = ours

    energies = lanes.advance()
    recorded = run.send(pulse, 1, 0, record=True)

    def assert_equal(device: NDArray[np.float32], arrays: tuple[NDArray[np.float32], ...]) -> None:
        expected = np.stack([array[1:, inside] for array in arrays])  # the outermost plane is a mirror
        assert np.abs(expected).max() > 1
        np.testing.assert_allclose(device[:, 1, 1:], expected, atol=1e-5)

    assert_equal(lanes._field.copy_to_host(), (*state.e, *state.h))
    assert_equal(lanes._memory.copy_to_host(), state.memory)
    assert_equal(lanes._pole.copy_to_host(), (*state.polarisation, *state.current))
    assert energies[1] == pytest.approx(run.energy, rel=1e-5)
    expected = np.stack([farfield.project(plane, grid, order) for plane in recorded], axis=1)
    np.testing.assert_allclose(lanes.stop(1), expected, atol=1e-6)


def test_many_structures_share_few_lanes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two structures, one equals its transpose: three runs in two lanes, each of one step."""
    monkeypatch.setattr(solver, "make_grid", one_step)
    alone = Solver(Process(), CELLS, longest=1e-3)
    rng = np.random.default_rng(1)
    structures = [np.eye(128), rng.random((128, 128))]
    results = list(ManySolver(alone, lanes=2).simulate(structures))
    assert sorted(result.number for result in results) == [0, 1]
    for number, simulation, orders in results:
        expected, expected_orders = alone.simulate_with_orders(structures[number])
        np.testing.assert_allclose(orders, expected_orders, atol=1e-6 * np.abs(expected_orders).max())
        np.testing.assert_allclose(simulation.reflection, expected.reflection, rtol=1e-4)
        assert simulation.duration == expected.duration


def test_as_many_lanes_as_the_memory_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = one_step(Process(), CELLS)
    pulse = np.zeros(1, np.float32)
    lane = Lanes(grid, 7, pulse, longest=4, most=1)._lane_bytes
    monkeypatch.setattr(cuda, "_free_bytes", lambda: 3.5 * lane)
    assert Lanes(grid, 7, pulse, longest=4, most=8).count == 3
