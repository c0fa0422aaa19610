"""Adam in numpy, the default optimiser: no further dependency, one vectorised step for all starts."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from metaspec.optimise.base import Array, Optimiser, check_latents, digest


class Adam(Optimiser):
    """Adam (Kingma and Ba, 2015, arXiv:1412.6980) on the box [0, 1]: after each step, latents are clipped.

    Args:
        start: latents (M, y, x) in [0, 1].
        learning_rate: approximate largest change of a latent per step.
        decay: decay rates of the running means of the gradient and of its square.
    """

    def __init__(
        self, start: ArrayLike, learning_rate: float = 0.04, decay: tuple[float, float] = (0.9, 0.999)
    ) -> None:
        self._latent = check_latents(start)
        self._mean, self._square = np.zeros_like(self._latent), np.zeros_like(self._latent)
        self._steps = 0
        self.learning_rate, self.decay = learning_rate, decay
        self.settings = {"name": "adam", "start": digest(self._latent), "learning_rate": learning_rate} | {
            "decay": list(decay)
        }

    def _propose(self) -> Array:
        return self._latent

    def _learn(self, value: Array, gradient: Array) -> None:
        (slow, slower), steps = self.decay, self._steps + 1
        mean = slow * self._mean + (1 - slow) * gradient
        square = slower * self._square + (1 - slower) * gradient**2
        step = mean / (1 - slow**steps) / (np.sqrt(square / (1 - slower**steps)) + 1e-12)
        self._latent = np.clip(self._latent + self.learning_rate * step, 0, 1)
        self._mean, self._square, self._steps = mean, square, steps

    def state(self) -> dict[str, Array]:
        """Latents, both running means, and the number of steps."""
        steps = np.array(self._steps)
        return {"latent": self._latent, "mean": self._mean, "square": self._square, "steps": steps}

    def restore(self, state: dict[str, Array]) -> None:
        """Restore a state returned by `state`."""
        self._latent, self._mean, self._square = state["latent"], state["mean"], state["square"]
        self._steps = int(state["steps"])
        self._asked = None
