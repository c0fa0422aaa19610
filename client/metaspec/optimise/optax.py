"""Optimisers from optax, one vectorised step for all starts. Needs jax and optax."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpy.typing import ArrayLike

from metaspec.optimise.base import Array, Optimiser, check_latents, digest


class Optax(Optimiser):
    """A gradient transformation from optax on the box [0, 1]: after each step, latents are clipped.

    Args:
        start: latents (M, y, x) in [0, 1]; a single array for the transformation, in JAX's default precision.
        algorithm: name of a function of optax that returns a transformation, or a transformation.
        **settings: arguments of the function; `learning_rate` is 0.03 by default.

    Raises:
        ValueError: no such function.
    """

    def __init__(
        self, start: ArrayLike, algorithm: str | optax.GradientTransformation = "adam", **settings: Any
    ) -> None:
        latents = check_latents(start)
        if isinstance(algorithm, str):
            if not callable(getattr(optax, algorithm, None)):
                raise ValueError(f"algorithm must be a function of optax, got {algorithm!r}")
            settings = {"learning_rate": 0.03, **settings}
            transformation = getattr(optax, algorithm)(**settings)
        else:
            transformation = algorithm
        name = algorithm if isinstance(algorithm, str) else "custom transformation"
        self.settings = {"name": "optax", "algorithm": name, "start": digest(latents), **settings}
        latent = jnp.asarray(latents)
        self._state = latent, transformation.init(latent)

        @jax.jit
        def step(state: Any, gradient: jax.Array) -> Any:
            latent, inner = state
            updates, inner = transformation.update(-gradient, inner, latent)
            return jnp.clip(optax.apply_updates(latent, updates), 0, 1), inner

        self._step = step

    def _propose(self) -> Array:
        return np.asarray(self._state[0], np.float64)

    def _learn(self, value: Array, gradient: Array) -> None:
        self._state = self._step(self._state, jnp.asarray(gradient))

    def state(self) -> dict[str, Array]:
        """The latents and the transformation's arrays, in tree order."""
        return {f"leaf.{n:03}": np.asarray(leaf) for n, leaf in enumerate(jax.tree.leaves(self._state))}

    def restore(self, state: dict[str, Array]) -> None:
        """Restore a state returned by `state`."""
        leaves = [jnp.asarray(state[name]) for name in sorted(state)]
        self._state = jax.tree.unflatten(jax.tree.structure(self._state), leaves)
        self._asked = None
