"""The base class of all optimisers: ask and tell."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[Any]


class Optimiser(ABC):
    """Proposes latents and learns from the values of the objective; it maximises.

    A batch has M rows: independent starts for a gradient method, the candidates of one generation for a population.
    A subclass defines `_propose`, `_learn`, `state` and `restore`.

    Attributes:
        needs_gradient: whether `tell` requires the gradient; if not, it is not computed.
        line_search: whether it compares values along a line, so that the objective must stay the same function of the latents.
        settings: configuration fingerprint as JSON, compared when a checkpoint is resumed.
    """

    needs_gradient: bool = True
    line_search: bool = False
    settings: dict[str, Any]
    _asked: Array | None = None

    def ask(self) -> Array:
        """The latents to evaluate next, (M, y, x) in [0, 1]; the same until `tell` is called."""
        if self._asked is None:
            self._asked = self._propose()
        return self._asked

    def tell(self, value: ArrayLike, gradient: ArrayLike | None = None) -> None:
        """Learn the values of the latents of the last `ask`.

        Args:
            value: values of the objective, (M,).
            gradient: gradient with respect to the latents, (M, y, x); ignored by a gradient-free optimiser.

        Raises:
            ValueError: a value or gradient has another shape or is not finite, or `ask` was not called. The state is
                unchanged.
        """
        if self._asked is None:
            raise ValueError("ask before you tell")
        values = _finite("value", value, self._asked.shape[:1])
        self._learn(values, _finite("gradient", gradient, self._asked.shape) if self.needs_gradient else np.empty(0))
        self._asked = None

    @abstractmethod
    def _propose(self) -> Array:
        """The return value of `ask`."""

    @abstractmethod
    def _learn(self, value: Array, gradient: Array) -> None:
        """The work of `tell`, with checked float64 arrays; the gradient is empty if not needed."""

    def restart(self) -> None:
        """Prepare for a change of the objective (the next beta): keep the latents, drop what no longer holds."""
        return

    @abstractmethod
    def state(self) -> dict[str, Array]:
        """The state between `tell` and `ask`, for `restore`. The arrays are never modified later."""

    @abstractmethod
    def restore(self, state: dict[str, Array]) -> None:
        """Continue exactly from the state of an optimiser with the same settings."""


def _finite(name: str, array: ArrayLike | None, shape: tuple[int, ...]) -> Array:
    checked = np.asarray(np.nan if array is None else array, np.float64)
    if checked.shape != shape or not np.isfinite(checked).all():
        raise ValueError(f"{name} must be finite numbers of shape {shape}, got {'none' if array is None else checked}")
    return checked


def check_latents(start: ArrayLike) -> Array:
    """Starting latents as float64 (M, y, x).

    Raises:
        ValueError: not (M, y, x) with M >= 1, or outside [0, 1].
    """
    latents = np.array(start, dtype=np.float64)
    if latents.ndim != 3 or not latents.size:
        raise ValueError(f"start must be latents (M, y, x), got shape {latents.shape}")
    if not (latents.min() >= 0 and latents.max() <= 1):
        raise ValueError(f"start must lie between 0 and 1, got {latents.min():g} to {latents.max():g}")
    return latents


def digest(start: Array) -> str:
    """A hash of the starting latents, for the configuration fingerprint."""
    return hashlib.sha256(np.ascontiguousarray(start).tobytes()).hexdigest()[:16]
