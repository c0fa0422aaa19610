from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import metaspec
import numpy as np
import pytest
from metaspec import (
    AsyncSurrogate,
    DeadlineExceeded,
    InvalidCotangent,
    InvalidStructure,
    MetaSpecError,
    ModelUnavailable,
    NotAllowed,
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
        "Evaluation",
        "InvalidCotangent",
        "InvalidStructure",
        "MetaSpecError",
        "ModelInfo",
        "ModelUnavailable",
        "NotAllowed",
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


def test_gradients(server, structures, expected, expected_gradient) -> None:
    rng = np.random.default_rng(2)
    density = rng.random((30, 128, 128))
    each, one = rng.normal(size=(30, 4, 301)), rng.normal(size=(4, 301))
    with Surrogate(server.url, batch_size=7) as surrogate:
        gradient = surrogate.gradient(density, each)
        assert (gradient.shape, gradient.dtype) == ((30, 128, 128), np.float32)
        np.testing.assert_allclose(gradient, expected_gradient(density, each), atol=1e-6)
        whole = np.broadcast_to(one, (5, 4, 301))
        np.testing.assert_allclose(surrogate.gradient(structures, one), expected_gradient(structures, whole), atol=1e-6)
        assert surrogate.gradient(structures[:0], one).shape == (0, 128, 128)


def brightness_of_blue(spectra: metaspec.Spectra) -> tuple[np.ndarray, np.ndarray]:
    """The mean square of channel B, and its derivative."""
    blue = spectra.channel("B")
    cotangent = np.zeros_like(spectra.values)
    cotangent[:, 3] = 2 * blue / blue.shape[1]
    return (blue**2).mean(axis=1), cotangent


def test_an_objective_and_its_gradient(server, expected) -> None:
    density = np.random.default_rng(3).uniform(0.1, 0.9, (3, 128, 128))
    step = np.zeros_like(density)
    step[:, 30:60, 90:120] = 1e-2
    with Surrogate(server.url) as surrogate:
        value, gradient, spectra = surrogate.predict_and_gradient(density, brightness_of_blue)
        more, less = (brightness_of_blue(surrogate.predict(density + sign * step))[0] for sign in (1, -1))
    np.testing.assert_allclose(value, (expected(density)[:, 3] ** 2).mean(axis=1), atol=1e-6)
    np.testing.assert_allclose((gradient * step).sum(axis=(1, 2)), (more - less) / 2, rtol=2e-2, atol=1e-7)
    assert len(spectra) == 3


async def test_gradients_for_asyncio(server, structures, expected_gradient) -> None:
    cotangent = np.random.default_rng(2).normal(size=(5, 4, 301))
    async with AsyncSurrogate(server.url, batch_size=2) as surrogate:
        gradient = await surrogate.gradient(structures, cotangent)
        np.testing.assert_allclose(gradient, expected_gradient(structures, cotangent), atol=1e-6)
        value, _, spectra = await surrogate.predict_and_gradient(structures, brightness_of_blue)
        np.testing.assert_allclose(value, brightness_of_blue(spectra)[0])
        with pytest.raises(InvalidCotangent):
            await surrogate.gradient(structures, cotangent[:2])


@pytest.mark.parametrize(
    ("cotangent", "message"),
    [
        (np.zeros((4, 300)), r"must be \(4, 301\) or \(5, 4, 301\), got \(4, 300\)"),
        (np.zeros((3, 4, 301)), r"got \(3, 4, 301\)"),
        (np.full((4, 301), np.nan), "finite, got nan"),
        (np.full((4, 301), 1e300), "finite, got inf"),
        (np.full((4, 301), "x"), "must be numbers"),
        ([[1], [1, 2]], "must be an array"),
    ],
)
def test_invalid_cotangents(server, structures, cotangent: object, message: str) -> None:
    with Surrogate(server.url) as surrogate, pytest.raises(InvalidCotangent, match=message) as caught:
        surrogate.gradient(structures, cotangent)
    assert isinstance(caught.value, ValueError)


def test_api_keys(small_repository, start_server, tmp_path, structures, expected) -> None:
    (tmp_path / "keys").write_text("a-key-for-the-tests\n")
    with start_server("--repository", str(small_repository), "--api-keys", str(tmp_path / "keys")) as server:
        with Surrogate(server.url, api_key="a-key-for-the-tests") as surrogate:
            np.testing.assert_allclose(surrogate.predict(structures).values, expected(structures), atol=1e-6)
        for wrong in (None, "another"):
            with Surrogate(server.url, api_key=wrong) as surrogate, pytest.raises(NotAllowed, match="valid API key"):
                surrogate.predict(structures)


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


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://127.0.0.1", ""])
def test_addresses_that_are_not_http(url: str) -> None:
    with pytest.raises(ValueError, match="url must start with http:// or https://"):
        Surrogate(url)


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


def good(rows: int, version: str = "1") -> Answer:
    blob = np.full((rows, 4, 301), 0.25 * int(version), "<f4").tobytes()
    tensor = {"name": "spectra", "datatype": "FP32", "shape": [rows, 4, 301]}
    outputs = [tensor | {"parameters": {"binary_data_size": len(blob)}}]
    header = json.dumps({"model_version": version, "outputs": outputs}).encode()
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


def test_a_date_to_return_at() -> None:
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=1), usegmt=True)
    busy: Answer = (503, {"Retry-After": soon}, b'{"error": "the queue is full"}')
    started = time.monotonic()
    with scripted(busy, good(1)) as (url, asked), Surrogate(url) as surrogate:
        surrogate.predict(np.zeros((128, 128)))
    assert time.monotonic() - started < 30
    assert len(asked) == 2


def test_more_patience_than_there_is() -> None:
    busy: Answer = (503, {"Retry-After": "3600"}, b'{"error": "the queue is full"}')
    with (
        scripted(busy) as (url, asked),
        Surrogate(url, timeout=5) as surrogate,
        pytest.raises(ServerBusy) as caught,
    ):
        surrogate.predict(np.zeros((128, 128)))
    assert caught.value.retry_after == 3600
    assert len(asked) == 1


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_a_new_version_in_the_middle_of_a_call(kind: str) -> None:
    answers = [good(1, "1"), good(1, "2"), good(1, "1"), good(1, "2"), good(1, "2")]
    structures = np.zeros((3, 128, 128))
    with scripted(*answers) as (url, asked):
        if kind == "sync":
            with Surrogate(url, batch_size=1, concurrency=1) as surrogate:
                spectra = surrogate.predict(structures)
        else:
            async with AsyncSurrogate(url, batch_size=1, concurrency=1) as surrogate:
                spectra = await surrogate.predict(structures)
    assert (spectra.values == 0.5).all(), "all of the new version"
    assert spectra.version == "2"
    plain, pinned = "/v2/models/diffractionnet/infer", "/v2/models/diffractionnet/versions/2/infer"
    assert asked == [plain, plain, plain, pinned, pinned]


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
        (lambda: (200, {"Inference-Header-Content-Length": "2"}, b"[]"), ProtocolError),
        (lambda: (200, {"Inference-Header-Content-Length": "17"}, b'{"outputs": null}'), ProtocolError),
        (lambda: (200, {"Inference-Header-Content-Length": "15"}, b'{"outputs": []}'), ProtocolError),
        (wrong_shape, ProtocolError),
    ],
)
def test_answers_that_another_attempt_would_not_mend(answer: Callable[[], Answer], kind: type[MetaSpecError]) -> None:
    with scripted(answer()) as (url, asked), Surrogate(url) as surrogate, pytest.raises(kind):
        surrogate.predict(np.zeros((128, 128)))
    assert len(asked) == 1


def test_binary_structures_travel_as_bits_where_the_server_takes_them(server, structures) -> None:
    from metaspec._protocol import encode_infer

    with Surrogate(server.url) as surrogate:
        assert surrogate.metadata().takes_bits
    stacked = structures[:, None]
    bits, _ = encode_infer(stacked, None, takes_bits=True)
    floats, _ = encode_infer(stacked, None, takes_bits=False)
    grey, _ = encode_infer(stacked * 0.5, None, takes_bits=True)
    assert len(bits) < 5 * 2048 + 300 < 5 * 65536 < len(floats)
    assert len(grey) > 5 * 65536
    assert bits.endswith(np.packbits(structures).tobytes())
