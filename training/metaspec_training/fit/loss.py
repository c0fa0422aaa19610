"""AdaptiveSpectralLoss: error of predicted spectra in value, ratio, slope and curvature, and of the field that causes them."""

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
    orders: Tensor

    @property
    def total(self) -> Tensor:
        """The loss: the sum of the terms."""
        return self.mse + self.rel + self.grad + self.curv + self.orders


class AdaptiveSpectralLoss(nn.Module):
    """w_mse * MSE + w_rel * RelMSE + w_grad * GradMSE + w_curv * CurvMSE + w_orders * FieldMSE.

    RelMSE is the mean of clamp((p - t) / (|t| + 1e-4), -10, 10)^2; GradMSE and CurvMSE are mean squared errors of first and
    second differences along wavelength. These take an extra factor `blue_weight` on the squared errors of detector B. FieldMSE
    is the power of the difference of predicted and simulated field, as a share of the incident power, of those structures
    whose orders under the layer are known, and 0 for others.

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
        w_orders: float = 0.2,
    ) -> None:
        super().__init__()
        weights = {"w_mse": w_mse, "w_rel": w_rel, "w_grad": w_grad, "w_curv": w_curv, "w_orders": w_orders}
        weights["blue_weight"] = blue_weight
        for name, value in weights.items():
            if not value >= 0:
                raise ValueError(f"{name} must not be negative, got {value}")
        self.w_mse, self.w_rel, self.w_grad, self.w_curv = w_mse, w_rel, w_grad, w_curv
        self.blue_weight, self.w_orders = blue_weight, w_orders

    def forward(self, prediction: Tensor, target: Tensor) -> LossTerms:
        """Loss terms of predicted and true efficiencies, both (B, 2, 2, W), without any of the field."""
        return self.weighted(self.errors(prediction, target))

    def errors(
        self, prediction: Tensor, target: Tensor, orders: Tensor | None = None, true_orders: Tensor | None = None
    ) -> LossTerms:
        """The terms without their weights: this part is compiled, and compiled again if an attribute changes.

        Args:
            prediction: predicted efficiencies, (B, ..., 2, 2, W).
            target: true ones.
            orders: predicted orders of the field of some of these structures, (M, 2, 2, 2, K, V).
            true_orders: the true ones.
        """
        error = prediction - target
        slope = error.diff(dim=-1)
        ratio = (error / (target.abs() + 1e-4)).clamp(-10, 10)
        return LossTerms(
            mse=self._mean_square(error),
            rel=self._mean_square(ratio),
            grad=self._mean_square(slope),
            curv=self._mean_square(slope.diff(dim=-1)),
            orders=error.new_zeros(())
            if orders is None or true_orders is None
            else _power(orders - true_orders) / len(error),
        )

    def weighted(self, errors: LossTerms) -> LossTerms:
        """The terms with their weights."""
        return LossTerms(
            mse=self.w_mse * errors.mse,
            rel=self.w_rel * errors.rel,
            grad=self.w_grad * errors.grad,
            curv=self.w_curv * errors.curv,
            orders=self.w_orders * errors.orders,
        )

    def _mean_square(self, error: Tensor) -> Tensor:
        square = error.square()
        weight = torch.ones(2, 2, 1, dtype=square.dtype, device=square.device)
        weight[1, 1] = self.blue_weight
        return (square * weight).mean()


def _power(orders: Tensor) -> Tensor:
    """Power of fields, the mean over polarisations and wavelengths, summed over structures: (M, 2, 2, 2, K, V) to ()."""
    return orders.square().sum(dim=(0, 2, 3, 4)).mean()


def merge_greens(spectra: Tensor) -> Tensor:
    """Spectra (..., 2, 2, W) with the mean of G1 and G2 in the place of both."""
    red, green_1, green_2, blue = spectra.flatten(-3, -2).unbind(-2)
    green = (green_1 + green_2) / 2
    return torch.stack([red, green, green, blue], dim=-2).unflatten(-2, (2, 2))
