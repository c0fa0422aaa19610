"""The forward graph: a trained network as ONNX, from density (N, 1, 128, 128) to spectra (N, 4, wavelengths)."""

from __future__ import annotations

import hashlib

import onnx
import torch
from metaspec_simulation import PIXELS
from onnx import numpy_helper
from torch import Tensor, nn

OPSET = 20


class _Served(nn.Module):
    """The network with its output as it is served: detectors along one axis."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, structure: Tensor) -> Tensor:
        return self.network(structure).flatten(1, 2)


def forward_graph(network: nn.Module) -> onnx.ModelProto:
    """Trace a network in evaluation mode, with a free batch size N."""
    example = torch.zeros(2, 1, PIXELS, PIXELS)
    program = torch.onnx.export(
        _Served(network).eval(),
        (example,),
        dynamo=True,
        opset_version=OPSET,
        input_names=["structure"],
        output_names=["spectra"],
        dynamic_shapes={"structure": {0: torch.export.Dim("N", min=1, max=2**20)}},
        verbose=False,
    )
    if program is None:
        raise RuntimeError("torch.onnx.export returned no program")
    model = program.model_proto
    onnx.checker.check_model(model)
    return model


def weights_sha256(model: onnx.ModelProto) -> str:
    """SHA-256 over the initializers: each one's name, then its raw little-endian bytes, in order of name."""
    digest = hashlib.sha256()
    for tensor in sorted(model.graph.initializer, key=lambda tensor: tensor.name):
        array = numpy_helper.to_array(tensor)
        digest.update(tensor.name.encode())
        digest.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()
