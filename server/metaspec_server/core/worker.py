"""An engine at work in a thread of its own, and the record of what it computes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from metaspec_server.core.request_queue import Share
from metaspec_server.core.tensors import Piece, Rows

__all__ = ["MicroBatch", "Run", "Worker"]

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
        failed: whether the engine raised an exception, or took too long.
        requests: number of requests with rows in it.
        input_seconds: part of the time in which rows were copied into the inputs of the engine.
        output_seconds: part of the time in which results were copied for the callers.
        repeats: number of rows that are equal to others in it, whose results they get without being computed.
    """

    rows: int
    waited: list[float]
    seconds: float
    failed: bool
    requests: int = 1
    input_seconds: float = 0.0
    output_seconds: float = 0.0
    repeats: int = 0

    @property
    def computed(self) -> int:
        """Number of rows that the model computed."""
        return self.rows - self.repeats


class Worker:
    """An engine and its thread.

    Args:
        run: function that computes a micro-batch.
        stop: function that makes `run` end, from another thread.
        input_seconds: function that tells how long the last run took to copy rows into its inputs, in seconds.
        work: function that the thread calls with this worker.
        name: name of the thread.
        called: condition, of the lock of the queue, that the thread waits for while it is idle.
        max_batch: largest number of rows in its micro-batches.
        on_one_core: whether it computes on one core, beside others, and not on all of them.

    Attributes:
        run: function that computes a micro-batch.
        stop: function that makes `run` end, from another thread.
        input_seconds: function that tells how long the last run took to copy rows into its inputs, in seconds.
        called: condition that the thread waits for while it is idle.
        max_batch: largest number of rows in its micro-batches.
        on_one_core: whether it computes on one core, beside others, and not on all of them.
        thread: the thread.
        shares: the micro-batch that it computes.
        since: time at which it began to compute, by `time.perf_counter`; None while it is idle.
        given_up: whether a run took too long: it takes no more work.
        ended: whether the thread takes no more work, because it was closed or has died.
    """

    def __init__(
        self,
        run: Run,
        stop: Callable[[], None],
        input_seconds: Callable[[], float],
        work: Callable[[Worker], None],
        name: str,
        called: threading.Condition,
        max_batch: int,
        on_one_core: bool,
    ) -> None:
        self.run, self.stop, self.input_seconds = run, stop, input_seconds
        self.called, self.max_batch, self.on_one_core = called, max_batch, on_one_core
        self.thread = threading.Thread(target=work, args=[self], name=name, daemon=True)
        self.shares: list[Share] = []
        self.since: float | None = None
        self.given_up = self.ended = False

    @property
    def busy(self) -> float:
        """Seconds for which it has been computing its micro-batch; 0 while it is idle."""
        since = self.since
        return 0.0 if since is None else time.perf_counter() - since

    @property
    def abandoned(self) -> bool:
        """Whether it was given up, and its thread has not ended."""
        return self.given_up and self.thread.is_alive()

    def begin(self, shares: list[Share]) -> None:
        """Begin a micro-batch."""
        self.shares, self.since = shares, time.perf_counter()

    def finish(self) -> None:
        """Be idle again."""
        self.shares, self.since = [], None

    def record(self, failed: bool, output_seconds: float = 0.0) -> MicroBatch:
        """Record of the micro-batch that it computes."""
        began = self.since or 0.0
        keys = [key for share in self.shares for key in (share.request.piece.keys or [])[share.start : share.stop]]
        return MicroBatch(
            rows=sum(share.size for share in self.shares),
            waited=[began - share.request.submitted for share in self.shares if share.start == 0],
            seconds=self.busy,
            failed=failed,
            requests=len(self.shares),
            input_seconds=0.0 if failed else self.input_seconds(),
            output_seconds=output_seconds,
            repeats=len(keys) - len(set(keys)),
        )
