"""A source of spectra, such as a remote surrogate, as a differentiable JAX function. Needs jax.

from metaspec import Surrogate
from metaspec.jax import spectra_function

spectra_of = spectra_function(Surrogate())
loss = lambda density: -spectra_of(density)[:, 3, :100].mean()      # blue light on detector B
gradient = jax.jit(jax.grad(loss))(density)                         # (16, 128, 128)
"""

from __future__ import annotations

from typing import Any, Protocol, TypeAlias

import numpy as np

from metaspec._conditions import as_numbers, named_conditions, spread_shape
from metaspec._errors import InvalidCondition, InvalidStructure
from metaspec._extras import missing_extra
from metaspec._source import FIRST_DERIVATIVES_ONLY, check_source, predict_stack, pull_back
from metaspec_contract.conditions import Condition, ConditionValue
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

JaxCondition: TypeAlias = Array | ConditionValue
"""A condition as a JAX array, which may be differentiated by, or as for `Surrogate.predict`."""

_At: TypeAlias = dict[str, Array]  # conditions (..., size) by name

_ONCE = f"{FIRST_DERIVATIVES_ONLY}; use jax.grad, jax.vjp or jax.jacrev, once"


def __dir__() -> list[str]:
    return __all__


class SpectraFunction(Protocol):
    """A function from densities (..., y, x) and conditions to spectra (..., channels, wavelengths)."""

    def __call__(self, density: Array, **conditions: JaxCondition) -> Array:
        """The spectra; see `spectra_function`."""


def spectra_function(source: Source) -> SpectraFunction:
    """A function from densities, and conditions, to spectra, differentiable once in reverse mode with respect to all.

    It works under `jit` and `vmap`: a call is one batch of predictions, and the backward pass one batch of gradients.
    This function itself requests the source's description, for the shapes. A process that ends waits for predictions
    and gradients that it has begun, at most a minute.

    Args:
        source: a `Surrogate` or another source; not an `AsyncSurrogate`.

    Returns:
        A function from density (..., y, x), of the pixels of the source's process, 1 is solid and 0 is void, any real
        dtype, to spectra (..., channels, wavelengths) with the same dtype, or JAX's default one if that is not a
        floating-point dtype. What the source takes beside structures are keyword arguments: numbers, or arrays of any real
        dtype that broadcast to (...), vectors to (..., size). It raises `InvalidStructure` or `InvalidCondition` for
        another shape or dtype when it is traced; what `Source.predict` raises, JAX wraps. A second derivative and one in
        forward mode (`jvp`, `jacfwd`, `hessian`) raise `TypeError`; one in forward mode does before anything is
        requested, under `jit` when it is compiled.

    Raises:
        SourceError: the description could not be requested.
        TypeError: the source is not a source.
    """
    check_source(source)
    info = source.metadata()

    @jax.custom_jvp
    def spectra_of_wide(density: Array, at: _At) -> Array:
        result = jax.ShapeDtypeStruct((*density.shape[:-2], *info.spectra_shape), density.dtype)  # type: ignore[no-untyped-call]
        spectra: Array = jax.pure_callback(predict, result, density, at, vmap_method="expand_dims")
        return spectra

    @jax.custom_jvp
    def gradient_of(density: Array, at: _At, cotangent: Array) -> tuple[Array, _At]:
        like = density, at  # shapes and dtypes of the result
        found: tuple[Array, _At] = jax.pure_callback(gradient, like, density, at, cotangent, vmap_method="expand_dims")
        return found

    def predict(density: Any, at: Any) -> Any:
        density, at = jax.tree.map(np.asarray, (density, at))
        return predict_stack(source, density, at).astype(density.dtype)

    def gradient(density: Any, at: Any, cotangent: Any) -> Any:
        density, at = jax.tree.map(np.asarray, (density, at))
        structure, by_condition = pull_back(source, density, np.asarray(cotangent), at)
        by = {name: by_condition[name].astype(values.dtype) for name, values in at.items()}
        return structure.astype(density.dtype), by

    @spectra_of_wide.defjvp
    def differentiate(primals: tuple[Array, _At], tangents: tuple[Array, _At]) -> tuple[Array, Array]:
        density, at = primals
        points, tree = jax.tree.flatten(primals)

        def transpose(points: list[Array], cotangent: Array) -> list[Array]:
            return jax.tree.leaves(gradient_of(*jax.tree.unflatten(tree, points), cotangent))

        result = (*density.shape[:-2], *info.spectra_shape)
        # First: in forward mode it raises, and nothing has been requested by then.
        derivative = linear_map(points, jax.tree.leaves(tangents), shape=result, transpose=transpose, refusal=_ONCE)
        return spectra_of_wide(density, at), derivative

    @gradient_of.defjvp
    def refuse(*_: Any) -> Any:
        raise TypeError(_ONCE)

    def spectra_of(density: Array, **conditions: JaxCondition) -> Array:
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
        known = named_conditions(info.conditions, conditions)
        at = {
            name: _spread(condition, conditions[name], density.shape[:-2])
            for name, condition in known.items()
            if conditions[name] is not None
        }
        return spectra_of_wide(_wide(density), at).astype(density.dtype)

    return spectra_of


def _spread(condition: Condition, value: JaxCondition, lead: tuple[int, ...]) -> Array:
    """Values of a condition as floats (*lead, size)."""
    array = value if isinstance(value, Array) else jnp.asarray(as_numbers(condition, value))
    if not jnp.issubdtype(array.dtype, jnp.number) or jnp.iscomplexobj(array):
        raise InvalidCondition(condition.name, f"must be numbers between {condition.range}, got {array.dtype}")
    if not jnp.issubdtype(array.dtype, jnp.floating):
        array = array.astype(float)
    rows = array.reshape(spread_shape(condition, array.shape, lead))
    return jnp.broadcast_to(_wide(rows), (*lead, condition.size))


def _wide(array: Array) -> Array:
    """An array in float32 if its dtype is a narrower one: NumPy has no bfloat16."""
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))
