"""Optimisers from invrs-opt. Needs jax and invrs-opt."""

from __future__ import annotations

from typing import Any

import invrs_opt
import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike
from totypes.types import Density2DArray

from metaspec.optimise.base import Array, Optimiser, check_latents, digest


class Invrs(Optimiser):
    """An optimiser from invrs-opt; its densities are the latents here.

    Args:
        start: latents (M, y, x) in [0, 1].
        algorithm: name of a function of invrs_opt that returns an optimiser.
        length_pixels: minimum width and spacing in pixels, respected by "density_..." and "levelset_...".
        **settings: arguments of the function.

    Raises:
        ValueError: no such function.
    """

    line_search = True  # of its default, L-BFGS-B

    def __init__(
        self, start: ArrayLike, algorithm: str = "density_lbfgsb", length_pixels: int = 5, **settings: Any
    ) -> None:
        latents = check_latents(start)
        if not callable(getattr(invrs_opt, algorithm, None)):
            raise ValueError(f"algorithm must be a function of invrs_opt, got {algorithm!r}")
        if algorithm.startswith("density_"):
            settings = {"beta": 2.0, **settings}
        self.settings = {"name": "invrs", "algorithm": algorithm, "length_pixels": length_pixels} | {
            "start": digest(latents),
            **settings,
        }
        optimizer = getattr(invrs_opt, algorithm)(**settings)
        self._length = length_pixels
        self._init = jax.jit(jax.vmap(optimizer.init))
        self._params = jax.jit(jax.vmap(optimizer.params))
        self._update = jax.jit(
            jax.vmap(
                lambda grad, value, params, state: optimizer.update(grad=grad, value=value, params=params, state=state)
            )
        )
        self._state = self._init(self._density(latents))

    def _density(self, array: Array) -> Density2DArray:
        return Density2DArray(
            jnp.asarray(array),
            lower_bound=0.0,
            upper_bound=1.0,
            minimum_width=self._length,
            minimum_spacing=self._length,
            periodic=(True, True),
        )

    def _propose(self) -> Array:
        return np.asarray(self._params(self._state).array, np.float64).clip(0, 1)

    def _learn(self, value: Array, gradient: Array) -> None:
        self._state = self._update(
            self._density(-gradient), jnp.asarray(-value), self._params(self._state), self._state
        )

    def restart(self) -> None:
        """Start over at the current density."""
        self._state = self._init(self._params(self._state))
        self._asked = None

    def state(self) -> dict[str, Array]:
        """The arrays of invrs-opt's state, in tree order."""
        return {f"leaf.{n:03}": np.asarray(leaf) for n, leaf in enumerate(jax.tree.leaves(self._state))}

    def restore(self, state: dict[str, Array]) -> None:
        """Restore a state returned by `state`."""
        leaves = [jnp.asarray(state[name]) for name in sorted(state)]
        self._state = jax.tree.unflatten(jax.tree.structure(self._state), leaves)
        self._asked = None
