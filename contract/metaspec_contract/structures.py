"""Structures: shape and values, validation, bit packing, and the symmetries that permute their spectra.

A structure is an array (y, x), row = y, column = x, periodic in both: 1 is solid, 0 is void. It has the pixels of its
process, 128 x 128 by default. It is binary, or a float density in [0, 1]: a pixel of density d has the permittivity
eps_void + d (eps_solid - eps_void), at every wavelength. That is the linear mixing of density-based topology optimisation;
the solver computes it, a model approximates it as far as it was taught. On disk
and on the wire, binary structures are bit-packed, row by row, the first pixel in the highest bit: 2048 bytes for 128 x 128
pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

PIXELS = 128
"""Pixels along each side of a structure of the default process."""

ROUNDING = 1e-6
"""Largest excursion from [0, 1] that counts as rounding: accepted when checked, clipped by `as_density`."""

Structure: TypeAlias = NDArray[np.uint8]
"""Binary structures (..., y, x)."""

_OVERSHOOT = 0.5  # excursion from [0, 1] up to which a filter or an interpolation may be the reason
_CHUNK = 256  # structures checked at a time, which bounds the size of intermediate arrays


class InvalidStructure(ValueError):
    """An array that is not a structure. The message states what was expected and what came."""


def check_structures(
    structures: ArrayLike, pixels: tuple[int, int] = (PIXELS, PIXELS), name: str = "structures"
) -> NDArray[Any]:
    """Check structures and return them as (N, 1, y, x), with their dtype and without a copy.

    Args:
        structures: array (y, x), (N, y, x) or (N, 1, y, x), bool, integer or float.
        pixels: rows and columns of a structure.
        name: name of the array in messages.

    Raises:
        InvalidStructure: another shape or dtype, or values outside [0, 1] by more than `ROUNDING`.
    """
    y, x = pixels
    if np.ma.is_masked(structures):
        raise InvalidStructure(f"{name} must be given in every pixel, got a masked array: use its method filled")
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
        if not (chunk.min() >= -ROUNDING and chunk.max() <= 1 + ROUNDING):  # this form also rejects NaN
            outside = ~((chunk >= -ROUNDING) & (chunk <= 1 + ROUNDING))
            n, _, row, column = (int(i) for i in np.argwhere(outside)[0])
            hint = ""
            if chunk.max() == 255:
                hint = "; divide 8-bit images by 255"
            elif chunk.min() >= -_OVERSHOOT and chunk.max() <= 1 + _OVERSHOOT:
                hint = "; numpy.clip(array, 0, 1) cuts off what a filter or an interpolation overshoots"
            raise InvalidStructure(
                f"{name} must lie between 0 (void) and 1 (solid), "
                f"got {_number(chunk[n, 0, row, column])} at structure {start + n}, row {row}, column {column}{hint}"
            )
    return array


def check_binary(
    structures: ArrayLike, pixels: tuple[int, int] = (PIXELS, PIXELS), name: str = "structures"
) -> Structure:
    """Check binary structures and return them as uint8 (N, y, x); values outside [0, 1] by rounding are clipped.

    Args:
        structures: array as for `check_structures`.
        pixels: rows and columns of a structure.
        name: name of the array in messages.

    Raises:
        InvalidStructure: as `check_structures`, or a value between 0 and 1.
    """
    array = check_structures(structures, pixels, name)[:, 0]
    solid = array > 0
    if array.dtype.kind == "f" and (between := solid & (array < 1)).any():
        n, row, column = (int(i) for i in np.argwhere(between)[0])
        raise InvalidStructure(
            f"{name} must be binary, 0 (void) or 1 (solid), got {_number(array[n, row, column])} at structure {n}, "
            f"row {row}, column {column}; threshold densities first"
        )
    return solid.view(np.uint8)


def _number(value: np.generic) -> str:
    """A value in six digits, or in as many as distinguish it from 0 and 1."""
    short = f"{value:g}"
    return str(value) if float(short) in (0, 1) else short


def as_density(structures: NDArray[Any], dtype: DTypeLike = np.float32) -> NDArray[Any]:
    """Convert checked structures to contiguous densities of a floating dtype, clipped to [0, 1]."""
    density = np.ascontiguousarray(structures, dtype)
    if structures.dtype.kind == "f" and density.size and (density.min() < 0 or density.max() > 1):
        density = density.clip(0, 1)
    return density


def packed_bytes(pixels: tuple[int, int] = (PIXELS, PIXELS)) -> int:
    """Bytes of one bit-packed structure."""
    return -(-pixels[0] * pixels[1] // 8)


def pack(structures: NDArray[Any]) -> NDArray[np.uint8]:
    """Pack binary structures (..., y, x) into bits, uint8 (..., bytes)."""
    *lead, y, x = structures.shape
    flat = structures.reshape(*lead, y * x)
    return np.packbits(flat if flat.dtype.kind in "bui" else flat != 0, axis=-1)  # packbits compares integers itself


def pack_binary(structures: NDArray[Any]) -> NDArray[np.uint8] | None:
    """Pack rows (N, ...) into bits, uint8 (N, bytes), if all values are 0 or 1; otherwise return None."""
    flat = structures.reshape(len(structures), math.prod(structures.shape[1:]))
    solid = flat != 0
    if flat.dtype != np.bool_ and not np.array_equal(solid, flat):
        return None
    return np.packbits(solid, axis=1)


def unpack(packed: NDArray[np.uint8], pixels: tuple[int, int] = (PIXELS, PIXELS)) -> Structure:
    """Unpack bits (..., bytes) into uint8 structures (..., y, x): the inverse of `pack`.

    Raises:
        InvalidStructure: wrong number of bytes.
    """
    if packed.shape[-1:] != (packed_bytes(pixels),):
        raise InvalidStructure(f"packed structures must be (..., {packed_bytes(pixels)}), got {packed.shape}")
    structures: Structure = np.unpackbits(packed, axis=-1, count=pixels[0] * pixels[1])
    return structures.reshape(*packed.shape[:-1], *pixels)


@dataclass(frozen=True)
class Symmetry:
    """One of the 32 exact symmetries of the spectra: D4 times the half-period shifts.

    At normal incidence and averaged over polarisation, a symmetry of the square lattice that maps quadrants onto quadrants
    only permutes the four spectra.

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
        """Permutation of the channels: the spectra of `apply(structure)` are `spectra[..., channels, :]`."""
        return tuple(int(channel) for channel in self.apply(np.arange(4).reshape(2, 2)).ravel())


def symmetries() -> Iterator[Symmetry]:
    """All 32 symmetries: the identity first, D4 in the first 8."""
    for bits in range(32):
        yield Symmetry(*(bool(bits >> k & 1) for k in range(5)))
