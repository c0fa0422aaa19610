"""The field in the patterned layer at some times, kept in 8 bits, and its product with another field.

Each row of cells has a unit of its own, so that weak fields beside strong ones are kept, too. Rounding errors of many planes
and times are independent: they add up to between .001 and .01 of a gradient (rms), whose cosine with the exact one is .9999.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from metaspec_simulation.physics.fdtd import Field, jit


@jit
def keep(field: Field, kept: NDArray[np.uint8], units: Field) -> None:
    """Store a field in 8 bits.

    Args:
        field: one component in the patterned layer, (planes, y * x), with ghost rows.
        kept: array to fill, without ghost rows, (planes, cells, cells); 128 stands for 0.
        units: array to fill with the unit of each row, (planes, cells).
    """
    planes, cells, _ = kept.shape
    for p in range(planes):
        for y in range(cells):
            start = (y + 1) * cells
            line = field[p, start : start + cells]
            largest = np.float32(0)
            for value in line:
                largest = max(largest, abs(value))
            scale = np.float32(127) / largest if largest > 0 else np.float32(0)
            units[p, y] = largest / np.float32(127)
            for x in range(cells):
                kept[p, y, x] = np.uint8(line[x] * scale + np.float32(128.5))


@jit
def correlate(field: Field, kept: NDArray[np.uint8], units: Field, share: Field, total: NDArray[np.float64]) -> None:
    """Add the product of a field and a kept one, weighted and summed over z, to `total`.

    Args:
        field: one component in the patterned layer, (planes, y * x), with ghost rows.
        kept: another field there, as `keep` stores it.
        units: units of its rows.
        share: weights of the planes, (planes,).
        total: sums so far, (cells, cells).
    """
    planes, cells, _ = kept.shape
    for p in range(planes):
        for y in range(cells):
            start = (y + 1) * cells
            weight = units[p, y] * share[p]
            line = field[p, start : start + cells]
            for x in range(cells):
                total[y, x] += weight * line[x] * (np.float32(kept[p, y, x]) - np.float32(128))
