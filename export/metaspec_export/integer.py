"""8-bit convolutions: the 3 x 3 convolutions of a forward pass in integers, with ranges measured on structures.

Static quantisation (Jacob et al., CVPR 2018): activations in uint8 over the range that they have on the structures, weights in
seven bits of int8 with one scale per output channel. A convolution pads periodically by copying margins; what it pads is
quantised once, before, so that margins are copied as bytes. Everything else stays float32, in the layout that it has.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from metaspec_contract.conditions import Condition, spread_conditions
from metaspec_contract.model import COTANGENT, STRUCTURE

_BATCH = 16
_LARGEST_WEIGHT = 64
"""Processors without VNNI add two products of a byte and a weight in 16 bits, where 2 * 255 * 127 would be cut off."""
_MARGINS = {"Concat", "Slice"}  # the operators of periodic padding


@dataclass(frozen=True)
class _Convolution:
    """A convolution to be quantised.

    Attributes:
        node: the float32 node.
        margins: nodes between `source` and it, in their order: those of the padding.
        source: tensor that is padded.
    """

    node: onnx.NodeProto
    margins: list[onnx.NodeProto]
    source: str


def quantise_convolutions(
    model: onnx.ModelProto, structures: NDArray[np.uint8], conditions: Sequence[Condition] = ()
) -> onnx.ModelProto:
    """A copy of a graph whose forward 3 x 3 convolutions of several channels are computed in 8-bit integers.

    In a gradient graph only the forward pass is quantised: the range of a cotangent cannot be known beforehand.

    Args:
        model: graph in float32.
        structures: structures that the range of activations is measured on, (N, 128, 128).
        conditions: conditions of the model, whose values cover their ranges.
    """
    found = list(_convolutions(model))
    names = {name for one in found for name in (one.source, one.node.output[0])}
    ranges = _ranges(model, names, structures, conditions)
    quantised = onnx.ModelProto()
    quantised.CopyFrom(model)
    graph = quantised.graph
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    made: dict[str, list[onnx.NodeProto]] = {}  # new nodes by the output of the convolution that they replace
    sources: set[str] = set()
    copied_margins: set[str] = set()  # their outputs

    def constant(name: str, value: NDArray[np.generic] | np.generic) -> str:
        graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def affine(name: str) -> tuple[str, str]:
        scale, zero = _affine(*ranges[name])
        return constant(f"{name}_scale", scale), constant(f"{name}_zero", zero)

    for one in found:
        output, source = one.node.output[0], one.source
        nodes = made.setdefault(output, [])
        scales = (f"{source}_scale", f"{source}_zero")
        if source not in sources:
            sources.add(source)
            affine(source)
            nodes.append(helper.make_node("QuantizeLinear", [source, *scales], [f"{source}_quantised"]))
        inner = {source, *(name for margin in one.margins for name in margin.output)}
        for margin in one.margins:
            if copied_margins.intersection(margin.output):
                continue  # of another convolution that pads the same
            copied_margins.update(margin.output)
            copied = onnx.NodeProto()
            copied.CopyFrom(margin)
            copied.name = ""
            copied.input[:] = [f"{name}_quantised" if name in inner else name for name in margin.input]
            copied.output[:] = [f"{name}_quantised" for name in margin.output]
            nodes.append(copied)
        kernel, scale = _per_channel(weights[one.node.input[1]])
        inputs = [
            f"{one.node.input[0]}_quantised",
            *scales,
            constant(f"{output}_kernel", kernel),
            constant(f"{output}_kernel_scale", scale),
            constant(f"{output}_kernel_zero", np.zeros(len(scale), np.int8)),
            *affine(output),
        ]
        if len(one.node.input) > 2:
            bias = weights[one.node.input[2]] / (_affine(*ranges[source])[0] * scale)
            inputs.append(constant(f"{output}_bias", np.rint(bias).astype(np.int32)))
        convolution = helper.make_node("QLinearConv", inputs, [f"{output}_quantised"])
        convolution.attribute.extend(one.node.attribute)
        nodes += [
            convolution,
            helper.make_node("DequantizeLinear", [f"{output}_quantised", *inputs[6:8]], [output]),
        ]
    replaced = {id(one.node) for one in found}
    nodes = [new for node in model.graph.node for new in (made[node.output[0]] if id(node) in replaced else [node])]
    del graph.node[:]
    graph.node.extend(nodes)
    _remove_unused(graph)
    onnx.checker.check_model(quantised)
    return quantised


def _convolutions(model: onnx.ModelProto) -> Iterator[_Convolution]:
    """The 3 x 3 convolutions of several channels that do not depend on a cotangent."""
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    producers = {name: node for node in model.graph.node for name in node.output}
    backward = {COTANGENT}
    for node in model.graph.node:
        if backward.intersection(node.input) and node.op_type != "Shape":
            backward.update(node.output)
        elif node.op_type == "Conv":
            shape = shapes.get(node.input[1], ())
            if shape[2:] == (3, 3) and shape[1] > 1:
                margins, source = _padding(node.input[0], producers, shapes)
                yield _Convolution(node, margins, source)


def _padding(
    name: str, producers: dict[str, onnx.NodeProto], constants: Iterable[str]
) -> tuple[list[onnx.NodeProto], str]:
    """The nodes that copy margins, and the one tensor that they copy from; none of them, where it is not padded."""
    nodes: list[onnx.NodeProto] = []
    sources: list[str] = []
    waiting = [name]
    while waiting:
        current = waiting.pop()
        node = producers.get(current)
        if node is None or node.op_type not in _MARGINS:
            sources.append(current)
        elif node not in nodes:
            nodes.append(node)
            waiting += [each for each in node.input if each not in constants]
    if len(set(sources)) != 1:
        return [], name
    order = {id(node): place for place, node in enumerate(producers.values())}
    return sorted(nodes, key=lambda node: order[id(node)]), sources[0]


def _ranges(
    model: onnx.ModelProto, names: set[str], structures: NDArray[np.uint8], conditions: Sequence[Condition]
) -> dict[str, tuple[float, float]]:
    """Smallest and largest value of tensors of a graph on structures; cotangents are zero, since they do not enter."""
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    del watched.graph.output[:]
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in sorted(names))
    session = ort.InferenceSession(watched.SerializeToString(), providers=["CPUExecutionProvider"])
    others = {value.name: value.shape[1:] for value in session.get_inputs() if value.name != STRUCTURE}
    given = spread_conditions(conditions, len(structures))
    ranges = dict.fromkeys(sorted(names), (0.0, 0.0))  # zero is in every range, so that it is exact
    for start in range(0, len(structures), _BATCH):
        density = structures[start : start + _BATCH, None].astype(np.float32)
        feed = {STRUCTURE: density}
        feed |= {name: np.zeros((len(density), *shape), np.float32) for name, shape in others.items()}
        feed |= {name: values[start : start + _BATCH] for name, values in given.items()}
        for name, values in zip(ranges, session.run(list(ranges), feed), strict=True):
            low, high = ranges[name]
            ranges[name] = min(low, float(values.min())), max(high, float(values.max()))
    return ranges


def _affine(low: float, high: float) -> tuple[np.float32, np.uint8]:
    """Scale and zero point of a range in uint8."""
    scale = np.float32(max(high - low, 1e-12) / 255)
    return scale, np.uint8(np.clip(np.rint(-low / scale), 0, 255))


def _per_channel(weight: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Weights (O, I, 3, 3) as int8 from -64 to 64, and their scales (O,)."""
    scale = np.maximum(np.abs(weight).max(axis=(1, 2, 3)) / _LARGEST_WEIGHT, 1e-12).astype(np.float32)
    return np.rint(weight / scale[:, None, None, None]).astype(np.int8), scale


def _remove_unused(graph: onnx.GraphProto) -> None:
    """Remove nodes and initializers that no output needs, in place."""
    needed = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(node.input)
    del graph.node[:]
    graph.node.extend(reversed(kept))
    initializers = [tensor for tensor in graph.initializer if tensor.name in needed]
    del graph.initializer[:]
    graph.initializer.extend(initializers)
