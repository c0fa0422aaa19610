"""The graphs: the gradient against autograd and finite differences, reduced precisions, and what engines ask of a graph."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from metaspec_contract.process import Process
from metaspec_export.graph import OperatorError, forward_graph, gradient_graph, require_portable
from metaspec_export.parity import ParityError, check_gradient_parity, check_parity, run, session
from metaspec_export.precision import Deviation, DeviationError, Precision, deviation, reduce, require_within
from metaspec_training.networks.beam import BeamFeatures
from metaspec_training.networks.query import DiffractionNetConfig

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # tracing takes minutes on a busy machine

STRUCTURES = np.random.default_rng(0).integers(0, 2, (5, 128, 128), np.uint8)
DECODER = DiffractionNetConfig(channels=32, width=16, blocks=1, heads=2, wavelengths=31)
BASELINE = replace(DiffractionNetConfig.baseline(), channels=32, width=16, blocks=1, heads=2, wavelengths=31)

Graph = Callable[[str], onnx.ModelProto]
Traced = tuple[nn.Module, onnx.ModelProto]


def small(config: DiffractionNetConfig) -> nn.Module:
    """A decoder whose encoder has one residual block on most of its maps: more would only be traced again and again."""
    torch.manual_seed(0)
    network = config.build().eval()
    for stage in list(network.encoder.stages)[1:]:
        assert isinstance(stage, nn.Sequential)
        stage[1] = nn.Identity()
    return network


class Beam(nn.Module):
    """The wave under the layer alone, as efficiencies (N, 2, 2, 31)."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features = BeamFeatures(Process(), 16, 4 * 31)

    def forward(self, density: Tensor) -> Tensor:
        wave: Tensor = self.features(density)
        return wave.square().mean(dim=(2, 3)).reshape(-1, 2, 2, 31)


@pytest.fixture(scope="module")
def beam() -> Iterator[Traced]:
    """With two slices: more are the same operators again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("metaspec_training.networks.beam.SLICES", 2)
        network = Beam().eval()
        yield network, gradient_graph(network)


@pytest.fixture(params=["field", "beam"])
def traced(request: pytest.FixtureRequest) -> Traced:
    """A network and its gradient graph; `test_own_data` exports that of a decoder."""
    if request.param == "beam":
        found: Traced = request.getfixturevalue("beam")
        return found
    return request.getfixturevalue("network"), request.getfixturevalue("graph")("diffractionnet_vjp")


@pytest.fixture
def gradient_model(graph: Graph) -> onnx.ModelProto:
    return graph("diffractionnet_vjp")


def test_the_gradient_is_that_of_autograd_and_of_finite_differences(traced: Traced) -> None:
    trained, graph = traced
    parity = check_gradient_parity(trained, graph.SerializeToString(), STRUCTURES)
    assert parity.spectra <= 1e-5
    assert 0 < parity.autograd <= 1e-4
    assert 0 < parity.finite_differences <= 1e-4


def test_the_gradient_is_linear_in_the_cotangent_row_by_row(gradient_model: onnx.ModelProto) -> None:
    served = session(gradient_model.SerializeToString())
    cotangent = np.random.default_rng(1).standard_normal((5, 4, 31), np.float32)
    scale = np.array([0, 1, -2, 1e-3, 1], np.float32)
    once = run(served, STRUCTURES, cotangent)[1]
    scaled = run(served, STRUCTURES, cotangent * scale[:, None, None])[1]
    np.testing.assert_allclose(scaled, once * scale[:, None, None, None], rtol=1e-3, atol=1e-6 * np.abs(once).max())
    assert (scaled[0] == 0).all()


def test_a_wrong_gradient_is_found_out(network: nn.Module, gradient_model: onnx.ModelProto) -> None:
    doubled = gradient_model
    for node in doubled.graph.node:
        node.output[:] = ["half" if name == "gradient" else name for name in node.output]
    doubled.graph.node.append(helper.make_node("Add", ["half", "half"], ["gradient"]))
    with pytest.raises(ParityError, match=r"deviates from torch\.autograd"):
        check_gradient_parity(network, doubled.SerializeToString(), STRUCTURES[:2])


def test_a_wrong_graph_is_found_out(network: nn.Module, graph: Graph) -> None:
    other = copy.deepcopy(network)
    with torch.no_grad():
        list(other.parameters())[-1].add_(0.01)  # bias of the head
    with pytest.raises(ParityError, match="deviates from PyTorch"):
        check_parity(other, graph("diffractionnet").SerializeToString(), STRUCTURES[:2])


@pytest.mark.parametrize("kind", ["field", "decoder", "baseline"])
def test_a_forward_graph_computes_only_what_depends_on_the_structure(
    kind: str, network: nn.Module, graph: Graph
) -> None:
    if kind == "field":
        trained, model = network, graph("diffractionnet")
    else:
        trained = small(DECODER if kind == "decoder" else BASELINE)
        model = forward_graph(trained)
    require_portable(model)
    assert b".py" not in model.SerializeToString(), "no stack traces, with paths of the machine"
    assert "Shape" not in {node.op_type for node in model.graph.node}
    assert check_parity(trained, model.SerializeToString(), STRUCTURES) <= 1e-5
    alive = {"structure"}
    for node in model.graph.node:
        if alive.intersection(node.input):
            alive.update(node.output)
        else:  # weights that an engine rearranges when it loads
            assert node.op_type in {"Gather", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}


def test_gradient_graphs_stay_on_the_gpu(traced: Traced) -> None:
    require_portable(traced[1])
    assert sum(node.op_type == "Shape" for node in traced[1].graph.node) <= 1


def test_operators_that_leave_the_gpu_are_named() -> None:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 8]) for name in "ab"]
    graph = helper.make_graph([helper.make_node("NonZero", ["a"], ["b"])], "odd", values[:1], values[1:])
    with pytest.raises(OperatorError, match="NonZero"):
        require_portable(helper.make_model(graph))


@pytest.mark.parametrize(
    ("traced", "precision"), [("field", "fp16"), ("field", "int8"), ("beam", "fp16")], indirect=["traced"]
)
def test_reduced_precision(traced: Traced, precision: Precision, process: Process) -> None:
    gradient_model = traced[1]
    reduced = reduce(gradient_model, precision, STRUCTURES)
    if precision == "fp16":  # the backward pass of int8 has its weights in float32, beside those of the forward pass
        assert reduced.ByteSize() < gradient_model.ByteSize()
    cotangent = np.random.default_rng(1).standard_normal((5, 4, 31), np.float32)
    cotangent *= np.array([1, 1e-6, 0, 1e4, 1], np.float32)[:, None, None]
    expected, got = (
        run(session(model.SerializeToString()), STRUCTURES, cotangent) for model in (gradient_model, reduced)
    )
    measured = deviation(tuple(got), tuple(expected), process)
    assert measured.max_abs > 0
    assert set(measured.colour) == {"R", "G", "B"}
    # The allowed deviation of the gradient is made for trained networks.
    require_within(replace(measured, gradient=None), precision)
    for row in (0, 1, 3, 4):  # the relative error does not depend on the size of the cotangent
        difference = np.linalg.norm(got[1][row] - expected[1][row]) / np.linalg.norm(expected[1][row])
        assert 0 < difference < 0.3
    assert (got[1][2] == 0).all()


def test_int8_quantises_convolutions_of_the_forward_pass_only(graph: Graph) -> None:
    forward, joint = (reduce(graph(name), "int8", STRUCTURES) for name in ("diffractionnet", "diffractionnet_vjp"))
    for model in (forward, joint):
        assert sum(node.op_type == "QLinearConv" for node in model.graph.node) == 6  # two in each residual block
    assert forward.ByteSize() < graph("diffractionnet").ByteSize()


def test_colours_without_wavelengths_do_not_count() -> None:
    process = Process(wavelength_min_nm=620, wavelength_max_nm=680)
    exact = np.full((2, 4, 61), 0.2, np.float32)
    measured = deviation((exact + np.float32(1e-3),), (exact,), process)
    assert measured.colour == {"R": pytest.approx(1e-3, rel=1e-3)}


@pytest.mark.parametrize(
    ("measured", "message"),
    [
        (
            Deviation(0.3, 1e-4, {"B": 1e-4}),
            "int8 refused: largest deviation of an efficiency from float32 is 3.0e-01",
        ),
        (Deviation(0.01, 2e-3, {"B": 1e-4}), "mean deviation of efficiencies from float32 is 2.0e-03"),
        (Deviation(0.01, 1e-4, {"B": 1e-4, "R": 0.02}), "largest change of a colour's efficiency"),
        (Deviation(0.01, 1e-4, {"B": 1e-4}, 0.5), "relative deviation of the gradient"),
        (Deviation(float("nan"), 1e-4, {"B": 1e-4}), "is nan"),
    ],
)
def test_deviations_past_the_tolerance_are_refused(measured: Deviation, message: str) -> None:
    with pytest.raises(DeviationError, match=message):
        require_within(measured, "int8")
