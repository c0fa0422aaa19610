"""Priorities of requests: which of those that wait go first, and how those of a lower level still get their turn.

The numbers are those of the request parameter `priority` of Triton's schedule policy extension: 1 is the highest level, larger
numbers are lower, and 0 asks for the default. There are two levels here, as with `priority_levels: 2` and
`default_priority_level: 2` in Triton's model configuration: 1 for interactive requests, 2 for all others.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar

__all__ = ["DEFAULT_PRIORITY", "LOWEST_PRIORITY", "Slots", "Turns", "level"]

T = TypeVar("T")

LOWEST_PRIORITY = 2
"""Number of the lowest level."""

DEFAULT_PRIORITY = 2
"""Level of requests that ask for none."""

_LOWER_FIRST = 4  # every so many turns


def level(priority: int) -> int:
    """Level of a priority, counted from 0 for the highest.

    Args:
        priority: 1 for the highest level, 2 for the one below, 0 for the default.

    Raises:
        ValueError: there is no such level.
    """
    if not 0 <= priority <= LOWEST_PRIORITY:
        raise ValueError(f"priority must be a whole number from 0 to {LOWEST_PRIORITY}, got {priority}")
    return (priority or DEFAULT_PRIORITY) - 1


class Turns:
    """Decides which level is served first: the highest one, but every fourth time the lowest one that waits.

    So a lower level gets at least a quarter of the turns, however many requests of higher levels come.
    """

    def __init__(self) -> None:
        self._taken = 0

    def order(self, levels: Sequence[deque[T]]) -> list[deque[T]]:
        """The levels in which something waits, in the order in which they are served now.

        Args:
            levels: what waits in each level, highest first.
        """
        waiting = [level for level in levels if level]
        if len(waiting) > 1:
            self._taken = (self._taken + 1) % _LOWER_FIRST
            if not self._taken:
                waiting.reverse()
        return waiting


class Slots:
    """A semaphore whose slots go to requests of the higher level first, as `Turns` decides.

    Args:
        number: number of slots.
    """

    def __init__(self, number: int) -> None:
        self._free, self._turns = number, Turns()
        self._levels: list[deque[asyncio.Future[None]]] = [deque() for _ in range(LOWEST_PRIORITY)]

    @asynccontextmanager
    async def take(self, priority: int) -> AsyncIterator[None]:
        """Hold a slot for the block, once there is one."""
        if self._free:
            self._free -= 1
        else:
            waiting, mine = self._levels[level(priority)], asyncio.get_running_loop().create_future()
            waiting.append(mine)
            try:
                await mine
            except asyncio.CancelledError:
                if not mine.cancelled():  # it had just been given a slot
                    self._give()
                raise
        try:
            yield
        finally:
            self._give()

    def _give(self) -> None:
        for waiting in self._turns.order(self._levels):
            while waiting:
                if not (next_one := waiting.popleft()).cancelled():
                    next_one.set_result(None)
                    return
        self._free += 1
