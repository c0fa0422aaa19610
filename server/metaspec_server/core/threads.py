"""Threads for work that would block the event loop: a few for medium work, which does not wait behind large work in others."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

__all__ = ["SMALL", "off_loop"]

P = ParamSpec("P")
T = TypeVar("T")

SMALL = 256 * 1024
"""Bytes that are processed at once, in the event loop: in less time than the switch to a thread and back takes."""

_LARGE = 8 * 2**20
_medium_work = ThreadPoolExecutor(2, "medium-work")
_large_work = ThreadPoolExecutor(2, "large-work")


async def off_loop(nbytes: int, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function that processes `nbytes` bytes: in a thread, unless they are so few that the switch costs more."""
    if nbytes <= SMALL:
        return function(*args, **kwargs)
    call = partial(contextvars.copy_context().run, function, *args, **kwargs)
    return await asyncio.get_running_loop().run_in_executor(_medium_work if nbytes <= _LARGE else _large_work, call)
