"""Samples in integers, held on one device, and batches of them by number, with a random translation and symmetry for each."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from metaspec_contract.detectors import CHANNELS
from metaspec_contract.structures import Symmetry
from metaspec_simulation.dataset import Samples
from metaspec_training.data.bits import VERSIONS, StructureBits
from metaspec_training.networks.symmetric import D4


class Packed(NamedTuple):
    """A batch before it is expanded: bits and integers, where numbers of the network would be larger.

    Attributes:
        bits: structures at their first position, transformed by their symmetry, a bit for each pixel, uint8 (B, y, x / 8).
            The first pixel of a byte is in its lowest bit.
        densities: densities of those that are grey, as simulated, in steps of 1/255, uint8 (G, y, x).
        grey: their rows in the batch, (G,).
        spectra: spectra at all K positions, float32 (B, K, 4, W); (B, 0, 4, W) where they follow from the harmonics.
        harmonics: harmonics of the structures as simulated, int16 (B, H, V); (B, 0, 0) where these are unknown.
        symmetry: index of an element of `D4`, (B,).
        shift: translations along rows and columns in pixels, applied before the symmetry, (B, K, 2). The first of the K
            positions is where the network sees the structure.
        low_fidelity: whether the labels are of a coarser grid than those of the data set for validation, bool (B,).
        orders: orders of the field of those structures whose orders are known, as simulated, int16 (M, 2, 2, 2, K, V).
        ordered: their rows in the batch, (M,).
    """

    bits: Tensor
    densities: Tensor
    grey: Tensor
    spectra: Tensor
    harmonics: Tensor
    symmetry: Tensor
    shift: Tensor
    low_fidelity: Tensor
    orders: Tensor
    ordered: Tensor


class PackedSpectra(Dataset[Packed]):
    """The samples of a split on one device, each with random positions and a random symmetry, drawn for a whole epoch.

    The random numbers follow from the seed, the epoch and the sample's index alone, so that a resumed run sees what the
    uninterrupted one would have seen. Where harmonics are unknown, positions are multiples of half a period.

    Args:
        samples: samples of one split.
        draw: seed and epoch; None shows every structure as it was simulated.
        positions: positions over the detectors at which each structure is compared, K.
        low_fidelity: which samples have labels of a coarser grid, bool (N,), or how much of the difference between the grids
            is in the labels, from 0 to 1, float32 (N,); default: none.
        device: device that holds the samples, in addition to the `samples` themselves if it is not the CPU.
    """

    def __init__(
        self,
        samples: Samples,
        draw: tuple[int, int] | None = None,
        positions: int = 1,
        low_fidelity: NDArray[np.bool_] | NDArray[np.float32] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.device, self.positions, self.pixels = torch.device(device), positions, samples.process.pixels
        self._count = len(samples)
        # Without a draw the labels are the spectra as simulated, not as put together from the harmonics.
        harmonics = samples.harmonics if draw is not None else np.zeros((len(samples), 0, 0), np.int16)
        self._step = 1 if harmonics.size else self.pixels // 2
        self._bits = StructureBits(samples.packed, self.pixels, self._step, as_simulated=draw is None, device=device)
        self._densities = torch.from_numpy(samples.densities).to(device)
        self._grey = samples.grey
        # Orders are labels of training only.
        self._ordered = samples.ordered if draw is not None else np.full(len(samples), -1)
        self._orders = torch.from_numpy(samples.orders if draw is not None else samples.orders[:0]).to(device)
        self._spectra = torch.from_numpy(samples.spectra).flatten(0, 1).to(device)
        self._harmonics = torch.from_numpy(harmonics).to(device)
        none = np.zeros(len(samples), bool)
        self._low_fidelity = torch.from_numpy(none if low_fidelity is None else low_fidelity).to(device)
        # With only the mean of G1 and G2 known, symmetries that turn green into red or blue have no labels.
        greens = np.sort(_CHANNELS[..., 1:3]) == (1, 2)
        self._kept = np.argwhere(greens.all(-1)) if samples.attributes.get("merged_greens") else None
        self._draw(draw)

    def drawn(self, seed: int, epoch: int) -> Self:
        """The same samples, not copied, as another draw shows them.

        Raises:
            ValueError: they are held as simulated.
        """
        if self._bits.as_simulated:
            raise ValueError("samples that were packed without a draw cannot be drawn")
        other = copy.copy(self)
        other._draw((seed, epoch))
        return other

    def _draw(self, draw: tuple[int, int] | None) -> None:
        symmetry, shift = np.zeros(self._count, np.int64), np.zeros((self._count, self.positions, 2), np.int64)
        if draw is not None and self._kept is not None:
            chosen = self._kept[np.random.default_rng([*draw, 1]).integers(len(self._kept), size=self._count)]
            symmetry, shift = chosen[:, 0], self.pixels // 2 * chosen[:, None, 1:]
        elif draw is not None:
            symmetry = np.random.default_rng([*draw, 1]).integers(len(D4), size=self._count)
            shift = self._step * np.random.default_rng([*draw, 2]).integers(self.pixels // self._step, size=shift.shape)
        # Rows of the spectra of all samples at shifts by half a period; at others, spectra follow from the harmonics.
        halves = shift[:, :0] if self._harmonics.shape[1] else shift // (self.pixels // 2)
        channels = _CHANNELS[symmetry[:, None], halves[..., 0], halves[..., 1]]
        channels += len(CHANNELS) * np.arange(self._count)[:, None, None]
        # What a batch needs of every sample, in one array: one look-up, and one transfer to a GPU.
        parts = symmetry, self._bits.moves(symmetry, shift[:, 0]), shift, channels
        self._widths = [math.prod(part.shape[1:]) for part in parts]
        self._drawn = np.concatenate(
            [part.reshape(self._count, width) for part, width in zip(parts, self._widths, strict=True)], axis=1
        )

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, items: Sequence[int]) -> Packed:
        """A batch of samples, by number."""
        rows = np.asarray(items)
        grey = self._grey[rows]
        shaded = np.flatnonzero(grey >= 0)  # counted on the CPU: a GPU would have to be waited for
        ordered = self._ordered[rows]
        known = np.flatnonzero(ordered >= 0)
        here = self._put(rows)
        symmetry, moves, shift, channels = self._put(self._drawn[rows]).split(self._widths, dim=1)
        spectra = self._spectra.index_select(0, channels.flatten())
        return Packed(
            bits=self._bits.take(moves),
            densities=self._densities.index_select(0, self._put(grey[shaded])),
            grey=self._put(shaded),
            spectra=spectra.view(len(rows), -1, len(CHANNELS), spectra.shape[-1]),
            harmonics=self._harmonics.index_select(0, here),
            symmetry=symmetry[:, 0],
            shift=shift.view(len(rows), -1, 2),
            low_fidelity=self._low_fidelity.index_select(0, here),
            orders=self._orders.index_select(0, self._put(ordered[known])),
            ordered=self._put(known),
        )

    __getitems__ = __getitem__  # what a DataLoader asks for a batch

    def _put(self, numbers: NDArray[np.int64]) -> Tensor:
        tensor = torch.from_numpy(numbers)
        if self.device.type != "cuda":
            return tensor.to(self.device)
        # From pinned memory: otherwise every transfer would wait for all that the GPU still has to do.
        return tensor.pin_memory().to(self.device, non_blocking=True)


def packed_size(samples: Samples) -> int:
    """Bytes that `PackedSpectra` puts on a device."""
    arrays = samples.densities, samples.spectra, samples.harmonics, samples.orders
    return VERSIONS * samples.packed.nbytes + sum(array.nbytes for array in arrays)


def _shifted(symmetry: Symmetry, row: int, column: int) -> Symmetry:
    """A symmetry of the square after a shift by multiples of half a period, as one symmetry."""
    if symmetry.transpose:
        row, column = column, row
    return Symmetry(symmetry.transpose, symmetry.flip_rows, symmetry.flip_columns, row > 0, column > 0)


_CHANNELS = np.array([[[_shifted(s, row, column).channels for column in (0, 1)] for row in (0, 1)] for s in D4])
"""Which channel comes where after shifts by half a period along rows and columns, then a symmetry of `D4`, (8, 2, 2, 4)."""
