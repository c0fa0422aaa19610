"""From the recorded field to efficiencies: Fourier orders, angular spectrum, flux through the detectors.

All of it is linear algebra on the few Fourier orders that carry power in the substrate. The Yee grid's plane waves differ
slightly from the continuum's: their flux and their phase between the patterned layer and the recorded plane follow from the
discrete dispersion relation (Taflove and Hagness, chapter 4), which removes an error of 2 to 4 % in power on coarse grids.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from metaspec_contract.process import Process
from metaspec_contract.structures import PIXELS
from metaspec_simulation.physics.grid import Grid

HARMONICS = (0, 1, 3, 5, 7, 9, 11, 13)
"""Orders of the flux, along each axis, that half a period integrates to other than 0: even ones except 0 vanish.
The flux of the orders -7..7 has none above 14."""

_GRAZING = (1.0, 3.0)
"""The grid's kz is used where kz^2 is below the first of these multiples of its difference between grid and continuum, the
continuum's above the second. From 1 on, both kz are real or both imaginary; a wide transition costs accuracy."""

Complex = NDArray[np.complexfloating]
Float = NDArray[np.floating]


def max_order(process: Process) -> int:
    """Highest Fourier order that propagates in the substrate at any wavelength of the process."""
    index = process.substrate.index(process.wavelengths_nm)
    return int(np.max(index * process.period_um / (process.wavelengths_nm / 1000)))


def project(recorded: NDArray[np.float32], grid: Grid, order: int) -> Complex:
    """Project planes onto Fourier orders -order..order: (samples, 2, y, x) to complex64 (samples, 2, ky, kx).

    Ex and Ey lie half a cell off the corner of their cell, in x and in y; the phases of both refer to the corner.
    """
    kernel, half_cell = projection(grid, order)
    coefficients = kernel.T @ (recorded @ kernel)
    coefficients[:, 0] *= half_cell[None, None, :]
    coefficients[:, 1] *= half_cell[None, :, None]
    return coefficients


@functools.cache  # it is asked for at every few steps
def projection(grid: Grid, order: int) -> tuple[Complex, Complex]:
    """exp(-i k x) / cells on the corners of the cells, (cells, orders), and over half a cell, (orders,)."""
    orders = np.arange(-order, order + 1)
    position = np.arange(grid.cells) / grid.cells
    kernel = np.exp(-2j * np.pi * np.outer(position, orders)) / grid.cells
    return kernel.astype(np.complex64), np.exp(-1j * np.pi * orders / grid.cells).astype(np.complex64)


def spectrum(series: Complex | Float, grid: Grid, wavelengths_nm: Float) -> Complex:
    """Fourier transform in time with exp(+i omega t): (samples, ...) to (wavelengths, ...)."""
    kernel = oscillation(np.arange(len(series)) * grid.stride, grid, wavelengths_nm)
    return (kernel @ series.reshape(len(series), -1)).reshape(len(kernel), *series.shape[1:])


def oscillation(steps: NDArray[np.integer], grid: Grid, wavelengths_nm: Float) -> Complex:
    """exp(i omega t), complex64 (wavelengths, steps)."""
    return np.exp(1j * np.outer(2 * np.pi * 1000 / wavelengths_nm, steps * grid.dt)).astype(np.complex64)


class PlaneWaves:
    """The plane waves of a half space, in the continuum and on the grid.

    Args:
        grid: grid of the simulation.
        process: process that is simulated.
        wavelengths_nm: wavelengths in nm, (W,).
        index: refractive index of the half space, (W,).
        eps: permittivity of the half space on the grid.
        order: highest Fourier order along each axis.
    """

    def __init__(
        self, grid: Grid, process: Process, wavelengths_nm: Float, index: Float, eps: float, order: int
    ) -> None:
        self.k0 = (2 * np.pi * 1000 / wavelengths_nm)[:, None, None]
        k = 2 * np.pi / process.period_um * np.arange(-order, order + 1)
        self.kx, self.ky = k[None, None, :], k[None, :, None]
        in_plane = self.kx**2 + self.ky**2
        bent_x, bent_y = (2 / grid.dx * np.sin(k * grid.dx / 2) for k in (self.kx, self.ky))
        omega = grid.discrete_frequency(self.k0)
        bent_z = np.sqrt(eps * omega**2 - bent_x**2 - bent_y**2 + 0j)
        self.discrete_kz = 2 / grid.dz * np.arcsin(bent_z * grid.dz / 2)
        self.kz = np.sqrt(_near_grazing((index[:, None, None] * self.k0) ** 2 - in_plane, self.discrete_kz**2))
        self.kz[self.kz == 0] = 1e-6
        self.propagating = self.kz.imag == 0
        # Near grazing, E of an s wave and H of a p wave stay finite, so those two are taken from the grid, scaled to equal
        # power.
        overlap = np.cos(self.discrete_kz * grid.dz / 2)
        impedance, discrete_impedance = self.kz * self.k0 / (in_plane + self.kz**2), bent_z / (eps * omega)
        self.s_scale = np.sqrt(np.abs(bent_z / omega * overlap * self.k0 / self.kz))
        self.p_scale = np.sqrt(np.abs(overlap * discrete_impedance / impedance)) * impedance / discrete_impedance
        norm = np.sqrt(np.where(in_plane == 0, 1, in_plane))
        self.ux = np.where(in_plane == 0, 1, self.kx / norm)
        self.uy = self.ky / norm

    def continuous(self, field: Complex, offset_um: float, distance_um: float) -> Complex:
        """Turn grid amplitudes at `offset_um` into continuum amplitudes of equal power at `distance_um`.

        The matrix that maps E to E is symmetric, so this is its own transpose. Both distances are measured from the patterned
        layer's face, in the direction of the light; shapes (..., W, 2, ky, kx).
        """
        ex, ey = field[..., 0, :, :], field[..., 1, :, :]
        advance = np.exp(1j * (self.kz * distance_um - self.discrete_kz * offset_um))
        p = (ex * self.ux + ey * self.uy) * self.p_scale * advance
        s = (ey * self.ux - ex * self.uy) * self.s_scale * advance
        return np.stack([p * self.ux - s * self.uy, p * self.uy + s * self.ux], axis=-3).astype(np.complex64)

    def magnetic(self, field: Complex) -> Complex:
        """Hx and Hy of waves with these Ex and Ey, both (..., W, 2, ky, kx), in units where Z0 = 1."""
        ex, ey = field[..., 0, :, :], field[..., 1, :, :]
        ez = -(self.kx * ex + self.ky * ey) / self.kz
        hx = (self.ky * ez - self.kz * ey) / self.k0
        hy = (self.kz * ex - self.kx * ez) / self.k0
        return np.stack([hx, hy], axis=-3).astype(np.complex64)

    def magnetic_transposed(self, weights: Complex) -> Complex:
        """Transpose of `magnetic`: from the derivative by Hx and Hy to that by Ex and Ey, (..., W, 2, ky, kx)."""
        gx, gy = weights[..., 0, :, :] / self.k0, weights[..., 1, :, :] / self.k0
        gz = (self.ky * gx - self.kx * gy) / self.kz
        return np.stack([self.kz * gy - self.kx * gz, -self.kz * gx - self.ky * gz], axis=-3).astype(np.complex64)


def _near_grazing(squared: Complex, discrete: Complex) -> Complex:
    """Squares of kz, the continuum's for most waves, the grid's near grazing, with a smooth transition: complex.

    The grid cuts an order off at a slightly other wavelength. Between the two cut-offs a wave carries power in the grid and
    none in the continuum, or the reverse; with the grid's kz there, all power that leaves the grid arrives.

    Args:
        squared: squares in the continuum.
        discrete: squares on the grid.
    """
    difference = discrete - squared
    distance = np.abs(squared) / np.maximum(np.abs(difference), 1e-12)
    step = np.clip((distance - _GRAZING[0]) / (_GRAZING[1] - _GRAZING[0]), 0, 1)
    blended: Complex = squared + (1 - step**2 * (3 - 2 * step)) * difference
    return blended


def flux_map(electric: Complex, magnetic: Complex) -> NDArray[np.float32]:
    """Time-averaged Poynting flux along z on P x P points of the unit cell: (..., 2, ky, kx) to float32 (..., P, P).

    P samples every product of two orders without aliasing. Normalised so that a plane wave of amplitude 1 in vacuum has
    flux 1.
    """
    e, h = (_on_points(field) for field in (electric, magnetic))
    cross = e[..., 0, :, :] * h[..., 1, :, :].conj() - e[..., 1, :, :] * h[..., 0, :, :].conj()
    return np.asarray(cross.real, np.float32)


def flux_weights(electric: Complex, magnetic: Complex, weights: Float) -> tuple[Complex, Complex]:
    """Derivatives of sum(weights * flux_map) by the orders of E and of H, so that a change is Re sum(derivative * change).

    Args:
        electric: E as for `flux_map`, (..., 2, ky, kx).
        magnetic: H.
        weights: weights of the points, (..., P, P).
    """
    e, h = (_on_points(field).conj() for field in (electric, magnetic))
    kernel = _points_kernel(electric.shape[-1] // 2)
    by_e = np.stack([weights * h[..., 1, :, :], -weights * h[..., 0, :, :]], axis=-3)
    by_h = np.stack([-weights * e[..., 1, :, :], weights * e[..., 0, :, :]], axis=-3)
    return kernel @ (by_e @ kernel.T), kernel @ (by_h @ kernel.T)


def quadrant_weights(order: int) -> NDArray[np.float64]:
    """Weights that integrate a flux map over R, G1, G2 and B, in units of the unit cell's area: (4, P, P).

    Exact for products of two orders up to `order`.
    """
    points = _flux_points(order)
    orders = np.arange(-2 * order, 2 * order + 1)
    waves = np.exp(-2j * np.pi * np.outer(orders, np.arange(points)) / points) / points
    first = (_window(orders) @ waves).real
    halves = np.stack([first, 1 / points - first])
    weights: NDArray[np.float64] = np.einsum("ay,bx->abyx", halves, halves).reshape(4, points, points)
    return weights


def _on_points(field: Complex) -> Complex:
    kernel = _points_kernel(field.shape[-1] // 2)
    points: Complex = kernel.T @ (field @ kernel)
    return points


def _points_kernel(order: int) -> Complex:
    points = _flux_points(order)
    phase = np.outer(np.arange(-order, order + 1), np.arange(points)) / points
    return np.exp(2j * np.pi * phase).astype(np.complex64)


def _flux_points(order: int) -> int:
    """Points per axis that sample every product of two orders without aliasing."""
    return 4 * order + 4


def window_harmonics(flux: Float) -> Float:
    """Fourier coefficients of the power in the R quadrant as a function of the structure's position.

    Args:
        flux: flux (..., P, P) from `flux_map`, or on another sufficient number P of points per axis.

    Returns:
        (..., 225): real parts, then imaginary parts without the constant's, in the order of `harmonic_orders`.
    """
    rows, columns = harmonic_orders()
    points = flux.shape[-1]
    resolved = (
        2 * np.maximum(np.abs(rows), np.abs(columns)) < points
    )  # others vanish: fewer points suffice for fewer orders
    position = np.arange(points) / points
    low, high = int(min(rows.min(), columns.min())), int(max(rows.max(), columns.max()))
    kernel = np.exp(-2j * np.pi * np.outer(position, np.arange(low, high + 1))) / points
    coefficients = kernel.T.astype(np.complex64) @ (flux @ kernel.astype(np.complex64))
    picked = coefficients[..., rows - low, columns - low] * _window(rows) * _window(columns) * resolved
    picked[..., 1:] *= 2  # each represents its complex conjugate, too
    return np.concatenate([picked.real, picked.imag[..., 1:]], axis=-1)


def harmonic_orders() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Row and column orders (m, n) of the harmonics, 113 each: one of every pair (m, n), (-m, -n)."""
    signed = sorted({sign * order for order in HARMONICS for sign in (1, -1)}, key=lambda order: (abs(order), -order))
    pairs = [(m, n) for m in signed for n in signed if n > 0 or (n == 0 and m >= 0)]
    pairs.sort(key=lambda pair: (abs(pair[0]) + abs(pair[1]), pair))
    return np.array([m for m, _ in pairs]), np.array([n for _, n in pairs])


def shifted_basis(
    rows: NDArray[np.integer],
    columns: NDArray[np.integer],
    orders: tuple[NDArray[np.integer], NDArray[np.integer]] | None = None,
    pixels: int = PIXELS,
) -> NDArray[np.float32]:
    """Matrices that turn harmonics into the spectra of shifted structures, float32 (N, 4, H).

    `basis[i] @ harmonics`, with harmonics (H, W), gives the exact spectra of the structure shifted by `np.roll` by `rows[i]`
    and `columns[i]` pixels: translating a structure only translates the flux over the detectors.

    Args:
        rows: shifts along y in pixels, (N,).
        columns: shifts along x in pixels, (N,).
        orders: row and column orders of the harmonics, those of a data set; default: `harmonic_orders`, H = 225.
        pixels: pixels along each side of a structure.
    """
    m, n = harmonic_orders() if orders is None else orders
    phase = -2 * np.pi * (np.multiply.outer(rows, m) + np.multiply.outer(columns, n)) / pixels
    half_period = np.array([[(-1.0) ** (row * a + column * b) for a, b in zip(m, n, strict=True)]
                            for row in (0, 1) for column in (0, 1)])  # fmt: skip
    cosine, sine = np.cos(phase)[:, None] * half_period, np.sin(phase)[:, None] * half_period
    return np.concatenate([cosine, -sine[..., 1:]], axis=-1).astype(np.float32)


def _window(order: NDArray[np.int64]) -> Complex:
    """Integral of exp(2 pi i order x) over the first half of the period."""
    safe = np.where(order == 0, 1, order)
    return np.where(order == 0, 0.5, (np.exp(1j * np.pi * order) - 1) / (2j * np.pi * safe))
