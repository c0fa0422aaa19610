"""Spectra of a translated structure, from its harmonics."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from metaspec_contract.structures import PIXELS
from metaspec_simulation.physics.farfield import harmonic_orders, shifted_basis


class Translation(nn.Module):
    """The detectors' spectra at given positions, as a linear function of the harmonics (`farfield.window_harmonics`).

    Args:
        orders: row and column orders of the harmonics, (2, K); default: `farfield.harmonic_orders`.
    """

    rows: Tensor
    columns: Tensor
    quadrant_signs: Tensor

    def __init__(self, orders: NDArray[np.int64] | None = None) -> None:
        super().__init__()
        m, n = harmonic_orders() if orders is None else orders
        origin = np.zeros(1, np.int64)
        signs = shifted_basis(origin, origin, (m, n))[0, :, : len(m)]  # without a shift, its cosines are 1
        for name, values in (("rows", m), ("columns", n), ("quadrant_signs", signs)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32), persistent=False)

    def basis(self, shift: Tensor) -> Tensor:
        """Matrix that multiplies the harmonics: shifts by (rows, columns) in 128ths of the period (..., 2) to (..., 4, H)."""
        turn = -2 * torch.pi / PIXELS
        phase = turn * (shift[..., :1] * self.rows + shift[..., 1:] * self.columns).unsqueeze(-2)
        cosine, sine = phase.cos() * self.quadrant_signs, phase.sin() * self.quadrant_signs
        return torch.cat([cosine, -sine[..., 1:]], dim=-1)

    def forward(self, harmonics: Tensor, shift: Tensor) -> Tensor:
        """Harmonics (B, H, W) at shifts (B, K, 2) to spectra (B, K, 4, W)."""
        return self.basis(shift) @ harmonics.unsqueeze(1)
