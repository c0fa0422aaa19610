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


def at_distance(process: Process, distance_um: float) -> Process:
    return process.model_copy(update={"distance_um": distance_um})


@pytest.mark.parametrize("process", [DEFAULT, NARROW], ids=["default", "narrow"])
def test_spectra_at_a_distance_for_each_row(process: Process) -> None:
    """In single precision, from 1 to 3 um, against float64; at the distance of the process not a bit differs."""
    distances = [1.0, 1.25, 1.9993, 2.3217, 2.75, 3.0]
    predicted = 2 * torch.cat([maps(0), maps(5)])
    orders = orders_of(process, predicted)
    layer = Propagation(process, BASIS, NODES)
    got = layer(predicted, torch.tensor(distances)[:, None])
    exact = [float(np.float32(distance)) for distance in distances]
    expected = np.concatenate([spectra_of(at_distance(process, one), orders[n : n + 1]) for n, one in enumerate(exact)])
    assert got.dtype == torch.float32
    assert np.abs(got.numpy() - expected).max() < 1e-6 * max(1, np.abs(expected).max())
    assert np.abs(expected - spectra_of(process, orders)).max() > 0.1
    default = torch.full((6, 1), process.distance_um)
    assert torch.equal(layer(predicted, default), layer(predicted))
    shift = torch.zeros(6, 1, 2)
    assert torch.equal(layer.at(predicted, shift, default), layer.at(predicted, shift))
    np.testing.assert_allclose(  # up to the flux harmonics that are left out
        layer.at(predicted, shift, torch.tensor(distances)[:, None])[:, 0].numpy(), got.numpy(), atol=0.02
    )


def test_the_gradient_with_respect_to_the_distance() -> None:
    """By central differences of the direct formulation."""
    layer, predicted, step = Propagation(DEFAULT, BASIS, NODES), maps(2), 1e-4
    distance = torch.tensor([[1.0], [1.7], [2.5]], requires_grad=True)
    weights = torch.randn(3, 4, 301, generator=torch.Generator().manual_seed(3))
    (gradient,) = torch.autograd.grad((weights * layer(predicted, distance)).sum(), distance)
    orders = orders_of(DEFAULT, predicted)
    for n, one in enumerate(distance.flatten().tolist()):
        up, down = (spectra_of(at_distance(DEFAULT, one + sign * step), orders[n : n + 1]) for sign in (1, -1))
        expected = (weights[n].double().numpy() * (up - down)).sum() / (2 * step)
        assert float(gradient[n, 0]) == pytest.approx(expected, rel=1e-4, abs=1e-3 * np.abs(up - down).max() / step)


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
