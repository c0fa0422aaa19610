"""A linear map that JAX may transpose but not compute: the derivative of a function that has one in reverse mode only.

JAX differentiates in reverse mode by transposing the derivative in forward mode. `jax.custom_vjp` does so, too, but where
it cannot transpose it has computed the function by then, and says nothing of why. Primitives and their rules
(`jax.extend.core`, `jax.interpreters`) are documented by JAX, but may change between its minor versions: tried with 0.4.35,
0.4.38 and 0.10.2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

_primitive = Primitive("reverse_mode_only")


def linear_map(
    points: Sequence[Array],
    tangents: Sequence[Array],
    *,
    shape: tuple[int, ...],
    transpose: Callable[[list[Array], Array], list[Array]],
    refusal: str,
) -> Array:
    """The image of tangents under the derivative at a point, which consists of several arrays, to be transposed.

    Args:
        points: where the derivative is taken.
        tangents: of the shapes and dtypes of the points.
        shape: shape of the image, which has the dtype of the first point.
        transpose: function from the points and a cotangent of the image to cotangents of the points.
        refusal: why the image cannot be computed.

    Raises:
        TypeError: with the refusal, where the image is computed (under `jit`: when it is compiled) or differentiated.
    """
    image: Array = _primitive.bind(*points, *tangents, shape=shape, transpose=transpose, refusal=refusal)  # type: ignore[no-untyped-call]
    return image


def _shaped(*arrays: Any, shape: tuple[int, ...], **_: Any) -> Any:
    return jax.core.ShapedArray(shape, arrays[0].dtype)


def _refuse(*_: Any, refusal: str, **__: Any) -> Any:
    raise TypeError(refusal)


def _transpose(cotangent: Any, *arrays: Any, transpose: Callable[..., Any], **_: Any) -> list[Any]:
    points, tangents = arrays[: len(arrays) // 2], arrays[len(arrays) // 2 :]
    wanted = [isinstance(tangent, ad.UndefinedPrimal) for tangent in tangents]  # others are constants, zero
    if type(cotangent) is ad.Zero:
        found = [ad.Zero(tangent.aval) if one else None for one, tangent in zip(wanted, tangents, strict=True)]
    else:
        found = transpose(list(points), cotangent)
    return [None] * len(points) + [array if one else None for one, array in zip(wanted, found, strict=True)]


def _batch(arrays: Any, axes: Any, *, shape: tuple[int, ...], **options: Any) -> tuple[Array, int]:
    size = next(array.shape[axis] for array, axis in zip(arrays, axes, strict=True) if axis is not None)
    whole = [
        jnp.broadcast_to(array, (size, *array.shape)) if axis is None else jnp.moveaxis(array, axis, 0)
        for array, axis in zip(arrays, axes, strict=True)
    ]
    half = len(whole) // 2
    return linear_map(whole[:half], whole[half:], shape=(size, *shape), **options), 0


_primitive.def_abstract_eval(_shaped)  # type: ignore[no-untyped-call]
_primitive.def_impl(_refuse)  # type: ignore[no-untyped-call]
ad.primitive_jvps[_primitive] = _refuse
ad.primitive_transposes[_primitive] = _transpose
batching.primitive_batchers[_primitive] = _batch
mlir.register_lowering(_primitive, _refuse)
