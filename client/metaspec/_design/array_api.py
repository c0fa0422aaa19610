"""What objectives and topology need beside the array API itself."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from array_api_compat import array_namespace, device, is_jax_array, is_torch_array
from numpy.typing import ArrayLike

Array: TypeAlias = Any
"""An array of numpy, torch or jax: of any library with the array API."""


def namespace_of_floats(name: str, array: Array) -> Any:
    """The library of an array of real floating-point numbers.

    Raises:
        ValueError: numbers of another kind: whole numbers would turn weights into zeros.
        TypeError: not an array.
    """
    xp = array_namespace(array)
    if not xp.isdtype(array.dtype, "real floating"):
        raise ValueError(f"{name} must be floating-point numbers, got {array.dtype}")
    return xp


def constant_like(constant: ArrayLike, like: Array) -> Array:
    """A constant as an array of the library, dtype and device of another."""
    return array_namespace(like).asarray(np.asarray(constant), dtype=like.dtype, device=device(like))


def detached(array: Array) -> Array:
    """The same numbers as a constant: derivatives do not pass."""
    if is_torch_array(array):
        return array.detach()
    if is_jax_array(array):
        from jax.lax import stop_gradient

        return stop_gradient(array)
    return array
