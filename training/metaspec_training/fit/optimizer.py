"""Muon for kernels and matrices, AdamW for the rest, as one optimiser."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer

from metaspec_training.fit.precision import bf16_units


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
        dtype: dtype that matrices are orthogonalised in; default: bfloat16 where their device has units for it, else
            float32.
    """

    def __init__(
        self,
        parameters: list[nn.Parameter],
        lr: float,
        weight_decay: float,
        betas: tuple[float, float] = (0.9, 0.99),
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(parameters, {"lr": lr})
        self.kernels = [p for p in parameters if p.ndim >= 2]
        # Views of the kernels as matrices: a step of Muon on a matrix changes its kernel.
        self.matrices = [nn.Parameter(p.detach().flatten(1)) for p in self.kernels]
        vectors = [p for p in parameters if p.ndim < 2]
        if dtype is None:
            dtype = torch.bfloat16 if bf16_units(parameters[0].device) else torch.float32
        # As groups, which may be empty: of a network that is frozen in part, only vectors may be left.
        self.muon = _Muon(dtype, [{"params": self.matrices}], lr=lr, weight_decay=weight_decay)
        self.adamw = AdamW([{"params": vectors}], lr=lr, weight_decay=0.0, betas=betas)
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


class _Muon(Muon):
    """torch's Muon, which always orthogonalises in bfloat16, with a choice of dtype."""

    def __init__(self, dtype: torch.dtype, groups: list[dict[str, Any]], lr: float, weight_decay: float) -> None:
        super().__init__(groups, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            lr, momentum = float(group["lr"]), group["momentum"]
            for matrix in group["params"]:
                if matrix.grad is None:
                    continue
                state = self.state[matrix]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(matrix.grad)
                mean = state["momentum_buffer"].lerp_(matrix.grad, 1 - momentum)
                direction = matrix.grad.lerp(mean, momentum)  # Nesterov's
                orthogonal = orthogonalise(direction.to(self.dtype), group["ns_coefficients"], group["ns_steps"])
                matrix.mul_(1 - lr * group["weight_decay"])
                matrix.add_(orthogonal, alpha=-lr * 0.2 * max(matrix.shape) ** 0.5)


def orthogonalise(matrix: Tensor, coefficients: tuple[float, float, float], steps: int) -> Tensor:
    """Nearly the nearest orthogonal matrix, with singular values from about 0.7 to 1.2, by a quintic Newton-Schulz iteration.

    Args:
        matrix: matrix (M, N), in the dtype to compute in.
        coefficients: coefficients a, b, c of the iteration x -> a x + b x^3 + c x^5 of the singular values.
        steps: number of iterations.
    """
    a, b, c = coefficients
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x
