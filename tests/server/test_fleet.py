"""A fleet of servers behind one engine: which of them are asked, and two real Tritons, one killed and one stopped."""

from __future__ import annotations

import asyncio
import re
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnxruntime
import pytest
from tritonclient.grpc import model_config_pb2, service_pb2
from tritonclient.grpc.service_pb2_grpc import (
    GRPCInferenceServiceServicer,
    add_GRPCInferenceServiceServicer_to_server,
)

from metaspec_server.core.errors import EngineFailure, EngineUnavailable
from metaspec_server.core.served_model import ServedModel
from metaspec_server.core.tensors import Rows
from metaspec_server.engines import fleet as fleets
from metaspec_server.engines import triton_queue
from metaspec_server.engines.factory import engine_factory
from metaspec_server.engines.fleet import Fleet, Probe, addresses_of
from metaspec_server.repository import find_models
from metaspec_server.settings import Settings
from metaspec_testing.servers import RunningServer, free_port, running_server
from metaspec_testing.small_models import Array, Expected, small_model, write_repository
from metaspec_testing.triton import python_repository, start_triton

CONFIG = """
name: "diffractionnet"
backend: "onnxruntime"
max_batch_size: 8
input [ { name: "structure", data_type: TYPE_FP32, dims: [ 1, 128, 128 ] } ]
output [ { name: "spectra", data_type: TYPE_FP32, dims: [ 4, 301 ] } ]
dynamic_batching { }
"""
PACKED = {"Content-Type": "application/octet-stream", "Accept": "application/octet-stream"}


def front(**options: Any) -> Settings:
    return Settings(**options | {"engine": "triton"})


def until(condition: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def lookup(monkeypatch: pytest.MonkeyPatch, names: dict[str, list[str]]) -> None:
    """Make names stand for addresses."""

    def getaddrinfo(host: str, port: str, **options: Any) -> list[Any]:
        if host not in names:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        families = {True: socket.AF_INET6, False: socket.AF_INET}
        return [
            (families[":" in one], socket.SOCK_STREAM, 6, "", (one, int(port)))
            for one in names[host]
            for _ in range(2)  # as resolvers may answer
        ]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


def test_a_name_stands_for_all_its_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"tritons": ["10.0.0.2", "10.0.0.1", "fd00::1"], "six": ["fd00::2", "fd00::1"]}
    lookup(monkeypatch, names)
    assert addresses_of("tritons:8001") == ["10.0.0.1:8001", "10.0.0.2:8001"]
    assert addresses_of("six:8001") == ["[fd00::1]:8001", "[fd00::2]:8001"]
    assert addresses_of("[fd00::3]:8001") == ["[fd00::3]:8001"]
    assert addresses_of("10.0.0.9:8001") == ["10.0.0.9:8001"]
    with pytest.raises(OSError, match="not known"):
        addresses_of("nobody:8001")


@pytest.mark.parametrize("text", ["tritons", "http://a:8001", "a:8001,", "a:8001 b:8001", "a:port", "fd00::1:8001"])
def test_addresses_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match=r"triton_url\n.*expected host:port, or several separated by commas, got "):
        front(triton_url=text)


def test_addresses_of_a_fleet() -> None:
    assert front(triton_url="a:8001, b-1.c:8002,[fd00::1]:1").triton_url == "a:8001,b-1.c:8002,[fd00::1]:1"


def test_servers_that_come_go_and_move(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Those that a name stands for now are watched; a name that is not known at the moment changes nothing."""
    monkeypatch.setattr(fleets, "PROBE_INTERVAL", 0.01)
    monkeypatch.setattr(fleets, "_LOOK_UP_INTERVAL", 0.01)
    names = {"tritons": ["10.0.0.1", "10.0.0.2"]}
    lookup(monkeypatch, names)
    dead = {"10.0.0.2:1"}

    def connect(address: str) -> Probe:
        return lambda timeout: address not in dead

    def alive() -> list[str]:
        return sorted(member.address for member in fleet.members if member.alive)

    before = set(threading.enumerate())
    fleet = Fleet(["tritons:1", "127.0.0.1:2"], connect)
    fleet.enter()
    fleet.enter()
    assert alive() == ["10.0.0.1:1", "127.0.0.1:2"], "each has been probed"
    dead.clear()
    until(lambda: len(alive()) == 3)
    dead.add("127.0.0.1:2")
    until(lambda: alive() == ["10.0.0.1:1", "10.0.0.2:1"])
    kept = next(member for member in fleet.members if member.address == "10.0.0.2:1")
    names["tritons"] = ["10.0.0.2", "10.0.0.3"]
    until(lambda: alive() == ["10.0.0.2:1", "10.0.0.3:1"])
    assert kept in fleet.members
    del names["tritons"]
    until(lambda: "tritons:1,127.0.0.1:2: the addresses are not known" in caplog.text)
    assert alive() == ["10.0.0.2:1", "10.0.0.3:1"]
    fleet.leave()
    assert alive() == ["10.0.0.2:1", "10.0.0.3:1"], "another one uses it"
    fleet.leave()
    assert fleet.members == []
    until(lambda: not set(threading.enumerate()) - before)
    assert "the server at 10.0.0.2:1 does not answer, and is left out until it does" in caplog.text
    assert "the server at 10.0.0.2:1 answers again" in caplog.text


class Speaking(GRPCInferenceServiceServicer):  # type: ignore[misc]
    """A server that speaks Triton's protocol over gRPC, and computes the small model, unless it is told to misbehave.

    Attributes:
        asked: priorities of the inference requests so far, None where none was given.
        status: status that inference ends with; None for the answer.
        hold: inference waits while this is cleared.
        address: its address.
    """

    def __init__(self, model: Path) -> None:
        self.session = onnxruntime.InferenceSession(model)
        self.asked: list[int | None] = []
        self.status: grpc.StatusCode | None = None
        self.hold, self.address = threading.Event(), ""
        self.hold.set()

    def ServerLive(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        return service_pb2.ServerLiveResponse(live=True)

    def ModelReady(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        return service_pb2.ModelReadyResponse(ready=True)

    def ModelConfig(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        return service_pb2.ModelConfigResponse(config=model_config_pb2.ModelConfig(max_batch_size=4))

    def ModelInfer(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        priority = request.parameters["priority"].uint64_param if "priority" in request.parameters else None
        self.asked.append(priority)
        assert self.hold.wait(60)
        if self.status is not None:
            context.abort(self.status, "as it was told")
        (tensor,), (data,) = request.inputs, request.raw_input_contents
        density = np.frombuffer(data, np.float32).reshape(tuple(tensor.shape))
        (spectra,) = self.session.run(None, {"structure": density})
        answer = service_pb2.ModelInferResponse(model_name=request.model_name, raw_output_contents=[spectra.tobytes()])
        answer.outputs.add(name="spectra", datatype="FP32", shape=spectra.shape)
        return answer


@contextmanager
def speaking(repository: Path, number: int) -> Iterator[list[Speaking]]:
    """So many servers that speak Triton's protocol."""
    with ExitStack() as stack:
        servers = []
        for _ in range(number):
            speaker = Speaking(repository / "diffractionnet" / "1" / "model.onnx")
            server = grpc.server(stack.enter_context(ThreadPoolExecutor(8)))
            add_GRPCInferenceServiceServicer_to_server(speaker, server)
            speaker.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
            server.start()
            stack.callback(lambda server: server.stop(None).wait(60), server)
            stack.callback(speaker.hold.set)
            servers.append(speaker)
        yield servers


@asynccontextmanager
async def served(repository: Path, servers: list[Speaking], **options: Any) -> AsyncIterator[ServedModel]:
    """The model of a repository, computed by these servers."""
    url = ",".join(server.address for server in servers)
    settings = front(triton_url=url, repository=repository, **options)
    load = engine_factory(settings, lambda name: lambda batch: None)
    (file,) = find_models(repository)["diffractionnet"]
    model = await asyncio.to_thread(load, file)
    try:
        await asyncio.to_thread(model.revive)
        assert model.queue.engines == len(servers)
        for server in servers:
            server.asked.clear()
        yield model
    finally:
        await model.queue.close(60)


def random_rows(count: int) -> Rows:
    return {"structure": np.random.default_rng(count).integers(0, 2, (count, 1, 128, 128)).astype(np.float32)}


async def ask(model: ServedModel, expected: Expected, count: int = 1, **options: Any) -> None:
    rows = random_rows(count)
    results = await model.queue.submit(rows, 60, **options)
    np.testing.assert_allclose(results["spectra"], expected(rows["structure"]), atol=1e-6)


async def test_requests_go_round_and_tell_their_priority(small_repository: Path, expected: Expected) -> None:
    with speaking(small_repository, 3) as servers:
        async with served(small_repository, servers) as model:
            for _ in range(4):
                await ask(model, expected)
                await ask(model, expected, priority=2)
                await ask(model, expected, priority=1)
            await asyncio.gather(*(ask(model, expected, count, priority=1) for count in (1, 9, 30)))
            assert model.queue.waiting == 0
            counts = [len(server.asked) for server in servers]
            assert sum(counts) == 12 + 1 + 3 + 8
            assert min(counts) >= 4 + 3, "each gets its turn"
            told = [priority for server in servers for priority in server.asked]
            assert (told.count(None), told.count(1)) == (8, 4 + 12), "0 is the default and not sent"


async def test_the_one_with_fewest_requests_in_flight_is_asked(small_repository: Path, expected: Expected) -> None:
    with speaking(small_repository, 2) as servers:
        async with served(small_repository, servers) as model:
            servers[0].hold.clear()
            held = [asyncio.create_task(ask(model, expected)) for _ in range(2)]
            async with asyncio.timeout(60):
                while not servers[0].asked:
                    await asyncio.sleep(0.005)
            for _ in range(6):
                await ask(model, expected)
            assert len(servers[0].asked) == 1
            oldest = model.queue.busy
            assert oldest[servers[0].address] > oldest[servers[1].address] == 0
            servers[0].hold.set()
            await asyncio.gather(*held)


@pytest.mark.parametrize("status", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.NOT_FOUND])
async def test_what_one_cannot_answer_is_asked_of_another(
    small_repository: Path, expected: Expected, caplog: pytest.LogCaptureFixture, status: grpc.StatusCode
) -> None:
    with speaking(small_repository, 2) as servers:
        async with served(small_repository, servers) as model:
            servers[0].status = status
            await asyncio.gather(*(ask(model, expected, 3) for _ in range(8)))
            assert servers[0].asked
            assert (model.queue.engines, model.queue.missing, model.ready) == (1, 1, True)
            assert await asyncio.to_thread(model.revive) == 0, "it still cannot"
            servers[0].status = grpc.StatusCode.INTERNAL
            for _ in range(2):
                assert await asyncio.to_thread(model.revive) == 0
            assert caplog.text.count("fails to run it: as it was told") == 1
            servers[0].status = None
            assert await asyncio.to_thread(model.revive) == 1
            assert (model.queue.engines, model.queue.missing) == (2, 0)


async def test_a_request_that_no_server_survives(
    small_repository: Path, expected: Expected, monkeypatch: pytest.MonkeyPatch
) -> None:
    with speaking(small_repository, 6) as servers:
        async with served(small_repository, servers) as model:
            for server in servers:
                server.status = grpc.StatusCode.UNAVAILABLE
            with pytest.raises(EngineUnavailable, match=r"Triton at 127\.0\.0\.1:\d+: as it was told"):
                await ask(model, expected)
            assert sum(len(server.asked) for server in servers) == 4
            assert model.queue.engines == 2
            monkeypatch.setattr(triton_queue, "_PATIENCE", 0.05)
            with pytest.raises(EngineUnavailable, match="does not serve diffractionnet version 1 at the moment"):
                await ask(model, expected)
            assert not model.ready
            for server in servers:
                server.status = None
            assert await asyncio.to_thread(model.revive) == 6
            await ask(model, expected)


async def test_a_failure_of_the_model_is_not_repeated(small_repository: Path, expected: Expected) -> None:
    with speaking(small_repository, 2) as servers:
        async with served(small_repository, servers) as model:
            for server in servers:
                server.status = grpc.StatusCode.INTERNAL
            with pytest.raises(EngineFailure, match="as it was told"):
                await ask(model, expected)
            assert sum(len(server.asked) for server in servers) == 1
            assert model.queue.engines == 2


async def test_a_server_on_which_the_model_hangs(
    small_repository: Path, expected: Expected, monkeypatch: pytest.MonkeyPatch
) -> None:
    with speaking(small_repository, 2) as servers:
        async with served(small_repository, servers, engine_timeout=1.5) as model:
            servers[0].hold.clear()
            asked = [asyncio.create_task(ask(model, expected)) for _ in range(2)]
            outcomes = await asyncio.gather(*asked, return_exceptions=True)
            assert sorted(map(repr, outcomes)) == ["DeadlineExceeded('not finished within 1.5 s')", "None"]
            assert (model.queue.engines, model.queue.missing) == (1, 1)
            await ask(model, expected)
            with monkeypatch.context() as patch:
                patch.setattr(triton_queue, "_JOIN_TIMEOUT", 0.2)
                assert await asyncio.to_thread(model.revive) == 0, "the trial is not answered either"
            servers[0].hold.set()
            assert await asyncio.to_thread(model.revive) == 1


@contextmanager
def callers(server: RunningServer, number: int = 6) -> Iterator[list[tuple[int, Array, Array]]]:
    """Callers who call in a loop, each time with other structures; yields statuses, structures and spectra."""
    answers: list[tuple[int, Array, Array]] = []
    stop = threading.Event()

    def call(seed: int) -> None:
        generator = np.random.default_rng(seed)
        with server.client() as http:
            while not stop.is_set():
                structures = generator.integers(0, 2, (int(generator.integers(1, 12)), 128, 128), np.uint8)
                answer = http.post("/predict", content=np.packbits(structures).tobytes(), headers=PACKED)
                spectra = np.frombuffer(answer.content, np.float32) if answer.status_code == 200 else np.empty(0)
                answers.append((answer.status_code, structures, spectra))

    threads = [threading.Thread(target=call, args=[seed]) for seed in range(number)]
    for thread in threads:
        thread.start()
    try:
        yield answers
    finally:
        stop.set()
        for thread in threads:
            thread.join(120)


def engines(server: RunningServer) -> int:
    """Number of Tritons that are asked."""
    found = re.search(r"^metaspec_engines\{.*\} (\S+)$", server.get("/metrics").text, re.M)
    assert found
    return int(float(found[1]))


@pytest.mark.slow
@pytest.mark.triton
def test_two_tritons_of_which_one_is_killed_and_one_is_stopped(tmp_path: Path, expected: Expected) -> None:
    source = write_repository(tmp_path / "source", small_model())
    (source / "diffractionnet" / "config.pbtxt").write_text(CONFIG)
    repository = python_repository(source, tmp_path / "repository")

    with start_triton(repository, tmp_path / "a") as first, ExitStack() as stack:
        later = replace(first, http=f"127.0.0.1:{free_port()}", grpc=f"127.0.0.1:{free_port()}")
        flags = ("--triton-url", f"{first.grpc},{later.grpc}", "--repository", str(repository), "--cache-mb", "0")
        server = stack.enter_context(running_server("--engine", "triton", *flags))
        assert engines(server) == 1, "the other one has not been started yet"
        second = stack.enter_context(start_triton(repository, tmp_path / "b", later))
        until(lambda: engines(server) == 2)
        with callers(server) as answers:

            def more(number: int) -> None:
                enough = len(answers) + number
                until(lambda: len(answers) >= enough)

            more(20)
            second.process.send_signal(signal.SIGSTOP)
            until(lambda: engines(server) == 1)
            more(40)
            second.process.send_signal(signal.SIGCONT)
            until(lambda: engines(server) == 2)
            more(20)
            first.process.kill()
            first.process.wait(20)
            until(lambda: engines(server) == 1)
            more(40)
            with start_triton(repository, tmp_path / "again", first):
                until(lambda: engines(server) == 2)
                more(20)
        assert server.get("/v2/health/ready").status_code == 200
    assert [status for status, *_ in answers if status != 200] == []
    for _, structures, spectra in answers:
        np.testing.assert_allclose(spectra, expected(structures).ravel(), atol=1e-6)
