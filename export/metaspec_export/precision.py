"""Reduced precision: smaller and faster versions of a graph, each with its measured deviation from float32.

- fp16: weights and arithmetic in float16, for GPUs; normalisations and softmax stay float32. TensorRT takes the precision
  from the graph, too.
- int8: 3 x 3 convolutions in 8-bit integers, with ranges measured on training structures (`integer`), for CPUs. In a gradient
  graph only the forward pass is quantised.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.transformers.float16 import convert_float_to_float16

from metaspec_contract.conditions import Condition
from metaspec_contract.detectors import CHANNELS
from metaspec_contract.figures_of_merit import colour_efficiency, covered_colours
from metaspec_contract.model import COTANGENT, GRADIENT
from metaspec_contract.process import Process
from metaspec_export.errors import ExportRefused
from metaspec_export.integer import quantise_convolutions

Precision = Literal["fp32", "fp16", "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

_KEPT_FLOAT32 = ["InstanceNormalization", "LayerNormalization", "Softmax"]


class DeviationError(ExportRefused):
    """A graph of reduced precision deviates too much from float32."""


@dataclass(frozen=True)
class Deviation:
    """Deviation of a graph's spectra and gradient from those in float32.

    Attributes:
        max_abs: largest difference of an efficiency.
        mean_abs: mean difference of the efficiencies.
        colour: largest change of a structure's efficiency in each colour that has wavelengths in its band.
        gradient: rms difference of the gradient over the rms of the gradient, the largest of those with respect to the
            structure and to each condition; None for a forward graph.
    """

    max_abs: float
    mean_abs: float
    colour: dict[str, float]
    gradient: float | None = None


@dataclass(frozen=True)
class Tolerance:
    """Largest `Deviation` allowed; `colour` is for the worst colour."""

    max_abs: float
    mean_abs: float
    colour: float
    gradient: float


TOLERANCES = {
    "fp16": Tolerance(max_abs=5e-3, mean_abs=5e-4, colour=2e-3, gradient=0.02),
    "int8": Tolerance(max_abs=2e-2, mean_abs=1.5e-3, colour=5e-3, gradient=0.10),
}
"""Well below the error of the bundled networks, 0.005 to 0.006 in the mean."""


def parse_precisions(text: str) -> list[Precision]:
    """Parse a list of precisions such as "fp32,int8".

    Raises:
        ValueError: one of them is unknown, or none is named.
    """
    chosen: list[Precision] = []
    for name in (part.strip() for part in text.split(",")):
        if name == "bf16":
            raise ValueError(
                "--precision bf16: ONNX Runtime has no bfloat16 convolution on CPUs, so the graph could not be verified; "
                "choose fp16 for GPUs or int8 for CPUs"
            )
        match = [precision for precision in PRECISIONS if precision == name]
        if not match:
            raise ValueError(f"--precision: expected one or more of {', '.join(PRECISIONS)}, got {name!r}")
        chosen += [precision for precision in match if precision not in chosen]
    return chosen


def reduce(
    model: onnx.ModelProto,
    precision: Precision,
    structures: NDArray[np.uint8],
    conditions: Sequence[Condition] = (),
) -> onnx.ModelProto:
    """The graph in another precision; inputs and outputs stay float32.

    Args:
        model: graph in float32.
        precision: wanted precision; fp32 returns a copy.
        structures: structures that the range of activations is measured on, (N, 128, 128).
        conditions: conditions of the model.
    """
    if precision == "int8":
        return quantise_convolutions(model, structures, conditions)
    copy = onnx.ModelProto()  # the converter works in place
    copy.CopyFrom(model)
    if precision == "fp32":
        return copy
    phases = _phases(copy, conditions)
    half: onnx.ModelProto = convert_float_to_float16(
        copy, keep_io_types=True, op_block_list=_KEPT_FLOAT32, node_block_list=phases
    )
    if conditions:  # models without any stay as they were
        _join_float32(half)
    if any(value.name == COTANGENT for value in half.graph.input):
        _scale_cotangent(half, conditions)
    return half


def _phases(model: onnx.ModelProto, conditions: Sequence[Condition]) -> list[str]:
    """Names of the nodes from the conditions to the cosines and sines of phases, which float16 does not resolve.

    And of those that lead back from there to the gradients with respect to the conditions, which read the same constants.
    """
    dependent = {condition.name for condition in conditions}
    names = []
    for node in model.graph.node:
        if dependent.intersection(node.input) and node.op_type != "Shape":
            names.append(node.name)
            if node.op_type not in ("Cos", "Sin"):
                dependent.update(node.output)
    producers = {name: node for node in model.graph.node for name in node.output}
    waiting = [condition.gradient for condition in conditions]
    while waiting:
        back = producers.get(waiting.pop())
        if back is not None and back.name not in names:
            names.append(back.name)
            waiting += back.input if back.op_type != "MatMul" else []
    return names


def _join_float32(model: onnx.ModelProto) -> None:
    """Let nodes in float32 read each other's outputs, and inputs, without the rounding that the converter puts in between."""
    casts = {
        node.output[0]: (node.input[0], helper.get_node_attr_value(node, "to"))
        for node in model.graph.node
        if node.op_type == "Cast"
    }
    exact = {}
    for name, (source, to) in casts.items():
        before = casts.get(source)
        if to == TensorProto.FLOAT and before is not None and before[1] == TensorProto.FLOAT16:
            exact[name] = before[0]
    for node in model.graph.node:
        node.input[:] = [exact.get(name, name) for name in node.input]


def _scale_cotangent(model: onnx.ModelProto, conditions: Sequence[Condition]) -> None:
    """Scale every cotangent to a largest value of 64, and the gradient back: small values would be lost in float16.

    The gradient is linear in the cotangent, so nothing else changes (the loss scaling of Micikevicius et al., ICLR 2018).
    """
    graph = model.graph
    outputs = {GRADIENT: "gradient_scaled"} | {one.gradient: f"{one.gradient}_scaled" for one in conditions}
    for node in graph.node:
        node.input[:] = ["cotangent_scaled" if name == COTANGENT else name for name in node.input]
        node.output[:] = [outputs.get(name, name) for name in node.output]
    for name, value in (
        ("cotangent_axes", np.array([1, 2])),
        ("cotangent_target", np.float32(64)),
        ("cotangent_least", np.float32(1e-20)),  # keeps a cotangent of zeros from being divided by 0
        ("gradient_axes", np.array([3])),
        *([("condition_axes", np.array([2]))] if conditions else []),
    ):
        graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    before = [
        helper.make_node("Abs", [COTANGENT], ["cotangent_abs"]),
        helper.make_node("ReduceMax", ["cotangent_abs", "cotangent_axes"], ["cotangent_max"]),
        helper.make_node("Max", ["cotangent_max", "cotangent_least"], ["cotangent_size"]),
        helper.make_node("Div", ["cotangent_size", "cotangent_target"], ["cotangent_unit"]),
        helper.make_node("Div", [COTANGENT, "cotangent_unit"], ["cotangent_scaled"]),
    ]
    after = [
        helper.make_node("Unsqueeze", ["cotangent_unit", "gradient_axes"], ["gradient_unit"]),
        helper.make_node("Mul", ["gradient_scaled", "gradient_unit"], [GRADIENT]),
    ]
    if conditions:
        after.append(helper.make_node("Squeeze", ["cotangent_unit", "condition_axes"], ["condition_unit"]))
    after += [helper.make_node("Mul", [outputs[one.gradient], "condition_unit"], [one.gradient]) for one in conditions]
    nodes = [*before, *graph.node, *after]
    del graph.node[:]
    graph.node.extend(nodes)


def deviation(
    got: tuple[NDArray[np.float32], ...], expected: tuple[NDArray[np.float32], ...], process: Process
) -> Deviation:
    """Compare outputs (spectra,) or (spectra, gradient, those by conditions) of a graph with those of the graph in float32.

    Args:
        got: outputs of the graph.
        expected: outputs of the graph in float32.
        process: process of the spectra.
    """
    wavelengths = process.wavelengths_nm
    change = np.abs(got[0] - expected[0])
    colours = covered_colours(wavelengths)
    ours, theirs = (
        colour_efficiency(spectra[:, : len(CHANNELS)], wavelengths, colours=colours)
        for spectra in (got[0], expected[0])
    )
    changes = np.abs(ours - theirs).max(axis=0)
    gradient = None
    if len(got) > 1:
        pairs = zip(got[1:], expected[1:], strict=True)
        gradient = max(float(np.sqrt(((ours - theirs) ** 2).mean() / (theirs**2).mean())) for ours, theirs in pairs)
    return Deviation(
        max_abs=float(change.max()),
        mean_abs=float(change.mean()),
        colour=dict(zip(colours, changes.tolist(), strict=True)),
        gradient=gradient,
    )


def require_within(measured: Deviation, precision: Precision) -> None:
    """Refuse a deviation past the precision's tolerance.

    Raises:
        DeviationError: a number is too large, or not finite; it is named.
    """
    allowed = TOLERANCES[precision]
    for name, got, limit in (
        ("largest deviation of an efficiency", measured.max_abs, allowed.max_abs),
        ("mean deviation of efficiencies", measured.mean_abs, allowed.mean_abs),
        ("largest change of a colour's efficiency", max(measured.colour.values(), default=0.0), allowed.colour),
        ("relative deviation of the gradient", measured.gradient or 0.0, allowed.gradient),
    ):
        if not got <= limit:
            raise DeviationError(f"{precision} refused: {name} from float32 is {got:.1e}, allowed is {limit:.0e}")
