"""Beam propagation of a scalar wave through the patterned layer: a crude solution, as an input of a network.

The split-step beam propagation method (Feit and Fleck, Applied Optics 17, 3990 (1978)): the patterned layer is cut into slices;
in each, the wave gains phase where the index is high, then it diffracts as in a uniform medium. Reflections, polarisation and
resonances are left to the network. No parameters; real arithmetic on pairs (real part, imaginary part), orders as sines and
cosines (`harmonics`).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from metaspec_contract.process import Process
from metaspec_contract.structures import PIXELS
from metaspec_training.networks.harmonics import along, harmonics

POOLED = 32
"""Points per axis that the wave is propagated on."""
HIGHEST = 10
"""Highest Fourier order that is kept: all that propagate in Si3N4, and few enough that products do not alias into them."""
SLICES = 6
INDEX = 1.45
"""Refractive index of the uniform medium, and of the common phase that is taken out."""


class BeamPropagation(nn.Module):
    """Density (B, 1, 128, 128) to the wave under the layer, (B, 2 * wavelengths, points, points).

    The first half of the channels are real parts, the second imaginary ones, at wavelengths equally spaced in frequency. Light
    of amplitude 1 comes in; the phase that a layer of index 1.45 would add is taken out.

    Args:
        process: the device.
        points: number of points along each axis, at pixels 0, 128 / points, ...
        wavelengths: number of wavelengths.
    """

    orders: Tensor
    orders_across: Tensor
    points: Tensor
    points_across: Tensor
    sample: Tensor
    sample_across: Tensor
    step_cos: Tensor
    step_sin: Tensor
    thickness: Tensor
    contrast: Tensor

    def __init__(self, process: Process, points: int, wavelengths: int = 16) -> None:
        super().__init__()
        self.wavelengths = wavelengths
        frequency = np.linspace(1000 / process.wavelength_max_nm, 1000 / process.wavelength_min_nm, wavelengths)
        k0 = 2 * np.pi * frequency
        slice_um = process.thickness_um / SLICES
        transverse = (2 * np.pi / process.period_um * np.arange(-HIGHEST, HIGHEST + 1)) ** 2
        squared = (INDEX * k0[:, None]) ** 2 - transverse[:, None, None] - transverse  # (ky, wavelength, kx)
        kz = np.sqrt(squared.astype(complex))  # evanescent waves decay
        step = np.exp(1j * (kz - INDEX * k0[:, None]) * slice_um)
        pooled = harmonics(HIGHEST, (np.arange(POOLED) + 0.5) / POOLED)
        wanted = harmonics(HIGHEST, (np.arange(points) * (PIXELS // points) + 0.5) / PIXELS)
        for name, matrix in (
            ("orders", pooled.T / POOLED),
            ("points", pooled),
            ("sample", wanted),
            ("orders_across", pooled / POOLED),
            ("points_across", pooled.T),
            ("sample_across", wanted.T),
            ("step_cos", step.real),
            ("step_sin", step.imag),
            ("thickness", (k0 * slice_um)[:, None]),
            ("contrast", (process.solid.index(1000 / frequency) ** 2 - 1)[:, None]),
        ):
            values = torch.tensor(np.ascontiguousarray(matrix), dtype=torch.float32)
            self.register_buffer(name, values, persistent=False)

    def forward(self, density: Tensor) -> Tensor:
        side = PIXELS // POOLED  # as reshapes, since ONNX has no derivative of its pooling
        pooled = density.unflatten(-1, (POOLED, side)).unflatten(-3, (POOLED, side)).mean(dim=(-3, -1))
        # All fields are (B, y, wavelength, x): products along both axes are then one large matrix product each.
        phase = self.thickness * (torch.sqrt(1 + self.contrast * pooled.transpose(1, 2)) - INDEX)
        screen_cos, screen_sin = phase.cos(), phase.sin()
        real, imag = screen_cos, screen_sin  # the plane wave, after the first screen
        for _ in range(SLICES - 1):
            real, imag = self._diffract(real, imag)
            real, imag = (along(self.points, part, 1) @ self.points_across for part in (real, imag))
            real, imag = real * screen_cos - imag * screen_sin, real * screen_sin + imag * screen_cos
        real, imag = self._diffract(real, imag)
        parts = [along(self.sample, part, 1) @ self.sample_across for part in (real, imag)]
        return torch.cat(parts, dim=2).transpose(1, 2)

    def _diffract(self, real: Tensor, imag: Tensor) -> tuple[Tensor, Tensor]:
        """Points to orders, propagated through a slice of the uniform medium: the same for the sine and cosine of an order."""
        real, imag = (along(self.orders, part, 1) @ self.orders_across for part in (real, imag))
        return real * self.step_cos - imag * self.step_sin, real * self.step_sin + imag * self.step_cos


class BeamFeatures(nn.Sequential):
    """The wave under the layer as features of a network: density (B, 1, 128, 128) to (B, channels, points, points).

    Args:
        process: the device.
        points: number of points along each axis.
        channels: number of features.
    """

    def __init__(self, process: Process, points: int, channels: int) -> None:
        wave = BeamPropagation(process, points)
        super().__init__(wave, nn.Conv2d(2 * wave.wavelengths, channels, 1))

    def forward(self, density: Tensor) -> Tensor:
        with torch.autocast(density.device.type, enabled=False):  # phases need more than 8 bits
            features: Tensor = super().forward(density)
        return features
