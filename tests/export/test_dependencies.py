"""Interfaces of dependencies that are private or change often: where a release breaks the export, these fail first."""

from __future__ import annotations

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from metaspec_contract.structures import PIXELS
from metaspec_export.graph.forward import to_onnx
from metaspec_export.graph.joint import constants, trace_joint
from metaspec_export.precision import reduce


class Small(nn.Module):
    """Every kind of operator whose gradient or export is written by hand: (N, 1, y, x) to (N, 2, 2, x / 2)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 4, 3, stride=2), nn.GroupNorm(2, 4), nn.SiLU(), nn.Conv2d(4, 4, 3, padding=1)
        )

    def forward(self, structure: Tensor) -> Tensor:
        y: Tensor = self.layers(structure).mean(dim=2).unflatten(1, (2, 2))
        return y


class Folded(nn.Module):
    """A product with something that follows from a constant."""

    table: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.linspace(0, 1, 2000))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.table.sin().cos()


def test_the_private_tracer_of_pytorch_returns_values_and_gradient() -> None:
    torch.manual_seed(0)
    network = Small().eval()
    graph = trace_joint(network, (1, 16, 16))
    for batch in (1, 5):
        x = torch.randn(batch, 1, 16, 16, requires_grad=True)
        expected = network(x).flatten(1, -2)
        cotangent = torch.randn_like(expected)
        (wanted,) = torch.autograd.grad(expected, x, cotangent)
        (y,), (gradient, *_) = graph([x.detach(), *constants(network).values()], [cotangent])
        torch.testing.assert_close(y, expected.detach())
        torch.testing.assert_close(gradient, wanted)


def test_onnxscript_folds_what_follows_from_constants() -> None:
    model = to_onnx(Folded().eval(), {"x": torch.zeros(2, 2000)}, ["y"])
    assert [node.op_type for node in model.graph.node] == ["Mul"]
    x = np.random.default_rng(0).standard_normal((3, 2000), np.float32)
    (y,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})
    np.testing.assert_allclose(y, x * np.cos(np.sin(np.linspace(0, 1, 2000))), rtol=1e-5, atol=1e-6)


def test_the_float16_converter_of_onnx_runtime() -> None:
    torch.manual_seed(0)
    model = to_onnx(Small().eval(), {"structure": torch.zeros(2, 1, PIXELS, PIXELS)}, ["spectra"])
    structures = np.random.default_rng(0).integers(0, 2, (4, PIXELS, PIXELS), np.uint8)
    reduced = reduce(model, "fp16", structures)
    assert "Cast" in {node.op_type for node in reduced.graph.node}
    feed = {"structure": structures[:, None].astype(np.float32)}
    expected, got = (
        onnxruntime.InferenceSession(one.SerializeToString()).run(None, feed)[0] for one in (model, reduced)
    )
    assert 0 < np.abs(got - expected).max() < 0.05 * np.abs(expected).max()
