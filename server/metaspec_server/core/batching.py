"""The micro-batcher: rows of many callers in, full batches to the engines, each caller's own rows back.

Work-conserving: an idle engine takes what is waiting at once; while it runs, requests gather, and the next micro-batch takes
as many rows as fit. No request waits for a timer. A large request is split, small ones are joined, and each waiting request
gets an equal share of every micro-batch, so that one large caller does not hold up many small ones.

There is one queue, and one thread for each engine. An engine that raises an `Exception` fails that micro-batch and takes
the next one. Any other exception ends its thread; the requests that are waiting stay in the queue for another engine.
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
from typing import TypeAlias

import numpy as np

from metaspec_server.core.errors import Closed, DeadlineExceeded, EngineFailure, QueueFull
from metaspec_server.core.tensors import Piece, Rows, count

__all__ = ["MicroBatch", "MicroBatcher", "Run"]

log = logging.getLogger(__name__)

Run: TypeAlias = Callable[[Sequence[Piece]], Rows]
"""Computes a micro-batch: pieces of several requests in, one row out for each of theirs, in the same order.

Called by one thread only. The next call may overwrite what it returned.
"""


@dataclass(frozen=True)
class MicroBatch:
    """Record of a computed micro-batch.

    Attributes:
        rows: number of rows.
        waited: seconds in the queue of each request whose first rows are in it.
        seconds: time to compute it in seconds.
        failed: whether the engine raised an exception.
    """

    rows: int
    waited: list[float]
    seconds: float
    failed: bool


@dataclass(eq=False)
class _Request:
    piece: Piece
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
        with suppress(RuntimeError):  # the caller's event loop is closed: nobody is waiting any more
            self.loop.call_soon_threadsafe(lambda: None if self.future.done() else settle())


@dataclass(frozen=True)
class _Share:
    """Rows of a request in a micro-batch, from `start` up to `stop`, exclusive."""

    request: _Request
    start: int
    stop: int


class MicroBatcher:
    """A bounded queue before one or several engines, and the threads that empty it.

    Args:
        max_batch: largest number of rows in a micro-batch.
        max_queue: largest number of waiting rows.
        name: name of the threads.
        observe: function called with every micro-batch, in the thread that computed it.
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
        """Add an engine, which works in a thread of its own; returns that thread."""
        thread = threading.Thread(target=self._work, args=[run], name=self._name, daemon=True)
        with self._changed:
            self._threads.add(thread)
        thread.start()
        return thread

    @property
    def engines(self) -> int:
        """Number of engines that take work; 0 once it is closed."""
        return 0 if self._closing else len(self._threads)

    @property
    def waiting(self) -> int:
        """Number of rows in the queue."""
        return self._waiting

    async def submit(self, rows: Rows, timeout: float | None = None, keys: Sequence[bytes] | None = None) -> Rows:
        """Compute rows, batched with those of other callers.

        Args:
            rows: inputs of the model, at least one row. They must not change until this returns.
            timeout: seconds until `DeadlineExceeded`; rows that no engine has taken by then are dropped.
            keys: key of each row, where rows with equal keys have equal results.

        Returns:
            Outputs of the model, with as many rows in the same order.

        Raises:
            QueueFull: the rows do not fit in the queue.
            DeadlineExceeded: the timeout has expired.
            EngineFailure: the engine failed on a micro-batch with some of these rows.
            Closed: the batcher is closed.
            ValueError: the arrays do not have one equal, positive length.
        """
        loop = asyncio.get_running_loop()
        request = _Request(Piece(rows, keys), count(rows), loop, loop.create_future())
        with self._changed:
            if self._closing:
                raise Closed
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
            raise DeadlineExceeded(timeout) from None
        finally:  # also when the caller is cancelled: rows that are still waiting are dropped
            with self._changed:
                self._drop(request)

    async def close(self, timeout: float) -> None:
        """Accept no more requests, finish the accepted ones within `timeout` seconds, and end the threads."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            threads = list(self._threads)
        deadline = time.monotonic() + timeout
        for thread in threads:
            await asyncio.to_thread(thread.join, max(0.0, deadline - time.monotonic()))
        with self._changed:  # no engine is left to compute these
            left = list(self._queue)
            for request in left:
                self._drop(request)
        for request in left:
            request.reject(Closed())

    def _work(self, run: Run) -> None:
        try:
            while shares := self._next():
                self._compute(run, shares)
        except BaseException:
            log.exception("the thread of an engine has ended: %s", self._name)
        finally:
            with self._changed:
                self._threads.discard(threading.current_thread())

    def _next(self) -> list[_Share]:
        """Wait for rows and take a micro-batch; empty when closed and nothing is left."""
        with self._changed:
            while not self._queue and not self._closing:
                self._changed.wait()
            return self._take() if self._queue else []

    def _compute(self, run: Run, shares: list[_Share]) -> None:
        rows = sum(share.stop - share.start for share in shares)
        started = time.perf_counter()
        waited = [started - share.request.submitted for share in shares if share.start == 0]
        failed = True
        try:
            results = run([share.request.piece.part(share.start, share.stop) for share in shares])
            failed = False
            self._deliver(shares, results)
        except Exception as error:  # the next micro-batch may succeed: the thread must survive
            self._fail(shares, error)
        except BaseException as error:
            self._fail(shares, error)
            raise
        finally:
            seconds = time.perf_counter() - started
            if not failed:
                self._rows_per_second += 0.1 * (rows / seconds - self._rows_per_second)
            self._observe(MicroBatch(rows, waited, seconds, failed))

    def _take(self) -> list[_Share]:
        """Fill a micro-batch with equal shares of all waiting requests, oldest first. The caller holds the lock."""
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
            self._queue.rotate(-1)  # the request served first comes last next time
            self._changed.notify()  # another engine may be idle
        return [_Share(request, start, request.taken) for request, start in first.items()]

    def _deliver(self, shares: list[_Share], results: Rows) -> None:
        offset = 0
        for share in shares:
            request, size = share.request, share.stop - share.start
            part = {name: array[offset : offset + size] for name, array in results.items()}
            offset += size
            if size == request.size:
                request.results = {name: np.array(array) for name, array in part.items()}
            else:
                with self._changed:  # two engines may hold parts of it
                    for name, array in part.items():
                        request.results.setdefault(name, np.empty((request.size, *array.shape[1:]), array.dtype))
                for name, array in part.items():
                    request.results[name][share.start : share.stop] = array
            with self._changed:
                request.finished += size
                complete = request.finished == request.size
            if complete:
                request.resolve()

    def _fail(self, shares: list[_Share], error: BaseException) -> None:
        reason = str(error) or type(error).__name__
        with self._changed:
            for share in shares:
                self._drop(share.request)
        for share in shares:
            share.request.reject(EngineFailure(f"the engine failed: {reason}"))

    def _drop(self, request: _Request) -> None:
        """Remove what is left of a request from the queue. The caller holds the lock."""
        if request.taken < request.size:
            self._queue.remove(request)
            self._waiting -= request.size - request.taken
            request.taken = request.size
