"""What becomes of work under way when a caller leaves or the server is told to stop. The bundled model is slow enough."""

from __future__ import annotations

import re
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np

HEADERS = {"Content-Type": "application/octet-stream", "Accept": "application/octet-stream"}


def packed(count: int) -> bytes:
    return np.random.default_rng(count).integers(0, 256, (count, 2048), np.uint8).tobytes()


def waiting(url: str) -> float:
    text = httpx.get(url + "/metrics").text
    (line,) = re.findall(r'^metaspec_queue_depth\{model="diffractionnet",.*\} (.*)$', text, re.MULTILINE)
    return float(line)


def until_structures_wait(url: str) -> None:
    while not waiting(url):
        time.sleep(0.01)


def test_structures_of_a_caller_who_hangs_up_leave_the_queue(start_server) -> None:
    with start_server() as server:
        host, port = server.address.split(":")
        body = packed(2000)
        with socket.create_connection((host, int(port))) as leaving:
            head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
            leaving.sendall(head.encode() + b"Content-Type: application/octet-stream\r\n\r\n" + body)
            until_structures_wait(server.url)
        deadline = time.monotonic() + 5  # to compute them would take longer
        while waiting(server.url):
            assert time.monotonic() < deadline, "nobody wants them any more"
            time.sleep(0.01)
        assert httpx.post(server.url + "/predict", content=packed(1), headers=HEADERS, timeout=60).status_code == 200
        assert not server.log


def test_a_full_queue_says_when_to_return(start_server) -> None:
    with start_server("--max-queue", "100") as server, ThreadPoolExecutor() as pool:
        first = pool.submit(httpx.post, server.url + "/predict", content=packed(100), headers=HEADERS, timeout=60)
        until_structures_wait(server.url)
        second = httpx.post(server.url + "/predict", content=packed(99), headers=HEADERS)
        assert second.status_code == 503
        assert "of 100 structures wait; try again later" in second.json()["detail"]
        assert int(second.headers["Retry-After"]) >= 1
        assert first.result(60).status_code == 200
        assert httpx.post(server.url + "/predict", content=packed(99), headers=HEADERS, timeout=60).status_code == 200


def test_accepted_work_is_finished_before_the_end(start_server) -> None:
    with start_server() as server, ThreadPoolExecutor() as pool:
        answer = pool.submit(httpx.post, server.url + "/predict", content=packed(200), headers=HEADERS, timeout=60)
        until_structures_wait(server.url)
        server.process.send_signal(signal.SIGTERM)
        assert answer.result(60).status_code == 200
        assert len(answer.result().content) == 200 * 4 * 301 * 4
        server.process.wait(20)
        assert not server.log


def test_work_beyond_the_limit_is_dropped_at_the_end(start_server) -> None:
    with start_server("--shutdown-timeout", "1") as server, ThreadPoolExecutor() as pool:
        answer = pool.submit(httpx.post, server.url + "/predict", content=packed(4000), headers=HEADERS, timeout=60)
        until_structures_wait(server.url)
        server.process.send_signal(signal.SIGTERM)
        started = time.monotonic()
        server.process.wait(20)
        assert time.monotonic() - started < 15
        assert answer.result(30).status_code == 503
        assert answer.result().json()["detail"] == "the server is shutting down"
