"""A real model of five channels and seven wavelengths: spectra are the mean density times a constant for each of them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import onnx
from numpy.typing import ArrayLike, NDArray
from onnx import TensorProto, helper, numpy_helper

from metaspec_contract.detectors import CHANNELS as DETECTORS
from metaspec_contract.detectors import SPREAD
from metaspec_contract.model import COTANGENT, DEFAULT_MODEL, GRADIENT, METADATA_KEY, SPECTRA, STRUCTURE, gradient_model
from metaspec_contract.process import Process
from metaspec_contract.structures import PIXELS
from metaspec_testing.small_models import METADATA

PROCESS = Process(wavelength_step_nm=50)
CHANNELS = [*DETECTORS, SPREAD]
WAVELENGTHS_NM = PROCESS.wavelengths_nm.tolist()
WEIGHT = np.random.default_rng(3).uniform(0, 0.2, (len(CHANNELS), len(WAVELENGTHS_NM))).astype(np.float32)


def metadata(kind: str) -> dict[str, Any]:
    """Metadata of the model of a kind, "forward" or "vjp"."""
    return METADATA | {
        "name": DEFAULT_MODEL if kind == "forward" else gradient_model(DEFAULT_MODEL),
        "kind": kind,
        "process": PROCESS.model_dump(mode="json"),
        "wavelengths_nm": WAVELENGTHS_NM,
        "channels": CHANNELS,
    }


def five_channel_model(kind: str = "forward") -> onnx.ModelProto:
    """The model, or, for kind "vjp", its vector-Jacobian product."""
    structure, spectra = [1, PIXELS, PIXELS], list(WEIGHT.shape)
    shapes = {STRUCTURE: structure, SPECTRA: spectra, COTANGENT: spectra, GRADIENT: structure}
    constants: dict[str, NDArray[Any]] = {
        "weight": WEIGHT,
        "pixel": np.full((1, 1, PIXELS, PIXELS), 1 / PIXELS**2, np.float32),
        "axes": np.array([1, 2]),
        "one": np.array([-1, 1, 1]),
        "four": np.array([-1, 1, 1, 1]),
    }
    steps = [
        ("GlobalAveragePool", [STRUCTURE], "mean"),
        ("Reshape", ["mean", "one"], "density"),
        ("Mul", ["density", "weight"], SPECTRA),
    ]
    inputs, outputs = [STRUCTURE], [SPECTRA]
    if kind == "vjp":
        steps += [
            ("Mul", [COTANGENT, "weight"], "product"),
            ("ReduceSum", ["product", "axes"], "sum"),
            ("Reshape", ["sum", "four"], "slope"),
            ("Mul", ["slope", "pixel"], GRADIENT),
        ]
        inputs, outputs = [STRUCTURE, COTANGENT], [SPECTRA, GRADIENT]
    nodes = [helper.make_node(operator, given, [made]) for operator, given, made in steps]
    used = {name for node in nodes for name in node.input}
    tensors = [[_value(name, shapes[name]) for name in names] for names in (inputs, outputs)]
    weights = [numpy_helper.from_array(value, name) for name, value in constants.items() if name in used]
    graph = helper.make_graph(nodes, "five_channels", tensors[0], tensors[1], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(model, {METADATA_KEY: json.dumps(metadata(kind))})
    return model


def spectra_of(structures: ArrayLike) -> NDArray[np.floating]:
    """The model in numpy."""
    density: NDArray[np.floating] = np.asarray(structures).reshape(-1, PIXELS**2).mean(axis=1)
    return density[:, None, None] * WEIGHT


def gradient_of(cotangent: NDArray[np.floating]) -> NDArray[np.floating]:
    """Its vector-Jacobian product in numpy."""
    slope: NDArray[np.floating] = (cotangent * WEIGHT).sum(axis=(-2, -1)) / PIXELS**2
    return np.broadcast_to(slope[..., None, None], (*slope.shape, PIXELS, PIXELS))


def _value(name: str, shape: list[int]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", *shape])
