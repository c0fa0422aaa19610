"""The queue of a model that is loaded on its first request."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from metaspec_server.blocking import in_thread
from metaspec_server.core.errors import Closed, DeadlineExceeded, EngineFailure, QueueFull
from metaspec_server.core.priority import DEFAULT_PRIORITY
from metaspec_server.core.served_model import Queue
from metaspec_server.core.tensors import Rows, count

__all__ = ["LazyQueue"]


class LazyQueue:
    """Stands in for the queue of a model, and makes it when the first rows come.

    A model that has not been loaded counts as ready. If it cannot be loaded, the requests that wait for it fail, it is not
    ready, and the next request tries again.

    Args:
        make: function that loads the model and returns its queue; blocks.
        engines: number of engines that it will have.
        max_queue: largest number of rows that wait for the model to be loaded.
    """

    def __init__(self, make: Callable[[], Queue], engines: int, max_queue: int) -> None:
        self._make, self._wanted, self._max_queue = make, engines, max_queue
        self._loading: asyncio.Future[Queue] | None = None
        self._early = 0  # rows that wait for the model to be loaded
        self._failed = self._closing = False

    @property
    def engines(self) -> int:
        """Number of engines that take work, or that would once they are loaded."""
        if (queue := self._queue) is not None:
            return queue.engines
        return 0 if self._failed or self._closing else self._wanted

    @property
    def missing(self) -> int:
        """Number of engines that are dead or overdue."""
        return 0 if self._queue is None else self._queue.missing

    @property
    def busy(self) -> dict[str, float]:
        """Seconds for which each engine has been computing, by its name; empty before the model is loaded."""
        return {} if self._queue is None else self._queue.busy

    @property
    def abandoned(self) -> int:
        """Number of engines that were given up and go on computing."""
        return 0 if self._queue is None else self._queue.abandoned

    @property
    def waiting(self) -> int:
        """Number of waiting rows."""
        return self._early + (self._queue.waiting if self._queue is not None else 0)

    async def submit(
        self,
        rows: Rows,
        timeout: float | None = None,
        keys: Sequence[bytes] | None = None,
        priority: int = DEFAULT_PRIORITY,
    ) -> Rows:
        """Compute rows, after the model is loaded; see `MicroBatcher.submit`.

        Raises:
            EngineFailure: also if the model cannot be loaded.
        """
        if self._queue is None:
            if self._closing:
                raise Closed
            size = count(rows)
            if self._early + size > self._max_queue:
                raise QueueFull(self._early, self._max_queue, retry_after=1.0)
            self._early += size
            try:
                async with asyncio.timeout(timeout):
                    await self._loaded()
            except TimeoutError:
                raise DeadlineExceeded(timeout) from None
            finally:
                self._early -= size
        assert self._queue is not None
        return await self._queue.submit(rows, timeout, keys, priority)

    async def close(self, timeout: float) -> None:
        """Finish accepted work and stop."""
        self._closing = True
        if self._loading is not None:
            await asyncio.wait({self._loading}, timeout=timeout)
        if self._queue is not None:
            await self._queue.close(timeout)

    @property
    def _queue(self) -> Queue | None:
        """The queue of the loaded model."""
        loading = self._loading
        if loading is None or not loading.done() or loading.cancelled() or loading.exception() is not None:
            return None
        return loading.result()

    async def _loaded(self) -> None:
        """Wait for the model; all that wait share one attempt to load it."""
        if self._loading is None or (self._loading.done() and self._queue is None):
            self._loading = asyncio.wrap_future(in_thread(self._make))
        try:
            await asyncio.shield(self._loading)  # the others still wait for it when one caller leaves
        except Exception as error:
            self._failed = True
            raise EngineFailure(f"the model cannot be loaded: {error}") from None
        self._failed = False
