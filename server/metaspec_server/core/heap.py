"""The C library's heap: memory that is free there can be given back to the operating system."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache

__all__ = ["trim_heap"]


def trim_heap() -> None:
    """Give free memory back to the operating system, where the C library can: malloc_trim(3) of glibc.

    The heap of a model that is gone lies between what others have allocated since, and glibc by itself returns only what lies
    at the end: with every version that is loaded and unloaded, a server would hold a little more.
    """
    if (trim := _malloc_trim()) is not None:
        trim(0)


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    try:
        trim: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):  # another C library
        return None
    return trim
