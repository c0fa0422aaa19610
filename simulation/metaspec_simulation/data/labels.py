"""Labels of a sample as a data set keeps them: integers, in steps below the solver's own error.

Spectra at one distance do not determine the field under the patterned layer. A data set may therefore hold its Fourier orders,
too, thinly: a network that has learnt the field at some wavelengths takes the rest from the spectra.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from metaspec_contract.process import Process
from metaspec_simulation.physics import farfield
from metaspec_simulation.physics.solver import Simulation

STEP = 1e-4
"""Step of the spectra."""

HARMONIC_STEP = 5e-4
"""Step of the harmonics; all of them add up to an rms error of 1e-3 in a spectrum."""

ORDER_STEP = 4e-3
"""Step of the real and imaginary parts of orders, in units of the incident amplitude."""

HARMONICS_NM = 2
"""Distance of the wavelengths of harmonics; the spectra resolve about 10 nm."""

ORDERS_NM = 20
"""Distance of the wavelengths of orders."""


def thinned(process: Process, distance_nm: float = HARMONICS_NM) -> slice:
    """Wavelengths of the process at which labels are kept, by their distance."""
    return slice(None, None, max(1, round(distance_nm / process.wavelength_step_nm)))


def labels(process: Process, simulation: Simulation, orders: farfield.Complex | None) -> dict[str, NDArray[np.int16]]:
    """Labels of a simulated structure, by the names of their arrays.

    Args:
        process: process of the data set.
        simulation: the simulation.
        orders: orders under the layer as `Solver.orders` returns them; None if they are not kept.
    """
    kept = {
        "spectra": _in_steps(simulation.spectra, STEP),
        "harmonics": _in_steps(simulation.harmonics[:, thinned(process)], HARMONIC_STEP),
    }
    if orders is not None:
        kept["orders"] = pack_orders(orders[:, :, thinned(process, ORDERS_NM)], process)
    return kept


def order_numbers(process: Process) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Row and column orders (m, n) that propagate in the substrate at some wavelength of the process, K each."""
    highest = farfield.max_order(process)
    m, n = (axis.ravel() for axis in np.mgrid[-highest : highest + 1, -highest : highest + 1])
    some = _propagate(process, m, n).any(axis=0)
    return m[some], n[some]


def pack_orders(orders: farfield.Complex, process: Process) -> NDArray[np.int16]:
    """Orders that propagate at their wavelength, others being 0, in units of `ORDER_STEP`.

    Args:
        orders: orders under the layer at every `ORDERS_NM`, (2, 2, V, ky, kx), as `Solver.orders` returns them.
        process: process of the orders.

    Returns:
        (polarisation, component, part, order, wavelength), int16 (2, 2, 2, K, V); parts are real and imaginary.
    """
    m, n = order_numbers(process)
    highest = orders.shape[-1] // 2
    picked = np.where(propagating(process), orders[..., m + highest, n + highest], 0).swapaxes(-1, -2)
    return _in_steps(np.stack([picked.real, picked.imag], axis=2), ORDER_STEP)


def unpack_orders(packed: NDArray[np.int16], process: Process) -> farfield.Complex:
    """The inverse of `pack_orders`: int16 (..., 2, 2, 2, K, V) to complex64 (..., 2, 2, V, ky, kx)."""
    m, n = order_numbers(process)
    highest = farfield.max_order(process)
    real, imaginary = np.moveaxis(ORDER_STEP * packed.astype(np.float32), -3, 0).swapaxes(-1, -2)
    orders = np.zeros((*real.shape[:-1], 2 * highest + 1, 2 * highest + 1), np.complex64)
    orders[..., m + highest, n + highest] = real + 1j * imaginary
    return orders


def propagating(process: Process) -> NDArray[np.bool_]:
    """Which of the orders of `order_numbers` propagate in the substrate at the wavelengths at which they are kept, (V, K)."""
    return _propagate(process, *order_numbers(process))


def _propagate(process: Process, m: NDArray[np.int64], n: NDArray[np.int64]) -> NDArray[np.bool_]:
    wavelengths = process.wavelengths_nm[thinned(process, ORDERS_NM)]
    radius = process.substrate.index(wavelengths) * process.period_um / (wavelengths / 1000)
    inside: NDArray[np.bool_] = m**2 + n**2 < radius[:, None] ** 2
    return inside


def _in_steps(values: NDArray[np.floating], step: float) -> NDArray[np.int16]:
    return np.clip(np.rint(values / step), -32768, 32767).astype(np.int16)
