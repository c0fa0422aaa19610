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
        self.register_buffer("channels", torch.tensor([s.channels for s in D4]), persistent=False)
        self.register_buffer("half_periods", torch.tensor(half_periods), persistent=False)
        self.register_buffer("interpolation", torch.tensor(np.array(spline), dtype=torch.float32), persistent=False)

    def forward(self, batch: Packed) -> Batch:
        density = torch.stack(
            [self._move(*one) for one in zip(batch.structure, batch.shift[:, 0], batch.symmetry, strict=True)]
        )
        if batch.harmonics.shape[1]:
            spectra = self.translation(batch.harmonics.float() @ self.interpolation, batch.shift.float())
        else:  # half-period shifts only permute
            rows, columns = (batch.shift // (PIXELS // 2)).unbind(-1)
            spectra = batch.spectra.unsqueeze(1).expand(-1, rows.shape[1], -1, -1)
            spectra = spectra.gather(2, self.half_periods[rows, columns].unsqueeze(-1).expand_as(spectra))
        channels = self.channels[batch.symmetry][:, None, :, None].expand_as(spectra)
        spectra = spectra.gather(2, channels).unflatten(2, (2, 2))
        relative = torch.stack(
            [self._turn(*one) for one in zip(batch.shift - batch.shift[:, :1], batch.symmetry, strict=True)]
        )
        return Batch(density.unsqueeze(1).float() / LEVELS, relative.float(), spectra, batch.low_fidelity)

    @staticmethod
    def _move(density: Tensor, shift: Tensor, symmetry: Tensor) -> Tensor:
        density = density.roll((int(shift[0]), int(shift[1])), (0, 1))
        return apply_symmetry(D4[int(symmetry)], density)

    @staticmethod
    def _turn(shift: Tensor, symmetry: Tensor) -> Tensor:
        """Translations (K, 2) of a structure as translations of its symmetric image."""
        element = D4[int(symmetry)]
        if element.transpose:
            shift = shift.flip(-1)
        sign = torch.tensor([-1 if element.flip_rows else 1, -1 if element.flip_columns else 1], device=shift.device)
        return shift * sign
