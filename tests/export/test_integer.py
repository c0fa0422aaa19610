"""Convolutions in 8-bit integers, on a small circular network, against float32."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from metaspec_contract.structures import PIXELS
from metaspec_export.graph.forward import to_onnx
from metaspec_export.integer import quantise_convolutions
from metaspec_training.networks.layers import CircularConv

STRUCTURES = np.random.default_rng(0).integers(0, 2, (20, PIXELS, PIXELS), np.uint8)


class Circular(nn.Module):
    """Circular convolutions with and without bias and stride, and a branch beside them: (N, 1, y, x) to (N, 2, 2, 64)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = CircularConv(1, 8, 5, stride=2)
        self.first = CircularConv(8, 8, 3)
        self.second = CircularConv(8, 4, 3, bias=False)
        self.skip = nn.Conv2d(8, 4, 1)
        with torch.no_grad():  # channels of very different size
            self.first.weight *= torch.logspace(-2, 0, 8)[:, None, None, None]

    def forward(self, structure: Tensor) -> Tensor:
        x = self.stem(structure).relu()
        y: Tensor = self.second(self.first(x).sigmoid()) + self.skip(x)
        return y.mean(dim=2).reshape(-1, 2, 2, y.shape[-1])


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    torch.manual_seed(0)
    return to_onnx(Circular().eval(), {"structure": torch.zeros(2, 1, PIXELS, PIXELS)}, ["spectra"])


@pytest.fixture(scope="module")
def quantised(model: onnx.ModelProto) -> onnx.ModelProto:
    return quantise_convolutions(model, STRUCTURES)


def run(model: onnx.ModelProto, structures: np.ndarray, output: str | None = None) -> np.ndarray:
    if output is not None:
        model = onnx.ModelProto.FromString(model.SerializeToString())
        model.graph.output.append(onnx.ValueInfoProto(name=output))
    session = onnxruntime.InferenceSession(model.SerializeToString())
    found: np.ndarray = session.run(None, {"structure": structures[:, None].astype(np.float32)})[-1]
    return found


def test_only_convolutions_of_3_x_3_and_several_channels_are_quantised(
    model: onnx.ModelProto, quantised: onnx.ModelProto
) -> None:
    before = [node.op_type for node in model.graph.node]
    after = [node.op_type for node in quantised.graph.node]
    assert before.count("Conv") == 4
    assert (after.count("QLinearConv"), after.count("Conv")) == (2, 2)
    assert set(after) - set(before) == {"QuantizeLinear", "QLinearConv", "DequantizeLinear"}
    assert after.count("QuantizeLinear") == 2, "each input once, before its margins are copied"
    assert after.count("Concat") == before.count("Concat")


def test_each_quantised_convolution_is_that_of_the_rounded_numbers(
    model: onnx.ModelProto, quantised: onnx.ModelProto
) -> None:
    """Within half a step of the output of what float32 makes of the same rounded activations and weights."""
    tensors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in quantised.graph.initializer}
    floats = {node.output[0]: node for node in model.graph.node if node.op_type == "Conv"}
    for node in (node for node in quantised.graph.node if node.op_type == "QLinearConv"):
        name, zero = node.output[0], tensors[node.input[2]]
        padded = run(quantised, STRUCTURES[:2], node.input[0]).astype(np.float32) - zero
        kernel = tensors[node.input[3]].astype(np.float32) * tensors[node.input[4]][:, None, None, None]
        scale, zero_out = tensors[node.input[6]], tensors[node.input[7]]
        original = floats[name.removesuffix("_quantised")]
        bias = (
            0 if len(original.input) < 3 else tensors[node.input[8]] * tensors[node.input[1]] * tensors[node.input[4]]
        )
        exact = torch.conv2d(torch.from_numpy(padded * tensors[node.input[1]]), torch.from_numpy(kernel)).numpy()
        exact += np.reshape(bias, (-1, 1, 1)) if np.ndim(bias) else 0
        got = run(quantised, STRUCTURES[:2], name).astype(np.float32)
        steps = np.clip(exact / scale + zero_out, 0, 255)
        assert np.abs(got - steps).max() <= 0.51
        assert got.max() - got.min() > 200, "the range is used"


def test_spectra_are_close_to_float32(model: onnx.ModelProto, quantised: onnx.ModelProto) -> None:
    unseen = np.random.default_rng(1).integers(0, 2, (5, PIXELS, PIXELS), np.uint8)
    expected, got = run(model, unseen), run(quantised, unseen)
    assert 0 < np.abs(got - expected).max() < 0.02 * np.abs(expected).max()


def test_margins_are_periodic_in_bytes_too(quantised: onnx.ModelProto) -> None:
    moved = np.roll(STRUCTURES[:3], 32, axis=2)
    np.testing.assert_array_equal(run(quantised, moved), np.roll(run(quantised, STRUCTURES[:3]), 16, axis=3))
