from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import metaspec
import numpy as np
import pytest
from metaspec import (
    AsyncSurrogate,
    DeadlineExceeded,
    InvalidStructure,
    MetaSpecError,
    ModelUnavailable,
    ProtocolError,
    RequestTooLarge,
    ServerBusy,
    ServerError,
    ServerUnreachable,
    Surrogate,
)


def test_public_names() -> None:
    assert metaspec.__all__ == [
        "AsyncSurrogate",
        "DeadlineExceeded",
        "InvalidStructure",
        "MetaSpecError",
        "ModelUnavailable",
        "ProtocolError",
        "RequestTooLarge",
        "ServerBusy",
        "ServerError",
        "ServerUnreachable",
        "Spectra",
        "Surrogate",
    ]
    assert Surrogate.__module__ == "metaspec"


def test_predict(server, structures, expected) -> None:
    with Surrogate(server.url) as surrogate:
        assert surrogate.is_ready()
        spectra = surrogate.predict(structures)
        one = surrogate.predict(structures[0])
        density = surrogate.predict(structures[:, None] * 0.5)
    np.testing.assert_allclose(spectra.values, expected(structures), atol=1e-6)
    np.testing.assert_allclose(one.values, spectra.values[:1], atol=1e-6)
    np.testing.assert_allclose(density.values, expected(structures * 0.5), atol=1e-6)
    assert spectra.channels == ("R", "G1", "G2", "B")
    assert spectra.wavelengths_nm[[0, -1]].tolist() == [400, 700]
    assert (spectra.model, spectra.version) == ("diffractionnet", "1")


def test_large_arrays_are_split_and_keep_their_order(server, expected) -> None:
    structures = np.random.default_rng(5).integers(0, 2, (101, 128, 128), dtype=np.uint8)
    with Surrogate(server.url, batch_size=7, concurrency=5) as surrogate:
        np.testing.assert_allclose(surrogate.predict(structures).values, expected(structures), atol=1e-6)
        assert surrogate.predict(structures[:0]).values.shape == (0, 4, 301)


async def test_async(server, expected) -> None:
    structures = np.random.default_rng(6).integers(0, 2, (40, 128, 128), dtype=np.uint8)
    async with AsyncSurrogate(server.url, batch_size=7) as surrogate:
        assert await surrogate.is_ready()
        np.testing.assert_allclose((await surrogate.predict(structures)).values, expected(structures), atol=1e-6)
        with pytest.raises(InvalidStructure):
            await surrogate.predict(structures + 1)
    async with AsyncSurrogate(server.url, model="other") as surrogate:
        with pytest.raises(ModelUnavailable):
            await surrogate.predict(structures)


@pytest.mark.parametrize(
    ("structures", "message"),
    [
        (np.zeros((64, 64)), r"got \(64, 64\)"),
        (np.zeros((1, 2, 128, 128)), r"got \(1, 2, 128, 128\)"),
        (np.full((128, 128), np.nan), "got nan at structure 0, row 0, column 0"),
        (np.full((2, 128, 128), 255), "divide 8-bit images by 255"),
        (np.full((128, 128), "x"), "must be numbers"),
        ([[1], [1, 2]], "must be an array"),
    ],
)
def test_invalid_structures(server, structures: object, message: str) -> None:
    with Surrogate(server.url) as surrogate, pytest.raises(InvalidStructure, match=message) as caught:
        surrogate.predict(structures)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, MetaSpecError)


def test_what_the_server_refuses(server, structures) -> None:
    with Surrogate(server.url, model="other") as surrogate, pytest.raises(ModelUnavailable, match="no model 'other'"):
        surrogate.predict(structures)
    with Surrogate(server.url, version=3) as surrogate, pytest.raises(ModelUnavailable, match="no version '3'"):
        surrogate.predict(structures)
    with Surrogate(server.url, batch_size=1000) as surrogate, pytest.raises(RequestTooLarge, match="at most 600"):
        surrogate.predict(np.zeros((601, 128, 128), bool))


def test_nobody_there() -> None:
    with Surrogate("http://127.0.0.1:9", retries=1) as surrogate:
        assert not surrogate.is_ready()
        with pytest.raises(ServerUnreachable, match="Is metaspec-serve running"):
            surrogate.predict(np.zeros((128, 128)))


@pytest.mark.parametrize("setting", ["retries", "batch_size", "concurrency"])
def test_bad_settings(setting: str) -> None:
    with pytest.raises(ValueError, match=f"{setting} must be at least"):
        Surrogate(**{setting: -1})


METADATA = {
    "name": "diffractionnet",
    "versions": ["1"],
    "inputs": [{"name": "structure", "datatype": "FP32", "shape": [-1, 1, 128, 128]}],
    "outputs": [{"name": "spectra", "datatype": "FP32", "shape": [-1, 4, 301]}],
}
Answer = tuple[int, dict[str, str], bytes] | None


def good(rows: int) -> Answer:
    blob = np.full((rows, 4, 301), 0.25, "<f4").tobytes()
    tensor = {"name": "spectra", "datatype": "FP32", "shape": [rows, 4, 301]}
    header = json.dumps({"outputs": [tensor | {"parameters": {"binary_data_size": len(blob)}}]}).encode()
    return 200, {"Inference-Header-Content-Length": str(len(header))}, header + blob


@contextmanager
def scripted(*answers: Answer) -> Iterator[tuple[str, list[str]]]:
    """A server that speaks as a bare Triton does, and answers inference as told; None closes the connection."""
    script, asked = list(answers), []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.reply((200, {}, json.dumps(METADATA).encode()))

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            asked.append(self.path)
            self.reply(script.pop(0))

        def reply(self, answer: Answer) -> None:
            if answer is None:
                self.close_connection = True
                return
            status, headers, body = answer
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


BUSY: Answer = (503, {"Retry-After": "0"}, b'{"error": "the queue is full"}')


def test_a_bare_triton_that_is_busy_and_drops_connections_is_asked_again() -> None:
    with scripted(BUSY, None, (502, {}, b"bad gateway"), good(2)) as (url, asked), Surrogate(url) as surrogate:
        spectra = surrogate.predict(np.zeros((2, 128, 128)))
    assert (spectra.values == 0.25).all()
    assert spectra.wavelengths_nm.shape == (301,)
    assert len(asked) == 4


def test_giving_up_on_a_busy_server() -> None:
    with (
        scripted(BUSY, BUSY) as (url, _),
        Surrogate(url, retries=1) as surrogate,
        pytest.raises(ServerBusy, match="the queue is full") as caught,
    ):
        surrogate.predict(np.zeros((128, 128)))
    assert caught.value.retry_after == 0


def wrong_shape() -> Answer:
    return good(3)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (lambda: (400, {}, b'{"error": "no"}'), ServerError),
        (lambda: (500, {}, b"oops"), ServerError),
        (lambda: (504, {}, b'{"error": "late"}'), DeadlineExceeded),
        (lambda: (200, {}, b"garbage"), ProtocolError),
        (lambda: (200, {"Inference-Header-Content-Length": "4"}, b"nope"), ProtocolError),
        (wrong_shape, ProtocolError),
    ],
)
def test_answers_that_another_attempt_would_not_mend(answer: Callable[[], Answer], kind: type[MetaSpecError]) -> None:
    with scripted(answer()) as (url, asked), Surrogate(url) as surrogate, pytest.raises(kind):
        surrogate.predict(np.zeros((128, 128)))
    assert len(asked) == 1
