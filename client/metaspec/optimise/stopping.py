"""The stop rule: what has not gained for some steps ends early."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from metaspec.optimise.base import Array


class Patience:
    """Says after which steps a stage of constant steepness has ended without a gain.

    A gain is one of the best value of the densities in this stage, or of the best binary structure so far: a stage in which
    neither rises by more than `min_gain` for `patience` steps is over. Values of densities are not compared across stages,
    because another steepness is another objective.

    Args:
        patience: number of steps without a gain after which a stage ends; None for never.
        min_gain: smallest rise that counts as a gain, in units of the objective.

    Raises:
        ValueError: `patience` is below 1, or `min_gain` is negative or not finite.
    """

    def __init__(self, patience: int | None, min_gain: float) -> None:
        if patience is not None and patience < 1:
            raise ValueError(f"patience must be at least 1, or None for no stop rule, got {patience}")
        if not 0 <= min_gain < np.inf:
            raise ValueError(f"min_gain must be at least 0 and finite, got {min_gain}")
        self.patience, self.min_gain = patience, min_gain
        self._beta, self._waited = np.nan, 0
        self._reached = np.full(2, -np.inf)

    def is_over(self, beta: float, value: Array, best: Array) -> bool:
        """Count one step; whether its stage is over.

        Args:
            beta: steepness of the step.
            value: values of the step, (M,).
            best: value of the best binary structure of each row so far, (M,).
        """
        if self.patience is None:
            return False
        if beta != self._beta:
            self._beta, self._waited, self._reached = beta, 0, np.array([-np.inf, self._reached[1]])
        now = np.array([value.max(), best.max()])
        gained = now > self._reached + self.min_gain
        self._reached = np.where(gained, now, self._reached)
        self._waited = 0 if gained.any() else self._waited + 1
        return self._waited >= self.patience

    def state(self) -> dict[str, Array]:
        """The state after a step, for `restore`."""
        return {"stage": np.array([self._beta, self._waited]), "reached": self._reached}

    def restore(self, state: dict[str, Array]) -> None:
        """Continue exactly from a state."""
        if state:
            (self._beta, waited), self._reached = state["stage"], state["reached"]
            self._waited = int(waited)


def next_stage(betas: Sequence[float], step: int) -> int:
    """The first step after `step` with another steepness; the number of steps if there is none."""
    return next((later for later in range(step + 1, len(betas)) if betas[later] != betas[step]), len(betas))
