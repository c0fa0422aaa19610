"""Callers' cotangents and structures: checked before anything is sent, copied only one batch at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metaspec._errors import InvalidCotangent, InvalidStructure
from metaspec_contract import source
from metaspec_contract.structures import as_density, pack, pack_binary, packed_bytes


def check_cotangent(cotangent: ArrayLike, count: int, spectra_shape: tuple[int, int]) -> NDArray[Any]:
    """Cotangents as (N, channels, wavelengths) or (N, K, channels, wavelengths), dtype unchanged, not copied.

    Raises:
        InvalidCotangent: see `metaspec_contract.source.check_cotangent`.
    """
    try:
        return source.check_cotangent(cotangent, count, spectra_shape)
    except source.InvalidCotangent as error:
        raise InvalidCotangent(str(error)) from None


def as_packed(structures: ArrayLike, pixels: tuple[int, int]) -> NDArray[np.uint8] | None:
    """Bit-packed structures, uint8 (N, y * x / 8), as `metaspec_contract.structures.pack` makes them; None for others.

    Not copied. An array of the shape of one structure (y, x) is one.

    Raises:
        InvalidStructure: the bits that fill up the last byte are not 0.
    """
    if not isinstance(structures, np.ndarray) or isinstance(structures, np.ma.MaskedArray):
        return None
    if structures.dtype != np.uint8 or structures.shape[1:] != (packed_bytes(pixels),) or structures.shape == pixels:
        return None
    spare = -pixels[0] * pixels[1] % 8
    if spare and (structures[:, -1] & (2**spare - 1)).any():
        raise InvalidStructure(f"packed structures must end with {spare} zero bits, got others")
    return structures


def as_sent(structures: NDArray[Any], takes_bits: bool) -> NDArray[Any]:
    """A batch of checked structures (N, 1, y, x) in its form on the wire.

    Returns:
        uint8 (N, y * x / 8), packed bits, if all are binary and the server accepts bits; else float32 (N, 1, y, x).
    """
    if not takes_bits:
        return as_density(structures)
    if structures.dtype.kind != "f":  # checked integers are binary
        return pack(structures[:, 0])
    packed = pack_binary(structures)
    return as_density(structures) if packed is None else packed
