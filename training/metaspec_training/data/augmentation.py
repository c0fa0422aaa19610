"""Exact augmentation on the device: packed samples become translated and mirrored densities with their labels."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline
from torch import Tensor, nn

from metaspec_contract.structures import PIXELS
from metaspec_simulation.data.levels import LEVELS
from metaspec_simulation.dataset import HARMONIC_STEP
from metaspec_training.data.orders import OrderLabels
from metaspec_training.data.packed import Packed
from metaspec_training.networks.symmetric import D4
from metaspec_training.networks.translation import Translation


class Batch(NamedTuple):
    """A batch as a network is trained on it.

    Attributes:
        density: structures, float32 (B, 1, y, x), of the pixels of the process.
        shift: K positions relative to that of the density, in 128ths of the period, (B, K, 2); the first is (0, 0).
        spectra: simulated spectra at these positions, float32 (B, K, 2, 2, W).
        low_fidelity: whether the labels are of a coarser grid than those of the data set for validation, bool (B,).
        orders: simulated orders of the field under the layer, in the arrangement of `FieldOrders`, of those structures whose
            orders are known, float32 (M, 2, 2, 2, K, V); None if there are none.
        ordered: their rows in the batch, (M,).
    """

    density: Tensor
    shift: Tensor
    spectra: Tensor
    low_fidelity: Tensor
    orders: Tensor | None = None
    ordered: Tensor | None = None


class Expansion(nn.Module):
    """Packed batches to densities and labels, on the device of the batch.

    Args:
        wavelengths_nm: wavelengths of the spectra in nm, (W,).
        harmonic_wavelengths_nm: thinned wavelengths of the harmonics in nm, (V,).
        harmonic_orders: row and column orders of the harmonics, those of the data set; default: the solver's.
        orders: labels of the field, where batches have them.
    """

    channels: Tensor
    interpolation: Tensor
    transposed: Tensor
    flipped: Tensor
    pixels: Tensor

    def __init__(
        self,
        wavelengths_nm: NDArray[np.float64],
        harmonic_wavelengths_nm: NDArray[np.float64],
        harmonic_orders: NDArray[np.int64] | None = None,
        orders: OrderLabels | None = None,
    ) -> None:
        super().__init__()
        self.orders = orders
        self.translation = Translation(harmonic_orders)
        thinned = harmonic_wavelengths_nm
        spline = CubicSpline(thinned, np.eye(len(thinned)))(wavelengths_nm).T if len(thinned) else np.zeros((0, 0))
        spline[np.abs(spline) < 1e-12] = 0  # far from their node: denormal numbers, which are slow to multiply
        pixels = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little").astype(np.float32)
        for name, values in (
            ("transposed", [s.transpose for s in D4]),
            ("flipped", [(s.flip_rows, s.flip_columns) for s in D4]),
            ("channels", [s.channels for s in D4]),
            ("pixels", pixels),
            ("interpolation", (HARMONIC_STEP * spline).astype(np.float32)),
        ):
            self.register_buffer(name, torch.tensor(values), persistent=False)

    def forward(self, batch: Packed) -> Batch:
        pixels = batch.bits.shape[1]
        spectra = self._labels(batch, pixels)
        relative = torch.zeros(batch.shift.shape, device=batch.shift.device)
        if batch.shift.shape[1] > 1:
            relative = self._turned(batch.shift - batch.shift[:, :1], batch.symmetry) * (PIXELS / pixels)
        moved = Batch(self._densities(batch).unsqueeze(1), relative, spectra.unflatten(2, (2, 2)), batch.low_fidelity)
        if self.orders is None or not len(batch.ordered):
            return moved
        rows = batch.ordered
        orders = self.orders(batch.orders, batch.symmetry[rows], batch.shift[rows, 0])
        return moved._replace(orders=orders, ordered=rows)

    def _labels(self, batch: Packed, pixels: int) -> Tensor:
        """Spectra at the positions of a batch, (B, K, 4, W)."""
        if not batch.harmonics.shape[1]:
            return batch.spectra
        channels = self.channels[batch.symmetry][:, None].expand(-1, batch.shift.shape[1], -1)
        basis = self.translation.basis(batch.shift * (PIXELS / pixels))
        basis = _take_rows(basis.flatten(0, 1), channels.flatten(0, 1)).reshape(len(basis), -1, basis.shape[-1])
        spectra = basis @ batch.harmonics.float() @ self.interpolation
        return spectra.unflatten(1, (-1, 4))

    def _densities(self, batch: Packed) -> Tensor:
        """Structures as the network sees them, float32 (B, y, x)."""
        pixels = batch.bits.shape[1]
        density = self.pixels.index_select(0, batch.bits.int().flatten()).view(-1, pixels, pixels)
        if len(batch.grey):
            density[batch.grey] = self._grey(batch)
        return density

    def _grey(self, batch: Packed) -> Tensor:
        """Those that are grey, at their first position, then transformed by their symmetries, float32 (G, y, x)."""
        symmetry, shift = batch.symmetry[batch.grey], batch.shift[batch.grey, 0]
        pixels = batch.bits.shape[1]
        turned = self.transposed[symmetry]
        shift = torch.where(turned[:, None], shift.flip(-1), shift)
        density = torch.where(turned[:, None, None], batch.densities.mT, batch.densities)
        rows, columns = (_sources(shift[:, axis], self.flipped[symmetry, axis], pixels) for axis in (0, 1))
        density = density.take_along_dim(rows[:, :, None], 1).take_along_dim(columns[:, None, :], 2)
        return density.float() / LEVELS

    def _turned(self, shift: Tensor, symmetry: Tensor) -> Tensor:
        """Translations (B, K, 2) of structures as translations of their symmetric images."""
        turned = torch.where(self.transposed[symmetry, None, None], shift.flip(-1), shift)
        return turned * (1 - 2 * self.flipped[symmetry].long())[:, None]


def _sources(shift: Tensor, flipped: Tensor, pixels: int) -> Tensor:
    """Which pixel along an axis comes where, (B, pixels), after shifts (B,) and then mirroring where `flipped`, (B,)."""
    flip = flipped.long()[:, None]
    return ((1 - 2 * flip) * torch.arange(pixels, device=shift.device) - flip - shift[:, None]) % pixels


def _take_rows(x: Tensor, rows: Tensor) -> Tensor:
    """Rows (B, M) of (B, N, C), each by its number: (B, M, C)."""
    start = x.shape[1] * torch.arange(len(x), device=x.device)[:, None]
    return x.flatten(0, 1).index_select(0, (rows + start).flatten()).unflatten(0, rows.shape)
