"""Closeness to given spectra."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
from array_api_compat import array_namespace
from numpy.typing import ArrayLike

from metaspec._design.array_api import Array, constant_like
from metaspec._design.objective import Floats, Objective
from metaspec_contract.detectors import CHANNELS, channel_index


class TargetSpectra(Objective):
    """Closeness to given spectra: the negative mean squared error over channels and wavelengths.

    Args:
        target: efficiencies (len(channels), wavelengths), or (N, len(channels), wavelengths) with one target per structure.
        channels: channels of the target, in its order; others are ignored.
        weight: weights of the squared errors, at least 0, broadcast to the target.

    Raises:
        ValueError: target or weight has another shape or is not finite.
    """

    def __init__(self, target: ArrayLike, channels: Sequence[str] = CHANNELS, weight: ArrayLike = 1.0) -> None:
        self._target, self._channels = np.array(target, np.float64), tuple(channels)
        if self._target.ndim < 2 or self._target.shape[-2] != len(channels) or not np.isfinite(self._target).all():
            raise ValueError(
                f"target must be finite numbers, ({len(channels)}, wavelengths) or (N, {len(channels)}, wavelengths) for "
                f"channels {', '.join(channels)}, got shape {self._target.shape}"
            )
        weights = np.broadcast_to(np.asarray(weight, np.float64), self._target.shape)
        total = weights.sum(axis=(-2, -1), keepdims=True)
        if not (np.isfinite(weights).all() and (weights >= 0).all() and (total > 0).all()):
            raise ValueError("weight must be finite and at least 0, and above 0 somewhere")
        self._weights = weights / total

    def __repr__(self) -> str:
        digest = zlib.crc32(self._weights.tobytes(), zlib.crc32(self._target.tobytes()))  # distinguishes targets
        return f"TargetSpectra({'/'.join(self._channels)}, shape {self._target.shape}, crc32 {digest:08x})"

    def _score(self, values: Array, wavelengths_nm: Floats, channels: tuple[str, ...]) -> Array:
        xp = array_namespace(values)
        chosen = self._chosen(values.shape, channels)
        error = xp.stack([values[..., index, :] for index in chosen], axis=-2) - constant_like(self._target, values)
        return -xp.sum(constant_like(self._weights, values) * error**2, axis=(-2, -1))

    def _cotangent(self, values: Floats, wavelengths_nm: Floats, channels: tuple[str, ...]) -> Floats:
        chosen = self._chosen(values.shape, channels)
        result = np.zeros_like(values)
        result[..., chosen, :] = -2 * self._weights * (values[..., chosen, :] - self._target)
        return result

    def _chosen(self, shape: tuple[int, ...], channels: tuple[str, ...]) -> list[int]:
        """Positions of the target's channels in spectra, whose shape is checked."""
        *own, _, wavelengths = self._target.shape
        if wavelengths != shape[-1] or (own and own != list(shape[:-2])):
            raise ValueError(f"spectra {tuple(shape)} do not fit a target of shape {self._target.shape}")
        return [channel_index(name, channels) for name in self._channels]
