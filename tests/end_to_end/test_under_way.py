"""Work in progress when a caller disconnects or the server is stopped. The bundled model is slow enough to be interrupted."""

from __future__ import annotations

import re
import signal
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from metaspec_server.settings import bundled_repository
from metaspec_testing.servers import RunningServer, running_server

pytestmark = pytest.mark.slow

HEADERS = {"Content-Type": "application/octet-stream", "Accept": "application/octet-stream"}


def packed(count: int) -> bytes:
    return np.random.default_rng(count).integers(0, 256, (count, 2048), np.uint8).tobytes()


def metric(server: RunningServer, name: str) -> float:
    text = server.get("/metrics").text
    (line,) = re.findall(rf'^metaspec_{name}\{{model="diffractionnet".*\}} (.*)$', text, re.MULTILINE)
    return float(line)


@pytest.fixture(scope="module")
def one_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A repository of the large bundled model alone, which starts faster than all of them."""
    root = tmp_path_factory.mktemp("models")
    (root / "diffractionnet").symlink_to(bundled_repository() / "diffractionnet")
    return str(root)


def until(server: RunningServer, condition: Callable[[float], bool], what: str) -> None:
    """Wait until the number of structures in the queue is as wanted."""
    deadline = time.monotonic() + 60
    while not condition(metric(server, "queue_depth")):
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def until_structures_wait(server: RunningServer) -> None:
    until(server, lambda count: count > 0, "no structure waits")


def test_structures_of_a_caller_who_hangs_up_leave_the_queue(one_model: str) -> None:
    with running_server("--repository", one_model) as server:
        host, port = server.address.split(":")
        body = packed(2000)
        with socket.create_connection((host, int(port))) as leaving:
            head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
            leaving.sendall(head.encode() + b"Content-Type: application/octet-stream\r\n\r\n" + body)
            until_structures_wait(server)
        computed = metric(server, "batch_size_sum")
        until(server, lambda count: count == 0, "structures that nobody wants wait on")
        assert metric(server, "batch_size_sum") - computed < 1000, "they left the queue by being computed"
        assert server.post("/predict", content=packed(1), headers=HEADERS).status_code == 200
        assert not server.log


def test_a_full_queue_says_when_to_return(one_model: str) -> None:
    with running_server("--repository", one_model, "--max-queue", "100") as server, ThreadPoolExecutor() as pool:
        first = pool.submit(server.post, "/predict", content=packed(100), headers=HEADERS)
        until_structures_wait(server)
        second = server.post("/predict", content=packed(99), headers=HEADERS)
        assert second.status_code == 503
        assert "of 100 structures wait; try again later" in second.json()["detail"]
        assert int(second.headers["Retry-After"]) >= 1
        assert first.result(60).status_code == 200
        assert server.post("/predict", content=packed(99), headers=HEADERS).status_code == 200


def test_accepted_work_is_finished_before_the_end(one_model: str) -> None:
    with running_server("--repository", one_model, "--shutdown-timeout", "60") as server, ThreadPoolExecutor() as pool:
        answer = pool.submit(server.post, "/predict", content=packed(200), headers=HEADERS)
        until_structures_wait(server)
        server.process.send_signal(signal.SIGTERM)
        assert answer.result(60).status_code == 200
        assert len(answer.result().content) == 200 * 4 * 301 * 4
        server.process.wait(60)
        assert not server.log


def test_work_beyond_the_limit_is_dropped_at_the_end(one_model: str) -> None:
    with running_server("--repository", one_model, "--shutdown-timeout", "1") as server, ThreadPoolExecutor() as pool:
        answer = pool.submit(server.post, "/predict", content=packed(4000), headers=HEADERS)
        until_structures_wait(server)
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(60)
        assert answer.result(30).status_code == 503
        assert answer.result().json()["detail"] == "the server is shutting down"
