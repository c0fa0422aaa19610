"""The server as a front of a real Triton."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from metaspec_testing.servers import RunningServer, running_server
from metaspec_testing.small_models import (
    METADATA,
    Array,
    Expected,
    ExpectedGradient,
    hanging_model,
    small_gradient_model,
    small_model,
    write_repository,
)
from metaspec_testing.triton import Triton, python_repository, start_triton

CONFIG = """
name: "{name}"
backend: "onnxruntime"
max_batch_size: {max_batch}
input [ {inputs} ]
output [ {outputs} ]
dynamic_batching {{ }}
"""
STRUCTURE = '{ name: "structure", data_type: TYPE_FP32, dims: [ 1, 128, 128 ] }'
SPECTRA = '{ name: "spectra", data_type: TYPE_FP32, dims: [ 4, 301 ] }'
PACKED = {"Content-Type": "application/octet-stream", "Accept": "application/octet-stream"}


pytestmark = [pytest.mark.slow, pytest.mark.triton]


def broken_model() -> onnx.ModelProto:
    """A model that computes NaN."""
    model = small_model(METADATA | {"name": "broken"})
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "weight")
    weight.CopyFrom(numpy_helper.from_array(np.full((64, 1204), np.nan, np.float32), "weight"))
    return model


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_repository(tmp_path_factory.mktemp("source"), small_model())
    write_repository(root, small_gradient_model())
    texts = {
        "diffractionnet": CONFIG.format(max_batch=8, name="diffractionnet", inputs=STRUCTURE, outputs=SPECTRA),
        "diffractionnet_vjp": CONFIG.format(
            max_batch=128,
            name="diffractionnet_vjp",
            inputs=STRUCTURE + ', { name: "cotangent", data_type: TYPE_FP32, dims: [ 4, 301 ] }',
            outputs=SPECTRA + ', { name: "gradient", data_type: TYPE_FP32, dims: [ 1, 128, 128 ] }',
        ),
    }
    write_repository(root, broken_model())
    write_repository(root, hanging_model(METADATA | {"name": "hanging"}))
    for name in ("broken", "hanging"):
        texts[name] = CONFIG.format(max_batch=8, name=name, inputs=STRUCTURE, outputs=SPECTRA)
    for name, text in texts.items():
        (root / name / "config.pbtxt").write_text(text)
    return python_repository(root, tmp_path_factory.mktemp("triton") / "repository")


@pytest.fixture(scope="module")
def triton(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Triton]:
    with start_triton(repository, tmp_path_factory.mktemp("work")) as running:
        yield running


@pytest.fixture(scope="module")
def front(triton: Triton, repository: Path) -> Iterator[RunningServer]:
    flags = ("--engine", "triton", "--triton-url", triton.grpc, "--repository", str(repository), "--cache-mb", "0")
    with running_server(*flags) as server:
        yield server


def test_spectra_and_gradients(
    front: RunningServer, triton: Triton, structures: Array, expected: Expected, expected_gradient: ExpectedGradient
) -> None:
    assert f"diffractionnet version 1 on Triton at {triton.grpc}" in front.banner
    assert front.get("/v2/health/ready").status_code == 200
    body = np.packbits(structures, axis=None).tobytes()
    answer = front.post("/predict", content=body, headers=PACKED).raise_for_status()
    np.testing.assert_allclose(np.frombuffer(answer.content, np.float32), expected(structures).ravel(), atol=1e-6)
    cotangent = np.random.default_rng(0).normal(size=(5, 4, 301)).astype(np.float32)
    answer = front.post("/gradient", content=body + cotangent.tobytes(), headers=PACKED)
    gradient = np.frombuffer(answer.raise_for_status().content, np.float32)[5 * 4 * 301 :]
    np.testing.assert_allclose(gradient, expected_gradient(structures, cotangent).ravel(), atol=1e-6)


def test_a_model_whose_answers_do_not_fit_is_refused(front: RunningServer) -> None:
    (entry,) = (entry for entry in front.post("/v2/repository/index").json() if entry["name"] == "broken")
    assert entry["state"] == "UNAVAILABLE"
    assert "model.onnx: output spectra is not finite for a structure that is empty" in entry["reason"]
    assert front.get("/v2/models/broken").status_code == 404


def test_large_and_concurrent_requests_come_back_in_order(front: RunningServer, expected: Expected) -> None:
    rng = np.random.default_rng(1)
    requests = [rng.integers(0, 2, (size, 128, 128), dtype=np.uint8) for size in (50, 1, 9, 8, 17, 3)]

    def ask(structures: Array) -> Array:
        body = np.packbits(structures, axis=None).tobytes()
        answer = front.post("/predict", content=body, headers=PACKED, timeout=60).raise_for_status()
        return np.frombuffer(answer.content, np.float32).reshape(-1, 4, 301)

    with ThreadPoolExecutor(len(requests)) as pool:
        for structures, spectra in zip(requests, pool.map(ask, requests), strict=True):
            np.testing.assert_allclose(spectra, expected(structures), atol=1e-6)


def test_answers_of_many_megabytes(front: RunningServer, expected_gradient: ExpectedGradient) -> None:
    """100 gradients are more than the 4 MiB that gRPC takes by default."""
    rng = np.random.default_rng(2)
    structures = rng.integers(0, 2, (100, 128, 128), dtype=np.uint8)
    cotangent = rng.normal(size=(100, 4, 301)).astype(np.float32)
    body = np.packbits(structures, axis=None).tobytes() + cotangent.tobytes()
    answer = front.post("/gradient", content=body, headers=PACKED, timeout=60).raise_for_status()
    gradient = np.frombuffer(answer.content, np.float32)[100 * 4 * 301 :]
    np.testing.assert_allclose(gradient, expected_gradient(structures, cotangent).ravel(), atol=1e-6)


def test_a_version_that_triton_does_not_serve(triton: Triton, repository: Path) -> None:
    (repository / "diffractionnet" / "2").mkdir()
    try:
        (repository / "diffractionnet" / "2" / "model.onnx").write_bytes(small_model(seed=2).SerializeToString())
        flags = ("--engine", "triton", "--triton-url", triton.grpc, "--repository", str(repository))
        with running_server(*flags) as server:
            entries = server.post("/v2/repository/index").json()
            (entry,) = (e for e in entries if (e["name"], e["version"]) == ("diffractionnet", "2"))
            assert entry["state"] == "UNAVAILABLE"
            assert "does not serve version 2" in entry["reason"]
            assert server.get("/v2/models/diffractionnet").json()["versions"] == ["1"]
    finally:
        (repository / "diffractionnet" / "2" / "model.onnx").unlink()
        (repository / "diffractionnet" / "2").rmdir()


def test_a_triton_that_goes_away_and_comes_back(
    repository: Path, tmp_path: Path, structures: Array, expected: Expected
) -> None:
    body = np.packbits(structures, axis=None).tobytes()
    with start_triton(repository, tmp_path) as triton:
        flags = ("--engine", "triton", "--triton-url", triton.grpc, "--repository", str(repository), "--cache-mb", "0")
        with running_server(*flags) as server:
            server.post("/predict", content=body, headers=PACKED).raise_for_status()
            triton.process.kill()
            triton.process.wait(20)
            answer = server.post("/predict", content=body, headers=PACKED, timeout=60)
            assert answer.status_code == 503
            assert answer.headers["Retry-After"] == "2"
            assert f"Triton at {triton.grpc}" in answer.json()["detail"]
            assert server.get("/v2/health/ready").status_code == 503
            with start_triton(repository, tmp_path / "again", triton):
                deadline = time.monotonic() + 60
                while server.get("/v2/health/ready").status_code != 200:
                    assert time.monotonic() < deadline
                    time.sleep(0.1)
                answer = server.post("/predict", content=body, headers=PACKED, timeout=60)
    spectra = np.frombuffer(answer.raise_for_status().content, np.float32)
    np.testing.assert_allclose(spectra, expected(structures).ravel(), atol=1e-6)


def until_ready(server: RunningServer, path: str, status: int) -> None:
    deadline = time.monotonic() + 60
    while server.get(path).status_code != status:
        assert time.monotonic() < deadline, f"{path} was never {status}"
        time.sleep(0.02)


def test_a_triton_that_is_stopped_and_goes_on(
    front: RunningServer, triton: Triton, structures: Array, expected: Expected
) -> None:
    body = np.packbits(structures, axis=None).tobytes()
    try:
        triton.process.send_signal(signal.SIGSTOP)
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(front.post, "/predict", content=body, headers=PACKED)
            until_ready(front, "/v2/health/ready", 503)
            assert front.get("/v2/models/diffractionnet/ready").status_code == 503
            triton.process.send_signal(signal.SIGCONT)
            spectra = np.frombuffer(asked.result(60).raise_for_status().content, np.float32)
        np.testing.assert_allclose(spectra, expected(structures).ravel(), atol=1e-6)
        until_ready(front, "/v2/health/ready", 200)
        triton.process.send_signal(signal.SIGSTOP)
        until_ready(front, "/v2/health/ready", 503)
        answer = front.post("/predict", content=body, headers=PACKED)
        assert answer.status_code == 503
        assert answer.headers["Retry-After"] == "2"
        assert f"Triton at {triton.grpc} does not serve diffractionnet version 1" in answer.json()["detail"]
    finally:
        triton.process.send_signal(signal.SIGCONT)
    until_ready(front, "/v2/health/ready", 200)


def test_no_triton_at_all(repository: Path) -> None:
    flags = ("--engine", "triton", "--triton-url", "127.0.0.1:9", "--repository", str(repository))
    reason = r"Triton at 127\.0\.0\.1:9 does not serve version 1 \(yet\)"
    with pytest.raises(RuntimeError, match=reason), running_server(*flags, "--poll-interval", "0"):
        pass
    with running_server(*flags, "--poll-interval", "0.05") as server:  # a Triton may start later
        assert server.get("/v2/health/ready").status_code == 503
        index = server.post("/v2/repository/index").json()
        assert {entry["state"] for entry in index} == {"UNAVAILABLE"}
        assert re.search(reason, index[0]["reason"])
        time.sleep(0.3)  # several polls
    output = server.banner + "".join(server.log)
    assert output.count("the server at 127.0.0.1:9 does not answer") == 1


def test_a_model_that_hangs_on_a_triton_that_lives(
    triton: Triton, repository: Path, structures: Array, expected: Expected
) -> None:
    """The last test of this Triton, which goes on computing."""
    one = np.zeros((1, 128, 128), np.uint8)
    one[0, 40, 50] = 1
    flags = ("--triton-url", triton.grpc, "--repository", str(repository), "--cache-mb", "0", "--engine-timeout", "2")
    with running_server("--engine", "triton", *flags, "--models", "diffractionnet,hanging") as server:
        assert server.get("/v2/health/ready").status_code == 200
        answer = server.post("/predict?model=hanging", content=np.packbits(one).tobytes(), headers=PACKED)
        assert answer.status_code == 504
        assert answer.json()["detail"] == "not finished within 2 s"
        until_ready(server, "/v2/models/hanging/ready", 503)
        assert server.get("/v2/health/ready").status_code == 503
        body = np.packbits(structures, axis=None).tobytes()
        answer = server.post("/predict", content=body, headers=PACKED).raise_for_status()
        assert server.get("/v2/models/diffractionnet/ready").status_code == 200
    np.testing.assert_allclose(np.frombuffer(answer.content, np.float32), expected(structures).ravel(), atol=1e-6)
    triton.process.kill()  # it would wait for its model
