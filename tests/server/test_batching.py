from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from metaspec_server.batching import Closed, DeadlineExceeded, EngineFailure, MicroBatcher, QueueFull


def rows(start: int, count: int) -> dict[str, np.ndarray]:
    return {"x": np.arange(start, start + count, dtype=np.int64)[:, None]}


class Recorder:
    """An engine that doubles its rows, notes its batches, and can be held."""

    def __init__(self, fail_on: int | None = None) -> None:
        self.batches: list[list[int]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.fail_on = fail_on

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.entered.set()
        assert self.gate.wait(10)
        values = batch["x"][:, 0].tolist()
        self.batches.append(values)
        if self.fail_on in values:
            raise ValueError("bad row")
        return {"y": 2 * batch["x"]}


async def hold(batcher: MicroBatcher, engine: Recorder) -> asyncio.Task[dict[str, np.ndarray]]:
    """Occupy the engine with one row, so that what follows waits in the queue."""
    engine.gate.clear()
    engine.entered.clear()
    task = asyncio.create_task(batcher.submit(rows(-1, 1)))
    assert await asyncio.to_thread(engine.entered.wait, 10)
    return task


async def test_an_idle_engine_takes_what_comes_and_a_busy_one_gathers() -> None:
    engine = Recorder()
    batcher = MicroBatcher(engine, max_batch=8, max_queue=100)
    first = await hold(batcher, engine)
    tasks = [asyncio.create_task(batcher.submit(rows(10 * n, 2))) for n in range(4)]
    await asyncio.sleep(0)
    assert batcher.waiting == 8
    engine.gate.set()
    results = await asyncio.gather(*tasks)
    await first
    assert engine.batches == [[-1], [0, 1, 10, 11, 20, 21, 30, 31]]
    assert [r["y"][:, 0].tolist() for r in results] == [[20 * n, 20 * n + 2] for n in range(4)]
    await batcher.close(5)


async def test_a_large_request_does_not_keep_small_ones_waiting() -> None:
    engine = Recorder()
    batcher = MicroBatcher(engine, max_batch=4, max_queue=1000)
    first = await hold(batcher, engine)
    large = asyncio.create_task(batcher.submit(rows(100, 40)))
    await asyncio.sleep(0)
    small = [asyncio.create_task(batcher.submit(rows(n, 1))) for n in range(3)]
    await asyncio.sleep(0)
    engine.gate.set()
    result = await large
    await asyncio.gather(first, *small)
    assert set(engine.batches[1]) >= {0, 1, 2}, "the small requests are all in the first micro-batch after the wait"
    assert result["y"][:, 0].tolist() == [2 * n for n in range(100, 140)]
    assert max(map(len, engine.batches)) == 4
    await batcher.close(5)


async def test_a_full_queue_refuses_at_once_and_says_when_to_return() -> None:
    engine = Recorder()
    batcher = MicroBatcher(engine, max_batch=4, max_queue=3)
    first = await hold(batcher, engine)
    waiting = asyncio.create_task(batcher.submit(rows(0, 3)))
    await asyncio.sleep(0)
    with pytest.raises(QueueFull, match="3 of 3") as caught:
        await batcher.submit(rows(5, 1))
    assert caught.value.retry_after >= 1
    engine.gate.set()
    await asyncio.gather(first, waiting)
    assert (await batcher.submit(rows(5, 1)))["y"].tolist() == [[10]]
    await batcher.close(5)


async def test_rows_past_their_deadline_or_cancelled_are_never_computed() -> None:
    engine = Recorder()
    batcher = MicroBatcher(engine, max_batch=4, max_queue=100)
    first = await hold(batcher, engine)
    late = asyncio.create_task(batcher.submit(rows(1, 1), timeout=0.01))
    gone = asyncio.create_task(batcher.submit(rows(2, 1)))
    with pytest.raises(DeadlineExceeded):
        await late
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    assert batcher.waiting == 0
    engine.gate.set()
    await first
    assert (await batcher.submit(rows(3, 1)))["y"].tolist() == [[6]]
    assert engine.batches == [[-1], [3]]
    await batcher.close(5)


async def test_a_failed_batch_fails_its_own_requests_only() -> None:
    batcher = MicroBatcher(Recorder(fail_on=7), max_batch=4, max_queue=100)
    with pytest.raises(EngineFailure, match="bad row"):
        await batcher.submit(rows(0, 20))
    assert batcher.waiting == 0
    assert (await batcher.submit(rows(20, 2)))["y"].tolist() == [[40], [42]]
    assert batcher.alive
    await batcher.close(5)


async def test_closing_finishes_accepted_work_and_takes_no_more() -> None:
    engine = Recorder()
    batcher = MicroBatcher(engine, max_batch=4, max_queue=100)
    first = await hold(batcher, engine)
    waiting = asyncio.create_task(batcher.submit(rows(0, 6)))
    await asyncio.sleep(0)
    engine.gate.set()
    await batcher.close(5)
    assert (await waiting)["y"][:, 0].tolist() == [0, 2, 4, 6, 8, 10]
    await first
    assert not batcher.alive
    with pytest.raises(Closed):
        await batcher.submit(rows(0, 1))


@pytest.mark.parametrize("bad", [{}, {"x": np.zeros((0, 1))}, {"x": np.zeros((2, 1)), "z": np.zeros((3, 1))}])
async def test_rows_of_unequal_or_no_length_are_refused(bad: dict[str, np.ndarray]) -> None:
    batcher = MicroBatcher(Recorder(), max_batch=4, max_queue=100)
    with pytest.raises(ValueError, match="equal, positive length"):
        await batcher.submit(bad)
    await batcher.close(5)


@settings(max_examples=40, deadline=None)
@given(
    requests=st.lists(st.tuples(st.integers(1, 30), st.integers(0, 4), st.booleans()), min_size=1, max_size=25),
    max_batch=st.integers(1, 16),
    max_queue=st.integers(5, 200),
    bad=st.integers(0, 400),
)
def test_every_caller_gets_exactly_its_own_rows_or_exactly_one_error(
    requests: list[tuple[int, int, bool]], max_batch: int, max_queue: int, bad: int
) -> None:
    engine = Recorder(fail_on=bad)

    async def scenario() -> None:
        batcher = MicroBatcher(engine, max_batch, max_queue)
        start = 0
        tasks = []
        for size, pause, cancel in requests:

            async def call(start: int = start, size: int = size, pause: int = pause) -> tuple[int, int, np.ndarray]:
                await asyncio.sleep(pause / 2000)
                return start, size, (await batcher.submit(rows(start, size)))["y"]

            task = asyncio.create_task(call())
            if cancel:
                asyncio.get_running_loop().call_later(0.001, task.cancel)
            tasks.append(task)
            start += size
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, BaseException):
                assert isinstance(result, QueueFull | EngineFailure | asyncio.CancelledError)
            else:
                first, size, values = result
                assert values[:, 0].tolist() == [2 * n for n in range(first, first + size)]
        assert batcher.alive
        await batcher.close(5)
        assert batcher.waiting == 0

    asyncio.run(scenario())
    assert all(len(batch) <= max_batch for batch in engine.batches)
