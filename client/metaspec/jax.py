"""A source of spectra, such as a remote surrogate, as a differentiable JAX function. Needs jax.

from metaspec import Surrogate
from metaspec.jax import spectra_function

spectra_of = spectra_function(Surrogate())
loss = lambda density: -spectra_of(density)[:, 3, :100].mean()      # blue light on detector B
gradient = jax.jit(jax.grad(loss))(density)                         # (16, 128, 128)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from metaspec._extras import missing_extra
from metaspec_contract.source import Source

try:
    import jax
    from jax import Array
except ImportError as error:
    raise missing_extra("metaspec.jax needs", "jax", "jax") from error


def _like(shape: tuple[int, ...], array: Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, array.dtype)  # type: ignore[no-untyped-call]


def spectra_function(source: Source) -> Callable[[Array], Array]:
    """A function from densities to spectra, differentiable once in reverse mode.

    It works under `jit` and `vmap`: a call is one batch of predictions, and the backward pass one batch of gradients.
    This function itself requests the source's description, for the shape of the spectra.

    Args:
        source: a `Surrogate` or another source; not an `AsyncSurrogate`.

    Returns:
        A function from density (..., 128, 128), 1 is solid and 0 is void, to spectra (..., channels, wavelengths) with
        the same dtype. It raises the errors of `Source.predict`, wrapped by JAX.

    Raises:
        SourceError: the description could not be requested.
    """
    shape = source.metadata().spectra_shape

    def predict(density: Any) -> Any:
        array = np.asarray(density)
        values = source.predict(array.reshape(-1, *array.shape[-2:])).values
        return values.reshape(*array.shape[:-2], *shape).astype(array.dtype)

    def pull_back(density: Any, cotangent: Any) -> Any:
        array, pulled = np.asarray(density), np.asarray(cotangent)
        gradient = source.gradient(array.reshape(-1, *array.shape[-2:]), pulled.reshape(-1, *shape))
        return gradient.reshape(array.shape).astype(array.dtype)

    @jax.custom_vjp
    def spectra_of(density: Array) -> Array:
        result = _like((*density.shape[:-2], *shape), density)
        spectra: Array = jax.pure_callback(predict, result, density, vmap_method="broadcast_all")
        return spectra

    def forward(density: Array) -> tuple[Array, Array]:
        return spectra_of(density), density

    def backward(density: Array, cotangent: Array) -> tuple[Array]:
        return (
            jax.pure_callback(
                pull_back, _like(density.shape, density), density, cotangent, vmap_method="broadcast_all"
            ),
        )

    spectra_of.defvjp(forward, backward)
    return spectra_of
