"""Control points: a design space that is small enough for optimisers without gradients."""

from __future__ import annotations

import numpy as np

from metaspec.optimise.base import Array


class ControlPoints:
    """Latents as periodic, uniform cubic B-splines of K x K control points (de Boor, A Practical Guide to Splines, 1978).

    Every pixel is a weighted mean of 4 x 4 control points: points in [0, 1] make latents in [0, 1].

    Args:
        count: K, points along each side of the cell.
        shape: pixels (y, x).

    Raises:
        ValueError: fewer than 4 points, or more than pixels.
    """

    def __init__(self, count: int, shape: tuple[int, int] = (128, 128)) -> None:
        if not 4 <= count <= min(shape):
            raise ValueError(f"control points must be from 4 to {min(shape)} along a side, got {count}")
        self.count = count
        self._rows, self._columns = (_weights(count, pixels) for pixels in shape)

    def latent(self, points: Array) -> Array:
        """Latents (M, y, x) of control points (M, K * K)."""
        latent: Array = self._rows @ points.reshape(-1, self.count, self.count) @ self._columns.T
        latent = latent.clip(0, 1)  # rounding
        return latent

    def pull_back(self, gradient: Array) -> Array:
        """The gradient by the control points (M, K * K), from that by the latents (M, y, x)."""
        pulled: Array = self._rows.T @ gradient @ self._columns
        flat: Array = pulled.reshape(len(pulled), -1)
        return flat


def _weights(count: int, pixels: int) -> Array:
    """Weight of each control point in each pixel, (pixels, count)."""
    place = (np.arange(pixels) + 0.5) * count / pixels
    distance = np.abs(place[:, None] - np.arange(count) - 0.5)
    distance = np.minimum(distance, count - distance)
    near, far = 2 / 3 - distance**2 + distance**3 / 2, np.clip(2 - distance, 0, None) ** 3 / 6
    return np.where(distance < 1, near, far)
