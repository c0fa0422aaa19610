"""The gradient graph: (structure, cotangent) to (spectra, gradient), the vector-Jacobian product as a model of its own.

With density x (N, 1, 128, 128), spectra y (N, channels, wavelengths) and a cotangent v of the shape of y, the gradient is
v dy/dx, of the shape of x: reverse-mode differentiation of one layer (Griewank and Walther, "Evaluating Derivatives",
2nd ed., section 3.2). For a figure of merit f(y), give v = df/dy and get df/dx. For each condition c there is also v dy/dc.

PyTorch's own differentiation is traced together with the network (`joint`), then exported like any network; `parity` compares
every graph with autograd.
"""

from __future__ import annotations

import copy
from typing import Any

import onnx
import torch
from torch import Tensor, fx, nn

from metaspec_contract.model import COTANGENT, GRADIENT, SPECTRA, STRUCTURE
from metaspec_contract.structures import PIXELS
from metaspec_export.graph.forward import example_conditions, free_batch, to_onnx
from metaspec_export.graph.joint import constants, decomposed_program, trace_joint
from metaspec_training.networks.layers import CircularConv, conditions_of, wrap


def gradient_graph(network: nn.Module, pixels: int = PIXELS) -> onnx.ModelProto:
    """Trace a network in evaluation mode together with its gradient, with a free batch size N; see `forward_graph`."""
    network = copy.deepcopy(network).eval()
    _write_adjoints_out(network)
    example = torch.zeros(2, 1, pixels, pixels)
    with torch.inference_mode():
        shape = network(example).flatten(1, -2).shape
    cotangent = torch.zeros(shape)  # not a tensor of inference mode, which cannot be traced
    known, conditions = conditions_of(network), example_conditions(network)
    joint = _Joint(network, trace_joint(network, (1, pixels, pixels), known)).eval()
    inputs = {STRUCTURE: example, COTANGENT: cotangent}
    program = decomposed_program(joint, inputs | conditions, free_batch(inputs, conditions))
    return to_onnx(program, inputs, [SPECTRA, GRADIENT, *(one.gradient for one in known)], conditions)


class _Joint(nn.Module):
    """The traced graph with the network's weights filled in, under the names that they have in the forward graph."""

    def __init__(self, network: nn.Module, graph: fx.GraphModule) -> None:
        super().__init__()
        self.network = network
        self.graph = graph

    def forward(self, structure: Tensor, cotangent: Tensor, *conditions: Tensor) -> tuple[Tensor, ...]:
        inputs = [structure, *conditions, *constants(self.network).values()]
        (spectra,), gradients = self.graph(inputs, [cotangent])
        return spectra, *gradients[: 1 + len(conditions)]


def _write_adjoints_out(network: nn.Module) -> None:
    """Give the layers below a backward pass in closed form that is simpler than what autograd derives."""
    for module in network.modules():
        if type(module) is CircularConv and module.stride == (1, 1) and module.groups == 1:
            module.__class__ = _SelfAdjointConv
        elif type(module) is nn.SiLU:
            module.__class__ = _SiLU


class _SelfAdjointConv(CircularConv):
    """Circular convolution; its adjoint is one, too, so that no margins have to be folded back."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = _Convolve.apply(x, self.weight, self.margin)
        return y if self.bias is None else y + self.bias[:, None, None]


class _Convolve(torch.autograd.Function):
    """Circular convolution, differentiable with respect to its input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, margin: int) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.margin = margin
        return nn.functional.conv2d(wrap(x, margin), weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (weight,) = ctx.saved_tensors
        turned = weight.flip(2, 3).transpose(0, 1)
        return nn.functional.conv2d(wrap(gradient, ctx.margin), turned), None, None


class _SiLU(nn.SiLU):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = _Silu.apply(x)
        return y


class _Silu(torch.autograd.Function):
    """y = x s(x) with y' = s + y (1 - s); PyTorch's own derivative fills a tensor with ones in every call."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        sigmoid = x.sigmoid()
        y = x * sigmoid
        ctx.save_for_backward(sigmoid, y)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        sigmoid, y = ctx.saved_tensors
        slope: Tensor = sigmoid + y * (1 - sigmoid)
        return gradient * slope
