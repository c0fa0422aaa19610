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
from metaspec_training.networks.beam import INDEX, complex_matrix
from metaspec_training.networks.translation import Translation

GRID = 16
"""Points per axis on which the field is predicted: enough for orders up to 7."""


class Propagation(nn.Module):
    """Maps of the field under the patterned layer to the flux through the four quadrants. No parameters.

    Input (B, 8 * basis, 16, 16), the channels being (polarisation, component, part, spline); output (B, 4, wavelengths).
    """

    dft_cos: Tensor
    dft_sin: Tensor
    splines: Tensor
    phase_cos: Tensor
    phase_sin: Tensor
    h_from_e: Tensor
    square_wave: Tensor
    interpolation: Tensor
    quadrants: Tensor
    to_points: Tensor
    window: Tensor

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
        order = np.arange(-highest, highest + 1)
        index = process.substrate.index(node)[:, None, None]
        k0 = (2 * np.pi * 1000 / node)[:, None, None]
        kx = (2 * np.pi / process.period_um * order)[None, None, :]
        ky = kx.swapaxes(1, 2)
        squared = (index * k0) ** 2 - kx**2 - ky**2
        propagating = squared > 0
        # The floor bounds H of p waves at grazing angles; the network compensates for it.
        kz = np.sqrt(np.maximum(squared, (0.1 * index * k0) ** 2))
        # The network predicts the field without the common phase of the layer: it varies slowly with wavelength.
        phase = np.sqrt(np.maximum(squared, 0)) * process.distance_um + common_phase(process, node)[:, None, None]
        # The stem's strides keep every eighth pixel, starting with the first.
        position = (np.arange(GRID) * (PIXELS // GRID) + 0.5) / PIXELS
        angle = 2 * np.pi * np.outer(order, position)
        distance = order[:, None] - order[None, :]
        square_wave = np.where(distance % 2 != 0, 2 / (np.pi * np.where(distance == 0, 1, distance)), 0)
        points = 2 * highest + max(HARMONICS) + 1  # no product of two orders aliases into a harmonic
        wave = np.exp(2j * np.pi * np.outer(order, np.arange(points) / points))
        window = window_harmonics(np.eye(points**2).reshape(-1, points, points).swapaxes(1, 2))
        for name, matrix in (
            ("to_points", complex_matrix(wave.T)),
            ("window", window),
            ("dft_cos", np.cos(angle) / GRID),
            ("dft_sin", np.sin(angle) / GRID),
            ("splines", spline_basis(1000 / node, basis)),
            ("phase_cos", propagating * np.cos(phase)),
            ("phase_sin", propagating * np.sin(phase)),
            ("h_from_e", np.stack([(kz + kx**2 / kz) / k0, kx * ky / kz / k0, (kz + ky**2 / kz) / k0])),
            ("square_wave", square_wave),
            ("interpolation", CubicSpline(node, np.eye(nodes))(wavelengths)),
            ("quadrants", np.array([[1, 1, 1, 1], [1, 1, -1, -1], [1, -1, 1, -1], [1, -1, -1, 1]]) / 4),
        ):
            self.register_buffer(name, torch.tensor(matrix, dtype=torch.float32), persistent=False)

    def forward(self, maps: Tensor) -> Tensor:
        real, imag = self._at_detectors(maps)
        h_real, h_imag = self._magnetic(real), self._magnetic(imag)
        total = (real * h_real + imag * h_imag).sum(dim=(1, 2, -2, -1))
        # A half-period window is (1 +- square wave) / 2 along each axis; the wave's coefficients are -i * square_wave.
        y_real, y_imag = self.square_wave @ h_real, self.square_wave @ h_imag
        across = self.square_wave.T
        rows = (real * y_imag - imag * y_real).sum(dim=(1, 2, -2, -1))
        columns = (real * (h_imag @ across) - imag * (h_real @ across)).sum(dim=(1, 2, -2, -1))
        both = -(real * (y_real @ across) + imag * (y_imag @ across)).sum(dim=(1, 2, -2, -1))
        parts = torch.stack([total, rows, columns, both], dim=1) / 2  # mean of two polarisations
        return (self.quadrants @ parts) @ self.interpolation.T

    def at(self, maps: Tensor, shift: Tensor) -> Tensor:
        """The flux with the structure moved by shifts (B, K, 2) in 128ths of the period: (B, K, 4, wavelengths)."""
        real, imag = self._at_detectors(maps)
        e = self._on_points(real, imag)
        h = self._on_points(self._magnetic(real), self._magnetic(imag))
        # Sum of real and imaginary parts and of components, mean of polarisations.
        flux = (e * h).unflatten(-1, (2, -1)).sum(dim=(1, 2, -2)) / 2
        harmonics = flux.flatten(-2) @ self.window
        return self.translation(harmonics.transpose(1, 2), shift) @ self.interpolation.T

    def orders(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Real and imaginary parts of the orders under the layer, without the common phase, each (B, 2, 2, nodes, ky, kx)."""
        maps = maps.unflatten(1, (2, 2, 2, self.basis))
        real, imag = self._orders(*maps.unbind(3))
        return self._at_wavelengths(real), self._at_wavelengths(imag)

    def _at_detectors(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Real and imaginary parts of the orders at the detectors, each (B, 2, 2, nodes, ky, kx)."""
        real, imag = self.orders(maps)
        return real * self.phase_cos - imag * self.phase_sin, real * self.phase_sin + imag * self.phase_cos

    def _on_points(self, real: Tensor, imag: Tensor) -> Tensor:
        """Orders (..., ky, kx) to points of the cell (..., x, 2 y), real parts before imaginary ones."""
        along_x = torch.cat([real, imag], dim=-1) @ self.to_points
        return torch.cat(along_x.transpose(-1, -2).chunk(2, dim=-2), dim=-1) @ self.to_points

    def _orders(self, real: Tensor, imag: Tensor) -> tuple[Tensor, Tensor]:
        """Fourier orders of complex maps: (..., 16, 16) to (..., ky, kx), with exp(-i k x)."""
        cos, sin = self.dft_cos.T, self.dft_sin.T
        real, imag = real @ cos + imag @ sin, imag @ cos - real @ sin
        return self.dft_cos @ real + self.dft_sin @ imag, self.dft_cos @ imag - self.dft_sin @ real

    def _at_wavelengths(self, orders: Tensor) -> Tensor:
        """Sum the splines: (B, 2, 2, basis, ky, kx) to (B, 2, 2, nodes, ky, kx)."""
        return (self.splines @ orders.flatten(-2)).unflatten(-1, orders.shape[-2:])

    def _magnetic(self, e: Tensor) -> Tensor:
        """(Hy, -Hx) of plane waves with (Ex, Ey) along axis 2: the factors of E in the flux."""
        xx, xy, yy = self.h_from_e.unbind()
        ex, ey = e.unbind(2)
        return torch.stack([xx * ex + xy * ey, xy * ex + yy * ey], dim=2)


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
