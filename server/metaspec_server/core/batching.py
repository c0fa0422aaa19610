"""The micro-batcher: rows of many callers in, full batches to the engines, each caller's own rows back.

Work-conserving: an idle engine takes what is waiting at once; while it runs, requests gather, and the next micro-batch takes
as many rows as fit. No request waits for a timer. A large request is split, small ones are joined, and each waiting request
of a priority gets an equal share of every micro-batch, so that one large caller does not hold up many small ones.

There is one queue, and one thread for each engine; which of them compute at a time, the crew decides. An engine that raises an
`Exception` fails that micro-batch and takes the next one. Any other exception ends its thread. An engine that computes a
micro-batch for longer than its timeout is given up: its run is told to end, its callers get an error, and it takes no more
work. In both cases the requests that are waiting stay in the queue for another engine.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable, Sequence

from metaspec_server.core.crew import Crew
from metaspec_server.core.errors import Closed, DeadlineExceeded, EngineFailure, QueueFull
from metaspec_server.core.priority import DEFAULT_PRIORITY
from metaspec_server.core.request_queue import Request, RequestQueue, Share
from metaspec_server.core.tensors import Piece, Rows, count
from metaspec_server.core.worker import MicroBatch, Run, Worker

__all__ = ["MicroBatch", "MicroBatcher", "Run"]

log = logging.getLogger(__name__)

_GRACE = 1.0  # seconds for a run that has been told to end
_MOST_ABANDONED = 4  # engines that were told to end and go on computing: with more, nothing else gets a core


class MicroBatcher:
    """A bounded queue before one or several engines, and the threads that empty it.

    Args:
        max_batch: largest number of rows in a micro-batch, unless `start` says otherwise for an engine.
        max_queue: largest number of waiting rows of each priority.
        name: name of the threads.
        observe: function called with every micro-batch.
        engine_timeout: seconds after which an engine that computes one micro-batch is overdue.
    """

    def __init__(
        self,
        max_batch: int,
        max_queue: int,
        name: str = "engine",
        observe: Callable[[MicroBatch], None] = lambda batch: None,
        engine_timeout: float = math.inf,
    ) -> None:
        self._max_batch, self._max_queue = max_batch, max_queue
        self._name, self._observe, self._engine_timeout = name, observe, engine_timeout
        self._queue = RequestQueue()
        self._rows_per_second = 100.0
        self._closing = False
        self._lock = threading.RLock()
        self._crew = Crew(engine_timeout)
        self._busy_from = math.inf
        self._when_busy: Callable[[], object] = lambda: None

    def start(
        self,
        run: Run,
        stop: Callable[[], None] = lambda: None,
        input_seconds: Callable[[], float] = lambda: 0.0,
        place: int | None = None,
        max_batch: int | None = None,
        on_one_core: bool = False,
    ) -> None:
        """Add an engine, which works in a thread of its own.

        Args:
            run: function that computes a micro-batch.
            stop: function that makes `run` end with an exception, from another thread.
            input_seconds: function that tells how long the last run took to copy rows into its inputs, in seconds.
            place: place of the engine that it replaces, of those that `give_up` returned.
            max_batch: largest number of rows in its micro-batches.
            on_one_core: whether it computes on one core, beside others of its kind, instead of one that has all cores.
        """
        called, most = threading.Condition(self._lock), max_batch or self._max_batch
        worker = Worker(run, stop, input_seconds, self._work, self._name, called, most, on_one_core)
        with self._lock:
            self._crew.add(worker, place)
            worker.thread.start()  # it waits for the lock

    def when_busy(self, rows: int, call: Callable[[], object]) -> None:
        """Have a function called once, when so many rows wait. It must not block."""
        self._busy_from, self._when_busy = rows, call

    @property
    def engines(self) -> int:
        """Number of engines that take work; 0 once it is closed."""
        return 0 if self._closing else len(self._crew.workers) - self._crew.missing

    @property
    def missing(self) -> int:
        """Number of engines that are dead or overdue, and should be replaced."""
        return 0 if self._closing else self._crew.missing

    @property
    def busy(self) -> dict[str, float]:
        """Seconds for which each engine has been computing its micro-batch, by its place; 0 for one that is idle."""
        return {str(place): worker.busy for place, worker in enumerate(self._crew.workers)}

    @property
    def abandoned(self) -> int:
        """Number of engines that were given up and have not ended: each keeps a thread and its memory."""
        return self._crew.abandoned

    @property
    def waiting(self) -> int:
        """Number of rows in the queue."""
        return self._queue.rows

    async def submit(
        self,
        rows: Rows,
        timeout: float | None = None,
        keys: Sequence[bytes] | None = None,
        priority: int = DEFAULT_PRIORITY,
    ) -> Rows:
        """Compute rows, batched with those of other callers.

        Args:
            rows: inputs of the model, at least one row. They must not change until this returns.
            timeout: seconds until `DeadlineExceeded`; rows that no engine has taken by then are dropped.
            keys: key of each row, where rows with equal keys have equal results.
            priority: 1 for interactive rows, which go ahead of others, 2 or 0 for all others; the request parameter
                `priority` of Triton's schedule policy extension. While both wait, others get every fourth micro-batch.

        Returns:
            Outputs of the model, with as many rows in the same order.

        Raises:
            QueueFull: the rows do not fit in the queue.
            DeadlineExceeded: the timeout has expired, or the engine took too long for a micro-batch with some of these rows.
            EngineFailure: the engine failed on a micro-batch with some of these rows.
            Closed: the batcher is closed.
            ValueError: the arrays do not have one equal, positive length, or there is no such priority.
        """
        loop = asyncio.get_running_loop()
        request = Request(Piece(rows, keys), count(rows), loop, loop.create_future(), priority)
        with self._lock:
            if self._closing:
                raise Closed
            waiting = self._queue.rows_of(priority)
            if waiting + request.size > self._max_queue:
                raise QueueFull(waiting, self._max_queue, max(1.0, self._queue.rows / self._rows_per_second))
            self._queue.add(request)
            self._wake()
            if busy := self._queue.rows >= self._busy_from:
                self._busy_from = math.inf
        if busy:
            self._when_busy()
        try:
            async with asyncio.timeout(timeout):
                return await request.future
        except TimeoutError:
            raise DeadlineExceeded(timeout) from None
        finally:  # also when the caller is cancelled: rows that are still waiting are dropped
            with self._lock:
                self._queue.drop(request)
                if not self._queue:
                    self._wake()

    def give_up(self) -> list[int]:
        """End the runs that are overdue; their callers get `DeadlineExceeded`. Blocks for a moment.

        Returns:
            Places of all engines that have to be replaced, dead ones included.

        Raises:
            RuntimeError: too many engines that were given up go on computing.
        """
        with self._lock:
            overdue = self._crew.overdue()
        for worker in overdue:
            self._end(worker, DeadlineExceeded(self._engine_timeout))
        deadline = time.monotonic() + _GRACE
        for worker in overdue:
            worker.thread.join(max(0.0, deadline - time.monotonic()))
        with self._lock:
            lost = self._crew.lost()
        if self._closing:
            return []
        if lost and (abandoned := self.abandoned) >= _MOST_ABANDONED:
            raise RuntimeError(f"{abandoned} runs were told to end and go on: restart the server")
        return lost

    async def close(self, timeout: float) -> None:
        """Accept no more requests, finish the accepted ones within `timeout` seconds, and end the threads."""
        with self._lock:
            self._closing = True
            workers = self._crew.workers
            self._wake()
        deadline = time.monotonic() + timeout
        for worker in workers:
            if not worker.given_up:
                await asyncio.to_thread(worker.thread.join, max(0.0, deadline - time.monotonic()))
        with self._lock:  # no engine is left to compute these
            left = self._queue.clear()
        for request in left:
            request.reject(Closed())
        for worker in workers:
            self._end(worker, Closed())

    def _wake(self) -> None:
        """Wake an engine that may take what waits, or all if there is nothing left to wait for. The caller holds the lock."""
        if self._closing and not self._queue:
            self._crew.wake_all()
        else:
            self._crew.wake(self._queue.rows)

    def _end(self, worker: Worker, error: Exception) -> None:
        """Give up an engine that computes a micro-batch: its callers get an error, and its run is told to end."""
        with self._lock:
            if worker.given_up or worker.since is None or worker.ended:
                return
            worker.given_up = True
            record = worker.record(failed=True)
            for share in worker.shares:
                self._queue.drop(share.request)
            self._wake()
        log.error("%s: a run with %d structures was ended after %.1f s", self._name, record.rows, record.seconds)
        for share in worker.shares:
            share.request.reject(error)
        worker.stop()
        self._observe(record)

    def _work(self, worker: Worker) -> None:
        try:
            while self._next(worker):
                self._compute(worker)
        except BaseException:
            log.exception("the thread of an engine has ended: %s", self._name)
        finally:
            with self._lock:
                worker.ended = True
                self._wake()

    def _next(self, worker: Worker) -> bool:
        """Wait for rows and take a micro-batch; false when closed and nothing is left, or when the engine is given up."""
        with self._lock:
            while not worker.given_up:
                if rows := self._crew.rows_for(worker, self._queue.rows):
                    worker.begin(self._queue.take(rows))
                    self._wake()
                    return True
                if self._closing and not self._queue:
                    return False
                self._wake()  # what this one leaves to others
                worker.called.wait()
            return False

    def _compute(self, worker: Worker) -> None:
        shares = worker.shares
        try:
            results = worker.run([share.request.piece.part(share.start, share.stop) for share in shares])
            computed = time.perf_counter()
            self._deliver(shares, results)
            self._finish(worker, failed=False, output_seconds=time.perf_counter() - computed)
        except Exception as error:  # the next micro-batch may succeed: the thread must survive
            self._fail(shares, error)
            self._finish(worker, failed=True)
        except BaseException as error:
            self._fail(shares, error)
            self._finish(worker, failed=True)
            raise

    def _finish(self, worker: Worker, failed: bool, output_seconds: float = 0.0) -> None:
        """Count the micro-batch, unless that was done when the engine was given up."""
        with self._lock:
            if worker.given_up:
                return
            record = worker.record(failed, output_seconds)
            worker.finish()
            if not failed:
                self._rows_per_second += 0.1 * (record.rows / record.seconds - self._rows_per_second)
        self._observe(record)

    def _deliver(self, shares: list[Share], results: Rows) -> None:
        offset = 0
        for share in shares:
            part = {name: array[offset : offset + share.size] for name, array in results.items()}
            offset += share.size
            share.deliver(part, self._lock)

    def _fail(self, shares: list[Share], error: BaseException) -> None:
        reason = str(error) or type(error).__name__
        with self._lock:
            for share in shares:
                self._queue.drop(share.request)
        for share in shares:
            share.request.reject(EngineFailure(f"the engine failed: {reason}"))
