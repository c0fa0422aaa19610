"""Moving average of the weights: the average is what is validated, saved and served."""

from __future__ import annotations

from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor


class MovingAverage(WeightAveraging):
    """Exponential moving average of the weights, over few steps at first, so that short runs forget their start.

    After n steps the average keeps the share min(decay, (1 + n) / (10 + n)), as TensorFlow's `ExponentialMovingAverage` does
    with `num_updates`.

    Args:
        decay: share kept at each step of a long run; 0.995 averages over some 200 steps.

    Raises:
        ValueError: `decay` is not from 0 to below 1.
    """

    def __init__(self, decay: float = 0.995) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be from 0 to below 1, got {decay}")
        super().__init__(avg_fn=self._mix)
        self.decay = decay

    def _mix(self, average: Tensor, weight: Tensor, steps: Tensor) -> Tensor:
        kept = ((1 + steps) / (10 + steps)).clamp(max=self.decay)
        return average.lerp(weight, 1 - kept)
