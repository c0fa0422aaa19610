"""Samples in integers, held on one device, and batches of them by number, with a random translation and symmetry for each."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from metaspec_contract.structures import Symmetry, unpack
from metaspec_simulation.dataset import Samples
from metaspec_training.networks.symmetric import D4


class Packed(NamedTuple):
    """A batch of integers.

    Attributes:
        bits: structures, a bit for each pixel, the first of a byte in its lowest bit, uint8 (B, y, x / 8); transposed where
            the symmetry transposes.
        densities: densities of those that are grey, in steps of 1/255, uint8 (G, y, x).
        grey: their rows in the batch, (G,).
        spectra: spectra as simulated, float32 (B, 4, W).
        harmonics: their harmonics, int16 (B, H, V); (B, 0, 0) where these are unknown.
        symmetry: index of an element of `D4`, (B,).
        shift: translations along rows and columns in pixels, applied before the symmetry, (B, K, 2). The first of the K
            positions is where the network sees the structure.
        low_fidelity: whether the labels are of a coarser grid than those of the data set for validation, bool (B,).
    """

    bits: Tensor
    densities: Tensor
    grey: Tensor
    spectra: Tensor
    harmonics: Tensor
    symmetry: Tensor
    shift: Tensor
    low_fidelity: Tensor


class PackedSpectra(Dataset[Packed]):
    """The samples of a split on one device, each with random positions and a random symmetry, drawn for a whole epoch.

    The random numbers follow from the seed, the epoch and the sample's index alone, so that a resumed run sees what the
    uninterrupted one would have seen. Where harmonics are unknown, positions are multiples of half a period.

    Args:
        samples: samples of one split.
        draw: seed and epoch; None shows every structure as it was simulated.
        positions: positions over the detectors at which each structure is compared, K.
        low_fidelity: which samples have labels of a coarser grid, bool (N,); default: none.
        device: device that holds the samples, in addition to the `samples` themselves if it is not the CPU.
    """

    def __init__(
        self,
        samples: Samples,
        draw: tuple[int, int] | None = None,
        positions: int = 1,
        low_fidelity: NDArray[np.bool_] | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.device, self.positions, self.pixels = torch.device(device), positions, samples.process.pixels
        self._count = len(samples)
        self._bits = torch.from_numpy(_as_bits(samples.packed, self.pixels, transposed=draw is not None)).to(device)
        self._densities = torch.from_numpy(samples.densities).to(device)
        self._grey = torch.from_numpy(samples.grey)
        self._spectra = torch.from_numpy(samples.spectra).to(device)
        # Without a draw the labels are the spectra as simulated, not as put together from the harmonics.
        harmonics = samples.harmonics if draw is not None else np.zeros((len(samples), 0, 0), np.int16)
        self._harmonics = torch.from_numpy(harmonics).to(device)
        none = np.zeros(len(samples), bool)
        self._low_fidelity = torch.from_numpy(none if low_fidelity is None else low_fidelity).to(device)
        self._step = 1 if samples.harmonics.size else self.pixels // 2
        # With only the mean of G1 and G2 known, symmetries that turn green into red or blue have no labels.
        merged = bool(samples.attributes.get("merged_greens"))
        half = (0, self.pixels // 2)
        self._kept = [
            (index, row, column)
            for index, symmetry in enumerate(D4)
            for row in half
            for column in half
            if merged and set(_shifted(symmetry, row, column).channels[1:3]) == {1, 2}
        ]
        self._draw(draw)

    def drawn(self, seed: int, epoch: int) -> Self:
        """The same samples, not copied, as another draw shows them.

        Raises:
            ValueError: they are held as simulated.
        """
        if len(self._bits) == self._count:
            raise ValueError("samples that were packed without a draw cannot be drawn")
        other = copy.copy(self)
        other._draw((seed, epoch))
        return other

    def _draw(self, draw: tuple[int, int] | None) -> None:
        symmetry, shift = np.zeros(self._count, np.int64), np.zeros((self._count, self.positions, 2), np.int64)
        if draw is not None and self._kept:
            chosen = np.array(self._kept)[np.random.default_rng([*draw, 1]).integers(len(self._kept), size=self._count)]
            symmetry, shift = chosen[:, 0], chosen[:, None, 1:]
        elif draw is not None:
            symmetry = np.random.default_rng([*draw, 1]).integers(len(D4), size=self._count)
            shift = self._step * np.random.default_rng([*draw, 2]).integers(self.pixels // self._step, size=shift.shape)
        self._symmetry, self._shift = torch.from_numpy(symmetry), torch.from_numpy(shift)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, items: Sequence[int]) -> Packed:
        """A batch of samples, by number."""
        rows = torch.tensor(items)
        symmetry = self._symmetry[rows]
        grey = self._grey[rows]
        shaded = (grey >= 0).nonzero()[:, 0]  # counted on the CPU: a GPU would have to be waited for
        here = rows.to(self.device)
        turned = (rows + self._count * _TRANSPOSES[symmetry]).to(self.device)
        return Packed(
            bits=self._bits.index_select(0, turned),
            densities=self._densities.index_select(0, grey[shaded].to(self.device)),
            grey=shaded.to(self.device),
            spectra=self._spectra.index_select(0, here),
            harmonics=self._harmonics.index_select(0, here),
            symmetry=symmetry.to(self.device),
            shift=self._shift[rows].to(self.device),
            low_fidelity=self._low_fidelity.index_select(0, here),
        )

    __getitems__ = __getitem__  # what a DataLoader asks for a batch


def packed_size(samples: Samples) -> int:
    """Bytes that `PackedSpectra` puts on a device."""
    return 2 * samples.packed.nbytes + samples.densities.nbytes + samples.spectra.nbytes + samples.harmonics.nbytes


_TRANSPOSES = torch.tensor([int(symmetry.transpose) for symmetry in D4])

_REVERSED = np.packbits(np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1), axis=1, bitorder="little")[:, 0]
"""Bytes with their bits in the opposite order."""


def _as_bits(packed: NDArray[np.uint8], pixels: int, transposed: bool) -> NDArray[np.uint8]:
    """Bit-packed structures (N, bytes) as `Packed.bits` has them, and if asked for, after them all of them transposed."""
    shape = (-1, pixels, pixels // 8)
    bits = np.empty((1 + transposed, len(packed), *shape[1:]), np.uint8)
    for start in range(0, len(packed), 256):
        part = packed[start : start + 256]
        rows = slice(start, start + len(part))
        bits[0, rows] = _REVERSED[part].reshape(shape)
        if transposed:
            turned = unpack(part, (pixels, pixels)).swapaxes(-1, -2)
            bits[1, rows] = np.packbits(turned, axis=-1, bitorder="little")
    return bits.reshape(shape)


def _shifted(symmetry: Symmetry, row: int, column: int) -> Symmetry:
    """A symmetry of the square after a shift by multiples of half a period, as one symmetry."""
    if symmetry.transpose:
        row, column = column, row
    return Symmetry(symmetry.transpose, symmetry.flip_rows, symmetry.flip_columns, row > 0, column > 0)
