"""Weights stored in half precision."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from metaspec_export.half_weights import HalfWeightsError, halve, require_close
from metaspec_export.metadata import read


def product(weight: np.ndarray) -> onnx.ModelProto:
    """y = (x + shift) @ weight."""
    nodes = [helper.make_node("Add", ["x", "shift"], ["moved"]), helper.make_node("MatMul", ["moved", "weight"], ["y"])]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 8]) for name in "xy"]
    constants = [
        numpy_helper.from_array(weight, "weight"),
        numpy_helper.from_array(np.full(8, 1.0001, np.float32), "shift"),
    ]
    graph = helper.make_graph(nodes, "product", values[:1], values[1:], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def test_computation_stays_in_single_precision() -> None:
    rng = np.random.default_rng(0)
    weight, x = rng.standard_normal((8, 8), np.float32), rng.standard_normal((3, 8), np.float32)
    halved = halve(product(weight), {"weight", "of another graph"})
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in halved.graph.initializer}
    assert {name: values.dtype for name, values in stored.items()} == {"weight.half": np.float16, "shift": np.float32}
    (got,) = onnxruntime.InferenceSession(halved.SerializeToString()).run(None, {"x": x})
    exact = (x + np.float32(1.0001)) @ weight.astype(np.float16).astype(np.float32)
    np.testing.assert_allclose(got, exact, rtol=1e-5, atol=1e-6)
    assert np.abs(exact - (x + np.float32(1.0001)) @ weight).max() > 1e-4


@pytest.mark.parametrize("value", [7e4, float("nan")])
def test_weights_beyond_half_precision_are_refused(value: float) -> None:
    weight = np.ones((8, 8), np.float32)
    weight[2, 3] = value
    with pytest.raises(HalfWeightsError, match="--half-weights refused: weight has values up to"):
        halve(product(weight), {"weight"})


@pytest.mark.parametrize("change", [1.1e-4, float("nan")])
def test_a_change_past_the_allowed_one_is_refused(change: float) -> None:
    require_close(1e-4)
    with pytest.raises(HalfWeightsError, match=r"the largest change of an efficiency is .*, allowed is 1e-04"):
        require_close(change)


@pytest.mark.slow
def test_the_command_stores_half_weights(
    command: Callable[..., subprocess.CompletedProcess[str]],
    checkpoint: Path,
    data: Path,
    tmp_path: Path,
) -> None:
    result = command(
        checkpoint,
        "--repository",
        tmp_path / "models",
        "--data",
        data,
        "--no-gradient",
        "--half-weights",
        "--precision",
        "fp32,int8",
        "--allow-dirty",
    )
    assert result.returncode == 0, result.stderr
    assert "Weights stored in half precision change an efficiency by" in result.stdout
    model = onnx.load(tmp_path / "models" / "diffractionnet" / "1" / "model.onnx")
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    assert kinds["network.stem.3.first.weight.half"] == TensorProto.FLOAT16
    assert kinds["network.head.2.weight"] == TensorProto.FLOAT
    assert read(model).precision == "fp32"
    integer = onnx.load(tmp_path / "models" / "diffractionnet_int8" / "1" / "model.onnx")
    kept = {tensor.name for tensor in integer.graph.initializer if tensor.data_type == TensorProto.FLOAT16}
    assert kept, "those of its weights that are not integers"
    assert 0 < read(integer).deviation["max_abs"] < 0.05, "measured as stored, against fp32"
