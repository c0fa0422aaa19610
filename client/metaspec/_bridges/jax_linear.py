"""A linear map that JAX may transpose but not compute: the derivative of a function that has one in reverse mode only.

JAX differentiates in reverse mode by transposing the derivative in forward mode. `jax.custom_vjp` does so, too, but where
it cannot transpose it has computed the function by then, and says nothing of why. Primitives and their rules
(`jax.extend.core`, `jax.interpreters`) are documented by JAX, but may change between its minor versions: tried with 0.4.35,
0.4.38 and 0.10.2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

_primitive = Primitive("reverse_mode_only")


def linear_map(
    point: Array,
    tangent: Array,
    *,
    shape: tuple[int, ...],
    transpose: Callable[[Array, Array], Array],
    refusal: str,
) -> Array:
    """The image of a tangent under the derivative at a point, to be transposed.

    Args:
        point: where the derivative is taken.
        tangent: of the shape and dtype of the point.
        shape: shape of the image, which has the dtype of the point.
        transpose: function from the point and a cotangent of the image to a cotangent of the point.
        refusal: why the image cannot be computed.

    Raises:
        TypeError: with the refusal, where the image is computed (under `jit`: when it is compiled) or differentiated.
    """
    image: Array = _primitive.bind(point, tangent, shape=shape, transpose=transpose, refusal=refusal)  # type: ignore[no-untyped-call]
    return image


def _shaped(point: Any, tangent: Any, *, shape: tuple[int, ...], **_: Any) -> Any:
    return jax.core.ShapedArray(shape, tangent.dtype)


def _refuse(*_: Any, refusal: str, **__: Any) -> Any:
    raise TypeError(refusal)


def _transpose(cotangent: Any, point: Any, tangent: Any, *, transpose: Callable[..., Any], **_: Any) -> list[Any]:
    if type(cotangent) is ad.Zero:
        return [None, ad.Zero(tangent.aval)]
    return [None, transpose(point, cotangent)]


def _batch(arrays: Any, axes: Any, *, shape: tuple[int, ...], **options: Any) -> tuple[Array, int]:
    size = next(array.shape[axis] for array, axis in zip(arrays, axes, strict=True) if axis is not None)
    point, tangent = (
        jnp.broadcast_to(array, (size, *array.shape)) if axis is None else jnp.moveaxis(array, axis, 0)
        for array, axis in zip(arrays, axes, strict=True)
    )
    return linear_map(point, tangent, shape=(size, *shape), **options), 0


_primitive.def_abstract_eval(_shaped)  # type: ignore[no-untyped-call]
_primitive.def_impl(_refuse)  # type: ignore[no-untyped-call]
ad.primitive_jvps[_primitive] = _refuse
ad.primitive_transposes[_primitive] = _transpose
batching.primitive_batchers[_primitive] = _batch
mlir.register_lowering(_primitive, _refuse)
