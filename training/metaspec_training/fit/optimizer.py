"""Muon for kernels and matrices, AdamW for the rest, as one optimiser."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Muon, Optimizer


class MuonAdamW(Optimizer):
    """Orthogonalised momentum for weights of two and more axes, AdamW for vectors.

    Muon (Jordan, "Muon: An optimizer for hidden layers in neural networks", 2024) replaces the momentum of a matrix by the
    nearest orthogonal one; scaled as by Liu et al. (arXiv 2502.16982), it takes AdamW's learning rates and weight decay. A
    convolution's kernel (O, I, h, w) is the matrix (O, I h w).

    Args:
        parameters: parameters of the network.
        lr: learning rate of both.
        weight_decay: weight decay of matrices and kernels.
        betas: coefficients of AdamW.
    """

    def __init__(
        self,
        parameters: list[nn.Parameter],
        lr: float,
        weight_decay: float,
        betas: tuple[float, float] = (0.9, 0.99),
    ) -> None:
        super().__init__(parameters, {"lr": lr})
        self.kernels = [p for p in parameters if p.ndim >= 2]
        # Views of the kernels as matrices: a step of Muon on a matrix changes its kernel.
        self.matrices = [nn.Parameter(p.detach().flatten(1)) for p in self.kernels]
        vectors = [p for p in parameters if p.ndim < 2]
        self.muon = Muon(self.matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
        self.adamw = AdamW(vectors, lr=lr, weight_decay=0.0, betas=betas)
        self.param_groups = self.muon.param_groups + self.adamw.param_groups

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step, with the present gradients or with those that `closure` computes."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for kernel, matrix in zip(self.kernels, self.matrices, strict=True):
            matrix.grad = None if kernel.grad is None else kernel.grad.flatten(1)
        self.muon.step()
        self.adamw.step()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear all gradients."""
        for parameter in (*self.kernels, *self.adamw.param_groups[0]["params"]):
            parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        """The states of both optimisers."""
        return {"muon": self.muon.state_dict(), "adamw": self.adamw.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore both states; the parameter groups stay shared with the schedule."""
        self.muon.load_state_dict(state_dict["muon"])
        self.adamw.load_state_dict(state_dict["adamw"])
        self.param_groups = self.muon.param_groups + self.adamw.param_groups
