"""The forward graph: a trained network as ONNX, from density (N, 1, 128, 128) to spectra (N, channels, wavelengths).

The conditions of a network are further inputs, (N, size) each.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import onnx
import onnx_ir as ir
import torch
from onnx_ir.passes import common as passes
from onnxscript import optimizer
from torch import Tensor, nn

from metaspec_contract.conditions import spread_conditions
from metaspec_contract.model import SPECTRA, STRUCTURE
from metaspec_contract.structures import PIXELS
from metaspec_training.networks.layers import conditions_of

OPSET = 20
"""The oldest with Gelu; ONNX Runtime's CPU and CUDA providers and TensorRT 10 all read it."""

_REARRANGEMENTS = {"Concat", "Expand", "Gather", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}


class _Served(nn.Module):
    """The network with its detectors along one axis, as it is served."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.names = [condition.name for condition in conditions_of(network)]

    def forward(self, structure: Tensor, *conditions: Tensor) -> Tensor:
        return self.network(structure, **dict(zip(self.names, conditions, strict=True))).flatten(1, -2)


class _GroupNorm(nn.GroupNorm):
    """Group normalisation as layer normalisation of each group, then one multiply-add per channel.

    The exporter's own translation reads shapes at run time, which engines on GPUs do on the CPU.
    """

    def forward(self, x: Tensor) -> Tensor:
        size = x[0].numel() // self.num_groups
        normal = nn.functional.layer_norm(x.reshape(-1, self.num_groups, size), (size,), eps=self.eps)
        mean, variance = torch.zeros_like(self.bias), torch.ones_like(self.bias)
        return nn.functional.batch_norm(
            normal.reshape(-1, *x.shape[1:]), mean, variance, self.weight, self.bias, training=False, eps=0.0
        )


def forward_graph(network: nn.Module, pixels: int = PIXELS) -> onnx.ModelProto:
    """Trace a network in evaluation mode, with a free batch size N.

    Args:
        network: network from density (N, 1, pixels, pixels), and its conditions, to efficiencies (N, 2, 2, wavelengths).
        pixels: pixels along each side of a structure.
    """
    network = copy.deepcopy(network)
    for module in network.modules():
        if type(module) is nn.GroupNorm:
            module.__class__ = _GroupNorm
    inputs = {STRUCTURE: torch.zeros(2, 1, pixels, pixels)}
    return to_onnx(_Served(network).eval(), inputs, [SPECTRA], example_conditions(network))


def example_conditions(network: nn.Module) -> dict[str, Tensor]:
    """Values of a network's conditions for two structures, by name."""
    values = spread_conditions(conditions_of(network), 2)
    return {name: torch.from_numpy(array) for name, array in values.items()}


def to_onnx(
    module: nn.Module | torch.export.ExportedProgram,
    inputs: dict[str, Tensor],
    outputs: list[str],
    conditions: dict[str, Tensor] | None = None,
) -> onnx.ModelProto:
    """Export a module whose inputs and outputs all have the batch as their first axis.

    Args:
        module: module that takes the inputs in their order, or what `torch.export` made of one, with `free_batch`.
        inputs: example inputs by name, all of the same batch size.
        outputs: names of the outputs.
        conditions: example values of conditions by name, which the module takes as `*conditions`.
    """
    conditions = conditions or {}
    with quiet():
        program = torch.onnx.export(
            module,
            (*inputs.values(), *conditions.values()),
            dynamo=True,
            opset_version=OPSET,
            input_names=[*inputs, *conditions],
            output_names=outputs,
            dynamic_shapes=free_batch(inputs, conditions),
            verbose=False,
            optimize=False,
        )
        if program is None:
            raise RuntimeError("torch.onnx.export returned no program")
        _optimize(program.model)
    model = program.model_proto
    for described in (*model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output, model.graph):
        described.ClearField("metadata_props")  # stack traces, with paths of the machine
        described.ClearField("doc_string")
    onnx.checker.check_model(model)
    return model


def free_batch(inputs: dict[str, Tensor], conditions: dict[str, Tensor]) -> dict[str, Any]:
    """The shapes of inputs, as `torch.export` takes them: the first axis is the batch N, the others are fixed.

    Args:
        inputs: inputs that are arguments of the module.
        conditions: further inputs, which are its arguments `*conditions`.
    """
    batch = torch.export.Dim("N", min=1, max=2**20)
    shapes: dict[str, Any] = {name: {0: batch} for name in inputs}
    return shapes | ({"conditions": ({0: batch},) * len(conditions)} if conditions else {})


def _optimize(model: ir.Model) -> None:
    """Fold constants and simplify, in place.

    Rules that look for several nodes at once take time with the square of the graph's size, and most nodes of a graph that has
    just been traced are constants: they are folded and taken out first.
    """
    optimizer.inline(model)
    optimizer.fold_constants_ir(model, onnx_shape_inference=True)
    passes.RemoveUnusedNodesPass()(model)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    passes.DeduplicateInitializersPass()(model)
    passes.CommonSubexpressionEliminationPass()(model)
    optimizer.optimize_ir(model, input_size_limit=2**24, output_size_limit=2**24, should_fold=_should_fold)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence warnings and log messages of the converters; errors still come through."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def _should_fold(node: ir.Node) -> bool | None:
    """Fold what is computed from constants alone, such as the wavelength embedding.

    Weights that are only transposed or sliced stay as they were trained, once in the file: engines fold these on loading.
    """
    return False if node.op_type in _REARRANGEMENTS and _size(node) > 2**10 else None


def _size(node: ir.Node) -> int:
    """Number of elements of the largest constant that a node reads."""
    return max((value.const_value.size for value in node.inputs if value and value.const_value), default=0)
