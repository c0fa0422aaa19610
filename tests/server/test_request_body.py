"""What small bodies may become, and what large ones may hold up: nothing."""

from __future__ import annotations

import asyncio
import base64
import gzip
import io
import json
import select
import socket
import threading
import zlib
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from metaspec_server.core.errors import MemoryFull, TooMuchMemory
from metaspec_server.core.memory import MemoryBudget
from metaspec_server.core.threads import off_loop
from metaspec_server.http.json_body import MAX_VALUES, to_array
from metaspec_testing.servers import RunningServer, running_server
from metaspec_testing.small_models import Array, Expected

JSON, NPY, RAW = "application/json", "application/x-npy", "application/octet-stream"
INFER = "/v2/models/diffractionnet/infer"
MIB = 2**20


def npy(array: Array) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def tensor(**changes: object) -> dict[str, object]:
    return {"name": "structure", "datatype": "FP32", "shape": [1, 1, 128, 128], **changes}


def zeros(size: int) -> bytes:
    return b"0," * (size - 1) + b"0"


LISTS = b'{"structures": [' + zeros(20_000_000) + b"]}"
OBJECTS = b'{"structures": [' + b"{}," * 400_000 + b"0]}"
TEXTS = (
    b'{"structures": ["' + b"x" * 5_000_000 + b'"' + b',""' * 100_000 + b"]}"
)  # half a terabyte as an array of NumPy
BASE64 = b'{"packed": "' + b"A" * 60_000_000 + b'"}'
CLAIMS = npy(np.zeros((600, 128, 128), bool))[:128] + b"\0" * 100_000_000
MANY = npy(np.zeros((1, 128, 128)))[:128].replace(b"(1, 128, 128)", b"(9" + b"9" * 11 + b", 128, 128)") + b"\0" * MIB
SIZED = json.dumps({"inputs": [tensor(parameters={"binary_data_size": 65536})]}).encode()


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
@pytest.mark.parametrize(
    ("path", "body", "content_type", "status", "message"),
    [
        pytest.param("/predict", b"\0" * 100_000_000, RAW, 413, "more than 600", id="raw"),
        pytest.param("/predict", CLAIMS, NPY, 422, "are left over", id="longer than its head states"),
        pytest.param("/predict", MANY, NPY, 413, "at most 600 structures", id="many by its head"),
        pytest.param("/predict", MANY, RAW, 413, "at most 600 structures", id="npy as raw"),
        pytest.param("/predict", LISTS, JSON, 413, f"at most {MAX_VALUES} numbers in JSON", id="lists"),
        pytest.param("/predict", OBJECTS, JSON, 413, f"at most {MAX_VALUES} numbers in JSON", id="objects"),
        pytest.param("/predict", TEXTS, JSON, 422, "nested lists of numbers, got text", id="texts"),
        pytest.param("/predict", BASE64, JSON, 413, "bytes of JSON", id="base64"),
        pytest.param("/predict", b" " * 100_000_000, JSON, 413, "bytes of JSON", id="white space"),
        pytest.param("/predict", b"[" * 1_000_000, JSON, 422, "cannot be read", id="depth"),
        pytest.param("/gradient", b"\0" * 100_000_000, RAW, 413, "more than 600", id="raw with cotangents"),
        pytest.param(INFER, LISTS, JSON, 413, f"at most {MAX_VALUES} numbers in JSON", id="lists in the protocol"),
        pytest.param(INFER, SIZED + b"\0" * 100_000_000, RAW, 400, "are left over", id="tensors"),
    ],
)
def test_small_bodies_that_would_become_large(
    server: RunningServer, path: str, body: bytes, content_type: str, status: int, message: str, encoding: str
) -> None:
    packed = zlib.compress(body, 1) if encoding == "deflate" else gzip.compress(body, 1)
    headers = {"Content-Type": content_type, "Content-Encoding": encoding}
    if body.startswith(SIZED):
        headers["Inference-Header-Content-Length"] = str(len(SIZED))
    peak = server.peak_bytes
    answer = server.post(path, content=packed, headers=headers)
    assert answer.status_code == status
    assert message in answer.text
    assert server.peak_bytes - peak < 200 * MIB


def test_packed_structures_in_base64_are_counted_before_they_are_decoded(server: RunningServer) -> None:
    fields = {"packed": base64.b64encode(b"\0" * 2048 * 601).decode()}
    answer = server.post("/predict", json=fields)
    assert answer.status_code == 413
    assert "at most 600 structures in one request, got 601" in answer.json()["detail"]


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_compressed_bodies_of_many_pieces_are_read_whole(
    server: RunningServer, expected: Expected, encoding: str
) -> None:
    density = np.random.default_rng(0).random((40, 128, 128))
    body = npy(density)  # 5 MiB
    packed = zlib.compress(body, 1) if encoding == "deflate" else gzip.compress(body, 1)
    headers = {"Content-Type": NPY, "Accept": NPY, "Content-Encoding": encoding}
    answer = server.post("/predict", content=packed, headers=headers).raise_for_status()
    np.testing.assert_allclose(np.load(io.BytesIO(answer.content)), expected(density), atol=1e-6)


def test_what_follows_the_compressed_data_is_refused(server: RunningServer, structures: Array) -> None:
    whole = gzip.compress(np.packbits(structures).tobytes())
    for rest in (b"x", whole):
        headers = {"Content-Type": RAW, "Content-Encoding": "gzip"}
        answer = server.post("/predict", content=whole + rest, headers=headers)
        assert answer.status_code == 400
        assert "left over after the gzip data" in answer.json()["detail"]


@pytest.fixture(scope="module")
def little_memory(small_repository: Path) -> RunningServer:  # type: ignore[misc]
    """A server whose requests share 8 MiB."""
    with running_server("--repository", str(small_repository), "--memory-mb", "8") as running:
        yield running


def test_answers_that_need_more_than_the_memory_are_refused_before_they_are_computed(
    little_memory: RunningServer,
) -> None:
    bits = np.zeros((64, 2048), np.uint8).tobytes()
    fields = {"packed": base64.b64encode(bits).decode(), "wavelengths_nm": [450.5] * 100_000}
    for accept in (JSON, NPY):
        answer = little_memory.post("/predict", json=fields, headers={"Accept": accept})
        assert answer.status_code == 413
        assert "the limit for all together is 8 MiB" in answer.json()["detail"]
    assert little_memory.post("/predict", content=bits, headers={"Content-Type": RAW, "Accept": RAW}).status_code == 200


@pytest.mark.slow
def test_bodies_in_flight_share_one_budget_and_small_requests_need_none(
    little_memory: RunningServer, structures: Array, expected: Expected
) -> None:
    host, port = little_memory.address.split(":")
    large = npy(np.zeros((90, 128, 128), np.float32))  # 6 MiB
    start = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: {NPY}\r\nContent-Length: {len(large)}\r\n\r\n".encode()
    bits = np.packbits(structures).tobytes()
    with ExitStack() as stack:
        connections = []
        for _ in range(2):  # one gets what the other has left, and waits for more
            connections.append(stack.enter_context(socket.create_connection((host, int(port)), timeout=60)))
            connections[-1].sendall(start + large[:-1])
        (connection, *_), _, _ = select.select(connections, [], [], 60)
        full = b""
        while b"try again later" not in full and (received := connection.recv(65536)):
            full += received
        assert full.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: 2" in full.lower()
        assert b"hold all 8 MiB" in full
        headers = {"Content-Type": RAW, "Accept": RAW}
        answer = little_memory.post("/predict", content=bits, headers=headers).raise_for_status()
        spectra = np.frombuffer(answer.content, "<f4").reshape(-1, 4, 301)
        np.testing.assert_allclose(spectra, expected(structures), atol=1e-6)
    again = little_memory.post("/predict", content=npy(np.zeros((60, 128, 128), bool)), headers={"Content-Type": NPY})
    assert again.status_code == 200, "what a caller who has left held is free again"


async def test_memory_is_granted_in_order_and_given_back() -> None:
    budget = MemoryBudget(10 * MIB)
    with budget.lease() as first:
        await first.grow(10 * MIB)
        with budget.lease() as second, budget.lease() as third, budget.lease() as fourth:
            waiting = [asyncio.create_task(lease.grow(5 * MIB)) for lease in (second, third, fourth)]
            await asyncio.sleep(0)
            assert not any(task.done() for task in waiting)
            waiting[1].cancel()
            with pytest.raises(MemoryFull, match="10 MiB"):
                await fourth.grow(8 * MIB, patience=0.01)
            first.shrink(0)
            await asyncio.gather(waiting[0], waiting[2])
        with pytest.raises(TooMuchMemory, match="need 11 MiB of memory, the limit for all together is 10 MiB"):
            await first.grow(11 * MIB + MIB // 2)
        await first.grow(10 * MIB)


@pytest.mark.parametrize("size", [1, 2 * MIB])
async def test_small_and_medium_work_does_not_wait_for_large_work(size: int) -> None:
    """The number of threads is limited: large work that hangs leaves them to the rest."""
    release = threading.Event()
    hanging = [asyncio.create_task(off_loop(100 * MIB, release.wait, 60)) for _ in range(8)]
    await asyncio.sleep(0.01)
    assert await asyncio.wait_for(off_loop(size, lambda: "done"), 30) == "done"
    release.set()
    assert all(await asyncio.gather(*hanging))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([[1], [1, 2]], "ragged"),
        ([[1], 1], "lists of different depths"),
        ([["1"]], "text"),
        ([None], "null"),
        ([{}], "an object"),
        ([[[[[1]]]]], "at most 4 deep"),
    ],
)
def test_lists_that_are_no_array(value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_array(value)


@pytest.mark.parametrize(
    "make", [lambda: np.float64(3), lambda: np.zeros((2, 0)), lambda: np.arange(24.0).reshape(2, 3, 4)]
)
def test_lists_as_an_array(make: Callable[[], Array]) -> None:
    array = make()
    np.testing.assert_array_equal(to_array(json.loads(json.dumps(array.tolist()))), array)
