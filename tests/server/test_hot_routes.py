"""Routes answered before FastAPI: the same answers as through it, and what they do not answer is passed on."""

from __future__ import annotations

from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from starlette.types import Message, Receive, Scope, Send

from metaspec_server.http.hot_routes import HotRoutes
from metaspec_testing.servers import RunningServer
from metaspec_testing.small_models import Array

RAW = "application/octet-stream"
INFER = "/v2/models/diffractionnet/infer"


def comparable(answer: httpx.Response) -> tuple[int, dict[str, str], bytes]:
    headers = {name: value for name, value in answer.headers.items() if name not in ("date", "x-request-id")}
    return answer.status_code, headers, answer.content


@pytest.mark.parametrize("path", ["/predict", "/gradient"])
@pytest.mark.parametrize(
    "headers",
    [
        {"Content-Type": RAW, "Accept": RAW},
        {"Content-Type": RAW},
        {"Content-Type": RAW, "Accept": "application/x-npy"},
        {"Content-Type": RAW, "Accept": RAW, "Accept-Encoding": "gzip, identity;q=0"},
        {"Content-Type": "text/plain"},
        {"Content-Type": RAW, "Accept": "text/html"},
        {"Content-Type": "application/json"},
        {"Content-Type": RAW, "Content-Encoding": "br"},
        {"Content-Type": RAW, "Accept-Encoding": "identity;q=0, *;q=0"},
    ],
)
def test_an_answer_is_the_same_with_a_query_which_fastapi_reads(
    server: RunningServer, structures: Array, path: str, headers: dict[str, str]
) -> None:
    packed = np.packbits(structures.reshape(len(structures), -1) > 0.5, axis=1).tobytes()
    cotangent = np.ones((len(structures), 4, 301), np.float32).tobytes() if path == "/gradient" else b""
    answers = [server.post(path + query, content=packed + cotangent, headers=headers) for query in ("", "?priority=0")]
    assert comparable(answers[0]) == comparable(answers[1])


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/predict", 405),
        ("PUT", INFER, 405),
        ("POST", "/v2/models//infer", 404),
        ("POST", "/v2/models/diffractionnet/versions//infer", 404),
        ("POST", "/v2/models/diffractionnet/versions/1/2/infer", 404),
        ("POST", "/predict/diffractionnet", 404),
    ],
)
def test_other_methods_and_paths_are_refused_as_everywhere(
    server: RunningServer, method: str, path: str, status: int
) -> None:
    with server.client() as client:
        answer = client.request(method, path)
    assert answer.status_code == status
    assert answer.headers["X-Frame-Options"] == "DENY"
    if status == 405:
        assert answer.headers["Allow"] == "POST"


def test_a_slash_at_the_end_and_a_version_are_counted_under_the_template_of_the_route(server: RunningServer) -> None:
    def counted(template: str) -> float:
        lines = server.get("/metrics").text.splitlines()
        name = f'metaspec_requests_total{{route="{template}",status="400"}}'
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name))

    templates = {
        "/v2/models/{model}/infer": f"{INFER}/",
        "/v2/models/{model}/versions/{version}/infer": "/v2/models/diffractionnet/versions/1/infer",
    }
    for template, path in templates.items():
        before = counted(template)
        assert server.post(path, json=[]).json() == {"error": "the request must be a JSON object, got list"}
        assert counted(template) == before + 1


async def test_an_unexpected_error_is_answered_and_raised_for_the_log() -> None:
    async def passed_on(scope: Scope, receive: Receive, send: Send) -> None:
        raise AssertionError("the route must not be passed on")

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        return {"type": "http.request"}

    scope: dict[str, Any] = {"type": "http", "method": "POST", "path": INFER, "query_string": b"", "headers": []}
    with pytest.raises(AttributeError, match="service"):  # the application has none
        await HotRoutes(passed_on, FastAPI())(scope, receive, send)
    start, body = sent
    assert start["status"] == 500
    assert (b"connection", b"close") in start["headers"]
    assert b"unexpected error" in body["body"]
