"""Propagation in sines and cosines against the same physics written directly, in complex exponentials and float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline

from metaspec_contract.process import Process
from metaspec_simulation.physics.farfield import max_order
from metaspec_training.networks.propagation import Propagation, common_phase, spline_basis

BASIS, NODES = 8, 31
DEFAULT = Process()
NARROW = Process(period_um=1.6, distance_um=2.0, wavelength_min_nm=450, wavelength_max_nm=750, wavelength_step_nm=10)


def maps(seed: int) -> torch.Tensor:
    return torch.randn(3, 8 * BASIS, 16, 16, generator=torch.Generator().manual_seed(seed))


def orders_of(process: Process, predicted: torch.Tensor) -> NDArray[np.complex128]:
    """Orders under the layer from maps of the field, (B, 2, 2, nodes, ky, kx)."""
    order = np.arange(-max_order(process), max_order(process) + 1)
    wave = np.exp(-2j * np.pi * np.outer(order, (8 * np.arange(16) + 0.5) / 128)) / 16
    real, imag = np.moveaxis(predicted.double().numpy().reshape(-1, 2, 2, 2, BASIS, 16, 16), 3, 0)
    splines = spline_basis(1000 / nodes_nm(process), BASIS)
    orders: NDArray[np.complex128] = np.einsum(
        "ky,lx,ns,bpcsyx->bpcnkl", wave, wave, splines, real + 1j * imag, optimize=True
    )
    return orders


def nodes_nm(process: Process) -> NDArray[np.float64]:
    return np.linspace(process.wavelength_min_nm, process.wavelength_max_nm, NODES)


def spectra_of(process: Process, orders: NDArray[np.complex128]) -> NDArray[np.float64]:
    """Flux through the quadrants by their Fourier coefficients, (B, 4, wavelengths)."""
    node = nodes_nm(process)
    order = np.arange(-max_order(process), max_order(process) + 1)
    index, k0 = process.substrate.index(node)[:, None, None], (2000 * np.pi / node)[:, None, None]
    kx = 2 * np.pi / process.period_um * order[None, None, :]
    ky = kx.swapaxes(1, 2)
    squared = (index * k0) ** 2 - kx**2 - ky**2
    kz = np.sqrt(np.maximum(squared, (0.1 * index * k0) ** 2))
    phase = np.sqrt(np.maximum(squared, 0)) * process.distance_um + common_phase(process, node)[:, None, None]
    ex, ey = np.moveaxis(orders * (squared > 0) * np.exp(1j * phase), 2, 0)
    hy = ((kz + kx**2 / kz) * ex + kx * ky / kz * ey) / k0
    minus_hx = (kx * ky / kz * ex + (kz + ky**2 / kz) * ey) / k0
    apart = order[:, None] - order
    wave = np.where(apart % 2 != 0, -1j / np.pi / np.where(apart == 0, 1, apart), 0)
    half = np.eye(len(order)) / 2
    quadrants = []
    for down in (half + wave, half - wave):
        for across in (half + wave, half - wave):
            flux = sum(
                np.einsum("bpnkl,km,lr,bpnmr->bn", e.conj(), down, across, h, optimize=True).real / 2
                for e, h in ((ex, hy), (ey, minus_hx))
            )
            quadrants.append(flux)
    spectra: NDArray[np.float64] = CubicSpline(node, np.stack(quadrants, axis=1), axis=2)(process.wavelengths_nm)
    return spectra


@pytest.mark.parametrize("process", [DEFAULT, NARROW], ids=["default", "narrow"])
def test_spectra_are_those_of_the_angular_spectrum_in_complex_exponentials(process: Process) -> None:
    predicted = maps(0) / 4
    expected = spectra_of(process, orders_of(process, predicted))
    assert np.abs(expected).max() > 0.01
    got = Propagation(process, BASIS, NODES)(predicted)
    assert np.abs(got.numpy() - expected).max() < 1e-6 * max(1, np.abs(expected).max())


def test_orders_are_fourier_coefficients() -> None:
    predicted = maps(1)
    real, imag = Propagation(DEFAULT, BASIS, NODES).orders(predicted)
    np.testing.assert_allclose((real + 1j * imag).numpy(), orders_of(DEFAULT, predicted), atol=1e-6)


def test_the_gradient_is_that_of_the_direct_formulation() -> None:
    """By central differences of the direct formulation along random directions."""
    layer, predicted = Propagation(DEFAULT, BASIS, NODES), maps(2).requires_grad_()
    weights = torch.randn(4, 301, generator=torch.Generator().manual_seed(3))
    (gradient,) = torch.autograd.grad((weights * layer(predicted)).sum(), predicted)
    direction, step = maps(4).double(), 1e-4
    values = [
        (
            weights.double().numpy()
            * spectra_of(DEFAULT, orders_of(DEFAULT, predicted.detach() + sign * step * direction))
        ).sum()
        for sign in (1, -1)
    ]
    assert float((gradient.double() * direction).sum()) == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-4)
