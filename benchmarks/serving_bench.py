"""Serving overhead: the same model.onnx on the same cores with ONNX Runtime called directly, our server, Triton, LitServe.

Closed loops of callers, one contender at a time, in turns for several rounds. Then the overhead alone: a model that computes
nothing, with 256 bit-packed structures per request in and float32 spectra out.

    pip install litserve
    python benchmarks/serving_bench.py [--rounds 3] [--seconds 8] [--plot FILE.svg]
    python benchmarks/serving_bench.py --only direct metaspec one-engine    # against --instances 1

Triton is the binary of nvidia-pytriton, which `make test` installs; its Python backend runs the same ONNX Runtime session.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import httpx
import matplotlib
import numpy as np
import onnx
import onnxruntime
import psutil
from onnx import TensorProto, helper, numpy_helper

from metaspec_contract.model import parse_metadata
from metaspec_contract.structures import Structure
from metaspec_testing.closed_loop import Load, closed_loop, http_request
from metaspec_testing.servers import running_server
from metaspec_testing.small_models import METADATA
from metaspec_testing.triton import PACKAGES, python_repository, start_triton

matplotlib.use("Agg")
from matplotlib import pyplot

ROOT = Path(__file__).parents[1]
LOADS = [(1, 1), (16, 1), (64, 1), (4, 64)]
OVERHEAD = (4, 256)
MAX_BATCH = 32

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


@dataclass
class Measured:
    """Measurements of one contender under one load, all rounds together."""

    structures: int = 0
    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    cpu_seconds: float = 0.0
    peak_mib: float = 0.0

    def add(self, load: Load, batch: int, cpu_seconds: float, peak_mib: float) -> None:
        self.structures += batch * len(load.latencies)
        self.seconds += load.seconds
        self.latencies += load.latencies
        self.cpu_seconds += cpu_seconds
        self.peak_mib = max(self.peak_mib, peak_mib)

    @property
    def rate(self) -> float:
        return self.structures / self.seconds


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


def oip(address: str, batch: int, packed: bool = False) -> bytes:
    """A request in the Open Inference Protocol, binary in and out."""
    if packed:
        array, shape, kind = np.packbits(structures(batch).reshape(batch, -1), axis=1), [batch, 2048], "UINT8"
    else:
        array, shape, kind = structures(batch).astype(np.float32), [batch, 1, 128, 128], "FP32"
    tensor = {"name": "structure", "datatype": kind, "shape": shape, "parameters": {"binary_data_size": array.nbytes}}
    header = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    headers = {"Inference-Header-Content-Length": str(len(header)), "Content-Type": "application/octet-stream"}
    return http_request(address, "/v2/models/diffractionnet/infer", header + array.tobytes(), headers)


def direct(model: Path, threads: int, callers: int, batch: int, seconds: float) -> tuple[Load, float, float]:
    """The upper limit: a loop around ONNX Runtime, in micro-batches as large as the callers could fill."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    size = min(callers * batch, MAX_BATCH)
    density = np.tile(structures(min(size, 64)), (-(-size // 64), 1, 1))[:size, None].astype(np.float32)
    session.run(None, {"structure": density})
    latencies: list[float] = []
    with Watched(psutil.Process()) as watched:
        started = time.perf_counter()
        while (now := time.perf_counter()) < started + seconds:
            session.run(None, {"structure": density})
            # A request of `batch` structures takes as many micro-batches as it needs.
            latencies += [(time.perf_counter() - now) * max(1, batch // size)] * max(1, size // batch)
        elapsed = time.perf_counter() - started
    if batch > size:
        latencies = latencies[:: batch // size]
    return Load(elapsed, latencies), watched.cpu_seconds, watched.peak_mib


class Contender(NamedTuple):
    """A running server: its address, its process, and its request for a number of structures."""

    address: str
    process: psutil.Process
    request: Callable[[int], bytes]


@contextmanager
def metaspec(repository: Path, threads: int, *flags: str, packed: bool = False) -> Iterator[Contender]:
    common = ["--repository", str(repository), "--threads", str(threads), "--cache-mb", "0", "--max-queue", "100000"]
    with running_server(*common, *flags) as server:
        request = partial(oip, server.address, packed=packed)
        yield Contender(server.address, psutil.Process(server.process.pid), request)


@contextmanager
def triton(repository: Path, packed: bool = False) -> Iterator[Contender]:
    with tempfile.TemporaryDirectory() as work, start_triton(repository, Path(work)) as server:
        yield Contender(server.http, psutil.Process(server.process.pid), partial(oip, server.http, packed=packed))


@contextmanager
def litserve(model: Path, threads: int) -> Iterator[Contender]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, str(ROOT / "benchmarks" / "litserve_app.py"), model, port, threads, MAX_BATCH]
    address = f"127.0.0.1:{port}"
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen([str(part) for part in command], stdout=log, stderr=log)
        try:
            wait_for(address, process)
            yield Contender(address, psutil.Process(process.pid), partial(litserve_request, address))
        finally:
            for child in psutil.Process(process.pid).children(recursive=True):
                child.terminate()
            process.terminate()
            process.wait(30)


def litserve_request(address: str, batch: int) -> bytes:
    body = json.dumps({"packed": base64.b64encode(np.packbits(structures(batch)).tobytes()).decode()}).encode()
    return http_request(address, "/predict", body, {"Content-Type": "application/json"})


def wait_for(address: str, process: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        if process.poll() is not None:
            raise RuntimeError("LitServe ended")
        try:
            if httpx.get(f"http://{address}/health").status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.1)
    raise RuntimeError("LitServe did not start")


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


def measure(
    contender: AbstractContextManager[Contender],
    loads: list[tuple[int, int]],
    seconds: float,
    results: dict[tuple[int, int], Measured],
) -> None:
    """Start a contender, and put each load on it, after a short one to warm up."""
    with contender as (address, process, request_of):
        for callers, batch in loads:
            request = request_of(batch)
            closed_loop(address, request, callers, min(1.0, seconds))
            with Watched(process) as watched:
                load = closed_loop(address, request, callers, seconds)
            results.setdefault((callers, batch), Measured()).add(load, batch, watched.cpu_seconds, watched.peak_mib)


def model_of(path: Path) -> str:
    """Name of a model file, and the hash of its weights that tells whether a figure is of the bundled model."""
    properties = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    metadata = parse_metadata(properties)
    return f"`{metadata.name}` {(metadata.model_extra or {}).get('weights_sha256', 'without a hash')[:12]}"


def table(results: dict[str, dict[tuple[int, int], Measured]], loads: list[tuple[int, int]]) -> str:
    lines = [
        "| callers x structures | server | structures/s | of direct | p50 ms | p95 ms | p99 ms | CPU ms/structure | peak MiB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for load in loads:
        for name, measured in results.items():
            if load not in measured:
                continue
            m = measured[load]
            share = f"{m.rate / results['direct'][load].rate:.2f}" if load in results.get("direct", {}) else ""
            p50, p95, p99 = 1000 * np.percentile(m.latencies, (50, 95, 99))
            lines.append(
                f"| {load[0]} x {load[1]} | {name} | {m.rate:.1f} | {share} | {p50:.1f} | {p95:.1f} | {p99:.1f} "
                f"| {1000 * m.cpu_seconds / m.structures:.3f} | {m.peak_mib:.0f} |"
            )
    return "\n".join(lines)


def draw(results: dict[str, dict[tuple[int, int], Measured]], path: Path) -> None:
    figure, (rates, times) = pyplot.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    width = 0.8 / len(results)
    for n, (name, measured) in enumerate(results.items()):
        at = np.arange(len(LOADS)) + (n - (len(results) - 1) / 2) * width
        rates.bar(at, [measured[load].rate for load in LOADS], width, label=name)
        times.bar(at, [1000 * np.median(measured[load].latencies) for load in LOADS], width, label=name)
    for axes, title in ((rates, "structures per second"), (times, "median latency in ms")):
        axes.set_xticks(range(len(LOADS)), [f"{callers} x {batch}" for callers, batch in LOADS])
        axes.set(title=title, xlabel="callers x structures in a request")
    times.set_yscale("log")
    handles, labels = rates.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(results))
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    bundled = ROOT / "server" / "models" / "diffractionnet" / "1" / "model.onnx"
    parser.add_argument("--model", type=Path, default=bundled)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--only", nargs="+", default=["direct", "metaspec", "triton", "litserve"])
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    threads, seconds = arguments.threads, arguments.seconds

    results: dict[str, dict[tuple[int, int], Measured]] = {name: {} for name in arguments.only}
    overhead: dict[str, dict[tuple[int, int], Measured]] = {
        name: {} for name in ("metaspec", "triton") if name in arguments.only
    }
    with tempfile.TemporaryDirectory(dir=arguments.model.parent.parent.parent.parent) as temporary:
        work = Path(temporary)
        repository = repository_of(arguments.model, work / "models")
        for_triton = python_repository(repository, work / "triton", threads)
        nothing = model_that_computes_nothing(work / "nothing")
        for_triton_nothing = triton_that_computes_nothing(work / "triton_nothing")
        for turn in range(arguments.rounds):
            for name in results:
                print(f"round {turn + 1}: {name}", file=sys.stderr, flush=True)
                if name == "direct":
                    for callers, batch in LOADS:
                        load, cpu, peak = direct(arguments.model, threads, callers, batch, seconds)
                        results[name].setdefault((callers, batch), Measured()).add(load, batch, cpu, peak)
                elif name == "metaspec":
                    measure(metaspec(repository, threads), LOADS, seconds, results[name])
                    measure(
                        metaspec(nothing, 1, "--max-batch", "256", packed=True), [OVERHEAD], seconds, overhead[name]
                    )
                elif name == "one-engine":
                    measure(metaspec(repository, threads, "--instances", "1"), LOADS, seconds, results[name])
                elif name == "triton":
                    measure(triton(for_triton), LOADS, seconds, results[name])
                    measure(triton(for_triton_nothing, packed=True), [OVERHEAD], seconds, overhead[name])
                else:
                    measure(litserve(arguments.model, threads), LOADS, seconds, results[name])
    print(f"{model_of(arguments.model)}\n\n{table(results, LOADS)}")
    print("\nA model that computes nothing, bit-packed in, float32 out:\n")
    print(table(overhead, [OVERHEAD]))
    if arguments.plot:
        draw(results, arguments.plot)


if __name__ == "__main__":
    main()
