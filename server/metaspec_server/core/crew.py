"""The engines of a model, and which of them compute: one with all cores, or one on each core, as the load asks.

With all cores, a network answers a single request soonest. On one core each, side by side, engines compute more structures a
second, because no core waits for another. The two kinds never compute at once, or they would wait for each other's cores.
"""

from __future__ import annotations

import math

from metaspec_server.core.worker import Worker

__all__ = ["Crew"]


class Crew:
    """The engines of a model, by their places. The caller of each method holds the lock of the queue.

    Args:
        timeout: seconds after which an engine that computes one micro-batch is overdue.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._workers: list[Worker] = []
        self._replaced: list[Worker] = []

    def add(self, worker: Worker, place: int | None = None) -> None:
        """Add an engine, in a place of its own or instead of the one in that place."""
        if place is None:
            self._workers.append(worker)
        else:
            self._replaced.append(self._workers[place])
            self._workers[place] = worker

    @property
    def workers(self) -> list[Worker]:
        """The engines, by their places."""
        return list(self._workers)

    @property
    def missing(self) -> int:
        """Number of engines that are dead, given up or overdue."""
        return sum(not self._works(worker) for worker in self._workers)

    @property
    def abandoned(self) -> int:
        """Number of engines that were given up and have not ended: each keeps a thread and its memory."""
        return sum(worker.abandoned for worker in [*self._replaced, *self._workers])

    def overdue(self) -> list[Worker]:
        """Engines that have been computing one micro-batch for too long."""
        return [worker for worker in self._workers if worker.busy > self._timeout]

    def lost(self) -> list[int]:
        """Places of the engines that are missing. Forgets those that were replaced and have ended."""
        self._replaced = [worker for worker in self._replaced if worker.thread.is_alive()]
        return [place for place, worker in enumerate(self._workers) if not self._works(worker)]

    def rows_for(self, worker: Worker, waiting: int) -> int:
        """Number of rows that an idle engine may take now; 0 if it has to leave them to others.

        Args:
            worker: the engine, which works.
            waiting: number of rows in the queue.
        """
        cores = self._side_by_side(waiting)
        if worker.on_one_core != bool(cores):
            return 0
        return min(worker.max_batch, math.ceil(waiting / cores) if cores else waiting)

    def wake(self, waiting: int) -> None:
        """Wake an idle engine that may take rows now, if there is one.

        Args:
            waiting: number of rows in the queue.
        """
        if waiting:
            on_one_core = bool(self._side_by_side(waiting))
            for worker in self._workers:
                if worker.on_one_core == on_one_core and worker.since is None and self._works(worker):
                    worker.called.notify()
                    return

    def wake_all(self) -> None:
        """Wake every idle engine, to see whether it has to end."""
        for worker in self._workers:
            worker.called.notify()

    def _side_by_side(self, waiting: int) -> int:
        """Number of the engines on one core, if it is them who may take rows now; else 0.

        They begin when at least one row waits for each of them. Once one of them computes, the others take whatever comes,
        until all are idle and fewer rows wait.
        """
        working = [worker for worker in self._workers if self._works(worker)]
        single = [worker for worker in working if worker.on_one_core]
        shared = [worker for worker in working if not worker.on_one_core]
        if any(worker.since is not None for worker in single) or not shared:
            return len(single)
        if any(worker.since is not None for worker in shared):
            return 0
        return len(single) if waiting >= len(single) else 0

    def _works(self, worker: Worker) -> bool:
        """Whether an engine takes work, or will when its micro-batch is done."""
        return not worker.ended and not worker.given_up and worker.busy <= self._timeout
