"""What every optimiser looks like."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[Any]


class Optimiser(ABC):
    """Proposes latents, is told what they are worth, and proposes better ones: larger values are better.

    A batch has M rows: independent starts for a gradient method, the candidates of one generation for a population.
    A new optimiser needs `_propose`, `_learn`, `state` and `restore`.

    Attributes:
        needs_gradient: whether `tell` needs the gradient; if not, nobody computes it.
        settings: what makes this optimiser another one, as JSON; a checkpoint is only taken up by an equal optimiser.
    """

    needs_gradient: bool = True
    settings: dict[str, Any]
    _asked: Array | None = None

    def ask(self) -> Array:
        """The latents to evaluate next, (M, y, x) in [0, 1]. Asking again before telling gives the same."""
        if self._asked is None:
            self._asked = self._propose()
        return self._asked

    def tell(self, value: ArrayLike, gradient: ArrayLike | None = None) -> None:
        """Take note of what the latents of the last `ask` are worth.

        Args:
            value: of the objective, (M,).
            gradient: of the objective by the latents, (M, y, x); not looked at by an optimiser that needs none.

        Raises:
            ValueError: values or gradients of another shape or not finite, or nobody asked. Nothing has changed.
        """
        if self._asked is None:
            raise ValueError("ask before you tell")
        values = _finite("value", value, self._asked.shape[:1])
        self._learn(values, _finite("gradient", gradient, self._asked.shape) if self.needs_gradient else np.empty(0))
        self._asked = None

    @abstractmethod
    def _propose(self) -> Array:
        """What `ask` returns."""

    @abstractmethod
    def _learn(self, value: Array, gradient: Array) -> None:
        """What `tell` does, with float64 arrays that are as they must be; an empty gradient where none is needed."""

    def restart(self) -> None:
        """The objective is about to change (the next beta): keep the point, forget what no longer holds."""
        return

    @abstractmethod
    def state(self) -> dict[str, Array]:
        """All that `restore` needs, between `tell` and `ask`. The arrays are never changed later."""

    @abstractmethod
    def restore(self, state: dict[str, Array]) -> None:
        """Go on from the state of an optimiser with the same settings, exactly as that one would."""


def _finite(name: str, array: ArrayLike | None, shape: tuple[int, ...]) -> Array:
    checked = np.asarray(np.nan if array is None else array, np.float64)
    if checked.shape != shape or not np.isfinite(checked).all():
        raise ValueError(f"{name} must be finite numbers of shape {shape}, got {'none' if array is None else checked}")
    return checked


def check_latents(start: ArrayLike) -> Array:
    """Latents to start from, as float64 (M, y, x).

    Raises:
        ValueError: they are not (M, y, x) with M >= 1, or leave [0, 1].
    """
    latents = np.array(start, dtype=np.float64)
    if latents.ndim != 3 or not latents.size:
        raise ValueError(f"start must be latents (M, y, x), got shape {latents.shape}")
    if not (latents.min() >= 0 and latents.max() <= 1):
        raise ValueError(f"start must lie between 0 and 1, got {latents.min():g} to {latents.max():g}")
    return latents


def digest(start: Array) -> str:
    """A short name of where an optimiser starts."""
    return hashlib.sha256(np.ascontiguousarray(start).tobytes()).hexdigest()[:16]
