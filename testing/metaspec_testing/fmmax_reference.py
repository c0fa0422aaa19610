"""The same device solved by an independent method: rigorous coupled-wave analysis with the library FMMAX."""

from __future__ import annotations

import os

# By default XLA spreads small eigenproblems over threads that compete for few cores.
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")

import fmmax
import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from metaspec_contract.process import Process

_SAMPLES = 512
"""Samples of the permittivity along each side of a cell. With one sample per pixel, aliasing changes the Fourier coefficients
that a few hundred terms use by up to 8 %."""


def efficiencies(
    structure: NDArray[np.uint8], process: Process, wavelength_nm: float, terms: int, formulation: str = "FFT"
) -> NDArray[np.float64]:
    """Efficiencies of R, G1, G2, B at one wavelength, (4,).

    Args:
        structure: binary structure, (128, 128).
        process: process to simulate.
        wavelength_nm: wavelength in nm.
        terms: approximate number of Fourier terms of the structure's `repeating_cell`.
        formulation: name of an `fmmax.Formulation`; FFT and POL_FOURIER approach the same limit from different sides.
    """
    with jax.enable_x64(True):
        return _solve(structure, process, wavelength_nm, terms, fmmax.Formulation[formulation])


def repeating_cell(structure: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The part of a structure that tiles it, by halves: (128, 128) if it does not repeat, (1, 1) if it is uniform.

    Light at normal incidence has this smaller period, too, so that as many terms resolve much more.
    """
    for axis in (0, 1):
        while structure.shape[axis] > 1:
            first, second = np.split(structure, 2, axis)
            if not np.array_equal(first, second):
                break
            structure = first
    return structure


def _solve(
    structure: NDArray[np.uint8],
    process: Process,
    wavelength_nm: float,
    terms: int,
    formulation: fmmax.Formulation,
) -> NDArray[np.float64]:
    cell = repeating_cell(structure)
    repeats_y, repeats_x = (whole // part for whole, part in zip(structure.shape, cell.shape, strict=True))
    wavelength = jnp.asarray(wavelength_nm / 1000)
    lattice = fmmax.LatticeVectors(u=process.period_um / repeats_x * fmmax.X, v=process.period_um / repeats_y * fmmax.Y)
    expansion = fmmax.generate_expansion(lattice, terms)
    at = np.array([wavelength_nm])
    solid, substrate = process.solid.permittivity(at)[0], process.substrate.permittivity(at)[0]
    if cell.size > 1:  # FMMAX solves a uniform layer, a single sample, exactly
        cell = cell.repeat(_SAMPLES // cell.shape[0], axis=0).repeat(_SAMPLES // cell.shape[1], axis=1)
    density = jnp.asarray(cell.T, jnp.float64)  # FMMAX's first array axis is x, ours is y
    permittivities = (jnp.ones((1, 1)), 1 + (solid - 1) * density, jnp.full((1, 1), substrate))
    layers = [
        fmmax.eigensolve_isotropic_media(
            wavelength=wavelength,
            in_plane_wavevector=jnp.zeros(2),
            primitive_lattice_vectors=lattice,
            permittivity=permittivity.astype(complex),
            expansion=expansion,
            formulation=formulation,
        )
        for permittivity in permittivities
    ]
    thicknesses = [jnp.asarray(0.0), jnp.asarray(process.thickness_um), jnp.asarray(0.0)]
    s_matrix = fmmax.stack_s_matrix(layers, thicknesses)

    zero_order = int(np.flatnonzero((np.asarray(expansion.basis_coefficients) == 0).all(axis=1))[0])
    incident = np.zeros((2 * expansion.num_terms, 2), complex)
    incident[zero_order, 0] = incident[zero_order + expansion.num_terms, 1] = 1
    incident_flux, _ = fmmax.amplitude_poynting_flux(jnp.asarray(incident), jnp.zeros_like(incident), layers[0])
    transmitted = fmmax.propagate_amplitude(s_matrix.s11 @ incident, jnp.asarray(process.distance_um), layers[2])
    electric, magnetic = fmmax.fields_from_wave_amplitudes(transmitted, jnp.zeros_like(transmitted), layers[2])
    on_grid = fmmax.fields_on_grid(electric, magnetic, layers[2], (64, 64))
    flux = np.asarray(fmmax.time_average_z_poynting_flux(*on_grid[:2]))  # (x, y, polarisation)
    incident_power = np.asarray(jnp.sum(incident_flux, axis=0))
    efficiency: NDArray[np.float64] = _quadrants(flux, repeats_x, repeats_y).mean(axis=-1) / incident_power.mean()
    return efficiency


def _quadrants(flux: NDArray[np.float64], repeats_x: int, repeats_y: int) -> NDArray[np.float64]:
    """Exact integrals of a band-limited map over the four quadrants, as fractions of the unit cell: (4, ...).

    The map (x, y, ...) repeats in the unit cell. It is sampled at the centres of n equal intervals of each axis of the part
    that repeats, as FMMAX does.
    """
    n = flux.shape[0]
    order = np.fft.fftfreq(n, 1 / n)
    to_corner = np.exp(-1j * np.pi * order / n)
    harmonics = np.einsum("a,b,ab...->ab...", to_corner, to_corner, np.fft.fft2(flux, axes=(0, 1)) / n**2)
    rows_then_columns = np.einsum(
        "yb,xa,ab...->yx...", _halves(order * repeats_y), _halves(order * repeats_x), harmonics
    )
    quadrants: NDArray[np.float64] = rows_then_columns.real.reshape(4, *flux.shape[2:])
    return quadrants


def _halves(order: NDArray[np.float64]) -> NDArray[np.complex128]:
    """Integrals of exp(2 pi i order x) over x from 0 to 1/2 and from 1/2 to 1, (2, orders)."""
    first = np.where(order == 0, 0.5, (np.exp(1j * np.pi * order) - 1) / np.where(order == 0, 1, 2j * np.pi * order))
    return np.stack([first, (order == 0) - first])
