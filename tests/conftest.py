"""Fixtures that several folders share: a small but real model repository, and the real server on a real port."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

METADATA = {
    "schema_version": 1,
    "name": "diffractionnet",
    "kind": "forward",
    "process": {"period_um": 2.0},
    "wavelengths_nm": [float(w) for w in range(400, 701)],
    "channels": ["R", "G1", "G2", "B"],
    "units": {"spectra": "efficiency", "wavelengths": "nm"},
    "input": {"name": "structure", "solid": 1.0, "void": 0.0},
}


def small_model(metadata: dict | None = None, seed: int = 0) -> onnx.ModelProto:
    """Average pooling, one matrix product and a sigmoid: density (N, 1, 128, 128) to spectra (N, 4, 301)."""
    weight = np.random.default_rng(seed).normal(0, 1, (64, 1204)).astype(np.float32)
    nodes = [
        helper.make_node("AveragePool", ["structure"], ["pooled"], kernel_shape=[16, 16], strides=[16, 16]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["product"]),
        helper.make_node("Sigmoid", ["product"], ["efficiency"]),
        helper.make_node("Reshape", ["efficiency", "shape"], ["spectra"]),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("structure", TensorProto.FLOAT, ["N", 1, 128, 128])],
        [helper.make_tensor_value_info("spectra", TensorProto.FLOAT, ["N", 4, 301])],
        [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(np.array([-1, 4, 301]), "shape")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(model, {"metaspec": json.dumps(METADATA if metadata is None else metadata)})
    return model


def small_gradient_model(seed: int = 0) -> onnx.ModelProto:
    """The vector-Jacobian product of the small model: every pixel of a pooled square gets 1 / 256 of its gradient."""
    model = small_model(METADATA | {"name": "diffractionnet_vjp", "kind": "vjp"}, seed)
    graph = model.graph
    constants = {
        "flat_shape": np.array([-1, 1204]),
        "square_shape": np.array([-1, 1, 8, 1, 8, 1]),
        "pixel_shape": np.array([1, 1, 1, 16, 1, 16]),
        "gradient_shape": np.array([-1, 1, 128, 128]),
        "one": np.ones(1, np.float32),
        "share": np.full(1, 1 / 256, np.float32),
    }
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    steps = [
        ("Reshape", ["cotangent", "flat_shape"], "cotangent_flat"),
        ("Sub", ["one", "efficiency"], "rest"),
        ("Mul", ["efficiency", "rest"], "slope"),
        ("Mul", ["slope", "cotangent_flat"], "pulled"),
        ("Transpose", ["weight"], "weight_transposed"),
        ("MatMul", ["pulled", "weight_transposed"], "squares"),
        ("Mul", ["squares", "share"], "shared"),
        ("Reshape", ["shared", "square_shape"], "spread"),
        ("Expand", ["spread", "pixel_shape"], "pixels"),
        ("Reshape", ["pixels", "gradient_shape"], "gradient"),
    ]
    graph.node.extend(helper.make_node(kind, inputs, [output]) for kind, inputs, output in steps)
    graph.input.append(helper.make_tensor_value_info("cotangent", TensorProto.FLOAT, ["N", 4, 301]))
    graph.output.append(helper.make_tensor_value_info("gradient", TensorProto.FLOAT, ["N", 1, 128, 128]))
    return model


def write_repository(root: Path, model: onnx.ModelProto, version: int = 1) -> Path:
    (properties,) = model.metadata_props or [onnx.StringStringEntryProto()]
    name = json.loads(properties.value or "{}").get("name", "diffractionnet")
    folder = root / ("diffractionnet_vjp" if name == "diffractionnet_vjp" else "diffractionnet") / str(version)
    folder.mkdir(parents=True)
    onnx.save(model, folder / "model.onnx")
    return root


@dataclass
class RunningServer:
    url: str
    process: subprocess.Popen[str]
    banner: str
    log: list[str]

    @property
    def address(self) -> str:
        return self.url.removeprefix("http://")


@contextmanager
def running_server(*arguments: str, timeout: float = 60) -> Iterator[RunningServer]:
    """Start `metaspec-serve` on a free port, wait until it says where it serves, end it afterwards."""
    command = [sys.executable, "-m", "metaspec_server.cli", "--port", "0", *arguments]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("METASPEC_")}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, bufsize=1
    )
    watchdog = threading.Timer(timeout, process.kill)
    watchdog.start()
    try:
        banner = ""
        assert process.stdout is not None
        while (match := re.search(r"serves at (\S+)", banner)) is None:
            line = process.stdout.readline()
            if not line:
                raise RuntimeError(f"the server did not start within {timeout:g} s, or ended: {banner}")
            banner += line
        watchdog.cancel()
        log: list[str] = []
        reader = threading.Thread(target=log.extend, args=[process.stdout], daemon=True)
        reader.start()  # a pipe that nobody reads fills up and blocks the server
        yield RunningServer(match[1], process, banner, log)
    finally:
        watchdog.cancel()
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            raise


@pytest.fixture(scope="session")
def small_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_repository(tmp_path_factory.mktemp("repository"), small_model())
    return write_repository(root, small_gradient_model())


@pytest.fixture(scope="session")
def server(small_repository: Path) -> Iterator[RunningServer]:
    with running_server("--repository", str(small_repository), "--max-structures", "600") as running:
        yield running


@pytest.fixture(scope="session")
def start_server() -> Callable[..., object]:
    return running_server


@pytest.fixture(scope="session")
def make_model() -> Callable[..., onnx.ModelProto]:
    return small_model


@pytest.fixture(scope="session")
def make_gradient_model() -> Callable[..., onnx.ModelProto]:
    return small_gradient_model


@pytest.fixture(scope="session")
def make_repository() -> Callable[..., Path]:
    return write_repository


@pytest.fixture(scope="session")
def expected(small_repository: Path) -> Callable[[np.ndarray], np.ndarray]:
    """What the small model computes, by ONNX Runtime alone."""
    import onnxruntime

    session = onnxruntime.InferenceSession(small_repository / "diffractionnet" / "1" / "model.onnx")

    def run(structures: np.ndarray) -> np.ndarray:
        density = structures.reshape(-1, 1, 128, 128).astype(np.float32)
        return session.run(None, {"structure": density})[0]

    return run


@pytest.fixture(scope="session")
def expected_gradient(small_repository: Path) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """What the small gradient model computes, by ONNX Runtime alone."""
    import onnxruntime

    session = onnxruntime.InferenceSession(small_repository / "diffractionnet_vjp" / "1" / "model.onnx")

    def run(structures: np.ndarray, cotangent: np.ndarray) -> np.ndarray:
        density = structures.reshape(-1, 1, 128, 128).astype(np.float32)
        return session.run(["gradient"], {"structure": density, "cotangent": cotangent.astype(np.float32)})[0][:, 0]

    return run


@pytest.fixture
def structures() -> np.ndarray:
    return np.random.default_rng(7).integers(0, 2, (5, 128, 128), dtype=np.uint8)
