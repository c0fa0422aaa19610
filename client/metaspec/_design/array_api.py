"""Helpers beyond the array API itself, for numpy, torch and jax."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from array_api_compat import array_namespace, device, is_jax_array, is_torch_array
from numpy.typing import ArrayLike

Array: TypeAlias = Any
"""An array of any library with the array API: numpy, torch or jax."""


def namespace_of_floats(name: str, array: Array) -> Any:
    """The array API namespace of an array of real floating-point numbers.

    Raises:
        ValueError: another dtype; integers would truncate weights to zero.
        TypeError: not an array.
    """
    xp = array_namespace(array)
    if not xp.isdtype(array.dtype, "real floating"):
        raise ValueError(f"{name} must be floating-point numbers, got {array.dtype}")
    return xp


def constant_like(constant: ArrayLike, like: Array) -> Array:
    """A constant as an array with the library, dtype and device of another array."""
    return array_namespace(like).asarray(np.asarray(constant), dtype=like.dtype, device=device(like))


def detached(array: Array) -> Array:
    """The same values as a constant, without derivative."""
    if is_torch_array(array):
        return array.detach()
    if is_jax_array(array):
        from jax.lax import stop_gradient

        return stop_gradient(array)
    return array
