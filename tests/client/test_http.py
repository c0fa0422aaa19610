"""What the client makes of all that a server may answer over HTTP: a real server on a real port that answers as told."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import httpx
import numpy as np
import pytest

from metaspec import (
    AsyncSurrogate,
    DeadlineExceeded,
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
from metaspec_testing.scripted import METADATA, Answer, good, scripted

ONE = np.zeros((128, 128))
BUSY: Answer = (503, {"Retry-After": "0"}, b'{"error": "the queue is full"}')


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, float]]:
    """The ranges that pauses were drawn from; the pauses themselves are none."""
    ranges: list[tuple[float, float]] = []

    def uniform(low: float, high: float) -> float:
        ranges.append((low, high))
        return 0.0

    monkeypatch.setattr("metaspec._surrogate.base.random.uniform", uniform)
    return ranges


def test_a_bare_triton_that_is_busy_and_drops_connections_is_asked_again() -> None:
    with scripted(BUSY, None, (502, {}, b"bad gateway"), good(2)) as server, Surrogate(server.url) as surrogate:
        spectra = surrogate.predict(np.zeros((2, 128, 128)))
        assert surrogate.sent == (1, 2), "asking again does not count"
    assert (spectra.values == 0.25).all()
    assert spectra.wavelengths_nm.shape == (301,)
    assert len(server.asked) == 4


async def test_asking_again_for_asyncio() -> None:
    with scripted(BUSY, None, good(1)) as server:
        async with AsyncSurrogate(server.url) as surrogate:
            assert (await surrogate.predict(ONE)).values.shape == (1, 4, 301)
            assert surrogate.sent == (1, 1)
    assert len(server.asked) == 3


def test_pauses_grow_up_to_a_limit(pauses) -> None:
    with scripted(*[BUSY] * 9, good(1)) as server, Surrogate(server.url, retries=9) as surrogate:
        surrogate.predict(ONE)
    assert pauses == [(0, seconds) for seconds in (0.25, 0.5, 1, 2, 4, 8, 8, 8, 8)]


def test_giving_up_on_a_busy_server() -> None:
    with (
        scripted(BUSY, BUSY) as server,
        Surrogate(server.url, retries=1) as surrogate,
        pytest.raises(ServerBusy, match=r"the queue is full .* Try again later") as caught,
    ):
        surrogate.predict(ONE)
    assert caught.value.retry_after == 0


def test_a_gateway_without_a_server_behind_it() -> None:
    with (
        scripted((502, {}, b"")) as server,
        Surrogate(server.url, retries=0) as surrogate,
        pytest.raises(ServerUnreachable, match=r"Bad Gateway .* Is metaspec-serve running"),
    ):
        surrogate.predict(ONE)


@pytest.mark.parametrize("kind", ["seconds", "date"])
async def test_waiting_as_long_as_the_server_asks(kind: str, pauses) -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=3), usegmt=True)  # in whole seconds: 2 or more
    busy: Answer = (429, {"Retry-After": "2" if kind == "seconds" else later}, b'{"error": "the queue is full"}')
    with scripted(busy, good(1), busy, good(1)) as server:
        started = time.monotonic()
        if kind == "seconds":
            with Surrogate(server.url) as surrogate:
                surrogate.predict(ONE)
        else:
            async with AsyncSurrogate(server.url) as asynchronous:
                await asynchronous.predict(ONE)
        assert time.monotonic() - started > 1.5
    assert len(server.asked) == 2


def test_no_limit_to_what_the_server_asks_but_the_timeout(pauses) -> None:
    with Surrogate("http://127.0.0.1:9", timeout=300) as surrogate:
        assert surrogate._pause(0, ServerBusy("the queue is full", 240.0)) == 240
        with pytest.raises(ServerBusy):
            surrogate._pause(0, ServerBusy("the queue is full", 301.0))


def test_more_patience_than_there_is() -> None:
    busy: Answer = (503, {"Retry-After": "3600"}, b'{"error": "the queue is full"}')
    with (
        scripted(busy) as server,
        Surrogate(server.url, timeout=5) as surrogate,
        pytest.raises(ServerBusy) as caught,
    ):
        surrogate.predict(ONE)
    assert caught.value.retry_after == 3600
    assert len(server.asked) == 1


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_a_new_version_in_the_middle_of_a_call(kind: str) -> None:
    answers = [good(1, "1"), good(1, "2"), good(1, "1"), good(1, "2"), good(1, "2")]
    structures = np.zeros((3, 128, 128))
    with scripted(*answers) as server:
        if kind == "sync":
            with Surrogate(server.url, batch_size=1, concurrency=1) as surrogate:
                spectra = surrogate.predict(structures)
        else:
            async with AsyncSurrogate(server.url, batch_size=1, concurrency=1) as surrogate:
                spectra = await surrogate.predict(structures)
    assert (spectra.values == 0.5).all(), "all of the new version"
    assert spectra.version == "2"
    plain, pinned = "/v2/models/diffractionnet/infer", "/v2/models/diffractionnet/versions/2/infer"
    assert server.asked == [plain, plain, plain, pinned, pinned]


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_a_new_version_has_wavelengths_of_its_own(kind: str) -> None:
    def describe(path: str) -> dict[str, Any]:
        first = 500 if path.endswith("/versions/2") else 400
        return METADATA | {"parameters": {"wavelengths_nm": list(range(first, first + 301)), "channels": list("abcd")}}

    with scripted(good(1, "1"), good(1, "2"), good(1, "2")) as server:
        server.describe = describe
        if kind == "sync":
            with Surrogate(server.url) as surrogate:
                spectra = [surrogate.predict(ONE) for _ in range(3)]
                assert surrogate.metadata().version == "2"
        else:
            async with AsyncSurrogate(server.url) as asynchronous:
                spectra = [await asynchronous.predict(ONE) for _ in range(3)]
    assert [(one.version, one.wavelengths_nm[0]) for one in spectra] == [("1", 400), ("2", 500), ("2", 500)]


def test_a_new_version_of_another_shape_is_known_to_the_next_call() -> None:
    outputs = [{"name": "spectra", "datatype": "FP32", "shape": [-1, 3, 200]}]
    with scripted(good(1), good(1)) as server, Surrogate(server.url) as surrogate:
        server.describe = lambda path: (
            METADATA
            | {
                "outputs": outputs,
                "parameters": {"wavelengths_nm": list(range(400, 600)), "channels": list("abc")},
            }
        )
        with pytest.raises(
            ProtocolError, match=r"expected float32 spectra of shape \(1, 3, 200\), got .*\(1, 4, 301\)"
        ):
            surrogate.predict(ONE)
        server.describe = lambda path: METADATA
        assert surrogate.predict(ONE).values.shape == (1, 4, 301)


def tensor(**changes: Any) -> Answer:
    fields = {"name": "spectra", "datatype": "FP32", "shape": [1, 4, 301], "parameters": {"binary_data_size": 4816}}
    header = json.dumps({"outputs": [fields | changes]}).encode()
    return 200, {"Inference-Header-Content-Length": str(len(header))}, header + bytes(4816)


@pytest.mark.parametrize(
    ("answer", "kind", "message"),
    [
        ((400, {}, b'{"error": "no"}'), ServerError, r"no \(HTTP 400 from http.*\). The server's log"),
        ((400, {}, b'{"error": "batch-size must be <= 8 for x"}'), RequestTooLarge, "Lower batch_size"),
        ((401, {}, b'{"error": "no key"}'), NotAllowed, "api_key"),
        ((404, {}, b'{"error": "no such model"}'), ModelUnavailable, "Check model and version"),
        ((413, {}, b'{"error": "too large"}'), RequestTooLarge, "Lower batch_size"),
        ((500, {}, b"oops"), ServerError, "oops"),
        ((500, {}, b"[1]"), ServerError, r"\[1\]"),
        ((504, {}, b'{"error": "late"}'), DeadlineExceeded, "Raise timeout"),
        (
            (308, {"Location": "https://elsewhere"}, b""),
            ServerError,
            "redirects to https://elsewhere: use that address",
        ),
        ((200, {"Content-Encoding": "gzip"}, b"not gzip"), ProtocolError, "cannot be read"),
        ((200, {}, b"garbage"), ProtocolError, "cannot be read"),
        ((200, {"Inference-Header-Content-Length": "4"}, b"nope"), ProtocolError, "cannot be read"),
        ((200, {"Inference-Header-Content-Length": "2"}, b"[]"), ProtocolError, "cannot be read"),
        ((200, {"Inference-Header-Content-Length": "17"}, b'{"outputs": null}'), ProtocolError, "cannot be read"),
        ((200, {"Inference-Header-Content-Length": "15"}, b'{"outputs": []}'), ProtocolError, "has no spectra"),
        (good(3), ProtocolError, r"shape \(1, 4, 301\), got float32 of shape \(3, 4, 301\)"),
        (tensor(datatype="UINT8", shape=[4816]), ProtocolError, "got uint8"),
        (tensor(datatype="FP16"), ProtocolError, "FP16"),
        (tensor(shape=[1, 4, 302]), ProtocolError, "cannot be read"),
        (tensor(shape=[1, 4, 300]), ProtocolError, "4816 bytes for FP32"),
        (tensor(shape=[10**30]), ProtocolError, "cannot be read"),
        (tensor(shape="x"), ProtocolError, "cannot be read"),
        (tensor(parameters=None), ProtocolError, "cannot be read"),
    ],
)
def test_answers_that_another_attempt_would_not_mend(answer: Answer, kind: type[MetaSpecError], message: str) -> None:
    with scripted(answer) as server, Surrogate(server.url) as surrogate, pytest.raises(kind, match=message) as caught:
        surrogate.predict(ONE)
    assert type(caught.value) is kind
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    "document",
    [
        b"garbage",
        [],
        {},
        METADATA | {"inputs": None},
        METADATA | {"outputs": [{"name": "spectra", "shape": [-1]}]},
        METADATA | {"outputs": [{"name": "spectra", "shape": [-1, 5, 301]}]},
        METADATA | {"outputs": [{"name": "spectra", "shape": None}]},
        METADATA | {"parameters": {"wavelengths_nm": [400]}},
        METADATA | {"parameters": {"wavelengths_nm": "x"}},
        METADATA | {"parameters": {"channels": ["R"]}},
    ],
)
def test_descriptions_that_make_no_sense(document: Any) -> None:
    with scripted() as server, Surrogate(server.url) as surrogate:
        server.describe = lambda path: document
        with pytest.raises(ProtocolError, match="Is this a server of models"):
            surrogate.metadata()
    assert server.asked == []


def test_a_web_server_of_another_kind(server) -> None:
    with Surrogate(f"{server.url}/docs") as surrogate, pytest.raises(ProtocolError, match=r"HTTP 404 from .*/docs/v2"):
        surrogate.metadata()


def test_a_server_that_does_not_answer_in_time() -> None:
    with (
        scripted(good(1), hold=2) as server,
        Surrogate(server.url, timeout=0.2) as surrogate,
        pytest.raises(DeadlineExceeded, match=r"did not answer within 0.2 s. Raise timeout"),
    ):
        surrogate.predict(ONE)
    assert len(server.asked) == 1, "what took too long takes too long again"


async def test_errors_keep_their_cause_for_asyncio() -> None:
    async with AsyncSurrogate("http://127.0.0.1:9", retries=0) as surrogate:
        with pytest.raises(ServerUnreachable) as caught:
            await surrogate.predict(np.zeros((2, 128, 128)))
    assert isinstance(caught.value.__cause__, httpx.ConnectError)
