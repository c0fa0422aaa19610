"""The micro-batcher: many callers' rows in, full batches to the engines, everyone's own rows back.

Work-conserving: an idle engine takes at once whatever waits; while it runs, requests gather, and the next micro-batch takes
as many rows as fit. Nobody waits for a timer. A large request is split, small ones are joined, and each waiting request
gets an equal share of every micro-batch, so that one large caller cannot keep many small ones waiting.

One queue, and a thread for each engine that empties it. An engine that raises an `Exception` has failed a micro-batch, and
takes the next one. Anything worse ends its thread; what waits goes on waiting for another engine.

This module knows nothing of HTTP and nothing of ONNX.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np

from metaspec_server.core.tensors import Rows, count

log = logging.getLogger(__name__)

Run = Callable[[Sequence[Rows]], Rows]
"""Computes a micro-batch: the rows of several requests in, one row out for each, in the same order.

Called by one thread only. What it returns may be overwritten by its next call.
"""


class QueueFull(Exception):
    """Too many rows wait. `retry_after` estimates, in seconds, when there is room again."""

    def __init__(self, waiting: int, limit: int, retry_after: float) -> None:
        super().__init__(f"the queue is full: {waiting} of {limit} structures wait")
        self.retry_after = retry_after


class DeadlineExceeded(Exception):
    """The request was not finished in time."""


class EngineFailure(Exception):
    """The engine raised while it computed a micro-batch that this request had rows in."""


class EngineUnavailable(Exception):
    """The engine cannot be reached just now; another attempt may succeed."""


class Closed(Exception):
    """The batcher has been closed and takes no more requests."""


@dataclass(frozen=True)
class MicroBatch:
    """What is told of a micro-batch when it has been computed.

    Attributes:
        rows: how many.
        waited: seconds in the queue, of each request that had its first rows in it.
        seconds: of computing.
        failed: whether the engine raised.
    """

    rows: int
    waited: list[float]
    seconds: float
    failed: bool


@dataclass(eq=False)
class _Request:
    rows: Rows
    size: int
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Rows]
    submitted: float = field(default_factory=time.perf_counter)
    taken: int = 0
    finished: int = 0
    results: Rows = field(default_factory=dict)

    def resolve(self) -> None:
        """Hand over the results, from the engine's thread."""
        self._call(lambda: self.future.set_result(self.results))

    def reject(self, error: Exception) -> None:
        """Hand over an error, from the engine's thread."""
        self._call(lambda: self.future.set_exception(error))

    def _call(self, settle: Callable[[], None]) -> None:
        with suppress(RuntimeError):  # the caller's event loop is closed: nobody waits any more
            self.loop.call_soon_threadsafe(lambda: None if self.future.done() else settle())


_Piece = tuple[_Request, int, int]  # rows start .. stop - 1 of a request


class MicroBatcher:
    """A bounded queue before one or several engines, and the threads that empty it.

    Args:
        max_batch: rows in a micro-batch at most.
        max_queue: rows that wait at most.
        name: of the threads.
        observe: is told of every micro-batch, by the thread that computed it.
    """

    def __init__(
        self,
        max_batch: int,
        max_queue: int,
        name: str = "engine",
        observe: Callable[[MicroBatch], None] = lambda batch: None,
    ) -> None:
        self._max_batch, self._max_queue = max_batch, max_queue
        self._name, self._observe = name, observe
        self._queue: deque[_Request] = deque()
        self._waiting = 0
        self._rows_per_second = 100.0
        self._closing = False
        self._changed = threading.Condition()
        self._threads: set[threading.Thread] = set()

    def start(self, run: Run) -> threading.Thread:
        """Let one more engine take work, in a thread of its own, which is returned."""
        thread = threading.Thread(target=self._work, args=[run], name=self._name, daemon=True)
        with self._changed:
            self._threads.add(thread)
        thread.start()
        return thread

    @property
    def engines(self) -> int:
        """Engines that take work; 0 once it is closed."""
        return 0 if self._closing else len(self._threads)

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
            ValueError: arrays of unequal or no length.
        """
        loop = asyncio.get_running_loop()
        request = _Request(rows, count(rows), loop, loop.create_future())
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
        """Take no more requests, finish the accepted ones, and end the threads; give up after `timeout` seconds."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            threads = list(self._threads)
        deadline = time.monotonic() + timeout
        for thread in threads:
            await asyncio.to_thread(thread.join, max(0.0, deadline - time.monotonic()))
        with self._changed:  # nobody is left to compute these
            left = list(self._queue)
            for request in left:
                self._drop(request)
        for request in left:
            request.reject(Closed("the server is shutting down"))

    def _work(self, run: Run) -> None:
        try:
            while pieces := self._next():
                self._compute(run, pieces)
        except BaseException:
            log.exception("the thread of an engine ends: %s", self._name)
        finally:
            with self._changed:
                self._threads.discard(threading.current_thread())

    def _next(self) -> list[_Piece]:
        """Wait for rows and take a micro-batch; none when closed and empty."""
        with self._changed:
            while not self._queue and not self._closing:
                self._changed.wait()
            return self._take() if self._queue else []

    def _compute(self, run: Run, pieces: list[_Piece]) -> None:
        rows = sum(stop - start for _, start, stop in pieces)
        started = time.perf_counter()
        waited = [started - request.submitted for request, start, _ in pieces if start == 0]
        failed = True
        try:
            results = run([{name: array[a:b] for name, array in r.rows.items()} for r, a, b in pieces])
            failed = False
            self._deliver(pieces, results)
        except Exception as error:  # the next micro-batch may well succeed: the thread must survive
            self._fail(pieces, error)
        except BaseException as error:
            self._fail(pieces, error)
            raise
        finally:
            seconds = time.perf_counter() - started
            if not failed:
                self._rows_per_second += 0.1 * (rows / seconds - self._rows_per_second)
            self._observe(MicroBatch(rows, waited, seconds, failed))

    def _take(self) -> list[_Piece]:
        """Fill a micro-batch with equal shares of all waiting requests, oldest first. Needs the lock."""
        room = min(self._max_batch, self._waiting)
        first: dict[_Request, int] = {}
        while room:
            share = max(1, room // len(self._queue))
            for request in list(self._queue):
                first.setdefault(request, request.taken)
                size = min(share, room, request.size - request.taken)
                request.taken += size
                self._waiting -= size
                room -= size
                if request.taken == request.size:
                    self._queue.remove(request)
                if not room:
                    break
        if self._queue:
            self._queue.rotate(-1)  # who was served first comes last next time
            self._changed.notify()  # another engine may be idle
        return [(request, start, request.taken) for request, start in first.items()]

    def _deliver(self, pieces: list[_Piece], results: Rows) -> None:
        offset = 0
        for request, start, stop in pieces:
            size = stop - start
            part = {name: array[offset : offset + size] for name, array in results.items()}
            offset += size
            if size == request.size:
                request.results = {name: np.array(array) for name, array in part.items()}
            else:
                with self._changed:  # two engines may have parts of it
                    for name, array in part.items():
                        request.results.setdefault(name, np.empty((request.size, *array.shape[1:]), array.dtype))
                for name, array in part.items():
                    request.results[name][start:stop] = array
            with self._changed:
                request.finished += size
                complete = request.finished == request.size
            if complete:
                request.resolve()

    def _fail(self, pieces: list[_Piece], error: BaseException) -> None:
        reason = str(error) or type(error).__name__
        with self._changed:
            for request, _, _ in pieces:
                self._drop(request)
        for request, _, _ in pieces:
            request.reject(EngineFailure(f"the engine failed: {reason}"))

    def _drop(self, request: _Request) -> None:
        """Take what is left of a request out of the queue. Needs the lock."""
        if request.taken < request.size:
            self._queue.remove(request)
            self._waiting -= request.size - request.taken
            request.taken = request.size
