"""One run of the time loop: materials at the nodes of the grid, the field, and how long to follow it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from metaspec_simulation.physics.farfield import Complex
from metaspec_simulation.physics.fdtd import Absorber, Field, Medium, Mesh, State, energy, fields, march, new_state
from metaspec_simulation.physics.grid import FACE_SHARE, Array, Grid, pml_profile
from metaspec_simulation.physics.sampling import correlate, keep

Fractions = tuple[Array, Array, Array]
"""Share of solid at the nodes of Ex, Ey and Ez, each (cells, cells)."""

Sample = list[tuple[NDArray[np.uint8], Field]]
"""The field in the patterned layer at one time: for Ex, Ey and Ez, numbers and their units, as `sampling.keep` fills them."""


class Run:
    """The field in a structure, from the first time step on.

    Args:
        grid: grid of the run.
        fractions: share of solid at the nodes of Ex, Ey and Ez, each (cells, cells).
        in_vacuum: whether to replace the substrate by vacuum.
    """

    def __init__(self, grid: Grid, fractions: Fractions, in_vacuum: bool = False) -> None:
        below = 1.0 if in_vacuum else grid.eps_substrate
        permittivity = np.where(np.arange(grid.depth + 1) <= grid.bottom, 1.0, below)
        permittivity[0] = np.inf  # a mirror behind the absorbing layer
        self._grid = grid
        self._row = len(fractions[0])
        layers = (4, self._row * (self._row + 2))
        inverse, drive = fields(3, layers), fields(3, layers)
        x, y, z = (np.pad(fraction, ((1, 1), (0, 0)), mode="wrap") for fraction in fractions)
        for ours, values in zip((inverse, drive), layer_materials(grid, (x, y, z), below), strict=True):
            for array, numbers in zip(ours, values, strict=True):
                array[:] = numbers
        self._mesh = Mesh(
            stride=grid.stride,
            row=self._row,
            rx=np.float32(grid.dt / grid.dx),
            rz=np.float32(grid.dt / grid.dz),
            dt=np.float32(grid.dt),
            reflected=grid.reflected,
            top=grid.top,
            bottom=grid.bottom,
            transmitted=grid.transmitted,
        )
        self._medium = Medium(
            inverse_plane=(1 / permittivity).astype(np.float32),
            inverse=(inverse[0], inverse[1], inverse[2]),
            drive=(drive[0], drive[1], drive[2]),
            stiffness=np.float32(grid.dt * grid.pole_frequency**2),
        )
        self._absorber = Absorber(*pml_profile(grid))
        self._state = new_state(self._mesh, grid.depth)

    def advance(self, source: int, sheet: Field, record: bool) -> Field:
        """Advance by `grid.interval` steps.

        Args:
            source: z index of the source plane.
            sheet: amplitudes to add to Ex and Ey there in the first of the steps, float32 (at most interval, 2, y * x).
            record: whether to record Ex and Ey on the planes above and below.

        Returns:
            float32 (2, samples, 2, cells, cells), without samples if nothing is recorded.
        """
        samples = self._grid.interval // self._grid.stride if record else 0
        recorded = np.empty((2, samples, 2, self._row * self._row), np.float32)
        march(self._mesh, self._medium, self._absorber, self._state, self._grid.interval, source, sheet, recorded)
        return recorded.reshape(2, samples, 2, self._row, self._row)

    def send(self, pulse: NDArray[np.float32], polarisation: int, interval: int, record: bool) -> Field:
        """Advance through an interval of the run with the part of a pulse that falls into it; returns as `advance`.

        Args:
            pulse: amplitude of the pulse in each step from the first of the run, (steps,).
            polarisation: 0 for x, 1 for y.
            interval: number of the interval.
            record: as for `advance`.
        """
        amplitude = pulse[interval * self._grid.interval :][: self._grid.interval]
        sheet = np.zeros((len(amplitude), 2, self._row * self._row), np.float32)
        sheet[:, polarisation] = amplitude[:, None]
        return self.advance(self._grid.source, sheet, record)

    def checkpoint(self) -> State:
        """A copy of all that the next step depends on."""
        return _copied(self._state)

    def resume(self, checkpoint: State) -> None:
        """Go on from a checkpoint of a run of the same structure."""
        for ours, kept in zip(self._state, checkpoint, strict=True):
            for field, values in zip(ours, kept, strict=True):
                field[:] = values

    @property
    def energy(self) -> float:
        """Sum of the squares of all field components, a measure of the light that is still in the grid."""
        return sum(energy(field, self._row) for field in (*self._state.e, *self._state.h))

    def sample(self) -> Sample:
        """The field in the patterned layer."""
        cells = self._row
        kept: Sample = []
        for field in self._inside:
            numbers = np.empty((len(field), cells, cells), np.uint8)
            units = np.empty((len(field), cells), np.float32)
            keep(field, numbers, units)
            kept.append((numbers, units))
        return kept

    def correlate(self, other: Sample, totals: NDArray[np.float64]) -> None:
        """Add the product with another field in the layer, summed over z, to totals for Ex, Ey and Ez, (3, cells, cells)."""
        for field, (numbers, units), at_face, total in zip(self._inside, other, _FACES, totals, strict=True):
            share = np.ones(len(field), np.float32)
            share[[0, -1]] = at_face
            correlate(field, numbers, units, share, total)

    @property
    def _inside(self) -> tuple[Field, Field, Field]:
        ex, ey, ez = self._state.e
        top, bottom = self._grid.top, self._grid.bottom + 1
        return ex[top:bottom], ey[top:bottom], ez[top - 1 : bottom]


def layer_materials(grid: Grid, fractions: Fractions, below: float) -> tuple[list[Array], list[Array]]:
    """Materials of the patterned layer at Ex, Ey and Ez, `inverse` and `drive` of `fdtd.Medium`.

    Args:
        grid: grid of the run.
        fractions: share of solid at the nodes of Ex, Ey and Ez, of any shape (y, x).
        below: permittivity under the layer.

    Returns:
        For each of Ex, Ey and Ez one array (4, y * x).
    """
    outside = np.array([1.0, 1.0, 1.0, below])[:, None]
    inverse, drive = [], []
    for fraction, shares in zip(fractions, _SHARES, strict=True):
        share, solid = np.array(shares)[:, None], fraction.ravel()
        inverse.append(1 / ((1 - share) * outside + share * (1 + solid * (grid.eps_solid - 1))))
        drive.append(share * solid * grid.dt * grid.pole_frequency**2 * grid.pole_strength)
    return inverse, drive


def _copied(state: State) -> State:
    (ex, ey, ez), (hx, hy, hz), (px, py, pz), (jx, jy, jz), (mx, my, mu, mv) = state
    return State(
        (ex.copy(), ey.copy(), ez.copy()),
        (hx.copy(), hy.copy(), hz.copy()),
        (px.copy(), py.copy(), pz.copy()),
        (jx.copy(), jy.copy(), jz.copy()),
        (mx.copy(), my.copy(), mu.copy(), mv.copy()),
    )


_FACES = (FACE_SHARE, FACE_SHARE, FACE_SHARE - 0.5)
"""Share of the patterned layer in the outermost cells of Ex, Ey and Ez."""

_SHARES = ((0, _FACES[0], 1, _FACES[0]), (0, _FACES[1], 1, _FACES[1]), (_FACES[2], 1, 1, _FACES[2]))
"""Share of the patterned layer at Ex, Ey and Ez on the planes of `Medium`."""


class History:
    """The field in the patterned layer after each interval of a run, backwards, within a bound on memory.

    Only the newest samples are kept. Where all of them would exceed the bound, checkpoints of the whole field take their place,
    and that part of the run is repeated when it is asked for (Griewank and Walther, "Evaluating Derivatives", chapter 12).

    Args:
        restart: makes a run that has not begun.
        advance: advances a run through the interval of a number.
    """

    def __init__(self, restart: Callable[[], Run], advance: Callable[[Run, int], object]) -> None:
        self._restart, self._advance = restart, advance
        self._checkpoints: list[State | None] = []  # None before the first interval
        self._segments: list[list[Sample]] = []  # after each checkpoint; the older ones are empty
        self._length = 0  # intervals between checkpoints, known after the first sample
        self._bytes = 0

    def before(self, run: Run, interval: int) -> None:
        """Take note of a run that is about to advance through an interval."""
        if interval == 0:
            self._checkpoints.append(None)
            self._segments.append([])
        elif len(self._segments[-1]) == self._length:
            checkpoint = run.checkpoint()
            self._checkpoints.append(checkpoint)
            self._segments.append([])
            self._bytes += sum(field.nbytes for fields in checkpoint for field in fields)

    def after(self, run: Run) -> None:
        """Keep the field of a run that has advanced."""
        sample = run.sample()
        size = sum(numbers.nbytes + units.nbytes for numbers, units in sample)
        self._length = self._length or max(1, _MOST_BYTES // (3 * size))
        self._segments[-1].append(sample)
        self._bytes += size
        for old in self._segments[:-1]:
            if self._bytes > _MOST_BYTES:
                self._bytes -= size * len(old)
                old.clear()

    def backwards(self) -> Iterator[Sample]:
        """Samples after each interval, the last one first; each is let go of once it is handed out."""
        while self._checkpoints:
            checkpoint, samples = self._checkpoints.pop(), self._segments.pop()
            if not samples:
                run, first = self._restart(), len(self._checkpoints) * self._length
                if checkpoint is not None:
                    run.resume(checkpoint)
                for interval in range(first, first + self._length):
                    self._advance(run, interval)
                    samples.append(run.sample())
            while samples:
                yield samples.pop()


_MOST_BYTES = 300_000_000
"""Bound on what a run keeps: nothing is repeated in most runs at 64 cells, and two runs at 80 cells fit into 1 GiB."""


DECAY = 5e-6
"""Share of the largest energy in the grid at which a run ends."""

LONGEST = 400.0
"""Time at which a run ends in any case, um / c; what then still rings is continued, see `physics.tail`."""

_AFTER_PULSE = 10.0  # um / c: what little energy is left of a film's echoes still counts in every wavelength


class Watch:
    """Decides when a run has ended: when the light has left the grid, or at the longest time.

    Args:
        grid: grid of the run.
        pulse_steps: length of the pulse in steps.
        decay: share of the largest energy in the grid at which a run ends.
        longest: time at which it ends in any case, um / c.

    Attributes:
        intervals: number of intervals that the run has advanced.
        energy: energy in the grid at the last look, as `Run.energy`.
        largest: the largest of these energies.
    """

    def __init__(self, grid: Grid, pulse_steps: int, decay: float, longest: float) -> None:
        self._interval = grid.interval * grid.dt
        self._pulse = pulse_steps * grid.dt
        self._decay, self._longest = decay, longest
        self.intervals, self.energy, self.largest = 0, 0.0, 0.0

    @property
    def most(self) -> int:
        """Largest number of intervals."""
        return int(np.ceil(self._longest / self._interval)) + 1

    @property
    def decayed(self) -> bool:
        """Whether the light had left the grid at the last look."""
        return self.energy <= self._decay * self.largest

    @property
    def remaining(self) -> float:
        """Energy left in the grid at the last look, relative to the largest."""
        return self.energy / self.largest

    def ended(self, energy: Callable[[], float]) -> bool:
        """Take note of another interval; `energy` is asked for the energy in the grid if it is time to look."""
        self.intervals += 1
        passed = self.intervals * self._interval
        if passed < self._pulse or self.intervals % 4 == 0:
            self.energy = energy()
            self.largest = max(self.largest, self.energy)
            if passed >= self._pulse + _AFTER_PULSE and self.decayed:
                return True
        return passed >= self._longest


@dataclass(frozen=True)
class Recording:
    """What is known of a run that has ended.

    Attributes:
        planes: spectra of the orders on the planes above and below, relative to the incident light, each (W, 2, ky, kx).
        intervals: length of the run, in units of `grid.interval`.
        remaining: energy left in the grid at the end, relative to the largest.
        history: field in the patterned layer over the run, if it was kept.
    """

    planes: tuple[Complex, Complex]
    intervals: int
    remaining: float
    history: History | None = None
