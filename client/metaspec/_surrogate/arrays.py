"""Callers' cotangents and structures: checked before anything is sent, copied only one batch at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metaspec._errors import InvalidCotangent
from metaspec_contract.structures import as_density, pack_binary

_CHUNK = 256  # cotangents checked at a time, so that temporaries stay small


def check_cotangent(cotangent: ArrayLike, count: int, spectra_shape: tuple[int, int]) -> NDArray[Any]:
    """Cotangents as (N, channels, wavelengths) or (N, K, channels, wavelengths), dtype unchanged, not copied.

    Args:
        cotangent: array of one of these shapes, or (channels, wavelengths) for all structures.
        count: N, the number of structures.
        spectra_shape: numbers of channels and wavelengths.

    Raises:
        InvalidCotangent: another shape, or values that are not finite numbers as float32.
    """
    try:
        array = np.asarray(cotangent)
    except ValueError as error:
        raise InvalidCotangent(f"cotangent must be an array: {error}") from None
    if array.dtype.kind not in "buif":
        raise InvalidCotangent(f"cotangent must be numbers, got {array.dtype}")
    lead = array.shape[:-2]
    if array.shape[-2:] != spectra_shape or not (lead == () or (lead[0] == count and len(lead) <= 2)):
        shape = ", ".join(map(str, spectra_shape))
        raise InvalidCotangent(
            f"cotangent must be ({shape}), ({count}, {shape}) or ({count}, K, {shape}), got {array.shape}"
        )
    stacked = array if lead else array[None]
    for start in range(0, len(stacked), _CHUNK):
        with np.errstate(over="ignore"):  # what overflows float32 becomes inf and is refused
            chunk = stacked[start : start + _CHUNK].astype(np.float32, copy=False)
        if not np.isfinite(chunk).all():
            raise InvalidCotangent(f"cotangent must be finite, got {chunk[~np.isfinite(chunk)][0]}")
    return array if lead else np.broadcast_to(array, (count, *spectra_shape))


def as_sent(structures: NDArray[Any], takes_bits: bool) -> NDArray[Any]:
    """A batch of checked structures (N, 1, y, x) in its form on the wire.

    Returns:
        uint8 (N, y * x / 8), packed bits, if all are binary and the server accepts bits; else float32 (N, 1, y, x).
    """
    packed = pack_binary(structures) if takes_bits else None
    return as_density(structures) if packed is None else packed
