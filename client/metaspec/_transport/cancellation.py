"""Cancellation of requests in flight from another thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Cancelled(Exception):
    """The call that a request belongs to has ended, so that nobody waits for the answer."""


class Cancellation:
    """Ends the requests of one call, whichever threads they are in."""

    def __init__(self) -> None:
        self._requested = threading.Event()
        self._lock = threading.Lock()
        self._actions: list[Callable[[], object]] = []

    @property
    def requested(self) -> bool:
        """Whether `cancel` was called."""
        return self._requested.is_set()

    def wait(self, seconds: float) -> bool:
        """Pause until the time is over or `cancel` is called, and return whether it was."""
        return self._requested.wait(seconds)

    def cancel(self) -> None:
        """End all requests in flight at once, and all that start later."""
        with self._lock:
            self._requested.set()
            for action in self._actions:
                action()

    @contextmanager
    def ending(self, action: Callable[[], object]) -> Iterator[None]:
        """In a `with` statement around a request in flight: `cancel` calls the action, which must not block.

        Raises:
            Cancelled: `cancel` was called before.
        """
        with self._lock:
            if self.requested:
                raise Cancelled
            self._actions.append(action)
        try:
            yield
        finally:
            with self._lock:
                self._actions.remove(action)
