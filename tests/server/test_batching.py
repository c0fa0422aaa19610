from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metaspec_server.core.batching import MicroBatch, MicroBatcher
from metaspec_server.core.cache import computing_repeats_once
from metaspec_server.core.errors import Closed, DeadlineExceeded, EngineFailure, QueueFull
from metaspec_server.core.priority import Slots
from metaspec_server.core.tensors import Piece, Rows
from metaspec_testing.small_models import Array


def rows(start: int, count: int) -> dict[str, Array]:
    return {"x": np.arange(start, start + count, dtype=np.int64)[:, None]}


class Recorder:
    """An engine that doubles its rows, notes its batches, can be held, and writes over what it returned before."""

    def __init__(self, fail_on: int | None = None, die_on: int | None = None) -> None:
        self.batches: list[list[int]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.fail_on, self.die_on = fail_on, die_on
        self.result = np.empty((100, 1), np.int64)

    def __call__(self, pieces: Sequence[Piece]) -> Rows:
        self.entered.set()
        assert self.gate.wait(60)
        batch = np.concatenate([piece.rows["x"] for piece in pieces])
        values = batch[:, 0].tolist()
        self.batches.append(values)
        if self.fail_on in values:
            raise ValueError("bad row")
        if self.die_on in values:
            raise SystemExit("the engine's thread ends")
        self.result[: len(batch)] = 2 * batch
        return {"y": self.result[: len(batch)]}


def batcher_of(*engines: Recorder, max_batch: int, max_queue: int, **options: Any) -> MicroBatcher:
    batcher = MicroBatcher(max_batch, max_queue, **options)
    for engine in engines:
        batcher.start(engine)
    return batcher


async def hold(batcher: MicroBatcher, engine: Recorder) -> asyncio.Task[dict[str, Array]]:
    """Occupy the engine with one row, so that what follows waits in the queue."""
    engine.gate.clear()
    engine.entered.clear()
    task = asyncio.create_task(batcher.submit(rows(-1, 1)))
    assert await asyncio.to_thread(engine.entered.wait, 60)
    return task


async def test_an_idle_engine_takes_what_comes_and_a_busy_one_gathers() -> None:
    engine = Recorder()
    batcher = batcher_of(engine, max_batch=8, max_queue=100)
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
    batcher = batcher_of(engine, max_batch=4, max_queue=1000)
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
    batcher = batcher_of(engine, max_batch=4, max_queue=3)
    first = await hold(batcher, engine)
    waiting = asyncio.create_task(batcher.submit(rows(0, 3)))
    await asyncio.sleep(0)
    with pytest.raises(QueueFull, match="3 of 3") as caught:
        await batcher.submit(rows(5, 1))
    assert caught.value.retry_after is not None
    assert caught.value.retry_after >= 1
    engine.gate.set()
    await asyncio.gather(first, waiting)
    assert (await batcher.submit(rows(5, 1)))["y"].tolist() == [[10]]
    await batcher.close(5)


async def computed_in_order(waiting: list[tuple[int, int, int]], max_batch: int) -> list[list[int]]:
    """Micro-batches of requests that wait at the same time, given as first row, number of rows and priority."""
    engine = Recorder()
    batcher = batcher_of(engine, max_batch=max_batch, max_queue=1000)
    first = await hold(batcher, engine)
    tasks = []
    for start, size, priority in waiting:
        tasks.append(asyncio.create_task(batcher.submit(rows(start, size), priority=priority)))
        await asyncio.sleep(0)
    engine.gate.set()
    for (start, size, _), result in zip(waiting, await asyncio.gather(*tasks), strict=True):
        assert result["y"][:, 0].tolist() == [2 * n for n in range(start, start + size)]
    await first
    await batcher.close(5)
    return engine.batches[1:]


async def test_interactive_rows_go_ahead_of_bulk_and_take_turns_among_themselves() -> None:
    bulk, default = (100, 8, 2), (200, 2, 0)
    batches = await computed_in_order([bulk, default, (1, 1, 1), (10, 5, 1)], max_batch=4)
    assert set(batches[0]) == {1, 10, 11, 12}, "an equal share for the small one, the rest for the large one"
    assert batches[1][:2] == [13, 14]
    assert set(batches[1][2:]) == {100, 200}, "what room they leave is for the others, in equal shares"
    assert sorted(n for batch in batches for n in batch) == [1, *range(10, 15), *range(100, 108), 200, 201]


@pytest.mark.parametrize("max_batch", [1, 3])
async def test_bulk_gets_every_fourth_micro_batch_whatever_comes(max_batch: int) -> None:
    batches = await computed_in_order([(1000, 4, 2), (0, 40, 1)], max_batch)
    turns = [batch[0] >= 1000 for batch in batches]
    assert turns[:4] == [False, False, False, True]
    last = max(n for n, batch in enumerate(batches) if batch[0] >= 1000)
    assert all(turns[n : n + 4].count(True) == 1 for n in range(last - 3))


async def test_a_queue_full_of_bulk_takes_interactive_rows() -> None:
    engine = Recorder()
    batcher = batcher_of(engine, max_batch=4, max_queue=3)
    first = await hold(batcher, engine)
    bulk = asyncio.create_task(batcher.submit(rows(0, 3)))
    await asyncio.sleep(0)
    with pytest.raises(QueueFull):
        await batcher.submit(rows(5, 1), priority=2)
    interactive = asyncio.create_task(batcher.submit(rows(5, 3), priority=1))
    await asyncio.sleep(0)
    with pytest.raises(QueueFull, match="3 of 3"):
        await batcher.submit(rows(9, 1), priority=1)
    assert batcher.waiting == 6
    engine.gate.set()
    assert (await interactive)["y"].tolist() == [[10], [12], [14]]
    await asyncio.gather(first, bulk)
    for wrong in (-1, 3):
        with pytest.raises(ValueError, match=f"priority must be a whole number from 0 to 2, got {wrong}"):
            await batcher.submit(rows(0, 1), priority=wrong)
    await batcher.close(5)


async def test_slots_go_to_interactive_requests_first_and_every_fourth_to_the_others() -> None:
    slots, order, release = Slots(1), list[int](), asyncio.Event()

    async def use(number: int, priority: int) -> None:
        async with slots.take(priority):
            order.append(number)
            await release.wait()

    tasks = [asyncio.create_task(use(0, 2))]
    await asyncio.sleep(0)
    tasks += [asyncio.create_task(use(100 + n, 2)) for n in range(3)]
    tasks += [asyncio.create_task(use(n, 1)) for n in range(1, 7)]
    await asyncio.sleep(0)
    tasks[1].cancel()  # 100 leaves while it waits
    release.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert order == [0, 1, 2, 3, 101, 4, 5, 6, 102]
    async with slots.take(2):  # all are given back
        pass


async def test_a_slot_that_is_given_to_one_who_leaves_goes_to_the_next() -> None:
    slots, entered = Slots(1), list[int]()

    async def use(number: int) -> None:
        async with slots.take(2):
            entered.append(number)

    async with slots.take(2):
        leaving, staying = asyncio.create_task(use(1)), asyncio.create_task(use(2))
        await asyncio.sleep(0)
    leaving.cancel()  # after the slot was given to it, before it runs
    await asyncio.gather(leaving, staying, return_exceptions=True)
    assert entered == [2]


async def test_rows_past_their_deadline_or_cancelled_are_never_computed() -> None:
    engine = Recorder()
    batcher = batcher_of(engine, max_batch=4, max_queue=100)
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
    batcher = batcher_of(Recorder(fail_on=7), max_batch=4, max_queue=100)
    with pytest.raises(EngineFailure, match="bad row"):
        await batcher.submit(rows(0, 20))
    assert batcher.waiting == 0
    assert (await batcher.submit(rows(20, 2)))["y"].tolist() == [[40], [42]]
    assert batcher.engines == 1
    await batcher.close(5)


async def test_closing_finishes_accepted_work_and_takes_no_more() -> None:
    engine = Recorder()
    batcher = batcher_of(engine, max_batch=4, max_queue=100)
    first = await hold(batcher, engine)
    waiting = asyncio.create_task(batcher.submit(rows(0, 6)))
    await asyncio.sleep(0)
    engine.gate.set()
    await batcher.close(5)
    assert (await waiting)["y"][:, 0].tolist() == [0, 2, 4, 6, 8, 10]
    await first
    assert batcher.engines == 0
    with pytest.raises(Closed):
        await batcher.submit(rows(0, 1))


@pytest.mark.parametrize("bad", [{}, {"x": np.zeros((0, 1))}, {"x": np.zeros((2, 1)), "z": np.zeros((3, 1))}])
async def test_rows_of_unequal_or_no_length_are_refused(bad: dict[str, Array]) -> None:
    batcher = batcher_of(Recorder(), max_batch=4, max_queue=100)
    with pytest.raises(ValueError, match="equal, positive length"):
        await batcher.submit(bad)
    await batcher.close(5)


async def test_what_waits_goes_on_waiting_when_an_engine_dies_and_another_takes_it() -> None:
    dying = Recorder(die_on=7)
    batcher = batcher_of(dying, max_batch=1, max_queue=100)
    first = await hold(batcher, dying)
    fatal = asyncio.create_task(batcher.submit(rows(7, 1)))
    await asyncio.sleep(0)
    waiting = asyncio.create_task(batcher.submit(rows(20, 2)))
    await asyncio.sleep(0)
    dying.gate.set()
    await first
    with pytest.raises(EngineFailure, match="thread ends"):
        await fatal
    async with asyncio.timeout(60):
        while batcher.engines:
            await asyncio.sleep(0.001)
    assert batcher.waiting == 2
    assert not waiting.done()
    batcher.start(Recorder())
    assert (await waiting)["y"].tolist() == [[40], [42]]
    await batcher.close(5)


async def test_what_nobody_is_left_to_compute_is_refused_at_the_end() -> None:
    batcher = MicroBatcher(max_batch=4, max_queue=100)
    waiting = asyncio.create_task(batcher.submit(rows(0, 2)))
    await asyncio.sleep(0)
    await batcher.close(1)
    with pytest.raises(Closed):
        await waiting


async def test_keys_stay_with_their_rows() -> None:
    """Requests are split and joined; a row that repeats within a micro-batch reaches the engine once."""
    computed: list[int] = []

    def double(pieces: Sequence[Rows]) -> Rows:
        batch = np.concatenate([piece["x"] for piece in pieces])
        computed.extend(batch[:, 0].tolist())
        return {"y": 2 * batch}

    batcher = MicroBatcher(max_batch=3, max_queue=100)
    values = [[1, 2, 1, 1], [2, 2], [1, 3, 2, 1, 1]]
    tasks = [
        asyncio.create_task(batcher.submit({"x": np.array(some)[:, None]}, keys=[b"%d" % value for value in some]))
        for some in values
    ]
    await asyncio.sleep(0)
    batcher.start(computing_repeats_once(double))
    for some, result in zip(values, await asyncio.gather(*tasks), strict=True):
        assert result["y"][:, 0].tolist() == [2 * value for value in some]
    assert len(computed) < sum(map(len, values))
    await batcher.close(60)


async def test_two_engines_share_one_queue() -> None:
    engines = Recorder(), Recorder()
    batcher = batcher_of(*engines, max_batch=4, max_queue=1000)
    results = await asyncio.gather(*(batcher.submit(rows(10 * n, 10)) for n in range(40)))
    for n, result in enumerate(results):
        assert result["y"][:, 0].tolist() == [2 * value for value in range(10 * n, 10 * n + 10)]
    computed = sorted(value for engine in engines for batch in engine.batches for value in batch)
    assert computed == list(range(400)), "every row once"
    await batcher.close(5)


async def test_every_micro_batch_is_told_of() -> None:
    told: list[MicroBatch] = []
    engine = Recorder(fail_on=50)
    batcher = batcher_of(engine, max_batch=4, max_queue=100, observe=told.append)
    await batcher.submit(rows(0, 10))
    with pytest.raises(EngineFailure):
        await batcher.submit(rows(50, 1))
    await batcher.close(5)
    assert [batch.rows for batch in told] == [4, 4, 2, 1]
    assert [len(batch.waited) for batch in told] == [1, 0, 0, 1], "a request waits once, until its first rows are taken"
    assert [batch.failed for batch in told] == [False, False, False, True]
    assert all(batch.seconds > 0 for batch in told)


@settings(max_examples=60, deadline=None)
@given(
    requests=st.lists(
        st.tuples(
            st.integers(1, 30),
            st.integers(0, 4),
            st.booleans(),
            st.sampled_from([None, 0.001, 10.0]),
            st.sampled_from([0, 1, 2]),
        ),
        min_size=1,
        max_size=25,
    ),
    max_batch=st.integers(1, 16),
    max_queue=st.integers(5, 200),
    engine_count=st.integers(1, 3),
    on_one_core=st.integers(0, 3),
    bad=st.integers(0, 400),
    deadly=st.integers(0, 400),
)
def test_every_caller_gets_exactly_its_own_rows_or_exactly_one_error(
    requests: list[tuple[int, int, bool, float | None, int]],
    max_batch: int,
    max_queue: int,
    engine_count: int,
    on_one_core: int,
    bad: int,
    deadly: int,
) -> None:
    """With engines of one kind, and with those that follow the load."""
    engines = [Recorder(fail_on=bad, die_on=deadly) for _ in range(engine_count + on_one_core)]

    async def scenario() -> None:
        batcher = batcher_of(*engines[:engine_count], max_batch=max_batch, max_queue=max_queue)
        for engine in engines[engine_count:]:
            batcher.start(engine, on_one_core=True)
        start = 0
        tasks = []
        for size, pause, cancel, timeout, priority in requests:

            async def call(
                start: int = start,
                size: int = size,
                pause: int = pause,
                timeout: float | None = timeout,
                priority: int = priority,
            ) -> tuple[int, int, Array]:
                await asyncio.sleep(pause / 2000)
                return start, size, (await batcher.submit(rows(start, size), timeout, priority=priority))["y"]

            task = asyncio.create_task(call())
            if cancel:
                asyncio.get_running_loop().call_later(0.001, task.cancel)
            tasks.append(task)
            start += size
        everybody = asyncio.gather(*tasks, return_exceptions=True)
        async with asyncio.timeout(60):
            while not everybody.done():
                await asyncio.wait([everybody], timeout=0.05)
                if batcher.engines == 0:  # the last one died: callers who can wait get their rows from the next
                    engines.append(Recorder(fail_on=bad))
                    batcher.start(engines[-1])
        for result in everybody.result():
            if isinstance(result, BaseException):
                assert isinstance(result, QueueFull | EngineFailure | DeadlineExceeded | asyncio.CancelledError)
            else:
                first, size, values = result
                assert values[:, 0].tolist() == [2 * n for n in range(first, first + size)]
        await batcher.close(5)
        assert batcher.waiting == 0

    asyncio.run(scenario())
    assert all(len(batch) <= max_batch for engine in engines for batch in engine.batches)
