"""Exact augmentation on the device: packed samples become translated and mirrored densities with their labels."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline
from torch import Tensor, nn

from metaspec_contract.structures import PIXELS, Symmetry
from metaspec_simulation.data.levels import LEVELS
from metaspec_simulation.dataset import HARMONIC_STEP
from metaspec_training.data.packed import Packed
from metaspec_training.networks.symmetric import D4, apply_symmetry
from metaspec_training.networks.translation import Translation


class Batch(NamedTuple):
    """A batch as a network is trained on it.

    Attributes:
        density: structures, float32 (B, 1, 128, 128).
        shift: K positions relative to that of the density, in pixels, (B, K, 2); the first is (0, 0).
        spectra: simulated spectra at these positions, float32 (B, K, 2, 2, W).
        low_fidelity: whether the labels are of a coarser grid than those of the data set for validation, bool (B,).
    """

    density: Tensor
    shift: Tensor
    spectra: Tensor
    low_fidelity: Tensor


class Expansion(nn.Module):
    """Packed batches to densities and labels, on the device of the batch.

    Args:
        wavelengths_nm: wavelengths of the spectra in nm, (W,).
        harmonic_wavelengths_nm: thinned wavelengths of the harmonics in nm, (V,).
        harmonic_orders: row and column orders of the harmonics, those of the data set; default: the solver's.
    """

    channels: Tensor
    half_periods: Tensor
    interpolation: Tensor
    pixels: Tensor
    transposed: Tensor
    signs: Tensor

    def __init__(
        self,
        wavelengths_nm: NDArray[np.float64],
        harmonic_wavelengths_nm: NDArray[np.float64],
        harmonic_orders: NDArray[np.int64] | None = None,
    ) -> None:
        super().__init__()
        self.translation = Translation(harmonic_orders)
        thinned = harmonic_wavelengths_nm
        spline = HARMONIC_STEP * CubicSpline(thinned, np.eye(len(thinned)))(wavelengths_nm).T if len(thinned) else [[]]
        half_periods = [
            [Symmetry(shift_rows=row, shift_columns=column).channels for column in (False, True)]
            for row in (False, True)
        ]
        numbers = torch.arange(PIXELS**2).view(PIXELS, PIXELS)
        signs = [(-1 if s.flip_rows else 1, -1 if s.flip_columns else 1) for s in D4]
        self.register_buffer("pixels", torch.stack([apply_symmetry(s, numbers) for s in D4]), persistent=False)
        self.register_buffer("transposed", torch.tensor([s.transpose for s in D4]), persistent=False)
        self.register_buffer("signs", torch.tensor(signs), persistent=False)
        self.register_buffer("channels", torch.tensor([s.channels for s in D4]), persistent=False)
        self.register_buffer("half_periods", torch.tensor(half_periods), persistent=False)
        self.register_buffer("interpolation", torch.tensor(np.array(spline), dtype=torch.float32), persistent=False)

    def forward(self, batch: Packed) -> Batch:
        density = self._moved(batch.structure, batch.shift[:, 0], batch.symmetry)
        if batch.harmonics.shape[1]:
            spectra = self.translation(batch.harmonics.float() @ self.interpolation, batch.shift.float())
        else:  # half-period shifts only permute
            rows, columns = (batch.shift // (PIXELS // 2)).unbind(-1)
            spectra = batch.spectra.unsqueeze(1).expand(-1, rows.shape[1], -1, -1)
            spectra = spectra.gather(2, self.half_periods[rows, columns].unsqueeze(-1).expand_as(spectra))
        channels = self.channels[batch.symmetry][:, None, :, None].expand_as(spectra)
        spectra = spectra.gather(2, channels).unflatten(2, (2, 2))
        relative = self._turned(batch.shift - batch.shift[:, :1], batch.symmetry)
        return Batch(density.unsqueeze(1).float() / LEVELS, relative.float(), spectra, batch.low_fidelity)

    def _moved(self, structure: Tensor, shift: Tensor, symmetry: Tensor) -> Tensor:
        """Structures (B, 128, 128) translated by (B, 2), then transformed by an element of `D4` each, (B,)."""
        pixel = self.pixels[symmetry]  # which pixel of the translated structure comes where
        row = (pixel // PIXELS - shift[:, 0, None, None]) % PIXELS
        column = (pixel % PIXELS - shift[:, 1, None, None]) % PIXELS
        return structure.flatten(1).gather(1, (PIXELS * row + column).flatten(1)).view_as(structure)

    def _turned(self, shift: Tensor, symmetry: Tensor) -> Tensor:
        """Translations (B, K, 2) of structures as translations of their symmetric images."""
        turned = torch.where(self.transposed[symmetry, None, None], shift.flip(-1), shift)
        return turned * self.signs[symmetry, None, :]
