"""The ONNX Runtime engine: runs micro-batches in this process, and reads the description of a model file."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from metaspec_contract.model import (
    COTANGENT,
    GRADIENT,
    ModelMismatch,
    TensorSpec,
    check_folder,
    check_tensors,
    parse_metadata,
)
from metaspec_server.core.engine import Description, try_out
from metaspec_server.core.tensors import Rows, gather
from metaspec_server.repository import ModelFile, RepositoryError

__all__ = ["PROVIDERS", "Bound", "OnnxEngine", "best_provider", "describe", "refused"]

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
"""ONNX Runtime's names of the execution providers."""

_DTYPES: dict[str, np.dtype[Any]] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(float16)": np.dtype(np.float16),
    "tensor(double)": np.dtype(np.float64),
}

_NEGLIGIBLE = 2.0**-64
"""Part of the largest number of an input that counts as 0: far below the last bit of a float32 sum with it.

Smaller numbers become denormal in the network, which slows a CPU thirtyfold.
"""

_USUAL_EXPONENT = 16  # cotangents from 2^-16 to 2^16 are computed as they are

_REGISTERING = threading.Lock()  # models may be loaded at the same time


class OnnxEngine:
    """A model run by ONNX Runtime in this process.

    On a CPU a micro-batch is computed at its own size. On a GPU it is padded to the next of a few sizes, each with tensors on
    the device that are allocated and bound once (and, if `cuda_graphs` is set, a CUDA graph that is recorded once).

    Args:
        file: file of the model.
        provider: execution provider: cpu, cuda or tensorrt.
        threads: number of threads to compute with, on a CPU.
        max_batch: largest number of network passes in a micro-batch.
        device: number of the GPU.
        cuda_graphs: record the kernels of each batch size and replay them.
        load_timeout: seconds to load and try the model, after which the trial is ended.

    Attributes:
        about: description of the model.
        max_batch: largest number of rows in a micro-batch, fewer in a model that takes several passes for each.
        input_seconds: time that the last micro-batch took to be copied into the inputs, in seconds.

    Raises:
        RepositoryError: the file is damaged, the model does not fit its metadata or fails, or the provider cannot run it.
    """

    def __init__(
        self,
        file: ModelFile,
        provider: str = "cpu",
        threads: int = 1,
        max_batch: int = 32,
        device: int = 0,
        cuda_graphs: bool = False,
        load_timeout: float = 120.0,
    ) -> None:
        self._load_timeout, self._load_until = load_timeout, time.monotonic() + load_timeout
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        # Between micro-batches, the cores belong to the threads that parse requests and send answers.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        options.add_session_config_entry("session.dynamic_block_base", "4")
        options.enable_mem_pattern = False  # one pattern is kept for each batch size: they only grow
        if provider == "cpu":
            with _REGISTERING:
                _share_memory()
            options.add_session_config_entry("session.use_env_allocators", "1")
        self._session = _session(file, options, _providers(file, provider, device, cuda_graphs))
        if self._session.get_providers()[0] != PROVIDERS[provider]:
            raise RepositoryError(file.path, f"ONNX Runtime could not start {PROVIDERS[provider]} on this machine")
        self.about = _describe(file, self._session, f"onnxruntime {ort.__version__} {PROVIDERS[provider]}")
        self.max_batch = max(1, max_batch // self.about.metadata.forward_passes)
        self._buffers = {spec.name: np.zeros((self.max_batch, *spec.shape), spec.dtype) for spec in self.about.inputs}
        self._bound: dict[int, Bound] = {}
        self.input_seconds = 0.0
        self._options = ort.RunOptions()
        if provider != "cpu":
            self._bind("cuda", device, cuda_graphs)
            self._warm_up(file)
            return
        self._options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        self._warm_up(file)
        self._options = ort.RunOptions()  # in use, memory is kept for the next micro-batch

    def run(self, pieces: Sequence[Rows]) -> Rows:
        """Outputs of a micro-batch that comes in pieces, in the same order."""
        started = time.perf_counter()
        rows = gather(pieces, self.about.inputs, self._buffers)
        exponents = {name: _normalise(buffer[:rows], name == COTANGENT) for name, buffer in self._buffers.items()}
        self.input_seconds = time.perf_counter() - started
        results = self._compute(rows)
        if (exponent := exponents.get(COTANGENT)) is not None:
            with np.errstate(over="ignore", under="ignore"):
                results[GRADIENT] = np.ldexp(results[GRADIENT], exponent.reshape(-1, 1, 1, 1))
        return results

    def stop(self) -> None:
        """Make `run` end with an exception, at the next node of the graph."""
        for options in (self._options, *(bound.options for bound in self._bound.values())):
            options.terminate = True

    def _compute(self, rows: int) -> Rows:
        """Outputs of the first rows of the buffers."""
        if self._bound:
            size = next(size for size in self._bound if size >= rows)
            results = self._bound[size].run({name: buffer[:size] for name, buffer in self._buffers.items()})
            return {name: array[:rows] for name, array in results.items()}
        names = [spec.name for spec in self.about.outputs]
        feed = {name: buffer[:rows] for name, buffer in self._buffers.items()}
        return dict(zip(names, self._session.run(names, feed, self._options), strict=True))

    def _bind(self, device_type: str, device: int, cuda_graphs: bool) -> None:
        """Allocate tensors on a device for each batch size: powers of two up to the largest."""
        sizes = sorted({min(1 << n, self.max_batch) for n in range(self.max_batch.bit_length() + 1)})
        self._bound = {size: Bound(self._session, self.about, size, device_type, device, cuda_graphs) for size in sizes}

    def _warm_up(self, file: ModelFile) -> None:
        """Try the model at every batch size, which also allocates memory and selects kernels before the first request."""

        def run(rows: Rows) -> Rows:
            watchdog = threading.Timer(max(0.0, self._load_until - time.monotonic()), self.stop)
            watchdog.daemon = True
            watchdog.start()
            try:
                return self.run([rows])
            except Exception as error:  # ONNX Runtime has no base class for what a model raises
                late = f"it has not finished within {self._load_timeout:g} s"
                reason = late if self._options.terminate else _first_line(error)
                raise RepositoryError(file.path, f"ONNX Runtime fails to run it: {reason}") from error
            finally:
                watchdog.cancel()

        for size in self._bound or sorted({1, self.max_batch}):
            with refused(file):
                try_out(self.about.metadata, size, run)


def _normalise(rows: NDArray[Any], scaled: bool) -> NDArray[np.int32] | None:
    """Set negligible numbers to 0, in place; if asked, first scale rows far from 1 by powers of two, which is exact.

    The gradient is linear in the cotangent: scaled back, that of a scaled cotangent is the same, without the denormal
    numbers and overflows on the way.

    Args:
        rows: rows of an input.
        scaled: whether rows may be scaled; otherwise their largest number is near 1.

    Returns:
        Exponent of each row, to scale the results back; None if no row was scaled.
    """
    exponent = None
    if scaled:
        size = np.abs(rows).max(axis=tuple(range(1, rows.ndim)))
        _, exponent = np.frexp(size)
        exponent[np.abs(exponent) <= _USUAL_EXPONENT] = 0
        if exponent.any():
            np.ldexp(rows, -exponent.reshape(-1, *[1] * (rows.ndim - 1)), out=rows)
        else:
            exponent = None
    rows[np.abs(rows) < _NEGLIGIBLE] = 0
    return exponent


class Bound:
    """Tensors of one batch size on a device, permanently bound to a session, as CUDA graphs need them.

    Args:
        session: session of the model.
        about: description of the model.
        size: number of rows.
        device_type: ONNX Runtime's name of the kind of device, cpu or cuda.
        device: number of the device.
        cuda_graphs: whether the session records a CUDA graph for each size.

    Attributes:
        options: options of its runs.
    """

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
        self.options = ort.RunOptions()
        if cuda_graphs:
            self.options.add_run_config_entry("gpu_graph_id", str(size))

    def put(self, buffers: Rows) -> None:
        """Copy a full batch of inputs to the device."""
        for name, value in self._inputs.items():
            value.update_inplace(buffers[name])

    def compute(self) -> None:
        """Compute the outputs, on the device."""
        self._session.run_with_iobinding(self._binding, self.options)

    def get(self) -> Rows:
        """Copies of the outputs."""
        return {name: value.numpy() for name, value in self._outputs.items()}

    def run(self, buffers: Rows) -> Rows:
        """Outputs of a full batch."""
        self.put(buffers)
        self.compute()
        return self.get()


@cache
def _share_memory() -> None:
    """Have all models on the CPU share one arena: it grows to what runs at the same time, not to the sum of all models.

    It belongs to the process, and is made once.
    """
    memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    ort.create_and_register_allocator(memory, None)


def best_provider() -> str:
    """Provider that `auto` selects: cuda where ONNX Runtime has it, else cpu; not tensorrt, which takes minutes to start."""
    return "cuda" if PROVIDERS["cuda"] in ort.get_available_providers() else "cpu"


def describe(file: ModelFile, platform: str) -> Description:
    """Description of a model file, for an engine elsewhere that computes it.

    Args:
        file: file of the model.
        platform: name of that engine.

    Raises:
        RepositoryError: the file is damaged, or the model does not fit its metadata.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return _describe(file, _session(file, options, ["CPUExecutionProvider"]), platform)


def _session(file: ModelFile, options: ort.SessionOptions, providers: list[Any]) -> ort.InferenceSession:
    content = file.read()  # ONNX Runtime would wait for a file that does not answer, and all of Python with it
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(file.path.parent))
    try:
        return ort.InferenceSession(content, options, providers=providers)
    except Exception as error:  # ONNX Runtime has no base class for what a damaged file raises
        raise RepositoryError(file.path, f"ONNX Runtime cannot load it: {_first_line(error)}") from error


def _describe(file: ModelFile, session: ort.InferenceSession, platform: str) -> Description:
    with refused(file):
        metadata = parse_metadata(session.get_modelmeta().custom_metadata_map)
        check_folder(metadata, file.name)
        inputs = tuple(_spec(argument) for argument in session.get_inputs())
        outputs = tuple(_spec(argument) for argument in session.get_outputs())
        check_tensors(metadata, inputs, outputs)
    return Description(metadata, inputs, outputs, platform)


@contextmanager
def refused(file: ModelFile) -> Iterator[None]:
    """Make a model's mismatch the `RepositoryError` of its file."""
    try:
        yield
    except ModelMismatch as error:
        raise RepositoryError(file.path, str(error)) from None


def _providers(file: ModelFile, provider: str, device: int, cuda_graphs: bool) -> list[Any]:
    """Providers for ONNX Runtime, best first."""
    available = ort.get_available_providers()
    if PROVIDERS[provider] not in available:
        raise RepositoryError(
            file.path, f"ONNX Runtime {ort.__version__} here has no {PROVIDERS[provider]}, only {', '.join(available)}"
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


def _spec(argument: ort.NodeArg) -> TensorSpec:
    if argument.type not in _DTYPES:
        raise ModelMismatch(f"tensor {argument.name} has type {argument.type}, expected one of {', '.join(_DTYPES)}")
    if not argument.shape:
        raise ModelMismatch(f"tensor {argument.name} has no axes, expected [N, fixed, ...]")
    batch, *shape = argument.shape
    if isinstance(batch, int) or not all(isinstance(size, int) for size in shape):
        raise ModelMismatch(f"tensor {argument.name} has shape {argument.shape}, expected [N, fixed, ...]")
    return TensorSpec(argument.name, _DTYPES[argument.type], tuple(shape))


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
