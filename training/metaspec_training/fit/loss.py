"""AdaptiveSpectralLoss: error of predicted spectra in value, ratio, slope and curvature; and spectra with merged greens."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn


class LossTerms(NamedTuple):
    """Terms of the loss, scalars."""

    mse: Tensor
    rel: Tensor
    grad: Tensor
    curv: Tensor

    @property
    def total(self) -> Tensor:
        """The loss: the sum of the terms."""
        return self.mse + self.rel + self.grad + self.curv


class AdaptiveSpectralLoss(nn.Module):
    """w_mse * MSE + w_rel * RelMSE + w_grad * GradMSE + w_curv * CurvMSE.

    RelMSE is the mean of clamp((p - t) / (|t| + 1e-4), -10, 10)^2; GradMSE and CurvMSE are mean squared errors of first and
    second differences along wavelength. All take an extra factor `blue_weight` on the squared errors of detector B.

    The weights are plain attributes; in a `SpectraModule`, which sets them at every step, its `change_weights` changes them.
    The validation losses that MetaSpec reports are those of the weights 2, 0.1, 100, 0.
    """

    def __init__(
        self,
        w_mse: float = 2.0,
        w_rel: float = 0.1,
        w_grad: float = 100.0,
        w_curv: float = 0.0,
        blue_weight: float = 1.0,
    ) -> None:
        super().__init__()
        weights = {"w_mse": w_mse, "w_rel": w_rel, "w_grad": w_grad, "w_curv": w_curv, "blue_weight": blue_weight}
        for name, value in weights.items():
            if not value >= 0:
                raise ValueError(f"{name} must not be negative, got {value}")
        self.w_mse, self.w_rel, self.w_grad, self.w_curv = w_mse, w_rel, w_grad, w_curv
        self.blue_weight = blue_weight

    def forward(self, prediction: Tensor, target: Tensor) -> LossTerms:
        """Loss terms of predicted and true efficiencies, both (B, 2, 2, W)."""
        return self.weighted(self.errors(prediction, target))

    def errors(self, prediction: Tensor, target: Tensor) -> LossTerms:
        """The terms without their weights: this part is compiled, and compiled again if an attribute changes."""
        error = prediction - target
        slope = error.diff(dim=-1)
        ratio = (error / (target.abs() + 1e-4)).clamp(-10, 10)
        return LossTerms(
            mse=self._mean_square(error),
            rel=self._mean_square(ratio),
            grad=self._mean_square(slope),
            curv=self._mean_square(slope.diff(dim=-1)),
        )

    def weighted(self, errors: LossTerms) -> LossTerms:
        """The terms with their weights."""
        return LossTerms(
            mse=self.w_mse * errors.mse,
            rel=self.w_rel * errors.rel,
            grad=self.w_grad * errors.grad,
            curv=self.w_curv * errors.curv,
        )

    def _mean_square(self, error: Tensor) -> Tensor:
        square = error.square()
        weight = torch.ones(2, 2, 1, dtype=square.dtype, device=square.device)
        weight[1, 1] = self.blue_weight
        return (square * weight).mean()


def merge_greens(spectra: Tensor) -> Tensor:
    """Spectra (..., 2, 2, W) with the mean of G1 and G2 in the place of both."""
    red, green_1, green_2, blue = spectra.flatten(-3, -2).unbind(-2)
    green = (green_1 + green_2) / 2
    return torch.stack([red, green, green, blue], dim=-2).unflatten(-2, (2, 2))
