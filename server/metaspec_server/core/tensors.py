"""Tensors inside the server: named arrays with one row for each structure, binary structures as packed bits.

A binary structure is kept as 2048 bytes of bits, not as 64 KiB of float32, until an engine copies it into its input: the
queue holds 32 times as many, and the result cache recognises a structure by its bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import DTypeLike, NDArray

from metaspec_contract.model import GRADIENT, SPECTRA, TensorSpec
from metaspec_contract.structures import as_density, check_structures, pack_binary, unpack
from metaspec_server.core.errors import OutOfRange

__all__ = ["Piece", "Rows", "as_dtype", "compact", "count", "gather", "is_packed", "total_bytes"]

Rows: TypeAlias = dict[str, NDArray[Any]]
"""Named tensors with the same number of rows; a row of each belongs to one structure."""

_LEAST_HALF = 2.0**-18
"""Least largest value of a gradient in float16: the largest keeps six bits. Smaller gradients lose their direction."""


@dataclass(frozen=True)
class Piece:
    """Consecutive rows of one request, in a micro-batch.

    Attributes:
        rows: inputs of the model.
        keys: key of each row, where rows with equal keys have equal results; None where rows must not be compared.
    """

    rows: Rows
    keys: Sequence[bytes] | None = None

    def part(self, start: int, stop: int) -> Piece:
        """The rows from `start` up to `stop`, exclusive, without a copy."""
        rows = {name: array[start:stop] for name, array in self.rows.items()}
        return Piece(rows, None if self.keys is None else self.keys[start:stop])


def count(rows: Rows) -> int:
    """Number of rows.

    Raises:
        ValueError: the arrays do not have one equal, positive length.
    """
    sizes = {len(array) for array in rows.values()}
    if len(sizes) != 1 or 0 in sizes:
        raise ValueError(f"rows must be arrays of one equal, positive length, got lengths {sorted(sizes)}")
    return sizes.pop()


def total_bytes(arrays: Mapping[str, NDArray[Any]]) -> int:
    """Size of named arrays together, in bytes."""
    return sum(array.nbytes for array in arrays.values())


def compact(structures: NDArray[Any], spec: TensorSpec) -> NDArray[Any]:
    """Check structures, and return them as they wait in the queue: packed bits where all are binary, otherwise densities.

    Args:
        structures: array (N, y, x) or (N, 1, y, x), or what else `check_structures` takes.
        spec: the model's tensor of structures.

    Raises:
        InvalidStructure: another shape or dtype, or values that are not in [0, 1].
    """
    shapes = spec.pixels, (1, *spec.pixels)
    if len(structures) and structures.shape[1:] in shapes and structures.dtype.kind in "buif":
        packed = pack_binary(structures)
        if packed is not None:  # all values are 0 or 1: there is nothing else to check
            return packed
    structures = check_structures(structures, spec.pixels)
    if structures.dtype.kind == "f":
        structures = as_density(structures, spec.dtype)
    packed = pack_binary(structures)  # rounding may have made them binary
    return structures if packed is None else packed


def as_dtype(results: NDArray[Any], dtype: DTypeLike, name: str) -> NDArray[Any]:
    """Results in the dtype that a caller asked for.

    Args:
        results: output of a model.
        dtype: float32 or float16.
        name: name of the output.

    Raises:
        OutOfRange: the gradient of a structure does not fit into float16. One with respect to a condition is a few numbers,
            which may all be near 0: it only must not be too large.
    """
    if name != SPECTRA and np.dtype(dtype) == np.float16:
        axes = tuple(range(1, results.ndim))
        largest = np.maximum(results.max(axis=axes), -results.min(axis=axes))
        least, most = _LEAST_HALF if name == GRADIENT else 0.0, float(np.finfo(np.float16).max)
        wrong = (largest > most) | ((largest > 0) & (largest < least))
        if wrong.any():
            raise OutOfRange(
                f"{name}: the largest value of structure {int(wrong.argmax())} is {largest[wrong][0]:.3g}, float16 is for "
                f"gradients from {least:.2g} to {most:g}: multiply the cotangent by a constant, or ask for float32"
            )
    return results.astype(dtype, copy=False)


def is_packed(array: NDArray[Any], spec: TensorSpec) -> bool:
    """Whether an array holds rows of a tensor as bits: uint8 (N, packed_bytes), first element in the highest bit."""
    return array.dtype == np.uint8 and array.shape[1:] == (spec.packed_bytes,) and array.shape[1:] != spec.shape


def gather(pieces: Sequence[Rows], specs: Sequence[TensorSpec], buffers: Rows) -> int:
    """Copy pieces into buffers, one after the other, unpacking bits; returns the number of rows.

    Args:
        pieces: rows, each with the tensors of `specs`.
        specs: tensors to copy.
        buffers: array for each tensor, of its dtype and long enough for all rows.
    """
    start = 0
    for piece in pieces:
        for spec in specs:
            rows, buffer = piece[spec.name], buffers[spec.name]
            target = buffer[start : start + len(rows)]
            if is_packed(rows, spec):
                target[:] = unpack(rows, spec.pixels).reshape(target.shape)
            else:
                target[:] = rows
        start += len(rows)
    return start
