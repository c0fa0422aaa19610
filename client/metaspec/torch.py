"""A source of spectra, such as a remote surrogate, as a differentiable PyTorch function. Needs torch.

from metaspec import Surrogate
from metaspec.torch import spectra_of

surrogate = Surrogate()
density = torch.rand(16, 128, 128, requires_grad=True)
loss = -spectra_of(density, surrogate)[:, 3, :100].mean()      # blue light on detector B
loss.backward()
"""

from __future__ import annotations

from typing import Any

from metaspec._extras import missing_extra
from metaspec_contract.source import Source

try:
    import torch
except ImportError as error:
    raise missing_extra("metaspec.torch needs", "torch", "torch") from error


def spectra_of(density: torch.Tensor, source: Source) -> torch.Tensor:
    """Spectra of structures, differentiable once with respect to their density.

    A call is one batch of predictions, and the backward pass one batch of gradients.

    Args:
        density: (..., 128, 128), 1 is solid and 0 is void; any floating-point dtype, any device.
        source: a `Surrogate` or another source; not an `AsyncSurrogate`.

    Returns:
        (..., channels, wavelengths), with the dtype and on the device of the density.

    Raises:
        InvalidStructure: raised before anything is computed.
        SourceError: the source failed; a `MetaSpecError` of `Surrogate.predict` is one.
        RuntimeError: a second derivative is requested in the backward pass; no source computes those.
    """
    result: torch.Tensor = _Spectra.apply(density, source)  # type: ignore[no-untyped-call]
    return result


class _Spectra(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, density: torch.Tensor, source: Source) -> torch.Tensor:
        ctx.save_for_backward(density)
        ctx.source = source
        stacked = density.detach().reshape(-1, *density.shape[-2:]).cpu()
        values = torch.tensor(source.predict(stacked.numpy()).values)
        return values.to(density).reshape(*density.shape[:-2], *values.shape[1:])

    @staticmethod
    def backward(ctx: Any, *cotangents: torch.Tensor) -> tuple[torch.Tensor, None]:
        if torch.is_grad_enabled():
            raise RuntimeError("a source has first derivatives only: leave out create_graph=True")
        (density,), (cotangent,) = ctx.saved_tensors, cotangents
        stacked = density.detach().reshape(-1, *density.shape[-2:]).cpu()
        pulled = cotangent.reshape(-1, *cotangent.shape[-2:]).cpu()
        gradient = torch.tensor(ctx.source.gradient(stacked.numpy(), pulled.numpy()))
        return gradient.to(density).reshape(density.shape), None
