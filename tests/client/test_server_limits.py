"""The limits of our server as the client meets them, over HTTP and gRPC: sizes of requests, and a full queue."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from metaspec import AsyncSurrogate, MetaSpecError, RequestTooLarge, ServerBusy, ServerError, Surrogate
from metaspec_testing.servers import RunningServer, running_server
from metaspec_testing.small_models import hanging_model, write_repository

QUEUE = 4
FLAGS = ("--max-queue", str(QUEUE), "--max-body-bytes", "8000000", "--max-batch", "1", "--cache-mb", "0")


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server whose model hangs at a structure of one solid pixel."""
    repository = write_repository(tmp_path_factory.mktemp("hanging"), hanging_model())
    with running_server("--repository", str(repository), *FLAGS, "--grpc-port", "0") as running:
        yield running


@pytest.fixture(params=["http", "grpc"])
def url(request: pytest.FixtureRequest, limited: RunningServer) -> str:
    return limited.url if request.param == "http" else f"grpc://{limited.grpc_address}"


async def ask(client: type, url: str, count: int = 1, **settings: Any) -> int:
    """Predict empty structures in one request, and return their number."""
    structures = np.zeros((count, 128, 128), np.uint8)
    if client is AsyncSurrogate:
        async with AsyncSurrogate(url, batch_size=1000, retries=0, **settings) as asynchronous:
            return len(await asynchronous.predict(structures))
    with Surrogate(url, batch_size=1000, retries=0, **settings) as surrogate:
        return len(await asyncio.to_thread(surrogate.predict, structures))


@pytest.mark.parametrize("client", [Surrogate, AsyncSurrogate])
async def test_too_large_a_request_is_called_so(client: type, url: str) -> None:
    with pytest.raises(RequestTooLarge, match=r"at most 4 structures in one request, got 5: .* Lower batch_size"):
        await ask(client, url, QUEUE + 1)


def test_too_long_a_request_is_called_so(url: str) -> None:
    with Surrogate(url, retries=0) as surrogate, pytest.raises(RequestTooLarge, match="Lower batch_size"):
        surrogate.predict(np.full((200, 128, 128), 0.5))


@pytest.mark.parametrize("client", [Surrogate, AsyncSurrogate])
async def test_the_server_names_the_priorities_that_it_has(client: type, url: str) -> None:
    assert await ask(client, url, priority=2) == 1
    with pytest.raises(ServerError, match="priority must be 0 for the default, or from 1, the highest, to 2, got 3"):
        await ask(client, url, priority=3)


async def test_a_queue_full_of_bulk_work_takes_interactive_requests(limited: RunningServer) -> None:
    """Ends the server: its engine hangs."""
    urls = [limited.url, f"grpc://{limited.grpc_address}"]
    hanging = np.zeros((128, 128), np.uint8)
    hanging[5, 7] = 1
    async with AsyncSurrogate(limited.url, batch_size=1, retries=0, timeout=600) as bulk:
        waiting: list[asyncio.Task[Any]] = [asyncio.create_task(bulk.predict(hanging))]
        await until(lambda: busy_seconds(limited) > 0)
        waiting += [asyncio.create_task(ask(AsyncSurrogate, limited.url, timeout=600)) for _ in range(QUEUE)]
        await until(lambda: depth(limited) == QUEUE)
        for url in urls:
            with pytest.raises(ServerBusy, match="the queue is full"):
                await ask(Surrogate, url)
        for url in urls:
            for client in (Surrogate, AsyncSurrogate):
                waiting.append(asyncio.create_task(ask(client, url, priority=1, timeout=600)))
        await until(lambda: depth(limited) == QUEUE + 4)
        limited.process.kill()
        ended = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(error, MetaSpecError) for error in ended)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not await asyncio.to_thread(condition):
            await asyncio.sleep(0.02)


def gauge(server: RunningServer, name: str) -> float:
    (value,) = re.findall(rf'^{name}{{.*model="diffractionnet",.*}} (\S+)$', server.get("/metrics").text, re.MULTILINE)
    return float(value)


def busy_seconds(server: RunningServer) -> float:
    return gauge(server, "metaspec_engine_busy_seconds")


def depth(server: RunningServer) -> float:
    return gauge(server, "metaspec_queue_depth")
