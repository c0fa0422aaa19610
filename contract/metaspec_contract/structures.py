"""A structure: its shape and values, how it is checked and packed, and the symmetries that permute its spectra.

A structure is an array (128, 128), row = y, column = x, periodic in both: 1 is solid, 0 is void. It is binary, or a float
density in [0, 1]. On disk and on the wire binary structures are packed bits, 2048 bytes each, rows first, the first pixel in
the highest bit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

PIXELS = 128
"""Pixels along each side of a structure."""

ROUNDING = 1e-6
"""How far a density may leave [0, 1] by rounding; it is clipped where it becomes a float."""

Structure: TypeAlias = NDArray[np.uint8]
"""Binary structures (..., 128, 128)."""

_CHUNK = 256  # structures that are checked at a time: what is made for the check stays small


class InvalidStructure(ValueError):
    """An array that cannot be a structure. The message says what was expected and what came."""


def check_structures(
    structures: ArrayLike, pixels: tuple[int, int] = (PIXELS, PIXELS), name: str = "structures"
) -> NDArray[Any]:
    """Structures as (N, 1, y, x), of the dtype that they have, without a copy.

    Args:
        structures: (y, x), (N, y, x) or (N, 1, y, x), bool, integer or float.
        pixels: rows and columns of a structure.
        name: what the caller calls the array, for messages.

    Raises:
        InvalidStructure: another shape or dtype, or values outside [0, 1] by more than `ROUNDING`.
    """
    y, x = pixels
    try:
        array = np.asarray(structures)
    except ValueError as error:
        raise InvalidStructure(f"{name} must be an array: {error}") from None
    if array.dtype.kind not in "buif":
        raise InvalidStructure(f"{name} must be numbers from 0 (void) to 1 (solid), got {array.dtype}")
    if array.shape[-2:] != pixels or array.ndim not in (2, 3, 4) or (array.ndim == 4 and array.shape[1] != 1):
        raise InvalidStructure(f"{name} must be ({y}, {x}), (N, {y}, {x}) or (N, 1, {y}, {x}), got {array.shape}")
    array = array.reshape(-1, 1, y, x)
    for start in range(0, len(array), _CHUNK):
        chunk = array[start : start + _CHUNK]
        if not (chunk.min() >= -ROUNDING and chunk.max() <= 1 + ROUNDING):  # so written, NaN fails too
            outside = ~((chunk >= -ROUNDING) & (chunk <= 1 + ROUNDING))
            n, _, row, column = (int(i) for i in np.argwhere(outside)[0])
            hint = "; divide 8-bit images by 255" if chunk.max() == 255 else ""
            raise InvalidStructure(
                f"{name} must lie between 0 (void) and 1 (solid), "
                f"got {chunk[n, 0, row, column]:g} at structure {start + n}, row {row}, column {column}{hint}"
            )
    return array


def check_binary(
    structures: ArrayLike, pixels: tuple[int, int] = (PIXELS, PIXELS), name: str = "structures"
) -> Structure:
    """Binary structures as uint8 (N, y, x).

    Args:
        structures: as for `check_structures`.
        pixels: rows and columns of a structure.
        name: what the caller calls the array, for messages.

    Raises:
        InvalidStructure: as `check_structures`, or a value that is neither 0 nor 1.
    """
    array = check_structures(structures, pixels, name)[:, 0]
    solid = array != 0
    if array.dtype != np.bool_ and not np.array_equal(solid, array):
        n, row, column = (int(i) for i in np.argwhere(solid != array)[0])
        raise InvalidStructure(
            f"{name} must be binary, 0 (void) or 1 (solid), got {array[n, row, column]:g} at structure {n}, row {row}, "
            f"column {column}; threshold densities first"
        )
    binary: Structure = solid.astype(np.uint8)
    return binary


def as_density(structures: NDArray[Any], dtype: DTypeLike = np.float32) -> NDArray[Any]:
    """Checked structures as contiguous densities of a floating dtype, what rounding left outside [0, 1] clipped."""
    density = np.ascontiguousarray(structures, dtype)
    if structures.dtype.kind == "f" and density.size and (density.min() < 0 or density.max() > 1):
        density = density.clip(0, 1)
    return density


def packed_bytes(pixels: tuple[int, int] = (PIXELS, PIXELS)) -> int:
    """Bytes of one bit-packed structure."""
    return -(-pixels[0] * pixels[1] // 8)


def pack(structures: NDArray[Any]) -> NDArray[np.uint8]:
    """Binary structures (..., y, x), zeros and ones, as bits (..., bytes)."""
    packed: NDArray[np.uint8] = np.packbits(structures.reshape(*structures.shape[:-2], -1) != 0, axis=-1)
    return packed


def pack_binary(structures: NDArray[Any]) -> NDArray[np.uint8] | None:
    """Rows (N, ...) as bits, uint8 (N, bytes), if all their values are 0 or 1; else None."""
    flat = structures.reshape(len(structures), -1)
    solid = flat != 0
    if flat.dtype != np.bool_ and not np.array_equal(solid, flat):
        return None
    return np.packbits(solid, axis=1)


def unpack(packed: NDArray[np.uint8], pixels: tuple[int, int] = (PIXELS, PIXELS)) -> Structure:
    """The inverse of `pack`: (..., bytes) to uint8 (..., y, x)."""
    structures: Structure = np.unpackbits(packed, axis=-1, count=pixels[0] * pixels[1])
    return structures.reshape(*packed.shape[:-1], *pixels)


@dataclass(frozen=True)
class Symmetry:
    """One of the 32 exact symmetries of the spectra: D4 times the half-period shifts.

    At normal incidence and averaged over polarisation, every symmetry of the square lattice that maps quadrants onto
    quadrants permutes the four spectra and changes nothing else.

    Attributes:
        transpose: swap rows and columns, first.
        flip_rows: mirror the rows, second.
        flip_columns: mirror the columns, third.
        shift_rows: shift the rows by half a period, fourth.
        shift_columns: shift the columns by half a period, last.
    """

    transpose: bool = False
    flip_rows: bool = False
    flip_columns: bool = False
    shift_rows: bool = False
    shift_columns: bool = False

    def apply(self, array: NDArray[Any]) -> NDArray[Any]:
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
    """All 32, the identity first; the first 8 are D4."""
    for bits in range(32):
        yield Symmetry(*(bool(bits >> k & 1) for k in range(5)))
