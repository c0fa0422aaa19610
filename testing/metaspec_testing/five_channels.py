"""A real model with a fifth channel and seven wavelengths: spectra are the mean density times a number for each of them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CHANNELS = ["R", "G1", "G2", "B", "spread"]
WAVELENGTHS_NM = [410.0, 450.0, 505.0, 550.0, 601.0, 650.0, 690.0]
WEIGHT = np.random.default_rng(3).uniform(0, 0.2, (5, 7)).astype(np.float32)


def metadata(kind: str) -> dict[str, Any]:
    """What the model says of itself."""
    return {
        "schema_version": 1,
        "name": "diffractionnet" if kind == "forward" else "diffractionnet_vjp",
        "kind": kind,
        "process": {"period_um": 2.0},
        "wavelengths_nm": WAVELENGTHS_NM,
        "channels": CHANNELS,
        "units": {"spectra": "efficiency", "wavelengths": "nm"},
        "input": {"name": "structure", "solid": 1.0, "void": 0.0},
    }


def five_channel_model(kind: str = "forward") -> onnx.ModelProto:
    """The model, or, for kind "vjp", its vector-Jacobian product."""
    shapes = {"structure": [1, 128, 128], "spectra": [5, 7], "cotangent": [5, 7], "gradient": [1, 128, 128]}
    constants = {
        "weight": WEIGHT,
        "pixel": np.full((1, 1, 128, 128), 1 / 128**2, np.float32),
        "axes": np.array([1, 2]),
        "one": np.array([-1, 1, 1]),
        "four": np.array([-1, 1, 1, 1]),
    }
    steps = [
        ("GlobalAveragePool", ["structure"], "mean"),
        ("Reshape", ["mean", "one"], "density"),
        ("Mul", ["density", "weight"], "spectra"),
    ]
    inputs, outputs = ["structure"], ["spectra"]
    if kind == "vjp":
        steps += [
            ("Mul", ["cotangent", "weight"], "product"),
            ("ReduceSum", ["product", "axes"], "sum"),
            ("Reshape", ["sum", "four"], "slope"),
            ("Mul", ["slope", "pixel"], "gradient"),
        ]
        inputs, outputs = ["structure", "cotangent"], ["spectra", "gradient"]
    nodes = [helper.make_node(operator, given, [made]) for operator, given, made in steps]
    used = {name for node in nodes for name in node.input}
    tensors = [[_value(name, shapes[name]) for name in names] for names in (inputs, outputs)]
    weights = [numpy_helper.from_array(value, name) for name, value in constants.items() if name in used]
    graph = helper.make_graph(nodes, "five_channels", *tensors, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(model, {"metaspec": json.dumps(metadata(kind))})
    return model


def spectra_of(structures: np.ndarray) -> np.ndarray:
    """What the model computes."""
    return structures.reshape(-1, 128 * 128).mean(axis=1)[:, None, None] * WEIGHT


def gradient_of(cotangent: np.ndarray) -> np.ndarray:
    """What its vector-Jacobian product computes."""
    slope = (cotangent * WEIGHT).sum(axis=(-2, -1)) / 128**2
    return np.broadcast_to(slope[..., None, None], (*slope.shape, 128, 128))


def _value(name: str, shape: list[int]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", *shape])
