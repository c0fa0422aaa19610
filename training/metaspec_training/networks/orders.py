"""The Fourier orders of a predicted field, as a data set keeps those of a simulated one. Exact, no parameters."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from metaspec_contract.process import Process
from metaspec_contract.structures import PIXELS
from metaspec_simulation.data.labels import ORDERS_NM, order_numbers, propagating, thinned
from metaspec_training.networks.propagation import GRID, common_phase, spline_basis


class FieldOrders(nn.Module):
    """Maps of the field under the patterned layer to its orders at the wavelengths of the labels.

    Args:
        process: process of the network.
        basis: splines over frequency.
    """

    transform: Tensor
    splines: Tensor
    cosine: Tensor
    sine: Tensor
    propagating: Tensor

    def __init__(self, process: Process, basis: int) -> None:
        super().__init__()
        m, n = order_numbers(process)
        position = (np.arange(GRID) * (PIXELS // GRID) + 0.5) / PIXELS
        angle = 2 * np.pi * (m * position[:, None, None] + n * position[:, None]).reshape(GRID**2, -1)
        kept = thinned(process, ORDERS_NM)
        wavelengths = process.wavelengths_nm
        phase = common_phase(process, wavelengths[kept])  # which the network does not predict
        for name, values in (
            ("transform", np.concatenate([np.cos(angle), np.sin(angle)], axis=1) / GRID**2),
            ("splines", spline_basis(1000 / wavelengths, basis)[kept].T),
            ("cosine", np.cos(phase)),
            ("sine", np.sin(phase)),
            ("propagating", propagating(process).T),
        ):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32), persistent=False)

    def forward(self, maps: Tensor) -> Tensor:
        """Orders that propagate at their wavelength, others being 0, in units of the incident amplitude.

        Args:
            maps: the field, (B, 8 * basis, 16, 16).

        Returns:
            (B, 2, 2, 2, K, V): polarisation, component, part, order, wavelength.
        """
        parts = (maps.flatten(2) @ self.transform).unflatten(1, (2, 2, 2, -1)).transpose(-1, -2) @ self.splines
        cosines, sines = parts.chunk(2, dim=-2)
        # The real part of the field, then the imaginary one, each times exp(-i angle).
        real, imaginary = cosines[:, :, :, 0] + sines[:, :, :, 1], cosines[:, :, :, 1] - sines[:, :, :, 0]
        turned = real * self.cosine - imaginary * self.sine, real * self.sine + imaginary * self.cosine
        return torch.stack(turned, dim=3) * self.propagating
