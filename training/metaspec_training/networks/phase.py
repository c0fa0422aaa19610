"""The phase that orders gain on their way to the detectors, for a distance that may differ from row to row."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

_STEPS = 2.0**10
"""Distances and turns are split into multiples of 1 / 1024, whose products are exact in float32, and a small rest."""


class Phase(nn.Module):
    """Cosine and sine of the phase of K orders at some wavelengths, as factors of fields (B, K, 2, 2, parts, nodes).

    The phase is known in float64 at one distance. To another one an order turns many times, which float32 does not resolve: the
    whole turns are taken off before anything is rounded (Cody and Waite,
    "Software Manual for the Elementary Functions", 1980).

    Args:
        turning: phase that a distance of 1 um adds, in rad, (K, nodes).
        distance_um: the distance at which the phase is known.
        phase: the phase there, in rad, (K, nodes).
        propagating: which orders propagate at which wavelength; the others get the factor 0, (K, nodes).
        lengths: a number for each order, (K,): orders of equal numbers have equal phases.
    """

    cosine: Tensor
    sine: Tensor
    known_cosine: Tensor
    known_sine: Tensor
    coarse: Tensor
    fine: Tensor
    alike: Tensor
    copies: Tensor

    def __init__(
        self,
        turning: NDArray[np.float64],
        distance_um: float,
        phase: NDArray[np.float64],
        propagating: NDArray[np.bool_],
        lengths: NDArray[np.int64],
    ) -> None:
        super().__init__()
        self.distance_um = distance_um
        cosine, sine = (propagating * np.cos(phase))[:, None], (propagating * np.sin(phase))[:, None]
        _, first, alike = np.unique(
            np.where(propagating.any(axis=1), lengths, -1), return_index=True, return_inverse=True
        )
        turns = turning[first] / (2 * np.pi)
        coarse = np.round(turns * _STEPS) / _STEPS
        for name, values in (
            ("cosine", cosine[:, None, None]),
            ("sine", (sine * [[-1], [1]])[:, None, None]),
            ("known_cosine", cosine[first, 0]),
            ("known_sine", sine[first, 0]),
            ("coarse", coarse),
            ("fine", turns - coarse),
            ("copies", np.equal.outer(np.arange(len(first)), alike)),
        ):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32), persistent=False)
        self.register_buffer("alike", torch.from_numpy(alike.astype(np.int64)), persistent=False)

    def forward(self, distance_um: Tensor | None) -> tuple[Tensor, Tensor]:
        """Factor of a field's parts, and that of the other part: real parts get -sine of imaginary ones, these get sine.

        Args:
            distance_um: distances, (B, 1); None for the known one.

        Returns:
            Cosine (B, K, 1, 1, 1, nodes) and sine (B, K, 1, 1, 2, nodes); without B for the known distance.
        """
        if distance_um is None:
            return self.cosine, self.sine
        further = (distance_um - self.distance_um).unsqueeze(-1)
        steps = (further.detach() * _STEPS).round() / _STEPS
        turns = steps * self.coarse
        part = (turns - turns.round()) + ((further - steps) * self.coarse + further * self.fine)
        angle = 2 * torch.pi * part
        turned_cosine, turned_sine = angle.cos(), angle.sin()
        cosine = self.known_cosine * turned_cosine - self.known_sine * turned_sine
        sine = self.known_sine * turned_cosine + self.known_cosine * turned_sine
        cosine, sine = (
            _Copy.apply(part, self.alike, self.copies)
            for part in (cosine.unsqueeze(2), torch.stack([-sine, sine], dim=2))
        )
        return cosine[:, :, None, None], sine[:, :, None, None]


class _Copy(torch.autograd.Function):
    """Orders from those that are alike, (B, U, ...) to (B, K, ...); the adjoint as a product, which every ONNX engine can."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, alike: Tensor, copies: Tensor) -> Tensor:
        ctx.save_for_backward(copies)
        return x.index_select(1, alike)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (copies,) = ctx.saved_tensors
        return (copies @ gradient.flatten(2)).unflatten(2, gradient.shape[2:]), None, None
