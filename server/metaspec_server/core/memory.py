"""Memory of requests: one budget, shared by the bodies and answers of all requests in flight."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from metaspec_server.core.errors import MemoryFull, TooMuchMemory

__all__ = ["Lease", "MemoryBudget"]

_UNCOUNTED = 512 * 1024  # bytes of each request
_PATIENCE = 5.0  # seconds that a request waits for memory while it holds some


class MemoryBudget:
    """Bytes that requests in flight may hold together. Small requests are not counted, so that none of them waits.

    Args:
        nbytes: size of the budget in bytes.
    """

    def __init__(self, nbytes: int) -> None:
        self.nbytes = self._free = nbytes
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()  # in order of arrival

    @contextmanager
    def lease(self) -> Iterator[Lease]:
        """The memory of one request, given back when the block ends."""
        lease = Lease(self)
        try:
            yield lease
        finally:
            lease.shrink(0)

    async def take(self, nbytes: int, patience: float) -> None:
        """Take bytes; waits up to `patience` seconds for those that came before. See `Lease.grow`."""
        if nbytes <= self._free and not self._waiting:
            self._free -= nbytes
            return
        entry = nbytes, asyncio.get_running_loop().create_future()
        self._waiting.append(entry)
        try:
            await asyncio.wait({entry[1]}, timeout=patience)
        except asyncio.CancelledError:
            if entry[1].done():
                self.give_back(nbytes)
            raise
        finally:
            if not entry[1].done():
                self._waiting.remove(entry)
                self.give_back(0)
        if not entry[1].done():
            raise MemoryFull(self.nbytes)

    def give_back(self, nbytes: int) -> None:
        """Give bytes back, to those who wait."""
        self._free += nbytes
        while self._waiting and self._waiting[0][0] <= self._free:
            wanted, granted = self._waiting.popleft()
            self._free -= wanted
            granted.set_result(None)


class Lease:
    """Memory that one request holds.

    Args:
        budget: budget that it is taken from.

    Attributes:
        nbytes: number of bytes.
    """

    def __init__(self, budget: MemoryBudget) -> None:
        self.nbytes, self._budget, self._counted = 0, budget, 0

    async def grow(self, nbytes: int, patience: float = _PATIENCE) -> None:
        """Hold `nbytes` more.

        Raises:
            TooMuchMemory: the whole budget is smaller than what the request would hold.
            MemoryFull: there is not so much within `patience` seconds.
        """
        counted = max(0, self.nbytes + nbytes - _UNCOUNTED)
        if counted > self._budget.nbytes:
            raise TooMuchMemory(counted, self._budget.nbytes)
        if more := counted - self._counted:
            await self._budget.take(more, patience)
        self.nbytes += nbytes
        self._counted = counted

    def shrink(self, nbytes: int) -> None:
        """Hold no more than `nbytes` bytes from now on."""
        self.nbytes = min(nbytes, self.nbytes)
        counted = max(0, self.nbytes - _UNCOUNTED)
        self._budget.give_back(self._counted - counted)
        self._counted = counted
