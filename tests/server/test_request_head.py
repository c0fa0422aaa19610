"""Limits of request heads, and uvicorn's private interface that `http/request_head.py` builds on: if it fails, look there."""

from __future__ import annotations

import asyncio
import inspect
import json
import re
import socket
import tomllib
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from packaging.requirements import Requirement
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from metaspec_server.http.request_head import MAX_HEAD_BYTES, MAX_HEADER_LINES, protocol_with_limits
from metaspec_testing.servers import RunningServer
from metaspec_testing.small_models import Array, Expected

PROJECT = Path(__file__).parents[2] / "server" / "pyproject.toml"
PARAMETERS = {
    "connection_made": ["self", "transport"],
    "data_received": ["self", "data"],
    "on_message_begin": ["self"],
    "on_url": ["self", "url"],
    "on_header": ["self", "name", "value"],
    "on_headers_complete": ["self"],
    "on_body": ["self", "body"],
    "on_message_complete": ["self"],
    "send_400_response": ["self", "msg"],
    "connection_lost": ["self", "exc"],
}
START = b"GET /v2 HTTP/1.1\r\nHost: x\r\n"
CHUNKED = (
    b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/octet-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
)


async def unused(scope: Any, receive: Any, send: Any) -> None:
    raise AssertionError("no request is made")


@pytest.mark.parametrize("method", PARAMETERS)
def test_uvicorn_has_the_methods_that_are_overridden(method: str) -> None:
    assert method in vars(HttpToolsProtocol)
    assert list(inspect.signature(vars(HttpToolsProtocol)[method]).parameters) == PARAMETERS[method]


async def test_uvicorn_has_the_attributes_that_are_used() -> None:
    config = uvicorn.Config(unused, lifespan="off")
    state = uvicorn.server.ServerState()
    protocol = HttpToolsProtocol(config=config, server_state=state, app_state={}, _loop=asyncio.get_running_loop())
    assert protocol.loop is asyncio.get_running_loop()
    assert vars(protocol)["cycle"] is None
    assert not protocol.pipeline
    assert hasattr(protocol, "transport")
    source = inspect.getsource(RequestResponseCycle)
    for attribute in ("keep_alive", "disconnected", "message_event", "response_started", "response_complete"):
        assert f"self.{attribute}" in source


def test_uvicorn_takes_the_protocol() -> None:
    protocol = protocol_with_limits(1.0, lambda status: None)
    config = uvicorn.Config(unused, http=protocol, lifespan="off")
    assert config.http is protocol


def test_uvicorn_is_pinned_to_a_minor_version() -> None:
    lines = tomllib.loads(PROJECT.read_text())["project"]["dependencies"]
    (pin,) = (Requirement(line) for line in lines if line.startswith("uvicorn"))
    installed = version("uvicorn")
    assert pin.specifier.contains(installed)
    major, minor, *_ = (int(part) for part in installed.split("."))
    assert not pin.specifier.contains(f"{major}.{minor + 1}.0")
    assert not pin.specifier.contains(f"{major + 1}.0.0")


def exchange(server: RunningServer, parts: Iterable[bytes]) -> bytes:
    """Everything that a server answers on one connection until it closes it; sending stops when it does."""
    host, port = server.address.split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        try:
            for part in parts:
                connection.sendall(part)
        except ConnectionError:
            pass
        answer = b""
        try:
            while chunk := connection.recv(65536):
                answer += chunk
        except ConnectionResetError:
            pass
        return answer


def refusals(server: RunningServer, status: int) -> float:
    """Number of requests without a route that were answered with a status."""
    text = server.get("/metrics").text
    found = re.search(rf'metaspec_requests_total{{route="unknown",status="{status}"}} (\S+)', text)
    return float(found[1]) if found else 0.0


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        pytest.param(START + b"A: b\r\n" * MAX_HEADER_LINES + b"\r\n", 431, id="many lines"),
        pytest.param(START + b"".join(b"A%d: %s\r\n" % (n, b"b" * 1000) for n in range(70)), 431, id="long lines"),
        pytest.param(START + b"A: " + b"b" * MAX_HEAD_BYTES + b"\r\n\r\n", 431, id="one long line"),
        pytest.param(START + b"A" * 10 * MAX_HEAD_BYTES, 431, id="one line without an end"),
        pytest.param(b"GET /" + b"v" * MAX_HEAD_BYTES + b" HTTP/1.1\r\n\r\n", 414, id="long target"),
        pytest.param(b"GET /" + b"v" * MAX_HEAD_BYTES, 414, id="target without an end"),
        pytest.param(b"\r\n" * MAX_HEAD_BYTES, 431, id="empty lines"),
        pytest.param(CHUNKED + b"0\r\n" + b"A: b\r\n" * MAX_HEADER_LINES + b"\r\n", 431, id="many trailers"),
        pytest.param(CHUNKED + b"0\r\nA: " + b"b" * MAX_HEAD_BYTES + b"\r\n\r\n", 431, id="long trailer"),
        pytest.param(CHUNKED + b"1;" + b"e" * 10 * MAX_HEAD_BYTES, 431, id="long chunk extension"),
        pytest.param(CHUNKED + b"x\r\n", 400, id="no chunk"),
        pytest.param(b"GET\r\n\r\n", 400, id="no request"),
    ],
)
def test_heads_that_are_too_large_are_answered_and_the_connection_closed(
    server: RunningServer, request_bytes: bytes, status: int
) -> None:
    before = refusals(server, status)
    answer = exchange(server, [request_bytes])
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    in_body = request_bytes.startswith(CHUNKED)  # of a request that has a route already
    assert refusals(server, status) == before + (not in_body)
    assert b"\r\nConnection: close\r\n" in answer
    assert answer.count(b"HTTP/1.1") == 1
    head, _, body = answer.partition(b"\r\n\r\n")
    if b"application/problem+json" in head:
        assert json.loads(body)["status"] == status
    else:
        assert request_bytes.startswith(START), "below /v2"
        assert json.loads(body).keys() == {"error"}


def test_heads_within_the_limits_are_served(server: RunningServer) -> None:
    lines = b"".join(b"A%d: %s\r\n" % (n, b"b" * 700) for n in range(80))
    assert exchange(server, [START, lines, b"Connection: close\r\n\r\n"]).startswith(b"HTTP/1.1 200 ")


def test_a_hundred_megabytes_of_header_lines_take_no_memory(server: RunningServer) -> None:
    peak = server.peak_bytes
    line = b"A: " + b"b" * 1000 + b"\r\n"
    answer = exchange(server, [START, *[line * 1000] * 100])
    assert answer.startswith(b"HTTP/1.1 431 ") or not answer  # reset where the caller went on for long
    assert server.peak_bytes - peak < 64 * 2**20


def test_an_answer_that_is_due_comes_first_and_is_the_last(
    server: RunningServer, structures: Array, expected: Expected
) -> None:
    """A caller would take the refusal of its second request for the answer to its first."""
    body = np.packbits(structures).tobytes()
    first = (
        b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/octet-stream\r\n"
        b"Accept: application/octet-stream\r\nContent-Length: %d\r\n\r\n" % len(body)
    )
    for second in (b"GET /" + b"v" * MAX_HEAD_BYTES, START + b"A: b\r\n" * (MAX_HEADER_LINES + 1), b"no request\r\n"):
        answer = exchange(server, [first + body + second])
        head, _, content = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ")
        spectra = np.frombuffer(content, "<f4").reshape(len(structures), 4, 301)
        np.testing.assert_allclose(spectra, expected(structures), atol=1e-6)
