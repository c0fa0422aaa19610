"""ONNX Runtime in this process: the engine that runs micro-batches, and what a model file says of itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime as ort

from metaspec_contract.model import TensorSpec
from metaspec_server.core.tensors import Rows, count, gather
from metaspec_server.repository import ModelFile, ModelMetadata, RepositoryError, parse_metadata

_PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}

_DTYPES: dict[str, np.dtype[Any]] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(float16)": np.dtype(np.float16),
    "tensor(double)": np.dtype(np.float64),
}


@dataclass(frozen=True)
class Description:
    """What a loaded model is.

    Attributes:
        metadata: what it says of itself.
        inputs: tensors it takes.
        outputs: tensors it returns.
        platform: what computes it, for people.
    """

    metadata: ModelMetadata
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    platform: str


class OnnxEngine:
    """A model run by ONNX Runtime in this process.

    On a CPU a micro-batch is computed at its own size. On a GPU it is filled up to the next of a few sizes, each with
    tensors on the device that are allocated and bound once (and, if asked for, a CUDA graph that is recorded once).

    Args:
        file: the model.
        provider: cpu, cuda or tensorrt.
        threads: to compute with, on a CPU.
        max_batch: rows of a micro-batch at most; fewer of a model that takes several passes for each.
        device: number of the GPU.
        cuda_graphs: record the kernels of each batch size and replay them.

    Raises:
        RepositoryError: the file is damaged, its tensors do not start with a free batch axis, or the provider cannot run it.
    """

    def __init__(
        self,
        file: ModelFile,
        provider: str = "cpu",
        threads: int = 1,
        max_batch: int = 32,
        device: int = 0,
        cuda_graphs: bool = False,
    ) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        # Between micro-batches and beside them, the cores belong to those who parse requests and send answers.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        options.add_session_config_entry("session.dynamic_block_base", "4")
        options.enable_mem_pattern = False  # patterns are kept per batch size: they only grow
        self._session = _session(file, options, _providers(file, provider, device, cuda_graphs))
        if self._session.get_providers()[0] != _PROVIDERS[provider]:
            raise RepositoryError(file.path, f"ONNX Runtime could not start {_PROVIDERS[provider]} on this machine")
        self.about = _describe(file, self._session, f"onnxruntime {ort.__version__} {_PROVIDERS[provider]}")
        self.max_batch = max(1, max_batch // self.about.metadata.forward_passes)
        self._buffers = {spec.name: np.zeros((self.max_batch, *spec.shape), spec.dtype) for spec in self.about.inputs}
        self._bound: dict[int, _Bound] = {}
        if provider != "cpu":
            self._bind("cuda", device, cuda_graphs)
        self._warm_up(file)

    def run(self, pieces: Sequence[Rows]) -> Rows:
        """Outputs of a micro-batch that comes in pieces, row for row."""
        rows = gather(pieces, self.about.inputs, self._buffers)
        if self._bound:
            size = next(size for size in self._bound if size >= rows)
            results = self._bound[size].run({name: buffer[:size] for name, buffer in self._buffers.items()})
            return {name: array[:rows] for name, array in results.items()}
        names = [spec.name for spec in self.about.outputs]
        feed = {name: buffer[:rows] for name, buffer in self._buffers.items()}
        return dict(zip(names, self._session.run(names, feed), strict=True))

    def _bind(self, device_type: str, device: int, cuda_graphs: bool) -> None:
        """Allocate tensors on a device for each batch size: powers of two up to the largest."""
        sizes = sorted({min(1 << n, self.max_batch) for n in range(self.max_batch.bit_length() + 1)})
        self._bound = {
            size: _Bound(self._session, self.about, size, device_type, device, cuda_graphs) for size in sizes
        }

    def _warm_up(self, file: ModelFile) -> None:
        """Run every batch size once, so that no caller pays for first-time allocation and the choice of kernels."""
        for size in self._bound or (1, self.max_batch):
            results = self.run([{spec.name: np.zeros((size, *spec.shape), spec.dtype) for spec in self.about.inputs}])
            if count(results) != size:
                raise RepositoryError(file.path, f"returns {count(results)} rows for {size}")


class _Bound:
    """Tensors of one batch size on a device, bound to a session for good: what CUDA graphs ask for."""

    def __init__(
        self,
        session: ort.InferenceSession,
        about: Description,
        size: int,
        device_type: str,
        device: int,
        cuda_graphs: bool,
    ) -> None:
        def allocate(spec: TensorSpec) -> ort.OrtValue:
            return ort.OrtValue.ortvalue_from_shape_and_type((size, *spec.shape), spec.dtype.type, device_type, device)

        self._session = session
        self._inputs = {spec.name: allocate(spec) for spec in about.inputs}
        self._outputs = {spec.name: allocate(spec) for spec in about.outputs}
        self._binding = session.io_binding()
        for name, value in self._inputs.items():
            self._binding.bind_ortvalue_input(name, value)
        for name, value in self._outputs.items():
            self._binding.bind_ortvalue_output(name, value)
        self._options = ort.RunOptions()
        if cuda_graphs:
            self._options.add_run_config_entry("gpu_graph_id", str(size))

    def run(self, buffers: Rows) -> Rows:
        """Outputs of a full batch."""
        for name, value in self._inputs.items():
            value.update_inplace(buffers[name])
        self._session.run_with_iobinding(self._binding, self._options)
        return {name: value.numpy() for name, value in self._outputs.items()}


def best_provider() -> str:
    """What `auto` stands for: cuda where ONNX Runtime has it, else cpu. TensorRT takes minutes to start: ask for it."""
    return "cuda" if _PROVIDERS["cuda"] in ort.get_available_providers() else "cpu"


def describe(file: ModelFile, platform: str) -> Description:
    """What a model file is, without making it ready to compute.

    Raises:
        RepositoryError: as `OnnxEngine` does.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return _describe(file, _session(file, options, ["CPUExecutionProvider"]), platform)


def _session(file: ModelFile, options: ort.SessionOptions, providers: list[Any]) -> ort.InferenceSession:
    try:
        return ort.InferenceSession(str(file.path), options, providers=providers)
    except Exception as error:  # ONNX Runtime has no base class for what a damaged file raises
        raise RepositoryError(file.path, f"ONNX Runtime cannot load it: {str(error).splitlines()[0]}") from error


def _describe(file: ModelFile, session: ort.InferenceSession, platform: str) -> Description:
    metadata = parse_metadata(file, session.get_modelmeta().custom_metadata_map)
    inputs = tuple(_spec(file, argument) for argument in session.get_inputs())
    outputs = tuple(_spec(file, argument) for argument in session.get_outputs())
    if metadata.input.name not in {spec.name for spec in inputs}:
        raise RepositoryError(file.path, f"has no input {metadata.input.name!r}, though its metadata says so")
    return Description(metadata, inputs, outputs, platform)


def _providers(file: ModelFile, provider: str, device: int, cuda_graphs: bool) -> list[Any]:
    """What ONNX Runtime is to run a model on, best first."""
    available = ort.get_available_providers()
    if _PROVIDERS[provider] not in available:
        raise RepositoryError(
            file.path, f"ONNX Runtime {ort.__version__} here has no {_PROVIDERS[provider]}, only {', '.join(available)}"
        )
    cuda = ("CUDAExecutionProvider", {"device_id": device, "enable_cuda_graph": "1" if cuda_graphs else "0"})
    cache = str(file.path.parent / "tensorrt")
    tensorrt = {
        "device_id": device,
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": cache,
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": cache,
        "trt_cuda_graph_enable": "1" if cuda_graphs else "0",
    }
    chain: dict[str, list[Any]] = {
        "cpu": ["CPUExecutionProvider"],
        "cuda": [cuda, "CPUExecutionProvider"],
        "tensorrt": [("TensorrtExecutionProvider", tensorrt), cuda, "CPUExecutionProvider"],
    }
    return chain[provider]


def _spec(file: ModelFile, argument: ort.NodeArg) -> TensorSpec:
    if argument.type not in _DTYPES:
        raise RepositoryError(file.path, f"tensor {argument.name!r} has type {argument.type}, expected a float tensor")
    batch, *shape = argument.shape
    if isinstance(batch, int) or not all(isinstance(size, int) for size in shape):
        raise RepositoryError(
            file.path, f"tensor {argument.name!r} has shape {argument.shape}, expected [N, fixed, ...]"
        )
    return TensorSpec(argument.name, _DTYPES[argument.type], tuple(shape))
