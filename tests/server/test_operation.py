"""Operation: metrics, logs, traces, keys, limits, and replacement of dead engines."""

from __future__ import annotations

import asyncio
import ctypes
import gzip
import http.server
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import httpx
import numpy as np
import pytest
import uvicorn
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from prometheus_client.parser import text_string_to_metric_families

from metaspec_server.core.keys import ApiKeys
from metaspec_server.core.service import Service
from metaspec_server.engines.factory import engine_factory
from metaspec_server.http.app import create_app
from metaspec_server.ops.metrics import Metrics
from metaspec_server.settings import Settings
from metaspec_testing.servers import RunningServer, running_server
from metaspec_testing.small_models import Array, Expected

PACKED = {"Content-Type": "application/octet-stream", "Accept": "application/octet-stream"}


def metrics(url: str, **options: Any) -> dict[tuple[str, str], float]:
    """Samples by name and by the value of the label `model` or `status`."""
    text = httpx.get(url + "/metrics", verify=False, **options).raise_for_status().text
    return {
        (sample.name, sample.labels.get("model", sample.labels.get("status", ""))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.labels.get("le", "+Inf") == "+Inf" and sample.labels.get("route", "/predict") == "/predict"
    }


@contextmanager
def in_this_process(repository: Path, **settings: Any) -> Iterator[tuple[str, Service]]:
    """The server on a real port, in a thread, so that a test can reach into it."""
    started: list[tuple[str, Service, uvicorn.Server]] = []
    ready = threading.Event()

    async def serve() -> None:
        options, counters = Settings(repository=repository, **settings), Metrics()
        service = await Service.start(options, engine_factory(options, counters.observe), counters)
        listener = socket.create_server(("127.0.0.1", 0))
        server = uvicorn.Server(
            uvicorn.Config(create_app(service, counters, ApiKeys(None)), log_config=None, lifespan="off")
        )
        started.append((f"http://127.0.0.1:{listener.getsockname()[1]}", service, server))
        ready.set()
        await server.serve(sockets=[listener])
        await service.close()

    thread = threading.Thread(target=asyncio.run, args=[serve()])
    thread.start()
    assert ready.wait(120)
    url, service, server = started[0]
    try:
        yield url, service
    finally:
        server.should_exit = True
        thread.join(60)


def test_metrics_count_what_happened(small_repository: Path, structures: Array) -> None:
    with running_server("--repository", str(small_repository), "--max-batch", "8", "--instances", "1") as server:
        body = np.packbits(structures, axis=None).tobytes()
        for _ in range(3):
            server.post("/predict", content=body, headers=PACKED).raise_for_status()
        server.post("/predict", content=b"x", headers=PACKED)
        server.get("/no/such/page")
        seen = metrics(server.url)
        assert seen["metaspec_requests_total", "200"] == 3
        assert seen["metaspec_requests_total", "422"] == 1
        assert seen["metaspec_structures_total", "diffractionnet"] == 15
        assert seen["metaspec_cache_misses_total", "diffractionnet"] == 5
        assert seen["metaspec_cache_hits_total", "diffractionnet"] == 10
        assert seen["metaspec_batch_size_sum", "diffractionnet"] == 5, "what is in the cache is not computed"
        assert seen["metaspec_batch_size_count", "diffractionnet"] == 1
        assert seen["metaspec_queue_seconds_count", "diffractionnet"] == 1
        assert seen["metaspec_compute_seconds_sum", "diffractionnet"] > 0
        assert seen["metaspec_queue_depth", "diffractionnet"] == 0
        assert seen["metaspec_engines", "diffractionnet"] == 1
        assert seen["metaspec_model_version", "diffractionnet"] == 1
        assert seen["metaspec_cache_bytes", ""] > 5 * 4 * 301 * 4


def counted(server: RunningServer, name: str) -> float:
    return metrics(server.url).get((name, "diffractionnet"), 0)


def test_repeats_within_a_request_are_computed_once(server: RunningServer, expected: Expected) -> None:
    different = np.random.default_rng(41).integers(0, 2, (3, 128, 128), np.uint8)  # in no cache yet
    repeated = different[[0, 1, 0, 0, 2, 1]]
    asked = counted(server, "metaspec_structures_total")
    answer = server.post("/predict", content=np.packbits(repeated, axis=None).tobytes(), headers=PACKED)
    np.testing.assert_allclose(np.frombuffer(answer.content, np.float32), expected(repeated).ravel(), atol=1e-6)
    assert counted(server, "metaspec_structures_total") - asked == 6


@pytest.fixture(scope="module")
def two_engines(small_repository: Path) -> Iterator[RunningServer]:
    """A server with two engines of each model and no cache."""
    flags = ("--repository", str(small_repository), "--instances", "2", "--threads", "2", "--cache-mb", "0")
    with running_server(*flags) as server:
        yield server


def test_two_engines_of_a_model(two_engines: RunningServer, structures: Array, expected: Expected) -> None:
    assert counted(two_engines, "metaspec_engines") == 2
    body = np.packbits(structures, axis=None).tobytes()
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: two_engines.post("/predict", content=body, headers=PACKED), range(40)))
    for answer in answers:
        spectra = np.frombuffer(answer.raise_for_status().content, np.float32)
        np.testing.assert_allclose(spectra, expected(structures).ravel(), atol=1e-6)


def test_without_a_cache_everything_is_computed(two_engines: RunningServer, structures: Array) -> None:
    computed = counted(two_engines, "metaspec_batch_size_sum")
    body = np.packbits(structures, axis=None).tobytes()
    answers = [two_engines.post("/predict", content=body, headers=PACKED).content for _ in range(2)]
    assert answers[0] == answers[1]
    assert counted(two_engines, "metaspec_batch_size_sum") - computed == 10


def test_a_dead_engine_is_noticed_and_replaced_and_no_request_is_lost(
    small_repository: Path, structures: Array, expected: Expected
) -> None:
    body = np.packbits(structures, axis=None).tobytes()
    with in_this_process(small_repository, cache_mb=0, instances=1) as (url, service):
        model = service.registry.find("diffractionnet")
        revive, may_revive = model.revive, threading.Event()
        model.revive = lambda: revive() if may_revive.is_set() else 0
        assert httpx.get(url + "/v2/health/ready").status_code == 200

        (thread,) = (thread for thread in threading.enumerate() if thread.name == "diffractionnet 1")
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(SystemExit))
        with ThreadPoolExecutor() as pool:
            waiting = pool.submit(httpx.post, url + "/predict", content=body, headers=PACKED, timeout=60)
            thread.join(60)
            assert not thread.is_alive()
            assert httpx.get(url + "/v2/health/live").status_code == 200
            assert httpx.get(url + "/v2/health/ready").status_code == 503
            assert httpx.get(url + "/v2/models/diffractionnet/ready").status_code == 503
            assert not waiting.done()
            may_revive.set()
            answer = waiting.result(60)
        assert answer.status_code == 200
        np.testing.assert_allclose(np.frombuffer(answer.content, np.float32), expected(structures).ravel(), atol=1e-6)
        assert httpx.get(url + "/v2/health/ready").status_code == 200
        assert metrics(url)["metaspec_engine_restarts_total", "diffractionnet"] == 1


def test_request_ids_and_structured_logs(small_repository: Path, structures: Array) -> None:
    flags = ("--repository", str(small_repository), "--log-level", "info", "--log-format", "json")
    with running_server(*flags) as server:
        given = server.get("/v2", headers={"X-Request-ID": "optimiser-7.step:12"})
        assert given.headers["X-Request-ID"] == "optimiser-7.step:12"
        made = server.get("/v2", headers={"X-Request-ID": "not an id " * 50 + "."}).headers["X-Request-ID"]
        assert len(made) == 32
        requests: list[dict[str, Any]] = []
        deadline = time.monotonic() + 60
        while len(requests) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
            requests = [line for line in map(json.loads, list(server.log)) if line["event"] == "request"]
        assert [line["request_id"] for line in requests] == ["optimiser-7.step:12", made]
        assert requests[0]["status"] == 200
        assert requests[0]["path"] == "/v2"
        assert requests[0]["ms"] > 0


def test_callers_cannot_forge_lines_of_the_text_log(small_repository: Path) -> None:
    with running_server("--repository", str(small_repository), "--log-level", "info") as server:
        server.get("/x%0A2026-01-01T00:00:00Z%20[error]%20forged%1B[2J%C2%85%E2%80%A8%0D")
        deadline = time.monotonic() + 60
        while not (lines := [line for line in list(server.log) if "forged" in line]):
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert len(lines) == 1
    assert r"/x\n2026-01-01T00:00:00Z [error] forged\x1b[2J\x85\u2028\r" in lines[0]
    assert len([line for line in server.log if "404" in line]) == 1


def test_tracebacks_cannot_forge_lines_of_the_text_log() -> None:
    code = """if True:
        import logging
        from metaspec_server.ops.logs import set_up_logging
        set_up_logging("info", "text")
        try:
            raise ValueError("first\\nsecond \\x1b[2J")
        except ValueError:
            logging.getLogger("it").exception("%s", "failed\\nforged", extra={"path": "/\\n"})
    """
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=240)
    first, *others = result.stderr.splitlines()
    assert r"failed\nforged" in first
    assert others, "the traceback"
    assert all(line.startswith("    ") for line in others)
    assert r"    second \x1b[2J" in others


def test_api_keys(small_repository: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("# of the two optimisers\nfirst-key-0123456789\n\nsecond-key-0123456789\n")
    with running_server("--repository", str(small_repository), "--api-keys", str(keys)) as server:
        for headers in (
            {},
            {"X-API-Key": "first-key-012345678"},
            {"X-API-Key": "# of the two optimisers"},
            {"Authorization": "Basic first-key-0123456789"},
            {"Authorization": "Bearer"},
        ):
            answer = server.get("/v2/models/diffractionnet", headers=headers)
            assert answer.status_code == 401
            assert "expected a valid API key" in answer.json()["error"]
            assert answer.headers["WWW-Authenticate"] == "Bearer"
        for headers in ({"X-API-Key": "second-key-0123456789"}, {"Authorization": "Bearer first-key-0123456789"}):
            assert server.get("/v2/models/diffractionnet", headers=headers).status_code == 200
            assert metrics(server.url, headers=headers)
        problem = server.post("/predict", content=b"")
        assert problem.headers["Content-Type"] == "application/problem+json"
        for path in ("/metrics", "/predict", "/gradient", "/v2/repository/index", "/v2/models/diffractionnet/infer"):
            assert server.post(path).status_code == 401, path
        for path in ("/", "/static/page.js", "/docs", "/contract", "/v2/health/live", "/v2/health/ready"):
            assert server.get(path).status_code == 200, path
        assert server.get("/static/../settings.py").status_code == 401


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "cannot be read"), ("# none\n", "no keys"), ("long-enough-012345\nshort\n", "line 2")],
)
def test_files_of_keys_that_cannot_be_used(
    small_repository: Path, tmp_path: Path, content: str | None, message: str
) -> None:
    if content is not None:
        (tmp_path / "keys").write_text(content)
    flags = ("--repository", str(small_repository), "--api-keys", str(tmp_path / "keys"))
    with pytest.raises(RuntimeError, match=message), running_server(*flags):
        pass


def read_answer(connection: socket.socket) -> bytes:
    answer = b""
    while chunk := connection.recv(65536):
        answer += chunk
    return answer


def test_slow_and_lying_clients(small_repository: Path) -> None:
    flags = ("--repository", str(small_repository), "--body-timeout", "0.5", "--max-body-bytes", "20000000")
    with running_server(*flags) as server:
        host, port = server.address.split(":")
        start = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/octet-stream\r\n"
        for head in (b"", b"GET /v2 HT", start):
            with socket.create_connection((host, int(port)), timeout=60) as undecided:
                undecided.sendall(head)
                assert read_answer(undecided).startswith(b"HTTP/1.1 408 ")
        with socket.create_connection((host, int(port)), timeout=60) as again:
            again.sendall(b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\nGET /v2 HT")
            answers = read_answer(again)
            assert answers.startswith(b"HTTP/1.1 200 ")
            assert b"HTTP/1.1 408 " in answers, "nor later on a connection that has been used"
        with socket.create_connection((host, int(port)), timeout=60) as silent:
            silent.sendall(start + b"Content-Length: 2048\r\n\r\n" + b"\0" * 100)
            answer = read_answer(silent)
            assert answer.startswith(b"HTTP/1.1 408 ")
            assert b"only 100 bytes of the body came" in answer
        with socket.create_connection((host, int(port)), timeout=60) as trickling:
            trickling.sendall(start + b"Content-Length: 2048\r\n\r\n")
            trickling.settimeout(0.05)
            answer = b""
            for _ in range(200):
                try:
                    trickling.sendall(b"\0")
                    answer = trickling.recv(65536)
                    break
                except TimeoutError:
                    continue
            assert answer.startswith(b"HTTP/1.1 408 "), "a byte now and then does not keep a connection"
        with socket.create_connection((host, int(port)), timeout=60) as lying:
            lying.sendall(start + b"Content-Length: 99999999999\r\n\r\n")
            assert read_answer(lying).startswith(b"HTTP/1.1 413 "), "before a byte of it came"
        with socket.create_connection((host, int(port)), timeout=60) as negative:
            negative.sendall(start + b"Content-Length: -5\r\n\r\n")
            assert read_answer(negative).startswith(b"HTTP/1.1 400 ")
        bomb = gzip.compress(gzip.compress(b"\0" * 10**7))
        headers = {"Content-Type": "application/octet-stream", "Content-Encoding": "gzip"}
        assert server.post("/predict", content=bomb, headers=headers).status_code == 422
        bomb = gzip.compress(b"\0" * 3 * 10**7)
        assert server.post("/predict", content=bomb, headers=headers).status_code == 413
        assert server.get("/v2/health/ready").status_code == 200
        assert [line for line in server.log if "Invalid HTTP request" not in line] == []


class Collector(http.server.BaseHTTPRequestHandler):
    """Receives OTLP traces over HTTP and keeps the names of the spans."""

    spans: ClassVar[list[tuple[str, bytes]]] = []

    def do_POST(self) -> None:
        message = ExportTraceServiceRequest()
        body = self.rfile.read(int(self.headers["Content-Length"]))
        message.ParseFromString(gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body)
        for resource in message.resource_spans:
            for scope in resource.scope_spans:
                self.spans.extend((span.name, span.trace_id) for span in scope.spans)
        self.send_response(200)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


def test_traces_reach_a_collector(small_repository: Path, structures: Array, monkeypatch: pytest.MonkeyPatch) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector) as collector:
        threading.Thread(target=collector.serve_forever, daemon=True).start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{collector.server_port}")
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        trace = "0af7651916cd43dd8448eb211c80319c"
        with running_server("--repository", str(small_repository)) as server:
            headers = PACKED | {"traceparent": f"00-{trace}-b7ad6b7169203331-01"}
            body = np.packbits(structures, axis=None).tobytes()
            server.post("/predict", content=body, headers=headers).raise_for_status()
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline and len({name for name, _ in Collector.spans}) < 2:
                time.sleep(0.05)
        collector.shutdown()
    names = {name for name, _ in Collector.spans}
    assert any("/predict" in name for name in names)
    assert "compute diffractionnet" in names
    assert {identifier.hex() for _, identifier in Collector.spans} == {trace}, "it continues the caller's trace"
