"""Samples as they travel to the device: in integers, with a random translation and symmetry for each."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from metaspec_contract.structures import PIXELS, Symmetry
from metaspec_simulation.dataset import Samples
from metaspec_training.networks.symmetric import D4

_UNKNOWN = np.zeros((0, 0), np.int16)


class Packed(NamedTuple):
    """A batch of integers.

    Attributes:
        structure: structures in steps of 1/255, uint8 (B, 128, 128).
        spectra: spectra as simulated, float32 (B, 4, W).
        harmonics: their harmonics, int16 (B, H, V); (B, 0, 0) where these are unknown.
        symmetry: index of an element of `D4`, (B,).
        shift: translations along rows and columns in pixels, applied before the symmetry, (B, K, 2). The first of the K
            positions is where the network sees the structure.
        low_fidelity: whether the labels are of a coarser grid than those of the data set for validation, bool (B,).
    """

    structure: Tensor
    spectra: Tensor
    harmonics: Tensor
    symmetry: Tensor
    shift: Tensor
    low_fidelity: Tensor


class PackedSpectra(Dataset[Packed]):
    """The samples of a split, each with random positions and a random symmetry.

    The random numbers follow from the seed, the epoch and the sample's index alone, so that a resumed run sees what the
    uninterrupted one would have seen. Where harmonics are unknown, positions are multiples of half a period.

    Args:
        samples: samples of one split.
        draw: seed and epoch; None shows every structure as it was simulated.
        positions: positions over the detectors at which each structure is compared, K.
        low_fidelity: which samples have labels of a coarser grid, bool (N,); default: none.
    """

    def __init__(
        self,
        samples: Samples,
        draw: tuple[int, int] | None = None,
        positions: int = 1,
        low_fidelity: NDArray[np.bool_] | None = None,
    ) -> None:
        self.samples, self.draw, self.positions = samples, draw, positions
        self.low_fidelity = np.zeros(len(samples), bool) if low_fidelity is None else low_fidelity
        self.step = 1 if samples.harmonics.size else PIXELS // 2
        # With only the mean of G1 and G2 known, symmetries that turn green into red or blue have no labels.
        merged = bool(samples.attributes.get("merged_greens"))
        shifts = [(r, c) for r in range(0, PIXELS, self.step) for c in range(0, PIXELS, self.step)] if merged else []
        self.kept = [
            (index, shift)
            for index, symmetry in enumerate(D4)
            for shift in shifts
            if set(_shifted(symmetry, shift).channels[1:3]) == {1, 2}
        ]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, item: int) -> Packed:
        symmetry, shift = 0, np.zeros((self.positions, 2), np.int64)
        if self.draw is not None:
            rng = np.random.default_rng([*self.draw, item])
            shift = self.step * rng.integers(0, PIXELS // self.step, size=(self.positions, 2))
            symmetry = int(rng.integers(len(D4)))
            if self.kept:
                symmetry, only = self.kept[rng.integers(len(self.kept))]
                shift = np.array([only])
        # Without a draw the labels are the spectra as simulated, not as put together from the harmonics.
        harmonics = _UNKNOWN if self.draw is None else self.samples.harmonics[item]
        return Packed(
            torch.from_numpy(self.samples.levels(item)),
            torch.from_numpy(self.samples.spectra[item]),
            torch.from_numpy(harmonics),
            torch.tensor(symmetry),
            torch.from_numpy(shift),
            torch.tensor(bool(self.low_fidelity[item])),
        )


def _shifted(symmetry: Symmetry, shift: tuple[int, int]) -> Symmetry:
    """A symmetry of the square after a shift by multiples of half a period, as one symmetry."""
    row, column = (shift[1], shift[0]) if symmetry.transpose else shift
    return Symmetry(symmetry.transpose, symmetry.flip_rows, symmetry.flip_columns, row > 0, column > 0)
