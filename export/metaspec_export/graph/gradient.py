"""The gradient graph: (structure, cotangent) to (spectra, gradient), the vector-Jacobian product as a model of its own.

With density x (N, 1, 128, 128), spectra y (N, channels, wavelengths) and a cotangent v of the shape of y, the gradient is
v dy/dx, of the shape of x: what reverse-mode differentiation asks of one layer (Griewank and Walther, "Evaluating Derivatives",
2nd ed., section 3.2). For a figure of merit f(y), give v = df/dy and get df/dx.

PyTorch's own differentiation is traced together with the network, then exported like any network. The tracer is private to
PyTorch (`aot_export_joint_simple`), which is why the release is pinned; `parity` proves every graph against autograd.
"""

from __future__ import annotations

import copy
from typing import Any

import onnx
import torch
from torch import Tensor, fx, nn
from torch._decomp import core_aten_decompositions
from torch._functorch.aot_autograd import aot_export_joint_simple
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from metaspec_contract.structures import PIXELS
from metaspec_export.graph.forward import to_onnx
from metaspec_training.networks.layers import CircularConv, wrap

_aten = torch.ops.aten


def gradient_graph(network: nn.Module) -> onnx.ModelProto:
    """Trace a network in evaluation mode together with its gradient, with a free batch size N."""
    network = copy.deepcopy(network).eval()
    _write_adjoints_out(network)
    example = torch.zeros(2, 1, PIXELS, PIXELS)
    with torch.inference_mode():
        cotangent = torch.zeros_like(network(example).flatten(1, -2))
    joint = _Joint(network, _trace(network)).eval()
    return to_onnx(joint, {"structure": example, "cotangent": cotangent}, ["spectra", "gradient"])


class _Joint(nn.Module):
    """The traced graph with the network's weights filled in, under the names that the forward graph has, too."""

    def __init__(self, network: nn.Module, graph: fx.GraphModule) -> None:
        super().__init__()
        self.network = network
        self.graph = graph

    def forward(self, structure: Tensor, cotangent: Tensor) -> tuple[Tensor, Tensor]:
        spectra, gradient, *_ = self.graph([structure, *_constants(self.network).values()], [cotangent])
        return spectra, gradient


def _constants(network: nn.Module) -> dict[str, Tensor]:
    return dict(network.named_parameters()) | dict(network.named_buffers())


def _trace(network: nn.Module) -> fx.GraphModule:
    """Forward and backward pass as one graph ([structure, *constants], [cotangent]) -> (spectra, gradient, None, ...)."""
    names = list(_constants(network))

    def forward(structure: Tensor, *constants: Tensor) -> tuple[Tensor]:
        spectra = torch.func.functional_call(network, dict(zip(names, constants, strict=True)), (structure,))
        return (spectra.flatten(1, -2).clone(),)  # an output that shares memory would be refused

    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    free_batch = StatelessSymbolicContext(  # type: ignore[var-annotated]
        dynamic_sizes=[DimDynamic.DYNAMIC, *[DimDynamic.STATIC] * 3], constraint_sizes=[None] * 4
    )
    example = torch.zeros(3, 1, PIXELS, PIXELS, requires_grad=True)
    with mode:
        structure = mode.from_tensor(example, symbolic_context=free_batch)
        constants = [mode.from_tensor(value.detach(), static_shapes=True) for value in _constants(network).values()]
        graph = aot_export_joint_simple(
            forward, (structure, *constants), trace_joint=True, decompositions=_decompositions()
        )
    assert isinstance(graph, fx.GraphModule)
    return graph


def _decompositions() -> dict[Any, Any]:
    """How operators of the backward pass are written with those that ONNX has."""
    return {
        **core_aten_decompositions(),
        _aten.convolution_backward.default: _convolution_backward,
        _aten.empty_permuted.default: _empty_permuted,
        _aten.native_group_norm.default: _group_norm,
    }


def _convolution_backward(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor,
    bias_sizes: Any,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
    wanted: list[bool],
) -> tuple[Tensor | None, None, None]:
    """A transposed convolution. What a stride never reached at the far end gets zeros: not all engines know output_padding."""
    if not wanted[0]:
        return None, None, None
    zeros = [0] * len(stride)
    back = _aten.convolution(gradient, weight, None, stride, padding, dilation, True, zeros, groups)
    missing = [have - got for have, got in zip(x.shape[2:], back.shape[2:], strict=True)]
    if any(missing):
        back = _aten.constant_pad_nd(back, [amount for size in reversed(missing) for amount in (0, size)])
    return back, None, None


def _empty_permuted(size: list[int], order: list[int], dtype: torch.dtype | None = None, **_: Any) -> Tensor:
    filled: Tensor = _aten.full(size, 0.0, dtype=dtype)
    return filled


def _group_norm(
    x: Tensor, weight: Tensor, bias: Tensor, batch: int, channels: int, points: int, groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """As layer normalisation of each group, whose operator also returns what the backward pass needs."""
    size = channels // groups * points
    normal, mean, scale = _aten.native_layer_norm(x.reshape(-1, groups, size), [size], None, None, eps)
    y = normal.reshape(-1, *x.shape[1:]) * weight[:, None, None] + bias[:, None, None]
    return y, mean.reshape(-1, groups), scale.reshape(-1, groups)


def _write_adjoints_out(network: nn.Module) -> None:
    """Give layers whose adjoint is simpler in closed form than as autograd derives it that form."""
    for module in network.modules():
        if type(module) is CircularConv and module.stride == (1, 1) and module.groups == 1:
            module.__class__ = _SelfAdjointConv
        elif type(module) is nn.SiLU:
            module.__class__ = _SiLU


class _SelfAdjointConv(CircularConv):
    """On a torus the adjoint of a convolution is one, too: nothing to fold back from margins."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = _Convolve.apply(x, self.weight, self.margin)
        return y if self.bias is None else y + self.bias[:, None, None]


class _Convolve(torch.autograd.Function):
    """Circular convolution, differentiable by its input."""

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
    """y = x s(x) with y' = s + y (1 - s); the library's own derivative fills a tensor with ones for every call."""

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
