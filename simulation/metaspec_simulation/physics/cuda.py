"""The time loop of the solver on a GPU: many runs of one grid side by side, compiled by numba for CUDA.

The equations, units and places of the field are those of `physics.fdtd`, whose planes have ghost rows; here a neighbour across
the edge of the cell is the one at its other end. Each run has a lane of its own in every array, and lanes start and end at
different times. A step is two kernels, H then E. A thread takes one column of cells and some planes, and carries what the
next plane needs of this one.

A GPU is kept busy by hundreds of lanes, and moves some 100 bytes for each cell and step: its memory's speed is the limit.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numba.cuda
import numpy as np
from numba import complex64, float32, float64
from numpy.typing import NDArray

from metaspec_simulation.physics.farfield import Complex, projection
from metaspec_simulation.physics.grid import Grid, pml_profile
from metaspec_simulation.physics.run import Fractions, layer_materials

cuda: Any = numba.cuda  # what kernels use of it is not typed

_THREADS = 128
_PLANES = 12  # that a thread advances
_PARTS = 16  # blocks that sum up the energy of a lane


def require_gpu(option: str) -> None:
    """Refuse an option where there is no GPU.

    Raises:
        ValueError: numba finds none, or no driver or compiler for it.
    """
    if not cuda.is_available():
        raise ValueError(
            f"{option} requires an NVIDIA GPU, its driver and the extra metaspec-lab[gpu]: numba finds no GPU"
        )


class _Kernels(NamedTuple):
    advance_h: Any
    advance_e: Any
    project: Any
    energy: Any
    clear: Any


@cache
def _kernels(grid: Grid, order: int) -> _Kernels:
    """Kernels of a grid; sizes and constants are compiled into them.

    Lanes without a run are skipped. Arrays: `field` holds Ex, Ey, Ez, Hx, Hy, Hz, (6, lanes, depth + 1, cells * cells); `pole`
    the polarisation and its derivative at Ex, Ey, Ez from the plane before the layer on, (6, lanes, planes, cells * cells);
    `memory` that of the absorbing layers for Ex, Ey, Hx, Hy, like `field`; `inverse` and `drive` the materials of the layer as
    in `fdtd.Medium`, (lanes, 3, 4, cells * cells); `decay`, `gain`, `shrink` the absorbing layers as in `fdtd.Absorber`.
    """
    n, depth, orders = grid.cells, grid.depth, 2 * order + 1
    cells = n * n
    top, bottom, source, reflected, transmitted = grid.top, grid.bottom, grid.source, grid.reflected, grid.transmitted
    rx, rz, dt = np.float32(grid.dt / grid.dx), np.float32(grid.dt / grid.dz), np.float32(grid.dt)
    stiffness = np.float32(grid.dt * grid.pole_frequency**2)
    below = np.float32(1 / grid.eps_substrate)
    zero, one = np.float32(0), np.float32(1)

    @cuda.jit(fastmath=True)
    def advance_h(running: Any, field: Any, memory: Any, decay: Any, gain: Any, shrink: Any) -> None:
        lane = cuda.blockIdx.z
        i = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
        if i >= cells or not running[lane]:
            return
        right = i + 1 if i % n < n - 1 else i + 1 - n
        under = i + n if i < cells - n else i + n - cells
        first = cuda.blockIdx.y * _PLANES
        u, v = field[0, lane, first, i], field[1, lane, first, i]
        for k in range(first, min(first + _PLANES, depth)):
            w = field[2, lane, k, i]
            next_u, next_v = field[0, lane, k + 1, i], field[1, lane, k + 1, i]
            dx, dy = next_u - u, next_v - v
            if gain[1, k] != zero:
                memory_x = decay[1, k] * memory[2, lane, k, i] + gain[1, k] * dy
                memory_y = decay[1, k] * memory[3, lane, k, i] + gain[1, k] * dx
                memory[2, lane, k, i], memory[3, lane, k, i] = memory_x, memory_y
                dx, dy = shrink[1, k] * dx + memory_y, shrink[1, k] * dy + memory_x
            field[3, lane, k, i] += rz * dy - rx * (field[2, lane, k, under] - w)
            field[4, lane, k, i] += rx * (field[2, lane, k, right] - w) - rz * dx
            field[5, lane, k, i] += rx * ((field[0, lane, k, under] - u) - (field[1, lane, k, right] - v))
            u, v = next_u, next_v

    @cuda.jit(fastmath=True)
    def advance_e(
        running: Any,
        field: Any,
        memory: Any,
        decay: Any,
        gain: Any,
        shrink: Any,
        pole: Any,
        inverse: Any,
        drive: Any,
        pulse: Any,
        started: Any,
        polarisation: Any,
        step: Any,
    ) -> None:
        lane = cuda.blockIdx.z
        i = cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x
        if i >= cells or not running[lane]:
            return
        left = i - 1 if i % n > 0 else i - 1 + n
        over = i - n if i >= n else i - n + cells
        first = max(1, cuda.blockIdx.y * _PLANES)  # E stays 0 on the mirror behind the absorbing layer
        before_u, before_v = field[3, lane, first - 1, i], field[4, lane, first - 1, i]
        for k in range(first, min(cuda.blockIdx.y * _PLANES + _PLANES, depth)):
            u, v, w = field[3, lane, k, i], field[4, lane, k, i], field[5, lane, k, i]
            dx, dy = u - before_u, v - before_v
            if gain[0, k] != zero:
                memory_x = decay[0, k] * memory[0, lane, k, i] + gain[0, k] * dy
                memory_y = decay[0, k] * memory[1, lane, k, i] + gain[0, k] * dx
                memory[0, lane, k, i], memory[1, lane, k, i] = memory_x, memory_y
                dx, dy = shrink[0, k] * dx + memory_y, shrink[0, k] * dy + memory_x
            curl_x = rx * (w - field[5, lane, k, over]) - rz * dy
            curl_y = rz * dx - rx * (w - field[5, lane, k, left])
            curl_z = rx * ((v - field[4, lane, k, left]) - (u - field[3, lane, k, over]))
            if top - 1 <= k <= bottom:
                layer = min(k - top + 1, 2) if k < bottom else 3
                for c in range(3):
                    curl = curl_x if c == 0 else curl_y if c == 1 else curl_z
                    force = drive[lane, c, layer, i]
                    if force != zero:
                        p = k - top + 1
                        e, displaced = field[c, lane, k, i], pole[c, lane, p, i]
                        j = pole[c + 3, lane, p, i] + force * e - stiffness * displaced
                        pole[c, lane, p, i], pole[c + 3, lane, p, i] = displaced + dt * j, j
                        curl -= dt * j
                    field[c, lane, k, i] += inverse[lane, c, layer, i] * curl
            else:
                share = one if k < top else below
                field[0, lane, k, i] += share * curl_x
                field[1, lane, k, i] += share * curl_y
                field[2, lane, k, i] += share * curl_z
                if k == source and started[lane] + step < len(pulse):
                    field[polarisation[lane], lane, k, i] += pulse[started[lane] + step]
            before_u, before_v = u, v

    @cuda.jit(fastmath=True)
    def project(running: Any, field: Any, kernel: Any, half_cell: Any, series: Any, sample: Any) -> None:
        lane, part = cuda.blockIdx.y, cuda.blockIdx.x
        if not running[lane]:
            return
        plane, component = part // 2, part % 2
        k = reflected if plane == 0 else transmitted
        rows = cuda.shared.array((n, orders), complex64)
        for place in range(cuda.threadIdx.x, n * orders, cuda.blockDim.x):
            y, a = place // orders, place % orders
            total = complex64(0)
            for x in range(n):
                total += field[component, lane, k, y * n + x] * kernel[x, a]
            rows[y, a] = total
        cuda.syncthreads()
        for place in range(cuda.threadIdx.x, orders * orders, cuda.blockDim.x):
            b, a = place // orders, place % orders
            total = complex64(0)
            for y in range(n):
                total += kernel[y, b] * rows[y, a]
            series[lane, sample[lane], plane, component, b, a] = total * half_cell[a if component == 0 else b]

    @cuda.jit(fastmath=True)
    def energy(running: Any, field: Any, energies: Any) -> None:
        lane, part = cuda.blockIdx.y, cuda.blockIdx.x
        if not running[lane]:
            return
        partial = cuda.shared.array(_THREADS, float64)
        total = float64(0)
        for k in range(part, depth + 1, cuda.gridDim.x):
            plane = float32(0)
            for i in range(cuda.threadIdx.x, cells, cuda.blockDim.x):
                for c in range(6):
                    value = field[c, lane, k, i]
                    plane += value * value
            total += plane
        partial[cuda.threadIdx.x] = total
        cuda.syncthreads()
        if cuda.threadIdx.x == 0:
            for other in range(1, cuda.blockDim.x):
                total += partial[other]
            energies[lane, part] = total

    @cuda.jit
    def clear(lane: Any, field: Any, memory: Any, pole: Any) -> None:
        k, c = cuda.blockIdx.x, cuda.blockIdx.y
        for i in range(cuda.threadIdx.x, cells, cuda.blockDim.x):
            field[c, lane, k, i] = zero
            if k < pole.shape[2]:
                pole[c, lane, k, i] = zero
            if c < memory.shape[0]:
                memory[c, lane, k, i] = zero

    return _Kernels(advance_h, advance_e, project, energy, clear)


class Lanes:
    """Runs of one grid on a GPU, each in a lane of its own.

    Args:
        grid: grid of the runs.
        order: highest Fourier order that is recorded.
        pulse: amplitude of the pulse in each step from the first of a run on, float32 (steps,).
        longest: number of intervals after which a run ends in any case.
        most: largest number of lanes; fewer if the GPU's free memory holds fewer.

    Attributes:
        count: number of lanes.
    """

    def __init__(self, grid: Grid, order: int, pulse: NDArray[np.float32], longest: int, most: int) -> None:
        self._grid, self._orders = grid, 2 * order + 1
        self._kernels = _kernels(grid, order)
        self._per_interval = grid.interval // grid.stride
        cells, planes, samples = grid.cells**2, grid.bottom - grid.top + 2, longest * self._per_interval
        recorded = (samples, 2, 2, self._orders, self._orders)
        materials = (3, 4, cells)
        numbers = cells * (10 * (grid.depth + 1) + 6 * planes) + 2 * int(np.prod(materials))
        self._lane_bytes = 4 * numbers + 8 * int(np.prod(recorded))
        self.count = int(min(most, max(1.0, 0.9 * _free_bytes() / self._lane_bytes)))
        self._field = cuda.device_array((6, self.count, grid.depth + 1, cells), np.float32)
        self._memory = cuda.device_array((4, self.count, grid.depth + 1, cells), np.float32)
        self._pole = cuda.device_array((6, self.count, planes, cells), np.float32)
        self._inverse = cuda.device_array((self.count, *materials), np.float32)
        self._drive = cuda.device_array((self.count, *materials), np.float32)
        self._series = cuda.device_array((self.count, *recorded), np.complex64)
        self._energies = cuda.device_array((self.count, _PARTS), np.float64)
        self._absorber = [cuda.to_device(profile) for profile in pml_profile(grid)]
        self._pulse = cuda.to_device(pulse)
        self._projection = [cuda.to_device(part) for part in projection(grid, order)]
        self._running = np.zeros(self.count, np.bool_)
        self._polarisation = np.zeros(self.count, np.int32)
        self._intervals = np.zeros(self.count, np.int32)

    @property
    def free(self) -> NDArray[np.intp]:
        """Numbers of the lanes without a run."""
        return np.flatnonzero(~self._running)

    def start(self, lane: int, fractions: Fractions, polarisation: int) -> None:
        """Start a run in a lane.

        Args:
            lane: number of a free lane.
            fractions: share of solid at the nodes of Ex, Ey and Ez, each (cells, cells).
            polarisation: 0 for x, 1 for y.
        """
        for each, ours in zip(
            layer_materials(self._grid, fractions, self._grid.eps_substrate), (self._inverse, self._drive), strict=True
        ):
            ours[lane].copy_to_device(np.stack(each, dtype=np.float32))
        self._kernels.clear[(self._grid.depth + 1, 6), _THREADS](lane, self._field, self._memory, self._pole)
        self._running[lane], self._polarisation[lane], self._intervals[lane] = True, polarisation, 0

    def advance(self) -> NDArray[np.float64]:
        """Advance all runs by one interval; returns the energy of each lane afterwards, as `Run.energy`, (lanes,)."""
        grid = self._grid
        running, polarisation = cuda.to_device(self._running), cuda.to_device(self._polarisation)
        started = cuda.to_device(self._intervals * np.int32(grid.interval))
        columns = -(-(grid.cells**2) // _THREADS)
        blocks = (columns, -(-grid.depth // _PLANES), self.count)
        for step in range(grid.interval):
            self._kernels.advance_h[blocks, _THREADS](running, self._field, self._memory, *self._absorber)
            self._kernels.advance_e[blocks, _THREADS](
                running, self._field, self._memory, *self._absorber, self._pole, self._inverse, self._drive, self._pulse,
                started, polarisation, step,
            )  # fmt: skip
            if step % grid.stride == 0:
                samples = self._intervals * np.int32(self._per_interval) + np.int32(step // grid.stride)
                self._kernels.project[(4, self.count), _THREADS](
                    running, self._field, *self._projection, self._series, cuda.to_device(samples)
                )
        self._kernels.energy[(_PARTS, self.count), _THREADS](running, self._field, self._energies)
        self._intervals[self._running] += 1
        energies: NDArray[np.float64] = self._energies.copy_to_host().sum(axis=1)
        return energies

    def stop(self, lane: int) -> Complex:
        """End the run in a lane; returns the orders on the planes above and below, complex64 (samples, 2, 2, ky, kx)."""
        self._running[lane] = False
        samples = int(self._intervals[lane]) * self._per_interval
        series: Complex = self._series[lane, :samples].copy_to_host()
        return series


def _free_bytes() -> float:
    """Free memory of the GPU; without one, in the CUDA simulator, no limit."""
    try:
        return float(cuda.current_context().get_memory_info().free)
    except AttributeError:
        return float("inf")
