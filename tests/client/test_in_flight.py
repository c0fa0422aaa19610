"""Large calls: how much of them is in flight at a time, in how much memory, and what is left when they end early."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from metaspec import AsyncSurrogate, ProtocolError, ServerError, Surrogate
from metaspec_testing.scripted import METADATA, Answer, good, scripted
from metaspec_testing.servers import RunningServer
from metaspec_testing.silent import Silent, silent_server
from metaspec_testing.small_models import Array, Expected, ExpectedGradient


def mapped(path: Path, count: int) -> np.memmap:
    """Structures on disk, a different one for each of a hundred numbers."""
    array = np.lib.format.open_memmap(path, "w+", np.uint8, (count, 128, 128))
    some = np.random.default_rng(10).integers(0, 2, (100, 128, 128), dtype=np.uint8)
    for start in range(0, count, 100):
        array[start : start + 100] = some
    return array


@pytest.mark.parametrize("client", [Surrogate, AsyncSurrogate])
@pytest.mark.parametrize(("method", "count"), [("predict", 4000), ("gradient", 900)])
def test_memory_is_the_result_and_a_few_batches(
    client: type,
    method: str,
    count: int,
    server: RunningServer,
    tmp_path: Path,
    expected: Expected,
    expected_gradient: ExpectedGradient,
) -> None:
    """What is allocated for a large call beside its result does not grow with the call."""
    structures, cotangent = mapped(tmp_path / "structures.npy", count), np.random.default_rng(11).normal(size=(4, 301))
    arguments = [] if method == "predict" else [cotangent]
    first, whole = structures[:100], np.broadcast_to(cotangent, (100, 4, 301))
    wanted = expected(first) if method == "predict" else expected_gradient(first, whole)

    async def ask(count: int) -> Array:
        async with AsyncSurrogate(server.url, batch_size=50) as surrogate:
            return np.asarray(await getattr(surrogate, method)(structures[:count], *arguments))

    def values_of(count: int) -> Array:
        if client is AsyncSurrogate:
            return asyncio.run(ask(count))
        with Surrogate(server.url, batch_size=50) as surrogate:
            return np.asarray(getattr(surrogate, method)(structures[:count], *arguments))

    values_of(1)  # what is imported and allocated once
    tracemalloc.start()
    try:
        values = values_of(count)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    few = 5e6 + 3 * 4 * (50 * wanted[0].nbytes)  # what arrives, and is being joined, of four answers
    assert few < 0.8 * values.nbytes, "a copy of the result would be noticed"
    assert peak < values.nbytes + few
    for start in range(0, count, 100):
        np.testing.assert_allclose(values[start : start + 100], wanted, atol=1e-6)


def test_bodies_are_gone_when_they_are_sent(server: RunningServer) -> None:
    """Densities are 64 KiB each on the wire: the requests are larger than the result, and are not kept."""
    density = np.full((500, 128, 128), 0.5, np.float16)
    with Surrogate(server.url, batch_size=20, concurrency=2) as surrogate:
        tracemalloc.start()
        try:
            values = surrogate.predict(density).values
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < values.nbytes + 3e6 + 3 * 2 * (20 * 128 * 128 * 4)


async def test_the_event_loop_is_free_while_a_call_is_checked(server: RunningServer) -> None:
    """The array is there only once the event loop has run something else."""
    ran = threading.Event()

    class Slow:
        def __array__(self, dtype: object = None, copy: object = None) -> Array:
            assert ran.wait(20), "the event loop waits for the check"
            return np.zeros((3, 128, 128))

    async with AsyncSurrogate(server.url) as surrogate:
        await surrogate.metadata()
        asyncio.get_running_loop().call_later(0.01, ran.set)
        assert (await surrogate.predict(Slow())).values.shape == (3, 4, 301)


async def test_a_call_that_is_cancelled_leaves_nothing_behind(
    server: RunningServer, structures: Array, expected: Expected
) -> None:
    many = np.zeros((4000, 128, 128), np.uint8)
    async with AsyncSurrogate(server.url, batch_size=10) as surrogate:
        call = asyncio.create_task(surrogate.predict(many))
        async with asyncio.timeout(60):
            while surrogate.sent.requests < 8:
                await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        sent = surrogate.sent.requests
        np.testing.assert_allclose((await surrogate.predict(structures)).values, expected(structures), atol=1e-6)
        assert surrogate.sent.requests == sent + 1 < 400


def test_an_error_ends_the_pauses_of_the_other_requests() -> None:
    """What waits for half a minute is not waited for when the call has failed anyway."""
    busy: Answer = (503, {"Retry-After": "30"}, b'{"error": "the queue is full"}')
    with (
        scripted(busy, busy, (400, {}, b'{"error": "no"}')) as server,
        Surrogate(server.url, batch_size=1) as surrogate,
    ):
        failed = threading.Event()

        def ask() -> None:
            with pytest.raises(ServerError, match=r"no .HTTP 400"):
                surrogate.predict(np.zeros((3, 128, 128)))
            failed.set()

        thread = threading.Thread(target=ask)
        thread.start()
        assert failed.wait(20)
        thread.join()


@pytest.fixture(params=["http", "grpc"])
def silent(request: pytest.FixtureRequest) -> Iterator[Silent]:
    """A server that never answers requests for spectra, except the fourth, which it refuses."""
    with silent_server(request.param, refusing=4) as server:
        yield server


@pytest.mark.parametrize("client", [Surrogate, AsyncSurrogate])
def test_an_error_ends_the_other_requests_at_once(silent: Silent, client: type) -> None:
    """Though they would wait for ten minutes."""

    async def ask(surrogate: AsyncSurrogate) -> None:
        async with surrogate:
            await surrogate.predict(np.zeros((6, 128, 128)))

    def run() -> None:
        surrogate = client(silent.url, batch_size=1, timeout=600, retries=0)
        if client is AsyncSurrogate:
            asyncio.run(ask(surrogate))
            return
        with surrogate:
            for _ in range(2):  # what was broken off does not disturb what follows
                with pytest.raises(ServerError, match=r"no .(HTTP 400|gRPC INTERNAL) "):
                    surrogate.predict(np.zeros((6, 128, 128)))
                silent.asked = 0
            assert surrogate.is_ready()
            surrogate.predict(np.zeros((6, 128, 128)))

    with ThreadPoolExecutor(1) as pool:
        ended = pool.submit(run)
        with pytest.raises(ServerError, match=r"no .(HTTP 400|gRPC INTERNAL) "):
            ended.result(timeout=60)


def interrupt(program: str, is_waiting: Callable[[], bool], timeout: float) -> None:
    """Run a program, and press Ctrl-C once it is waiting for a server: it ends in time, with KeyboardInterrupt."""
    process = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 60
        while not is_waiting() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=timeout)
    finally:
        process.kill()
    assert errors.endswith("KeyboardInterrupt\n")


@pytest.mark.parametrize("client", ["Surrogate", "AsyncSurrogate"])
@pytest.mark.parametrize("count", [1, 3])
def test_an_interrupt_ends_requests_that_nobody_answers(silent: Silent, client: str, count: int) -> None:
    predict = f"surrogate.predict(numpy.zeros(({count}, 128, 128)))"
    if client == "AsyncSurrogate":
        predict = f"asyncio.run({predict})"
    program = (
        "import asyncio, numpy, metaspec, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        f"surrogate = metaspec.{client}('{silent.url}', batch_size=1, timeout=600); {predict}"
    )
    interrupt(program, lambda: silent.asked >= count, timeout=60)
    assert silent.asked == count


@pytest.mark.parametrize("attempt", range(2))
def test_many_threads_share_a_new_surrogate(attempt: int) -> None:
    """Its description is requested once, and no more requests are in flight than allowed."""
    asked: list[str] = []
    with scripted(*[good(1)] * 200, hold=0.001) as server:
        server.describe = lambda path: asked.append(path) or METADATA  # type: ignore[func-returns-value]
        surrogate = Surrogate(server.url, concurrency=4, timeout=600, retries=0)
        ready = threading.Barrier(200)

        def ask() -> int:
            ready.wait(60)
            return len(surrogate.predict(np.zeros((128, 128))))

        with ThreadPoolExecutor(200) as pool:
            calls = [pool.submit(ask) for _ in range(200)]
            assert [call.result(timeout=120) for call in calls] == [1] * 200
        surrogate.close()
    assert len(asked) == len(set(asked))
    assert server.together <= 4


async def test_many_tasks_share_a_new_surrogate() -> None:
    asked: list[str] = []
    with scripted(*[good(1)] * 200, hold=0.001) as server:
        server.describe = lambda path: asked.append(path) or METADATA  # type: ignore[func-returns-value]
        async with AsyncSurrogate(server.url, concurrency=4, retries=0) as surrogate, asyncio.timeout(120):
            found = await asyncio.gather(*[surrogate.predict(np.zeros((128, 128))) for _ in range(200)])
    assert [len(spectra) for spectra in found] == [1] * 200
    assert len(asked) == len(set(asked))
    assert server.together <= 4


async def test_tasks_that_wait_for_the_description_get_its_error() -> None:
    with scripted() as server:
        server.describe = lambda path: b"garbage"
        async with AsyncSurrogate(server.url, retries=0) as surrogate, asyncio.timeout(120):
            found = await asyncio.gather(*[surrogate.metadata() for _ in range(50)], return_exceptions=True)
    assert {type(error) for error in found} == {ProtocolError}


def test_threads_that_wait_for_the_description_get_its_error() -> None:
    with scripted() as server, Surrogate(server.url, retries=0) as surrogate:
        server.describe = lambda path: b"garbage"
        with ThreadPoolExecutor(50) as pool:
            calls = [pool.submit(surrogate.metadata) for _ in range(50)]
            for call in calls:
                with pytest.raises(ProtocolError, match="cannot be read"):
                    call.result(timeout=120)


@pytest.mark.parametrize("count", [1, 4])
def test_an_interrupt_ends_a_call(count: int) -> None:
    """Ctrl-C, while the requests wait for a busy server."""
    busy: Answer = (503, {"Retry-After": "50"}, b'{"error": "the queue is full"}')
    with scripted(*[busy] * count) as server:
        program = (
            "import numpy, metaspec, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
            f"metaspec.Surrogate('{server.url}', batch_size=1).predict(numpy.zeros(({count}, 128, 128)))"
        )
        interrupt(program, lambda: len(server.asked) >= count, timeout=30)
    assert len(server.asked) == count


def test_no_more_requests_in_flight_than_allowed() -> None:
    """Also where threads share a surrogate."""
    answers = [good(1)] * 24
    with scripted(*answers, hold=0.05) as server, Surrogate(server.url, batch_size=1, concurrency=2) as surrogate:
        surrogate.metadata()
        threads = [threading.Thread(target=surrogate.predict, args=[np.zeros((8, 128, 128))]) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert surrogate.sent == (24, 24)
    assert server.together == 2


async def test_no_more_requests_in_flight_than_allowed_for_asyncio() -> None:
    with scripted(*[good(1)] * 12, hold=0.05) as server:
        async with AsyncSurrogate(server.url, batch_size=1, concurrency=3) as surrogate:
            await surrogate.predict(np.zeros((12, 128, 128)))
    assert server.together == 3
