"""Many structures at once on a GPU, with the results of the solver."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from threadpoolctl import threadpool_limits

from metaspec_simulation.physics.cuda import Lanes
from metaspec_simulation.physics.farfield import Complex
from metaspec_simulation.physics.grid import fill_fractions
from metaspec_simulation.physics.run import Fractions, Watch
from metaspec_simulation.physics.solver import Simulation, Solver, transposed

LANES = 256
"""Runs at once; a GPU of 132 multiprocessors is busy from some 100 on."""


class Result(NamedTuple):
    """What became of one of many structures.

    Attributes:
        number: its place among them.
        simulation: as of `Solver.simulate`.
        orders: as of `Solver.orders`.
    """

    number: int
    simulation: Simulation
    orders: Complex


class _Run(NamedTuple):
    number: int
    polarisation: int
    alone: bool  # symmetry yields the other polarisation
    watch: Watch


class ManySolver:
    """Simulates structures side by side on a GPU; the CPU turns what was recorded into spectra meanwhile.

    Args:
        solver: solver of the process on its grid.
        lanes: largest number of runs at once, two for each structure; fewer if the GPU's free memory holds fewer.

    Raises:
        numba.cuda.CudaSupportError: there is no GPU.
    """

    def __init__(self, solver: Solver, lanes: int = LANES) -> None:
        self._solver = solver
        self._lanes = Lanes(solver.grid, solver.order, solver.pulse, solver.watch().most, lanes)

    def simulate(self, structures: Iterable[ArrayLike]) -> Iterator[Result]:
        """Simulate structures or densities as `Solver.simulate` does; yields results as they come.

        Structures are taken from the iterable when there are free lanes.

        Raises:
            InvalidStructure: as for `Solver.simulate`.
        """
        waiting = self._runs(structures)
        running: dict[int, _Run] = {}
        ended: dict[int, list[tuple[_Run, Complex]]] = {}
        finishing: deque[Future[Result]] = deque()
        threads = max(1, (os.cpu_count() or 1) - 1)
        with threadpool_limits(1, "blas"), ThreadPoolExecutor(threads) as pool:
            while True:
                for lane in self._lanes.free:
                    if (following := next(waiting, None)) is None:
                        break
                    run, fractions = following
                    self._lanes.start(lane, fractions, run.polarisation)
                    running[lane] = run
                if not running:
                    break
                energies = self._lanes.advance()
                for lane, run in list(running.items()):
                    if run.watch.ended(partial(energies.item, lane)):
                        del running[lane]
                        parts = ended.setdefault(run.number, [])
                        parts.append((run, self._lanes.stop(lane)))
                        if run.alone or len(parts) == 2:
                            finishing.append(pool.submit(self._finish, ended.pop(run.number)))
                while finishing and (finishing[0].done() or len(finishing) > 4 * threads):
                    yield finishing.popleft().result()
            while finishing:
                yield finishing.popleft().result()

    def _runs(self, structures: Iterable[ArrayLike]) -> Iterator[tuple[_Run, Fractions]]:
        """Runs of structures, with their shares of solid."""
        return chain.from_iterable(self._runs_of(number, structure) for number, structure in enumerate(structures))

    def _runs_of(self, number: int, structure: ArrayLike) -> Iterator[tuple[_Run, Fractions]]:
        density = self._solver.density(structure)
        fractions = fill_fractions(density, self._solver.grid.cells)
        alone = np.array_equal(density, density.T)
        for polarisation in (0,) if alone else (0, 1):
            yield _Run(number, polarisation, alone, self._solver.watch()), fractions

    def _finish(self, parts: list[tuple[_Run, Complex]]) -> Result:
        """Spectra and orders of a structure from its runs."""
        parts.sort(key=lambda part: part[0].polarisation)
        recordings = [self._solver.recording(series, run.watch) for run, series in parts]
        if parts[0][0].alone:
            recordings.append(transposed(recordings[0]))
        return Result(parts[0][0].number, *self._solver.results(recordings))
