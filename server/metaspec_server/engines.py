"""Engines: what runs a micro-batch. One interface, ONNX Runtime behind it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from metaspec_server.repository import ModelFile, ModelMetadata, RepositoryError, parse_metadata

Rows = dict[str, NDArray[np.generic]]
"""Named tensors of one micro-batch; the first axis of each counts structures."""

PREFERRED_PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")

_DTYPES: dict[str, np.dtype[Any]] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(float16)": np.dtype(np.float16),
    "tensor(double)": np.dtype(np.float64),
}


@dataclass(frozen=True)
class TensorSpec:
    """A tensor of a model, without its batch axis.

    Attributes:
        name: in the graph.
        dtype: of its elements.
        shape: of one row.
    """

    name: str
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]


class Engine(Protocol):
    """Something that computes micro-batches. `run` is called by one thread at a time."""

    metadata: ModelMetadata
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    platform: str

    def run(self, rows: Rows) -> Rows:
        """Outputs of a micro-batch, row for row."""
        ...


class OnnxEngine:
    """A model run by ONNX Runtime in this process, on CUDA where that is installed.

    Args:
        file: the model.
        threads: to compute with.

    Raises:
        RepositoryError: the file is damaged, or its tensors do not start with a free batch axis.
    """

    def __init__(self, file: ModelFile, threads: int) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        options.enable_mem_pattern = False  # patterns are kept per batch size: they only grow
        available = ort.get_available_providers()
        providers = [name for name in PREFERRED_PROVIDERS if name in available]
        try:
            self._session = ort.InferenceSession(str(file.path), options, providers=providers)
        except Exception as error:  # ONNX Runtime has no base class for what a damaged file raises
            raise RepositoryError(file.path, f"ONNX Runtime cannot load it: {str(error).splitlines()[0]}") from error
        self.metadata = parse_metadata(file, self._session.get_modelmeta().custom_metadata_map)
        self.inputs = tuple(_spec(file, argument) for argument in self._session.get_inputs())
        self.outputs = tuple(_spec(file, argument) for argument in self._session.get_outputs())
        if self.metadata.input.name not in {spec.name for spec in self.inputs}:
            raise RepositoryError(file.path, f"has no input {self.metadata.input.name!r}, though its metadata says so")
        self.platform = f"onnxruntime {ort.__version__} {self._session.get_providers()[0]}"

    def run(self, rows: Rows) -> Rows:
        """Outputs of a micro-batch, row for row."""
        names = [spec.name for spec in self.outputs]
        return dict(zip(names, self._session.run(names, rows), strict=True))


def warm_up(engine: Engine, sizes: tuple[int, ...]) -> None:
    """Run each batch size once, so that no caller pays for first-time allocation and kernel choice."""
    for size in sizes:
        engine.run({spec.name: np.zeros((size, *spec.shape), spec.dtype) for spec in engine.inputs})


def _spec(file: ModelFile, argument: ort.NodeArg) -> TensorSpec:
    if argument.type not in _DTYPES:
        raise RepositoryError(file.path, f"tensor {argument.name!r} has type {argument.type}, expected a float tensor")
    batch, *shape = argument.shape
    if isinstance(batch, int) or not all(isinstance(size, int) for size in shape):
        raise RepositoryError(
            file.path, f"tensor {argument.name!r} has shape {argument.shape}, expected [N, fixed, ...]"
        )
    return TensorSpec(argument.name, _DTYPES[argument.type], tuple(shape))
