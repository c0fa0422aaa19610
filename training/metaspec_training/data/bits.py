"""StructureBits: structures as bits on a device, translated, mirrored and transposed as batches of them are taken."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metaspec_contract.structures import unpack
from metaspec_training.networks.symmetric import D4

_TRANSPOSED = np.array([symmetry.transpose for symmetry in D4])
_FLIPPED = np.array([(symmetry.flip_rows, symmetry.flip_columns) for symmetry in D4])

VERSIONS = 4
"""Versions of a structure: as simulated, mirrored left to right, transposed, transposed and then mirrored."""

_REVERSED = np.packbits(np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1), axis=1, bitorder="little")[:, 0]
"""Bytes with their bits in the opposite order."""


class StructureBits:
    """Structures of which batches are taken with a translation and then a symmetry for each.

    Each is held in four versions, which leaves of every symmetry at most a flip of rows. Flips and translations move rows,
    and words of bits in rows, so that a batch is one look-up of words by number. Only translations that are not multiples
    of words move bits in them, too.

    Args:
        packed: structures, as `metaspec_contract.structures.pack` makes them, uint8 (N, bytes).
        pixels: pixels along each side, a power of two from 64.
        step: number of pixels that divides all translations: 1, or half of the pixels.
        as_simulated: whether to hold the structures as simulated only, for batches without symmetries.
        device: device that holds the structures.
    """

    def __init__(
        self, packed: NDArray[np.uint8], pixels: int, step: int, as_simulated: bool, device: torch.device | str
    ) -> None:
        self.pixels, self.step, self.as_simulated = pixels, step, as_simulated
        bits = torch.from_numpy(_versions(packed, pixels, as_simulated)).to(device)
        words = bits.view(torch.int64 if pixels > 64 else torch.int32)  # two or more in a row
        self._words, self._per_row, self._word_bits = words.flatten(), words.shape[-1], torch.iinfo(words.dtype).bits
        self._count = len(packed)
        self._sources = torch.from_numpy(self._source_words()).to(device)

    def _source_words(self) -> NDArray[np.int64]:
        """Which word of a structure comes where, (flips of rows x shifts of rows x shifts by words, words)."""
        rows = np.arange(self.pixels) - self.step * np.arange(self.pixels // self.step)[:, None]
        rows = np.stack([rows, rows[:, ::-1]])[:, :, None, :, None] % self.pixels
        words = np.arange(self._per_row) - np.arange(self._per_row)[:, None]
        source = self._per_row * rows + words[:, None] % self._per_row
        return source.reshape(-1, self.pixels * self._per_row)

    def moves(self, symmetry: NDArray[np.int64], shift: NDArray[np.int64]) -> NDArray[np.int64]:
        """What `take` needs to know of each structure, (N, 3).

        Args:
            symmetry: index of an element of `D4`, applied after the translation, (N,).
            shift: translations along rows and columns in pixels, multiples of the step, (N, 2).
        """
        transposed, (flipped_rows, flipped_columns) = _TRANSPOSED[symmetry], _FLIPPED[symmetry].T
        rows, columns = np.where(transposed[:, None], shift[:, ::-1], shift).T
        columns = np.where(flipped_columns, -columns, columns) % self.pixels
        version = 2 * transposed + flipped_columns
        start = (np.arange(self._count) + self._count * version) * self.pixels * self._per_row
        source = flipped_rows * (self.pixels // self.step) + rows // self.step
        source = source * self._per_row + columns // self._word_bits
        return np.stack([start, source, columns % self._word_bits], axis=-1)

    def take(self, moves: Tensor) -> Tensor:
        """Structures, moved, the first pixel of a byte in its lowest bit, uint8 (B, y, x / 8).

        Args:
            moves: rows of `moves`, on the device of the structures, (B, 3).
        """
        start, source, bits = moves.unbind(-1)
        words = self._sources.index_select(0, source).add_(start[:, None])
        moved = self._words.index_select(0, words.flatten()).view(len(moves), self.pixels, -1)
        if self.step % self._word_bits:
            moved = _rotated(moved, bits.to(moved.dtype)[:, None, None])
        return moved.view(torch.uint8)


def _versions(packed: NDArray[np.uint8], pixels: int, as_simulated: bool) -> NDArray[np.uint8]:
    """Structures (N, bytes) in one version or all of them, one after the other, (versions N, y, x / 8)."""
    shape = (-1, pixels, pixels // 8)
    if as_simulated:
        return _REVERSED[packed].reshape(shape)
    bits = np.empty((VERSIONS, len(packed), *shape[1:]), np.uint8)
    for start in range(0, len(packed), 256):
        rows = slice(start, start + 256)
        upright = packed[rows].reshape(shape)
        turned = unpack(packed[rows], (pixels, pixels)).swapaxes(-1, -2)
        transposed = np.packbits(np.ascontiguousarray(turned), axis=-1)  # twice as fast as packing a view
        for version, part in ((0, upright), (2, transposed)):
            bits[version, rows] = _REVERSED[part]
            bits[version + 1, rows] = part[..., ::-1]  # both bytes and their bits the other way round: mirrored
    return bits.reshape(shape)


def _rotated(words: Tensor, bits: Tensor) -> Tensor:
    """Rows of words (B, y, words), the first bit the lowest, moved up by less than a word, periodically."""
    dtype = torch.iinfo(words.dtype)
    highest = (words.roll(1, -1) >> 1) & dtype.max  # a shift of a signed word fills up with its sign
    return (words << bits) | (highest >> (dtype.bits - 1 - bits))
