"""The graphs: the gradient against autograd and finite differences, reduced precisions, and what engines ask of a graph."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from metaspec_contract.process import Process
from metaspec_export.graph.forward import forward_graph
from metaspec_export.graph.gradient import gradient_graph
from metaspec_export.graph.operators import OperatorError, require_portable
from metaspec_export.parity import ParityError, check_gradient_parity, check_parity, run, session
from metaspec_export.precision import Deviation, DeviationError, deviation, reduce, require_within
from metaspec_training.networks.field import DiffractionFieldNetConfig
from metaspec_training.networks.query import DiffractionNetConfig

STRUCTURES = np.random.default_rng(0).integers(0, 2, (5, 128, 128), np.uint8)
FIELD = DiffractionFieldNetConfig(width=32, blocks=1)
DECODER = DiffractionNetConfig(width=32, blocks=1, heads=2)


def network(config: DiffractionFieldNetConfig | DiffractionNetConfig) -> nn.Module:
    torch.manual_seed(0)
    return config.build().eval()


@cache  # tracing takes long
def trace(config: DiffractionFieldNetConfig | DiffractionNetConfig) -> tuple[nn.Module, onnx.ModelProto]:
    trained = network(config)
    return trained, gradient_graph(trained)


@pytest.fixture(params=[FIELD, DECODER], ids=["field", "decoder"])
def traced(request: pytest.FixtureRequest) -> tuple[nn.Module, onnx.ModelProto]:
    return trace(request.param)


@pytest.fixture
def field() -> tuple[nn.Module, onnx.ModelProto]:
    return trace(FIELD)


def test_the_gradient_is_that_of_autograd_and_of_finite_differences(traced: tuple[nn.Module, onnx.ModelProto]) -> None:
    trained, graph = traced
    parity = check_gradient_parity(trained, graph.SerializeToString(), STRUCTURES)
    assert parity.spectra <= 1e-5
    assert 0 < parity.autograd <= 1e-4
    assert 0 < parity.finite_differences <= 1e-4


def test_the_gradient_is_linear_in_the_cotangent_row_by_row(field: tuple[nn.Module, onnx.ModelProto]) -> None:
    served = session(field[1].SerializeToString())
    cotangent = np.random.default_rng(1).standard_normal((5, 4, 301), np.float32)
    scale = np.array([0, 1, -2, 1e-3, 1], np.float32)
    once = run(served, STRUCTURES, cotangent)[1]
    scaled = run(served, STRUCTURES, cotangent * scale[:, None, None])[1]
    np.testing.assert_allclose(scaled, once * scale[:, None, None, None], rtol=1e-3, atol=1e-6 * np.abs(once).max())
    assert (scaled[0] == 0).all()


def test_a_wrong_gradient_is_found_out(field: tuple[nn.Module, onnx.ModelProto]) -> None:
    trained, graph = field
    doubled = onnx.ModelProto()
    doubled.CopyFrom(graph)
    for node in doubled.graph.node:
        node.output[:] = ["half" if name == "gradient" else name for name in node.output]
    doubled.graph.node.append(helper.make_node("Add", ["half", "half"], ["gradient"]))
    with pytest.raises(ParityError, match=r"deviates from torch\.autograd"):
        check_gradient_parity(trained, doubled.SerializeToString(), STRUCTURES[:2])


@pytest.mark.parametrize(
    "config", [FIELD, DECODER, DiffractionNetConfig.baseline()], ids=["field", "decoder", "baseline"]
)
def test_a_forward_graph_computes_only_what_depends_on_the_structure(config: DiffractionFieldNetConfig) -> None:
    trained = network(config)
    graph = forward_graph(trained)
    require_portable(graph)
    assert "Shape" not in {node.op_type for node in graph.graph.node}
    assert check_parity(trained, graph.SerializeToString(), STRUCTURES) <= 1e-5
    alive = {"structure"}
    for node in graph.graph.node:
        if alive.intersection(node.input):
            alive.update(node.output)
        else:  # weights that an engine rearranges when it loads
            assert node.op_type in {"Gather", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}


def test_gradient_graphs_stay_on_the_gpu(traced: tuple[nn.Module, onnx.ModelProto]) -> None:
    require_portable(traced[1])
    assert sum(node.op_type == "Shape" for node in traced[1].graph.node) <= 1


def test_operators_that_leave_the_gpu_are_named() -> None:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 8]) for name in "ab"]
    graph = helper.make_graph([helper.make_node("NonZero", ["a"], ["b"])], "odd", values[:1], values[1:])
    with pytest.raises(OperatorError, match="NonZero"):
        require_portable(helper.make_model(graph))


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_reduced_precision(field: tuple[nn.Module, onnx.ModelProto], precision: str) -> None:
    exact = field[1]
    before = exact.SerializeToString()
    reduced = reduce(exact, precision, STRUCTURES)
    assert exact.SerializeToString() == before
    assert reduced.ByteSize() < exact.ByteSize()
    cotangent = np.random.default_rng(1).standard_normal((5, 4, 301), np.float32)
    cotangent *= np.array([1, 1e-6, 0, 1e4, 1], np.float32)[:, None, None]
    expected, got = (run(session(model.SerializeToString()), STRUCTURES, cotangent) for model in (exact, reduced))
    measured = deviation(tuple(got), tuple(expected), Process())
    assert measured.max_abs > 0
    require_within(measured, precision)
    for row in (0, 1, 3, 4):  # cotangents of every size are worth the same
        difference = np.linalg.norm(got[1][row] - expected[1][row]) / np.linalg.norm(expected[1][row])
        assert 0 < difference < 0.1
    assert (got[1][2] == 0).all()


def test_int8_quantises_convolutions_of_the_forward_pass_only(field: tuple[nn.Module, onnx.ModelProto]) -> None:
    forward, joint = (
        sum(node.op_type == "DequantizeLinear" for node in reduce(graph, "int8", STRUCTURES).graph.node)
        for graph in (forward_graph(field[0]), field[1])
    )
    assert forward > 10
    assert abs(joint - forward) <= 4


@pytest.mark.parametrize(
    ("measured", "message"),
    [
        (
            Deviation(0.3, 1e-4, {"blue": 1e-4}),
            "int8 refused: largest deviation of an efficiency from float32 is 3.0e-01",
        ),
        (Deviation(0.01, 2e-3, {"blue": 1e-4}), "mean deviation of efficiencies from float32 is 2.0e-03"),
        (Deviation(0.01, 1e-4, {"blue": 1e-4, "red": 0.02}), "largest change of a colour's efficiency"),
        (Deviation(0.01, 1e-4, {"blue": 1e-4}, 0.5), "relative deviation of the gradient"),
        (Deviation(float("nan"), 1e-4, {"blue": 1e-4}), "is nan"),
    ],
)
def test_deviations_past_the_tolerance_are_refused(measured: Deviation, message: str) -> None:
    with pytest.raises(DeviationError, match=message):
        require_within(measured, "int8")
