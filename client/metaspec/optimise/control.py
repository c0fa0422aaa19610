"""Control points: few variables instead of one per pixel, for gradient-free optimisers."""

from __future__ import annotations

import numpy as np

from metaspec.optimise.base import Array, Optimiser
from metaspec_contract.structures import PIXELS


class ControlPoints(Optimiser):
    """Wraps an optimiser whose variables are the control points of periodic, uniform cubic B-splines.

    Each pixel of a latent is a weighted mean of 4 x 4 control points, so that points in [0, 1] yield latents in [0, 1] (C. de
    Boor, A Practical Guide to Splines, Springer (1978)).

    Args:
        optimiser: optimiser of points (M, rows, columns) in [0, 1].
        shape: pixels (y, x) of the latents.

    Raises:
        ValueError: fewer than 4 points along a side, or more points than pixels.
    """

    def __init__(self, optimiser: Optimiser, shape: tuple[int, int] = (PIXELS, PIXELS)) -> None:
        points = optimiser.ask().shape[1:]
        if not all(4 <= count <= pixels for count, pixels in zip(points, shape, strict=True)):
            raise ValueError(f"points must be from 4 to as many as the {shape} pixels along each side, got {points}")
        self.optimiser, self.needs_gradient = optimiser, optimiser.needs_gradient
        self.line_search = optimiser.line_search
        self.settings = {"points": list(points), **optimiser.settings}
        self._rows, self._columns = (_weights(count, pixels) for count, pixels in zip(points, shape, strict=True))

    def _propose(self) -> Array:
        latent: Array = self._rows @ self.optimiser.ask() @ self._columns.T
        return np.clip(latent, 0, 1, out=latent)  # rounding

    def _learn(self, value: Array, gradient: Array) -> None:
        self.optimiser.tell(value, self._rows.T @ gradient @ self._columns if self.needs_gradient else None)

    def restart(self) -> None:
        """Restart the wrapped optimiser."""
        self.optimiser.restart()

    def state(self) -> dict[str, Array]:
        """The state of the wrapped optimiser."""
        return self.optimiser.state()

    def restore(self, state: dict[str, Array]) -> None:
        """Restore the wrapped optimiser."""
        self.optimiser.restore(state)
        self._asked = None


def _weights(count: int, pixels: int) -> Array:
    """Weight of each control point in each pixel, (pixels, count)."""
    place = (np.arange(pixels) + 0.5) * count / pixels
    distance = np.abs(place[:, None] - np.arange(count) - 0.5)
    distance = np.minimum(distance, count - distance)
    near, far = 2 / 3 - distance**2 + distance**3 / 2, np.clip(2 - distance, 0, None) ** 3 / 6
    weights: Array = np.where(distance < 1, near, far)
    return weights
