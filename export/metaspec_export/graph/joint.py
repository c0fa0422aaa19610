"""Tracing a network together with its backward pass. All private interfaces of PyTorch that the export uses are here.

The tracer is `torch._functorch.aot_autograd.aot_export_joint_simple`. PyTorch is pinned to a minor version because of it, and
`tests/export/test_dependencies.py` traces a small function first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._decomp import core_aten_decompositions
from torch._functorch.aot_autograd import aot_export_joint_simple
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from metaspec_contract.conditions import Condition

_aten = torch.ops.aten


def constants(network: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of a network by name, in the order that the traced graph takes them in."""
    return dict(network.named_parameters()) | dict(network.named_buffers())


def trace_joint(network: nn.Module, shape: tuple[int, ...], conditions: Sequence[Condition] = ()) -> fx.GraphModule:
    """Trace forward and backward pass as one graph, with a free batch size.

    Args:
        network: network in evaluation mode; its output is flattened to (N, channels, wavelengths).
        shape: shape of one row of its input.
        conditions: conditions that it takes, too.

    Returns:
        A graph ([input, *conditions, *constants], [cotangent]) -> ((output,), (gradient, *theirs, None, ...)).
    """
    names = list(constants(network))

    def forward(x: Tensor, *others: Tensor) -> tuple[Tensor]:
        given = {condition.name: value for condition, value in zip(conditions, others, strict=False)}
        values = dict(zip(names, others[len(conditions) :], strict=True))
        y = torch.func.functional_call(network, values, (x,), given)
        return (y.flatten(1, -2).clone(),)  # an output that shares memory would be refused

    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)

    def with_free_batch(example: Tensor) -> Tensor:
        sizes = [DimDynamic.DUCK, *[DimDynamic.STATIC] * (example.dim() - 1)]  # DUCK: all inputs have one batch size
        context = StatelessSymbolicContext(  # type: ignore[var-annotated]
            dynamic_sizes=sizes, constraint_sizes=[None] * example.dim()
        )
        return mode.from_tensor(example, symbolic_context=context)

    shapes = (shape, *(condition.shape for condition in conditions))
    examples = [torch.zeros(3, *one, requires_grad=True) for one in shapes]
    with mode:
        inputs = [with_free_batch(example) for example in examples]
        values = [mode.from_tensor(value.detach(), static_shapes=True) for value in constants(network).values()]
        graph = aot_export_joint_simple(forward, (*inputs, *values), trace_joint=True, decompositions=_decompositions())
    assert isinstance(graph, fx.GraphModule)
    return graph


def decomposed_program(
    joint: nn.Module, inputs: dict[str, Tensor], shapes: dict[str, Any]
) -> torch.export.ExportedProgram:
    """A module around a graph of `trace_joint`, as a program for the ONNX exporter.

    The exporter would trace it once more to decompose its operators, which takes a third of the time of an export.
    `trace_joint` has done that, so the program returns itself.

    Args:
        joint: the module.
        inputs: example inputs by name.
        shapes: their free axes, as `torch.export` takes them.
    """
    program = torch.export.export(joint, tuple(inputs.values()), dynamic_shapes=shapes)
    program.run_decompositions = lambda *_: program
    return program


def _decompositions() -> dict[Any, Any]:
    """Operators of the backward pass, written with those that ONNX has."""
    return {
        **core_aten_decompositions(),
        _aten.convolution_backward.default: _convolution_backward,
        _aten.empty_permuted.default: _empty_permuted,
        _aten.native_group_norm.default: _group_norm,
        _aten.squeeze.dims: _squeeze,
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
    """A transposed convolution. Rows and columns that no stride reached are padded: not all engines know output_padding."""
    if not wanted[0]:
        return None, None, None
    zeros = [0] * len(stride)
    back = _aten.convolution(gradient, weight, None, stride, padding, dilation, True, zeros, groups)
    missing = [have - got for have, got in zip(x.shape[2:], back.shape[2:], strict=True)]
    if any(missing):
        if any(padding):
            raise NotImplementedError("a strided convolution with padding whose gradient needs output_padding")
        back = _aten.constant_pad_nd(back, [amount for size in reversed(missing) for amount in (0, size)])
    return back, None, None


def _empty_permuted(size: list[int], order: list[int], dtype: torch.dtype | None = None, **_: Any) -> Tensor:
    filled: Tensor = _aten.full(size, 0.0, dtype=dtype)
    return filled


def _squeeze(x: Tensor, axes: list[int]) -> Tensor:
    gone = {axis % x.dim() for axis in axes if x.shape[axis] == 1}
    squeezed: Tensor = _aten.view(x, [size for axis, size in enumerate(x.shape) if axis not in gone])
    return squeezed


def _group_norm(
    x: Tensor, weight: Tensor, bias: Tensor, batch: int, channels: int, points: int, groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Layer normalisation of each group, whose operator also returns what the backward pass needs."""
    size = channels // groups * points
    normal, mean, scale = _aten.native_layer_norm(x.reshape(-1, groups, size), [size], None, None, eps)
    y = normal.reshape(-1, *x.shape[1:]) * weight[:, None, None] + bias[:, None, None]
    return y, mean.reshape(-1, groups), scale.reshape(-1, groups)
