"""ONNX Runtime sessions: opened for a model file on a provider, and described by what they say of the model."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import onnxruntime as ort

from metaspec_contract.model import ModelMismatch, TensorSpec, check_folder, check_tensors, parse_metadata
from metaspec_server.core.engine import Description
from metaspec_server.repository import ModelFile, RepositoryError

__all__ = ["PROVIDERS", "best_provider", "describe", "describe_session", "first_line", "open_session", "refused"]

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

_REGISTERING = threading.Lock()  # models may be loaded at the same time


def open_session(
    file: ModelFile, provider: str, threads: int, device: int = 0, cuda_graphs: bool = False
) -> ort.InferenceSession:
    """Session of a model.

    Args:
        file: file of the model.
        provider: execution provider: cpu, cuda or tensorrt.
        threads: number of threads to compute with, on a CPU.
        device: number of the GPU.
        cuda_graphs: record the kernels of each batch size and replay them.

    Raises:
        RepositoryError: the file is damaged, or the provider cannot run it.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Between micro-batches, the cores belong to the threads that parse requests and send answers, and to other engines.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.add_session_config_entry("session.dynamic_block_base", "4")
    options.enable_mem_pattern = False  # one pattern is kept for each batch size: they only grow
    if provider == "cpu":
        with _REGISTERING:
            _share_memory()
        options.add_session_config_entry("session.use_env_allocators", "1")
    session = _session(file, options, _providers(file, provider, device, cuda_graphs))
    if session.get_providers()[0] != PROVIDERS[provider]:
        raise RepositoryError(file.path, f"ONNX Runtime could not start {PROVIDERS[provider]} on this machine")
    return session


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
    return describe_session(file, _session(file, options, ["CPUExecutionProvider"]), platform)


def _session(file: ModelFile, options: ort.SessionOptions, providers: list[Any]) -> ort.InferenceSession:
    content = file.read()  # ONNX Runtime would wait for a file that does not answer, and all of Python with it
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(file.path.parent))
    try:
        return ort.InferenceSession(content, options, providers=providers)
    except Exception as error:  # ONNX Runtime has no base class for what a damaged file raises
        raise RepositoryError(file.path, f"ONNX Runtime cannot load it: {first_line(error)}") from error


def describe_session(file: ModelFile, session: ort.InferenceSession, platform: str) -> Description:
    """Description of a model from its session.

    Raises:
        RepositoryError: the model does not fit its metadata.
    """
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


def first_line(error: Exception) -> str:
    """First line of an error's message, or its type if it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0]
