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

import numpy as np
from numpy.typing import NDArray

from metaspec._errors import InvalidStructure
from metaspec._extras import missing_extra
from metaspec._source import FIRST_DERIVATIVES_ONLY, check_source, predict_stack, pull_back
from metaspec_contract.source import Source

try:
    import torch
except ImportError as error:
    raise missing_extra("metaspec.torch needs", "torch", "torch") from error

__all__ = ["spectra_of"]


def __dir__() -> list[str]:
    return __all__


def spectra_of(density: torch.Tensor, source: Source) -> torch.Tensor:
    """Spectra of structures, differentiable once with respect to their density, in reverse mode.

    A call is one batch of predictions, and the backward pass one batch of gradients; so they are under `torch.func.vmap`,
    `grad`, `vjp` and `jacrev`.

    Args:
        density: (..., y, x), of the pixels of the source's process, 1 is solid and 0 is void; any real dtype, any device.
        source: a `Surrogate` or another source; not an `AsyncSurrogate`.

    Returns:
        (..., channels, wavelengths), on the device of the density and with its dtype; of integers and booleans, with
        torch's default dtype and without gradient.

    Raises:
        InvalidStructure: raised before anything is computed.
        SourceError: the source failed; a `MetaSpecError` of `Surrogate.predict` is one.
        TypeError: the density is not a tensor, or the source not a source.
        RuntimeError: a second derivative or one in forward mode is requested; no source computes those.
    """
    check_source(source)
    if not isinstance(density, torch.Tensor):
        raise TypeError(f"density must be a torch tensor, got {type(density).__name__}")
    if density.is_complex():
        raise InvalidStructure(f"density must be real numbers from 0 (void) to 1 (solid), got {density.dtype}")
    if not density.is_floating_point():
        density = density.to(torch.get_default_dtype())
    result: torch.Tensor = _Spectra.apply(density, source)  # type: ignore[no-untyped-call]
    return result


def _array(tensor: torch.Tensor) -> NDArray[Any]:
    """A tensor in numpy, in float32 if its dtype is a narrower one."""
    narrow = tensor.dtype not in (torch.float32, torch.float64)
    array: NDArray[Any] = tensor.detach().to("cpu", torch.float32 if narrow else tensor.dtype).numpy()
    return array


def _tensor(array: NDArray[np.float32], like: torch.Tensor) -> torch.Tensor:
    return torch.tensor(array, dtype=like.dtype, device=like.device)


def _first(tensor: torch.Tensor, axis: int | None) -> torch.Tensor:
    """A tensor with the axis of `vmap` first; of length 1 if the tensor has none."""
    return tensor.unsqueeze(0) if axis is None else tensor.movedim(axis, 0)


class _Spectra(torch.autograd.Function):
    @staticmethod
    def forward(density: torch.Tensor, source: Source) -> torch.Tensor:
        return _tensor(predict_stack(source, _array(density)), density)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[torch.Tensor, Source], output: torch.Tensor) -> None:
        density, ctx.source = inputs
        ctx.save_for_backward(density)

    @staticmethod
    def backward(ctx: Any, *cotangents: torch.Tensor) -> tuple[torch.Tensor, None]:
        (density,), (cotangent,) = ctx.saved_tensors, cotangents
        return _Gradient.apply(density, cotangent, ctx.source), None  # type: ignore[no-untyped-call]

    @staticmethod
    def jvp(ctx: Any, *tangents: torch.Tensor) -> Any:
        raise RuntimeError(FIRST_DERIVATIVES_ONLY)

    @staticmethod
    def vmap(info: Any, axes: tuple[int | None, None], density: torch.Tensor, source: Source) -> tuple[Any, int]:
        return _Spectra.apply(_first(density, axes[0]), source), 0  # type: ignore[no-untyped-call]


class _Gradient(torch.autograd.Function):
    """The backward pass as a function of its own, so that it works under `torch.func`, too."""

    @staticmethod
    def forward(density: torch.Tensor, cotangent: torch.Tensor, source: Source) -> torch.Tensor:
        return _tensor(pull_back(source, _array(density), _array(cotangent)), density)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[torch.Tensor, torch.Tensor, Source], output: torch.Tensor) -> None:
        return

    @staticmethod
    def backward(ctx: Any, *cotangents: torch.Tensor) -> Any:
        raise RuntimeError(FIRST_DERIVATIVES_ONLY)

    @staticmethod
    def jvp(ctx: Any, *tangents: torch.Tensor) -> Any:
        raise RuntimeError(FIRST_DERIVATIVES_ONLY)

    @staticmethod
    def vmap(
        info: Any,
        axes: tuple[int | None, int | None, None],
        density: torch.Tensor,
        cotangent: torch.Tensor,
        source: Source,
    ) -> tuple[Any, int]:
        return _Gradient.apply(_first(density, axes[0]), _first(cotangent, axes[1]), source), 0  # type: ignore[no-untyped-call]
