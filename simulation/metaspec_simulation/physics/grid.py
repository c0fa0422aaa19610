"""The Yee grid of the solver: cells, time steps, pulse, absorbing layers, and materials fitted to the grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from metaspec_contract.process import Process

COURANT = 0.55
"""Time step in units of the cell; three dimensions are stable below 0.577."""

PML_CELLS = 14
"""Cells of each absorbing layer."""

_CONDUCTIVITY = 12.0
_STRETCH = 8.0
"""Conductivity in units of 1 / dz, and stretch of z, at the outer ends of the absorbing layers.

Without the stretch, a resonance of a chequerboard just above the cut-off of an order, whose evanescent field reaches the
layers, lost a tenth of its power in them [80 cells]. Chosen by the difference from layers of 40 cells for chequerboards,
lines, a film and random structures: a third of that of 20 cells of conductivity alone [64], and as small on coarse grids.
"""

FACE_SHARE = 0.92
"""Share of a cell that the patterned layer fills on the first and on the last plane of Ex and Ey.

The reflectance of a face has an error of second order in the cell. It has one sign for a face in the middle between two
planes (share 1) and the other for a face on a plane (share 1/2), and vanishes in between: for a wave at normal incidence
in a solid whose phase is exact, at s (1 - s) = 1/12, which is 0.908. 0.92 is best for Si3N4 from 400 to 700 nm.
"""

PULSE_WIDTH = 0.53
"""Standard deviation of the pulse in um / c: its spectrum covers 400 to 700 nm."""

PULSE_DELAY = 4.5 * PULSE_WIDTH

SAMPLE_INTERVAL = 0.09
"""Longest time between two recordings, um / c; twice as much aliases and costs 2 % at 450 nm."""

Array = NDArray[np.floating]


@dataclass(frozen=True)
class Grid:
    """Grid, time step, source and absorbing layers of a simulation; independent of the structure.

    The solid has the permittivity eps_solid + pole_strength / (1 - (omega / pole_frequency)^2). It is not Si3N4's own, but
    fitted so that a wave along z advances in phase in the *discretised* solid exactly as in the real one. On a coarse grid
    this removes most of the numerical dispersion (measured in `docs/simulation.md`).

    Attributes:
        cells: cells along x and along y.
        dx: size of a cell in x and y, um.
        dz: size of a cell in z, um, chosen so that the patterned layer fills `FACE_SHARE` of a cell around `top` and `bottom`.
        dt: time step, um / c.
        stride: steps between two recordings.
        interval: steps between two samples of the field in the patterned layer, a multiple of `stride`.
        reflected: z index of the plane, above the source, where the reflected field is recorded.
        source: z index of the plane where the pulse is added.
        top: z index of the first plane of Ex and Ey in the patterned layer.
        bottom: z index of the last one.
        transmitted: z index of the recorded plane in the substrate.
        depth: z index of the last plane.
        eps_substrate: relative permittivity of the substrate.
        eps_solid: instantaneous relative permittivity of the solid.
        pole_strength: static susceptibility of the solid's Lorentz pole.
        pole_frequency: angular frequency of that pole, c / um.
    """

    cells: int
    dx: float
    dz: float
    dt: float
    stride: int
    interval: int
    reflected: int
    source: int
    top: int
    bottom: int
    transmitted: int
    depth: int
    eps_substrate: float
    eps_solid: float
    pole_strength: float
    pole_frequency: float

    @property
    def face_um(self) -> float:
        """Distance of the patterned layer's faces from the planes `top` and `bottom`, outwards."""
        return (FACE_SHARE - 0.5) * self.dz

    def discrete_frequency(self, omega: NDArray[Any]) -> NDArray[Any]:
        """Angular frequency that a central difference in time turns omega into, real or complex."""
        return 2 / self.dt * np.sin(omega * self.dt / 2)


def make_grid(process: Process, cells: int) -> Grid:
    """The grid of a process.

    Args:
        process: process to simulate.
        cells: cells per period; 48 is coarse, 128 is fine.

    Raises:
        ValueError: the grid is too coarse for the wavelength in the solid, as it always is below 24 cells.
    """
    if cells < 24:
        raise ValueError(f"cells must be at least 24, got {cells}")
    dx = process.period_um / cells
    layers = max(1, int(np.ceil(process.thickness_um / dx - (2 * FACE_SHARE - 1))))
    dz = process.thickness_um / (layers + 2 * FACE_SHARE - 1)
    dt = COURANT * min(dx, dz)
    stride = max(1, int(SAMPLE_INTERVAL / dt))
    gap = max(3, round(0.12 / dz))
    reflected = PML_CELLS + 1
    source = reflected + 1
    top = source + gap
    bottom = top + layers
    transmitted = bottom + 2
    omega = 2 * np.pi * 1000 / process.wavelengths_nm[::5]
    eps_solid, strength, frequency = _fit_solid(process.solid.index(process.wavelengths_nm[::5]), omega, dz, dt)
    return Grid(
        cells=cells,
        dx=dx,
        dz=dz,
        dt=dt,
        stride=stride,
        interval=stride * max(1, int(_longest_interval(process) / (stride * dt))),
        reflected=reflected,
        source=source,
        top=top,
        bottom=bottom,
        transmitted=transmitted,
        depth=transmitted + gap + PML_CELLS,
        eps_substrate=_fit_substrate(process.substrate.index(process.wavelengths_nm[::5]), omega, dx, dt),
        eps_solid=eps_solid,
        pole_strength=strength,
        pole_frequency=frequency,
    )


def _fit_solid(index: Array, omega: Array, dz: float, dt: float) -> tuple[float, float, float]:
    """Fit a stable one-pole permittivity that gives the grid the refractive index along z."""
    discrete = 2 / dt * np.sin(omega * dt / 2)
    wanted = (2 / dz * np.sin(index * omega * dz / 2) / discrete) ** 2
    best: tuple[float, tuple[float, float, float]] | None = None
    for frequency in 2 * np.pi / np.linspace(0.08, 0.30, 45):
        basis = np.stack([np.ones_like(omega), 1 / (1 - (discrete / frequency) ** 2)], axis=1)
        (above_vacuum, strength), residual = nnls(basis, wanted - 1)
        eps = 1 + above_vacuum
        # The explicit pole and the curl share the stability limit of 4; stay clear of it.
        if (frequency * dt) ** 2 * (1 + strength / eps) + 12 * COURANT**2 / eps > 3.8:
            continue
        if best is None or residual < best[0]:
            best = residual, (float(eps), float(strength), float(frequency))
    if best is None:
        raise ValueError(
            f"the grid is too coarse: no stable material model for an index of {index.min():.2f} to {index.max():.2f} "
            f"in cells of {dz:.3g} um; use more cells per period"
        )
    return best[1]


def _fit_substrate(index: Array, omega: Array, dx: float, dt: float) -> float:
    """Fit the permittivity that gives in-plane waves their real wavelength on the grid.

    It is the mean over wavelengths and directions; orders are then cut off at the right wavelengths. One number suffices, as
    the numerical dispersion of coarse grids compensates the substrate's own.
    """
    azimuth = np.pi / 4 * (np.arange(8) + 0.5) / 8
    k = (index * omega)[:, None]
    bent = sum((2 / dx * np.sin(k * dx / 2 * along)) ** 2 for along in (np.cos(azimuth), np.sin(azimuth)))
    discrete = 2 / dt * np.sin(omega * dt / 2)
    return float(np.mean(bent / discrete[:, None] ** 2))


def fill_fractions(structure: NDArray[np.generic], cells: int) -> tuple[Array, Array, Array]:
    """Share of solid around each node of Ex, Ey and Ez, each (cells, cells).

    A node represents the cell centred on it: Ex lies half a cell towards +x from the cell's corner, Ey half a cell
    towards +y, Ez on the corner. Area averages are more accurate here than harmonic averages across the edges.
    """
    pixels = len(structure)
    fine = int(np.lcm(pixels, 2 * cells))
    density = np.asarray(structure, np.float64).repeat(fine // pixels, axis=0).repeat(fine // pixels, axis=1)
    width = fine // cells

    def mean(rows_centred: bool, columns_centred: bool) -> Array:
        shifted = np.roll(density, (width // 2 * rows_centred, width // 2 * columns_centred), axis=(0, 1))
        return np.asarray(shifted.reshape(cells, width, cells, width).mean(axis=(1, 3)))

    x, y, z = (mean(*centred) for centred in _CENTRED)
    return x, y, z


_CENTRED = ((True, False), (False, True), (True, True))
"""Whether the cell around Ex, Ey and Ez is centred on the corner of a cell of the grid along y and along x."""


def pull_back(gradient: tuple[Array, Array, Array], cells: int, pixels: int) -> Array:
    """Transpose of `fill_fractions`: from the gradient with respect to the fractions to that by pixel, (pixels, pixels)."""
    fine = int(np.lcm(pixels, 2 * cells))
    width, pixel = fine // cells, fine // pixels
    by_pixel = np.zeros((pixels, pixels))
    for component, (rows_centred, columns_centred) in zip(gradient, _CENTRED, strict=True):
        spread = np.asarray(component, np.float64).repeat(width, axis=0).repeat(width, axis=1) / width**2
        moved = np.roll(spread, (-(width // 2) * rows_centred, -(width // 2) * columns_centred), axis=(0, 1))
        by_pixel += moved.reshape(pixels, pixel, pixels, pixel).sum(axis=(1, 3))
    return by_pixel


def pulse(grid: Grid, process: Process) -> NDArray[np.float32]:
    """Amplitude added to the source plane in each step, float32 (steps,): a Gaussian pulse centred on the band."""
    time = np.arange(int(np.ceil(2 * PULSE_DELAY / grid.dt))) * grid.dt - PULSE_DELAY
    shape = np.exp(-(time**2) / (2 * PULSE_WIDTH**2)) * np.cos(_centre(process) * time)
    return (2 * grid.dt / grid.dz * shape).astype(np.float32)


def _centre(process: Process) -> float:
    """Angular frequency in the middle of the band, c / um."""
    return float(1000 * np.pi * (1 / process.wavelength_min_nm + 1 / process.wavelength_max_nm))


def _longest_interval(process: Process) -> float:
    """Longest time between samples of the field whose products with a field in the band can be summed, um / c.

    A sum over samples takes frequencies for each other that differ by 2 pi / interval. The highest sum of a frequency in
    the band and one of the pulse, whose spectrum is below 1e-5 at 4.8 standard deviations from its centre, must be below.
    """
    highest = 2 * np.pi * 1000 / process.wavelength_min_nm
    return float(2 * np.pi / (highest + _centre(process) + 4.8 / PULSE_WIDTH))


def pml_profile(grid: Grid) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Decay and gain of the absorbing layers' memory, and their factor of derivatives along z.

    Each is float32 (2, depth + 1), at whole and half z cells. Cubic grading after Roden and Gedney, Microw. Opt. Technol.
    Lett. 27, 334 (2000), with the frequency shift that absorbs near-grazing orders, and with a stretch of z in which
    evanescent ones decay. The stretch rises late, as the cells have to resolve short waves where these are still strong.
    """
    thickness = PML_CELLS * grid.dz
    decay, gain, shrink = np.empty((3, 2, grid.depth + 1))
    for row, offset in enumerate((0.0, 0.5)):
        z = (np.arange(grid.depth + 1) + offset) * grid.dz
        upper = np.clip(1 - z / thickness, 0, 1)
        lower = np.clip(1 - (grid.depth * grid.dz - z) / thickness, 0, 1)
        conductivity = _CONDUCTIVITY / grid.dz * (upper**3 + lower**3 / np.sqrt(grid.eps_substrate))
        stretch = 1 + (_STRETCH - 1) * (upper**5 + lower**5)
        shift = 1.3 * (1 - upper - lower)
        decay[row] = np.exp(-(conductivity / stretch + shift) * grid.dt)
        total = stretch * (conductivity + stretch * shift)
        gain[row] = np.where(conductivity > 0, conductivity / total * (decay[row] - 1), 0)
        shrink[row] = 1 / stretch
    return decay.astype(np.float32), gain.astype(np.float32), shrink.astype(np.float32)
