"""The field in the patterned layer at some times, kept in 16 bits, and its product with another field."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from metaspec_simulation.physics.fdtd import Field, jit


@jit
def keep(field: Field, kept: NDArray[np.int16]) -> np.float32:
    """Store a field in 16 bits; returns the unit of the stored numbers.

    Args:
        field: one component in the patterned layer, (planes, y * x).
        kept: array to fill, of the same shape.
    """
    largest = np.float32(0)
    for plane in field:
        for value in plane:
            largest = max(largest, abs(value))
    if largest == 0:
        kept[:] = 0
        return np.float32(0)
    scale = np.float32(32767) / largest
    for p in range(field.shape[0]):
        for i in range(field.shape[1]):
            kept[p, i] = np.int16(np.rint(field[p, i] * scale))
    return 1 / scale


@jit
def correlate(
    field: Field, kept: NDArray[np.int16], unit: np.float32, share: Field, total: NDArray[np.float64]
) -> None:
    """Add the product of a field and a kept one, weighted and summed over z, to `total`.

    Args:
        field: one component in the patterned layer, (planes, y * x).
        kept: another field there, as `keep` stores it.
        unit: what `keep` returned for it.
        share: weights of the planes, (planes,).
        total: sums so far, (y * x,).
    """
    for p in range(field.shape[0]):
        weight = unit * share[p]
        for i in range(field.shape[1]):
            total[i] += weight * field[p, i] * np.float32(kept[p, i])
