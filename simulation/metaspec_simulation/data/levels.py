"""Structures as a data set keeps them: 8 bits per pixel, from 0 (void) to 255 (solid)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

LEVELS = 255
"""Steps between void and solid."""


def as_levels(structures: NDArray[Any]) -> NDArray[np.uint8]:
    """Binary structures, or densities of a floating dtype in [0, 1], as levels, uint8; densities are rounded."""
    return np.rint(LEVELS * structures.astype(np.float64)).clip(0, LEVELS).astype(np.uint8)


def as_structure(levels: NDArray[np.uint8]) -> NDArray[Any]:
    """Levels as structures: binary, uint8, if none is grey, otherwise densities, float32."""
    return levels.astype(np.float32) / np.float32(LEVELS) if is_grey(levels).any() else levels // np.uint8(LEVELS)


def is_grey(levels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Which structures have pixels between void and solid: (..., y, x) to bool (...)."""
    return np.asarray(((levels > 0) & (levels < LEVELS)).any(axis=(-2, -1)))
