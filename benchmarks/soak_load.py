"""The load of the soak: callers that send mixed requests, compare each answer with the model's own, and try again if refused.

The same callers and requests for every contender: the Open Inference Protocol over HTTP/1.1 on bare sockets. Every answer is
compared with what ONNX Runtime computes for that structure and for the version of the model that the answer names.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from metaspec_contract.model import DEFAULT_MODEL, gradient_model
from metaspec_testing.closed_loop import http_request
from metaspec_testing.small_models import small_gradient_model, small_model

SEEDS = 4
"""Version v of a model has the weights of seed v % SEEDS."""

POOL = 64  # different structures
TOLERANCE = 2e-5
PATIENCE = 60.0  # seconds until a request that is refused again and again counts as lost
KINDS = (("binary, 1", 1, 8), ("binary, 8", 8, 2), ("gradient, 1", 1, 3), ("JSON, 1", 1, 1))
"""Name, structures and weight of each kind of request."""

_LENGTH, _HEADER = b"\r\ncontent-length:", b"\r\ninference-header-content-length:"


class Truth:
    """Structures and cotangents, and what each version of the models makes of them, by ONNX Runtime alone."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.structures = rng.integers(0, 2, (POOL, 1, 128, 128)).astype(np.float32)
        self.cotangents = rng.standard_normal((POOL, 4, 301)).astype(np.float32)
        feed = {"structure": self.structures}
        self._outputs: dict[tuple[str, int], NDArray[np.float32]] = {}
        for seed in range(SEEDS):
            for name, model, inputs in (
                ("spectra", small_model(seed=seed), feed),
                ("gradient", small_gradient_model(seed=seed), feed | {"cotangent": self.cotangents}),
            ):
                session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
                self._outputs[name, seed] = session.run([name], inputs)[0]

    def is_right(self, name: str, version: int, first: int, values: NDArray[np.float32]) -> bool:
        """Whether values are this version's output for the structures from `first` on."""
        expected = self._outputs[name, version % SEEDS][first : first + len(values)]
        return values.shape == expected.shape and bool(np.allclose(values, expected, atol=TOLERANCE))


@dataclass(frozen=True)
class Request:
    """An encoded request and what is expected of its answer."""

    kind: str
    data: bytes
    output: str
    first: int


@dataclass
class Tally:
    """What became of the requests.

    Attributes:
        right: number of right answers.
        wrong: number of answers with status 200 whose values are not the model's.
        lost: number of requests without an answer after `PATIENCE`.
        refused: number of refusals by status; each was tried again. 0 is a connection that broke.
        kinds: number of right answers by kind.
        slowest: longest time to a right answer in seconds, attempts included.
    """

    right: int = 0
    wrong: int = 0
    lost: int = 0
    refused: Counter[int] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0


def requests(address: str, truth: Truth) -> list[Request]:
    """One request of each kind for each structure of the pool, in the share of its weight."""
    made = []
    for kind, size, weight in KINDS:
        for first in range(0, POOL - size + 1, size):
            output = "gradient" if kind.startswith("gradient") else "spectra"
            model = gradient_model(DEFAULT_MODEL) if output == "gradient" else DEFAULT_MODEL
            arrays = {"structure": truth.structures[first : first + size]}
            if output == "gradient":
                arrays["cotangent"] = truth.cotangents[first : first + size]
            body, headers = _json_body(arrays) if kind.startswith("JSON") else _binary_body(arrays, output)
            data = http_request(address, f"/v2/models/{model}/infer", body, headers)
            made += [Request(kind, data, output, first)] * (weight * size)
    return [made[n] for n in np.random.default_rng(1).permutation(len(made))]


def _binary_body(arrays: dict[str, NDArray[np.float32]], output: str) -> tuple[bytes, dict[str, str]]:
    inputs = [
        {
            "name": name,
            "shape": list(array.shape),
            "datatype": "FP32",
            "parameters": {"binary_data_size": array.nbytes},
        }
        for name, array in arrays.items()
    ]
    wanted = {"inputs": inputs, "outputs": [{"name": output, "parameters": {"binary_data": True}}]}
    head = json.dumps(wanted).encode()
    tensors = b"".join(array.tobytes() for array in arrays.values())
    return head + tensors, {"Inference-Header-Content-Length": str(len(head))}


def _json_body(arrays: dict[str, NDArray[np.float32]]) -> tuple[bytes, dict[str, str]]:
    inputs = [
        {"name": name, "shape": list(array.shape), "datatype": "FP32", "data": array.astype(int).ravel().tolist()}
        for name, array in arrays.items()
    ]
    return json.dumps({"inputs": inputs}).encode(), {"Content-Type": "application/json"}


async def soak(
    address: str, truth: Truth, callers: int, count: int, busy: Callable[[], bool], advance: Callable[[int], Any]
) -> Tally:
    """Send requests until there are `count` right answers and `busy` says that nothing else goes on.

    Args:
        address: address of the server, host:port.
        truth: what answers are compared with.
        callers: number of concurrent callers, each on a connection of its own.
        count: number of answers.
        busy: whether faults are still being caused.
        advance: function called with the number of new answers.
    """
    tally, encoded = Tally(), requests(address, truth)

    async def call(caller: int) -> None:
        connection = _Connection(address)
        try:
            number = caller * 7919
            while tally.right + tally.wrong + tally.lost < count or busy():
                await _one(connection, encoded[number % len(encoded)], truth, tally)
                number += 1
                advance(1)
        finally:
            connection.close()

    await asyncio.gather(*(call(caller) for caller in range(callers)))
    return tally


async def _one(connection: _Connection, request: Request, truth: Truth, tally: Tally) -> None:
    started = time.monotonic()
    while time.monotonic() - started < PATIENCE:
        try:
            status, answer = await asyncio.wait_for(connection.exchange(request.data), PATIENCE)
        except (OSError, EOFError, TimeoutError):  # the connection broke, or nothing came
            connection.close()
            tally.refused[0] += 1
            await asyncio.sleep(0.1)
            continue
        if status == 200:
            version, values = decode(answer, request.output)
            if truth.is_right(request.output, version, request.first, values):
                tally.right += 1
                tally.kinds[request.kind] += 1
                tally.slowest = max(tally.slowest, time.monotonic() - started)
            else:
                tally.wrong += 1
            return
        tally.refused[status] += 1
        await asyncio.sleep(0.1)
    tally.lost += 1


class _Connection:
    """A kept-alive connection, opened when it is first used and after it was closed."""

    def __init__(self, address: str) -> None:
        self._host, _, self._port = address.rpartition(":")
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def exchange(self, data: bytes) -> tuple[int, tuple[bytes, bytes]]:
        """Send a request; status, and head and body of the answer."""
        if self._streams is None:
            self._streams = await asyncio.open_connection(self._host, int(self._port), limit=2**24)
        reader, writer = self._streams
        writer.write(data)
        await writer.drain()
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        body = await reader.readexactly(_field(head, _LENGTH) or 0)
        if b"\r\nconnection: close" in head:
            self.close()
        return int(head.split(None, 2)[1]), (head, body)

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


def _field(head: bytes, name: bytes) -> int | None:
    at = head.find(name)
    return None if at < 0 else int(head[at + len(name) : head.index(b"\r\n", at + 2)])


def decode(answer: tuple[bytes, bytes], name: str) -> tuple[int, NDArray[np.float32]]:
    """Version and output of an answer of the Open Inference Protocol."""
    head, body = answer
    length = _field(head, _HEADER)
    document = json.loads(body[:length])
    output = next(output for output in document["outputs"] if output["name"] == name)
    data = output.get("data")
    values = np.frombuffer(body[length:], np.float32) if data is None else np.array(data, np.float32)
    return int(document["model_version"]), values.reshape(output["shape"])
