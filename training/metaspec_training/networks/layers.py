"""Layers that both networks share: circular convolutions, residual blocks and Fourier mixing.

The cell is periodic, so every convolution pads circularly, and it does so by joining slices: unlike `Pad(wrap)`, that runs
on every ONNX engine, and so do the operators of its gradient.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import Any, Self

import torch
from torch import Tensor, nn

from metaspec_contract.conditions import Condition
from metaspec_contract.process import Process
from metaspec_contract.structures import PIXELS


@dataclass(frozen=True)
class NetworkConfig(ABC):
    """Settings that a network is built from; each network has its own class of them.

    Attributes:
        process: the device; None for that of the data, or for the default device without data.
    """

    process: Process | None = None

    @abstractmethod
    def build(self) -> nn.Module:
        """The network, freshly initialised."""

    @abstractmethod
    def for_process(self, process: Process) -> Self:
        """The settings of the same network for a device.

        Raises:
            ValueError: the settings are for another device.
        """

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain values, for a checkpoint."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return values | {"process": self.process and self.process.model_dump(mode="json")}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The inverse of `to_dict`."""
        process = values["process"]
        return cls(**values | {"process": process and Process.model_validate(process)})

    def require_process(self, process: Process) -> None:
        """Refuse another process than the one that is set.

        Raises:
            ValueError: they differ.
        """
        if self.process is not None and (difference := self.process.difference(process)):
            raise ValueError(f"model.config.process and the data are of different processes: {difference}")


def conditions_of(network: nn.Module) -> tuple[Condition, ...]:
    """What a network takes beside the density: each as a keyword argument, float32 (B, size), or None for the default.

    A network that takes any states them in its attribute `conditions`.
    """
    conditions: tuple[Condition, ...] = getattr(network, "conditions", ())
    return conditions


def on_grid(density: Tensor) -> Tensor:
    """Densities (B, 1, y, x) of any process on the 128 x 128 pixels that networks see.

    Pixels twice as wide are repeated, which is the same structure, and of pixels half as wide the mean density of four is
    taken. As reshapes, since ONNX has no derivative of its pooling.
    """
    pixels = density.shape[-1]
    if pixels < PIXELS:
        times = PIXELS // pixels
        return density[..., :, None, :, None].expand(-1, -1, -1, times, -1, times).flatten(-2).flatten(-3, -2)
    if pixels > PIXELS:
        times = pixels // PIXELS
        return density.unflatten(-1, (PIXELS, times)).unflatten(-3, (PIXELS, times)).mean(dim=(-3, -1))
    return density


def wrap(x: Tensor, margin: int) -> Tensor:
    """Pad the last two axes of (B, C, H, W) periodically by `margin`, at most half of them, on every side."""
    if margin == 0:
        return x
    padded: Tensor = _Wrap.apply(x, margin)
    return padded


class _Wrap(torch.autograd.Function):
    """Padding with an explicit adjoint: that of autograd is a chain of zeros and scatters, slow in every engine."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, margin: int) -> Tensor:
        ctx.margin = margin
        x = torch.cat([x[:, :, -margin:], x, x[:, :, :margin]], dim=2)
        return torch.cat([x[..., -margin:], x, x[..., :margin]], dim=3)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        for axis in (3, 2):
            gradient = _fold(gradient, ctx.margin, axis)
        return gradient, None


def _fold(gradient: Tensor, margin: int, axis: int) -> Tensor:
    """Add the margins of one axis to the places that they were copied from."""
    size = gradient.shape[axis] - 2 * margin
    before, first, between, last, after = gradient.split([margin, margin, size - 2 * margin, margin, margin], axis)
    return torch.cat([first + after, between, last + before], dim=axis)


class CircularConv(nn.Conv2d):
    """A 2-D convolution of odd kernel on a torus: (B, C, H, W) to (B, D, H / stride, W / stride)."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, bias: bool = True, groups: int = 1
    ) -> None:
        super().__init__(inputs, outputs, kernel, stride=stride, bias=bias, groups=groups)
        self.margin = (kernel - 1) // 2

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(wrap(x, self.margin))


class ResidualBlock(nn.Module):
    """Two 3 x 3 circular convolutions, each with GroupNorm and SiLU, around a skip connection."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, dropout: float = 0.0, groups: int = 16) -> None:
        super().__init__()
        self.first = CircularConv(inputs, outputs, 3, stride=stride, bias=False)
        self.first_norm = nn.GroupNorm(groups, outputs)
        self.second = CircularConv(outputs, outputs, 3, bias=False)
        self.second_norm = nn.GroupNorm(groups, outputs)
        self.act = nn.SiLU()
        self.dropout = nn.Dropout2d(dropout)
        self.skip: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.skip = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.first_norm(self.first(x)))
        y = self.second_norm(self.second(self.dropout(y)))
        return self.act(y + self.skip(x))


class FourierMixing(nn.Module):
    """A learnt periodic convolution as large as the map: one complex weight per channel and frequency.

    y = act(norm(x + irfft2(W * rfft2(x)))), with orthonormal transforms. On maps of 16 x 16 they are written as products with
    small constant real matrices: exact, faster than an FFT at this size, and free of the DFT nodes that ONNX engines lack.

    Args:
        channels: number of channels C of the map (B, C, size, size).
        size: height and width of the map.
        noise: standard deviation of the initial weights around the identity.
    """

    row_cos: Tensor
    row_sin: Tensor
    column_cos: Tensor
    column_sin: Tensor
    back_cos: Tensor
    back_sin: Tensor

    def __init__(self, channels: int, size: int, noise: float = 0.02) -> None:
        super().__init__()
        kept = size // 2 + 1
        weight = torch.randn(channels, size, kept, 2) * noise
        weight[..., 0] += 1
        self.weight = nn.Parameter(weight)
        self.norm = nn.GroupNorm(16, channels)
        self.act = nn.SiLU()
        position = torch.arange(size, dtype=torch.float64)
        angle = 2 * torch.pi * torch.outer(position, position) / size
        multiplicity = torch.full((kept,), 2.0, dtype=torch.float64)  # columns that stand for their conjugates, too
        multiplicity[0] = 1
        if size % 2 == 0:
            multiplicity[-1] = 1
        for name, matrix in (
            ("row_cos", angle.cos()),
            ("row_sin", angle.sin()),
            ("column_cos", angle.cos()[:, :kept]),
            ("column_sin", angle.sin()[:, :kept]),
            ("back_cos", (multiplicity * angle.cos()[:, :kept]).T),
            ("back_sin", (multiplicity * angle.sin()[:, :kept]).T),
        ):
            scale = size**0.5
            self.register_buffer(name, (matrix / scale).float().contiguous(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(x + self.mix(x)))

    def mix(self, x: Tensor) -> Tensor:
        """The filter alone: irfft2(W * rfft2(x)) of (B, C, size, size)."""
        real, imag = x @ self.column_cos, -(x @ self.column_sin)
        real, imag = self.row_cos @ real + self.row_sin @ imag, self.row_cos @ imag - self.row_sin @ real
        a, b = self.weight[..., 0], self.weight[..., 1]
        real, imag = a * real - b * imag, a * imag + b * real
        real, imag = self.row_cos @ real - self.row_sin @ imag, self.row_cos @ imag + self.row_sin @ real
        return real @ self.back_cos - imag @ self.back_sin
