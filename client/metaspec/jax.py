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

from metaspec._errors import InvalidStructure
from metaspec._extras import missing_extra
from metaspec._source import FIRST_DERIVATIVES_ONLY, check_source, predict_stack, pull_back
from metaspec_contract.source import Source

try:
    import jax
    import jax.numpy as jnp
    from jax import Array
except ImportError as error:
    raise missing_extra("metaspec.jax needs", "jax", "jax") from error

from metaspec._bridges.jax_exit import wait_at_exit
from metaspec._bridges.jax_linear import linear_map

__all__ = ["spectra_function"]

_ONCE = f"{FIRST_DERIVATIVES_ONLY}; use jax.grad, jax.vjp or jax.jacrev, once"


def __dir__() -> list[str]:
    return __all__


def spectra_function(source: Source) -> Callable[[Array], Array]:
    """A function from densities to spectra, differentiable once in reverse mode.

    It works under `jit` and `vmap`: a call is one batch of predictions, and the backward pass one batch of gradients.
    This function itself requests the source's description, for the shapes. A process that ends waits for predictions
    and gradients that it has begun, at most a minute.

    Args:
        source: a `Surrogate` or another source; not an `AsyncSurrogate`.

    Returns:
        A function from density (..., y, x), of the pixels of the source's process, 1 is solid and 0 is void, any real
        dtype, to spectra (..., channels, wavelengths) with the same dtype, or JAX's default one if that is not a
        floating-point dtype. It raises `InvalidStructure` for another shape or dtype when it is traced; what
        `Source.predict` raises, JAX wraps. A second derivative and one in forward mode (`jvp`, `jacfwd`, `hessian`)
        raise `TypeError`; one in forward mode does before anything is requested, under `jit` when it is compiled.

    Raises:
        SourceError: the description could not be requested.
        TypeError: the source is not a source.
    """
    check_source(source)
    info = source.metadata()

    @jax.custom_jvp
    def spectra_of_wide(density: Array) -> Array:
        result = jax.ShapeDtypeStruct((*density.shape[:-2], *info.spectra_shape), density.dtype)  # type: ignore[no-untyped-call]
        spectra: Array = jax.pure_callback(predict, result, density, vmap_method="expand_dims")
        return spectra

    @jax.custom_jvp
    def gradient_of(density: Array, cotangent: Array) -> Array:
        result = jax.ShapeDtypeStruct(density.shape, density.dtype)  # type: ignore[no-untyped-call]
        found: Array = jax.pure_callback(gradient, result, density, cotangent, vmap_method="expand_dims")
        return found

    def predict(density: Any) -> Any:
        array = np.asarray(density)
        return predict_stack(source, array).astype(array.dtype)

    def gradient(density: Any, cotangent: Any) -> Any:
        array = np.asarray(density)
        return pull_back(source, array, np.asarray(cotangent)).astype(array.dtype)

    @spectra_of_wide.defjvp
    def differentiate(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
        (density,), (tangent,) = primals, tangents
        result = (*density.shape[:-2], *info.spectra_shape)
        # First: in forward mode it raises, and nothing has been requested by then.
        derivative = linear_map(density, tangent, shape=result, transpose=gradient_of, refusal=_ONCE)
        return spectra_of_wide(density), derivative

    @gradient_of.defjvp
    def refuse(*_: Any) -> Any:
        raise TypeError(_ONCE)

    def spectra_of(density: Array) -> Array:
        if np.ma.is_masked(density):
            raise InvalidStructure("density must be given in every pixel, got a masked array: use its method filled")
        density = jnp.asarray(density)
        if not (jnp.issubdtype(density.dtype, jnp.number) or density.dtype == bool) or jnp.iscomplexobj(density):
            raise InvalidStructure(f"density must be real numbers from 0 (void) to 1 (solid), got {density.dtype}")
        if density.shape[-2:] != info.pixels:
            raise InvalidStructure(
                f"density must be (..., {info.pixels[0]}, {info.pixels[1]}), the pixels of {info.label}, got {density.shape}"
            )
        if not jnp.issubdtype(density.dtype, jnp.floating):
            density = density.astype(float)
        wait_at_exit()
        wide = density.astype(jnp.promote_types(density.dtype, jnp.float32))  # NumPy has no bfloat16
        return spectra_of_wide(wide).astype(density.dtype)

    return spectra_of
