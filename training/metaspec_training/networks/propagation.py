"""Propagation: the flux through the detectors, from the field under the patterned layer. Exact physics, no parameters.

Fourier orders, propagation through the substrate (the angular spectrum method; Goodman, "Introduction to Fourier Optics",
section 3.10), and the Poynting flux through each quadrant. Everything is real arithmetic on pairs (real part, imaginary part):
ONNX has no complex numbers.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.interpolate import BSpline, CubicSpline
from torch import Tensor, nn

from metaspec_contract.process import Process
from metaspec_contract.structures import PIXELS
from metaspec_simulation.physics.farfield import HARMONICS, max_order, window_harmonics
from metaspec_training.networks.beam import INDEX
from metaspec_training.networks.harmonics import along, exponentials, harmonics, permute_along
from metaspec_training.networks.phase import Phase
from metaspec_training.networks.translation import Translation

GRID = 16
"""Points per axis on which the field is predicted: enough for orders up to 7."""


class Propagation(nn.Module):
    """Maps of the field under the patterned layer to the flux through the four quadrants. No parameters.

    Input (B, 8 * basis, 16, 16), the channels being (polarisation, component, part, spline); output (B, 4, wavelengths).
    """

    transform: Tensor
    to_exponentials: Tensor
    splines: Tensor
    same: Tensor
    crossed: Tensor
    parts_exchanged: Tensor
    components_crossed: Tensor
    windows: Tensor
    quadrants: Tensor
    interpolation: Tensor
    points: Tensor
    point_harmonics: Tensor

    def __init__(self, process: Process, basis: int, nodes: int) -> None:
        super().__init__()
        self.basis = basis
        self.translation = Translation()
        wavelengths = process.wavelengths_nm
        node = np.linspace(wavelengths[0], wavelengths[-1], nodes)
        if (highest := max_order(process)) >= GRID // 2:
            raise ValueError(
                f"DiffractionFieldNet predicts the field on {GRID} x {GRID} points, enough for Fourier orders up to "
                f"{GRID // 2 - 1}; with period_um {process.period_um:g} and wavelength_min_nm {process.wavelength_min_nm:g}, "
                f"orders up to {highest} propagate: train DiffractionNet (preset full)"
            )
        # Fields are (B, ky kx, polarisation, component, part, node): factors of them here (ky, kx, 1, component, part, node).
        # All but `crossed` are the same for the sine and the cosine of an order.
        order = np.arange(-highest, highest + 1)
        count = len(order)
        index, k0 = process.substrate.index(node), 2 * np.pi * 1000 / node
        kx = (2 * np.pi / process.period_um * order)[:, None, None, None, None]
        ky = kx[:, None]
        squared = (index * k0) ** 2 - kx**2 - ky**2
        propagating = squared > 0
        # The floor bounds H of p waves at grazing angles; the network compensates for it.
        kz = np.sqrt(np.maximum(squared, (0.1 * index * k0) ** 2))
        same = np.concatenate([kz + kx**2 / kz, kz + ky**2 / kz], axis=3) / k0
        # The network predicts the field without the common phase of the layer: it varies slowly with wavelength.
        turning = np.sqrt(np.maximum(squared, 0)).reshape(count**2, nodes)
        self.phase = Phase(
            turning,
            process.distance_um,
            turning * process.distance_um + common_phase(process, node),
            propagating.reshape(count**2, nodes),
            (order[:, None] ** 2 + order**2).ravel(),  # orders of one length turn alike
        )
        # The stem's strides keep every eighth pixel, starting with the first.
        position = (np.arange(GRID) * (PIXELS // GRID) + 0.5) / PIXELS
        # A half-period window is (1 +- square wave) / 2 along each axis. In the basis of its eigenvectors it is diagonal.
        distance = order[:, None] - order
        square_wave = np.where(distance % 2 != 0, -2j / (np.pi * np.where(distance == 0, 1, distance)), 0)
        exponential = exponentials(highest)
        value, vectors = np.linalg.eigh((exponential.conj().T @ square_wave @ exponential).real)
        halves = np.stack([1 + value, 1 - value]) / 2
        quadrants = halves[:, None, :, None] * halves[None, :, None, :]
        points = 2 * highest + max(HARMONICS) + 1  # no product of two orders aliases into a harmonic
        window = window_harmonics(np.eye(points**2).reshape(-1, points, points))
        for name, matrix in (
            ("transform", harmonics(highest, position).T / GRID),
            ("to_exponentials", np.stack([exponential.real, exponential.imag])),
            ("splines", spline_basis(1000 / node, basis).T),
            ("same", same.reshape(count**2, 1, 2, 1, nodes)),
            # Derivatives by x and y make sines of cosines and cosines of sines, which are the negative orders here.
            ("crossed", (-kx * ky / kz / k0).reshape(count**2, 1, 1, 1, nodes)),
            ("windows", vectors.T),
            ("quadrants", quadrants.reshape(4, -1) / 2),  # mean of two polarisations
            ("interpolation", CubicSpline(node, np.eye(nodes))(wavelengths).T),
            ("points", harmonics(highest, np.arange(points) / points)),
            ("point_harmonics", window.T / 2),  # mean of two polarisations
        ):
            values = torch.tensor(np.ascontiguousarray(matrix), dtype=torch.float32)
            self.register_buffer(name, values, persistent=False)
        # Along (ky kx polarisation component): the negative order, and the other component.
        negative = torch.arange(4 * count**2).reshape(-1, 2, 2).flip(0, 2).flatten()
        self.register_buffer("components_crossed", negative, persistent=False)
        self.register_buffer("parts_exchanged", torch.tensor([1, 0]), persistent=False)

    def forward(self, maps: Tensor, distance_um: Tensor | None = None) -> Tensor:
        """The flux through the quadrants.

        Args:
            maps: the field, (B, 8 * basis, 16, 16).
            distance_um: distances of the detectors, (B, 1); those of the process by default.
        """
        flux = self.quadrants @ self._products(maps, self.windows, distance_um)
        return _sum(flux) @ self.interpolation

    def at(self, maps: Tensor, shift: Tensor, distance_um: Tensor | None = None) -> Tensor:
        """The flux with the structure moved by shifts (B, K, 2) in 128ths of the period: (B, K, 4, wavelengths)."""
        coefficients = self.point_harmonics @ _sum(self._products(maps, self.points, distance_um))
        return self.translation(coefficients, shift) @ self.interpolation

    def orders(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Real and imaginary parts of the orders under the layer, without the common phase, each (B, 2, 2, nodes, ky, kx)."""
        highest = len(self.transform) // 2
        field = self._orders(maps).unflatten(1, (2 * highest + 1, -1))
        matrix = torch.complex(*self.to_exponentials)
        orders = torch.einsum("ki,lj,bijpcw->bpcwkl", matrix, matrix, torch.complex(*field.unbind(5)))
        return orders.real, orders.imag

    def _products(self, maps: Tensor, matrix: Tensor, distance_um: Tensor | None) -> Tensor:
        """E times H at the detectors, each multiplied by a matrix (K, orders) along both axes before: (B, K K, 8 nodes)."""
        e = self._orders(maps)
        cosine, sine = self.phase(distance_um)
        e = e * cosine + permute_along(e, 4, self.parts_exchanged) * sine
        # H is (Hy, -Hx) of plane waves with E: the factors of (Ex, Ey) in the flux.
        crossed = permute_along(e.flatten(1, 3), 1, self.components_crossed).unflatten(1, e.shape[1:4])
        h = e * self.same + crossed * self.crossed
        size = self.transform.shape[0]
        ours, theirs = (_on_both_axes(matrix, part.flatten(2).unflatten(1, (size, size))) for part in (e, h))
        return (ours * theirs).flatten(1, 2)

    def _orders(self, maps: Tensor) -> Tensor:
        """The field under the layer in sines and cosines: (B, ky kx, polarisation, component, part, nodes)."""
        pixels = maps.flatten(2).transpose(1, 2).unflatten(1, (GRID, GRID))
        orders = _on_both_axes(self.transform, pixels)
        return orders.flatten(1, 2).unflatten(2, (2, 2, 2, self.basis)) @ self.splines


def _on_both_axes(matrix: Tensor, x: Tensor) -> Tensor:
    """Multiply (B, y, x, channels) along y and x."""
    return along(matrix, along(matrix, x, 1), 2)


def _sum(flux: Tensor) -> Tensor:
    """Sum over polarisations, components and parts: (B, K, 8 nodes) to (B, K, nodes)."""
    return flux.unflatten(2, (8, -1)).sum(dim=2)


def common_phase(process: Process, wavelengths_nm: NDArray[np.float64]) -> NDArray[np.float64]:
    """Phase of the orders under the layer that a network does not predict, in rad: wavelengths in nm, (W,), to (W,)."""
    return INDEX * (2 * np.pi * 1000 / wavelengths_nm) * process.thickness_um


def spline_basis(frequency: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """Cubic B-splines, uniform over the range of `frequency`: (W,) to (W, count)."""
    low, high = float(frequency.min()), float(frequency.max())
    step = (high - low) / (count - 3)
    knots = low + step * np.arange(-3, count + 1)
    inside = np.clip(frequency, low, high - 1e-9 * step)
    return BSpline.design_matrix(inside, knots, 3).toarray()
