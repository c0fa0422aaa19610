"""The waiting requests of a model: those of the higher priority first, equal shares within a priority."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field

import numpy as np

from metaspec_server.core.priority import DEFAULT_PRIORITY, LOWEST_PRIORITY, Turns, level
from metaspec_server.core.tensors import Piece, Rows

__all__ = ["Request", "RequestQueue", "Share"]


@dataclass(eq=False)
class Request:
    """Rows of one caller, who waits for their results.

    Attributes:
        piece: the rows.
        size: number of rows.
        loop: event loop of the caller.
        future: what the caller waits for.
        priority: its priority.
        submitted: time at which it came, by `time.perf_counter`.
        taken: number of rows that are no longer in the queue.
        finished: number of rows that are computed.
        results: outputs of the computed rows.
    """

    piece: Piece
    size: int
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Rows]
    priority: int = DEFAULT_PRIORITY
    submitted: float = field(default_factory=time.perf_counter)
    taken: int = 0
    finished: int = 0
    results: Rows = field(default_factory=dict)

    def resolve(self) -> None:
        """Hand over the results, from any thread."""
        self._call(lambda: self.future.set_result(self.results))

    def reject(self, error: Exception) -> None:
        """Hand over an error, from any thread."""
        self._call(lambda: self.future.set_exception(error))

    def _call(self, settle: Callable[[], None]) -> None:
        with suppress(RuntimeError):  # the caller's event loop is closed: nobody is waiting any more
            self.loop.call_soon_threadsafe(lambda: None if self.future.done() else settle())


@dataclass(frozen=True)
class Share:
    """Rows of a request in a micro-batch, from `start` up to `stop`, exclusive."""

    request: Request
    start: int
    stop: int

    @property
    def size(self) -> int:
        """Number of rows."""
        return self.stop - self.start

    def deliver(self, part: Rows, lock: AbstractContextManager[object]) -> None:
        """Copy the results of these rows for the caller, who gets them with the last ones of the request.

        Args:
            part: results, which the engine may overwrite afterwards.
            lock: lock of the queue: two engines may hold shares of the request.
        """
        request = self.request
        if self.size == request.size:
            request.results = {name: np.array(array) for name, array in part.items()}
        else:
            with lock:
                for name, array in part.items():
                    request.results.setdefault(name, np.empty((request.size, *array.shape[1:]), array.dtype))
            for name, array in part.items():
                request.results[name][self.start : self.stop] = array
        with lock:
            request.finished += self.size
            complete = request.finished == request.size
        if complete:
            request.resolve()


class RequestQueue:
    """Waiting requests. The caller of each method holds the lock of the queue."""

    def __init__(self) -> None:
        self._levels: list[deque[Request]] = [deque() for _ in range(LOWEST_PRIORITY)]
        self._rows = [0] * LOWEST_PRIORITY
        self._turns = Turns()

    def __bool__(self) -> bool:
        return any(self._levels)

    @property
    def rows(self) -> int:
        """Number of waiting rows."""
        return sum(self._rows)

    def rows_of(self, priority: int) -> int:
        """Number of waiting rows of a priority."""
        return self._rows[level(priority)]

    def add(self, request: Request) -> None:
        """Append a request to those of its priority."""
        number = level(request.priority)
        self._levels[number].append(request)
        self._rows[number] += request.size

    def take(self, most: int) -> list[Share]:
        """Take up to `most` rows, as many as there are.

        Within a priority each waiting request gives an equal share, oldest first. What room is left goes to the other one.
        """
        first: dict[Request, int] = {}
        room = most
        for waiting in self._turns.order(self._levels):
            if not room:
                break
            while room and waiting:
                share = max(1, room // len(waiting))
                for request in list(waiting):
                    first.setdefault(request, request.taken)
                    size = min(share, room, request.size - request.taken)
                    self._count(request, size)
                    room -= size
                    if request.taken == request.size:
                        waiting.remove(request)
                    if not room:
                        break
            waiting.rotate(-1)  # the request served first comes last next time
        return [Share(request, start, request.taken) for request, start in first.items()]

    def drop(self, request: Request) -> None:
        """Remove what is left of a request."""
        if request.taken < request.size:
            self._levels[level(request.priority)].remove(request)
            self._count(request, request.size - request.taken)

    def clear(self) -> list[Request]:
        """Remove all requests and return them."""
        left = [request for waiting in self._levels for request in waiting]
        for request in left:
            self.drop(request)
        return left

    def _count(self, request: Request, taken: int) -> None:
        request.taken += taken
        self._rows[level(request.priority)] -= taken
