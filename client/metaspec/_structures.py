"""Checks of callers' structures: those of the contract, raised as errors of this package."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metaspec._errors import InvalidStructure
from metaspec_contract import structures as contract


def check_structures(structures: ArrayLike, pixels: tuple[int, int]) -> NDArray[Any]:
    """Structures of a model's pixels (y, x) as (N, 1, y, x), dtype unchanged, not copied.

    Raises:
        InvalidStructure: see `metaspec_contract.structures.check_structures`.
    """
    try:
        return contract.check_structures(structures, pixels)
    except contract.InvalidStructure as error:
        raise InvalidStructure(str(error)) from None


def check_one_binary(structure: ArrayLike) -> contract.Structure:
    """One binary structure as uint8 (y, x), of any number of pixels.

    Raises:
        InvalidStructure: more than one structure, or a value that is neither 0 nor 1.
    """
    array = np.asarray(structure)
    if array.ndim != 2:
        raise InvalidStructure(f"structure must be one structure (y, x), got shape {array.shape}")
    try:
        (checked,) = contract.check_binary(array, (array.shape[0], array.shape[1]), "structure")
    except contract.InvalidStructure as error:
        raise InvalidStructure(str(error)) from None
    binary: contract.Structure = checked
    return binary
