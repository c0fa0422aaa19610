"""Small but real models: an ONNX graph of four channels whose spectra and gradients are known."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from metaspec_contract.detectors import CHANNELS
from metaspec_contract.model import DEFAULT_MODEL, METADATA_KEY, gradient_model
from metaspec_contract.process import Process

Array: TypeAlias = NDArray[Any]

Expected: TypeAlias = Callable[[Array], Array]
"""Spectra of the small model for structures, by ONNX Runtime alone."""

ExpectedGradient: TypeAlias = Callable[[Array, Array], Array]
"""Gradient of the small model for structures and cotangents, by ONNX Runtime alone."""

METADATA: dict[str, Any] = {
    "schema_version": 2,
    "name": DEFAULT_MODEL,
    "kind": "forward",
    "process": Process().model_dump(mode="json"),
    "wavelengths_nm": Process().wavelengths_nm.tolist(),
    "channels": list(CHANNELS),
    "units": {"spectra": "efficiency", "wavelengths": "nm"},
    "input": {"name": "structure", "solid": 1.0, "void": 0.0},
}
"""Metadata of the small model."""


def small_model(metadata: dict[str, Any] | None = None, seed: int = 0) -> onnx.ModelProto:
    """Average pooling, one matrix product and a sigmoid: density (N, 1, 128, 128) to spectra (N, 4, 301).

    Args:
        metadata: metadata of the model; `METADATA` by default.
        seed: seed of the weights.
    """
    weight = np.random.default_rng(seed).normal(0, 1, (64, 1204)).astype(np.float32)
    nodes = [
        helper.make_node("AveragePool", ["structure"], ["pooled"], kernel_shape=[16, 16], strides=[16, 16]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["product"]),
        helper.make_node("Sigmoid", ["product"], ["efficiency"]),
        helper.make_node("Reshape", ["efficiency", "shape"], ["spectra"]),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("structure", TensorProto.FLOAT, ["N", 1, 128, 128])],
        [helper.make_tensor_value_info("spectra", TensorProto.FLOAT, ["N", 4, 301])],
        [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(np.array([-1, 4, 301]), "shape")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(model, {METADATA_KEY: json.dumps(METADATA if metadata is None else metadata)})
    return model


def hanging_model(metadata: dict[str, Any] | None = None, seed: int = 0, solid_pixels: int = 1) -> onnx.ModelProto:
    """The small model, whose run does not end in days for a structure of one number of solid pixels: an ONNX `Loop`.

    Args:
        metadata: metadata of the model; `METADATA` by default.
        seed: seed of the weights.
        solid_pixels: the number of solid pixels.
    """
    model = small_model(metadata, seed)
    graph = model.graph
    body = helper.make_graph(
        [helper.make_node("Identity", ["goes_on"], ["still"]), helper.make_node("Sigmoid", ["value"], ["next"])],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("goes_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("value", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("still", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, None),
        ],
    )
    constants = {
        "pixel_axes": np.array([1, 2, 3]),
        "solid_pixels": np.array(solid_pixels, np.float32),
        "days": np.array(2**40),
        "true": np.array(True),
    }
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    counting = [
        helper.make_node("ReduceSum", ["structure", "pixel_axes"], ["solid"], keepdims=0),
        helper.make_node("Equal", ["solid", "solid_pixels"], ["is_long"]),
        helper.make_node("Cast", ["is_long"], ["long"], to=TensorProto.INT64),
        helper.make_node("ReduceMax", ["long"], ["any_long"], keepdims=0),
        helper.make_node("Mul", ["any_long", "days"], ["turns"]),
        helper.make_node("Loop", ["turns", "true", "efficiency"], ["looped"], body=body),
        helper.make_node("Reshape", ["looped", "shape"], ["spectra"]),
    ]
    assert graph.node[-1].op_type == "Reshape"
    del graph.node[-1]
    graph.node.extend(counting)
    return model


def small_gradient_model(metadata: dict[str, Any] | None = None, seed: int = 0) -> onnx.ModelProto:
    """The vector-Jacobian product of the small model: each pixel of a pooled square has 1 / 256 of the square's gradient.

    Args:
        metadata: metadata of the small model; `METADATA` by default.
        seed: seed of the weights.
    """
    forward = METADATA if metadata is None else metadata
    model = small_model(forward | {"name": gradient_model(forward["name"]), "kind": "vjp"}, seed)
    graph = model.graph
    constants = {
        "flat_shape": np.array([-1, 1204]),
        "square_shape": np.array([-1, 1, 8, 1, 8, 1]),
        "pixel_shape": np.array([1, 1, 1, 16, 1, 16]),
        "gradient_shape": np.array([-1, 1, 128, 128]),
        "one": np.ones(1, np.float32),
        "share": np.full(1, 1 / 256, np.float32),
    }
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    steps = [
        ("Reshape", ["cotangent", "flat_shape"], "cotangent_flat"),
        ("Sub", ["one", "efficiency"], "rest"),
        ("Mul", ["efficiency", "rest"], "slope"),
        ("Mul", ["slope", "cotangent_flat"], "pulled"),
        ("Transpose", ["weight"], "weight_transposed"),
        ("MatMul", ["pulled", "weight_transposed"], "squares"),
        ("Mul", ["squares", "share"], "shared"),
        ("Reshape", ["shared", "square_shape"], "spread"),
        ("Expand", ["spread", "pixel_shape"], "pixels"),
        ("Reshape", ["pixels", "gradient_shape"], "gradient"),
    ]
    graph.node.extend(helper.make_node(kind, inputs, [output]) for kind, inputs, output in steps)
    graph.input.append(helper.make_tensor_value_info("cotangent", TensorProto.FLOAT, ["N", 4, 301]))
    graph.output.append(helper.make_tensor_value_info("gradient", TensorProto.FLOAT, ["N", 1, 128, 128]))
    return model


def write_repository(root: Path, model: onnx.ModelProto, version: int = 1, folder: str | None = None) -> Path:
    """Put a version of a model into a repository; returns the repository.

    Args:
        root: folder of the repository.
        model: the model.
        version: number of the version.
        folder: name of the model's folder; the name in its metadata by default.
    """
    properties = {entry.key: entry.value for entry in model.metadata_props}
    name = folder or json.loads(properties.get(METADATA_KEY, "{}")).get("name", DEFAULT_MODEL)
    place = root / name / str(version)
    place.mkdir(parents=True)
    onnx.save(model, place / "model.onnx")
    return root
