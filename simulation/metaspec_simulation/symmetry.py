"""The 32 exact symmetries of the spectra, and how they permute the detectors.

At normal incidence and averaged over polarisation, every symmetry of the square lattice that maps quadrants onto
quadrants permutes the four spectra and changes nothing else: the 8 elements of D4 times the 4 half-period shifts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Symmetry:
    """Transpose, then mirror rows, then mirror columns, then shift rows and columns by half a period (if set)."""

    transpose: bool = False
    flip_rows: bool = False
    flip_columns: bool = False
    shift_rows: bool = False
    shift_columns: bool = False

    def apply(self, array: NDArray[np.generic]) -> NDArray[np.generic]:
        """Transform the last two axes (y, x), of equal and even length, of any array."""
        if self.transpose:
            array = array.swapaxes(-1, -2)
        if self.flip_rows:
            array = array[..., ::-1, :]
        if self.flip_columns:
            array = array[..., ::-1]
        half = array.shape[-1] // 2
        return np.roll(array, (half * self.shift_rows, half * self.shift_columns), axis=(-2, -1))

    @property
    def channels(self) -> tuple[int, ...]:
        """Which old channel each new one holds: the spectra of `apply(structure)` are `spectra[..., channels, :]`."""
        return tuple(int(channel) for channel in self.apply(np.arange(4).reshape(2, 2)).ravel())


def symmetries() -> Iterator[Symmetry]:
    """All 32, the identity first."""
    for bits in range(32):
        yield Symmetry(*(bool(bits >> k & 1) for k in range(5)))
