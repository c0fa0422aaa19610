"""Real Fourier series: maps as sums of sines and cosines, so that transforms are products with small real matrices.

Half the arithmetic of complex exponentials, and what depends on the size of an order alone is diagonal as well.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def harmonics(highest: int, positions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Orthonormal sines and cosines at positions: (P, 2 * highest + 1).

    Columns are ordered from -highest to highest: sqrt(2) cos(2 pi k x) for order -k, 1 for 0, sqrt(2) sin(2 pi k x) for k.

    Args:
        highest: highest order.
        positions: positions in periods, (P,).
    """
    order = np.arange(-highest, highest + 1)
    angle = 2 * np.pi * np.outer(positions, np.abs(order))
    return np.where(order < 0, np.sqrt(2) * np.cos(angle), np.where(order > 0, np.sqrt(2) * np.sin(angle), 1.0))


def exponentials(highest: int) -> NDArray[np.complex128]:
    """Matrix from coefficients of `harmonics` to those of exp(2 pi i k x), k from -highest to highest: (K, K), unitary."""
    matrix = np.zeros((2 * highest + 1, 2 * highest + 1), complex)
    matrix[highest, highest] = 1
    for k in range(1, highest + 1):
        for sign in (-1, 1):
            matrix[highest + sign * k, highest - k] = np.sqrt(0.5)
            matrix[highest + sign * k, highest + k] = -sign * 1j * np.sqrt(0.5)
    return matrix


def along(matrix: Tensor, x: Tensor, axis: int) -> Tensor:
    """Multiply along an axis from the left: (M, K) and (..., K, rest) to (..., M, rest), the rest in one product."""
    return (matrix @ x.flatten(axis + 1)).unflatten(axis + 1, x.shape[axis + 1 :])


def permute_along(x: Tensor, axis: int, order: Tensor) -> Tensor:
    """Rearrange an axis by an order that undoes itself, such as a reversal."""
    permuted: Tensor = _Permute.apply(x, axis, order)
    return permuted


class _Permute(torch.autograd.Function):
    """Its adjoint is written out: that of autograd adds up at indices, which not every ONNX engine can."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, axis: int, order: Tensor) -> Tensor:
        ctx.save_for_backward(order)
        ctx.axis = axis
        return x.index_select(axis, order)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (order,) = ctx.saved_tensors
        return gradient.index_select(ctx.axis, order), None, None
