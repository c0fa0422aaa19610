"""What `serving_bench.py` compares, with the same model file: ONNX Runtime called directly, our server, Triton, LitServe.

The requests are the fastest that each server takes: tensors in binary, by the Open Inference Protocol or, for LitServe, as an
uploaded file.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import onnx
import onnxruntime
import psutil
from bundled import feed, metadata_of
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from metaspec_contract.conditions import Condition, check_conditions
from metaspec_contract.structures import Structure
from metaspec_testing.closed_loop import Load, http_request
from metaspec_testing.servers import running_server
from metaspec_testing.small_models import METADATA
from metaspec_testing.triton import PACKAGES, start_triton

MAX_BATCH = 32
PER_CORE = 2

NOTHING = """
import sys

sys.path[:0] = {packages}

import numpy
import triton_python_backend_utils as triton

class TritonPythonModel:
    def execute(self, requests):
        answers = []
        for request in requests:
            packed = triton.get_input_tensor_by_name(request, "structure").as_numpy()
            density = numpy.unpackbits(packed, axis=1).astype(numpy.float32)
            spectra = numpy.ascontiguousarray(density[:, :1204]).reshape(-1, 4, 301)
            answers.append(triton.InferenceResponse([triton.Tensor("spectra", spectra)]))
        return answers
"""
NOTHING_CONFIG = """
name: "diffractionnet"
backend: "python"
max_batch_size: 256
input [ { name: "structure", data_type: TYPE_UINT8, dims: [ 2048 ] } ]
output [ { name: "spectra", data_type: TYPE_FP32, dims: [ 4, 301 ] } ]
"""


class Watched:
    """CPU time and peak memory (PSS) of a process and its children while a block runs."""

    def __init__(self, process: psutil.Process) -> None:
        self._tree = [process, *process.children(recursive=True)]
        self.peak_mib = self.cpu_seconds = 0.0

    def __enter__(self) -> Watched:
        self._before, self._done = self._cpu(), threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.cpu_seconds = self._cpu() - self._before
        self._done.set()
        self._thread.join()

    def _cpu(self) -> float:
        return sum(sum(process.cpu_times()[:2]) for process in self._tree)

    def _sample(self) -> None:
        while True:
            self.peak_mib = max(self.peak_mib, sum(p.memory_full_info().pss for p in self._tree) / 2**20)
            if self._done.wait(1.0):
                return


def structures(count: int) -> Structure:
    return np.random.default_rng(0).integers(0, 2, (count, 128, 128), np.uint8)


def oip(address: str, batch: int, packed: bool = False, conditions: Sequence[Condition] = ()) -> bytes:
    """A request in the Open Inference Protocol, binary in and out, with conditions at their defaults: Triton requires them."""
    if packed:
        bits = np.packbits(structures(batch).reshape(batch, -1), axis=1)
        arrays: dict[str, tuple[str, NDArray[Any]]] = {"structure": ("UINT8", bits)}
    else:
        arrays = {"structure": ("FP32", structures(batch)[:, None].astype(np.float32))}
    arrays |= {name: ("FP32", values) for name, values in check_conditions(conditions, {}, batch).items()}
    tensors = [
        {"name": name, "datatype": kind, "shape": array.shape, "parameters": {"binary_data_size": array.nbytes}}
        for name, (kind, array) in arrays.items()
    ]
    header = json.dumps({"inputs": tensors, "parameters": {"binary_data_output": True}}).encode()
    data = b"".join(array.tobytes() for _, array in arrays.values())
    headers = {"Inference-Header-Content-Length": str(len(header)), "Content-Type": "application/octet-stream"}
    return http_request(address, "/v2/models/diffractionnet/infer", header + data, headers)


def direct(
    model: Path, threads: int, callers: int, batch: int, seconds: float, tuned: bool = False
) -> tuple[Load, float, float]:
    """The upper limit: a loop around ONNX Runtime, in micro-batches as large as the callers could fill.

    Args:
        model: model file.
        threads: number of threads, one for each core.
        callers: number of callers that there would be.
        batch: structures in a request of theirs.
        seconds: duration in seconds.
        tuned: whether each thread computes micro-batches of `PER_CORE` of its own, where there are enough structures for that;
            otherwise one session computes with all threads, in micro-batches of up to `MAX_BATCH`, as it does by default.

    Returns:
        Requests, seconds of CPU time, and peak memory in MiB.
    """
    apart = tuned and callers * batch >= threads
    workers = threads if apart else 1
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads // workers
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    size = min(callers * batch // workers, PER_CORE if apart else MAX_BATCH)
    inputs = feed(metadata_of(model), structures(size))
    session.run(None, inputs)
    runs = max(1, batch // size)  # micro-batches of a request
    started = time.perf_counter()

    def loop(_: int) -> list[float]:
        durations: list[float] = []
        while (now := time.perf_counter()) < started + seconds or len(durations) < runs:
            session.run(None, inputs)
            durations.append(time.perf_counter() - now)
        return durations

    with Watched(psutil.Process()) as watched, ThreadPoolExecutor(workers) as pool:
        durations = np.array([duration for each in pool.map(loop, range(workers)) for duration in each])
        elapsed = time.perf_counter() - started
    whole = durations[: len(durations) - len(durations) % runs].reshape(-1, runs)  # a request's are on all workers
    latencies = np.repeat(whole.sum(axis=1) / (workers if runs > 1 else 1), max(1, size // batch))
    return Load(elapsed, latencies.tolist()), watched.cpu_seconds, watched.peak_mib


class Contender(NamedTuple):
    """A running server: its address, its process, and its request for a number of structures."""

    address: str
    process: psutil.Process
    request: Callable[[int], bytes]


@contextmanager
def metaspec(
    repository: Path, threads: int, *flags: str, packed: bool = False, conditions: Sequence[Condition] = ()
) -> Iterator[Contender]:
    common = ["--repository", str(repository), "--threads", str(threads), "--cache-mb", "0", "--max-queue", "100000"]
    with running_server(*common, *flags) as server:
        request = partial(oip, server.address, packed=packed, conditions=conditions)
        yield Contender(server.address, psutil.Process(server.process.pid), request)


@contextmanager
def triton(repository: Path, packed: bool = False, conditions: Sequence[Condition] = ()) -> Iterator[Contender]:
    with tempfile.TemporaryDirectory() as work, start_triton(repository, Path(work)) as server:
        request = partial(oip, server.http, packed=packed, conditions=conditions)
        yield Contender(server.http, psutil.Process(server.process.pid), request)


@contextmanager
def litserve(model: Path, threads: int) -> Iterator[Contender]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, str(Path(__file__).with_name("litserve_app.py")), model, port, threads, MAX_BATCH]
    address = f"127.0.0.1:{port}"
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen([str(part) for part in command], stdout=log, stderr=log)
        try:
            if not listens(address, process):
                log.seek(0)
                raise RuntimeError(f"LitServe did not start:\n{log.read().decode()[-2000:]}")
            yield Contender(address, psutil.Process(process.pid), partial(litserve_request, address))
        finally:
            if process.poll() is None:
                for child in psutil.Process(process.pid).children(recursive=True):
                    child.terminate()
                process.terminate()
                process.wait(30)


def litserve_request(address: str, batch: int) -> bytes:
    part = b'--part\r\nContent-Disposition: form-data; name="structures"; filename="structures"\r\n\r\n'
    body = part + np.packbits(structures(batch)).tobytes() + b"\r\n--part--\r\n"
    return http_request(address, "/predict", body, {"Content-Type": "multipart/form-data; boundary=part"})


def listens(address: str, process: subprocess.Popen[bytes]) -> bool:
    """Whether LitServe answers, within a minute."""
    for _ in range(600):
        if process.poll() is not None:
            return False
        try:
            if httpx.get(f"http://{address}/health").status_code == 200:
                return True
        except httpx.HTTPError:
            pass
        time.sleep(0.1)
    return False


def repository_of(model: Path, folder: Path) -> Path:
    """A repository with only the forward model."""
    (folder / "diffractionnet" / "1").mkdir(parents=True)
    os.link(model, folder / "diffractionnet" / "1" / "model.onnx")
    config = model.parents[1] / "config.pbtxt"
    (folder / "diffractionnet" / "config.pbtxt").write_text(config.read_text())
    return folder


def model_that_computes_nothing(folder: Path) -> Path:
    """Returns the first pixels as spectra."""
    shapes = {"start": np.array([0]), "end": np.array([1204]), "axis": np.array([1]), "shape": np.array([-1, 4, 301])}
    nodes = [
        helper.make_node("Flatten", ["structure"], ["flat"]),
        helper.make_node("Slice", ["flat", "start", "end", "axis"], ["first"]),
        helper.make_node("Reshape", ["first", "shape"], ["spectra"]),
    ]
    graph = helper.make_graph(
        nodes,
        "nothing",
        [helper.make_tensor_value_info("structure", TensorProto.FLOAT, ["N", 1, 128, 128])],
        [helper.make_tensor_value_info("spectra", TensorProto.FLOAT, ["N", 4, 301])],
        [numpy_helper.from_array(value, name) for name, value in shapes.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(model, {"metaspec": json.dumps(METADATA)})
    (folder / "diffractionnet" / "1").mkdir(parents=True)
    onnx.save(model, folder / "diffractionnet" / "1" / "model.onnx")
    return folder


def triton_that_computes_nothing(folder: Path) -> Path:
    (folder / "diffractionnet" / "1").mkdir(parents=True)
    (folder / "diffractionnet" / "config.pbtxt").write_text(NOTHING_CONFIG)
    (folder / "diffractionnet" / "1" / "model.py").write_text(NOTHING.format(packages=[str(PACKAGES)]))
    return folder
