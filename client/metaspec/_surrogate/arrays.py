"""Arrays of callers: checked before anything is sent, copied only a few structures at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metaspec._errors import InvalidCotangent, InvalidStructure

_CHUNK = 256  # structures that are checked at a time: what is made for the check stays small


def check_structures(structures: ArrayLike, pixels: tuple[int, int]) -> NDArray[Any]:
    """Structures as (N, 1, y, x), of the dtype that they have, without a copy.

    Raises:
        InvalidStructure: another shape than (y, x), (N, y, x) or (N, 1, y, x); or values that are not in [0, 1].
    """
    y, x = pixels
    array = _numbers(structures, "structures", "numbers from 0 (void) to 1 (solid)", InvalidStructure)
    if array.shape[-2:] != pixels or array.ndim not in (2, 3, 4) or (array.ndim == 4 and array.shape[1] != 1):
        raise InvalidStructure(f"structures must be ({y}, {x}), (N, {y}, {x}) or (N, 1, {y}, {x}), got {array.shape}")
    array = array.reshape(-1, 1, y, x)
    for start in range(0, len(array), _CHUNK):
        chunk = array[start : start + _CHUNK]
        if not (chunk.min() >= 0 and chunk.max() <= 1):
            n, _, row, column = (int(i) for i in np.argwhere(~((chunk >= 0) & (chunk <= 1)))[0])
            hint = "; divide 8-bit images by 255" if chunk.max() == 255 else ""
            raise InvalidStructure(
                "structures must lie between 0 (void) and 1 (solid), "
                f"got {chunk[n, 0, row, column]:g} at structure {start + n}, row {row}, column {column}{hint}"
            )
    return array


def check_cotangent(cotangent: ArrayLike, count: int, spectra_shape: tuple[int, int]) -> NDArray[Any]:
    """Cotangents as (N, channels, wavelengths) or (N, K, channels, wavelengths), of their dtype, without a copy.

    Args:
        cotangent: of one of these shapes, or (channels, wavelengths), which is that of every structure.
        count: N, the number of structures.
        spectra_shape: channels and wavelengths.

    Raises:
        InvalidCotangent: another shape, or values that are not finite numbers as float32.
    """
    array = _numbers(cotangent, "cotangent", "numbers", InvalidCotangent)
    lead = array.shape[:-2]
    if array.shape[-2:] != spectra_shape or not (lead == () or (lead[0] == count and len(lead) <= 2)):
        shape = ", ".join(map(str, spectra_shape))
        raise InvalidCotangent(
            f"cotangent must be ({shape}), ({count}, {shape}) or ({count}, K, {shape}), got {array.shape}"
        )
    stacked = array if lead else array[None]
    for start in range(0, len(stacked), _CHUNK):
        with np.errstate(over="ignore"):  # what is too large for float32 becomes inf, and is refused for that
            chunk = stacked[start : start + _CHUNK].astype(np.float32, copy=False)
        if not np.isfinite(chunk).all():
            raise InvalidCotangent(f"cotangent must be finite, got {chunk[~np.isfinite(chunk)][0]}")
    return array if lead else np.broadcast_to(array, (count, *spectra_shape))


def _numbers(
    values: ArrayLike, name: str, expected: str, invalid: type[InvalidStructure | InvalidCotangent]
) -> NDArray[Any]:
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise invalid(f"{name} must be an array: {error}") from None
    if array.dtype.kind not in "buif":
        raise invalid(f"{name} must be {expected}, got {array.dtype}")
    return array


def as_sent(structures: NDArray[Any], takes_bits: bool) -> NDArray[Any]:
    """A batch of checked structures, (N, 1, y, x), as it goes on the wire.

    Returns:
        uint8 (N, y * x / 8), packed bits, if all are binary and the server takes bits; else float32 (N, 1, y, x).
    """
    if takes_bits:
        solid = structures != 0
        if structures.dtype == np.bool_ or np.array_equal(solid, structures):
            return np.packbits(solid.reshape(len(solid), -1), axis=1)
    return np.ascontiguousarray(structures, np.float32)
