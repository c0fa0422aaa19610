"""Tensors as they travel through the server: named arrays whose rows are structures, binary structures as packed bits.

A binary structure is kept as 2048 bytes of bits, not as 64 KiB of float32, until an engine copies it into its input: the
queue holds 32 times as many, and its bits are what it is recognised by when it comes again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metaspec_contract.model import TensorSpec

Rows = dict[str, NDArray[Any]]
"""Named tensors with the same number of rows; a row of each belongs to one structure."""


def count(rows: Rows) -> int:
    """How many rows there are.

    Raises:
        ValueError: the arrays do not have one equal, positive length.
    """
    sizes = {len(array) for array in rows.values()}
    if len(sizes) != 1 or 0 in sizes:
        raise ValueError(f"rows must be arrays of one equal, positive length, got lengths {sorted(sizes)}")
    return sizes.pop()


def is_packed(array: NDArray[Any], spec: TensorSpec) -> bool:
    """Whether an array holds rows of a tensor as bits: uint8 (N, packed_bytes), first element in the highest bit."""
    return array.dtype == np.uint8 and array.shape[1:] == (spec.packed_bytes,) and array.shape[1:] != spec.shape


def gather(pieces: Sequence[Rows], specs: Sequence[TensorSpec], buffers: Rows) -> int:
    """Copy pieces one after the other into buffers, unpacking bits; returns the number of rows.

    Args:
        pieces: each with the tensors of `specs`; other arrays are left alone.
        specs: what to copy.
        buffers: for each tensor an array of its dtype, long enough for all rows.
    """
    start = 0
    for piece in pieces:
        for spec in specs:
            rows, room = piece[spec.name], buffers[spec.name]
            target = room[start : start + len(rows)]
            if is_packed(rows, spec):
                target.reshape(len(rows), -1)[:] = np.unpackbits(rows, axis=1, count=spec.size)
            else:
                target[:] = rows
        start += len(rows)
    return start
