"""The micro-batcher: many callers' rows in, full batches to the engine, everyone's own rows back.

Work-conserving: an idle engine takes at once whatever waits; while it runs, requests gather, and the next micro-batch takes
as many rows as fit. Nobody waits for a timer. A large request is split, small ones are joined, and each waiting request
gets an equal share of every micro-batch, so that one large caller cannot keep many small ones waiting.

This module knows nothing of HTTP and nothing of ONNX.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Rows = dict[str, NDArray[np.generic]]


class QueueFull(Exception):
    """Too many rows wait. `retry_after` estimates, in seconds, when there is room again."""

    def __init__(self, waiting: int, limit: int, retry_after: float) -> None:
        super().__init__(f"the queue is full: {waiting} of {limit} structures wait")
        self.retry_after = retry_after


class DeadlineExceeded(Exception):
    """The request was not finished in time."""


class EngineFailure(Exception):
    """The engine raised while it computed a micro-batch that this request had rows in."""


class Closed(Exception):
    """The batcher has been closed and takes no more requests."""


@dataclass(eq=False)
class _Request:
    rows: Rows
    size: int
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Rows]
    taken: int = 0
    finished: int = 0
    results: Rows = field(default_factory=dict)


_Piece = tuple[_Request, int, int]  # rows start .. stop - 1 of a request


class MicroBatcher:
    """A bounded queue before one engine, and the thread that empties it.

    Args:
        run: computes a micro-batch: named arrays of n rows to named arrays of n rows. Called by one thread only.
        max_batch: rows in a micro-batch at most.
        max_queue: rows that wait at most.
        name: of the thread.
    """

    def __init__(self, run: Callable[[Rows], Rows], max_batch: int, max_queue: int, name: str = "engine") -> None:
        self._run = run
        self._max_batch, self._max_queue = max_batch, max_queue
        self._queue: deque[_Request] = deque()
        self._waiting = 0
        self._rows_per_second = 100.0
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the engine's thread is there to take work."""
        return self._thread.is_alive() and not self._closing

    @property
    def waiting(self) -> int:
        """Rows in the queue."""
        return self._waiting

    async def submit(self, rows: Rows, timeout: float | None = None) -> Rows:
        """Compute rows, batched with those of other callers.

        Args:
            rows: named arrays with an equal, positive number of rows. They must not change until this returns.
            timeout: seconds until `DeadlineExceeded`; rows that are not in an engine by then are dropped.

        Returns:
            Named arrays with as many rows, in the same order.

        Raises:
            QueueFull: at once, if the rows do not fit in the queue.
            DeadlineExceeded: the timeout ran out.
            EngineFailure: the engine failed on a micro-batch with some of these rows.
            Closed: the batcher was closed before.
        """
        sizes = {len(array) for array in rows.values()}
        if len(sizes) != 1 or 0 in sizes:
            raise ValueError(f"rows must be arrays of one equal, positive length, got lengths {sorted(sizes)}")
        loop = asyncio.get_running_loop()
        request = _Request(rows, sizes.pop(), loop, loop.create_future())
        with self._changed:
            if self._closing:
                raise Closed("the server is shutting down")
            if self._waiting + request.size > self._max_queue:
                retry_after = max(1.0, self._waiting / self._rows_per_second)
                raise QueueFull(self._waiting, self._max_queue, retry_after)
            self._queue.append(request)
            self._waiting += request.size
            self._changed.notify()
        try:
            async with asyncio.timeout(timeout):
                return await request.future
        except TimeoutError:
            raise DeadlineExceeded(f"not finished within {timeout:g} s") from None
        finally:  # also when the caller was cancelled: what has not been computed never will be
            with self._changed:
                self._drop(request)

    async def close(self, timeout: float) -> None:
        """Take no more requests, finish the accepted ones, and end the thread; give up after `timeout` seconds."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        await asyncio.to_thread(self._thread.join, timeout)

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._queue and not self._closing:
                    self._changed.wait()
                if not self._queue:
                    return
                pieces = self._take()
            started = time.perf_counter()
            try:
                names = pieces[0][0].rows
                batch = {name: np.concatenate([r.rows[name][a:b] for r, a, b in pieces]) for name in names}
                results = self._run(batch)
            except Exception as error:  # the next micro-batch may well succeed: the thread must survive
                self._fail(pieces, error)
                continue
            rows = sum(stop - start for _, start, stop in pieces)
            self._rows_per_second += 0.1 * (rows / (time.perf_counter() - started) - self._rows_per_second)
            self._deliver(pieces, results)

    def _take(self) -> list[_Piece]:
        """Fill a micro-batch with equal shares of all waiting requests, oldest first. Needs the lock."""
        room = min(self._max_batch, self._waiting)
        start = {request: request.taken for request in self._queue}
        while room:
            share = max(1, room // len(self._queue))
            for request in list(self._queue):
                count = min(share, room, request.size - request.taken)
                request.taken += count
                self._waiting -= count
                room -= count
                if request.taken == request.size:
                    self._queue.remove(request)
                if not room:
                    break
        if self._queue:  # who was served last comes first next time
            self._queue.rotate(-1)
        return [(request, first, request.taken) for request, first in start.items() if request.taken > first]

    def _deliver(self, pieces: list[_Piece], results: Rows) -> None:
        offset = 0
        for request, start, stop in pieces:
            count = stop - start
            part = {name: array[offset : offset + count] for name, array in results.items()}
            offset += count
            if count == request.size:
                request.results = {name: np.array(array) for name, array in part.items()}
            else:
                for name, array in part.items():
                    whole = request.results.setdefault(name, np.empty((request.size, *array.shape[1:]), array.dtype))
                    whole[start:stop] = array
            request.finished += count
            if request.finished == request.size:
                request.loop.call_soon_threadsafe(_resolve, request.future, request.results)

    def _fail(self, pieces: list[_Piece], error: Exception) -> None:
        for request, _, _ in pieces:
            with self._changed:
                self._drop(request)
            failure = EngineFailure(f"the engine failed: {error}")
            request.loop.call_soon_threadsafe(_reject, request.future, failure)

    def _drop(self, request: _Request) -> None:
        """Take what is left of a request out of the queue. Needs the lock."""
        if request.taken < request.size:
            self._queue.remove(request)
            self._waiting -= request.size - request.taken
            request.taken = request.size


def _resolve(future: asyncio.Future[Rows], results: Rows) -> None:
    if not future.done():
        future.set_result(results)


def _reject(future: asyncio.Future[Rows], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
