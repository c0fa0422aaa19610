"""What the client makes of all that a server may answer over HTTP: a real server on a real port that answers as told."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import httpx
import numpy as np
import pytest

import metaspec
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
from metaspec._surrogate.base import SurrogateBase
from metaspec_contract.process import Process
from metaspec_testing.five_channels import metadata as five_channel_metadata
from metaspec_testing.scripted import METADATA, TENSORS, Answer, bare_triton, good, scripted
from metaspec_testing.servers import RunningServer

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
        server.describe = bare_triton()
        spectra = surrogate.predict(np.zeros((2, 128, 128)))
        assert surrogate.sent == (1, 2), "asking again does not count"
    assert (spectra.values == 0.25).all()
    assert spectra.wavelengths_nm.shape == (301,)
    assert server.user_agents == {f"metaspec/{metaspec.__version__}"}
    assert len(server.asked) == 4


async def test_asking_again_for_asyncio() -> None:
    with scripted(BUSY, None, good(1)) as server:
        async with AsyncSurrogate(server.url) as surrogate:
            assert (await surrogate.predict(ONE)).values.shape == (1, 4, 301)
            assert surrogate.sent == (1, 1)
    assert len(server.asked) == 3


def test_pauses_grow_up_to_a_limit(pauses: list[tuple[float, float]]) -> None:
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
async def test_waiting_as_long_as_the_server_asks(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []

    chosen = SurrogateBase._pause

    def pause(self: SurrogateBase, attempt: int, so_far: float, error: MetaSpecError) -> float:
        waited.append(chosen(self, attempt, so_far, error))
        return 0.0

    monkeypatch.setattr(SurrogateBase, "_pause", pause)
    later = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
    busy: Answer = (429, {"Retry-After": "3600" if kind == "seconds" else later}, b'{"error": "the queue is full"}')
    with scripted(busy, good(1)) as server:
        if kind == "seconds":
            with Surrogate(server.url, timeout=7200) as surrogate:
                surrogate.predict(ONE)
        else:
            async with AsyncSurrogate(server.url, timeout=7200) as asynchronous:
                await asynchronous.predict(ONE)
    assert len(server.asked) == 2
    (seconds,) = waited
    assert 3000 < seconds <= 3601  # plus jitter of up to 0.25 s


def test_no_limit_to_what_the_server_asks_but_the_timeout(pauses: list[tuple[float, float]]) -> None:
    with Surrogate(timeout=300) as surrogate:
        assert surrogate._pause(0, 0.0, ServerBusy("the queue is full", 240.0)) == 240
        with pytest.raises(ServerBusy):
            surrogate._pause(0, 0.0, ServerBusy("the queue is full", 301.0))


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_a_server_that_was_there_is_waited_for(
    kind: str, pauses: list[tuple[float, float]], caplog: pytest.LogCaptureFixture
) -> None:
    """Beyond `retries`, and the log says when the wait begins and ends, once for all requests."""
    settings: dict[str, Any] = {"retries": 1, "wait": 600.0, "batch_size": 1, "concurrency": 2}
    with scripted(good(1), *[BUSY, None] * 6, good(1), good(1)) as server:
        if kind == "sync":
            with Surrogate(server.url, **settings) as surrogate:
                surrogate.predict(ONE)
                assert len(surrogate.predict(np.zeros((2, 128, 128)))) == 2
        else:
            async with AsyncSurrogate(server.url, **settings) as asynchronous:
                await asynchronous.predict(ONE)
                assert len(await asynchronous.predict(np.zeros((2, 128, 128)))) == 2
    assert len(pauses) == 12
    messages = [record.getMessage() for record in caplog.records if record.name == "metaspec"]
    assert 2 <= len(messages) <= 4  # one of the two requests may be answered before the other one
    assert all("waiting for the server, 10 min at most" in message for message in messages[::2])
    assert set(messages[1::2]) == {f"{server.url} answers again"}


def test_a_server_that_was_never_there_is_not_waited_for(nobody: str) -> None:
    with Surrogate(f"http://{nobody}", retries=0, wait=600) as surrogate, pytest.raises(ServerUnreachable):
        surrogate.predict(ONE)


def test_a_wait_ends(pauses: list[tuple[float, float]]) -> None:
    with Surrogate(retries=1, wait=60) as surrogate:
        surrogate._answered()
        assert surrogate._pause(30, 59.0, ServerUnreachable("gone")) == 0
        assert surrogate._pause(30, 1.0, ServerBusy("busy", 58.0)) == 58
        for attempt, so_far, error in [(30, 60.5, ServerUnreachable("gone")), (30, 3.0, ServerBusy("busy", 58.0))]:
            with pytest.raises(type(error)):
                surrogate._pause(attempt, so_far, error)


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
        process = Process(wavelength_min_nm=first, wavelength_max_nm=first + 300)
        changes = {"process": process.model_dump(), "wavelengths_nm": process.wavelengths_nm.tolist()}
        return METADATA | {"parameters": METADATA["parameters"] | changes}

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
    outputs = [{"name": "spectra", "datatype": "FP32", "shape": [-1, 5, 7]}]
    other = METADATA | {"outputs": outputs, "parameters": five_channel_metadata("forward")}
    with scripted(good(1), good(1)) as server, Surrogate(server.url) as surrogate:
        server.describe = lambda path: other
        with pytest.raises(ProtocolError, match=r"expected float32 spectra of shape \(1, 5, 7\), got .*\(1, 4, 301\)"):
            surrogate.predict(ONE)
        server.describe = lambda path: METADATA
        assert surrogate.predict(ONE).values.shape == (1, 4, 301)


def tensor(**changes: Any) -> Answer:
    fields = {"name": "spectra", "datatype": "FP32", "shape": [1, 4, 301], "parameters": {"binary_data_size": 4816}}
    header = json.dumps({"outputs": [fields | changes]}).encode()
    return 200, {"Inference-Header-Content-Length": str(len(header))}, header + bytes(4816)


def identified(identifier: str) -> Answer:
    """A good answer to the request of this identifier."""
    answer = good(1)
    assert answer is not None
    status, headers, body = answer
    length = int(headers["Inference-Header-Content-Length"])
    header = json.dumps(json.loads(body[:length]) | {"id": identifier}).encode()
    return status, {"Inference-Header-Content-Length": str(len(header))}, header + body[length:]


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
        (
            identified("another"),
            ProtocolError,
            "sent the answer to another request: its id is 'another', not '[0-9a-f]{32}'",
        ),
    ],
)
def test_answers_that_another_attempt_would_not_mend(answer: Answer, kind: type[MetaSpecError], message: str) -> None:
    with scripted(answer) as server, Surrogate(server.url) as surrogate, pytest.raises(kind, match=message) as caught:
        surrogate.predict(ONE)
    assert type(caught.value) is kind
    assert len(server.asked) == 1


def described(**changes: Any) -> dict[str, Any]:
    return METADATA | {"parameters": METADATA["parameters"] | changes}


def without(*fields: str) -> dict[str, Any]:
    return METADATA | {"parameters": {name: v for name, v in METADATA["parameters"].items() if name not in fields}}


PROCESS = Process().model_dump()
SHIFTED = Process(wavelength_min_nm=450, wavelength_max_nm=750).model_dump()


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (b"garbage", "cannot be read"),
        ([], "cannot be read"),
        ({}, "cannot be read"),
        (METADATA | {"inputs": None}, "cannot be read"),
        (METADATA | {"outputs": [{"name": "spectra", "shape": None}]}, "cannot be read"),
        (METADATA | {"outputs": [{"name": "other", "shape": [-1, 4, 301]}]}, "outputs must be spectra .*got other"),
        (
            METADATA | {"outputs": [{"name": "spectra", "shape": [-1, 5, 301]}]},
            r"spectra has shape \[N, 5, 301\], expected \[N, 4, 301\]: the metadata name 4 channels and 301 wavelengths",
        ),
        (
            METADATA | {"inputs": [{"name": "structure", "shape": [-1, 1, 64, 64]}]},
            r"structure has shape \[N, 1, 64, 64\].* a structure of its process has 128 x 128 pixels",
        ),
        (
            TENSORS,
            "it lacks process, wavelengths_nm, channels. Publish the model with metaspec-export, whose config.pbtxt",
        ),
        (without("process"), "it lacks process. Publish the model with metaspec-export"),
        (described(wavelengths_nm=[400]), "wavelengths_nm"),
        (described(wavelengths_nm="x"), "wavelengths_nm"),
        (described(channels=["R"]), "channels must be R, G1, G2, B, or these and spread, got R"),
        (
            described(process=SHIFTED),
            "wavelengths_nm are 301 from 400 to 700 nm, but those of the process are 301 from 450 to 750 nm",
        ),
        (described(process=PROCESS | {"colour": 1}), "process.*colour"),
        (
            described(process={name: value for name, value in PROCESS.items() if name != "period_um"}),
            "process must state period_um",
        ),
        (
            described(input={"name": "structure", "solid": 0, "void": 1}),
            "solid must be 1 and void 0, got solid 0 and void 1",
        ),
    ],
)
def test_missing_and_contradictory_descriptions(document: Any, message: str) -> None:
    with scripted() as server, Surrogate(server.url) as surrogate:
        server.describe = lambda path: document
        with pytest.raises(ProtocolError, match=f"{message}.*Is this a server of models"):
            surrogate.metadata()
    assert server.asked == []


@pytest.mark.parametrize("kind", ["our server", "bare Triton"])
def test_the_description_of_a_model(kind: str) -> None:
    process = Process(period_um=1.6, wavelength_min_nm=450, wavelength_max_nm=750)
    parameters = METADATA["parameters"] | {
        "process": process.model_dump(mode="json"),
        "wavelengths_nm": process.wavelengths_nm.tolist(),
        "merged_greens": True,
    }
    labels = {name: parameters[name] for name in ("process", "wavelengths_nm", "channels", "merged_greens")}
    with scripted(good(2)) as server, Surrogate(server.url) as surrogate:
        describe_ours = {"/v2": {"extensions": ["model_configuration"]}}
        server.describe = (
            bare_triton(labels)  # the fields that a configuration states
            if kind == "bare Triton"
            else lambda path: describe_ours.get(path, METADATA | {"parameters": parameters})
        )
        info = surrogate.metadata()
        spectra = surrogate.predict(np.zeros((2, 128, 128)))
    assert info.process == process
    assert (info.merged_greens, info.channels, info.pixels) == (True, ("R", "G1", "G2", "B"), (128, 128))
    assert info.details == json.loads(json.dumps(labels if kind == "bare Triton" else parameters))
    np.testing.assert_array_equal(info.wavelengths_nm, process.wavelengths_nm)
    assert spectra.merged_greens
    assert spectra[0].merged_greens
    assert "from 450 to 750 nm, diffractionnet version 1; G1 and G2: only their mean is known" in repr(spectra)


def test_a_bare_triton_without_a_description() -> None:
    with scripted() as server, Surrogate(server.url) as surrogate:
        server.describe = bare_triton(None)
        with pytest.raises(
            ProtocolError, match=r"lacks process, wavelengths_nm, channels.*whose config\.pbtxt carries"
        ):
            surrogate.metadata()


def test_a_web_server_of_another_kind(server: RunningServer) -> None:
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


async def test_errors_keep_their_cause_for_asyncio(nobody: str) -> None:
    async with AsyncSurrogate(f"http://{nobody}", retries=0) as surrogate:
        with pytest.raises(ServerUnreachable) as caught:
            await surrogate.predict(np.zeros((2, 128, 128)))
    assert isinstance(caught.value.__cause__, httpx.ConnectError)
