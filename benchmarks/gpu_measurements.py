"""Measurements of models in ONNX Runtime on a device: placement, deviation from the CPU, speed, and the server under load."""

from __future__ import annotations

import asyncio
import json
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnxruntime as ort
from bundled import hash_of
from numpy.typing import NDArray

from metaspec_contract.conditions import spread_conditions
from metaspec_contract.model import COTANGENT, GRADIENT, SPECTRA, STRUCTURE, gradient_model, parse_metadata
from metaspec_contract.structures import pack
from metaspec_server.core.engine import Description
from metaspec_server.engines.bound import Bound
from metaspec_server.engines.onnx_session import PROVIDERS, describe
from metaspec_server.repository import find_models
from metaspec_testing.closed_loop import http_request
from metaspec_testing.servers import running_server

Tensors: TypeAlias = dict[str, NDArray[np.float32]]
Measured: TypeAlias = dict[str, Any]

VIEWS = {"Reshape", "Squeeze", "Unsqueeze", "Shape", "Flatten", "Identity"}
"""Operators that move no data."""

REFERENCE_CHUNK = 8  # structures in a pass on the CPU: bounds its memory


class Unavailable(Exception):
    """A provider cannot be used here. The message says why."""


@dataclass(frozen=True)
class Model:
    """A model file.

    Attributes:
        name: name of the model.
        path: path of the ONNX file.
        about: its description.
        weights: first 12 digits of the weights' SHA-256, from its metadata.
        passes: passes of the network for each structure.
        precision: precision of its weights: fp32, fp16 or int8.
    """

    name: str
    path: Path
    about: Description
    weights: str
    passes: int
    precision: str


def models_of(repository: Path) -> dict[str, Model]:
    """Newest version of each model of a repository, by name."""
    found = {}
    for name, versions in find_models(repository).items():
        if versions:
            about = describe(versions[0], "")
            extra = about.metadata.model_extra or {}
            weights = hash_of(about.metadata)
            found[name] = Model(
                name, versions[0].path, about, weights, about.metadata.forward_passes, extra.get("precision", "fp32")
            )
    return found


def open_session(
    model: Model, provider: str, options: Mapping[str, str] | None = None, settings: ort.SessionOptions | None = None
) -> Any:
    """A session of ONNX Runtime.

    Args:
        model: the model.
        provider: cpu, cuda or tensorrt; beside a GPU's, the CPU takes what that cannot run.
        options: options of the CUDA provider.
        settings: other settings of the session.

    Raises:
        Unavailable: the provider does not start.
    """
    settings = settings or ort.SessionOptions()
    settings.log_severity_level = 4 if provider == "tensorrt" else 3  # TensorRT is tried without being expected
    settings.enable_mem_pattern = False  # as in the server
    cuda = ("CUDAExecutionProvider", dict(options or {}))
    chains: dict[str, list[Any]] = {"cpu": [], "cuda": [cuda], "tensorrt": ["TensorrtExecutionProvider", cuda]}
    session = ort.InferenceSession(str(model.path), settings, providers=[*chains[provider], "CPUExecutionProvider"])
    if session.get_providers()[0] != PROVIDERS[provider]:
        raise Unavailable(f"{PROVIDERS[provider]} does not start, only {', '.join(session.get_providers())}")
    return session


def structures(count: int) -> NDArray[np.uint8]:
    """Void, solid and noise, then blobs of many sizes; (count, 128, 128)."""
    rng = np.random.default_rng(7)
    distance = np.minimum(np.arange(128), 128 - np.arange(128))
    made: list[NDArray[Any]] = [np.zeros((128, 128)), np.ones((128, 128)), rng.integers(0, 2, (128, 128))]
    while len(made) < count:
        width = rng.uniform(2, 12)
        kernel = np.exp(-(distance[:, None] ** 2 + distance[None, :] ** 2) / (2 * width**2))
        smooth = np.fft.ifft2(np.fft.fft2(rng.normal(size=(128, 128))) * np.fft.fft2(kernel)).real
        made.append(smooth > np.quantile(smooth, rng.uniform(0.3, 0.7)))
    return np.stack(made[:count]).astype(np.uint8)


def inputs_of(session: Any, count: int) -> Tensors:
    """Structures, for a gradient model normally distributed cotangents, and conditions in their range: 64 different at most."""
    made: Tensors = {}
    conditions = parse_metadata(session.get_modelmeta().custom_metadata_map).conditions
    spread = spread_conditions(conditions, min(count, 64))
    for argument in session.get_inputs():
        shape = (min(count, 64), *argument.shape[1:])
        if argument.name == STRUCTURE:
            values = structures(shape[0])[:, None].astype(np.float32)
        elif argument.name in spread:
            values = spread[argument.name]
        else:
            values = np.random.default_rng(11).normal(size=shape).astype(np.float32)
        made[argument.name] = np.ascontiguousarray(np.resize(values, (count, *argument.shape[1:])))
    return made


def run(session: Any, inputs: Tensors, chunk: int | None = None) -> Tensors:
    """Outputs of a session, computed in chunks of rows."""
    rows = len(inputs[STRUCTURE])
    names = [output.name for output in session.get_outputs()]
    parts = [
        session.run(names, {name: array[start : start + (chunk or rows)] for name, array in inputs.items()})
        for start in range(0, rows, chunk or rows)
    ]
    return {name: np.concatenate([part[n] for part in parts]) for n, name in enumerate(names)}


# ---- One model, without a server


def nodes_that_ran(model: Model, provider: str, basic: bool = False, batch: int = 2) -> list[dict[str, Any]]:
    """What ONNX Runtime's profiler records of each node in one pass: its operator, provider, shapes and sizes.

    Args:
        model: the model.
        provider: cpu or cuda.
        basic: without the optimisations that are special to a provider.
        batch: number of structures.
    """
    settings = ort.SessionOptions()
    if basic:
        settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    with tempfile.TemporaryDirectory() as folder:
        settings.enable_profiling = True
        settings.profile_file_prefix = str(Path(folder) / "profile")
        session = open_session(model, provider, settings=settings)
        run(session, inputs_of(session, batch))
        events = json.loads(Path(session.end_profiling()).read_text())
    return [event["args"] for event in events if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")]


def placement(model: Model, provider: str) -> Measured:
    """Number of nodes that ran on each provider, by operator, and number of copies between device and host."""
    nodes = nodes_that_ran(model, provider)
    ran = {name: Counter(n["op_name"] for n in nodes if n["provider"] == name) for name in PROVIDERS.values()}
    return {
        "nodes": {name: dict(count) for name, count in ran.items() if count},
        "copies": sum(n["op_name"].startswith("Memcpy") for n in nodes),
        "views": sum(n["op_name"] in VIEWS for n in nodes),
    }


def work(model: Model) -> Measured:
    """Arithmetic of a pass of one structure in GFLOP, and data read and written by its nodes, each by itself, in MB."""
    operations, moved = 0.0, 0
    for node in nodes_that_ran(model, "cpu", basic=True, batch=1):
        inputs, outputs = ([next(iter(s.values())) for s in node[f"{k}_type_shape"]] for k in ("input", "output"))
        if node["op_name"] not in VIEWS:
            moved += int(node["activation_size"]) + int(node["output_size"])
        if node["op_name"] == "Conv":
            operations += 2 * np.prod(outputs[0]) * np.prod(inputs[1][1:])
        elif node["op_name"] == "ConvTranspose":
            operations += 2 * np.prod(inputs[0]) * np.prod(inputs[1][1:])
        elif node["op_name"] == "MatMul":
            operations += 2 * np.prod(outputs[0]) * inputs[0][-1]
    return {"gflop": float(operations) / 1e9, "mb": moved / 1e6}


def parity(model: Model, provider: str, count: int) -> Measured:
    """Deviation of a provider's outputs from the CPU's, for CUDA without and with TF32, by output."""
    session = open_session(model, "cpu")
    inputs = inputs_of(session, max(2, count // model.passes))
    inputs[STRUCTURE][0] = 0.5  # grey, where optimisers start: its gradients are the largest
    expected = run(session, inputs, REFERENCE_CHUNK)
    found = {}
    for mode in ("TF32 off", "TF32 on") if provider == "cuda" else (provider,):
        outputs = run(open_session(model, provider, {"use_tf32": "1" if mode == "TF32 on" else "0"}), inputs)
        found[mode] = {name: deviation(outputs[name], expected[name]) for name in expected}
    return found


def deviation(found: NDArray[np.float32], expected: NDArray[np.float32]) -> Measured:
    """Largest and mean absolute deviation, and the largest expected value.

    Raises:
        ValueError: a value that was found is not finite.
    """
    if not np.isfinite(found).all():
        raise ValueError("infinite or NaN outputs")
    error = np.abs(found.astype(np.float64) - expected)
    return {"largest": float(error.max()), "mean": float(error.mean()), "of": float(np.abs(expected).max())}


def speed(model: Model, provider: str, sizes: Sequence[int], seconds: float, graphs: bool = False) -> Measured:
    """Times of batches of each size: of the first, of later ones, with copies, and after a batch of another size.

    Args:
        model: the model.
        provider: cpu or cuda.
        sizes: batch sizes.
        seconds: duration of each measurement.
        graphs: replay CUDA graphs; the answers are compared with those of plain runs.
    """
    session = open_session(model, provider, {"enable_cuda_graph": "1"} if graphs else {})
    plain = open_session(model, provider) if graphs else None
    batches, rows = {}, {}
    for size in sizes:
        inputs = inputs_of(session, size)
        batch = batches[size] = Bound(session, model.about, size, "cpu" if provider == "cpu" else "cuda", 0, graphs)
        batch.put(inputs)

        def with_copies(batch: Bound = batch, inputs: Tensors = inputs) -> None:
            batch.put(inputs)
            batch.compute()
            batch.get()

        first = timed(batch.compute)
        for _ in range(2):  # records the graph
            batch.compute()
        bare, copied = median(batch.compute, seconds), median(with_copies, seconds)
        rows[str(size)] = row = {"first_s": first, "s": bare, "s_with_copies": copied}
        if plain is not None:
            others = {name: np.ascontiguousarray(array[::-1]) for name, array in inputs.items()}
            batch.put(others)
            batch.compute()
            expected = run(plain, others)
            row["replay"] = max(deviation(array, expected[name])["largest"] for name, array in batch.get().items())
    report: Measured = {"sizes": rows}
    if len(sizes) > 1:
        one, other = batches[sizes[0]], batches[sizes[-1]]
        changed = []
        for _ in range(3):
            other.compute()
            changed.append(timed(one.compute))
        report["s_after_another_size"] = {str(sizes[0]): statistics.median(changed)}
    return report


def timed(call: Callable[[], object]) -> float:
    """Duration of a call in seconds."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def median(call: Callable[[], object], seconds: float) -> float:
    """Median duration of a call in seconds, of at least three."""
    stop = time.perf_counter() + seconds
    times = [timed(call) for _ in range(3)]
    while time.perf_counter() < stop:
        times.append(timed(call))
    return statistics.median(times)


# ---- The server under load


class Requests:
    """Requests to the server for structures of a small pool, and their answers as the CPU computes them.

    Args:
        models: models of the repository.
        name: name of the forward model.
        count: number of structures in the pool.
    """

    def __init__(self, models: Mapping[str, Model], name: str, count: int) -> None:
        self.name = name
        self._routes = {"predict": models[name]}
        if gradient_model(name) in models:
            self._routes["gradient"] = models[gradient_model(name)]
        packed = pack(structures(count))
        self._parts: dict[str, list[NDArray[Any]]] = {}
        self._expected: dict[str, Tensors] = {}
        for route, model in self._routes.items():
            session = open_session(model, "cpu")
            inputs = inputs_of(session, count)
            self._parts[route] = [packed, *(array for key, array in inputs.items() if key == COTANGENT)]
            self._expected[route] = run(session, inputs, REFERENCE_CHUNK)

    @contextmanager
    def repository(self) -> Iterator[Path]:
        """A repository of the models that are asked."""
        with tempfile.TemporaryDirectory() as folder:
            for model in self._routes.values():
                (Path(folder) / model.name).symlink_to(model.path.resolve().parents[1])
            yield Path(folder)

    @property
    def routes(self) -> list[str]:
        """The server's routes: predict and, where there is a gradient model, gradient."""
        return list(self._routes)

    def rows(self, turn: int, batch: int) -> NDArray[np.intp]:
        return np.arange(turn, turn + batch) % len(self._parts["predict"][0])

    def encoded(self, address: str, route: str, turn: int, batch: int) -> bytes:
        rows = self.rows(turn, batch)
        body = b"".join(array[rows].tobytes() for array in self._parts[route])
        headers = {"Content-Type": "application/octet-stream", "Accept": "application/octet-stream"}
        return http_request(address, f"/{route}?model={self.name}", body, headers)

    def deviation(self, route: str, turn: int, batch: int, answer: bytes) -> float:
        """Largest deviation of an answer from the CPU's, as a share of that output's largest value.

        Raises:
            ValueError: it has another size, or values that are not finite.
        """
        rows, found, shares = self.rows(turn, batch), np.frombuffer(answer, "<f4"), []
        for name in (SPECTRA, GRADIENT)[: 1 + (route == "gradient")]:
            expected = self._expected[route][name][rows]
            part, found = found[: expected.size], found[expected.size :]
            if part.size != expected.size:
                raise ValueError(f"an answer of {len(answer)} bytes")
            report = deviation(part.reshape(expected.shape), expected)
            shares.append(report["largest"] / max(np.abs(self._expected[route][name]).max(), 1e-30))
        if found.size:
            raise ValueError(f"an answer of {len(answer)} bytes")
        return float(max(shares))


def serve(
    requests: Requests, provider: str, flags: Sequence[str], loads: Sequence[tuple[int, int]], seconds: float
) -> Measured:
    """Start the server on a provider, and put loads of callers x structures on it; each answer is compared with the CPU's."""
    fixed = ["--provider", provider, "--cache-mb", "0", "--max-queue", "100000", "--poll-interval", "0"]
    report: Measured = {}
    with requests.repository() as repository:
        started = time.perf_counter()
        with running_server("--repository", str(repository), *fixed, *flags) as server:
            report["start_s"] = time.perf_counter() - started
            for route in requests.routes:
                for callers, batch in loads:
                    asyncio.run(_load(server.address, requests, route, callers, batch, min(0.5, seconds)))
                    answers = asyncio.run(_load(server.address, requests, route, callers, batch, seconds))
                    report[f"{route} {callers} x {batch}"] = _summary(requests, route, batch, answers)
    return report


Answer: TypeAlias = tuple[int, float, float, bytes]
"""Number of the request, times at which it was sent and answered, and the body."""


async def _load(address: str, requests: Requests, route: str, callers: int, batch: int, seconds: float) -> list[Answer]:
    encoded = [requests.encoded(address, route, turn, batch) for turn in range(64)]
    host, _, port = address.rpartition(":")
    answers: list[Answer] = []
    deadline = time.perf_counter() + seconds

    async def call(turn: int) -> None:
        reader, writer = await asyncio.open_connection(host, int(port), limit=2**26)
        try:
            while True:
                sent = time.perf_counter()
                writer.write(encoded[turn % 64])
                await writer.drain()
                head = (await reader.readuntil(b"\r\n\r\n")).lower()
                at = head.index(b"\r\ncontent-length:") + len(b"\r\ncontent-length:")
                body = await reader.readexactly(int(head[at : head.index(b"\r\n", at)]))
                if not head.startswith(b"http/1.1 200"):
                    raise ValueError(f"the server answered {head[:40]!r} {body[:200]!r}")
                answers.append((turn % 64, sent, time.perf_counter(), body))
                if time.perf_counter() >= deadline:
                    return
                turn += 1
        finally:
            writer.close()

    await asyncio.gather(*(call(7 * n) for n in range(callers)))
    return answers


def _summary(requests: Requests, route: str, batch: int, answers: Sequence[Answer]) -> Measured:
    took = max(answer[2] for answer in answers) - min(answer[1] for answer in answers)
    latencies = [answered - sent for _, sent, answered, _ in answers]
    deviations = [requests.deviation(route, turn, batch, body) for turn, _, _, body in answers]
    return {
        "answers": len(answers),
        "per_s": batch * len(answers) / took,
        "p50_s": float(np.percentile(latencies, 50)),
        "p99_s": float(np.percentile(latencies, 99)),
        "deviation": max(deviations),
    }
