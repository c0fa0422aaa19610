"""A source of spectra, such as a remote surrogate, as a differentiable PyTorch function. Needs torch.

from metaspec import Surrogate
from metaspec.torch import spectra_of

surrogate = Surrogate()
density = torch.rand(16, 128, 128, requires_grad=True)
loss = -spectra_of(density, surrogate)[:, 3, :100].mean()      # blue light on detector B
loss.backward()
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from metaspec._conditions import as_numbers, named_conditions, spread_shape
from metaspec._errors import InvalidCondition, InvalidStructure
from metaspec._extras import missing_extra
from metaspec._source import FIRST_DERIVATIVES_ONLY, check_source, predict_stack, pull_back
from metaspec_contract.conditions import Condition, ConditionValue
from metaspec_contract.source import Source

try:
    import torch
except ImportError as error:
    raise missing_extra("metaspec.torch needs", "torch", "torch") from error

__all__ = ["spectra_of"]

TensorCondition: TypeAlias = torch.Tensor | ConditionValue
"""A condition as a tensor, which may require a gradient, or as for `Surrogate.predict`."""


def __dir__() -> list[str]:
    return __all__


def spectra_of(density: torch.Tensor, source: Source, **conditions: TensorCondition) -> torch.Tensor:
    """Spectra of structures, differentiable once with respect to their density and to conditions, in reverse mode.

    A call is one batch of predictions, and the backward pass one batch of gradients; so they are under `torch.func.vmap`,
    `grad`, `vjp` and `jacrev`.

    Args:
        density: (..., y, x), of the pixels of the source's process, 1 is solid and 0 is void; any real dtype, any device.
        source: a `Surrogate` or another source; not an `AsyncSurrogate`.
        **conditions: what the source takes beside structures, by name: numbers, or tensors of any real dtype, which
            broadcast to (...); vectors to (..., size). A tensor that is broadcast gets the sum of the gradients.

    Returns:
        (..., channels, wavelengths), on the device of the density and with its dtype; of integers and booleans, with
        torch's default dtype and without gradient.

    Raises:
        InvalidStructure: raised before anything is computed.
        InvalidCondition: raised before anything is computed.
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
    known = named_conditions(source.metadata().conditions, conditions) if conditions else {}
    at = {
        name: _spread(condition, conditions[name], density.shape[:-2])
        for name, condition in known.items()
        if conditions[name] is not None
    }
    result: torch.Tensor = _Spectra.apply(density, source, tuple(at), *at.values())  # type: ignore[no-untyped-call]
    return result


def _spread(condition: Condition, value: TensorCondition, lead: tuple[int, ...]) -> torch.Tensor:
    """Values of a condition as floats (*lead, size)."""
    if not isinstance(value, torch.Tensor):
        value = torch.as_tensor(as_numbers(condition, value))
    elif value.dtype == torch.bool or value.is_complex():
        raise InvalidCondition(condition.name, f"must be numbers between {condition.range}, got {value.dtype}")
    if not value.is_floating_point():
        value = value.to(torch.float64)
    return value.reshape(spread_shape(condition, tuple(value.shape), tuple(lead))).expand(*lead, condition.size)


def _named(names: tuple[str, ...], values: tuple[torch.Tensor, ...]) -> dict[str, NDArray[Any]]:
    return {name: _array(value) for name, value in zip(names, values, strict=True)}


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
    """Spectra of densities (*lead, y, x) at conditions (*lead, size), whose names are one argument."""

    @staticmethod
    def forward(density: torch.Tensor, source: Source, names: tuple[str, ...], *values: torch.Tensor) -> torch.Tensor:
        return _tensor(predict_stack(source, _array(density), _named(names, values)), density)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        density, ctx.source, ctx.names, *values = inputs
        ctx.save_for_backward(density, *values)

    @staticmethod
    def backward(ctx: Any, *cotangents: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (density, *values), (cotangent,) = ctx.saved_tensors, cotangents
        by_density, *others = _Gradient.apply(density, cotangent, ctx.source, ctx.names, *values)  # type: ignore[no-untyped-call]
        return by_density, None, None, *others

    @staticmethod
    def jvp(ctx: Any, *tangents: torch.Tensor) -> Any:
        raise RuntimeError(FIRST_DERIVATIVES_ONLY)

    @staticmethod
    def vmap(
        info: Any,
        axes: tuple[int | None, ...],
        density: torch.Tensor,
        source: Source,
        names: tuple[str, ...],
        *values: torch.Tensor,
    ) -> tuple[Any, int]:
        density, *values = (  # type: ignore[assignment]
            _first(tensor, axis).expand(info.batch_size, *[-1] * (tensor.ndim - (axis is not None)))
            for tensor, axis in zip((density, *values), (axes[0], *axes[3:]), strict=True)
        )
        return _Spectra.apply(density, source, names, *values), 0  # type: ignore[no-untyped-call]


class _Gradient(torch.autograd.Function):
    """The backward pass as a function of its own, so that it works under `torch.func`, too."""

    @staticmethod
    def forward(
        density: torch.Tensor, cotangent: torch.Tensor, source: Source, names: tuple[str, ...], *values: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        structure, by_condition = pull_back(source, _array(density), _array(cotangent), _named(names, values))
        others = (_tensor(by_condition[name], value) for name, value in zip(names, values, strict=True))
        return _tensor(structure, density), *others

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
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
        axes: tuple[int | None, ...],
        density: torch.Tensor,
        cotangent: torch.Tensor,
        source: Source,
        names: tuple[str, ...],
        *values: torch.Tensor,
    ) -> tuple[Any, tuple[int, ...]]:
        firsts = [_first(value, axis) for value, axis in zip(values, axes[4:], strict=True)]
        density, cotangent = _first(density, axes[0]), _first(cotangent, axes[1])
        found = _Gradient.apply(density, cotangent, source, names, *firsts)  # type: ignore[no-untyped-call]
        return found, (0,) * len(found)
