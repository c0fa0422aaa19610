"""Callers' cotangents and structures: checked before anything is sent, copied only one batch at a time."""

from __future__ import annotations

from typing import Any

from numpy.typing import ArrayLike, NDArray

from metaspec._errors import InvalidCotangent
from metaspec_contract import source
from metaspec_contract.structures import as_density, pack_binary


def check_cotangent(cotangent: ArrayLike, count: int, spectra_shape: tuple[int, int]) -> NDArray[Any]:
    """Cotangents as (N, channels, wavelengths) or (N, K, channels, wavelengths), dtype unchanged, not copied.

    Raises:
        InvalidCotangent: see `metaspec_contract.source.check_cotangent`.
    """
    try:
        return source.check_cotangent(cotangent, count, spectra_shape)
    except source.InvalidCotangent as error:
        raise InvalidCotangent(str(error)) from None


def as_sent(structures: NDArray[Any], takes_bits: bool) -> NDArray[Any]:
    """A batch of checked structures (N, 1, y, x) in its form on the wire.

    Returns:
        uint8 (N, y * x / 8), packed bits, if all are binary and the server accepts bits; else float32 (N, 1, y, x).
    """
    packed = pack_binary(structures) if takes_bits else None
    return as_density(structures) if packed is None else packed
