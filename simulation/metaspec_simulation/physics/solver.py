"""The solver: from a structure to the spectra of its detectors, and to their gradient by the adjoint method."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from threading import Event
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from threadpoolctl import threadpool_limits

from metaspec_contract.detectors import CHANNELS
from metaspec_contract.process import Process
from metaspec_contract.structures import InvalidStructure, as_density, check_structures
from metaspec_simulation.physics import farfield
from metaspec_simulation.physics.adjoint import Sheet, run_back
from metaspec_simulation.physics.grid import Array, fill_fractions, make_grid, pull_back, pulse
from metaspec_simulation.physics.run import DECAY, LONGEST, Fractions, History, Recording, Run, Watch
from metaspec_simulation.physics.tail import tail

_T = TypeVar("_T")


@dataclass(frozen=True)
class Simulation:
    """The simulated spectra of one structure.

    Attributes:
        wavelengths_nm: wavelengths in nm, (W,).
        spectra: efficiencies of R, G1, G2, B, float32 (4, W).
        harmonics: Fourier coefficients of the R spectrum under translation of the structure, float32 (225, W); see
            `farfield.shifted_basis`.
        reflection: reflectance, float32 (W,).
        remaining: energy left in the grid at the end of the run, relative to the largest; the larger one of both
            polarisations. It is above the solver's `decay` only if the run reached the longest time.
        duration: length of the longer run, um / c.
    """

    wavelengths_nm: NDArray[np.float64]
    spectra: NDArray[np.float32]
    harmonics: NDArray[np.float32]
    reflection: NDArray[np.float32]
    remaining: float
    duration: float

    @property
    def energy_error(self) -> NDArray[np.float32]:
        """Reflection + transmission - 1, (W,): 0 for an exact solution, as nothing absorbs."""
        return self.reflection + self.spectra.sum(axis=0) - 1


class Solver:
    """Finite-difference time-domain solver of one process on one grid.

    A run ends when the light has left the grid: dense structures, which hold it long, are followed as long as they need. Where
    narrow resonances ring on at the longest time, their decay is continued analytically; the gradient leaves that out.

    Args:
        process: process to simulate.
        cells: grid cells per period: 48 is coarse, 80 is that of the reference labels, 128 is fine.
        decay: share of the largest energy in the grid at which a run ends.
        longest: time at which it ends in any case, um / c.
        threads: number of threads; with 2, both polarisations are computed at once.

    Raises:
        ValueError: an argument is out of range, or the grid is too coarse for the process.

    Example:
        >>> solver = Solver(Process(), cells=48)
        >>> solver.simulate(np.zeros((128, 128))).spectra.shape
        (4, 301)
    """

    def __init__(
        self, process: Process, cells: int = 64, decay: float = DECAY, longest: float = LONGEST, threads: int = 1
    ) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"decay must lie between 0 and 1, got {decay}")
        if not 0 < longest < np.inf:
            raise ValueError(f"longest must be above 0 um/c and finite, got {longest}")
        if threads < 1:
            raise ValueError(f"threads must be at least 1, got {threads}")
        self.process = process
        self.grid = make_grid(process, cells)
        self.decay, self.longest, self.threads = decay, longest, threads
        self.wavelengths_nm = process.wavelengths_nm
        self.order = farfield.max_order(process)
        index = process.substrate.index(self.wavelengths_nm)
        vacuum = np.ones_like(index)
        eps = self.grid.eps_substrate
        self._below = farfield.PlaneWaves(self.grid, process, self.wavelengths_nm, index, eps, self.order)
        self._above = farfield.PlaneWaves(self.grid, process, self.wavelengths_nm, vacuum, 1.0, self.order)
        self._quadrants = farfield.quadrant_weights(self.order).astype(np.float32)
        self.pulse = pulse(self.grid, process)
        self._incident = self._incident_amplitude()

    def simulate(self, structure: ArrayLike, distance_um: float | None = None) -> Simulation:
        """Simulate one structure under both polarisations.

        Args:
            structure: structure or density, (y, x), 0 = void and 1 = solid. A density mixes the permittivities of void and
                solid linearly at every frequency, as density-based topology optimisation does.
            distance_um: distance of the detectors from the bottom of the patterned layer; that of the process by default.

        Raises:
            InvalidStructure: another shape, or values outside [0, 1].
        """
        density = self.density(structure)
        return self._simulation(self._forward(density, keep=False), distance_um)

    def at_distances(self, structure: ArrayLike, distances_um: Iterable[float]) -> NDArray[np.float32]:
        """Spectra of one structure at D distances of the detectors, from one simulation: float32 (D, 4, W).

        Args:
            structure: as for `simulate`.
            distances_um: distances from the bottom of the patterned layer.

        Raises:
            InvalidStructure: as for `simulate`.
        """
        recordings = self._forward(self.density(structure), keep=False)
        return np.stack([self._simulation(recordings, distance).spectra for distance in distances_um])

    def gradient(
        self,
        structure: ArrayLike,
        cotangent: ArrayLike | Callable[[NDArray[np.float32]], ArrayLike],
        distance_um: float | None = None,
    ) -> tuple[Simulation, NDArray[np.float32]]:
        """The gradient of sum(cotangent * spectra) with respect to the density of every pixel, by the adjoint method.

        The source of the adjoint run is the derivative by the recorded field, backwards in time; the product of both fields
        at a node, summed over time, is the derivative by its permittivity (Lalau-Keraly et al., Opt. Express 21, 21693
        (2013)). It is that of the discretised equations, for all wavelengths at once: two forward runs, and two adjoint runs
        for each cotangent.

        Args:
            structure: structure or density as for `simulate`.
            cotangent: weights of the spectra, (4, W), or (C, 4, W) for the gradients of C sums; or a function that returns
                them, called with the spectra, float32 (4, W), between the forward and the adjoint runs.
            distance_um: as for `simulate`.

        Returns:
            The simulation, and the gradient, float32 (y, x) or (C, y, x).

        Raises:
            InvalidStructure: as for `simulate`.
            ValueError: the cotangent has another shape or is not finite.
        """
        simulation, gradient, _ = self.gradient_with_slope(structure, cotangent, distance_um)
        return simulation, gradient

    def gradient_with_slope(
        self,
        structure: ArrayLike,
        cotangent: ArrayLike | Callable[[NDArray[np.float32]], ArrayLike],
        distance_um: float | None = None,
    ) -> tuple[Simulation, NDArray[np.float32], NDArray[np.float32]]:
        """What `gradient` returns, and the derivative of the spectra by the distance, float32 (4, W), in 1 / um.

        The derivative of sum(cotangent * spectra) by the distance is sum(cotangent * derivative).
        """
        density = self.density(structure)
        if not callable(cotangent):
            self._weights(cotangent)  # refused before the runs
        forward = self._forward(density, keep=True, both=True)
        simulation = self._simulation(forward, distance_um)
        weights = self._weights(cotangent(simulation.spectra) if callable(cotangent) else cotangent)
        gradients = self._backward(density, forward, weights.reshape(-1, *simulation.spectra.shape), distance_um)
        return simulation, gradients.reshape(*weights.shape[:-2], *density.shape), self._slope(forward, distance_um)

    def orders(self, structure: ArrayLike) -> farfield.Complex:
        """Fourier orders of E just under one structure, by simulation.

        Args:
            structure: as for `simulate`.

        Returns:
            complex64 (2, 2, W, ky, kx): polarisation of the incident light (x, y), component of E (x, y), wavelength, orders
            -7..7 in y and x. Amplitudes are relative to the incident wave at the upper face, phases refer to the corner of the
            unit cell. Orders that are evanescent in the substrate are included.

        Raises:
            InvalidStructure: as for `simulate`.
        """
        return self._orders(self._forward(self.density(structure), keep=False))

    def simulate_with_orders(self, structure: ArrayLike) -> tuple[Simulation, farfield.Complex]:
        """What `simulate` and `orders` return, from the same runs."""
        return self.results(self._forward(self.density(structure), keep=False))

    def results(self, recordings: list[Recording]) -> tuple[Simulation, farfield.Complex]:
        """What `simulate` and `orders` return, from runs of both polarisations that have ended."""
        return self._simulation(recordings), self._orders(recordings)

    def flux(self, orders: farfield.Complex, distance_um: float) -> NDArray[np.float32]:
        """Flux at a distance under the patterned layer, from `orders`: relative to the incident one, float32 (W, P, P)."""
        field = (orders.swapaxes(1, 2) * np.exp(1j * self._below.kz * distance_um)[:, None]).astype(np.complex64)
        return farfield.flux_map(field, self._below.magnetic(field)).mean(axis=0)

    def _orders(self, recordings: list[Recording]) -> farfield.Complex:
        """`orders` of runs that have ended."""
        through = np.stack([one.planes[1] for one in recordings])
        zero = self.order
        field = self._below.continuous(through, self._offset_um, 0.0).swapaxes(1, 2)
        # Recorded phases are relative to the bare pulse on the same plane, which has crossed the patterned layer and the
        # offset on its way. The phase of the layer is that of real vacuum, without the grid's numerical dispersion.
        offset = self._above.discrete_kz[:, zero, zero] * self._offset_um
        phase = offset + self._above.k0[:, 0, 0] * self.process.thickness_um
        scale = np.exp(1j * phase) / self._above.s_scale[:, zero, zero]
        return (field * scale[:, None, None]).astype(np.complex64)

    def _weights(self, cotangent: ArrayLike) -> NDArray[np.float64]:
        """Checked weights of the spectra, (4, W) or (C, 4, W)."""
        weights = np.asarray(cotangent, np.float64)
        shape = (len(CHANNELS), len(self.wavelengths_nm))
        if weights.shape[-2:] != shape or weights.ndim not in (2, 3):
            raise ValueError(f"cotangent must be {shape} or (C, {shape[0]}, {shape[1]}), got {weights.shape}")
        if not np.isfinite(weights).all():
            raise ValueError("cotangent must be finite, got a NaN or an infinity")
        return weights

    def density(self, structure: ArrayLike) -> NDArray[np.float64]:
        """A single checked density, (y, x).

        Raises:
            InvalidStructure: another shape, or values outside [0, 1].
        """
        structures = check_structures(structure, self.process.structure_shape, "structure")
        if len(structures) != 1:
            raise InvalidStructure(f"structure must be a single one, got {len(structures)}")
        density: NDArray[np.float64] = as_density(structures[0, 0], np.float64)
        return density

    def _forward(self, density: Array, keep: bool, both: bool = False) -> list[Recording]:
        """Runs of both polarisations.

        Args:
            density: density, (y, x).
            keep: whether to keep the field in the patterned layer.
            both: whether to run both even if symmetry yields one from the other.
        """
        fractions = fill_fractions(density, self.grid.cells)
        if not both and np.array_equal(density, density.T):  # one field is the transpose of the other
            x = self._run(fractions, 0, keep, stop=Event())
            return [x, transposed(x)]
        return self._in_parallel([partial(self._run, fractions, polarisation, keep) for polarisation in (0, 1)])

    def _in_parallel(self, jobs: list[Callable[[Event], _T]]) -> list[_T]:
        """Results of jobs, computed on `threads` threads; after an error, or Ctrl-C, none of them runs on."""
        stop = Event()
        if self.threads == 1:
            return [job(stop) for job in jobs]
        # Threads of matrix products would only wait for each other.
        with threadpool_limits(1, "blas"), ThreadPoolExecutor(self.threads) as pool:
            try:
                return [future.result() for future in [pool.submit(job, stop) for job in jobs]]
            finally:
                stop.set()

    def _run(self, fractions: Fractions, polarisation: int, keep: bool, stop: Event) -> Recording:
        """Send a pulse through a structure and follow it until it has decayed."""
        grid = self.grid
        run = Run(grid, fractions)

        def repeat(run: Run, interval: int) -> None:
            run.send(self.pulse, polarisation, interval, record=False)

        history = History(partial(Run, grid, fractions), repeat) if keep else None
        series: list[list[farfield.Complex]] = [[], []]
        watch = self.watch()
        ended = False
        while not ended and not stop.is_set():
            if history is not None:
                history.before(run, watch.intervals)
            recorded = run.send(self.pulse, polarisation, watch.intervals, record=True)
            for plane, projected in zip(recorded, series, strict=True):
                projected.append(farfield.project(plane, grid, self.order))
            if history is not None:
                history.after(run)
            ended = watch.ended(lambda: run.energy)
        return self.recording(np.stack([np.concatenate(projected) for projected in series], axis=1), watch, history)

    def watch(self) -> Watch:
        """What decides when a run of this solver has ended."""
        return Watch(self.grid, len(self.pulse), self.decay, self.longest)

    def recording(self, series: farfield.Complex, watch: Watch, history: History | None = None) -> Recording:
        """What is known of a run that has ended, from the orders on the planes above and below, (samples, 2, 2, ky, kx)."""
        spectra = farfield.spectrum(series, self.grid, self.wavelengths_nm)
        if not watch.decayed:
            spectra += tail(series, self.grid.stride * self.grid.dt, self.wavelengths_nm)
        back, through = (spectra[:, n] / scale[:, None, None, None] for n, scale in enumerate(self._incident))
        return Recording((back, through), watch.intervals, watch.remaining, history)

    def _simulation(self, recordings: list[Recording], distance_um: float | None = None) -> Simulation:
        back = np.stack([one.planes[0] for one in recordings])
        grid, zero = self.grid, self.order
        for polarisation in (0, 1):  # the source sheet radiates upwards, too, with the same amplitude
            back[polarisation, :, polarisation, zero, zero] -= 1
        incident_power = self._above.s_scale[:, zero, zero] ** 2
        back = self._above.continuous(back, (grid.top - grid.reflected) * grid.dz - grid.face_um, 0.0)
        through = self._at_detectors(recordings, distance_um)
        reflected = self._power(self._above, back) / incident_power
        flux = farfield.flux_map(through, self._below.magnetic(through)).mean(axis=0) / incident_power[:, None, None]
        spectra = np.einsum("cyx,wyx->cw", self._quadrants, flux)
        return Simulation(
            wavelengths_nm=self.wavelengths_nm,
            spectra=spectra.astype(np.float32),
            harmonics=farfield.window_harmonics(flux).T.astype(np.float32),
            reflection=reflected.astype(np.float32),
            remaining=max(one.remaining for one in recordings),
            duration=max(one.intervals for one in recordings) * grid.interval * grid.dt,
        )

    def _slope(self, recordings: list[Recording], distance_um: float | None) -> NDArray[np.float32]:
        """Derivative of the spectra by the distance, (4, W): every order turns by its kz."""
        waves, electric = self._below, self._at_detectors(recordings, distance_um)
        turning = (1j * waves.kz[:, None] * electric).astype(np.complex64)
        flux = farfield.flux_map(turning, waves.magnetic(electric)) + farfield.flux_map(
            electric, waves.magnetic(turning)
        )
        incident_power = self._above.s_scale[:, self.order, self.order] ** 2
        slope = np.einsum("cyx,wyx->cw", self._quadrants, flux.mean(axis=0) / incident_power[:, None, None])
        return slope.astype(np.float32)

    def _at_detectors(self, recordings: list[Recording], distance_um: float | None) -> farfield.Complex:
        """Orders of E at the detectors, (2, W, 2, ky, kx)."""
        through = np.stack([one.planes[1] for one in recordings])
        return self._below.continuous(through, *self._to_detectors(distance_um))

    def _to_detectors(self, distance_um: float | None) -> tuple[float, float]:
        """Distances of the recorded plane and of the detectors from the lower face of the patterned layer."""
        return self._offset_um, self.process.distance_um if distance_um is None else distance_um

    def _backward(
        self, density: Array, forward: list[Recording], cotangents: Array, distance_um: float | None
    ) -> NDArray[np.float32]:
        """Gradients of sum(cotangent * spectra) with respect to the density of every pixel, float32 (C, y, x).

        Args:
            density: density, (y, x).
            forward: runs of both polarisations, with their history.
            cotangents: weights of the spectra, (C, 4, W).
            distance_um: as for `simulate`.
        """
        fractions = fill_fractions(density, self.grid.cells)
        weights = np.einsum("kcw,cyx->kwyx", cotangents, self._quadrants)
        weights /= 2 * self._above.s_scale[:, self.order, self.order, None, None] ** 2
        sheets = [self._sheets(one, weights, distance_um) for one in forward]
        x, y = self._in_parallel(
            [partial(run_back, self.grid, fractions, one, theirs) for one, theirs in zip(forward, sheets, strict=True)]
        )
        by_pixel = [
            pull_back((ex + ey, fx + fy, gx + gy), self.grid.cells, self.process.pixels)
            for (ex, fx, gx), (ey, fy, gy) in zip(x, y, strict=True)
        ]
        return np.stack(by_pixel).astype(np.float32)

    def _sheets(self, recording: Recording, weights: Array, distance_um: float | None) -> list[Sheet]:
        """The sources of the adjoint runs of one polarisation, from weights of the flux, (C, W, P, P)."""
        waves, to_detectors = self._below, self._to_detectors(distance_um)
        through = waves.continuous(recording.planes[1], *to_detectors)
        magnetic = waves.magnetic(through)

        def sheet(one: Array) -> Sheet:
            by_e, by_h = farfield.flux_weights(through, magnetic, one)
            by_order = waves.continuous(by_e + waves.magnetic_transposed(by_h), *to_detectors)
            return Sheet(self.grid, self.wavelengths_nm, by_order / self._incident[1][:, None, None, None])

        return [sheet(one) for one in weights]

    @property
    def _offset_um(self) -> float:
        """Distance from the lower face of the patterned layer to the recorded plane under it."""
        return (self.grid.transmitted - self.grid.bottom) * self.grid.dz - self.grid.face_um

    def _incident_amplitude(self) -> farfield.Complex:
        """Amplitude of the bare pulse on the two recorded planes, (2, W), from one column of cells of vacuum."""
        grid = self.grid
        run = Run(grid, (np.zeros((1, 1)),) * 3, in_vacuum=True)
        intervals = range(-(-3 * len(self.pulse) // grid.interval))
        recorded = [run.send(self.pulse, 0, interval, record=True)[:, :, 0, 0, 0] for interval in intervals]
        return np.stack(
            [farfield.spectrum(plane, grid, self.wavelengths_nm) for plane in np.concatenate(recorded, axis=1)]
        )

    @staticmethod
    def _power(waves: farfield.PlaneWaves, field: farfield.Complex) -> NDArray[np.floating]:
        """Power of the propagating orders, averaged over the leading polarisation axis: (2, W, 2, ky, kx) to (W,)."""
        magnetic = waves.magnetic(field)
        flux = field[..., 0, :, :] * magnetic[..., 1, :, :].conj() - field[..., 1, :, :] * magnetic[..., 0, :, :].conj()
        return np.where(waves.propagating, flux.real, 0).sum(axis=(-2, -1)).mean(axis=0)


def transposed(recording: Recording) -> Recording:
    """The run of the other polarisation through a structure that equals its transpose."""
    back, through = (field[:, ::-1].swapaxes(-1, -2) for field in recording.planes)
    return Recording((back, through), recording.intervals, recording.remaining)
